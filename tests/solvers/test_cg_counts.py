"""How many products CG takes, and when it takes none: counted where they are computed."""

import gc

import numpy as np
import pytest
from systems import (
    FULL,
    N,
    benign,
    calls,
    calls_of,
    counted,
    finished,
    gaussian,
    host,
    operator,
    section,
    spare,
    tridiagonal,
    unit,
)

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import array

IN_CI_ON_JAX = ("test_converging_takes_a_product_a_step_and_one_to_verify", "test_a_fixed_number_of_steps_is_a_success")


def run(backend, matrix, b, method, x0=None, dtype="float64"):
    """The solution, after its own count of products was held against the calls of the product."""
    A, counter = counted(backend, matrix, dtype)
    start = None if x0 is None else array(backend, x0, dtype)
    solution = lg.solve(A, array(backend, b, dtype), method, x0=start)
    finished(backend)
    assert counter.calls == int(solution.products)
    assert len(solution.history["residual"]) == len(solution.history["model"]) == int(solution.steps) + 1
    return solution


def outcome(solution):
    return solution.status, int(solution.steps), int(solution.products)


def test_converging_takes_a_product_a_step_and_one_to_verify(backend):
    matrix, b = benign(0), gaussian(0)
    status, steps, products = outcome(run(backend, matrix, b, lg.CG(rtol=1e-6)))
    assert (status, products) == (Status.CONVERGED, steps + 1)
    assert 0 < steps <= N


def test_a_warm_start_takes_one_more(backend):
    matrix, b = benign(0), gaussian(0)
    x0 = np.linalg.solve(matrix, b) + 1e-3 * gaussian(1)
    cold, warm = run(backend, matrix, b, lg.CG(rtol=1e-6)), run(backend, matrix, b, lg.CG(rtol=1e-6), x0)
    assert outcome(warm) == (Status.CONVERGED, int(warm.steps), int(warm.steps) + 2)
    assert int(warm.steps) < int(cold.steps)


def test_an_exact_start_takes_one_product_and_no_step(backend):
    matrix, b = benign(0), gaussian(0)
    exact = np.linalg.solve(matrix, b)
    solution = run(backend, matrix, b, lg.CG(rtol=1e-12), exact)
    assert outcome(solution) == (Status.CONVERGED, 0, 1)
    np.testing.assert_allclose(host(backend, solution.x), exact, rtol=1e-15)


@pytest.mark.parametrize("start", [None, 3.0])
def test_a_zero_right_hand_side_takes_no_product(backend, start):
    x0 = None if start is None else np.full(N, start)
    for method in (lg.CG(), lg.CG(steps=3), lg.CG(max_steps=0)):
        solution = run(backend, benign(0), np.zeros(N), method, x0)
        assert outcome(solution) == (Status.CONVERGED, 0, 0)
        assert not host(backend, solution.x).any()
        assert float(solution.residual) == float(solution.model) == 0.0


def test_a_loose_absolute_tolerance_takes_no_product(backend):
    b = gaussian(0)
    solution = run(backend, benign(0), b, lg.CG(atol=1.01 * np.linalg.norm(b)))
    assert outcome(solution) == (Status.CONVERGED, 0, 0)
    assert not host(backend, solution.x).any()


@pytest.mark.parametrize("of_rhs", [1e-9, 1.0, 1e9])
def test_tolerances_are_those_of_scipy(backend, of_rhs):
    matrix, b = benign(2), of_rhs * gaussian(2)
    size = np.linalg.norm(b)
    for rtol, atol in ((0.0, 1e-3 * size), (1e-2, 1e-3 * size), (1e-3, 1e-9 * size)):
        solution = run(backend, matrix, b, lg.CG(rtol=rtol, atol=atol))
        assert solution.status is Status.CONVERGED
        residuals, bound = solution.history["residual"], max(rtol * size, atol)
        assert residuals[-1] <= bound < residuals[-2], "met at the last step, and not before"
        assert residuals[0] == pytest.approx(size, rel=1e-12)


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("warm", [False, True])
def test_a_fixed_number_of_steps_is_a_success(backend, steps, warm):
    spare(backend, FULL or (warm and steps == 4))
    matrix, b, x0 = benign(0), gaussian(0), gaussian(1)
    solution = run(backend, matrix, b, lg.CG(steps=steps), x0 if warm else None)
    assert outcome(solution) == (Status.COMPLETED, steps, steps + warm)
    assert solution.succeeded


def test_a_fixed_number_of_steps_ignores_the_tolerances(backend):
    matrix, b = benign(0), gaussian(0)
    loose, tight = (run(backend, matrix, b, lg.CG(rtol=rtol, steps=4)) for rtol in (0.9, 1e-15))
    assert outcome(loose) == outcome(tight) == (Status.COMPLETED, 4, 4)
    np.testing.assert_array_equal(host(backend, loose.x), host(backend, tight.x))


