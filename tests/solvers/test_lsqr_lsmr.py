"""LSQR and LSMR against dense float64 least squares, on every backend."""

import functools
import importlib

import numpy as np
import pytest
import scipy.sparse.linalg
from hypothesis import given
from hypothesis import strategies as st
from systems import EPS, FULL, Counter, calls_of, finished, gaussian, host, rounded, spare

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import array, dtypes, scales, seeds

IN_CI_ON_JAX = (
    "test_solutions_are_those_of_dense_least_squares",
    "test_numbers_near_the_ends_of_the_range",
    "test_columns_are_what_each_is_alone",
    "test_products_are_counted",
)

M, N = 11, 7
METHODS = [lg.LSQR, lg.LSMR]
PEERS = {lg.LSQR: scipy.sparse.linalg.lsqr, lg.LSMR: scipy.sparse.linalg.lsmr}
COMPILED = "compiled"  # where every shape, dtype and option is a program to be made: fewer of them
both = pytest.mark.parametrize("solver", METHODS)


def with_singular_values(values, m, n, seed):
    rng = np.random.default_rng(seed)
    k = len(values)
    U, V = (np.linalg.qr(rng.standard_normal((size, k)))[0] for size in (m, n))
    return (U * values) @ V.T


def benign(seed, m=M, n=N):
    return with_singular_values(np.random.default_rng(seed).uniform(0.5, 2.0, min(m, n)), m, n, seed)


def damped_solution(A, b, damping):
    """The minimiser of ||A x - b||^2 + damping ||x||^2 (of smallest norm), by an SVD."""
    U, s, Vt = np.linalg.svd(A, full_matrices=False)
    kept = s > 1e-12 * s[0]
    return Vt.T @ (np.where(kept, s / (s**2 + damping + ~kept), 0.0) * (U.T @ b).T).T


def measures(A, b, x, damping):
    """Norms of the residuals, the damped one and that of the normal equations, and the model."""
    r = b - A @ x
    norm = np.sqrt(r @ r + damping * (x @ x))
    return norm, np.linalg.norm(A.T @ r - damping * x), 0.5 * (norm**2 - b @ b)


@both
@given(data=st.data(), seed=seeds(), damping=st.sampled_from([None, 0.0, 0.3, 50.0]), warm=st.booleans())
def test_solutions_are_those_of_dense_least_squares(backend, solver, data, seed, damping, warm):
    dtype = "float64" if COMPILED in backend.capabilities else data.draw(dtypes(backend))
    if COMPILED in backend.capabilities:
        damping = damping or 0.0
    A, b = rounded(benign(seed), dtype), rounded(gaussian(seed, M), dtype)
    x0 = array(backend, gaussian(seed + 1), dtype) if warm else None
    tol = 1e-9 if dtype == "float64" else 1e-5
    method = solver(damping=damping, atol=tol, btol=tol)
    solution = lg.solve(lg.Dense(array(backend, A, dtype)), array(backend, b, dtype), method, x0=x0)
    x = host(backend, solution.x)
    assert solution.status is Status.LEAST_SQUARES
    np.testing.assert_allclose(x, damped_solution(A, b, damping or 0.0), rtol=0, atol=20 * tol)
    norm, normal, model = measures(A, b, x, damping or 0.0)
    assert float(solution.residual) == pytest.approx(norm, rel=1e-4)
    assert float(solution.history["normal"][-1]) == pytest.approx(normal, rel=0.05, abs=100 * EPS[dtype])
    assert float(solution.model) == pytest.approx(model, rel=1e-3, abs=100 * EPS[dtype] * (b @ b + norm**2))
    assert backend.describe(solution.x)[:2] == ((N,), dtype)


def backend_copy(backend, state):
    """The state with an x that may be consumed."""
    return state._replace(x=backend.copy(state.x))


