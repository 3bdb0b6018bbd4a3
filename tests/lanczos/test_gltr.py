"""Trust-region steps against dense float64 algebra: interior, boundary, and the hard case."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from regions import SPECTRA, model, smallest_model
from systems import EPS, FULL, N, benign, counted, finished, gaussian, host, operator, rounded, spare, with_spectrum

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import array, dtypes, scales, seeds

IN_CI_ON_JAX = (
    "test_equal_to_dense",
    "test_the_hard_case_of_the_right_hand_side",
    "test_either_precision",
    "test_converging_takes_a_product_a_step",
)

EXACT = lg.GLTR(rtol=0.0, reorthogonalise="full")


def held_to_dense(backend, matrix, b, radius, solution, rel=1e-10):
    """The step is the one of dense algebra: its model, its length, and the conditions for a minimiser."""
    x = host(backend, solution.x)
    value, multiplier = smallest_model(matrix, b, radius)
    size = np.abs(matrix).max()
    assert np.linalg.norm(x) <= radius * (1 + rel)
    assert model(matrix, b, x) == pytest.approx(value, rel=rel)
    assert float(solution.model) == pytest.approx(value, rel=rel)
    assert solution.history["multiplier"][-1] == pytest.approx(multiplier, rel=1e-6, abs=max(rel, 1e-8) * size)
    assert solution.status is (Status.BOUNDARY if np.linalg.norm(x) > radius * (1 - 1e-9) else Status.INVARIANT)
    defect = matrix @ x + multiplier * x - b
    assert np.linalg.norm(defect) <= 1e3 * rel * (np.linalg.norm(b) + (size + multiplier) * np.linalg.norm(x))


@pytest.mark.parametrize("kind", SPECTRA)
@given(seed=seeds(), exponent=st.floats(-8, 3), of_matrix=scales(), of_rhs=scales())
def test_equal_to_dense(backend, kind, seed, exponent, of_matrix, of_rhs):
    values = np.asarray(SPECTRA[kind](np.random.default_rng(seed), N))
    matrix, b = of_matrix * with_spectrum(values, seed), of_rhs * gaussian(seed)
    radius = float(np.linalg.norm(b) / np.abs(matrix).max() * 10.0**exponent)
    method = lg.replace(EXACT, radius=radius)
    solution = lg.solve(operator(backend, matrix), array(backend, b), method)
    if exponent < 0 or kind not in ("singular", "spread"):  # there the last digits of zero eigenvalues decide
        held_to_dense(backend, matrix, b, radius, solution)
    else:
        assert solution.succeeded
        assert model(matrix, b, host(backend, solution.x)) <= smallest_model(matrix, b, radius)[0] * (1 - 1e-6)


@pytest.mark.parametrize("missing", [1, 2, 4])
@given(seed=seeds(), exponent=st.floats(-2, 4))
def test_the_hard_case_of_the_right_hand_side(backend, missing, seed, exponent):
    """b has no part in the eigenvectors of the lowest eigenvalues: only a restart can find them."""
    rng = np.random.default_rng(seed)
    values = np.sort(rng.uniform(-2, 2, N))
    values[0] -= 1.0
    Q = np.linalg.qr(rng.standard_normal((N, N)))[0]
    matrix = (Q * values) @ Q.T
    matrix = (matrix + matrix.T) / 2
    b = Q[:, missing:] @ rng.standard_normal(N - missing)
    radius = 10.0**exponent
    solution = lg.solve(operator(backend, matrix), array(backend, b), lg.replace(EXACT, radius=radius))
    assert solution.status is Status.BOUNDARY
    held_to_dense(backend, matrix, b, radius, solution)


@given(seed=seeds())
def test_the_hard_case_beyond_doubt(backend, seed):
    """The same with zeros that are exact, which end the first space early."""
    spare(backend, FULL)
    rng = np.random.default_rng(seed)
    values = np.array([-2.0, -1.0, 0.5, 1.0, 2.0, 3.0, 4.0]) + 0.1 * rng.uniform(size=N)
    b = np.where(np.arange(N) < 3, 0.0, rng.uniform(0.5, 1.0, N))
    A, B = lg.Diagonal(array(backend, values), psd=False), array(backend, b)
    for radius in (0.05, 1.0, 100.0):
        explored = lg.solve(A, B, lg.replace(EXACT, radius=radius))
        held_to_dense(backend, np.diag(values), b, radius, explored)
        x = host(backend, explored.x)
        if radius > 0.05:
            assert abs(x[0]) > 0.5 * radius
    inside = lg.solve(A, B, lg.replace(EXACT, radius=100.0, explore=False))
    assert (inside.status, int(inside.steps)) == (Status.UNEXPLORED, 4)
    assert not host(backend, inside.x)[:3].any()


@given(data=st.data(), seed=seeds(), exponent=st.floats(-3, 2))
def test_either_precision(backend, data, seed, exponent):
    dtype = data.draw(dtypes(backend))
    matrix = rounded(with_spectrum(np.random.default_rng(seed).uniform(-2.0, 2.0, N), seed), dtype)
    b, radius = rounded(gaussian(seed), dtype), 10.0**exponent
    solution = lg.solve(operator(backend, matrix, dtype), array(backend, b, dtype), lg.GLTR(radius=radius, rtol=1e-12))
    assert backend.describe(solution.x)[1] == dtype
    value, _ = smallest_model(matrix, b, radius)
    x = host(backend, solution.x)
    assert model(matrix, b, x) == pytest.approx(value, rel=100 * EPS[dtype] ** 0.75)
    assert np.linalg.norm(x) <= radius * (1 + 20 * EPS[dtype])


def test_without_a_boundary(backend):
    matrix, b = benign(0), gaussian(0)
    inside = lg.solve(operator(backend, matrix), array(backend, b), lg.replace(EXACT, radius=np.inf))
    assert inside.status is Status.INVARIANT
    np.testing.assert_allclose(host(backend, inside.x), np.linalg.solve(matrix, b), atol=1e-12)
    below = matrix - 1.2 * np.eye(N)
    lost = lg.solve(operator(backend, below), array(backend, b), lg.replace(EXACT, radius=np.inf))
    assert lost.status is Status.NEGATIVE_CURVATURE
    x = host(backend, lost.x)
    assert np.isfinite(x).all()
    assert model(below, b, x) <= 0.0


def test_inside_the_region_it_takes_the_steps_of_conjugate_gradients(backend):
    spare(backend, FULL)
    matrix, b = benign(2), gaussian(2)
    A, B = operator(backend, matrix), array(backend, b)
    ours, theirs = lg.solve(A, B, lg.GLTR(radius=1e6, steps=4)), lg.solve(A, B, lg.CG(steps=4))
    np.testing.assert_allclose(host(backend, ours.x), host(backend, theirs.x), atol=1e-11)
    np.testing.assert_allclose(ours.history["residual"], theirs.history["residual"], atol=1e-11)
    np.testing.assert_allclose(ours.history["model"], theirs.history["model"], atol=1e-11)
    assert ours.status is Status.COMPLETED


def test_converging_takes_a_product_a_step(backend):
    A, counter = counted(backend, benign(0))
    for radius, status in ((1e3, Status.UNEXPLORED), (0.1, Status.BOUNDARY)):
        counter.calls = 0
        solution = lg.solve(A, array(backend, gaussian(0)), lg.GLTR(radius=radius, rtol=1e-3))
        finished(backend)
        assert solution.status is status
        assert counter.calls == int(solution.products) == int(solution.steps) < N
        residual = benign(0) @ host(backend, solution.x) - gaussian(0)
        residual += solution.history["multiplier"][-1] * host(backend, solution.x)
        assert np.linalg.norm(residual) <= 1.01e-3 * np.linalg.norm(gaussian(0))


def one_more(radius):
    """Another radius for the end of a run, as a function of data."""
    method = lg.GLTR(radius=radius, rtol=1e-6)
    return lambda problem, state: method.again(problem.operator.backend, problem, state)


SMALLER, LARGER = one_more(0.05), one_more(0.4)


def test_a_refused_step_is_solved_again_without_a_product(backend):
    matrix, b = benign(0) - 1.0 * np.eye(N), gaussian(0)
    A, counter = counted(backend, matrix)
    problem = lg.LinearProblem(A, array(backend, b))
    method = lg.GLTR(radius=0.2, rtol=1e-6)
    state = backend.run(method, problem, method.limit(problem)).state
    finished(backend)
    calls = counter.calls
    for again, radius in ((SMALLER, 0.05), (LARGER, 0.4)):
        state = backend.call(again, problem, state)
        finished(backend)
        assert counter.calls == calls == int(state.products)
        x = host(backend, method.answer(backend, problem, state))
        if int(state.status) == int(Status.BOUNDARY):
            assert model(matrix, b, x) == pytest.approx(smallest_model(matrix, b, radius)[0], rel=1e-5)
        assert np.linalg.norm(x) == pytest.approx(radius, rel=1e-9)


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_limits(backend, limit):
    spare(backend, FULL and limit == 3)
    A, b = operator(backend, benign(0)), array(backend, gaussian(0))
    at_most = lg.solve(A, b, lg.GLTR(radius=1e6, rtol=1e-12, max_steps=limit))
    assert (at_most.status, int(at_most.steps), int(at_most.products)) == (Status.MAX_STEPS, limit, limit)
    exactly = lg.solve(A, b, lg.GLTR(radius=1e6, steps=limit))
    assert (exactly.status, int(exactly.steps)) == (Status.COMPLETED, limit)
    assert lg.solve(A, b, lg.GLTR(radius=1e-3, steps=3)).status is Status.BOUNDARY


@pytest.mark.parametrize(
    ("options", "explored"),
    [
        ({}, False),
        ({"atol": 1.0, "rtol": 0.0}, False),
        ({"explore": False, "steps": 3}, False),
        ({"explore": True}, True),
        ({"rtol": 0.0}, True),
        ({"steps": N}, True),
    ],
    ids=str,
)
def test_a_zero_right_hand_side(backend, options, explored):
    """It takes no product; where the curvature is to be explored, one for each eigenvalue at most."""
    spare(backend, explored and "explore" in options)
    matrix, zero, method = benign(0) - np.eye(N), array(backend, np.zeros(N)), lg.GLTR(**options)
    found = lg.solve(operator(backend, matrix), zero, method)
    if explored:
        assert found.status is Status.BOUNDARY
        assert int(found.products) == int(found.steps) <= N
        assert float(found.model) == pytest.approx(np.linalg.eigvalsh(matrix)[0] / 2, rel=1e-9)
    known = lg.solve(lg.Diagonal(array(backend, np.arange(1.0, N + 1)), psd=True), zero, method)
    for solution, status in ((known, Status.CONVERGED), (found, Status.UNEXPLORED))[: 1 + (not explored)]:
        assert (solution.status, int(solution.steps), int(solution.products)) == (status, 0, 0)
        assert not host(backend, solution.x).any()


def of_parts(values, parts, seed):
    """A matrix with these eigenvalues, and b with these parts in its eigenvectors; diagonal for seed 0."""
    n = len(values)
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0] if seed else np.eye(n)
    matrix = (Q * np.asarray(values, float)) @ Q.T
    return (matrix + matrix.T) / 2, Q @ np.asarray(parts, float)


@given(
    pairs=st.lists(st.tuples(st.integers(-2, 3), st.sampled_from([0, 0, 1, -2])), min_size=1, max_size=9),
    seed=st.integers(0, 9),
    exponent=st.floats(-6, 4),
    rtol=st.sampled_from([0.0, 1e-10, 1e-5, 1e-2]),
    options=st.fixed_dictionaries(
        {
            "explore": st.sampled_from([None, True, False]),
            "reorthogonalise": st.sampled_from(["selective", "full"]),
            "seed": st.integers(0, 99),
        }
    ),
    data=st.data(),
)
def test_no_success_claims_a_minimum_that_is_none(backend, pairs, seed, exponent, rtol, options, data):
    """b lacks any eigenvectors, eigenvalues are multiple, radii tiny and huge, A known to be semi-definite or not.

    A + lambda I >= -slack and a residual of at most r make 2 slack radius^2 + 2 r radius all that can be missing.
    """
    spare(backend, FULL)  # each draw is a program of its own
    dtype = data.draw(dtypes(backend))
    values, parts = np.array(pairs, float).T
    matrix, b = (rounded(part, dtype) for part in of_parts(values, parts, seed))
    psd = bool(values.min() >= 0 and data.draw(st.booleans()))
    A, radius = lg.Dense(array(backend, matrix, dtype), symmetric=True, psd=psd), 10.0**exponent
    found = lg.solve(A, array(backend, b, dtype), lg.GLTR(radius=radius, rtol=rtol, **options))
    x, multiplier = host(backend, found.x), max(0.0, float(found.history["multiplier"][-1]))
    explored = psd or options["explore"] or (options["explore"] is None and rtol == 0)
    if found.status is Status.UNEXPLORED:
        assert not psd
        assert not explored
    wanted = explored and found.status is Status.BOUNDARY
    if wanted or found.status in (Status.CONVERGED, Status.INVARIANT):
        size, rounding = np.abs(values).max(), 200 * EPS[dtype]
        slack = 2 * rtol * size + rounding * (size + multiplier)
        least = np.linalg.eigvalsh(matrix)[0]
        assert least + multiplier >= -slack
        off = rtol * max(np.linalg.norm(b), 0 if b.any() else 2 * size * np.linalg.norm(x))
        off += rounding * (np.linalg.norm(b) + (size + multiplier) * np.linalg.norm(x))
        value, missing = smallest_model(matrix, b, radius)[0], 2 * slack * radius**2 + 2 * off * radius
        assert model(matrix, b, x) <= value + missing
    assert found.succeeded or dtype == "float32" or rtol == 1e-10
    assert np.linalg.norm(x) <= radius * (1 + 20 * EPS[dtype])


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("copies", [1, 5])
def test_one_random_vector_is_enough(backend, copies, zero):
    """A product for each dimension of b's space, and for each distinct eigenvalue that it leaves."""
    spare(backend, FULL and copies == 5 and not zero)
    values = np.repeat([-2.0, -1.0, 1.0, 2.0, 3.0, 4.0], copies)
    b = np.zeros(6 * copies)
    b[copies] = 0.0 if zero else 1.0
    A = lg.Diagonal(array(backend, values), psd=False)
    for rtol in (0.0, 1e-10, 1e-5):
        found = lg.solve(A, array(backend, b), lg.GLTR(radius=2.0, rtol=rtol, explore=True))
        assert found.status is Status.BOUNDARY
        assert float(found.model) == pytest.approx(-4.0 if zero else -4.5, rel=1e-9)
        left = 5 if copies == 1 and not zero else 6
        assert int(found.products) == int(found.steps) == (not zero) + left
    alone = lg.solve(A, array(backend, b), lg.GLTR(radius=2.0, rtol=1e-10))
    assert int(alone.products) == (not zero)
    assert alone.status is (Status.UNEXPLORED if zero else Status.BOUNDARY)


