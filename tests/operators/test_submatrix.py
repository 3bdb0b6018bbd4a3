"""Rows and columns of an operator against those of its matrix."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.testing.strategies import array, seeds


@given(n=st.integers(1, 9), seed=seeds(), data=st.data())
def test_products_are_those_of_the_rows_and_columns(numpy_backend, n, seed, data):
    rng = np.random.default_rng(seed)
    M, at = rng.standard_normal((n, n)), data.draw(st.permutations(range(n)))[: data.draw(st.integers(1, n))]
    A, want = lg.Submatrix(lg.Dense(M), at), M[np.ix_(at, at)]
    V = rng.standard_normal((len(at), 2))
    np.testing.assert_allclose(A @ V, want @ V, atol=1e-12)
    np.testing.assert_allclose(A.T @ V[:, 0], want.T @ V[:, 0], atol=1e-12)
    mask = np.zeros(n, bool)
    mask[at] = True
    np.testing.assert_allclose(lg.Submatrix(lg.Dense(M), mask).to_dense(), M[np.ix_(mask, mask)])


def test_on_every_framework_and_of_leaves(backend):
    put = lambda a: array(backend, a, "float64")  # noqa: E731
    M = np.random.default_rng(0).standard_normal((7, 7))
    M = M + M.T
    tree = {"a.bias": put(np.zeros(2)), "a.weight": put(np.zeros((2, 2))), "b": put(np.zeros(1))}
    space = lg.Space.of(tree)
    dense = put(M)
    A = lg.FunctionOperator(lambda v: dense @ v, space, symmetric=True)
    part = lg.Submatrix(A, "a.*")
    assert (part.shape, part.symmetric, part.domain.names) == ((6, 6), True, ("a.bias", "a.weight"))
    at = [i for name in part.domain.names for i in range(space.slices[name].start, space.slices[name].stop)]
    v = {"a.bias": put(np.ones(2)), "a.weight": put(np.full((2, 2), 2.0))}
    product = part @ v
    flat = M[np.ix_(at, at)] @ np.array([1, 1, 2, 2, 2, 2.0])
    np.testing.assert_allclose(backend.to_numpy(product["a.bias"]), flat[:2], atol=1e-12)
    np.testing.assert_allclose(backend.to_numpy(product["a.weight"]).reshape(-1), flat[2:], atol=1e-12)
    found = lg.solve(lg.Damped(part, 30.0), v, lg.CG(rtol=1e-10))
    assert found.succeeded


def test_what_is_known_of_the_whole_is_known_of_the_part():
    A = lg.Submatrix(lg.Diagonal(np.arange(1.0, 6.0)), slice(1, 4))
    assert A.psd
    np.testing.assert_array_equal(A.diagonal(), [2, 3, 4])
    np.testing.assert_allclose(lg.eigsh(A, 3).values, [4, 3, 2])


@pytest.mark.parametrize(
    ("at", "error", "message"),
    [
        ("w*", ValueError, "matches no leaf"),
        ([0, 0], ValueError, "twice"),
        ([0, 9], IndexError, "has 5 entries"),
        ([], TypeError, "leaf names"),
        (np.zeros(5, bool), TypeError, "something"),
        (np.ones(4, bool), IndexError, "has 5 entries"),
        (1.5, TypeError, "whole numbers"),
    ],
)
def test_refusals_say_what_to_do(at, error, message):
    with pytest.raises(error, match=message):
        lg.Submatrix(lg.Diagonal(np.ones(5)), at)


def test_it_needs_a_square_operator():
    with pytest.raises(ValueError, match="square"):
        lg.Submatrix(lg.Dense(np.ones((2, 3))), [0])
    with pytest.raises(TypeError, match=r"lg\.Dense"):
        lg.Submatrix(np.eye(2), [0])
