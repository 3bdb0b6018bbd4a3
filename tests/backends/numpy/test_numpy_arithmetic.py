"""BLAS behind the vector operations: the same results for every kind of array, and no surprise of its own."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linop_gn as lg

ops = lg.load("numpy")
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10}


class Tagged(np.ndarray):
    """A subclass, as users have them."""


def laid_out(kind, values, dtype):
    """The same numbers in memory of another kind."""
    values = np.asarray(values, dtype)
    if kind == "strided":
        wide = np.full(2 * len(values), np.nan, dtype)
        wide[::2] = values
        return wide[::2]
    if kind == "reversed":
        return values[::-1].copy()[::-1]
    if kind == "subclass":
        return values.copy().view(Tagged)
    return values.copy()


KINDS = st.sampled_from(["plain", "strided", "reversed", "subclass"])
DTYPES = st.sampled_from(sorted(EPS))


@given(kinds=st.tuples(KINDS, KINDS), dtype=DTYPES, n=st.integers(1, 40), seed=st.integers(0, 999))
def test_every_layout_gives_the_same(kinds, dtype, n, seed):
    rng = np.random.default_rng(seed)
    a, b = (float(f) for f in rng.uniform(-2, 2, 2))
    x, y = (rng.standard_normal(n).astype(dtype).astype(float) for _ in range(2))
    tolerance = 8 * EPS[dtype] * max(1.0, np.abs(x).max(), np.abs(y).max())

    def fresh():
        return laid_out(kinds[0], x, dtype), laid_out(kinds[1], y, dtype)

    for factor in (a, 0.0, 1.0):
        X, Y = fresh()
        result = ops.axpy(factor, X, Y)
        np.testing.assert_allclose(result.astype(float), factor * x + y, rtol=0, atol=tolerance)
        assert result.dtype == dtype
        np.testing.assert_array_equal(X, laid_out("plain", x, dtype))
        X, Y = fresh()
        result = ops.axpby(factor, X, b, Y)
        np.testing.assert_allclose(result.astype(float), factor * x + b * y, rtol=0, atol=2 * tolerance)
        np.testing.assert_array_equal(X, laid_out("plain", x, dtype))
    assert ops.dot(*fresh()) == pytest.approx(x @ y, rel=1e-6, abs=n * tolerance**2 + n * EPS[dtype])
    assert type(ops.dot(*fresh())) is float


def test_plain_arrays_are_updated_in_place():
    for dtype in ("float64", "float32"):
        x, y = np.ones(5, dtype), np.ones(5, dtype)
        assert ops.axpy(2.0, x, y) is y
        assert ops.axpby(2.0, x, 0.5, y) is y
        assert y.tolist() == [3.5] * 5


@pytest.mark.parametrize("update", [lambda x, y: ops.axpy(2.0, x, y), lambda x, y: ops.axpby(1.0, x, 2.0, y)])
def test_read_only_memory_is_not_written_to(update):
    y = np.ones(4)
    y.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        update(np.ones(4), y)
    assert y.tolist() == [1.0] * 4


def test_a_factor_of_zero_hides_no_nan():
    bad = np.array([math.nan, 1.0])
    assert np.isnan(ops.axpy(0.0, bad, np.ones(2))[0])
    assert np.isnan(ops.axpby(0.0, bad, 1.0, np.ones(2))[0])
    assert np.isnan(ops.axpby(1.0, np.ones(2), 0.0, bad.copy())[0])


def test_empty_vectors_have_an_inner_product():
    assert ops.dot(np.ones(0), np.ones(0)) == 0.0
    assert ops.axpy(2.0, np.ones(0), np.ones(0)).shape == (0,)


def test_long_single_precision_sums_keep_their_digits():
    x = np.full(2_000_000, 0.1, "float32")
    assert ops.dot(x, x) == pytest.approx(float(x[0]) ** 2 * len(x), rel=1e-6)


@pytest.mark.parametrize("dtype", sorted(EPS))
def test_the_largest_entry_of_any_sign_and_of_none(dtype):
    x = np.array([[1.0, -3.0, 0.0], [-2.0, 3.0, -0.0]], dtype)
    assert ops.max_abs(x).tolist() == [2.0, 3.0, 0.0]
    assert [ops.max_abs(column) for column in x.T] == [2.0, 3.0, 0.0]
    assert math.copysign(1.0, ops.max_abs(-np.zeros(2, dtype))) == 1.0
    for bad in (math.nan, math.inf, -math.inf):
        x[1, 1] = bad
        np.testing.assert_equal(ops.max_abs(x), [2.0, abs(bad), 0.0])
        np.testing.assert_equal(ops.max_abs(x[:, 1]), abs(bad))


def test_long_columns_that_lie_one_after_the_other_are_updated_one_by_one():
    rng = np.random.default_rng(0)
    x, y = (np.asfortranarray(rng.standard_normal((2000, 3))) for _ in range(2))
    for factor in (0.5, np.array([2.0, 0.0, -1.0])):
        expected, given = factor * x + y, y.copy(order="F")
        assert ops.axpy(factor, x, given) is given
        np.testing.assert_allclose(given, expected, rtol=0, atol=1e-15)
    x[7, 1] = math.nan
    assert np.isnan(ops.axpy(np.array([2.0, 0.0, -1.0]), x, y)[7, 1])


@given(
    kinds=st.tuples(KINDS, st.booleans()),
    dtype=DTYPES,
    n=st.integers(1, 40),
    count=st.integers(0, 5),
    seed=st.integers(0, 999),
)
def test_combinations_of_a_basis_are_subtracted_from_vectors_of_every_layout(kinds, dtype, n, count, seed):
    rng, (kind, strided) = np.random.default_rng(seed), kinds
    x, rows, c = rng.standard_normal(n).astype(dtype), rng.standard_normal((5, n)).astype(dtype), rng.standard_normal(6)
    rows[count:] = math.nan  # what is not yet stored
    basis = np.asfortranarray(rows) if strided else rows
    given = laid_out(kind, x, dtype)
    left = ops.deflate(basis, c, given, count)
    assert left is given
    expected = x.astype(float) - c[:count] @ rows[:count].astype(float)
    np.testing.assert_allclose(left.astype(float), expected, rtol=0, atol=64 * EPS[dtype])


@pytest.mark.parametrize("order", ["F", "C"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_they_are_subtracted_from_long_columns_in_place(dtype, order):
    """Where these lie in memory one after the other, by one call."""
    rng = np.random.default_rng(0)
    rows, c = rng.standard_normal((5, 2000)).astype(dtype), rng.standard_normal((6, 3))
    rows[4] = math.nan  # what is not yet stored
    given = np.asarray(rng.standard_normal((2000, 3)), dtype=dtype, order=order)
    expected = given.astype(float) - rows[:4].astype(float).T @ c[:4]
    assert ops.deflate(rows, c, given, 4) is given
    np.testing.assert_allclose(given.astype(float), expected, rtol=0, atol=64 * EPS[dtype])