@pytest.mark.parametrize(
    ("low", "status", "most"), [(1.0, Status.CONVERGED, 25), (0.0, Status.CONVERGED, 90), (-1.0, Status.BOUNDARY, 60)]
)
def test_a_random_block_is_left_where_a_bound_tells_all(numpy_backend, low, status, most):
    """Long before its end; of whatever else there is in b, a few products."""
    values = np.concatenate([[low], np.linspace(1.0, 4.0, 2000)])
    for start in (np.zeros(2001), np.eye(2001)[1000] + np.eye(2001)[2000]):
        found = lg.solve(lg.Diagonal(values, psd=False), start, lg.GLTR(radius=10.0, explore=True))
        assert found.status is status
        assert int(found.products) <= most
        if low < 0:
            expected = smallest_model(np.diag(values[[0, 1000, 2000]]), start[[0, 1000, 2000]], 10.0)[0]
            assert float(found.model) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "products", "status"),
    [
        ({"max_steps": 3, "rtol": 0.0}, 3, Status.MAX_STEPS),
        ({"max_steps": 3, "explore": True}, 3, Status.MAX_STEPS),
        ({"max_steps": 4, "explore": True}, 4, Status.MAX_STEPS),
        ({"max_steps": 0, "explore": True}, 0, Status.MAX_STEPS),
        ({"max_steps": 9, "explore": True}, 9, Status.BOUNDARY),
        ({"steps": 3}, 3, Status.COMPLETED),
        ({"steps": 9, "explore": False}, 3, Status.UNEXPLORED),
    ],
    ids=str,
)
def test_at_the_limit_nothing_is_claimed(backend, options, products, status):
    """Where b's space ends at the limit, or the random block is cut off."""
    spare(backend, FULL and products == 4)
    A, b = (
        lg.Diagonal(array(backend, np.arange(-1.0, 8.0)), psd=False),
        array(backend, 1.0 * np.isin(range(9), (2, 3, 4))),
    )
    found = lg.solve(A, b, lg.GLTR(radius=10.0, **options))
    assert (found.status, int(found.products)) == (status, products)


