"""What operators know of their diagonals, without a product, is the diagonal of their matrices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.operators.damped import undamped
from linop_gn.testing.expressions import expressions
from linop_gn.testing.strategies import array, dtypes, sizes


@given(data=st.data())
def test_what_is_known_is_right(backend, data):
    n, dtype = data.draw(sizes(backend, 7)), data.draw(dtypes(backend))
    expression = data.draw(expressions(backend, n, n, dtype))
    known = expression.operator.known_diagonal()
    if known is not None:
        assert backend.describe(known)[:2] == ((n,), dtype)
        got = np.asarray(backend.to_numpy(known), dtype=float)
        np.testing.assert_allclose(got, np.diag(expression.matrix), rtol=0, atol=expression.tolerance)


def test_who_knows(backend):
    def give(x):
        return array(backend, np.asarray(x, dtype=float))

    D, U = lg.Diagonal(give([1.0, 2.0, 3.0])), lg.LowRank(give([[1.0, 1.0], [2.0, 0.0], [0.0, 1.0]]), give([1.0, -1.0]))
    M = lg.Dense(give([[1.0, 5.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 3.0]]))
    one, general = lg.Identity(D.domain), M.T @ M
    known = {
        "diagonal": (D, [1.0, 2.0, 3.0]),
        "low rank": (U, [0.0, 4.0, -1.0]),
        "dense": (M, [1.0, 4.0, 3.0]),
        "transposed": (M.T, [1.0, 4.0, 3.0]),
        "sum": (D + 2.0 * U - 0.5 * one, [0.5, 9.5, 0.5]),
        "damped": (lg.Damped(M, 0.25), [1.25, 4.25, 3.25]),
        "blocks": (lg.BlockDiagonal((D, M)), [1.0, 2.0, 3.0, 1.0, 4.0, 3.0]),
    }
    for operator, want in known.values():
        np.testing.assert_allclose(backend.to_numpy(operator.diagonal()), want, rtol=1e-15)
    for operator in (general, D + general, lg.Damped(general, 1.0), lg.BlockDiagonal((D, general))):
        assert operator.known_diagonal() is None
        with pytest.raises(ValueError, match=r"not known without products. lg.diagonal\(A\) estimates it"):
            operator.diagonal()


def test_a_diagonal_is_an_array_of_its_own(backend):
    for A in (lg.Diagonal(array(backend, np.ones(3))), lg.Dense(array(backend, np.eye(3)))):
        backend.scale(5.0, A.diagonal())
        np.testing.assert_array_equal(backend.to_numpy(A.diagonal()), np.ones(3))


def test_damping_is_found_however_it_was_written(backend):
    A = lg.Diagonal(array(backend, np.array([1.0, 2.0])))
    one = lg.Identity(A.domain)
    for damped, want in (
        (A, 0.0),
        (lg.Damped(A, 2.0), 2.0),
        (A + one, 1.0),
        (0.5 * one + A, 0.5),
        (lg.Damped(lg.Damped(A + one * 0.5, 1.0), 2.0), 3.5),
        (lg.Damped(A, 2.0) + one, 3.0),
    ):
        inner, damping = undamped(damped)
        assert inner is A
        assert float(damping) == want
    both = A + A
    assert undamped(both) == (both, 0.0)
