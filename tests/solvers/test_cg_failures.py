"""What goes wrong has a status of its own, and the last good iterate comes back with it."""

import numpy as np
import pytest
from systems import N, benign, gaussian, host, operator, section, tridiagonal, unit, with_spectrum

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import array

IN_CI_ON_JAX = (
    "test_negative_curvature_at_every_step",
    "test_zero_curvature_is_not_positive_either",
    "test_a_product_that_is_not_finite_at_every_step",
    "test_input_that_is_not_finite_is_refused_at_once",
    "test_a_preconditioner_saves_steps_and_changes_no_claim",
)

COUPLINGS = np.linspace(0.4, 0.9, N - 1)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_negative_curvature_at_every_step(backend, dtype):
    for step in range(N):
        for pivot in (-0.3, -1e4):
            pivots = np.linspace(1, 3, N)
            pivots[step] = pivot
            T = tridiagonal(pivots, COUPLINGS)
            solution = lg.solve(operator(backend, T, dtype), array(backend, unit(), dtype), lg.CG(rtol=1e-6))
            assert solution.status is Status.NEGATIVE_CURVATURE
            assert (int(solution.steps), int(solution.products)) == (step, step + 1)
            expected = section(T, step)
            np.testing.assert_allclose(host(backend, solution.x), expected, rtol=0, atol=3e-5)
            assert float(solution.residual) == pytest.approx(np.linalg.norm(unit() - T @ expected), rel=1e-3)
            assert float(solution.model) == pytest.approx(-0.5 * expected[0], rel=1e-4)
            assert len(solution.history["residual"]) == step + 1


def test_zero_curvature_is_not_positive_either(backend):
    solution = lg.solve(operator(backend, np.zeros((N, N))), array(backend, gaussian(0)))
    assert (solution.status, int(solution.products)) == (Status.NEGATIVE_CURVATURE, 1)
    assert not host(backend, solution.x).any()