def test_exploring_is_the_same_when_compiled(jax):
    ops = lg.load("jax")
    values = np.array([-2.0, -1.0, -1.0, 1.0, 2.0, 3.0, 4.0])
    A, method = lg.Diagonal(array(ops, values), psd=False), lg.GLTR(radius=2.0, explore=True)
    B = array(ops, np.stack([np.eye(N)[3], np.zeros(N), np.eye(N)[1] + np.eye(N)[5], np.eye(N)[1]]))

    @jax.jit
    def together(B):
        found = jax.vmap(lambda b: lg.solve(A, b, method))(B)
        return found.code, found.products, found.model

    codes, products, models = together(B)
    for j, b in enumerate(np.asarray(B)):
        alone, eager = lg.solve(A, B[j], method), lg.solve(lg.Diagonal(values, psd=False), b, method)
        for found in (alone, eager):
            assert (int(codes[j]), int(products[j])) == (int(found.code), int(found.products))
            assert float(models[j]) == pytest.approx(float(found.model), rel=1e-9)
        assert float(models[j]) == pytest.approx(smallest_model(np.diag(values), b, 2.0)[0], rel=1e-9)


@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_product_that_is_not_finite(numpy_backend, at):
    matrix, calls = benign(0), []

    def product(v):
        calls.append(v)
        return matrix @ v + (np.nan if len(calls) == at else 0.0)

    A = lg.FunctionOperator(product, lg.Space.flat(N, gaussian(0)), symmetric=True)
    solution = lg.solve(A, gaussian(0), lg.GLTR(radius=0.5, rtol=0.0))
    assert (solution.status, solution.steps) == (Status.NONFINITE, at - 1)
    assert np.isfinite(solution.x).all()
    assert model(matrix, gaussian(0), solution.x) <= 0.0


