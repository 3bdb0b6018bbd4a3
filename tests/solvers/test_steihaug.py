"""Truncated conjugate gradients in a region: the path, its boundary, and its norm."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from regions import model, smallest_model
from systems import EPS, FULL, N, benign, counted, finished, gaussian, host, operator, rounded, spare, with_spectrum

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import array, scales, seeds

IN_CI_ON_JAX = (
    "test_negative_curvature_at_every_step_is_followed_to_the_boundary",
    "test_columns_have_their_own_paths",
    "test_radii_of_any_size_in_single_precision",
)


def path_of(matrix, b, radius, M=None):
    """Steihaug's answer in float64, from norms that are computed with M^-1 outright."""
    M = np.eye(len(b)) if M is None else M
    metric = np.linalg.inv(M)
    x, r = np.zeros(len(b)), b.copy()
    z = M @ r
    p = z.copy()
    for _ in range(len(b)):
        Ap = matrix @ p
        curvature, rz = p @ Ap, r @ z
        alpha = rz / curvature if curvature > 0 else np.inf
        if curvature <= 0 or (x + alpha * p) @ metric @ (x + alpha * p) >= radius**2:
            a, h, c = p @ metric @ p, x @ metric @ p, x @ metric @ x - radius**2
            return x + (-h + np.sqrt(h * h - a * c)) / a * p, True
        x, r = x + alpha * p, r - alpha * Ap
        z = M @ r
        p = z + (r @ z) / rz * p
    return x, False


