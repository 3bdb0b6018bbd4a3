"""Warm starts never end up worse than zero, and every exit gives the best iterate that was seen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import N, benign, counted, finished, gaussian, host, operator, rounded, tridiagonal, unit, with_spectrum

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import array, dtypes, scales, seeds

IN_CI_ON_JAX = (
    "test_a_good_start_is_taken_as_it_is",
    "test_units_do_not_matter_to_a_start",
    "test_every_exit_returns_the_best_iterate",
)


def model(matrix, b, x):
    return 0.5 * np.sum(x * (matrix @ x), axis=0) - np.sum(b * x, axis=0)


@given(data=st.data(), seed=seeds(), of_start=scales(-9, 9), columns=st.sampled_from([None, 3]))
def test_a_start_is_never_worse_than_zero(backend, data, seed, of_start, columns):
    dtype = data.draw(dtypes(backend)) if "compiled" not in backend.capabilities else "float32"
    shape = (N,) if columns is None else (N, columns)
    matrix, b, x0 = (rounded(y, dtype) for y in (benign(seed), gaussian(seed, *shape), gaussian(seed + 1, *shape)))
    x0 *= of_start
    A, B, X0 = operator(backend, matrix, dtype), array(backend, b, dtype), array(backend, x0, dtype)
    began = lg.solve(A, B, lg.CG(rtol=1e-30, max_steps=0), x0=X0)
    assert np.asarray(began.products).max() == 1
    x = host(backend, began.x)
    assert (model(matrix, b, x) <= 1e-6).all()
    energy, along = np.sum(x0 * (matrix @ x0), axis=0), np.sum(b * x0, axis=0)
    multiple = np.where(0.5 * energy <= along, 1.0, along / energy)
    assert np.abs(x - multiple * x0).max() <= 1e-3 * np.abs(multiple * x0).max()
    residual = np.linalg.norm(b - matrix @ x, axis=0)
    np.testing.assert_allclose(np.asarray(began.residual), residual, rtol=1e-3)
    np.testing.assert_allclose(np.asarray(began.model), model(matrix, b, x), rtol=1e-3, atol=1e-5)
    full = lg.solve(A, B, lg.CG(rtol=1e-4), x0=X0)
    assert np.asarray(full.code).max() == Status.CONVERGED
    np.testing.assert_allclose(host(backend, full.x), np.linalg.solve(matrix, b), rtol=0, atol=5e-3)


def test_a_good_start_is_taken_as_it_is(backend):
    matrix, b = benign(0), gaussian(0)
    x0 = np.linalg.solve(matrix, b) * 1.5
    assert model(matrix, b, x0) < 0
    solution = lg.solve(operator(backend, matrix), array(backend, b), lg.CG(max_steps=0), x0=array(backend, x0))
    np.testing.assert_allclose(host(backend, solution.x), x0, rtol=1e-15)


def test_a_start_of_the_wrong_sign_is_turned_round(backend):
    matrix, b = benign(0), gaussian(0)
    exact = np.linalg.solve(matrix, b)
    A, counter = counted(backend, matrix)
    solution = lg.solve(A, array(backend, b), lg.CG(rtol=1e-9), x0=array(backend, -1e6 * exact))
    finished(backend)
    assert (solution.status, int(solution.steps)) == (Status.CONVERGED, 0)
    assert counter.calls == int(solution.products) == 2, "its residual was updated, so that it is verified"
    np.testing.assert_allclose(host(backend, solution.x), exact, rtol=1e-8)


def test_a_start_along_negative_curvature_falls_back_to_zero(backend):
    matrix = np.diag([-1.0, 1, 2, 3, 4, 5, 6])
    b = gaussian(0)
    b[0] = 0.0
    x0 = unit()  # the model there is below zero: taken, as any start is that is better than zero
    kept = lg.solve(operator(backend, matrix), array(backend, b), lg.CG(max_steps=0), x0=array(backend, x0))
    np.testing.assert_array_equal(host(backend, kept.x), x0)
    b[0] = 1.0
    solution = lg.solve(operator(backend, matrix), array(backend, b), lg.CG(max_steps=0), x0=array(backend, -x0))
    assert (solution.status, int(solution.products)) == (Status.MAX_STEPS, 1)
    assert not host(backend, solution.x).any()
    assert float(solution.model) == 0.0


@pytest.mark.parametrize("of_rhs", [1e-30, 1.0, 1e30])
def test_units_do_not_matter_to_a_start(backend, of_rhs):
    matrix, b, x0 = benign(0), gaussian(0), -3.0 * gaussian(1)
    plain = lg.solve(operator(backend, matrix), array(backend, b), lg.CG(steps=2), x0=array(backend, x0))
    other = lg.solve(
        operator(backend, matrix), array(backend, of_rhs * b), lg.CG(steps=2), x0=array(backend, of_rhs * x0)
    )
    np.testing.assert_allclose(host(backend, other.x) / of_rhs, host(backend, plain.x), rtol=1e-9)


def test_fixed_steps_from_the_solution_are_a_success(backend):
    matrix, b = 2.0 * np.eye(N), np.ones(N)
    solution = lg.solve(operator(backend, matrix), array(backend, b), lg.CG(steps=3), x0=array(backend, b / 2))
    assert (solution.status, int(solution.products)) == (Status.COMPLETED, 1)
    np.testing.assert_array_equal(host(backend, solution.x), b / 2)


def test_a_stopped_run_is_no_worse_than_zero_either(backend):
    matrix, b = benign(0), gaussian(0)
    for at in (0, 1, 2):
        stop = lg.stop_when(lambda look, at=at: look.step >= at)
        solution = lg.solve(
            operator(backend, matrix), array(backend, b), x0=array(backend, 50 * gaussian(1)), watch=[stop], every=1
        )
        assert solution.status is Status.STOPPED
        x = host(backend, solution.x)
        assert model(matrix, b, x) <= 0.0
        assert float(solution.model) == pytest.approx(model(matrix, b, x), abs=1e-12)


# every exit returns the best iterate


COUPLINGS = np.linspace(0.4, 0.9, N - 1)


def exits():
    """A system and a method for every way of stopping."""
    good = tridiagonal(np.linspace(1, 3, N), COUPLINGS)
    bent = np.linspace(1, 3, N)
    bent[4] = -0.5
    hard = with_spectrum(10.0 ** np.linspace(-6, 0, N), 0)
    yield Status.CONVERGED, good, lg.CG(rtol=1e-6)
    yield Status.COMPLETED, good, lg.CG(steps=3)
    yield Status.MAX_STEPS, good, lg.CG(rtol=1e-12, max_steps=3)
    yield Status.STAGNATED, hard, lg.CG(rtol=1e-18)
    yield Status.NEGATIVE_CURVATURE, tridiagonal(bent, COUPLINGS), lg.CG(rtol=1e-9)
    yield Status.LEVELLED_OFF, good, lg.CG(stop=lg.RelativeProgress(0.1, least=1), max_steps=9)
    yield Status.CONVERGED, hard, lg.CG(stop=lg.MaxResidual(1e-3))


@pytest.mark.parametrize("warm", [False, True])
def test_every_exit_returns_the_best_iterate(backend, warm):
    if warm and "compiled" in backend.capabilities:
        pytest.skip("seven programs more, of the same source")
    for status, matrix, method in exits():
        x0 = array(backend, 5.0 * gaussian(1)) if warm else None
        run = list(lg.steps(operator(backend, matrix), array(backend, unit()), method, x0=x0))
        end = run[-1]
        if not warm:
            assert Status(end.status) is status
        models = [float(row) for look in run for row in look.rows["model"]]
        x = host(backend, method.answer(backend, None, end.state))
        mine = model(matrix, unit(), x)
        scale = 1e-9 * max(1.0, max(map(abs, models)))  # rounding, on matrices of condition 1e6
        assert mine <= min(models) + scale
        assert end.rows["model"][-1] == pytest.approx(mine, rel=1e-6, abs=scale)
        residual = np.linalg.norm(unit() - matrix @ x)
        assert end.rows["residual"][-1] == pytest.approx(residual, rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_model_never_rises(backend, dtype):
    """Even where the residual does, and through replaced residuals."""
    matrix = with_spectrum(10.0 ** np.linspace(-3, 0, N), 1)
    b = gaussian(1)
    solution = lg.solve(operator(backend, matrix, dtype), array(backend, b, dtype), lg.CG(rtol=1e-7))
    models, residuals = solution.history["model"], solution.history["residual"]
    slack = 1e-3 if dtype == "float32" else 1e-11  # what is recomputed may differ by rounding
    assert (np.diff(models) <= slack * np.abs(models).max()).all()
    assert (np.diff(residuals) > 0).any()