@both
@given(seed=seeds(), damping=st.sampled_from([0.0, 0.5]))
def test_every_iterate_is_optimal_over_its_krylov_space(backend, solver, seed, damping):
    A, b = benign(seed), gaussian(seed, M)
    G, g = A.T @ A + damping * np.eye(N), A.T @ b
    looks = lg.steps(lg.Dense(array(backend, A)), array(backend, b), solver(damping=damping, steps=N - 1))
    basis, v, seen = [], g, []
    for k, look in enumerate(looks):
        if not look.step:
            continue
        x = host(backend, solver().answer(backend, None, backend_copy(backend, look.state)))
        if look.step > len(seen):
            for _ in range(2):
                for q in basis:
                    v = v - (q @ v) * q
            basis.append(v / np.linalg.norm(v))
            v = G @ basis[-1]
            Q = np.stack(basis, axis=1)
            if solver is lg.LSQR:
                best = Q @ np.linalg.solve(Q.T @ G @ Q, Q.T @ g)
            else:
                best = Q @ np.linalg.lstsq(G @ Q, g, rcond=None)[0]
            np.testing.assert_allclose(x, best, rtol=0, atol=1e-8)
            norm, normal, model = measures(A, b, x, damping)
            rows = look.rows
            assert rows["residual"][-1] == pytest.approx(norm, rel=1e-8)
            assert rows["normal"][-1] == pytest.approx(normal, rel=1e-5, abs=1e-11)
            assert rows["model"][-1] == pytest.approx(model, rel=1e-7, abs=1e-11)
            seen.append(norm if solver is lg.LSQR else normal)
        assert k <= 2 * N
    assert len(seen) == N - 1
    assert (np.diff(seen) <= 1e-10).all(), "never grows"


@both
@given(seed=seeds(), kind=st.sampled_from(["compatible", "incompatible"]), spread=st.sampled_from([1, 4, 12]))
def test_a_status_is_a_fact(backend, solver, seed, kind, spread):
    rng = np.random.default_rng(seed)
    wide = seed % 2  # more unknowns than equations
    m, n = (N, M) if wide else (M, N)
    values = 10.0 ** rng.uniform(-spread, 0, N) * (np.arange(N) % 4 > 0)
    A = with_singular_values(values, m, n, seed) * 10.0 ** rng.integers(-6, 7)
    b = A @ rng.standard_normal(n) if kind == "compatible" else rng.standard_normal(m)
    solution = lg.solve(lg.Dense(array(backend, A)), array(backend, b), solver(atol=1e-8, btol=1e-8, conlim=None))
    x = host(backend, solution.x)
    norm, normal, _ = measures(A, b, x, 0.0)
    anorm, slack = np.linalg.norm(A, 2), 1e-13 * np.linalg.norm(b)
    assert norm <= 1.0001 * np.linalg.norm(b)
    if solution.status is Status.CONVERGED:
        assert norm <= 1.01e-8 * (np.linalg.norm(b) + anorm * np.linalg.norm(x)) + slack
    elif solution.status is Status.LEAST_SQUARES:
        assert normal <= 1.1e-8 * anorm * norm + anorm * slack
    else:
        assert spread >= 4
        assert solution.status in (Status.MAX_STEPS, Status.STAGNATED, Status.CONDITION_LIMIT)
    if kind == "compatible" and spread == 1:
        assert solution.status is Status.CONVERGED


@both
def test_the_smallest_solution_of_a_wide_or_rank_deficient_system(backend, solver):
    for m, n, rank in ((M, N, 3), (N, M, N)):
        A = with_singular_values(np.linspace(1, 2, rank), m, n, 0)
        b = gaussian(1, m)
        solution = lg.solve(lg.Dense(array(backend, A)), array(backend, b), solver(atol=1e-10, btol=1e-10))
        assert solution.succeeded
        np.testing.assert_allclose(host(backend, solution.x), np.linalg.pinv(A) @ b, rtol=0, atol=1e-8)


@both
@given(data=st.data(), seed=seeds(), of_matrix=scales(), of_rhs=scales())
def test_units_change_nothing(backend, solver, data, seed, of_matrix, of_rhs):
    dtype = data.draw(dtypes(backend))
    A, b = benign(seed), gaussian(seed, M)
    plain, other = (
        lg.solve(
            lg.Dense(array(backend, s * A, dtype)),
            array(backend, t * b, dtype),
            solver(damping=0.1 * s * s, atol=1e-4, btol=1e-4),
        )
        for s, t in ((1.0, 1.0), (of_matrix, of_rhs))
    )
    assert plain.status is other.status is Status.LEAST_SQUARES
    assert abs(int(plain.steps) - int(other.steps)) <= 1
    unscaled = host(backend, other.x) * (of_matrix / of_rhs)
    np.testing.assert_allclose(unscaled, host(backend, plain.x), rtol=0, atol=3e-3)


