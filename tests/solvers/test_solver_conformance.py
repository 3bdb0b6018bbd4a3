"""Every solver keeps every law of the kit, and so does the one that the docs' page writes."""

import numpy as np
import pytest
from systems import FULL
from written import Richardson

import linop_gn as lg

EACH_IN_CI_ON_JAX = ("test_every_law",)

conformance = pytest.importorskip("linop_gn.testing.conformance")
SolverConformance, check_solver = conformance.SolverConformance, conformance.check_solver


class LeastSquares(SolverConformance):
    kinds = ("general", "definite", "tall")

    def promised(self, matrix, b, x, rtol):
        return 0.1 * rtol * (np.linalg.norm(b) + np.linalg.norm(matrix, 2) * np.linalg.norm(x))


class Direct(SolverConformance):
    def promised(self, matrix, b, x, rtol):
        """Without a tolerance of its own: sqrt(eps) ||b|| is what it promises."""
        return max(rtol, 2.0**-26) * np.linalg.norm(b)


class Gram(SolverConformance):
    """W^T W + damping I as a damped Gauss-Newton operator."""

    counts = False  # a pair of products with J and J^T, or one with J^T alone, is one
    spreads = (0.0, 1.0, 3.0)

    def test_products_that_are_not_finite(self):
        """Functions have no Gram form."""

    def test_zero_right_hand_side(self):
        """K is formed all the same."""
        A, _, b = self.system()
        found = self.solve(A, 0 * b)
        assert (found.status, int(found.steps)) == (lg.Status.CONVERGED, 0)

    def test_claims_near_rounding(self):
        """W^T W is not that diagonal to the last bit."""

    def operator(self, matrix, kind, dtype):
        damping = 0.5 * np.linalg.eigvalsh(matrix)[0]
        rest, vectors = np.linalg.eigh(matrix - damping * np.eye(len(matrix)))
        W = self.array(np.sqrt(np.maximum(rest, 0.0))[:, None] * vectors.T, dtype)
        data = {} if self.ops.calculus is not None else {"jacobian": _jacobian}
        line = lg.Objective.from_residuals(_residuals, W, **data)
        return lg.Damped(lg.GGN(line, self.array(np.zeros(len(matrix)), dtype)), damping)


def _residuals(w, W):
    return W @ w - 1.0


def _jacobian(w, W):
    return W


def krylov(rtol):
    return lg.Lanczos(steps=5)


JACOBI = lg.preconditioners.Jacobi()
ANY = {"kinds": ("definite", "indefinite")}
SOLVERS = {
    "CG": (lambda rtol: lg.CG(rtol=rtol), {}),
    "CG, a rule": (lambda rtol: lg.CG(stop=lg.AnyOf(lg.RelativeResidual(rtol), lg.RelativeProgress(1e-30))), {}),
    "CG, preconditioned": (
        lambda rtol: lg.CG(rtol=rtol, preconditioner=lg.preconditioners.Jacobi()),
        {"counts": False},
    ),
    "CG, one reduction": (lambda rtol: lg.CG(rtol=rtol, reductions=1), {}),
    "CG, kept": (lambda rtol: lg.CG(rtol=rtol, max_steps=50, keep="every"), {}),
    "MINRES": (lambda rtol: lg.MINRES(rtol=rtol), ANY),
    "LSMR": (lambda rtol: lg.LSMR(atol=rtol / 10, btol=rtol / 10), {"kit": LeastSquares}),
    "LSQR": (lambda rtol: lg.LSQR(atol=rtol / 10, btol=rtol / 10), {"kit": LeastSquares}),
    "Steihaug": (lambda rtol: lg.Steihaug(radius=np.inf, rtol=rtol), {}),
    "GLTR": (lambda rtol: lg.GLTR(radius=np.inf, rtol=rtol), {}),
    "Lanczos": (krylov, {}),
    "Cholesky": (lambda rtol: lg.Cholesky(), {"kit": Direct}),
    "LU": (lambda rtol: lg.LU(), {"kit": Direct, "kinds": ("general", "definite", "indefinite")}),
    "Eigh": (lambda rtol: lg.Eigh(), {"kit": Direct, **ANY}),
    "Gram": (lambda rtol: lg.GramSolve(rtol=rtol), {"kit": Gram}),
    "Neumann": (lambda rtol: lg.Neumann(rtol=rtol), {}),
    "Neumann, scaled": (lambda rtol: lg.Neumann(rtol=rtol, scale=0.5), {"spreads": (0.0, 1.0, 3.0)}),
    "Richardson": (lambda rtol: Richardson(rtol=rtol), {"powers": 40}),
}
COMPILED = ("CG", "Richardson")
OF_A_BACKEND = ("ends", "solves", "zero_right_hand_side", "columns", "a_start", "scale", "nothing_is_written_to")
"""What another library may spoil of a solver that keeps every law on NumPy."""


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", SOLVERS)
def test_every_law(backend, name):
    if "compiled" in backend.capabilities and name not in COMPILED:
        pytest.skip("each law is a program; these solvers have all there is to compile")
    make, options = SOLVERS[name]
    few = backend.name in ("array_api_strict", "torch") and name != "CG" and not FULL
    report = check_solver(make, backend, only=OF_A_BACKEND if few else None, **options)
    assert report.passed, report
