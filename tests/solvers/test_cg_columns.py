"""k right-hand sides at once: each with its own scalars, its own status and its own end."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import FULL, N, benign, gaussian, host, operator, spare, tolerable, with_spectrum

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import array, seeds

IN_CI_ON_JAX = ("test_columns_of_all_kinds_beside_each_other",)

K = 3


def alone(backend, A, b, method, x0, j):
    start = None if x0 is None else array(backend, x0[:, j])
    return lg.solve(A, array(backend, b[:, j]), method, x0=start)


@given(seed=seeds(), warm=st.booleans())
def test_columns_are_what_each_is_alone(backend, seed, warm):
    rng = np.random.default_rng(seed)
    matrix = benign(seed)
    eigenvectors = np.linalg.eigh(matrix)[1]
    # Ends after one step, after three, and after as many as it takes; of very different sizes.
    b = np.stack([eigenvectors[:, 0], eigenvectors[:, :3] @ rng.uniform(1, 2, 3), rng.standard_normal(N)], axis=1)
    b *= 10.0 ** rng.integers(-9, 9, K)
    x0 = rng.standard_normal((N, K)) * np.abs(b).max(0) if warm else None
    A, method = operator(backend, matrix), lg.CG(rtol=1e-8)
    together = lg.solve(A, array(backend, b), method, x0=None if x0 is None else array(backend, x0))
    rows = together.history["residual"]
    assert rows.shape == together.history["model"].shape == (int(np.max(together.steps)) + 1, K)
    for j in range(K):
        single = alone(backend, A, b, method, x0, j)
        size = np.abs(b[:, j]).max()
        assert together.status[j] is single.status is Status.CONVERGED
        assert abs(int(together.steps[j]) - int(single.steps)) <= 1, "rounding may cost a step"
        np.testing.assert_allclose(host(backend, together.x)[:, j], host(backend, single.x), rtol=0, atol=1e-6 * size)
        last = int(together.steps[j])
        if last == int(single.steps):
            assert int(together.products[j]) == int(single.products)
            np.testing.assert_allclose(rows[:last, j], single.history["residual"][:last], rtol=1e-3, atol=1e-9 * size)
            assert (rows[last + 1 :, j] == rows[-1, j]).all(), "an ended column's row stays as it is"
    if not warm:
        assert [int(s) for s in together.steps[:2]] == [1, 3]


def test_columns_of_all_kinds_beside_each_other(backend):
    matrix = with_spectrum([-1.0, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0], 0)
    values, vectors = np.linalg.eigh(matrix)
    positive = vectors[:, 1:] @ gaussian(0, N - 1)
    b = np.stack(
        [np.zeros(N), np.full(N, np.nan), vectors[:, 0], positive, 1e-200 * positive, 1e200 * vectors[:, 3]], axis=1
    )
    A = operator(backend, matrix)
    solution = lg.solve(A, array(backend, b), lg.CG(rtol=1e-6))
    assert solution.status == [
        Status.CONVERGED,
        Status.NONFINITE_INPUT,
        Status.NEGATIVE_CURVATURE,
        Status.CONVERGED,
        Status.CONVERGED,
        Status.CONVERGED,
    ]
    x = host(backend, solution.x)
    assert not x[:, :3].any()
    for j in (3, 4, 5):
        exact = vectors @ ((vectors.T @ b[:, j]) / values)
        np.testing.assert_allclose(x[:, j], exact, rtol=0, atol=1e-5 * np.abs(exact).max())
    products = np.asarray(solution.products).tolist()
    assert products[:3] == [0, 0, 1]
    assert products[3] == products[4] > products[5] == 2
    assert "1 nonfinite_input" in repr(solution)
    assert not solution.succeeded


def test_a_column_that_spoils_its_products_spoils_no_other(backend):
    matrix = benign(1)
    A = lg.FunctionOperator(
        grumpy, lg.Space.flat(N, array(backend, np.zeros(1))), args=(array(backend, matrix),), symmetric=True
    )
    b = gaussian(1, N, K)
    b[1:, 1] *= 1e-3
    solution = lg.solve(A, array(backend, b), lg.CG(rtol=1e-8))
    assert solution.status == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    x = host(backend, solution.x)
    assert np.isfinite(x).all()
    for j in (0, 2):
        residual = np.linalg.norm(b[:, j] - matrix @ x[:, j])
        assert residual <= 1e-8 * np.linalg.norm(b[:, j]) + tolerable(matrix, x[:, j], b[:, j], "float64")


def grumpy(v, matrix):
    """A product that fails for vectors that are almost the first unit vector."""
    return lg.namespace(v).where(v[0] ** 2 > 0.99 * (v @ v), float("nan"), matrix @ v)


@pytest.mark.parametrize("columns", [1, 2])
def test_fixed_steps_and_limits_hold_for_each_column(backend, columns):
    spare(backend, FULL or columns == 2)
    A, b = operator(backend, benign(0)), array(backend, gaussian(0, N, columns))
    for method, status in ((lg.CG(steps=2), Status.COMPLETED), (lg.CG(rtol=1e-12, max_steps=2), Status.MAX_STEPS)):
        solution = lg.solve(A, b, method)
        assert solution.status == [status] * columns
        assert np.asarray(solution.steps).tolist() == np.asarray(solution.products).tolist() == [2] * columns
        assert tuple(solution.x.shape) == (N, columns)
        assert solution.history["residual"].shape == (3, columns)


def test_each_column_keeps_to_its_own_tolerance(backend):
    matrix = benign(0)
    b = np.stack([gaussian(0), 1e6 * gaussian(1)], axis=1)
    solution = lg.solve(operator(backend, matrix), array(backend, b), lg.CG(rtol=1e-12, atol=1e-3))
    residuals = np.linalg.norm(b - matrix @ host(backend, solution.x), axis=0)
    bounds = np.maximum(1e-12 * np.linalg.norm(b, axis=0), 1e-3)
    assert (residuals <= 1.001 * bounds).all()
    assert int(solution.steps[0]) < int(solution.steps[1])


def test_a_preconditioner_with_columns(backend):
    scaling = 10.0 ** np.linspace(0, 4, N)
    matrix = np.sqrt(scaling)[:, None] * benign(0) * np.sqrt(scaling)
    b = gaussian(0, N, 2)
    b[:, 1] = 0.0
    M = lg.Diagonal(array(backend, 1.0 / np.diag(matrix)))
    solution = lg.solve(operator(backend, matrix), array(backend, b), lg.CG(rtol=1e-8, preconditioner=M))
    assert solution.status == [Status.CONVERGED, Status.CONVERGED]
    assert np.asarray(solution.products).tolist() == [int(solution.steps[0]) + 1, 0]
    assert np.linalg.norm(b[:, 0] - matrix @ host(backend, solution.x)[:, 0]) <= 1.001e-8 * np.linalg.norm(b[:, 0])
