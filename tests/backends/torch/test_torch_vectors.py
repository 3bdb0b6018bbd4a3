"""The quick ways of the vector operations, and when they are not taken."""

import numpy as np
import pytest
import torch

import linop_gn as lg

ops = lg.load("torch")


@pytest.fixture
def vectors(torch):
    def make(dtype="float64", grad=(False, False)):
        host, kind = np.random.default_rng(0).standard_normal((2, 6)), getattr(torch, dtype)
        return host, [torch.tensor(h, dtype=kind).requires_grad_(g) for h, g in zip(host, grad, strict=True)]

    return make


@pytest.mark.parametrize("grad", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("a", [1.0, 0.3])
def test_updates_record_nothing(vectors, a, grad):
    (x, y), (X, Y) = vectors(grad=grad)
    result = ops.axpby(a, X, -0.7, Y)
    assert not result.requires_grad or (result is Y and Y.is_leaf)
    np.testing.assert_allclose(result.detach(), a * x - 0.7 * y, rtol=1e-14)
    (x, y), (X, Y) = vectors(grad=grad)
    result = ops.axpy(a, X, Y)
    assert result.grad_fn is None
    np.testing.assert_allclose(result.detach(), a * x + y, rtol=1e-14)
    assert ops.dot(X, X) == pytest.approx(x @ x, rel=1e-14)
    assert type(ops.dot(X, X)) is float


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_updates_are_in_place_in_every_dtype(vectors, dtype):
    (x, y), (X, Y) = vectors(dtype)
    assert ops.axpby(1.0, X, 0.5, Y) is Y
    np.testing.assert_allclose(Y.double(), x + 0.5 * y, atol=3e-2 if "16" in dtype else 1e-6)
    assert Y.dtype is X.dtype


def test_one_factor_may_be_a_number_while_the_other_has_columns(torch):
    x, y = torch.ones(3, 2, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)
    result = ops.axpby(1.0, x, np.array([2.0, 3.0]), y)
    assert result.tolist() == [[3.0, 4.0]] * 3
    assert ops.axpby(np.array([1.0, 0.5]), x, 1.0, result).tolist() == [[4.0, 4.5]] * 3


def test_tensors_of_two_precisions_do_not_mix_silently(torch):
    with pytest.raises(TypeError, match="one dtype"):
        ops.dot(torch.ones(2), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("dtype", "x", "a"), [("float16", 1e-5, 1e6), ("bfloat16", 1e-30, 1e39), ("float32", 1e-30, 1e39)]
)
def test_a_factor_beyond_the_range_of_the_vectors_is_no_error(dtype, x, a):
    kind = getattr(torch, dtype)
    small, ones = torch.full((3,), x, dtype=kind), torch.ones(3, dtype=kind)
    want = torch.ones(3) + a * float(small[0])
    torch.testing.assert_close(ops.axpy(a, small, ones.clone()).float(), want, rtol=1e-2, atol=0)
    torch.testing.assert_close(ops.axpby(a, small, 1.0, ones.clone()).float(), want, rtol=1e-2, atol=0)
    for made in (
        ops.axpby(1.0, ones, a, small.clone()),
        ops.scale(a, small.clone()),
    ):  # inf is told, not raised
        assert (made > 1.0).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_infinities_of_both_signs_in_a_long_vector_make_no_error(dtype):
    """They are added up a part at a time: what meets from two parts is NaN, which a status tells."""
    x = torch.ones(3 * 65536 + 1, dtype=getattr(torch, dtype))
    x[0], x[70000] = float("inf"), -float("inf")
    assert np.isnan(ops.dot(x, torch.ones_like(x)))
    assert ops.max_abs(x) == float("inf")
    assert ops.dot(torch.ones_like(x), torch.ones_like(x)) == len(x)
    if dtype == "float32":
        ended = lg.solve(lg.Diagonal(torch.ones_like(x)), x, lg.CG(steps=2))
        assert ended.status is lg.Status.NONFINITE_INPUT
        product = lg.FunctionOperator(lambda v: x * v, lg.Space.of(x), symmetric=True)
        assert lg.solve(product, torch.ones_like(x), lg.CG(steps=2)).status is lg.Status.NONFINITE