@both
@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e-30), ("float32", 1e30), ("float64", 1e200)])
def test_numbers_near_the_ends_of_the_range(backend, solver, dtype, size):
    A, b = benign(0), gaussian(0, M)
    exact = damped_solution(A, b, 0.0)
    for of_matrix, of_rhs in ((1.0, size), (size, size)):
        solution = lg.solve(
            lg.Dense(array(backend, of_matrix * A, dtype)),
            array(backend, of_rhs * b, dtype),
            solver(atol=1e-5, btol=1e-5),
        )
        assert solution.status is Status.LEAST_SQUARES
        np.testing.assert_allclose(host(backend, solution.x) * (of_matrix / of_rhs), exact, rtol=0, atol=2e-4)


# formats


@both
def test_a_jacobian_maps_trees_to_outputs(backend, solver):
    A, b = gaussian(0, 6, 5), gaussian(1, 3, 2)
    xp, matrix = backend.namespace(), array(backend, A)

    def outputs(p):
        return xp.reshape(matrix[:, :2] @ p["a"] + matrix[:, 2:] @ p["b"], (3, 2))

    params = {"a": array(backend, np.zeros(2)), "b": array(backend, np.zeros(3))}
    parts = {"a": array(backend, A[:, :2].reshape(3, 2, 2)), "b": array(backend, A[:, 2:].reshape(3, 2, 3))}
    J = lg.Jacobian(
        lg.Objective.from_residuals(outputs, jacobian=None if backend.calculus else lambda p: parts), params
    )
    x0 = {"a": array(backend, np.ones(2)), "b": array(backend, np.ones(3))}
    for start in (None, x0):
        solution = lg.solve(J, array(backend, b), solver(damping=0.1, atol=1e-10, btol=1e-10), x0=start)
        assert solution.status is Status.LEAST_SQUARES
        found = np.concatenate([host(backend, solution.x[name]) for name in ("a", "b")])
        np.testing.assert_allclose(found, damped_solution(A, b.reshape(-1), 0.1), rtol=0, atol=1e-8)
    with pytest.raises(ValueError, match="x0"):
        lg.solve(J, array(backend, b), solver(), x0=array(backend, np.ones(6)))


@both
def test_columns_are_what_each_is_alone(backend, solver):
    warm = COMPILED not in backend.capabilities  # where a start is one program more
    A = benign(0)
    b = np.stack([gaussian(1, M), np.zeros(M), np.full(M, np.nan), A @ gaussian(2), 1e-200 * gaussian(3, M)], axis=1)
    x0 = gaussian(4, N, 5) * np.array([1.0, 1.0, 1.0, 1.0, 1e-200]) if warm else None
    operator, method = lg.Dense(array(backend, A)), solver(damping=1e-3, atol=1e-9, btol=1e-9)
    together = lg.solve(operator, array(backend, b), method, x0=None if x0 is None else array(backend, x0))
    assert together.status[1:3] == [Status.CONVERGED, Status.NONFINITE_INPUT]
    for j in (0, 3, 4):
        start = None if x0 is None else array(backend, x0[:, j])
        single = lg.solve(operator, array(backend, b[:, j]), method, x0=start)
        assert together.status[j] is single.status is Status.LEAST_SQUARES
        assert abs(int(together.products[j]) - int(single.products)) <= 2
        size = np.abs(b[:, j]).max()
        np.testing.assert_allclose(host(backend, together.x)[:, j], host(backend, single.x), rtol=0, atol=1e-7 * size)
    assert not host(backend, together.x)[:, 1:3].any()
    assert np.asarray(together.products)[1:3].tolist() == [0, 0]


# counts and ends


