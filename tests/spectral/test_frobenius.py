"""The Frobenius norm: known, exact, estimated, and of operators that are not square."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import spare

import linop_gn as lg
from linop_gn.draws import sign_columns
from linop_gn.testing.expressions import expressions
from linop_gn.testing.strategies import array, dtypes, sizes


def unknown(matrix):
    """The operator of a matrix, as a product of two: its norm takes products."""
    A = lg.Dense(matrix)
    return A @ lg.Identity(A.domain)


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_it_is_the_root_of_the_mean_square(backend, scale):
    spare(backend, False)
    matrix = np.random.default_rng(0).standard_normal((9, 30))
    found = lg.frobenius_norm(unknown(array(backend, scale * matrix)), products=12, seed=3)
    values = np.sum((matrix @ sign_columns(lg.Space.flat(30, matrix), 3, 0, 12)) ** 2, axis=0)
    assert float(found.value) == pytest.approx(scale * np.sqrt(values.mean()), rel=1e-12)
    error = values.std(ddof=1) / np.sqrt(12) / (2 * np.sqrt(values.mean()))
    assert float(found.standard_error) == pytest.approx(scale * error, rel=1e-10)
    for A in (unknown(array(backend, scale * matrix)), unknown(array(backend, scale * matrix)).T):
        exact = lg.frobenius_norm(A, products=30)
        assert float(exact.value) == pytest.approx(scale * np.linalg.norm(matrix), rel=1e-14)
        assert (exact.exact, int(exact.products)) == (True, A.domain.size)


def test_bars_statuses_and_errors():
    matrix = np.random.default_rng(0).standard_normal((200, 200)) * 0.9 ** np.arange(200)
    A, size = unknown(matrix), np.linalg.norm(matrix)
    found = [lg.frobenius_norm(A, products=40, seed=seed) for seed in range(100)]
    assert np.mean([abs(one.value - size) <= 1.96 * one.standard_error for one in found]) >= 0.9
    early = lg.frobenius_norm(A, products=160, rtol=0.05)
    assert early.status is lg.Status.CONVERGED
    assert early.products < 160
    zero = lg.frobenius_norm(unknown(np.zeros((3, 20))), products=5)
    assert (zero.value, zero.standard_error) == (0.0, 0.0)
    broken = lg.FunctionOperator(lambda v: v * np.nan, lg.Space.flat(60, np.zeros(1)))
    assert lg.frobenius_norm(broken).status is lg.Status.NONFINITE
    with pytest.raises(TypeError, match="needs a linear operator"):
        lg.frobenius_norm(matrix)


@given(data=st.data())
def test_what_is_known_is_right(backend, data):
    m, n, dtype = data.draw(sizes(backend, 7)), data.draw(sizes(backend, 7)), data.draw(dtypes(backend))
    expression = data.draw(expressions(backend, m, n, dtype))
    known = expression.operator.known_frobenius_norm()
    if known is not None:
        assert float(known) == pytest.approx(np.linalg.norm(expression.matrix), abs=expression.tolerance)
        found = lg.frobenius_norm(expression.operator, products=1)
        assert (float(found.value), float(found.standard_error), int(found.products)) == (float(known), 0.0, 0)
        assert (found.exact, found.status) == (True, lg.Status.COMPLETED)


def test_who_knows(backend):
    def give(x):
        return array(backend, np.asarray(x, dtype=float))

    D, M = lg.Diagonal(give([3e200, 0.0, -4e200])), lg.Dense(give([[3e-200, 0.0, 4e-200]]))
    U = lg.LowRank(give([[1.0, 1.0], [2.0, 2.0], [0.0, 1e-9]]), give([1.0, -1.0]))
    one = lg.Identity(D.domain)
    small = np.outer([1.0, 2.0, 0.0], [1.0, 2.0, 0.0]) - np.outer([1.0, 2.0, 1e-9], [1.0, 2.0, 1e-9])
    for A, want in (
        (D, 5e200),
        (-2.0 * D, 1e201),
        (M, 5e-200),
        (M.T, 5e-200),
        (lg.BlockDiagonal((M, 2.0 * M)), 5e-200 * 5**0.5),
        (0.5 * one, 0.5 * 3**0.5),
        (lg.Damped(lg.Diagonal(give([1.0, 0.0])), 1.0), 5**0.5),
        (lg.KroneckerBlocks.of(give(np.diag([3.0, 4.0])), give([1.0, 1.0])), 50**0.5),
    ):
        found = lg.frobenius_norm(A)
        assert float(found.value) == pytest.approx(want, rel=1e-14)
        assert (found.exact, int(found.products)) == (True, 0)
        assert "Exact: the operator knows its norm without a product." in repr(found)
    assert float(U.known_frobenius_norm()) == pytest.approx(np.linalg.norm(small), abs=1e-15)
    for A in (M.T @ M, D + M.T @ M, lg.Damped(D, 1.0), lg.BlockDiagonal((D, M.T @ M))):
        assert A.known_frobenius_norm() is None


def test_what_is_given_is_checked_where_the_norm_is_known_too():
    known = lg.Diagonal(np.ones(3))
    for estimate in (lg.frobenius_norm, lg.trace, lg.diagonal, lg.logdet):
        for wrong in ({"rtol": np.nan}, {"atol": -1.0}, {"seed": "a"}):
            with pytest.raises((TypeError, ValueError), match=estimate.__name__):
                estimate(known, **wrong)


def test_a_known_norm_may_leave_the_range_of_numbers():
    found = lg.frobenius_norm(lg.Diagonal(np.full(2, 1.7e308)))
    assert found.status is lg.Status.NONFINITE
    assert "No product was taken" in found.sentence
