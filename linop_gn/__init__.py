"""Linear operators for the curvature of a model, and the solvers that take them.

One source runs on NumPy, JAX, PyTorch and any array-API library: the backend
follows from the arrays that operators and vectors are made of.

>>> import numpy as np, linop_gn as lg
>>> A = lg.Damped(lg.Dense(np.array([[2.0, 1.0], [1.0, 2.0]]), psd=True), 1.0)
>>> lg.solve(A, np.array([5.0, 7.0]), lg.CG(rtol=1e-10)).x.round(6)
array([1., 2.])
"""

import sys as _sys
from typing import Any as _Any

from . import distributed, preconditioners, tree
from . import moved as _moved
from .adaptors.complex_numbers import as_complex, as_real, complex_operator
from .adaptors.lineax import from_lineax, to_lineax
from .adaptors.scipy_minimize import scipy_method, scipy_problem
from .adaptors.transformations import to_optax
from .advise import Advice, advise
from .cost import Costs, cost
from .curvature import (
    EKFAC,
    GGN,
    KFAC,
    BlockGGN,
    EmpiricalFisher,
    Fisher,
    Gram,
    Hessian,
    Jacobian,
    LossHessian,
    MissingDerivativeError,
    Objective,
    gradient_norms,
    losses,
)
from .curve_fit import curve_fit
from .dispatch import available, backend_of, load, namespace, register
from .interop import from_scipy, to_scipy
from .lanczos.basis import Krylov, krylov
from .lanczos.gltr import GLTR
from .lanczos.process import Lanczos
from .least_squares import LeastSquaresResult, least_squares
from .methods import (
    EGN,
    SGN,
    ConstantDamping,
    FirstOrder,
    GaussNewton,
    HessianFree,
    InnerGaussNewton,
    LayerwiseGaussNewton,
    LevenbergMarquardt,
    Linearised,
    Marquardt,
    Method,
    Newton,
    NewtonCG,
    Nielsen,
    ProxLinear,
    SecondOrder,
    StepData,
    TrustRegion,
    averaged,
    controls,
    descents,
    optimisers,
    searches,
)
from .methods.checkpoint import save_state
from .methods.state import State
from .minimize import advance, load_state, minimize, result, start
from .operators import (
    BlockDiagonal,
    Damped,
    Dense,
    Diagonal,
    FunctionOperator,
    Identity,
    KroneckerBlocks,
    LinearOperator,
    LowRank,
    Submatrix,
)
from .records import record, replace, static
from .run.loop import Look
from .run.plot import plot_runs
from .run.solution import History, Result, Solution
from .run.status import Status
from .run.watch import Budget, ProgressBar, Recorder, stop_when
from .solve import solve, steps
from .solvers import CG, LSMR, LSQR, MINRES, LinearProblem
from .solvers.base import Cost, Solver
from .solvers.blockwise import Blockwise
from .solvers.direct import LU, Cholesky, Eigh
from .solvers.forcing import EisenstatWalker
from .solvers.gram import GramSolve
from .solvers.inverse import inverse
from .solvers.multishift import MultiShiftCG
from .solvers.neumann import Neumann
from .solvers.steihaug import Steihaug
from .solvers.stopping import AnyOf, MaxResidual, RelativeProgress, RelativeResidual
from .spaces import Space
from .spectral.condition import condition_number
from .spectral.density import Density, jensen_shannon, spectral_density
from .spectral.diagonal import diagonal
from .spectral.eigsh import Eigenpairs, eigsh
from .spectral.estimate import Estimate
from .spectral.frobenius import frobenius_norm
from .spectral.functions import Approximation, inverse_quadratic, matrix_function
from .spectral.logdet import logdet
from .spectral.svds import SingularTriplets, svds
from .spectral.trace import trace
from .validation import Report, ValidationError, validate

__version__ = "0.1.0"


def __getattr__(name: str) -> _Any:
    """Estimators, at whose first use scikit-learn is imported."""
    if name in ("LMRegressor", "NewtonClassifier"):
        from .adaptors import estimators

        return getattr(estimators, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_sys.meta_path.append(_moved.OldPaths())

__all__ = [
    "CG",
    "EGN",
    "EKFAC",
    "GGN",
    "GLTR",
    "KFAC",
    "LSMR",
    "LSQR",
    "LU",
    "MINRES",
    "SGN",
    "Advice",
    "AnyOf",
    "Approximation",
    "BlockDiagonal",
    "BlockGGN",
    "Blockwise",
    "Budget",
    "Cholesky",
    "ConstantDamping",
    "Cost",
    "Costs",
    "Damped",
    "Dense",
    "Density",
    "Diagonal",
    "Eigenpairs",
    "Eigh",
    "EisenstatWalker",
    "EmpiricalFisher",
    "Estimate",
    "FirstOrder",
    "Fisher",
    "FunctionOperator",
    "GaussNewton",
    "Gram",
    "GramSolve",
    "Hessian",
    "HessianFree",
    "History",
    "Identity",
    "InnerGaussNewton",
    "Jacobian",
    "KroneckerBlocks",
    "Krylov",
    "LMRegressor",
    "Lanczos",
    "LayerwiseGaussNewton",
    "LeastSquaresResult",
    "LevenbergMarquardt",
    "LinearOperator",
    "LinearProblem",
    "Linearised",
    "Look",
    "LossHessian",
    "LowRank",
    "Marquardt",
    "MaxResidual",
    "Method",
    "MissingDerivativeError",
    "MultiShiftCG",
    "Neumann",
    "Newton",
    "NewtonCG",
    "NewtonClassifier",
    "Nielsen",
    "Objective",
    "ProgressBar",
    "ProxLinear",
    "Recorder",
    "RelativeProgress",
    "RelativeResidual",
    "Report",
    "Result",
    "SecondOrder",
    "SingularTriplets",
    "Solution",
    "Solver",
    "Space",
    "State",
    "Status",
    "Steihaug",
    "StepData",
    "Submatrix",
    "TrustRegion",
    "ValidationError",
    "__version__",
    "advance",
    "advise",
    "as_complex",
    "as_real",
    "available",
    "averaged",
    "backend_of",
    "complex_operator",
    "condition_number",
    "controls",
    "cost",
    "curve_fit",
    "descents",
    "diagonal",
    "distributed",
    "eigsh",
    "frobenius_norm",
    "from_lineax",
    "from_scipy",
    "gradient_norms",
    "inverse",
    "inverse_quadratic",
    "jensen_shannon",
    "krylov",
    "least_squares",
    "load",
    "load_state",
    "logdet",
    "losses",
    "matrix_function",
    "minimize",
    "namespace",
    "optimisers",
    "plot_runs",
    "preconditioners",
    "record",
    "register",
    "replace",
    "result",
    "save_state",
    "scipy_method",
    "scipy_problem",
    "searches",
    "solve",
    "spectral_density",
    "start",
    "static",
    "steps",
    "stop_when",
    "svds",
    "to_lineax",
    "to_optax",
    "to_scipy",
    "trace",
    "tree",
    "validate",
]