@pytest.mark.parametrize("preconditioned", [False, True])
@given(seed=seeds(), exponent=st.floats(-3, 1.5), low=st.floats(-1.5, 0.5), of_matrix=scales(), of_rhs=scales())
def test_the_end_of_the_path(backend, preconditioned, seed, exponent, low, of_matrix, of_rhs):
    matrix = of_matrix * with_spectrum(np.random.default_rng(seed).uniform(low, 2.0, N), seed)
    b = of_rhs * gaussian(seed)
    radius = of_rhs / of_matrix * 10.0**exponent
    M = benign(seed + 1) / of_matrix if preconditioned else None
    metric = np.eye(N) if M is None else np.linalg.inv(M)
    if M is not None:
        radius *= np.sqrt(of_matrix)
    inner = None if M is None else lg.Dense(array(backend, M), psd=True)
    method = lg.Steihaug(radius=radius, rtol=1e-10, preconditioner=inner)
    solution = lg.solve(operator(backend, matrix), array(backend, b), method)
    x, (expected, outside) = host(backend, solution.x), path_of(matrix, b, radius, M)
    if np.linalg.eigvalsh(matrix)[0] > 0.05 * of_matrix or outside:  # else rounding decides at the last steps
        length = np.sqrt(x @ metric @ x)
        assert length <= radius * (1 + 1e-9)
        if outside and solution.status is Status.BOUNDARY:
            assert length == pytest.approx(radius, rel=1e-9)
            np.testing.assert_allclose(x, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert float(solution.model) == pytest.approx(model(matrix, b, x), rel=1e-8, abs=1e-12 * np.abs(b @ x))
    assert float(solution.residual) == pytest.approx(np.linalg.norm(b - matrix @ x), rel=1e-6, abs=1e-9 * of_rhs)
    shares = solution.history["share"]
    assert (np.diff(shares) >= -1e-12).all()
    assert shares[-1] == pytest.approx(np.sqrt(x @ metric @ x) / radius, rel=1e-7)


@given(seed=seeds(), exponent=st.floats(-4, 3))
def test_at_least_half_of_the_possible_decrease(numpy_backend, seed, exponent):
    matrix, b, radius = benign(seed), gaussian(seed), 10.0**exponent
    solution = lg.solve(lg.Dense(matrix, psd=True), b, lg.Steihaug(radius=radius, rtol=1e-10))
    least, _ = smallest_model(matrix, b, radius)
    assert solution.status in (Status.BOUNDARY, Status.CONVERGED)
    assert least * (1 + 1e-9) <= solution.model <= 0.5 * least


def test_products_and_statuses(backend):
    matrix, b = benign(0), gaussian(0)
    A, counter = counted(backend, matrix)
    for radius, status, extra in ((1e6, Status.CONVERGED, 1), (0.1, Status.BOUNDARY, 0)):
        counter.calls = 0
        solution = lg.solve(A, array(backend, b), lg.Steihaug(radius=radius, rtol=1e-6))
        finished(backend)
        assert solution.status is status
        assert counter.calls == int(solution.products) == int(solution.steps) + extra
    few = lg.solve(A, array(backend, b), lg.Steihaug(radius=1e6, steps=3))
    assert (few.status, int(few.steps)) == (Status.COMPLETED, 3)
    np.testing.assert_allclose(host(backend, few.x), host(backend, lg.solve(A, array(backend, b), lg.CG(steps=3)).x))


def test_without_a_region_negative_curvature_ends_the_path(backend):
    matrix, b = benign(0) - 1.2 * np.eye(N), gaussian(0)
    solution = lg.solve(operator(backend, matrix), array(backend, b), lg.Steihaug(radius=np.inf))
    assert solution.status is Status.NEGATIVE_CURVATURE
    x = host(backend, solution.x)
    assert np.isfinite(x).all()
    assert float(solution.model) == pytest.approx(model(matrix, b, x), abs=1e-12)


@pytest.mark.parametrize("where", range(1, N))
def test_negative_curvature_at_every_step_is_followed_to_the_boundary(backend, where):
    pivots = np.linspace(1.0, 2.0, N)
    pivots[where] = -1.0
    L = np.eye(N) + 0.5 * np.diag(np.ones(N - 1), -1)
    matrix, b = L @ np.diag(pivots) @ L.T, np.eye(N)[0]
    solution = lg.solve(operator(backend, matrix), array(backend, b), lg.Steihaug(radius=50.0))
    assert (solution.status, int(solution.steps)) == (Status.BOUNDARY, where + 1)
    x = host(backend, solution.x)
    assert np.linalg.norm(x) == pytest.approx(50.0, rel=1e-12)
    np.testing.assert_allclose(x, path_of(matrix, b, 50.0)[0], atol=1e-9)


def test_columns_have_their_own_paths(backend):
    matrix, B = benign(0), gaussian(0, N, 3) * np.array([1e-3, 1.0, 1e3])
    A = operator(backend, matrix)
    together = lg.solve(A, array(backend, B), lg.Steihaug(radius=0.5, rtol=1e-8))
    for j in range(3):
        alone = lg.solve(A, array(backend, B[:, j]), lg.Steihaug(radius=0.5, rtol=1e-8))
        assert together.status[j] is alone.status
        np.testing.assert_allclose(host(backend, together.x)[:, j], host(backend, alone.x), rtol=1e-9)


@pytest.mark.parametrize("radius", [1e-30, 1e-12, 1e12, 1e30])
def test_radii_of_any_size_in_single_precision(backend, radius):
    matrix, b = rounded(benign(0), "float32"), gaussian(0)
    solution = lg.solve(operator(backend, matrix, "float32"), array(backend, b, "float32"), lg.Steihaug(radius=radius))
    x = host(backend, solution.x)
    if radius < 1:
        assert solution.status is Status.BOUNDARY
        assert np.linalg.norm(x / radius) == pytest.approx(1.0, rel=10 * EPS["float32"])
    else:
        assert solution.status is Status.CONVERGED


def test_degenerate_input(backend):
    spare(backend, FULL)
    A, zero = operator(backend, benign(0)), array(backend, np.zeros(N))
    solution = lg.solve(A, zero, lg.Steihaug())
    assert (solution.status, int(solution.products)) == (Status.CONVERGED, 0)
    assert lg.solve(A, array(backend, np.full(N, np.nan)), lg.Steihaug()).status is Status.NONFINITE_INPUT
    bad = lg.solve(A, array(backend, gaussian(0)), lg.Steihaug(preconditioner=lg.Dense(-A.matrix, symmetric=True)))
    assert bad.status is Status.INDEFINITE_PRECONDITIONER
    with pytest.raises(ValueError, match="give no x0"):
        lg.solve(A, zero, lg.Steihaug(), x0=zero)
    with pytest.raises(ValueError, match="radius"):
        lg.Steihaug(radius=-1.0)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@given(seed=seeds(), exponent=st.floats(-12, 0), size=st.floats(-3, 3))
def test_no_step_leaves_the_region(numpy_backend, dtype, seed, exponent, size):
    """However long the first direction of negative curvature is beside the step to the boundary."""
    values = np.array([-(10.0**exponent), *np.random.default_rng(seed).uniform(1.0, 3.0, N - 1)])
    A = operator(numpy_backend, with_spectrum(values, seed), dtype)
    radius = 10.0**size
    step = lg.solve(A, gaussian(seed).astype(dtype), lg.Steihaug(radius=radius, rtol=1e-12))
    assert np.linalg.norm(step.x.astype(float)) <= radius * (1.0 + 8 * EPS[dtype])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("least", [0.0, 1e-12])
def test_the_boundary_is_met_where_the_recurrences_have_drifted(numpy_backend, dtype, least):
    """Far past the end of the space, in rounding, until the path leaves the region or ends."""
    outside = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        values = np.r_[least, 10.0 ** rng.uniform(np.log10(least) if least else -1.0, 0.0, N - 1)]
        matrix, b = rounded(with_spectrum(values, seed), dtype), rounded(gaussian(seed), dtype)
        b, radius = rounded(matrix @ b, dtype), 10.0 ** rng.uniform(0.0, 1.5)
        step = lg.solve(operator(numpy_backend, matrix, dtype), b.astype(dtype), lg.Steihaug(radius=radius, rtol=1e-12))
        x = step.x.astype(float)
        length, true = np.linalg.norm(x), np.linalg.norm(b - matrix @ x)
        assert length <= radius * (1 + 8 * EPS[dtype])
        assert abs(float(step.residual) - true) <= 64 * EPS[dtype] * (length + np.linalg.norm(b))
        if step.status is Status.BOUNDARY:
            outside += 1
            assert length == pytest.approx(radius, rel=8 * EPS[dtype])
    assert outside > 10


@pytest.mark.parametrize(("value", "radius", "dtype"), [(1e-24, 1e30, "float32"), (1e-160, 1e300, "float64")])
def test_steps_whose_squares_are_out_of_range_are_left_alone(numpy_backend, value, radius, dtype):
    step = lg.solve(lg.Diagonal(np.full(2, value, dtype)), np.ones(2, dtype), lg.Steihaug(radius=radius))
    assert step.status is Status.CONVERGED
    np.testing.assert_allclose(step.x, 1.0 / value, rtol=1e-6)


def test_no_boundary_is_a_success_where_the_model_is_above_that_at_zero():
    rng, told = np.random.default_rng(0), []
    for _ in range(400):  # singular systems, in regions so large that the rounding of A x exceeds b
        n = int(rng.integers(2, 12))
        values = 10.0 ** rng.uniform(-6, 0, n)
        values[rng.random(n) < 0.3] = 0.0
        Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
        A = lg.Dense(((Q * values) @ Q.T).astype(np.float32), symmetric=True)
        b = rng.standard_normal(n).astype(np.float32)
        radius = 10.0 ** rng.uniform(-2, 3) * float(np.linalg.norm(b)) / 2.0**-23
        solution = lg.solve(A, b, lg.Steihaug(radius=radius))
        told.append((solution.succeeded, float(solution.model)))
    assert any(succeeded for succeeded, _ in told)
    assert not [model for succeeded, model in told if succeeded and model > 0]
