"""Matrices as operators: what is found out about them, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.testing.strategies import array, symmetric_matrices


@given(drawn=st.integers(1, 8).flatmap(symmetric_matrices))
def test_symmetry_is_found_and_rounding_is_forgiven(drawn):
    M = drawn.matrix
    assert lg.Dense(M).symmetric
    assert not lg.Dense(M, symmetric=False).symmetric
    assert lg.Dense(M, psd=True).psd
    rounded = M * (1 + 1e-15 * np.arange(M.size).reshape(M.shape))
    assert lg.Dense(rounded, symmetric=True).symmetric
    if M.shape[0] > 1 and np.abs(M[0, 1]) > 1e-3 * np.abs(M).max():
        wrong = np.triu(M)
        assert not lg.Dense(wrong).symmetric
        for claim in ({"symmetric": True}, {"psd": True}):
            with pytest.raises(ValueError, match="is not symmetric"):
                lg.Dense(wrong, **claim)


def test_the_largest_asymmetry_is_named(backend):
    M = np.diag([1.0, 2.0, 3.0])
    M[0, 2], M[2, 1] = 0.25, 4.0
    with pytest.raises(
        ValueError, match=r"given with symmetric=True, but .* entries \(1, 2\) and \(2, 1\) differ by 4, .* reach 4\)"
    ):
        lg.Dense(array(backend, M), symmetric=True)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_entries_that_are_not_finite_are_counted_and_placed(backend, bad):
    M = np.ones((2, 3))
    M[1, 2] = M[1, 0] = bad
    with pytest.raises(ValueError, match=r"the matrix holds 2 entries that are NaN or infinite, the first at \(1, 0\)"):
        lg.Dense(array(backend, M))


def test_what_is_no_real_matrix_is_refused(backend):
    with pytest.raises(ValueError, match=r"the matrix has shape \(3,\); expected an array with 2 axes"):
        lg.Dense(array(backend, np.ones(3)))
    with pytest.raises(TypeError, match="the array has dtype int64; convert it"):
        lg.Dense(array(backend, np.ones((2, 2)), "int64"))
    with pytest.raises(ValueError, match=r"a matrix of shape \(2, 3\) cannot be symmetric"):
        lg.Dense(array(backend, np.ones((2, 3))), symmetric=True)
    with pytest.raises(TypeError, match="no array of a known framework"):
        lg.Dense([[1.0, 2.0]])


def test_spaces_must_fit_the_matrix(backend, other):
    M = array(backend, np.ones((2, 3)))
    with pytest.raises(ValueError, match="the domain has 2 entries, but the array is made for 3"):
        lg.Dense(M, domain=lg.Space.flat(2, M))
    with pytest.raises(ValueError, match="the codomain has 3 entries, but the array is made for 2"):
        lg.Dense(M, codomain=lg.Space.flat(3, M))
    with pytest.raises(TypeError, match=f"the domain belongs to {other.name} but the array to {backend.name}"):
        lg.Dense(M, domain=lg.Space.flat(3, array(other, np.zeros(1))))
    with pytest.raises(TypeError, match="has dtype float64, expected float32"):
        lg.Dense(M, domain=lg.Space.flat(3, array(backend, np.zeros(1), "float32")))


def test_a_square_matrix_maps_a_given_domain_to_itself(backend):
    space = lg.Space.of({"a": array(backend, np.zeros(1)), "b": array(backend, np.zeros(1))})
    A = lg.Dense(array(backend, np.array([[0.0, 1.0], [2.0, 0.0]])), domain=space)
    result = A @ {"a": array(backend, [3.0]), "b": array(backend, [5.0])}
    assert {name: backend.to_numpy(x).tolist() for name, x in result.items()} == {"a": [5.0], "b": [6.0]}
