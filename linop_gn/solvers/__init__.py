"""Solvers for A x = b: each a method without a loop, one file each."""

from .cg import CG
from .problem import LinearProblem

__all__ = ["CG", "LinearProblem"]
