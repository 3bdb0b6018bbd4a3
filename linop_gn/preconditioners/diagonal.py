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
from ..records import record
from .base import Checked, damped_by

__all__ = ["DiagonalRecipe"]


@record
class DiagonalRecipe(Checked):
    """Base class: :meth:`prepare` gives d (n,)."""

    exponent: ClassVar[Any] = 1.0
    """a in (d + damping)^-a."""

    def finish(self, prepared: Any, operator: LinearOperator) -> LinearOperator:
        space, xp = operator.domain, operator.backend.namespace()
        e = damped_by(space, xp.abs(prepared), undamped(operator)[1])
        least = 4.0 * float(xp.finfo(e.dtype).smallest_normal)  # its inverse is finite
        good = (e > least) & xp.isfinite(e)
        largest = xp.max(xp.where(good, e, xp.zeros_like(e)))
        neutral = xp.where(largest > 0, largest, xp.ones_like(largest))
        values = operator.backend.cast(xp.where(good, e, neutral) ** -self.exponent, space.dtype)
        # In a trace nobody knows how a flat array lies over devices, and a tree is laid out.
        return Diagonal(values if space.layout is None else space.unpack(values), psd=True, domain=space)