def test_a_fixed_number_of_steps_ends_early_when_nothing_is_left(backend):
    for matrix, most in ((3.0 * np.eye(N), 1), (np.diag([1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0]), 4)):
        b = np.ones(N)
        solution = run(backend, matrix, b, lg.CG(steps=30))
        assert solution.status is Status.COMPLETED
        assert int(solution.products) == int(solution.steps) <= most
        np.testing.assert_allclose(host(backend, solution.x), np.linalg.solve(matrix, b), rtol=1e-14)


def test_the_limit_on_steps_is_kept(backend):
    T = tridiagonal(np.linspace(1, 3, N), np.full(N - 1, 0.7))
    for k in (0, 2, 5):
        solution = run(backend, T, unit(), lg.CG(rtol=1e-12, max_steps=k))
        assert outcome(solution) == (Status.MAX_STEPS, k, k)
        assert not solution.succeeded
        np.testing.assert_allclose(host(backend, solution.x), section(T, k), rtol=1e-12, atol=1e-15)


def test_at_the_limit_a_warm_start_is_still_looked_at(backend):
    matrix, b = benign(0), gaussian(0)
    exact = np.linalg.solve(matrix, b)
    assert outcome(run(backend, matrix, b, lg.CG(rtol=1e-9, max_steps=0), exact)) == (Status.CONVERGED, 0, 1)
    near = exact + 0.1
    far = run(backend, matrix, b, lg.CG(rtol=1e-9, max_steps=0), near)
    assert outcome(far) == (Status.MAX_STEPS, 0, 1)
    np.testing.assert_allclose(host(backend, far.x), near, rtol=1e-15)
    assert float(far.residual) == pytest.approx(np.linalg.norm(0.1 * matrix @ np.ones(N)), rel=1e-9)


def test_convergence_at_the_very_limit_is_verified(backend):
    b = np.ones(N)
    solution = run(backend, 2.0 * np.eye(N), b, lg.CG(rtol=1e-9, max_steps=1))
    assert outcome(solution) == (Status.CONVERGED, 1, 2)


def test_the_default_limit_is_ten_times_the_size_and_at_most_ten_thousand(backend):
    space = [lg.Space.flat(n, array(backend, np.zeros(1))) for n in (3, 5000)]
    limits = [lg.CG().limit(lg.LinearProblem(lg.Identity(s), s.zeros())) for s in space]
    assert limits == [30, 10_000]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": -1.0}, "rtol must be a finite number >= 0"),
        ({"atol": float("nan")}, "atol must be a finite number >= 0"),
        ({"steps": 2, "max_steps": 3}, "either steps"),
        ({"steps": -1}, "steps must be a whole number"),
        ({"max_steps": 2.0}, "max_steps must be a whole number"),
        ({"max_steps": True}, "max_steps must be a whole number"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        lg.CG(**options)


def test_operators_that_cg_does_not_solve_are_refused(backend):
    b = array(backend, np.ones(2))
    general = lg.Dense(array(backend, [[1.0, 2.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="symmetric"):
        lg.solve(general, b)
    assert lg.solve(general.T @ general, b, lg.CG(rtol=1e-10)).status is Status.CONVERGED
    with pytest.raises(ValueError, match="square"):
        lg.solve(lg.Dense(array(backend, np.ones((3, 2)))), array(backend, np.ones(3)))
    A = operator(backend, np.eye(2))
    with pytest.raises(ValueError, match="x0 has shape"):
        lg.solve(A, array(backend, np.ones((2, 3))), x0=b)
    with pytest.raises(ValueError, match="right-hand side"):
        lg.solve(A, array(backend, np.ones(3)))
    with pytest.raises(TypeError, match=r"lg\.Dense"):
        lg.solve(A.matrix, b)


@pytest.mark.parametrize(("solver", "most", "beside"), [(lg.CG, 14, 195), (lg.MINRES, 95, 265)])
def test_an_ordinary_tick_and_the_set_up_take_few_calls(numpy_backend, solver, most, beside):
    """Where work is eager: a call takes as long as arithmetic with hundreds of entries."""
    tick, rest = calls_of(solver)
    assert tick <= most
    assert rest <= beside


def test_on_torch_they_take_little_more():
    tick, rest = calls_of(lg.CG, lg.load("torch"))
    assert tick <= 18
    assert rest <= 225


def test_converging_takes_little_more_calls_than_its_steps(numpy_backend):
    A, b = lg.Diagonal(np.linspace(1.0, 2.0, 100)), np.ones(100)
    assert calls(lambda: lg.solve(A, b, lg.CG(rtol=1e-6))) <= 340  # of 8 steps, and to recompute the residual


def test_a_solve_leaves_nothing_for_the_collector(numpy_backend):
    """What refers to itself stays, with its vectors, until it is looked for."""
    A, b = lg.Diagonal(np.linspace(1.0, 2.0, 100)), np.ones(100)
    lg.solve(A, b)
    gc.collect()
    lg.solve(A, b)
    assert gc.collect() == 0
