"""MINRES against dense float64 algebra, on every backend."""

import numpy as np
import pytest
import scipy.sparse.linalg
from hypothesis import given
from hypothesis import strategies as st
from systems import (
    EPS,
    FULL,
    N,
    counted,
    finished,
    gaussian,
    host,
    operator,
    orthogonal,
    rounded,
    spare,
    tolerable,
    with_spectrum,
)

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import array, dtypes, scales, seeds, sizes

IN_CI_ON_JAX = (
    "test_converged_is_a_fact",
    "test_numbers_near_the_ends_of_the_range",
    "test_columns_are_what_each_is_alone",
    "test_systems_without_a_solution_are_told",
    "test_products_are_counted",
)

SPECTRA = {
    "well conditioned": lambda rng, n: rng.uniform(0.5, 2.0, n) * signs(rng, n),
    "clustered": lambda rng, n: np.array([0.01, -1.0, 100.0])[np.arange(n) % 3] * (1 + 1e-6 * rng.uniform(size=n)),
    "wide": lambda rng, n: 10.0 ** rng.uniform(-12, 0, n) * signs(rng, n),
    "singular": lambda rng, n: rng.uniform(0.5, 2.0, n) * signs(rng, n) * (np.arange(n) % 3 > 0),
}


def few(backend):
    """Sizes of which each is a program on compiled backends."""
    return st.sampled_from([1, N]) if "compiled" in backend.capabilities else sizes(backend)


def signs(rng, n):
    return rng.choice([-1.0, 1.0], n)


def indefinite(seed, n=N):
    """Eigenvalues of both signs, within a factor of four of each other."""
    rng = np.random.default_rng(seed)
    return with_spectrum(rng.uniform(0.5, 2.0, n) * np.where(np.arange(n) % 2, -1, 1), seed)


def krylov_residuals(matrix, b, steps):
    """Norms of the smallest residuals over the Krylov spaces, by least squares over an orthonormal basis."""
    basis, norms, v = [], [np.linalg.norm(b)], b
    for _ in range(steps):
        for _ in range(2):
            for q in basis:
                v = v - (q @ v) * q
        basis.append(v / np.linalg.norm(v))
        Q = np.stack(basis, axis=1)
        y = np.linalg.lstsq(matrix @ Q, b, rcond=None)[0]
        norms.append(np.linalg.norm(b - matrix @ (Q @ y)))
        v = matrix @ basis[-1]
    return norms


@pytest.mark.parametrize("kind", SPECTRA)
@given(data=st.data(), seed=seeds(), exponent=st.floats(-11, -1))
def test_converged_is_a_fact(backend, kind, data, seed, exponent):
    n, dtype = data.draw(few(backend)), data.draw(dtypes(backend))
    rng = np.random.default_rng(seed)
    matrix = rounded(with_spectrum(SPECTRA[kind](rng, n), seed), dtype)
    b = rounded(matrix @ rng.standard_normal(n), dtype)  # in the range of A where that is singular
    rtol = 10.0**exponent
    solution = lg.solve(operator(backend, matrix, dtype), array(backend, b, dtype), lg.MINRES(rtol=rtol))
    x = host(backend, solution.x)
    residual = np.linalg.norm(b - matrix @ x)
    slack = tolerable(matrix, x, b, dtype)
    assert np.isfinite(x).all()
    assert residual <= 1.001 * np.linalg.norm(b) + slack, "never worse than zero"
    if solution.status is Status.CONVERGED:
        assert float(solution.residual) == pytest.approx(residual, rel=1e-2, abs=slack)
        assert residual <= rtol * np.linalg.norm(b) + slack
        assert int(solution.products) > int(solution.steps) > 0 or not b.any()
    elif kind in ("well conditioned", "clustered"):
        assert dtype == "float32"
        assert rtol < 1e-4
    elif kind == "singular":
        assert rtol < (1e-9 if dtype == "float64" else 1e-4)


