"""Solvers for A x = b: each a method without a loop, one file each."""

from .cg import CG
from .minres import MINRES
from .problem import LinearProblem

__all__ = ["CG", "MINRES", "LinearProblem"]
