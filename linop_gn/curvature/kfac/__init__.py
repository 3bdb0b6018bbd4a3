"""Kronecker-factored approximations of the Gauss-Newton operator and of Fisher operators."""

from .operators import EKFAC, KFAC

__all__ = ["EKFAC", "KFAC"]