@given(seed=seeds(), shift=st.integers(-40, 40))
def test_powers_of_two_as_units_change_nothing_at_all(numpy_backend, seed, shift):
    matrix, b, unit = benign(seed) - np.eye(N), gaussian(seed), 2.0**shift
    A = lg.Dense(matrix.astype("float32"), symmetric=True)
    plain, other = (lg.solve(A, (c * b).astype("float32"), lg.GLTR(radius=0.5 * c, rtol=1e-4)) for c in (1.0, unit))
    np.testing.assert_array_equal(other.x, np.float32(unit) * plain.x)


def test_one_program_for_all_radii(jax):
    ops = lg.load("jax")
    A, b = operator(ops, benign(0)), array(ops, gaussian(0))
    lg.solve(A, b, lg.GLTR(radius=1.0))
    before = ops.compilations()
    for radius in (0.1, 0.5, 3.0):
        lg.solve(A, b, lg.GLTR(radius=radius))
    assert ops.compilations() == before

    @jax.jit
    def norms(radii):
        return jax.vmap(lambda r: ops.namespace().linalg.norm(lg.solve(A, b, lg.GLTR(radius=r)).x))(radii)

    radii = np.array([0.05, 0.1, 0.2])
    np.testing.assert_allclose(np.asarray(norms(radii)), radii, rtol=1e-10)


