"""Jacobians by finite differences, for functions that nothing can differentiate: at the doors of fits only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..protocols import Array, Tree, Vector
from ..spaces import Space

__all__ = ["Differences"]


class Differences:
    """The Jacobian by finite differences, forward or central, with steps relative to x, or to x0 where that is larger.

    Where a bound is in the way both look inwards: (f(x + h) - f(x)) / h, and (4 f(x + h) - f(x + 2 h) - 3 f(x)) / 2 h.
    """

    def __init__(
        self, space: Space, function: Callable[..., Array], central: bool, step: float | None, box: Any
    ) -> None:
        self.space, self.function, self.central, self.step = space, function, central, step
        self.start, self.lower, self.upper = box

    def __call__(self, x: Tree, *data: Any) -> Array:
        space, ops = self.space, self.space.backend
        xp, flat = ops.namespace(), space.pack(x)
        one, zero = xp.ones_like(flat), xp.zeros_like(flat)
        relative = self.step or ops.eps(flat) ** (1 / 3 if self.central else 1 / 2)
        size = xp.where(abs(flat) > abs(self.start), abs(flat), abs(self.start))
        h, inward = relative * xp.where(size > 0, size, one), zero != zero
        if self.lower is not None:
            above, below = self.upper - flat, flat - self.lower
            inward = (h > above) | (h > below)
            room = xp.where(above > below, above, below) * (0.5 if self.central else 1.0)
            h = xp.where(h > room, room, h) * xp.where(above < below, -one, one)
        eye, columns = ops.identity(space.size, flat), []

        def at(step: Vector) -> Vector:
            return xp.reshape(self.function(space.unpack(flat + step), *data), (-1,))

        base = at(zero)
        for j in range(space.size):
            step = eye[j, :] * h
            taken = float(xp.sum((flat + step) - flat))  # what is left of it once it is added
            if taken == 0:  # there is no room
                columns.append(0.0 * base)
            elif not self.central:
                columns.append((at(step) - base) / taken)
            elif bool(inward[j]):
                columns.append((4.0 * at(step) - at(2.0 * step) - 3.0 * base) / (2.0 * taken))
            else:
                columns.append((at(step) - at(-step)) / (2.0 * taken))
        return xp.stack(columns, axis=1)
