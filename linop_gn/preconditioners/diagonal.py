"""Preconditioners that are diagonals: what they have in common.

A recipe estimates d, roughly the diagonal of the undamped operator, and the
preconditioner is diag((d + damping)^-a). It is positive definite whatever d is:
an entry for which |d| + damping is zero, not finite, or too small to be divided
by gets the smallest step among the others instead.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ..operators.base import LinearOperator
from ..operators.damped import undamped
from ..operators.diagonal import Diagonal
from ..protocols import Scalar, Vector
from ..records import record
from ..spaces import Space
from .base import Checked, damped_by

__all__ = ["DiagonalRecipe", "inverse_power"]


@record
class DiagonalRecipe(Checked):
    """Base class: :meth:`prepare` gives d (n,)."""

    exponent: ClassVar[Any] = 1.0
    """a in (d + damping)^-a."""

    def finish(self, kept: Any, operator: LinearOperator) -> LinearOperator:
        space = operator.domain
        return Diagonal(inverse_power(space, kept, undamped(operator)[1], self.exponent), psd=True, domain=space)


def inverse_power(space: Space, d: Vector, damping: Scalar, power: Scalar) -> Vector:
    """(|d| + damping)^-power (n,), positive and finite."""
    xp = space.backend.namespace()
    e = damped_by(space, xp.abs(d), damping)
    least = 4.0 * float(xp.finfo(e.dtype).smallest_normal)  # its inverse is finite
    good = (e > least) & xp.isfinite(e)
    largest = xp.max(xp.where(good, e, xp.zeros_like(e)))
    neutral = xp.where(largest > 0, largest, xp.ones_like(largest))
    made: Vector = space.backend.cast(xp.where(good, e, neutral) ** -power, space.dtype)
    return made