@given(seed=seeds(), preconditioned=st.booleans())
def test_every_iterate_has_the_smallest_residual_of_its_krylov_space(backend, seed, preconditioned):
    matrix, b = indefinite(seed), gaussian(seed)
    root = np.exp(0.3 * gaussian(seed + 1)) if preconditioned else np.ones(N)  # of the preconditioner
    M = lg.Diagonal(array(backend, root**2)) if preconditioned else None
    expected = krylov_residuals(root[:, None] * matrix * root, root * b, N - 1)
    method = lg.MINRES(steps=N - 1, preconditioner=M)
    seen = []
    for look in lg.steps(operator(backend, matrix), array(backend, b), method):
        x = host(backend, look.state.x) * float(look.state.scale)
        r = b - matrix @ x
        if look.step == len(seen):  # else it is looked at once more
            seen.append(np.linalg.norm(root * r))
        assert look.rows["residual"][-1] == pytest.approx(np.linalg.norm(r), rel=1e-6, abs=1e-12)
        assert look.rows["model"][-1] == pytest.approx(0.5 * x @ matrix @ x - b @ x, rel=1e-6, abs=1e-10)
    np.testing.assert_allclose(seen, expected, rtol=1e-6, atol=1e-9)
    assert (np.diff(seen) <= 1e-12).all()


@pytest.mark.parametrize("distinct", [1, 2, 3])
@given(seed=seeds())
def test_as_many_steps_as_there_are_distinct_eigenvalues(backend, distinct, seed):
    values = np.array([1.0, -3.0, 10.0])[np.arange(N) % distinct]
    solution = lg.solve(operator(backend, with_spectrum(values, seed)), array(backend, gaussian(seed)), METHOD)
    assert solution.status is Status.CONVERGED
    assert int(solution.steps) <= distinct


METHOD = lg.MINRES(rtol=1e-9)


@given(data=st.data(), seed=seeds(), of_matrix=scales(), of_rhs=scales())
def test_units_change_nothing(backend, data, seed, of_matrix, of_rhs):
    dtype = data.draw(dtypes(backend))
    matrix, b, method = indefinite(seed), gaussian(seed), lg.MINRES(rtol=1e-4)
    plain = lg.solve(operator(backend, matrix, dtype), array(backend, b, dtype), method)
    other = lg.solve(operator(backend, of_matrix * matrix, dtype), array(backend, of_rhs * b, dtype), method)
    assert plain.status is other.status is Status.CONVERGED
    assert abs(int(plain.steps) - int(other.steps)) <= 1
    unscaled = host(backend, other.x) * (of_matrix / of_rhs)
    np.testing.assert_allclose(unscaled, host(backend, plain.x), rtol=0, atol=2e-3)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e-30), ("float32", 1e30), ("float64", 1e200)])
def test_numbers_near_the_ends_of_the_range(backend, dtype, size):
    matrix, b, method = indefinite(0), gaussian(0), lg.MINRES(rtol=1e-5)
    exact = np.linalg.solve(matrix, b)
    for of_matrix, of_rhs in ((1.0, size), (size, size)):
        A, B = operator(backend, of_matrix * matrix, dtype), array(backend, of_rhs * b, dtype)
        solution = lg.solve(A, B, method)
        assert solution.status is Status.CONVERGED
        np.testing.assert_allclose(host(backend, solution.x) * (of_matrix / of_rhs), exact, rtol=0, atol=1e-4)


@given(seed=seeds())
def test_trees_and_columns_go_in_and_come_out(backend, seed):
    matrix, b = indefinite(seed), gaussian(seed)

    def tree(v):
        v = array(backend, v)
        return {"bias": v[:1], "layers": [backend.namespace().reshape(v[1:], (2, 3))]}

    space = lg.Space.of(tree(b))
    A = lg.Dense(array(backend, matrix), symmetric=True, domain=space)
    in_trees = lg.solve(A, tree(b), METHOD, x0=tree(gaussian(seed + 1)))
    flat = lg.solve(A, array(backend, b), METHOD, x0=array(backend, gaussian(seed + 1)))
    assert tuple(in_trees.x["layers"][0].shape) == (2, 3)
    np.testing.assert_array_equal(host(backend, space.pack(in_trees.x)), host(backend, flat.x))
    np.testing.assert_allclose(host(backend, flat.x), np.linalg.solve(matrix, b), atol=1e-6)