@functools.cache
def _counting(name):
    counters = Counter(), Counter()
    tell = [
        functools.partial(importlib.import_module("jax").debug.callback, c) if name == "jax" else c for c in counters
    ]

    def product(v, matrix):
        tell[0]()
        return matrix @ v

    def adjoint(u, matrix):
        tell[1]()
        return matrix.T @ u

    return product, adjoint, counters


def run(backend, A, b, method, x0=None):
    """The solution, after its count of products was held against the calls of both products."""
    product, adjoint, counters = _counting(backend.name)
    for counter in counters:
        counter.calls = 0
    matrix = array(backend, A)
    domain, codomain = lg.Space.flat(A.shape[1], matrix), lg.Space.flat(A.shape[0], matrix)
    operator = lg.FunctionOperator(product, domain, codomain, adjoint, args=(matrix,))
    solution = lg.solve(operator, array(backend, b), method, x0=None if x0 is None else array(backend, x0))
    finished(backend)
    assert counters[0].calls + counters[1].calls == int(solution.products)
    assert len(solution.history["residual"]) == int(solution.steps) + 1
    return solution.status, int(solution.steps), int(solution.products)


@both
def test_products_are_counted(backend, solver):
    A, b = benign(0), gaussian(0, M)
    exact = damped_solution(A, b, 0.0)
    tight = solver(atol=1e-9, btol=1e-9)
    status, steps, products = run(backend, A, b, tight)
    assert (status, products) == (Status.LEAST_SQUARES, 1 + 2 * steps + 2), "A^T b, the steps, and the check"
    status, steps, products = run(backend, A, b, tight, exact + 1e-3)
    assert (status, products) == (Status.LEAST_SQUARES, 2 + 2 * steps + 2)
    assert run(backend, A, A @ np.ones(N), tight, np.ones(N)) == (Status.CONVERGED, 0, 2)
    for start in (None, gaussian(1)):
        assert run(backend, A, np.zeros(M), tight, start) == (Status.CONVERGED, 0, 0)
    orthogonal = b - A @ np.linalg.lstsq(A, b, rcond=None)[0]
    A0, b0 = np.eye(M)[:, :N], np.eye(M)[:, -1]  # exactly orthogonal to the range
    assert run(backend, A0, b0, tight) == (Status.LEAST_SQUARES, 0, 1)
    assert np.linalg.norm(A.T @ orthogonal) < 1e-12
    for k in () if COMPILED in backend.capabilities else (0, 1, 3):
        cold = 2 * k + 1 if k else 0
        assert run(backend, A, b, solver(steps=k)) == (Status.COMPLETED, k, cold)
        assert run(backend, A, b, solver(atol=1e-14, btol=1e-14, max_steps=k)) == (Status.MAX_STEPS, k, cold)


@pytest.mark.parametrize(("solver", "most"), [(lg.LSMR, 82), (lg.LSQR, 66)])
def test_an_ordinary_tick_takes_few_calls(numpy_backend, solver, most):
    """Where work is eager: a call takes as long as arithmetic with hundreds of entries."""
    tick, rest = calls_of(solver)
    assert tick <= most
    assert rest <= 240


@both
def test_an_exact_end_at_every_step(backend, solver):
    for k in range(1, N + 1):
        # From b = e_1 the bidiagonalisation is this matrix itself: it ends with a zero on or below the diagonal.
        for diagonal in (True, False):
            B = np.zeros((N + 1, N))
            B[np.arange(N), np.arange(N)] = np.linspace(1, 2, N)
            B[np.arange(1, N + 1), np.arange(N)] = 0.7
            if diagonal and k < N:
                B[k, k] = 0.0
            elif not diagonal:
                B[k, k - 1] = 0.0
            b = np.eye(N + 1)[0]
            solution = lg.solve(lg.Dense(array(backend, B)), array(backend, b), solver(atol=1e-10, btol=1e-10))
            assert solution.status is (Status.LEAST_SQUARES if diagonal else Status.CONVERGED)
            assert int(solution.steps) == k
            np.testing.assert_allclose(host(backend, solution.x), np.linalg.pinv(B) @ b, rtol=0, atol=1e-9)


