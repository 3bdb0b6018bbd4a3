"""Sparse and matrix-free Jacobians: large least squares in little memory, and every form gives the same products."""

import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, aslinearoperator, spsolve

import linop_gn as lg

from .networks import close


class Chain:
    """Residuals of a chain of unknowns: p_i + p_i^3 / 10 - d_i, p_i p_(i+1) - e_i and 2 (p_(i+1) - p_i)."""

    def __init__(self, n, seed=0):
        truth = 1.0 + 0.5 * np.sin(np.linspace(0.0, 20.0, n))
        self.n, self.d, self.e = n, truth + truth**3 / 10, truth[:-1] * truth[1:]
        self.d = self.d + 0.01 * np.random.default_rng(seed).standard_normal(n)

    def residuals(self, p):
        return np.concatenate([p + p**3 / 10 - self.d, p[:-1] * p[1:] - self.e, 2 * (p[1:] - p[:-1])])

    def jacobian(self, p):
        n = self.n
        own = sp.diags_array([1 + 0.3 * p**2], offsets=[0], shape=(n, n))
        pairs = sp.diags_array([p[1:], p[:-1]], offsets=[0, 1], shape=(n - 1, n))
        steps = sp.diags_array([np.full(n - 1, -2.0), np.full(n - 1, 2.0)], offsets=[0, 1], shape=(n - 1, n))
        return sp.vstack([own, pairs, steps]).tocsr()

    def objective(self, wrap=lambda J: J):
        return lg.Objective.from_residuals(self.residuals, jacobian=lambda p: wrap(self.jacobian(p)))


def by_functions(J):
    return LinearOperator(J.shape, matvec=lambda v: J @ v, rmatvec=lambda u: J.T @ u, dtype=J.dtype)


def by_pylops(J):
    return pytest.importorskip("pylops").MatrixMult(J, dtype="float64")


FORMS = {
    "dense": lambda J: J.toarray(),
    "csr_array": lambda J: J,
    "csc_array": lambda J: J.tocsc(),
    "coo_matrix": lambda J: sp.coo_matrix(J),
    "SciPy operator of a matrix": aslinearoperator,
    "SciPy operator of functions": by_functions,
    "PyLops operator": by_pylops,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_products(form):
    chain = Chain(9)
    p = np.linspace(0.5, 1.5, 9)
    made, J = chain.objective(FORMS[form]), chain.jacobian(p).toarray()
    close(lg.GGN(made, p).to_dense(), J.T @ J, 1e-14)
    close(lg.Jacobian(made, p).to_dense(), J, 1e-14)
    close(lg.Jacobian(made, p).T.to_dense(), J.T, 1e-14)
    close(made.gradient(p), J.T @ chain.residuals(p), 1e-14)
    assert lg.validate(lg.GGN(made, p)).passed


def test_single_precision_stays_what_it_is():
    chain, p = Chain(9), np.linspace(0.5, 1.5, 9, dtype=np.float32)
    made = lg.Objective.from_residuals(
        lambda p: chain.residuals(p).astype(np.float32), jacobian=lambda p: chain.jacobian(p.astype(float))
    )
    G = lg.GGN(made, p)
    assert (G @ np.ones(9, np.float32)).dtype == np.float32
    J = chain.jacobian(p.astype(float)).toarray()
    close(G.to_dense(), J.T @ J, 1e-6)


def test_a_hundred_thousand_residuals_in_little_memory():
    chain = Chain(33_334)
    start = np.ones(chain.n)
    assert chain.residuals(start).size == 100_000
    tracemalloc.start()
    fit = lg.minimize(
        chain.objective(), start, lg.LevenbergMarquardt(solver=lg.CG(rtol=1e-8, max_steps=200), rtol=1e-10)
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert fit.status is lg.Status.REDUCED, fit
    assert peak < 60e6  # J alone takes 2.4 MB; dense, it would take 27 GB

    p = start
    for _ in range(12):  # Gauss-Newton by a sparse factorisation
        J, r = chain.jacobian(p), chain.residuals(p)
        p = p - spsolve((J.T @ J).tocsc(), J.T @ r)
    close(fit.params, p, 1e-7)


def test_jacobians_of_other_libraries_are_refused():
    class Odd:
        shape = (3, 2)

        def __matmul__(self, v):
            return "nothing"

        T = property(lambda self: self)

    made = lg.Objective.from_residuals(lambda p: np.ones(3) * p[0], jacobian=lambda p: Odd())
    with pytest.raises(TypeError, match="jacobian"):
        made.gradient(np.ones(2))


def test_a_jacobian_that_is_not_finite_is_refused():
    chain = Chain(5)

    def broken(p):
        J = chain.jacobian(p)
        J.data[3] = np.nan
        return J

    made = lg.Objective.from_residuals(chain.residuals, jacobian=broken)
    result = lg.minimize(made, np.ones(5))
    assert not result.succeeded
    np.testing.assert_array_equal(result.params, np.ones(5))
