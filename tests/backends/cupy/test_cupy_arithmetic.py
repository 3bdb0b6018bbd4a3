"""Kernels, interpreted as CuPy would compile them: what they compute, how many there are, who waits for them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linop_gn as lg

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10}
UPDATES = {
    "scale": (lambda ops, a, x, b, y: ops.scale(a, y), lambda a, x, b, y: a * y),
    "axpy": (lambda ops, a, x, b, y: ops.axpy(a, x, y), lambda a, x, b, y: a * x + y),
    "axpby": (lambda ops, a, x, b, y: ops.axpby(a, x, b, y), lambda a, x, b, y: a * x + b * y),
    "subtract": (lambda ops, a, x, b, y: ops.subtract(x, y), lambda a, x, b, y: x - y),
}


def forget(counts):
    if counts is not None:
        counts.clear()


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("columns", [(), (3,)])
@given(dtype=st.sampled_from(sorted(EPS)), n=st.integers(1, 9), seed=st.integers(0, 999))
def test_an_update_is_one_kernel_in_place_that_nobody_waits_for(ops, counts, name, columns, dtype, n, seed):
    rng = np.random.default_rng(seed)
    x, y = (rng.standard_normal((n, *columns)).astype(dtype) for _ in range(2))
    a, b = (rng.uniform(-2, 2, columns) if columns else float(rng.uniform(-2, 2)) for _ in range(2))
    X, Y = ops.asarray(x, dtype), ops.asarray(y, dtype)
    forget(counts)
    run, expected = UPDATES[name]
    result = run(ops, a, X, b, Y)
    assert counts in (None, {f"linop_gn_{name}": 1})
    assert result is Y
    assert str(result.dtype) == dtype
    wanted = expected(a, x.astype(float), b, y.astype(float))
    np.testing.assert_allclose(result.get().astype(float), wanted, rtol=0, atol=16 * EPS[dtype])
    np.testing.assert_array_equal(X.get(), x)


@given(n=st.sampled_from([0, 1, 1023, 4096, 4097, 5000, 8192]), columns=st.sampled_from([(), (2,)]))
def test_inner_products_of_every_length_are_read_once(ops, counts, n, columns):
    rng = np.random.default_rng(n)
    x, y = (rng.standard_normal((n, *columns)).astype("float32") for _ in range(2))
    X, Y = ops.asarray(x, "float32"), ops.asarray(y, "float32")
    forget(counts)
    got = ops.dot(X, Y)
    assert counts is None or counts["read"] == 1
    assert type(got) is (np.ndarray if columns else float)
    np.testing.assert_allclose(got, (x.astype(float) * y).sum(axis=0), rtol=1e-12, atol=1e-12)


def test_inner_products_in_half_and_single_precision_are_summed_in_double(ops):
    x = np.full(3_000_000, 0.1, "float32")
    assert ops.dot(ops.asarray(x, "float32"), ops.asarray(x, "float32")) == pytest.approx(
        float(x[0]) ** 2 * len(x), rel=1e-12
    )
    big = ops.asarray(np.full(100, 200.0), "float16")
    assert ops.dot(big, big) == 4e6


def test_vectors_of_two_precisions_are_an_error(ops):
    with pytest.raises(TypeError, match="Type is mismatched"):
        ops.axpy(1.0, ops.asarray(np.ones(2), "float32"), ops.asarray(np.ones(2), "float64"))


def test_a_step_of_cg_reads_two_numbers(ops, counts):
    if counts is None:
        pytest.skip("nobody counts")
    M = np.diag(np.linspace(1.0, 9.0, 40))
    A, b = lg.Dense(ops.asarray(M, "float64"), psd=True), ops.asarray(np.ones(40), "float64")

    def reads(steps):
        forget(counts)
        lg.solve(A, b, lg.CG(rtol=0.0, max_steps=steps))
        return counts["read"]

    reads(1)
    assert reads(9) - reads(4) == 2 * 5


def test_host_memory_is_never_shared(ops):
    host = np.arange(3.0)
    x = ops.asarray(host, "float64")
    host[:] = 7.0
    assert x.get().tolist() == [0.0, 1.0, 2.0]
    ops.to_numpy(x)[:] = 9.0
    assert x.get().tolist() == [0.0, 1.0, 2.0]


def test_a_factorisation_that_does_not_exist_is_told(ops):
    indefinite = ops.asarray(np.array([[1.0, 2.0], [2.0, 1.0]]), "float64")
    singular = ops.asarray(np.ones((2, 2)), "float64")
    assert ops.cholesky(indefinite)[1] is False
    assert ops.lu(singular)[1] is False
    factor, exists = ops.cholesky(ops.asarray(np.array([[4.0, 1.0], [1.0, 3.0]]), "float64"))
    assert exists
    x = ops.cholesky_solve(factor, ops.asarray(np.array([1.0, 2.0]), "float64"))
    np.testing.assert_allclose(x.get(), np.linalg.solve([[4.0, 1.0], [1.0, 3.0]], [1.0, 2.0]))