def test_options_that_make_no_sense():
    for bad in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="radius must be"):
            lg.GLTR(radius=bad)
    with pytest.raises(ValueError, match="rtol"):
        lg.GLTR(rtol=-1.0)
    with pytest.raises(ValueError, match="orthogonal basis"):
        lg.GLTR(explore=True, reorthogonalise="none")
    with pytest.raises(ValueError, match="either steps"):
        lg.GLTR(steps=3, max_steps=3)
    with pytest.raises(ValueError, match="symmetric"):
        lg.solve(lg.Dense(gaussian(0, N, N)), gaussian(0), lg.GLTR())


def test_a_million_unknowns_in_single_precision(numpy_backend):
    n = 1_000_000
    values = np.linspace(-1.0, 5.0, n).astype("float32")
    b = np.random.default_rng(0).standard_normal(n).astype("float32")
    solution = lg.solve(lg.Diagonal(values, psd=False), b, lg.GLTR(radius=100.0, rtol=1e-3))
    assert solution.status is Status.BOUNDARY
    x, multiplier = solution.x.astype(float), solution.history["multiplier"][-1]
    assert np.linalg.norm(x) == pytest.approx(100.0, rel=1e-5)
    assert multiplier > 1.0
    assert np.linalg.norm(b - (values + multiplier) * x) <= 1.1e-3 * np.linalg.norm(b.astype(float))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_models_value_where_squares_are_out_of_range(backend, dtype):
    tiny = {"float64": 1e-200, "float32": 1e-25}[dtype]
    d, b = np.linspace(-2.0, 5.0, 7), gaussian(3)
    for size, slope, radius in ((1.0, tiny, 1.0), (tiny, 1.0, 1.0), (1.0, 1.0, tiny)):
        A = operator(backend, np.diag(size * d), dtype)
        step = lg.solve(A, array(backend, slope * b, dtype), lg.GLTR(radius=radius, rtol=0.0))
        K = lg.krylov(A, array(backend, slope * b, dtype), k=7).trust_region(radius)
        for found in (step, K):
            x = host(backend, found.x)
            want = 0.5 * x @ (size * d * x) - slope * b @ x
            assert float(found.model) == pytest.approx(want, rel=1e-4 if dtype == "float32" else 1e-9)


