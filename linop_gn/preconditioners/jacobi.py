"""Jacobi's preconditioner: division by the diagonal of the damped operator.

The diagonal is read off where the operator knows it, computed exactly with n
products where n is small, and otherwise estimated with Rademacher probes z
(Hutchinson, 1990; Bekas, Kokiopoulou and Saad, 2007):

    d = mean of z o A z,        Var d_i = sum_(j != i) a_ij^2 / probes.

An estimate may come out near zero by chance, or negative, and dividing by it
would ruin what the preconditioner is for. Each entry is therefore raised to its
own standard error, which is known from the scatter of the probes.
"""

from __future__ import annotations

from typing import Any

from ..arguments import whole
from ..draws import BITS, check_seed, signs_in, unit_columns, words
from ..operators.base import LinearOperator
from ..operators.damped import undamped
from ..protocols import Array, Scalar, Vector
from ..records import Partial, record, static
from .diagonal import DiagonalRecipe

__all__ = ["Jacobi"]

SMALL = 256
"""Sizes for which ``diagonal="auto"`` spends n products."""


@record
class Jacobi(DiagonalRecipe):
    """1 / (d + damping), with d the diagonal of the undamped operator, exact or estimated.

    Parameters
    ----------
    diagonal : {"auto", "exact", "estimate"}
        Where d comes from. A diagonal that the operator knows (:meth:`LinearOperator.known_diagonal`)
        costs nothing and is always used. Otherwise "exact" takes n products and n^2 numbers for a
        while, "estimate" takes ``probes`` products, and "auto" is exact up to 256 unknowns.
    probes
        Number of Rademacher probes.
    seed
        Of the probes: the same numbers on every framework.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Dense(np.diag([1.0, 1e4, 1e8]) + 0.1, psd=True)
    >>> b = np.ones(3)
    >>> plain, scaled = (lg.solve(A, b, lg.CG(preconditioner=M)) for M in (None, lg.preconditioners.Jacobi()))
    >>> plain.steps > scaled.steps
    True
    """

    diagonal: str = static(default="auto")
    probes: int = static(default=32)
    seed: Scalar = 0

    def __post_init__(self) -> None:
        if self.diagonal not in ("auto", "exact", "estimate"):
            raise ValueError(f"Jacobi: diagonal must be 'auto', 'exact' or 'estimate', got {self.diagonal!r}.")
        object.__setattr__(self, "probes", whole("Jacobi", "probes", self.probes, 1))
        check_seed("Jacobi", self.seed)

    def prepare(self, operator: LinearOperator) -> Any:
        inner, _ = undamped(operator)
        known = inner.known_diagonal()
        if known is not None:
            return known
        ready = inner.prepare()
        if self.exact(inner):
            return inner.backend.call(_exact, ready)
        return inner.backend.call(Partial(_estimate, self.probes), ready, self.seed)

    def cost(self, operator: LinearOperator) -> tuple[int, int]:
        """Products, and numbers held at a time, that :meth:`prepare` takes."""
        inner, n = undamped(operator)[0], operator.domain.size
        if inner.known_diagonal() is not None:
            return 0, n
        return (n, n * n) if self.exact(inner) else (self.probes, 3 * n)

    def exact(self, operator: LinearOperator) -> bool:
        """Whether a diagonal that is not known would be computed exactly, with n products."""
        return self.diagonal == "exact" or (self.diagonal == "auto" and operator.domain.size <= SMALL)


def _exact(operator: LinearOperator) -> Vector:
    eye = unit_columns(operator.domain, 0, operator.domain.size)
    return operator.backend.namespace().sum(operator.matmat(eye) * eye, axis=1)


def _estimate(probes: int, operator: LinearOperator, seed: Scalar) -> Vector:
    xp, ops = operator.backend.namespace(), operator.backend
    total: Any = None
    squares: Any = None
    for first in range(0, probes, BITS):
        bits = words(operator.domain, seed, first // BITS)
        y, yy = ops.sum_over(_probe, range(min(BITS, probes - first)), operator, bits)
        total, squares = (y, yy) if total is None else (total + y, squares + yy)
    mean = total / probes
    if probes == 1:
        return xp.abs(mean)
    scatter = squares / probes - mean * mean
    error = xp.sqrt(xp.where(scatter > 0, scatter, xp.zeros_like(scatter)) / (probes - 1))
    return xp.maximum(xp.abs(mean), error)


def _probe(index: Scalar, operator: LinearOperator, bits: Array) -> tuple[Vector, Vector]:
    z = signs_in(operator.domain, bits, index)
    y = z * operator.matvec(z)
    return y, y * y