def spoiled_product(v, matrix, where, value):
    """``matrix @ v``, and ``value`` in every entry once v has an entry where ``where`` has."""
    xp = lg.namespace(v)
    return xp.where((where @ v) ** 2 > 0, value, matrix @ v)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_product_that_is_not_finite_at_every_step(backend, value):
    T = tridiagonal(np.linspace(1, 3, N), COUPLINGS)
    space = lg.Space.flat(N, array(backend, np.zeros(1)))

    for step in range(N):
        data = [array(backend, y) for y in (T, unit(k=step), np.full(N, value))]
        A = lg.FunctionOperator(spoiled_product, space, args=tuple(data), symmetric=True)
        solution = lg.solve(A, array(backend, unit()), lg.CG(rtol=1e-6))
        assert solution.status is Status.NONFINITE
        assert (int(solution.steps), int(solution.products)) == (step, step + 1)
        np.testing.assert_allclose(host(backend, solution.x), section(T, step), rtol=1e-12, atol=1e-15)
        assert np.isfinite(float(solution.residual))
        assert np.isfinite(float(solution.model))
        assert np.isfinite(solution.history["residual"]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("columns", [None, 2])
def test_input_that_is_not_finite_is_refused_at_once(backend, value, columns):
    shape = (N,) if columns is None else (N, columns)
    good, bad = np.ones(shape), np.ones(shape)
    bad[(2,) if columns is None else (2, slice(None))] = value
    A = operator(backend, benign(0))
    for b, x0 in ((bad, None), (bad, good), (good, bad)):
        start = None if x0 is None else array(backend, x0)
        solution = lg.solve(A, array(backend, b), x0=start)
        statuses = [solution.status] if columns is None else solution.status
        assert set(statuses) == {Status.NONFINITE_INPUT}
        assert not np.any(np.asarray(solution.products))
        assert not host(backend, solution.x).any()
        assert not solution.succeeded


def test_a_start_that_spoils_its_product(backend):
    T, x0 = benign(0), gaussian(3)
    data = [array(backend, y) for y in (T, unit(), np.full(N, np.nan))]
    A = lg.FunctionOperator(spoiled_product, lg.Space.flat(N, data[1]), args=tuple(data), symmetric=True)
    solution = lg.solve(A, array(backend, gaussian(0)), x0=array(backend, x0))
    assert (solution.status, int(solution.steps), int(solution.products)) == (Status.NONFINITE, 0, 1)
    assert not host(backend, solution.x).any(), "what the model is at x0 nobody knows, and at zero it is zero"
    assert float(solution.model) == 0.0


def test_curvature_too_small_to_divide_by(backend):
    A = lg.Diagonal(array(backend, np.full(N, 1e-310)))  # subnormal: zero to compilers that flush such numbers
    solution = lg.solve(A, array(backend, gaussian(0)))
    flushed = "compiled" in backend.capabilities
    assert solution.status is (Status.NEGATIVE_CURVATURE if flushed else Status.BREAKDOWN)
    assert (int(solution.steps), int(solution.products)) == (0, 1)
    assert not host(backend, solution.x).any()


# preconditioners


def test_a_preconditioner_saves_steps_and_changes_no_claim(backend):
    scaling = 10.0 ** np.linspace(0, 4, N)
    matrix = np.sqrt(scaling)[:, None] * benign(0) * np.sqrt(scaling)
    b = gaussian(0)
    A, B = operator(backend, matrix), array(backend, b)
    plain = lg.solve(A, B, lg.CG(rtol=1e-8))
    for given in (jacobi(A), jacobi):
        better = lg.solve(A, B, lg.CG(rtol=1e-8, preconditioner=given))
        assert better.status is Status.CONVERGED
        assert int(better.products) == int(better.steps) + 1
        assert int(better.steps) < int(plain.steps)
        x = host(backend, better.x)
        assert np.linalg.norm(b - matrix @ x) <= 1.001e-8 * np.linalg.norm(b)
        model = 0.5 * x @ matrix @ x - b @ x
        assert float(better.model) == pytest.approx(model, rel=1e-10)


def jacobi(A):
    """The inverse of the diagonal, from the operator that is solved with."""
    diagonal = lg.namespace(A.matrix).linalg.diagonal(A.matrix)
    return lg.Diagonal(1.0 / diagonal, psd=True)


def test_the_preconditioner_is_made_from_the_damped_operator(backend):
    seen = []

    def make(A):
        seen.append(A)
        return lg.Identity(A.domain)

    A = lg.Damped(operator(backend, benign(0)), 0.5)
    assert lg.solve(A, array(backend, gaussian(0)), lg.CG(preconditioner=make)).succeeded
    assert seen == [A]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_an_exact_inverse_takes_a_step_or_two(backend, dtype):
    values = 10.0 ** np.linspace(0, 6, N)
    A, M = (lg.Diagonal(array(backend, d, dtype)) for d in (values, 1 / values))
    b = gaussian(0)
    solution = lg.solve(A, array(backend, b, dtype), lg.CG(rtol=1e-5, preconditioner=M))
    assert solution.status is Status.CONVERGED
    assert int(solution.steps) <= 2
    np.testing.assert_allclose(values * host(backend, solution.x), b, rtol=1e-5)


def test_an_indefinite_preconditioner_is_told_where_it_shows(backend):
    T = tridiagonal(np.linspace(1, 3, N), COUPLINGS)
    b = array(backend, unit())
    for step in range(N):
        signs = np.ones(N)
        signs[step:] = -1e-3 if step else -1.0
        M = lg.Diagonal(array(backend, signs))
        solution = lg.solve(operator(backend, T), b, lg.CG(rtol=1e-9, preconditioner=M))
        assert solution.status is Status.INDEFINITE_PRECONDITIONER
        assert int(solution.products) == int(solution.steps) == step
        assert np.isfinite(host(backend, solution.x)).all()
        expected = section(T, 1) if step == 1 else host(backend, solution.x)
        np.testing.assert_allclose(host(backend, solution.x), expected, rtol=1e-12, atol=1e-15)


def spoiled_preconditioner(backend, step, value):
    data = [array(backend, y) for y in (np.eye(N), unit(k=step), np.full(N, value))]
    return lg.FunctionOperator(spoiled_product, lg.Space.flat(N, data[1]), args=tuple(data), symmetric=True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_preconditioner_that_is_not_finite(backend, value):
    T = tridiagonal(np.linspace(1, 3, N), COUPLINGS)
    for step in (0, 1, 3):
        M = spoiled_preconditioner(backend, step, value)
        solution = lg.solve(operator(backend, T), array(backend, unit()), lg.CG(rtol=1e-9, preconditioner=M))
        assert solution.status is Status.NONFINITE
        last = max(step - 1, 0)  # the iterate whose residual could not be preconditioned is not taken
        np.testing.assert_allclose(host(backend, solution.x), section(T, last), rtol=1e-12, atol=1e-15)


def test_preconditioners_that_do_not_fit_are_refused(backend):
    A, b = operator(backend, benign(0)), array(backend, gaussian(0))
    with pytest.raises(ValueError, match="does not fit"):
        lg.solve(A, b, lg.CG(preconditioner=lg.Diagonal(array(backend, np.ones(2)))))
    with pytest.raises(TypeError, match="must return a linear operator"):
        lg.solve(A, b, lg.CG(preconditioner=lambda A: 3.0))
    with pytest.raises(TypeError, match="give a linear operator"):
        lg.CG(preconditioner=3.0)


def test_an_indefinite_matrix_is_never_reported_solved_unless_it_is(backend):
    for seed in range(12):
        matrix, b = with_spectrum([-2.0, -0.5, 0.1, 0.3, 1.0, 2.0, 3.0], seed), gaussian(seed)
        solution = lg.solve(operator(backend, matrix), array(backend, b), lg.CG(rtol=1e-6))
        x = host(backend, solution.x)
        assert solution.status in (Status.NEGATIVE_CURVATURE, Status.CONVERGED)
        if solution.status is Status.CONVERGED:
            assert np.linalg.norm(b - matrix @ x) <= 1.01e-6 * np.linalg.norm(b)