def spoiled(v, matrix, where, value):
    xp = lg.namespace(v)
    return xp.where((where @ v) ** 2 > 1e-24, value, matrix @ v)


def transposed(u, matrix, where, value):
    return matrix.T @ u


@both
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_products_that_are_not_finite(backend, solver, value):
    B = np.zeros((N + 1, N))
    B[np.arange(N), np.arange(N)] = np.linspace(1, 2, N)
    B[np.arange(1, N + 1), np.arange(N)] = 0.7
    for step in (0, 1, 4):
        data = [array(backend, y) for y in (B, np.eye(N)[step], np.full(N + 1, value))]
        domain, codomain = lg.Space.flat(N, data[0]), lg.Space.flat(N + 1, data[0])
        A = lg.FunctionOperator(spoiled, domain, codomain, transposed, args=tuple(data))
        solution = lg.solve(A, array(backend, np.eye(N + 1)[0]), solver(atol=1e-9, btol=1e-9))
        assert (solution.status, int(solution.steps)) == (Status.NONFINITE, step)
        assert np.isfinite(host(backend, solution.x)).all()
        assert np.isfinite(solution.history["residual"]).all()
    bad = np.ones(N + 1)
    bad[3] = value
    refused = lg.solve(lg.Dense(array(backend, B)), array(backend, bad), solver())
    assert (refused.status, int(refused.products)) == (Status.NONFINITE_INPUT, 0)


@both
def test_the_limit_on_the_condition_number(backend, solver):
    A = with_singular_values(np.logspace(-6, 0, N), M, N, 0)
    solution = lg.solve(
        lg.Dense(array(backend, A)), array(backend, gaussian(0, M)), solver(atol=1e-13, btol=1e-13, conlim=1e3)
    )
    assert solution.status is Status.CONDITION_LIMIT
    assert not solution.succeeded
    assert "conlim" in repr(solution)
    assert np.isfinite(host(backend, solution.x)).all()


@both
def test_no_limit_on_the_condition_number(numpy_backend, solver):
    """``conlim=0``, as in SciPy."""
    A = np.diag(np.logspace(-3, 0, 6))
    solution = lg.solve(lg.Dense(A), np.ones(6), solver(atol=1e-12, btol=1e-12, conlim=0.0))
    assert solution.status is Status.CONVERGED
    np.testing.assert_allclose(A @ solution.x, np.ones(6), rtol=0, atol=1e-8)


@both
@pytest.mark.parametrize("size", [1e3, 1e7, 1e11])
def test_no_success_is_worse_than_zero(numpy_backend, solver, size):
    """Far out, ||r|| is small beside ||A|| ||x||, and A^T r beside ||A|| ||r||, on the way."""
    for spread in (1, 3, 6, 9):
        for seed in range(10):
            rng = np.random.default_rng(seed)
            A = with_singular_values(10.0 ** rng.uniform(-spread, 0, N), M, N, seed)
            b, x0 = A @ rng.standard_normal(N) if seed % 2 else rng.standard_normal(M), size * rng.standard_normal(N)
            solution = lg.solve(lg.Dense(A), b, solver(), x0=x0)
            residual = np.linalg.norm(b - A @ solution.x)
            noise = 10 * EPS["float64"] * np.linalg.norm(solution.x)
            assert float(solution.residual) == pytest.approx(residual, rel=1e-4, abs=noise)
            assert residual <= 1.000001 * np.linalg.norm(b) + noise or not solution.succeeded