@given(seed=seeds(), exponent=st.floats(0, 5), tolerance=st.floats(-7, -1), of_matrix=scales(), of_rhs=scales())
def test_converged_is_a_fact(backend, seed, exponent, tolerance, of_matrix, of_rhs):
    """In single precision, where the residual of T is not that of x once the condition is no small number."""
    values = np.logspace(-exponent, 0, N)
    matrix = rounded(of_matrix * with_spectrum(values, seed), "float32")
    b, rtol = rounded(of_rhs * gaussian(seed), "float32"), 10.0**tolerance
    A, counter = counted(backend, matrix, "float32")
    solution = lg.solve(A, array(backend, b, "float32"), lg.GLTR(radius=np.inf, rtol=np.float32(rtol)))
    finished(backend)
    assert counter.calls == int(solution.products) <= int(solution.steps) + 1
    x = host(backend, solution.x)
    residual, size = np.linalg.norm(b - matrix @ x), np.linalg.norm(b)
    own = 2.0 * EPS["float32"] * (np.linalg.norm(matrix, 2) * np.linalg.norm(x) + size)  # of recomputing it
    if solution.status is Status.CONVERGED:
        assert residual <= rtol * size + own
    elif solution.status is Status.STAGNATED:
        assert residual > rtol * size - own
        assert float(solution.residual) == pytest.approx(residual, abs=own)


