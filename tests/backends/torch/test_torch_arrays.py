"""Trees of tensors, conversions, and vector operations in place."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from linop_gn_torch import backend
from torch import nn

from linop_gn.backend import Product

Pair = namedtuple("Pair", "weight bias")


def test_names_follow_the_paths_and_the_order_of_insertion():
    tree = {"z": [1, 2], "a.b": {"w": 3}, "p": Pair(4, OrderedDict(y=5, x=6)), "none": None, "t": (7,)}
    names, leaves, structure = backend.flatten(tree)
    assert names == ["z.0", "z.1", "a.b.w", "p.weight", "p.bias.y", "p.bias.x", "t.0"]
    assert leaves == [1, 2, 3, 4, 5, 6, 7]
    again = backend.unflatten(structure, leaves)
    assert again == tree
    assert list(again) == list(tree)
    assert backend.flatten(torch.zeros(2))[0] == [""]


def test_structures_are_values_and_know_the_order():
    structure = backend.flatten({"b": 1, "a": 2})[2]
    assert structure == backend.flatten({"b": 3, "a": 4})[2]
    assert hash(structure) == hash(backend.flatten({"b": 3, "a": 4})[2])
    assert structure != backend.flatten({"a": 1, "b": 2})[2]
    seen = []
    thread = threading.Thread(target=lambda: seen.append(backend.flatten({"b": 1, "a": 2})))
    thread.start()
    thread.join()
    assert seen[0][0] == ["b", "a"]


def test_what_a_tensor_is():
    assert backend.describe(torch.zeros(2, 3, dtype=torch.bfloat16)) == ((2, 3), "bfloat16", "cpu")
    assert backend.describe(torch.zeros(2, device="meta")) == ((2,), "float32", "meta")
    assert backend.is_array(torch.nn.Parameter(torch.zeros(1)))
    assert not backend.is_array(np.zeros(1))
    assert backend.version() == torch.__version__
    assert backend.devices()[0] == "cpu"
    assert backend.is_concrete(torch.zeros(1))


def test_pack_and_split():
    leaves = [torch.randn(2, 3), torch.randn(()), torch.randn(4, dtype=torch.float64)]
    packed = backend.pack(leaves, "float64")
    assert (packed.shape, packed.dtype) == ((11,), torch.float64)
    shapes, dtypes = [(2, 3), (), (4,)], ["float32", "float32", "float64"]
    for piece, leaf in zip(backend.split(packed, shapes, dtypes), leaves, strict=True):
        assert torch.equal(piece, leaf)
        assert piece.dtype == leaf.dtype
    one = torch.zeros(3)
    assert backend.pack([one], "float32").data_ptr() != one.data_ptr()
    view = backend.split(packed, shapes, ["float64"] * 3)[2]
    view += 1
    assert torch.equal(packed[7:], leaves[2] + 1)


@pytest.mark.parametrize("columns", [torch.randn(5, 2), torch.randn(2, 5).T])
def test_splitting_columns(columns):
    first, second = backend.split(columns, [(2, 2), (1,)], ["float32"] * 2)
    assert (first.shape, second.shape) == ((2, 2, 2), (1, 2))
    for j in range(2):
        alone = backend.split(columns[:, j], [(2, 2), (1,)], ["float32"] * 2)
        assert torch.equal(first[..., j], alone[0])
        assert torch.equal(second[..., j], alone[1])


def test_leaves_that_lie_in_a_row_are_seen_without_a_copy():
    flat = torch.arange(9.0)
    leaves = backend.split(flat, [(2, 2), (3,), (2,)], ["float32"] * 3)
    seen = backend.lying(leaves[1:], "float32")
    assert (seen.tolist(), seen.data_ptr()) == (flat[4:].tolist(), leaves[1].data_ptr())
    others = [leaves[::-1], leaves[::2], [leaves[0].T, *leaves[1:]], [*leaves, torch.ones(1)]]
    others += [[leaf.requires_grad_() for leaf in backend.split(flat.clone(), [(4,), (5,)], ["float32"] * 2)]]
    assert [backend.lying(those, "float32") for those in others] == [None] * 5
    assert backend.lying(leaves, "float64") is None


@pytest.mark.parametrize("size", [3, (1 << 16) + 7])
def test_what_is_the_same_and_finite_at_any_size(size):
    x = torch.randn(size)
    other, zeros, unknown = x.clone(), torch.zeros(size), x.clone()
    other[-1] += 1
    unknown[-1] = math.nan
    assert backend.same(x, nn.Parameter(x.clone()))
    assert backend.same(zeros, -zeros)
    assert backend.same(x[None].T, x[None].T.clone())
    assert not any(backend.same(x, y) for y in (other, unknown, x[:-1], -x))
    assert not backend.same(unknown, unknown)
    assert backend.all_finite((x, nn.Parameter(x), torch.full((size,), 3e38), torch.zeros(0)))  # whose sum is infinite
    infinite = torch.zeros(size)
    infinite[0], infinite[-1] = math.inf, -math.inf
    assert not any(backend.all_finite(y) for y in (unknown, infinite, infinite.double(), infinite.half()))


def test_products_are_laid_where_they_belong_also_where_they_are_followed():
    a, b, x = torch.randn(4, 3), torch.randn(3, 5), torch.randn(2)
    want = torch.cat([x, (a @ b).reshape(-1)])
    assert torch.allclose(backend.laid([x, Product(a, b)]), want)
    laid = backend.laid([x, Product(a, b.requires_grad_())])
    assert torch.allclose(torch.autograd.grad(laid.sum(), b)[0], a.sum(0)[:, None].expand(3, 5))


def test_packing_is_differentiable():
    leaves = [torch.randn(2, requires_grad=True), torch.randn(1, requires_grad=True)]
    (backend.pack(leaves, "float64") ** 2).sum().backward()
    assert torch.allclose(leaves[0].grad, 2 * leaves[0])


def test_conversions_copy():
    host = np.arange(6.0).reshape(2, 3)
    x = backend.asarray(host.T[::-1], "float32", "cpu")
    assert (x.shape, x.dtype) == ((3, 2), torch.float32)
    assert np.array_equal(backend.to_numpy(x), host.T[::-1])
    same = backend.asarray(host, "float64")
    back = backend.to_numpy(same)
    host += 1
    same += 2
    assert same[0, 0] == 2
    assert back[0, 0] == 0
    assert backend.asarray(3, "int64").shape == ()
    assert backend.to_numpy(torch.ones(2, dtype=torch.bfloat16, requires_grad=True)).dtype == np.float32
    assert backend.read({"x": torch.ones(2), "k": 3})["k"] == 3
    assert backend.cast(x, "float64").dtype == torch.float64
    assert not backend.detach([torch.ones(1, requires_grad=True) * 2, "s"])[0].requires_grad


values = hnp.arrays(np.float64, (4,), elements=st.floats(-1e3, 1e3, width=32))
scalars = st.floats(-10, 10, width=32)


def both(columns: bool, *flat: np.ndarray) -> tuple[list[np.ndarray], list[torch.Tensor]]:
    """The same numbers for NumPy and torch, and as tensors that require gradients, which must not matter."""
    shaped = [np.stack([x, 2 * x - 1, -x], 1) if columns else x for x in flat]
    return shaped, [torch.tensor(x, requires_grad=i % 2 == 0) for i, x in enumerate(shaped)]


@given(x=values, y=values, a=scalars, b=scalars, columns=st.booleans())
def test_vector_updates(x, y, a, b, columns):
    factors = (np.array([a, 0.5, -b]), np.array([b, a, 1.0])) if columns else (a, b)
    operations = {
        "axpy": (lambda x, y: factors[0] * x + y, lambda x, y: backend.axpy(factors[0], x, y)),
        "axpby": (
            lambda x, y: factors[0] * x + factors[1] * y,
            lambda x, y: backend.axpby(factors[0], x, factors[1], y),
        ),
        "subtract": (lambda x, y: x - y, backend.subtract),
        "scale": (lambda x, y: factors[0] * y, lambda x, y: backend.scale(factors[0], y)),
    }
    for expected, ours in operations.values():
        (p, q), (s, t) = both(columns, x, y)
        address = t.data_ptr()
        result = ours(s, t)
        np.testing.assert_allclose(result.numpy(), expected(p, q), rtol=1e-14, atol=1e-11)
        assert result.data_ptr() == address
        np.testing.assert_array_equal(s.detach().numpy(), p)


@given(x=values, y=values, columns=st.booleans(), dtype=st.sampled_from(["float16", "bfloat16", "float32", "float64"]))
def test_reductions(x, y, columns, dtype):
    _, (s, t) = both(columns, x, y)
    s, t = backend.cast(s, dtype), backend.cast(t, dtype)
    p, q = s.detach().double().numpy(), t.detach().double().numpy()
    scale = (abs(p) * abs(q)).sum(0) + 1e-300
    dot = backend.dot(s, t)
    assert np.all(abs(dot - (p * q).sum(0)) <= (1e-14 if dtype == "float64" else 1e-6) * scale)
    np.testing.assert_array_equal(backend.max_abs(s), abs(p).max(0))
    assert isinstance(dot, np.ndarray if columns else float)
    assert isinstance(backend.max_abs(s), np.ndarray if columns else float)
    copy = backend.copy(s)
    assert torch.equal(copy, s)
    assert copy.data_ptr() != s.data_ptr()
    assert not copy.requires_grad
    assert not backend.zeros_like(s).any()
    assert not backend.zeros_like(s).requires_grad
    assert backend.eps(s) == torch.finfo(s.dtype).eps


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_largest_entry_tells_of_what_is_not_finite(bad):
    for x in (torch.tensor([1.0, bad, -2.0]), torch.tensor([bad])):
        assert not math.isfinite(backend.max_abs(x))
    assert np.isfinite(backend.max_abs(torch.tensor([[1.0, bad], [-3.0, 1.0]]))).tolist() == [True, False]
    assert backend.max_abs(torch.zeros(0)) == 0


def test_selection():
    x, y = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 2)
    assert backend.select(np.array([True, False]), x, y).tolist() == [[1.0, 0.0], [3.0, 0.0]]
    assert backend.select(True, x, y) is x
    assert backend.mask(np.array([False, True]), torch.full((2, 2), math.nan)).isnan().tolist() == [[False, True]] * 2
    swapped = backend.over_columns(lambda c: c.flip(0), x)
    assert swapped.tolist() == [[3.0, 4.0], [1.0, 2.0]]


@pytest.mark.parametrize("n", [10**5, 10**6, 3 * 10**7])
def test_single_precision_dots_stay_accurate(n):
    """One call of the BLAS is off by 8e-3 at 1e7 equal entries and 8e-5 for positive random ones."""
    random = torch.rand(n, generator=torch.Generator().manual_seed(0))
    exact = sum(float((part.double() ** 2).sum()) for part in random.split(10**6))
    assert backend.dot(random, random) == pytest.approx(exact, rel=1e-6)
    equal = torch.full((n,), 0.1)
    assert backend.dot(equal, equal) == pytest.approx(n * float(equal[0].double()) ** 2, rel=2e-4)