def test_columns_are_what_each_is_alone(backend):
    singular = with_spectrum([0.0, 0.0, -1.0, 0.5, 1.0, 2.0, 3.0], 0)
    vectors = np.linalg.eigh(singular)[1]
    good = singular @ gaussian(0)
    b = np.stack([good, np.zeros(N), np.full(N, np.nan), gaussian(1), 1e-200 * good, 1e200 * vectors[:, 0]], axis=1)
    A = operator(backend, singular)
    together = lg.solve(A, array(backend, b), METHOD)
    for j in range(b.shape[1]):
        single = lg.solve(A, array(backend, b[:, j]), METHOD)
        assert together.status[j] is single.status
        if single.succeeded:
            assert abs(int(together.products[j]) - int(single.products)) <= 1, "rounding may cost a step"
        size = np.nan_to_num(np.abs(b[:, j])).max()
        np.testing.assert_allclose(host(backend, together.x)[:, j], host(backend, single.x), rtol=0, atol=1e-7 * size)
    assert [s.name for s in together.status][:5] == [
        "CONVERGED",
        "CONVERGED",
        "NONFINITE_INPUT",
        "INCONSISTENT",
        "CONVERGED",
    ]


# singular systems


@given(data=st.data(), seed=seeds(), of_matrix=scales(), of_rhs=scales())
def test_systems_without_a_solution_are_told(backend, data, seed, of_matrix, of_rhs):
    n, dtype = data.draw(few(backend)), data.draw(dtypes(backend))
    rng = np.random.default_rng(seed)
    values = np.where(np.arange(n) % 3, rng.uniform(0.5, 2.0, n) * signs(rng, n), 0.0)
    matrix = rounded(of_matrix * with_spectrum(values, seed), dtype)
    b = rounded(of_rhs * rng.standard_normal(n), dtype)
    solution = lg.solve(operator(backend, matrix, dtype), array(backend, b, dtype), lg.MINRES(rtol=1e-5))
    x = host(backend, solution.x)
    vectors = np.linalg.eigh(with_spectrum(values, seed))[1]
    null = vectors[:, np.argsort(np.abs(np.linalg.eigvalsh(with_spectrum(values, seed))))[: -(-n // 3)]]
    smallest = np.linalg.norm(null.T @ b)  # what no x can reach
    residual = b - matrix @ x
    assert solution.status in (Status.INCONSISTENT, Status.STAGNATED)
    assert float(solution.residual) == pytest.approx(np.linalg.norm(residual), rel=1e-3)
    assert np.linalg.norm(residual) == pytest.approx(smallest, rel=1e-3)
    if solution.status is Status.INCONSISTENT:
        bound = 4 * np.sqrt(EPS[dtype]) * of_matrix * 2.0 * np.linalg.norm(residual)
        assert np.linalg.norm(matrix @ residual) <= bound
        assert "no solution" in repr(solution)


def test_a_diagonal_with_zeros_has_no_solution_outside_its_range(backend):
    d = np.array([0.0, 1.0, -2.0, 3.0, 0.0, 1.0, 2.0])
    b = np.ones(N)
    for dtype in ("float64", "float32"):
        solution = lg.solve(lg.Diagonal(array(backend, d, dtype)), array(backend, b, dtype), lg.MINRES(rtol=1e-6))
        assert solution.status is Status.INCONSISTENT
        assert float(solution.residual) == pytest.approx(np.sqrt(2.0), rel=1e-6)
        np.testing.assert_allclose(
            (d * host(backend, solution.x))[d != 0], 1.0, atol=1e-3 if dtype == "float32" else 1e-7
        )


def test_nothing_to_be_done(backend):
    solution = lg.solve(operator(backend, np.zeros((N, N))), array(backend, gaussian(0)), METHOD)
    assert solution.status in (Status.INCONSISTENT, Status.STAGNATED)
    assert not host(backend, solution.x).any()
    assert float(solution.residual) == pytest.approx(np.linalg.norm(gaussian(0)))


@pytest.mark.parametrize("method", [lg.CG, lg.MINRES], ids=lambda m: m.__name__)
def test_a_regular_system_is_not_singular_for_being_ill_conditioned(numpy_backend, method):
    """||A r|| / (||A|| ||r||) is 1 / cond(A) on the way to the solution of each."""
    Q = orthogonal(2, 3)
    rotated = (Q * np.array([1e9, 1.0])) @ Q.T
    for matrix, b in ((np.diag([1.0, 1e-10]), np.ones(2)), ((rotated + rotated.T) / 2, Q @ np.array([0.27, 1.0]))):
        solution = lg.solve(lg.Dense(matrix, psd=True), b, method(rtol=1e-6))
        assert solution.status is Status.CONVERGED
        assert np.linalg.norm(b - matrix @ solution.x) <= 1.01e-6 * np.linalg.norm(b)


@pytest.mark.parametrize("exponent", [4, 8, 10, 12])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_ill_conditioned_systems_are_solved_or_told_to_be_beyond_this_precision(numpy_backend, n, exponent):
    """Up to a condition number of 1 / sqrt(eps) refinement is sure to reduce the residual."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        values = np.r_[1.0, rng.choice([-1.0, 1.0]) * 10.0**-exponent, np.exp(rng.uniform(-1, 0, n - 2))]
        if seed % 3 == 0 and n > 2:
            values[2] = -values[1]  # r.A r is zero on the way
        matrix, b = with_spectrum(values, seed) if seed % 2 else np.diag(values), rng.standard_normal(n)
        solution = lg.solve(operator(numpy_backend, matrix), b, lg.MINRES(rtol=1e-8))
        residual = np.linalg.norm(b - matrix @ solution.x)
        noise = 100 * EPS["float64"] * np.linalg.norm(b) * 10.0**exponent  # of a product with the solution
        assert solution.status in (Status.CONVERGED, Status.STAGNATED)
        assert residual <= 1.001 * np.linalg.norm(b)
        if exponent <= 8 or solution.succeeded:
            assert residual <= 1.001e-8 * np.linalg.norm(b) + noise
        assert float(solution.residual) == pytest.approx(residual, rel=1e-2, abs=noise)


MANY = [
    lg.MINRES(),
    lg.MINRES(rtol=1e-10),
    lg.MINRES(max_steps=4),
    *(lg.MINRES(steps=k) for k in (5, 8, 20)),
    *(
        solver(**options)
        for solver in (lg.LSMR, lg.LSQR)
        for options in ({}, {"atol": 1e-12}, {"steps": 5}, {"steps": 9})
    ),
]


@pytest.mark.parametrize("method", MANY, ids=str)
def test_singular_systems_get_no_false_residual_and_no_false_success(numpy_backend, method):
    """Eigenvalues 0, 1, 1.6, 2.3, 3 in random bases; b in the range, outside of it, and anywhere."""
    for seed in range(150):
        rng = np.random.default_rng(seed)
        Q = orthogonal(5, seed)
        matrix = with_spectrum([0.0, 1.0, 1.6, 2.3, 3.0], seed)
        for kind, b in (("in", matrix @ rng.standard_normal(5)), ("out", Q[:, 0]), ("any", rng.standard_normal(5))):
            solution = lg.solve(operator(numpy_backend, matrix), b, method)
            status, size, smallest = solution.status, np.linalg.norm(b), abs(Q[:, 0] @ b)
            residual = np.linalg.norm(b - matrix @ solution.x)
            assert float(solution.residual) == pytest.approx(residual, rel=1e-6, abs=1e-13 * size)
            assert residual <= (1 + 1e-9) * size
            if status is Status.CONVERGED:
                assert kind == "in"
                assert residual <= 2e-5 * size
            elif status in (Status.INCONSISTENT, Status.LEAST_SQUARES):
                assert kind != "in"
                assert residual <= smallest + 1e-6 * size
            elif method in MANY[:2]:
                assert status is Status.STAGNATED
                assert residual <= smallest + 1e-6 * size


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_singular_systems_of_many_eigenvalues_are_told(numpy_backend, spread, dtype):
    n, zeros = 40, 5
    for seed in range(5):
        rng = np.random.default_rng(seed)
        values = np.where(np.arange(n) < zeros, 0.0, 10.0 ** rng.uniform(-spread, 0, n) * signs(rng, n))
        matrix, b = with_spectrum(values, seed).astype(dtype), rng.standard_normal(n).astype(dtype)
        solution = lg.solve(operator(numpy_backend, matrix, dtype), b, lg.MINRES(rtol=1e-4))
        smallest = np.linalg.norm(orthogonal(n, seed)[:, :zeros].T @ b)
        assert solution.status in (Status.INCONSISTENT, Status.STAGNATED)
        assert "precision" in repr(solution)
        assert float(solution.residual) == pytest.approx(smallest, rel=1e-5 if dtype == "float64" else 1e-3)


def test_a_preconditioner_may_be_the_identity(backend):
    matrix, b = indefinite(0), gaussian(0)
    A = operator(backend, matrix)
    solution = lg.solve(A, array(backend, b), lg.MINRES(rtol=1e-9, preconditioner=lg.Identity(A.domain)))
    assert solution.status is Status.CONVERGED
    assert int(solution.steps) <= N + 1
    np.testing.assert_allclose(host(backend, solution.x), np.linalg.solve(matrix, b), atol=1e-7)


# runs that rounding spoils


@pytest.mark.parametrize("limits", [{}, {"steps": 40}, {"steps": 200}], ids=str)
def test_an_end_without_success_is_the_best_point_with_its_own_residual(numpy_backend, limits):
    n = 25
    for seed in (2, 4, 5, 11, 12, 232):
        rng = np.random.default_rng(seed)
        matrix = with_spectrum(np.logspace(-12, 0, n) * (signs(rng, n) if seed % 2 else 1.0), seed)
        b = rng.standard_normal(n)
        A, counter = counted(numpy_backend, matrix)
        solution = lg.solve(A, b, lg.MINRES(**limits))
        assert counter.calls == int(solution.products)
        residual = np.linalg.norm(b - matrix @ solution.x)
        assert residual <= 1.001 * np.linalg.norm(b)
        assert float(solution.residual) == pytest.approx(residual, rel=1e-6)


def test_steps_past_the_end_of_a_singular_system_are_not_taken(backend):
    d, b = np.array([0.0, 1.0, 1.4, 1.8, 2.2, 2.6, 3.0]), np.ones(N)
    for dtype, loose in (("float64", 1e-6), ("float32", 1e-2)):
        solution = lg.solve(lg.Diagonal(array(backend, d, dtype)), array(backend, b, dtype), lg.MINRES(steps=N))
        x = host(backend, solution.x)
        assert solution.status is Status.COMPLETED
        assert float(solution.residual) == pytest.approx(np.linalg.norm(b - d * x), rel=loose)
        assert np.abs(x[1:]).max() < 2.0
        assert np.linalg.norm(b - d * x) == pytest.approx(1.0, rel=loose)


def test_columns_that_ended_keep_their_status_after_numbers_of_steps(numpy_backend):
    b = np.stack([np.full(N, np.nan), np.zeros(N), gaussian(0)], axis=1)
    solution = lg.solve(operator(numpy_backend, indefinite(0)), b, lg.MINRES(steps=5))
    assert [s.name for s in solution.status] == ["NONFINITE_INPUT", "CONVERGED", "COMPLETED"]


def test_an_operator_that_is_not_as_symmetric_as_declared_gets_no_false_residual(numpy_backend):
    told, space = 0, lg.Space.flat(N, np.zeros(1))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        matrix, b = rng.standard_normal((N, N)) + 2.0 * np.eye(N), rng.standard_normal(N)
        A = lg.FunctionOperator(lambda v, matrix: matrix @ v, space, args=(matrix,), symmetric=True)
        solution = lg.solve(A, b, lg.MINRES())
        residual = np.linalg.norm(b - matrix @ solution.x)
        assert float(solution.residual) == pytest.approx(residual, rel=1e-6)
        assert residual <= 1.001 * np.linalg.norm(b)
        told += not solution.succeeded
    assert told > 10


# steps at which something happens


def test_an_invariant_space_at_every_step_is_the_solution(backend):
    for k in range(1, N + 1):
        T = (
            np.diag(np.where(np.arange(N) % 2, -2.0, 1.5))
            + np.diag(np.full(N - 1, 0.8), 1)
            + np.diag(np.full(N - 1, 0.8), -1)
        )
        if k < N:
            T[k - 1, k] = T[k, k - 1] = 0.0
        b = np.eye(N)[0]
        solution = lg.solve(operator(backend, T), array(backend, b), METHOD)
        assert (solution.status, int(solution.steps), int(solution.products)) == (Status.CONVERGED, k, k + 1)
        np.testing.assert_allclose(host(backend, solution.x), np.linalg.solve(T, b), atol=1e-13)


def test_singular_sections_that_break_cg_at_every_step_do_not_matter(backend):
    for k in range(N - 1):
        T = np.diag(np.full(N, 2.0)) + np.diag(np.full(N - 1, 1.0), 1) + np.diag(np.full(N - 1, 1.0), -1)
        T[k, k] = T[:k, k] @ np.linalg.solve(T[:k, :k], T[:k, k]) if k else 0.0  # T[:k+1, :k+1] is singular
        b = np.eye(N)[0]
        A = operator(backend, T)
        assert lg.solve(A, array(backend, b), lg.CG(rtol=1e-9)).status in (Status.NEGATIVE_CURVATURE, Status.CONVERGED)
        solution = lg.solve(A, array(backend, b), METHOD)
        assert solution.status is Status.CONVERGED
        np.testing.assert_allclose(host(backend, solution.x), np.linalg.solve(T, b), atol=1e-6)


def spoiled_product(v, matrix, where, value):
    """``matrix @ v``, and ``value`` in every entry once v has an entry where ``where`` has."""
    xp = lg.namespace(v)
    return xp.where((where @ v) ** 2 > 0, value, matrix @ v)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_product_that_is_not_finite_at_every_step(backend, value):
    T = np.diag(np.linspace(-1, 2, N)) + np.diag(np.full(N - 1, 0.8), 1) + np.diag(np.full(N - 1, 0.8), -1)
    space = lg.Space.flat(N, array(backend, np.zeros(1)))
    b = np.eye(N)[0]
    looks = lg.steps(operator(backend, T), array(backend, b), lg.MINRES(steps=N - 1))
    iterates = [host(backend, look.state.x) * float(look.state.scale) for look in looks]
    for step in range(N):
        data = [array(backend, y) for y in (T, np.eye(N)[step], np.full(N, value))]
        A = lg.FunctionOperator(spoiled_product, space, args=tuple(data), symmetric=True)
        solution = lg.solve(A, array(backend, b), METHOD)
        assert solution.status is Status.NONFINITE
        assert (int(solution.steps), int(solution.products)) == (step, step + 1)
        np.testing.assert_allclose(host(backend, solution.x), iterates[step], rtol=1e-9, atol=1e-13)
        assert np.isfinite(solution.history["residual"]).all()


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_input_that_is_not_finite_is_refused_at_once(backend, value):
    good, bad = np.ones(N), np.ones(N)
    bad[2] = value
    for b, x0 in ((bad, None), (bad, good), (good, bad)):
        start = None if x0 is None else array(backend, x0)
        solution = lg.solve(operator(backend, indefinite(0)), array(backend, b), METHOD, x0=start)
        assert (solution.status, int(solution.products)) == (Status.NONFINITE_INPUT, 0)
        assert not host(backend, solution.x).any()


def test_a_preconditioner_that_is_not_positive_is_told(backend):
    A, b = operator(backend, indefinite(0)), array(backend, gaussian(0))
    for d in (-np.ones(N), np.where(np.arange(N) == 3, -1e3, 1.0)):
        solution = lg.solve(A, b, lg.MINRES(rtol=1e-9, preconditioner=lg.Diagonal(array(backend, d))))
        assert solution.status is Status.INDEFINITE_PRECONDITIONER
        assert np.isfinite(host(backend, solution.x)).all()


def test_a_preconditioner_saves_steps_and_changes_no_claim(backend):
    scaling = 10.0 ** np.linspace(0, 2, N)
    matrix, b = scaling[:, None] * indefinite(0) * scaling, gaussian(0)
    A, B = operator(backend, matrix), array(backend, b)
    M = lg.Diagonal(array(backend, scaling**-2.0), psd=True)
    for made in (M, lambda A: M):
        better = lg.solve(A, B, lg.MINRES(rtol=1e-8, preconditioner=made))
        assert better.status is Status.CONVERGED
        assert int(better.steps) <= N + 1
        x = host(backend, better.x)
        assert np.linalg.norm(b - matrix @ x) <= 1.001e-8 * np.linalg.norm(b)


# counts


def run(backend, matrix, b, method, x0=None):
    A, counter = counted(backend, matrix)
    start = None if x0 is None else array(backend, x0)
    solution = lg.solve(A, array(backend, b), method, x0=start)
    finished(backend)
    assert counter.calls == int(solution.products)
    assert len(solution.history["residual"]) == int(solution.steps) + 1
    return solution


def outcome(solution):
    return solution.status, int(solution.steps), int(solution.products)


def test_products_are_counted(backend):
    matrix, b = indefinite(0), gaussian(0)
    exact = np.linalg.solve(matrix, b)
    cold = run(backend, matrix, b, METHOD)
    assert outcome(cold) == (Status.CONVERGED, int(cold.steps), int(cold.steps) + 1)
    warm = run(backend, matrix, b, METHOD, exact + 1e-3)
    assert outcome(warm) == (Status.CONVERGED, int(warm.steps), int(warm.steps) + 2)
    assert outcome(run(backend, matrix, b, METHOD, exact)) == (Status.CONVERGED, 0, 1)
    for start in (None, gaussian(1)):
        assert outcome(run(backend, matrix, np.zeros(N), METHOD, start)) == (Status.CONVERGED, 0, 0)
    for k in () if "compiled" in backend.capabilities else (0, 2, 5):  # each is a program of its own
        assert outcome(run(backend, matrix, b, lg.MINRES(steps=k))) == (Status.COMPLETED, k, k)
        assert outcome(run(backend, matrix, b, lg.MINRES(rtol=1e-12, max_steps=k))) == (
            Status.MAX_STEPS,
            k,
            k + (k > 0),
        )
        assert outcome(run(backend, matrix, b, lg.MINRES(steps=k), exact + 1.0)) == (Status.COMPLETED, k, k + 1)
    ended = run(backend, np.diag([1.0, -2.0] * 3 + [1.0]), b, lg.MINRES(steps=30))
    assert ended.status is Status.COMPLETED
    assert 2 <= int(ended.steps) < int(ended.products) <= 12, "after two steps the residual is said to be zero: is it?"
    assert float(ended.residual) <= 4 * EPS["float64"] * np.linalg.norm(b)


def test_what_makes_no_sense_is_refused(backend):
    b = array(backend, np.ones(2))
    general = lg.Dense(array(backend, [[1.0, 2.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="MINRES needs a symmetric operator"):
        lg.solve(general, b, METHOD)
    with pytest.raises(ValueError, match="MINRES needs a square operator"):
        lg.solve(lg.Dense(array(backend, np.ones((3, 2)))), array(backend, np.ones(3)), METHOD)
    for options, message in (
        ({"rtol": -1.0}, "rtol"),
        ({"steps": 1, "max_steps": 1}, "either steps"),
        ({"steps": 1.5}, "whole"),
    ):
        with pytest.raises(ValueError, match=message):
            lg.MINRES(**options)
    with pytest.raises(TypeError, match="give a linear operator"):
        lg.MINRES(preconditioner=3.0)


# beside SciPy


@given(seed=seeds(), k=st.integers(1, N - 1))
def test_iterates_are_those_of_scipy(numpy_backend, seed, k):
    matrix, b = indefinite(seed), gaussian(seed)
    ours = lg.solve(operator(numpy_backend, matrix), b, lg.MINRES(steps=k))
    theirs, _ = scipy.sparse.linalg.minres(matrix, b, rtol=0.0, maxiter=k)
    np.testing.assert_allclose(ours.x, theirs, rtol=0, atol=1e-8)


def test_an_ill_conditioned_system_that_scipy_calls_solved(numpy_backend):
    d = np.logspace(-10, 0, 60)
    b = np.random.default_rng(0).standard_normal(60)
    theirs, info = scipy.sparse.linalg.minres(np.diag(d), b, rtol=1e-8, maxiter=2000)
    assert info == 0
    assert np.linalg.norm(b - d * theirs) > 1e-3 * np.linalg.norm(b)
    ours = lg.solve(lg.Diagonal(d), b, lg.MINRES(rtol=1e-8, max_steps=2000))
    residual = np.linalg.norm(b - d * ours.x)
    assert float(ours.residual) == pytest.approx(residual, rel=1e-6)
    assert ours.succeeded == (residual <= 1e-8 * np.linalg.norm(b))


def test_a_million_unknowns_in_single_precision(backend):
    spare(backend, FULL)
    if backend.name in ("array_api_strict", "poison"):
        pytest.skip("the same arithmetic as NumPy's, slower")
    n = 1_000_000
    d = np.linspace(1.0, 10.0, n) * np.where(np.arange(n) % 2, -1, 1)
    b = np.random.default_rng(0).standard_normal(n)
    solution = lg.solve(lg.Diagonal(array(backend, d, "float32")), array(backend, b, "float32"), lg.MINRES(rtol=1e-5))
    assert solution.status is Status.CONVERGED
    residual = np.linalg.norm(b - d * host(backend, solution.x)) / np.linalg.norm(b)
    assert residual <= 1e-5 + 4 * EPS["float32"]
    assert float(solution.residual) == pytest.approx(residual * np.linalg.norm(b), rel=0.05)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_number_of_steps_ends_where_there_is_nothing_to_step_along(backend, size, steps):
    """Singular operators with a preconditioner, whose runs cannot be told to be right without a look."""
    spare(backend, size == 2 and steps == 2)
    for zeros in range(1, size + 1):
        values = np.where(np.arange(size) < zeros, 0.0, 1.0)
        M = lg.Diagonal(array(backend, np.linspace(1.0, 2.0, size)))
        solution = lg.solve(
            lg.Diagonal(array(backend, values)),
            array(backend, np.ones(size)),
            lg.MINRES(steps=steps, preconditioner=M),
        )
        residual = np.linalg.norm(1.0 - values * host(backend, solution.x))
        assert solution.status is Status.COMPLETED
        assert residual <= size**0.5 * (1 + 1e-12)
        assert float(solution.residual) == pytest.approx(residual)


@given(seed=seeds(), limit=st.integers(1, 16), fixed=st.booleans())
def test_with_a_preconditioner_no_end_is_worse_than_zero(numpy_backend, seed, limit, fixed):
    rng = np.random.default_rng(seed)
    matrix, b, p = (
        with_spectrum([0.0, 0.0, *np.linspace(1.0, 2.0, 6)], seed),
        gaussian(seed, 8),
        10 ** rng.uniform(-2, 2, 8),
    )
    method = lg.MINRES(steps=limit) if fixed else lg.MINRES(rtol=1e-6, max_steps=limit)
    solution = lg.solve(lg.Dense(matrix, symmetric=True), b, lg.replace(method, preconditioner=lg.Diagonal(p)))
    r = b - matrix @ solution.x
    assert float(solution.residual) == pytest.approx(np.linalg.norm(r), rel=1e-6)
    assert np.linalg.norm(p**0.5 * r) <= 1.01 * np.linalg.norm(p**0.5 * b) or np.linalg.norm(r) <= np.linalg.norm(b)


@pytest.mark.parametrize("method", [lg.MINRES(steps=5), lg.LSQR(steps=9), lg.LSMR(steps=9), lg.LSQR(atol=0, btol=0)])
def test_a_residual_far_below_that_of_the_start_is_looked_at(numpy_backend, method):
    d, start = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1e20, -3e20, 1e20, 1e20])
    solution = lg.solve(lg.Dense(np.diag(d), symmetric=True), np.ones(4), method, x0=start)
    assert float(solution.residual) == pytest.approx(np.linalg.norm(1.0 - d * solution.x), rel=1e-6)