def test_a_refused_step_claims_no_more_than_it_knows(numpy_backend):
    matrix, b = with_spectrum(np.logspace(-4, 0, N), 0), gaussian(0)
    A, counter = counted(numpy_backend, matrix, "float32")
    problem = lg.LinearProblem(A, b.astype("float32"))
    method = lg.GLTR(radius=1e-3, rtol=1e-6, max_steps=N)
    state = numpy_backend.run(method, problem, method.limit(problem)).state
    method, calls = lg.replace(method, radius=np.inf, steps=N, max_steps=None), counter.calls
    state = method.again(numpy_backend, problem, numpy_backend.run(method, problem, N).state)
    assert Status(int(state.status)) in (Status.COMPLETED, Status.CONVERGED)
    method, calls = lg.replace(method, steps=None, max_steps=N), counter.calls
    assert Status(int(method.again(numpy_backend, problem, state).status)) is Status.COMPLETED
    assert counter.calls == calls


def test_a_region_without_end_and_a_singular_operator(backend):
    """Nothing is stepped along what may be an eigenvector of zero."""
    matrix, b = with_spectrum([0.0, *np.linspace(1.0, 3.0, N - 1)], 1), gaussian(1)
    solution = lg.solve(operator(backend, matrix), array(backend, b), lg.replace(EXACT, radius=np.inf))
    x = host(backend, solution.x)
    assert solution.status is Status.NEGATIVE_CURVATURE
    assert np.linalg.norm(x) < 1e12
    assert model(matrix, b, x) < 0.0
    assert float(solution.residual) == pytest.approx(np.linalg.norm(b - matrix @ x), rel=1e-6)


def test_without_orthogonality_the_region_is_kept_all_the_same(numpy_backend):
    A = lg.Dense(np.diag(np.logspace(0, -7, 10) * (-1.0) ** np.arange(10)).astype(np.float32), symmetric=True)
    method = lg.GLTR(radius=1e5, steps=16, reorthogonalise="none")
    step = lg.solve(A, np.full(10, 1e-3, np.float32), method)
    assert step.status is Status.BOUNDARY
    assert np.linalg.norm(step.x.astype(float)) <= 1e5 * (1 + 1e-6)


@given(seed=seeds(), size=st.floats(4, 8), tolerance=st.floats(-8, -3))
def test_the_residual_counts_what_reorthogonalisation_removed(numpy_backend, seed, size, tolerance):
    """Of a long step, where the operator times it hides nothing of the order of the residual."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 9))
    matrix = with_spectrum(np.logspace(0, -6, n) * np.where(np.arange(n) == n - 1, -1, 1), seed)
    b, radius = rng.standard_normal(n), 10.0**size
    step = lg.solve(lg.Dense(matrix, symmetric=True), b, lg.GLTR(radius=radius, rtol=10.0**tolerance))
    true = np.linalg.norm(b - matrix @ step.x - step.history["multiplier"][-1] * step.x)
    assert true <= 1.01 * float(step.residual) + 20 * EPS["float64"] * (np.linalg.norm(step.x) + np.linalg.norm(b))


@pytest.mark.parametrize("method", [lg.GLTR, lg.Steihaug], ids=lambda method: method.__name__)
def test_a_radius_that_only_a_program_knows_is_looked_at_there(jax, method):
    import jax as framework
    import jax.numpy as jnp

    A = lg.Diagonal(jnp.array([1.0, 2.0]), psd=True)
    program = framework.jit(lambda radius: lg.solve(A, jnp.ones(2), method(radius=radius)).code)
    for radius, status in ((-3.0, Status.NONFINITE_INPUT), (np.nan, Status.NONFINITE_INPUT), (0.1, Status.BOUNDARY)):
        assert Status(int(program(radius))) is status