@both
def test_a_least_squares_solution_is_told_with_its_tolerance(numpy_backend, solver):
    """A regular system whose residual could be zero: ||A^T r|| is below the tolerance long before."""
    A, b = np.diag([1.0, 1e-8]), np.ones(2)
    loose, tight = (lg.solve(lg.Dense(A), b, solver(atol=atol, btol=1e-10, conlim=None)) for atol in (1e-6, 1e-12))
    assert loose.status is Status.LEAST_SQUARES
    assert float(loose.residual) == pytest.approx(1.0)
    assert "A^T r = 0 to the tolerance" in repr(loose)
    assert "condition number exceeds 1 / tolerance" in repr(loose)
    assert tight.status is Status.CONVERGED
    assert np.linalg.norm(b - A @ tight.x) < 1e-4
    for seed in range(10):
        A, b = with_singular_values(np.logspace(-8, 0, 8), 8, 8, seed), gaussian(seed, 8)
        loose = lg.solve(lg.Dense(A), b, solver())
        r = b - A @ loose.x
        if loose.status is Status.LEAST_SQUARES:  # a fact, though the solution has no residual at all
            assert np.linalg.norm(A.T @ r) <= 1.01e-6 * np.linalg.norm(r)
            assert float(loose.residual) == pytest.approx(np.linalg.norm(r), rel=1e-6)
        tight = lg.solve(lg.Dense(A), b, solver(atol=1e-12, btol=1e-12, conlim=None))
        assert tight.status in (Status.CONVERGED, Status.STAGNATED)
        assert tight.residual < 0.1 * np.linalg.norm(b)


def test_what_makes_no_sense_is_refused(backend):
    for options, message in (
        ({"damping": -1.0}, "damping"),
        ({"atol": np.nan}, "atol"),
        ({"steps": 1, "max_steps": 1}, "either"),
    ):
        for solver in METHODS:
            with pytest.raises(ValueError, match=message):
                solver(**options)
    A = lg.Dense(array(backend, benign(0)))
    with pytest.raises(ValueError, match="right-hand side"):
        lg.solve(A, array(backend, np.ones(N)), lg.LSMR())
    with pytest.raises(ValueError, match="x0 has shape"):
        lg.solve(A, array(backend, np.ones((M, 2))), lg.LSMR(), x0=array(backend, np.ones(N)))


# beside SciPy


@both
@given(seed=seeds(), k=st.integers(1, N - 1), damping=st.sampled_from([0.0, 0.7]))
def test_iterates_are_those_of_scipy(numpy_backend, solver, seed, k, damping):
    A, b = benign(seed), gaussian(seed, M)
    limit = {"iter_lim": k} if solver is lg.LSQR else {"maxiter": k}
    theirs = PEERS[solver](A, b, damp=np.sqrt(damping), atol=0, btol=0, conlim=0, **limit)[0]
    ours = lg.solve(lg.Dense(A), b, solver(damping=damping, steps=k))
    np.testing.assert_allclose(ours.x, theirs, rtol=0, atol=1e-9)


@both
def test_as_many_steps_as_scipy(numpy_backend, solver):
    for seed in range(5):
        A, b = benign(seed, 60, 40), gaussian(seed, 60)
        theirs = PEERS[solver](A, b, atol=1e-8, btol=1e-8)[2]
        ours = lg.solve(lg.Dense(A), b, solver(atol=1e-8, btol=1e-8))
        assert ours.status is Status.LEAST_SQUARES
        assert abs(int(ours.steps) - theirs) <= 2


@both
def test_damping_is_of_x_whatever_the_start(numpy_backend, solver):
    A, b, x0 = benign(0), gaussian(0, M), 10 * gaussian(1)
    exact = damped_solution(A, b, 1.0)
    ours = lg.solve(lg.Dense(A), b, solver(damping=1.0, atol=1e-10, btol=1e-10), x0=x0).x
    theirs = PEERS[solver](A, b, damp=1.0, atol=1e-10, btol=1e-10, x0=x0)[0]
    np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-8)
    assert np.abs(theirs - exact).max() > 0.1, "SciPy damps x - x0"


def test_a_million_unknowns_in_single_precision(backend):
    spare(backend, FULL)
    if backend.name in ("array_api_strict", "poison"):
        pytest.skip("the same arithmetic as NumPy's, slower")
    n = 1_000_000
    d, b = np.linspace(1.0, 10.0, n), np.random.default_rng(0).standard_normal(n)
    A = lg.Diagonal(array(backend, d, "float32"))
    solution = lg.solve(A, array(backend, b, "float32"), lg.LSMR(damping=1.0, atol=1e-5, btol=1e-5))
    assert solution.status is Status.LEAST_SQUARES
    x = host(backend, solution.x)
    np.testing.assert_allclose(x, d * b / (d * d + 1), rtol=0, atol=2e-4 * np.abs(x).max())
