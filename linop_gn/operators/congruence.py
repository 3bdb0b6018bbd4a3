"""S A S with S diagonal: a symmetric operator in other units of the vectors."""

from __future__ import annotations

from ..protocols import Vector
from ..records import record
from .algebra import Modified

__all__ = ["Congruence"]


@record
class Congruence(Modified):
    """S A S, S = diag(units) with no unit negative: what A is to z = S^-1 x.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Dense(np.array([[2.0, 1.0], [1.0, 3.0]]), symmetric=True)
    >>> Congruence(A, np.array([1.0, 10.0])) @ np.array([1.0, 1.0])
    array([ 12., 310.])
    """

    units: Vector

    @property
    def psd(self) -> bool:
        return self.operator.psd

    def matvec(self, v: Vector) -> Vector:
        return self.units * self.operator.matvec(self.units * v)

    def matmat(self, v: Vector) -> Vector:
        return self.units[:, None] * self.operator.matmat(self.units[:, None] * v)

    def rmatvec(self, u: Vector) -> Vector:
        return self.units * self.operator.rmatvec(self.units * u)

    def rmatmat(self, u: Vector) -> Vector:
        return self.units[:, None] * self.operator.rmatmat(self.units[:, None] * u)

    def known_diagonal(self) -> Vector | None:
        inner = self.operator.known_diagonal()
        return None if inner is None else self.units * self.units * inner
