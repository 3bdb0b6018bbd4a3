"""The Frobenius norm: exact, estimated, and of operators that are not square."""

import numpy as np
import pytest
from systems import spare

import linop_gn as lg
from linop_gn.draws import sign_columns
from linop_gn.testing.strategies import array


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_it_is_the_root_of_the_mean_square(backend, scale):
    spare(backend, False)
    matrix = np.random.default_rng(0).standard_normal((9, 30))
    found = lg.frobenius_norm(lg.Dense(array(backend, scale * matrix)), products=12, seed=3)
    values = np.sum((matrix @ sign_columns(lg.Space.flat(30, matrix), 3, 0, 12)) ** 2, axis=0)
    assert float(found.value) == pytest.approx(scale * np.sqrt(values.mean()), rel=1e-12)
    error = values.std(ddof=1) / np.sqrt(12) / (2 * np.sqrt(values.mean()))
    assert float(found.standard_error) == pytest.approx(scale * error, rel=1e-10)
    for A in (lg.Dense(array(backend, scale * matrix)), lg.Dense(array(backend, scale * matrix)).T):
        exact = lg.frobenius_norm(A, products=30)
        assert float(exact.value) == pytest.approx(scale * np.linalg.norm(matrix), rel=1e-14)
        assert (exact.exact, int(exact.products)) == (True, A.domain.size)


def test_bars_statuses_and_errors():
    matrix = np.random.default_rng(0).standard_normal((200, 200)) * 0.9 ** np.arange(200)
    A, size = lg.Dense(matrix), np.linalg.norm(matrix)
    found = [lg.frobenius_norm(A, products=40, seed=seed) for seed in range(100)]
    assert np.mean([abs(one.value - size) <= 1.96 * one.standard_error for one in found]) >= 0.9
    early = lg.frobenius_norm(A, products=160, rtol=0.05)
    assert early.status is lg.Status.CONVERGED
    assert early.products < 160
    zero = lg.frobenius_norm(lg.Dense(np.zeros((3, 20))), products=5)
    assert (zero.value, zero.standard_error) == (0.0, 0.0)
    broken = lg.FunctionOperator(lambda v: v * np.nan, lg.Space.flat(60, np.zeros(1)))
    assert lg.frobenius_norm(broken).status is lg.Status.NONFINITE
    with pytest.raises(TypeError, match="needs a linear operator"):
        lg.frobenius_norm(matrix)
