"""Derivatives along a direction, by central differences that know how far to trust themselves.

Central differences D(h) = (f(h) - f(-h)) / 2h are extrapolated to h = 0 (Ridders,
1982): with steps h, h/3, h/9, ... the errors of order h^2, h^4, ... are eliminated
one by one, and the change from one entry of the tableau to the next says how large
the error left is.

Large steps are only right where f is smooth. A network with ReLUs isn't: its
gradient jumps wherever a unit switches, and differences across many jumps converge
to something that is no derivative. So a second value is taken at small steps, where
no unit switches but rounding is larger, and the extrapolated one counts only where
both agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .measure import norm

__all__ = ["Derivative", "along", "derivative"]

NDArray = np.ndarray[Any, Any]

LARGEST_STEP = 0.1
RATIO = 3.0
LEVELS = 9


class Derivative(NamedTuple):
    """A derivative and an estimate of the norm of its error."""

    value: NDArray
    uncertainty: float

    @property
    def relative(self) -> float:
        """The uncertainty relative to the value's norm (infinite for the zero vector, unless it is known exactly)."""
        if not self.uncertainty:
            return 0.0
        size = norm(self.value)
        return self.uncertainty / size if size else float("inf")


def derivative(f: Callable[[float], NDArray], eps: float = 2.0**-52) -> Derivative:
    """d/dh f(h) at h = 0, for f computed to a relative accuracy of about ``eps``; h = 1 is a large step.

    >>> made = derivative(lambda h: np.array([np.exp(2 * h), np.sin(h)]))
    >>> made.value.round(9), made.relative < 1e-9
    (array([2., 1.]), True)
    """
    small = _at_small_steps(f, eps)
    best = small
    table: list[Derivative] = []
    for level in range(LEVELS):
        row = [_central(f, LARGEST_STEP / RATIO**level, eps)]
        for j, previous in enumerate(table):
            factor = RATIO ** (2 * (j + 1))
            value = (factor * row[j].value - previous.value) / (factor - 1)
            change = max(norm(value - row[j].value), norm(value - previous.value))
            row.append(Derivative(value, max(change, row[0].uncertainty)))
        table = row
        candidate = min(row[1:], key=lambda made: made.uncertainty, default=None)
        if candidate is None or candidate.uncertainty >= best.uncertainty:
            continue
        if norm(candidate.value - small.value) <= 10 * (candidate.uncertainty + small.uncertainty):
            best = candidate
        if best.uncertainty <= 10 * row[0].uncertainty:
            break  # smaller steps have larger rounding
    return best


def along(f: Callable[[NDArray], NDArray], x: NDArray, v: NDArray, eps: float) -> Derivative:
    """The derivative of f at x along v, flat; v as it is is a large step."""
    return derivative(lambda t: f(x + t * v).reshape(-1), eps)


def _central(f: Callable[[float], NDArray], h: float, eps: float) -> Derivative:
    """D(h), with what rounding leaves uncertain of it."""
    ahead, behind = f(h), f(-h)
    return Derivative((ahead - behind) / (2 * h), eps * max(norm(ahead), norm(behind)) / h)


def _at_small_steps(f: Callable[[float], NDArray], eps: float) -> Derivative:
    """D(h) where truncation and rounding are both small, by two steps that have to agree."""
    h = float(eps ** (1 / 3)) / 2
    one, two = _central(f, h, eps), _central(f, h / 4, eps)
    change = norm(one.value - two.value)
    return Derivative(one.value, max(change, one.uncertainty))
