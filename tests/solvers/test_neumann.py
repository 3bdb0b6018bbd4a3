"""The Neumann series against its sum, and what it says where there is none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.testing.strategies import array, seeds


def definite(n, seed, low=1.0, high=3.0):
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    M = (Q * rng.uniform(low, high, n)) @ Q.T
    return (M + M.T) / 2


def partial_sum(M, alpha, terms):
    step = np.eye(len(M)) - alpha * M
    return alpha * sum(np.linalg.matrix_power(step, j) for j in range(terms))


@given(n=st.integers(1, 8), terms=st.integers(1, 12), alpha=st.floats(0.05, 0.6), seed=seeds())
def test_so_many_terms_are_their_sum(numpy_backend, n, terms, alpha, seed):
    M = definite(n, seed)
    A, B = lg.Dense(M, psd=True), np.random.default_rng(seed).standard_normal((n, 3))
    S = partial_sum(M, alpha, terms)
    found = lg.solve(A, B, lg.Neumann(steps=terms, scale=alpha))
    assert [status.name for status in found.status] == ["COMPLETED"] * 3
    np.testing.assert_allclose(found.x, S @ B, atol=1e-12)
    np.testing.assert_allclose(found.residual, np.linalg.norm(B - M @ S @ B, axis=0), atol=1e-12)
    assert found.products.tolist() == [terms] * 3
    x0 = np.ones(n)
    warm = lg.solve(A, B[:, 0], lg.Neumann(steps=terms, scale=alpha), x0=x0)
    if np.linalg.norm(B[:, 0] - M @ x0) <= np.linalg.norm(B[:, 0]):  # otherwise the start is given up
        np.testing.assert_allclose(warm.x, x0 + S @ (B[:, 0] - M @ x0), atol=1e-12)
        assert warm.products == terms + 1


def test_as_an_inverse_it_is_one_symmetric_matrix(backend):
    """The length that it finds does not depend on b, so that products are linear; and no product is NaN."""
    M = definite(8, 0)
    A = lg.inverse(lg.Dense(array(backend, M, "float64"), psd=True), lg.Neumann(steps=6))
    P = backend.to_numpy(A.to_dense())
    np.testing.assert_allclose(P, P.T, atol=1e-13)
    alpha = (1 - np.linalg.eigvalsh(np.eye(8) - M @ P)[-1] ** (1 / 6)) / np.linalg.eigvalsh(M)[0]
    assert 0.9 < alpha * np.linalg.eigvalsh(M)[-1] < 1.1
    np.testing.assert_allclose(P, partial_sum(M, alpha, 6), atol=1e-10)
    v = np.arange(8.0)
    np.testing.assert_allclose(backend.to_numpy(A @ array(backend, v, "float64")), P @ v, atol=1e-12)


@pytest.mark.parametrize("size", [2.0**-60, 1.0, 2.0**60])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_length_is_found_for_operators_of_any_size(dtype, size):
    d = (size * np.linspace(0.2, 1.0, 50)).astype(dtype)
    found = lg.solve(lg.Diagonal(d), np.ones(50, dtype), lg.Neumann(rtol=1e-4))
    assert found.status is lg.Status.CONVERGED
    assert found.products - found.steps in (16, 17)  # where x is tiny the door looks at it once more
    assert 30 < found.steps < 50  # log(1e-4) / log(.8) = 41


def test_a_single_large_eigenvalue_is_found():
    d = np.r_[1.0, np.full(10_000, 0.3)]
    assert lg.solve(lg.Diagonal(d), np.ones(d.size), lg.Neumann()).succeeded


@pytest.mark.parametrize("steps", [None, 40])
def test_steps_that_are_too_long_are_told(steps):
    """By a proof, also with a fixed number of terms: x is no worse than zero, and an inverse has no product."""
    A, b = lg.Diagonal(np.array([1.0, 2.0, 3.0])), np.array([1.0, 1.0, 1e-3])
    solver = lg.Neumann(scale=0.7, steps=steps)
    found = lg.solve(A, b, solver)
    assert found.status is lg.Status.RESIDUAL_GROWS
    assert not found.succeeded
    true = np.linalg.norm(b - A @ found.x)
    assert true <= np.linalg.norm(b)
    np.testing.assert_allclose(found.residual, true)
    with pytest.warns(RuntimeWarning, match="RESIDUAL_GROWS"):
        assert np.isnan(lg.inverse(A, solver) @ b).all()
    assert lg.solve(A, b, lg.replace(solver, scale=0.66)).succeeded


def test_at_the_last_term_growth_is_a_proof_too():
    A, b = lg.Diagonal(np.array([1.0, 3.0])), np.array([1e-3, 1.0])
    assert lg.solve(A, b, lg.Neumann(scale=0.68, steps=3)).status is lg.Status.RESIDUAL_GROWS


@pytest.mark.parametrize(
    ("values", "status"),
    [((-3.0, 1.0), "NEGATIVE_CURVATURE"), ((-1.0, 3.0, 3.0, 3.0), "RESIDUAL_GROWS"), ((0.0, 0.0), "SINGULAR")],
)
def test_operators_that_are_not_definite(values, status):
    found = lg.solve(lg.Diagonal(np.array(values)), np.ones(len(values)), lg.Neumann())
    assert found.status.name == status
    assert np.isfinite(found.x).all()


def test_ends_on_the_way():
    d = np.logspace(-4, 0, 30)
    A, b = lg.Diagonal(d), np.ones(30)
    assert lg.solve(A, b, lg.Neumann(max_steps=20)).status is lg.Status.MAX_STEPS
    assert lg.solve(A, b, lg.Neumann()).steps == 1000
    well = lg.Diagonal(np.linspace(0.37, 1.0, 30))
    assert lg.solve(well, b, lg.Neumann(rtol=1e-30)).status is lg.Status.STAGNATED
    fixed = lg.solve(well, b, lg.Neumann(steps=500))
    assert fixed.status is lg.Status.COMPLETED
    assert fixed.residual < 1e-13
    singular = lg.solve(lg.Diagonal(np.array([0.0, 1.0])), np.array([0.0, 1.0]), lg.Neumann())
    assert singular.succeeded


def test_each_block_has_a_length_of_its_own():
    blocks = (lg.Diagonal(np.array([1.0, 2.0]), psd=True), lg.Diagonal(np.array([1e3, 2e3, 3e3]), psd=True))
    found = lg.solve(lg.BlockDiagonal(blocks), np.ones(5), lg.Blockwise(lg.Neumann(rtol=1e-8)))
    assert found.succeeded
    assert max(found.steps) < 60
    np.testing.assert_allclose(found.x, 1 / np.array([1, 2, 1e3, 2e3, 3e3]), rtol=1e-7)


def test_what_it_costs_and_refuses():
    A, b = lg.Diagonal(np.linspace(1.0, 50.0, 100)), np.ones(100)
    for solver in (lg.Neumann(steps=8), lg.Neumann(steps=8, scale=1e-3)):
        assert lg.cost(A, solver)[0].products == lg.solve(A, b, solver).products
    for bad in (0.0, -1.0, np.inf):
        with pytest.raises(ValueError, match="scale"):
            lg.Neumann(scale=bad)
    with pytest.raises(ValueError, match="steps"):
        lg.Neumann(steps=3, max_steps=4)
    with pytest.raises(ValueError, match="symmetric"):
        lg.solve(lg.Dense(np.triu(np.ones((3, 3)))), np.ones(3), lg.Neumann())


def product(v):
    return np.array([1e200 * (1e200 * v[0]), v[1]])


@pytest.mark.parametrize(
    ("A", "solver", "status"),
    [
        (lg.Diagonal(-np.ones(2), psd=False), lg.Neumann(), "NEGATIVE_CURVATURE"),
        (lg.Diagonal(np.array([-1.0, 3.0]), psd=False), lg.Neumann(scale=1.0), "RESIDUAL_GROWS"),
        (lg.Diagonal(np.zeros(2)), lg.Neumann(), "SINGULAR"),
        (lg.FunctionOperator(product, lg.Space.flat(2, np.zeros(1)), symmetric=True), lg.Neumann(), "NONFINITE"),
        (lg.Diagonal(np.array([1.0, 2.0])), lg.Neumann(), "CONVERGED"),
        (lg.Diagonal(np.array([1.0, 2.0])), lg.Neumann(steps=3), "COMPLETED"),
        (lg.Diagonal(np.array([1.0, 2.0])), lg.Neumann(max_steps=2), "MAX_STEPS"),
        (lg.Diagonal(np.array([1.0, 2.0])), lg.Neumann(max_steps=0), "MAX_STEPS"),
        (lg.Diagonal(np.array([1.0, 2.0])), lg.Neumann(max_steps=0, scale=0.1), "MAX_STEPS"),
    ],
)
@pytest.mark.parametrize("x0", [[3.0, 4.0], [0.9, 0.05], [-0.1, 0.0]])
def test_residual_and_model_are_those_of_x_whatever_the_end(A, solver, status, x0):
    b = np.array([1.0, 0.0])
    with np.errstate(over="ignore"):
        found = lg.solve(A, b, solver, x0=np.array(x0))
        image = A @ found.x if found.x.any() else np.zeros(2)
    assert found.status.name == status
    np.testing.assert_allclose(found.residual, np.linalg.norm(b - image), rtol=1e-9)
    np.testing.assert_allclose(found.model, 0.5 * found.x @ image - b @ found.x, rtol=1e-9, atol=1e-15)
    assert found.residual <= 1.0 + 1e-12
    assert found.history["residual"][-1] == found.residual


def test_a_start_that_is_good_enough_takes_one_product():
    found = lg.solve(lg.Diagonal(np.array([1.0, 2.0])), np.array([1.0, 2.0]), lg.Neumann(), x0=np.ones(2))
    assert (found.status.name, int(found.products)) == ("CONVERGED", 1)
