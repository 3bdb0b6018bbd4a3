"""Solvers for A x = b: each a method without a loop, one file each."""

from .blockwise import Blockwise
from .cg import CG
from .forcing import EisenstatWalker
from .lsmr import LSMR
from .lsqr import LSQR
from .minres import MINRES
from .problem import LinearProblem
from .stopping import AnyOf, MaxResidual, RelativeProgress, RelativeResidual

__all__ = [
    "CG",
    "LSMR",
    "LSQR",
    "MINRES",
    "AnyOf",
    "Blockwise",
    "EisenstatWalker",
    "LinearProblem",
    "MaxResidual",
    "RelativeProgress",
    "RelativeResidual",
]
