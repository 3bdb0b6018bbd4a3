"""Direct solvers against NumPy's dense algebra in float64, on every backend."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import EPS, FULL, N, benign, counted, finished, gaussian, host, operator, rounded, spare, with_spectrum

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import array, dtypes, scales, seeds, sizes

IN_CI_ON_JAX = (
    "test_solutions_are_those_of_dense_algebra",
    "test_what_is_not_positive_definite_is_told",
    "test_eigh_is_the_pseudo_inverse",
    "test_lu_takes_general_matrices_and_tells_singular_ones",
    "test_trees_starts_and_zero",
)

METHODS = [lg.Cholesky(), lg.LU(), lg.Eigh()]
COMPILED = "compiled"  # where every shape, dtype and method is a program to be made: fewer of them
each = pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)


def few(backend):
    """Sizes of systems."""
    return st.just(N) if COMPILED in backend.capabilities else sizes(backend)


@each
@given(data=st.data(), seed=seeds(), of_matrix=scales(), of_rhs=scales())
def test_solutions_are_those_of_dense_algebra(backend, method, data, seed, of_matrix, of_rhs):
    n, dtype = data.draw(few(backend)), data.draw(dtypes(backend))
    matrix, b = rounded(of_matrix * benign(seed, n), dtype), rounded(of_rhs * gaussian(seed, n), dtype)
    solution = lg.solve(operator(backend, matrix, dtype), array(backend, b, dtype), method)
    exact = np.linalg.solve(matrix, b)
    x, scale = host(backend, solution.x), np.abs(exact).max()
    assert (solution.status, int(solution.steps), int(solution.products)) == (Status.CONVERGED, 1, n)
    np.testing.assert_allclose(x, exact, rtol=0, atol=50 * EPS[dtype] * scale)
    assert backend.describe(solution.x) == backend.describe(array(backend, b, dtype))
    assert float(solution.residual) <= 50 * EPS[dtype] * np.linalg.norm(b)
    model = 0.5 * exact @ matrix @ exact - b @ exact
    assert float(solution.model) == pytest.approx(model, rel=1e-4)
    assert solution.history["residual"][0] == pytest.approx(np.linalg.norm(b), rel=1e-5)


@given(
    data=st.data(),
    seed=seeds(),
    spread=st.floats(0, 12),
    kind=st.sampled_from(["positive", "one negative", "singular"]),
)
def test_what_is_not_positive_definite_is_told(backend, data, seed, spread, kind):
    dtype = data.draw(dtypes(backend))
    values = 10.0 ** -np.linspace(0, spread, N)
    if kind != "positive":
        values[seed % N] = 0.0 if kind == "singular" else -values[seed % N]
    matrix, b = rounded(with_spectrum(values, seed), dtype), rounded(gaussian(seed), dtype)
    solution = lg.solve(operator(backend, matrix, dtype), array(backend, b, dtype), lg.Cholesky())
    x = host(backend, solution.x)
    noise = N * EPS[dtype] * 4
    lowest = np.linalg.eigvalsh(matrix)[0]
    assert np.isfinite(x).all()
    if lowest > 100 * noise:
        assert solution.status in (Status.CONVERGED, Status.STAGNATED)
    elif lowest < -noise:
        assert solution.status is Status.NEGATIVE_CURVATURE
    residual = np.linalg.norm(b - matrix @ x)
    slack = 100 * N * EPS[dtype] * np.linalg.norm(matrix, 2) * np.linalg.norm(x)
    if solution.status is Status.CONVERGED:
        assert residual <= 2 * np.sqrt(EPS[dtype]) * np.linalg.norm(b) + slack
    elif solution.status in (Status.NEGATIVE_CURVATURE, Status.SINGULAR):
        assert not x.any()
        assert float(solution.residual) == pytest.approx(np.linalg.norm(b), rel=1e-5)
        assert float(solution.model) == 0.0


@given(data=st.data(), seed=seeds(), of_matrix=scales(), consistent=st.booleans())
def test_eigh_is_the_pseudo_inverse(backend, data, seed, of_matrix, consistent):
    dtype = data.draw(dtypes(backend))
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.5, 2.0, N) * rng.choice([-1, 1], N) * (np.arange(N) % 3 > 0)
    clean = of_matrix * with_spectrum(values, seed)
    matrix = rounded(clean, dtype)
    b = rounded(clean @ rng.standard_normal(N) if consistent else rng.standard_normal(N), dtype)
    method = lg.Eigh(rcond=1e-5)
    solution = lg.solve(operator(backend, matrix, dtype), array(backend, b, dtype), method)
    expected = np.linalg.pinv(clean, rcond=1e-5, hermitian=True) @ b
    assert solution.status is (Status.CONVERGED if consistent else Status.LEAST_SQUARES)
    tolerance = 300 * EPS[dtype] * max(np.abs(expected).max(), np.abs(b).max() / of_matrix)
    np.testing.assert_allclose(host(backend, solution.x), expected, rtol=0, atol=tolerance)
    assert float(solution.residual) == pytest.approx(
        np.linalg.norm(b - clean @ expected), rel=1e-3, abs=300 * EPS[dtype] * np.linalg.norm(b)
    )


def test_the_cutoff_is_relative_and_given(backend):
    d = array(backend, [1e3, -1.0, 1e-4])
    for rcond, expected in ((None, [1e-3, -1.0, 1e4]), (1e-5, [1e-3, -1.0, 0.0]), (1e-2, [1e-3, 0.0, 0.0])):
        solution = lg.solve(lg.Diagonal(d), array(backend, np.ones(3)), lg.Eigh(rcond=rcond))
        np.testing.assert_allclose(host(backend, solution.x), expected, rtol=1e-10, atol=1e-12)
        assert solution.status is (Status.CONVERGED if rcond is None else Status.LEAST_SQUARES)


def test_lu_takes_general_matrices_and_tells_singular_ones(backend):
    for seed in range(3):
        matrix, b = gaussian(seed, N, N), gaussian(seed)
        solution = lg.solve(lg.Dense(array(backend, matrix)), array(backend, b), lg.LU())
        assert solution.status is Status.CONVERGED
        np.testing.assert_allclose(host(backend, solution.x), np.linalg.solve(matrix, b), rtol=1e-8, atol=1e-10)
    for matrix in (np.zeros((N, N)), np.ones((N, N))):
        solution = lg.solve(lg.Dense(array(backend, matrix)), array(backend, gaussian(0)), lg.LU())
        assert solution.status is Status.SINGULAR
        assert not host(backend, solution.x).any()
        assert "Eigh" in repr(solution)


@each
def test_columns_share_the_matrix(backend, method):
    matrix = benign(0)
    b = np.stack([gaussian(1), np.zeros(N), np.full(N, np.inf), 1e-200 * gaussian(2), 1e200 * gaussian(3)], axis=1)
    A, counter = counted(backend, matrix)
    solution = lg.solve(A, array(backend, b), method)
    finished(backend)
    assert counter.calls == int(solution.products) == N
    assert [s.name for s in solution.status] == ["CONVERGED", "CONVERGED", "NONFINITE_INPUT", "CONVERGED", "CONVERGED"]
    assert np.asarray(solution.steps).tolist() == [1, 0, 0, 1, 1]
    x = host(backend, solution.x)
    for j in (0, 3, 4):
        exact = np.linalg.solve(matrix, b[:, j])
        np.testing.assert_allclose(x[:, j], exact, rtol=0, atol=1e-12 * np.abs(exact).max())
    assert not x[:, 1:3].any()


@each
def test_trees_starts_and_zero(backend, method):
    if COMPILED in backend.capabilities and not isinstance(method, lg.Cholesky):
        pytest.skip("the same source as Cholesky's")
    matrix, b = benign(0), gaussian(0)
    tree = {"bias": array(backend, b[:1]), "weight": backend.namespace().reshape(array(backend, b[1:]), (2, 3))}
    A = lg.Dense(array(backend, matrix), symmetric=True, domain=lg.Space.of(tree))
    solution = lg.solve(A, tree, method, x0=tree)
    exact = np.linalg.solve(matrix, b)
    np.testing.assert_allclose(host(backend, solution.x["weight"]).reshape(-1), exact[1:], rtol=0, atol=1e-12)
    nothing = lg.solve(A, array(backend, np.zeros(N)), method)
    assert (nothing.status, int(nothing.products)) == (Status.CONVERGED, 0)


@each
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_matrix_that_is_not_finite(backend, method, value):
    matrix = benign(0)
    matrix[2, 3] = matrix[3, 2] = value
    M = array(backend, matrix)
    A = lg.FunctionOperator(times, lg.Space.flat(N, M), args=(M,), symmetric=True)
    solution = lg.solve(A, array(backend, gaussian(0)), method)
    assert solution.status is Status.NONFINITE
    assert not host(backend, solution.x).any()


def times(v, matrix):
    return matrix @ v


# blocks


def test_blocks_are_factored_each_on_its_own(backend):
    parts = [benign(0), benign(1, 3), benign(2, 4)]
    b = gaussian(3, 14)
    A = lg.Damped(lg.BlockDiagonal(tuple(operator(backend, p) for p in parts)), 0.5)
    for method in METHODS[:1] if COMPILED in backend.capabilities else METHODS:
        solution = lg.solve(A, array(backend, b), method)
        expected = [
            np.linalg.solve(p + 0.5 * np.eye(len(p)), part) for p, part in zip(parts, np.split(b, [7, 10]), strict=True)
        ]
        np.testing.assert_allclose(host(backend, solution.x), np.concatenate(expected), rtol=0, atol=1e-12)
        assert (solution.status, int(solution.products)) == (Status.CONVERGED, 7), "as many as the largest block"
    broken = lg.BlockDiagonal((operator(backend, parts[0]), operator(backend, -parts[1]), operator(backend, parts[2])))
    solution = lg.solve(broken, array(backend, b), lg.Cholesky())
    assert solution.status is Status.NEGATIVE_CURVATURE
    x = host(backend, solution.x)
    assert not x[7:10].any()
    np.testing.assert_allclose(x[:7], np.linalg.solve(parts[0], b[:7]), rtol=0, atol=1e-12)


def test_blocks_of_leaves_that_do_not_lie_together(backend):
    space = lg.Space.of({name: array(backend, np.zeros(size)) for name, size in (("a", 2), ("b", 3), ("c", 1))})
    outer, inner = benign(0, 3), benign(1, 3)
    A = lg.BlockDiagonal((operator(backend, outer), operator(backend, inner)), space, leaves=((0, 2), (1,)))
    b = gaussian(0, 6)
    x = host(backend, lg.solve(A, array(backend, b), lg.Cholesky()).x)
    np.testing.assert_allclose(x[[0, 1, 5]], np.linalg.solve(outer, b[[0, 1, 5]]), rtol=0, atol=1e-12)
    np.testing.assert_allclose(x[2:5], np.linalg.solve(inner, b[2:5]), rtol=0, atol=1e-12)


def test_the_layers_of_a_block_gauss_newton_matrix(numpy_backend):
    x, y = gaussian(0, 9), gaussian(1, 9)
    fit = lg.Objective.from_residuals(
        lambda p: p["a"] * x + p["b"][0] * y + p["b"][1],
        jacobian=lambda p: {"a": x, "b": np.stack([y, np.ones(9)], axis=1)},
    )
    B = lg.BlockGGN(fit, {"a": np.array(0.0), "b": np.zeros(2)}, blocks="leaf")
    dense, b = B.to_dense(), gaussian(2, 3)
    for A, damping in ((B, 0.0), (lg.Damped(B, 0.1), 0.1)):
        solution = lg.solve(A, b, lg.Cholesky())
        assert (solution.status, int(solution.products)) == (Status.CONVERGED, 2)
        np.testing.assert_allclose(solution.x, np.linalg.solve(dense + damping * np.eye(3), b), rtol=1e-10)


# precision and size


def test_forming_in_double_keeps_definiteness(backend):
    J = rounded(gaussian(0, 12, N), "float32")
    J[:, 1] = rounded(J[:, 0] + 1e-4 * J[:, 2], "float32")
    b = rounded(gaussian(1), "float32")
    operator_J = lg.Dense(array(backend, J, "float32"))
    A = lg.Damped(operator_J.T @ operator_J, 1e-7)
    exact = np.linalg.solve(J.T @ J + 1e-7 * np.eye(N), b)
    solution = lg.solve(A, array(backend, b, "float32"), lg.Cholesky(double=True))
    assert solution.status is Status.CONVERGED
    assert backend.describe(solution.x)[1] == "float32"
    np.testing.assert_allclose(host(backend, solution.x), exact, rtol=0, atol=1e-5 * np.abs(exact).max())
    plain = host(backend, lg.solve(A, array(backend, b, "float32"), lg.Cholesky()).x)
    assert np.abs(plain - exact).max() > 1e-2 * np.abs(exact).max(), "what float32 makes of it"


def test_sums_multiples_and_products_are_taken_apart_in_double(backend):
    S, G, d = (rounded(m, "float32") for m in (benign(0), gaussian(1, N, N), np.linspace(1, 2, N)))
    A, B, D = (
        operator(backend, S, "float32"),
        lg.Dense(array(backend, G, "float32")),
        lg.Diagonal(array(backend, d, "float32")),
    )
    composed = 2.0 * A + B.T @ D @ B + lg.Identity(A.domain)
    solution = lg.solve(composed, array(backend, np.ones(N), "float32"), lg.Eigh(double=True))
    expected = np.linalg.solve(2 * S + G.T @ np.diag(d) @ G + np.eye(N), np.ones(N))
    np.testing.assert_allclose(
        host(backend, solution.x), expected, rtol=0, atol=4 * EPS["float32"] * np.abs(expected).max()
    )
    assert int(solution.products) == N, "those of the diagonal; matrices that are there are taken as they are"


def test_half_precision_is_factored_in_single(torch):
    A = lg.Dense(torch.eye(4, dtype=torch.bfloat16) * 2, symmetric=True)
    for method in METHODS:
        solution = lg.solve(A, torch.ones(4, dtype=torch.bfloat16), method)
        assert solution.status is Status.CONVERGED
        assert solution.x.dtype is torch.bfloat16
        assert solution.x.tolist() == [0.5] * 4


def test_what_is_too_large_or_of_the_wrong_kind_is_refused(backend):
    big = lg.Identity(lg.Space.flat(20_000, array(backend, np.zeros(1))))
    with pytest.raises(ValueError, match=r"20000 x 20000 numbers \(2.98 GiB\).*max_size = 10000"):
        lg.solve(big, big.domain.zeros(), lg.Cholesky())
    with pytest.raises(ValueError, match="max_size = 3"):
        lg.solve(operator(backend, benign(0)), array(backend, gaussian(0)), lg.LU(max_size=3))
    general = lg.Dense(array(backend, gaussian(0, N, N)))
    for method in (lg.Cholesky(), lg.Eigh()):
        with pytest.raises(ValueError, match="needs a symmetric operator"):
            lg.solve(general, array(backend, gaussian(0)), method)
    with pytest.raises(ValueError, match="needs a square operator"):
        lg.solve(lg.Dense(array(backend, np.ones((3, 2)))), array(backend, np.ones(3)), lg.LU())
    with pytest.raises(ValueError, match="rcond"):
        lg.Eigh(rcond=-1.0)


def test_a_direct_solver_inside_levenberg_marquardt(numpy_backend):
    t = np.linspace(0, 4, 20)
    y = 2.0 * np.exp(-0.5 * t)
    fit = lg.Objective.from_residuals(
        lambda p: p[0] * np.exp(p[1] * t) - y,
        jacobian=lambda p: np.stack([np.exp(p[1] * t), p[0] * t * np.exp(p[1] * t)], axis=1),
    )
    for solver in (lg.Cholesky(), lg.Eigh(), lg.MINRES(rtol=1e-8)):
        result = lg.minimize(fit, np.array([1.0, 0.0]), lg.LevenbergMarquardt(solver=solver), max_steps=40)
        np.testing.assert_allclose(result.params, [2.0, -0.5], atol=1e-5)


def test_a_semi_definite_matrix_is_singular_and_not_indefinite(backend):
    matrix = array(backend, np.ones((2, 2)))
    for known_to_be, status in ((True, Status.SINGULAR), (False, None)):
        A = lg.Dense(matrix, psd=known_to_be, symmetric=True)
        found = lg.solve(A, array(backend, np.ones(2)), lg.Cholesky()).status
        assert found in (status,) if status else found in (Status.SINGULAR, Status.NEGATIVE_CURVATURE)


@each
def test_an_answer_that_underflows_is_no_success(backend, method):
    spare(backend, isinstance(method, lg.Cholesky))
    A, b = lg.Dense(array(backend, np.diag([1e18, 2e18]), "float32"), symmetric=True), np.full(2, 1e-29)
    solution = lg.solve(A, array(backend, b, "float32"), method)
    assert solution.status is Status.STAGNATED
    assert not host(backend, solution.x).any()
    assert float(solution.residual) == pytest.approx(np.linalg.norm(b), rel=1e-5)


@each
def test_a_matrix_near_the_largest_number(backend, method):
    """The sum of its two halves is out of range; it is regular, and no least-squares problem."""
    spare(backend, FULL or not isinstance(method, lg.Eigh))
    matrix = 5e307 * np.diag([1.0, 2.0, 3.0])
    solution = lg.solve(operator(backend, matrix, "float64"), array(backend, [1e300, 2e300, 3e300]), method)
    if backend.name == "jax":  # 1 / 1.5e308 is subnormal, which XLA makes zero
        assert solution.status is Status.STAGNATED
    else:
        assert solution.status is Status.CONVERGED
        np.testing.assert_allclose(host(backend, solution.x), 2e-8, rtol=1e-12)
