"""Solvers for A x = b: each a method without a loop, one file each."""

from .blockwise import Blockwise
from .cg import CG
from .direct import LU, Cholesky, Eigh
from .forcing import EisenstatWalker
from .gram import GramSolve
from .lsmr import LSMR
from .lsqr import LSQR
from .minres import MINRES
from .neumann import Neumann
from .problem import LinearProblem
from .stopping import AnyOf, MaxResidual, RelativeProgress, RelativeResidual

__all__ = [
    "CG",
    "LSMR",
    "LSQR",
    "LU",
    "MINRES",
    "AnyOf",
    "Blockwise",
    "Cholesky",
    "Eigh",
    "EisenstatWalker",
    "GramSolve",
    "LinearProblem",
    "MaxResidual",
    "Neumann",
    "RelativeProgress",
    "RelativeResidual",
]
