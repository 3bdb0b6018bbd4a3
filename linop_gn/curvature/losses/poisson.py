"""Poisson regression with log-rates, l(z, y) = e^z - y z.

Counts of a rate r are drawn from two uniform numbers. Below 12 by inversion, y = #{j >= 1: v < P(Y >= j)}, with the
tails of 40 terms, S_(j+1) = S_j - p_j, of which rounding leaves S_(j+1) <= S_j r / (j + 1). From 12 on they are the
expansion of Cornish and Fisher (1938) in a normal number g, rounded,

    y = [r + b g + c (g^2 - 1) - d g^3],    c = 1/6,  d = 1/(72 sqrt(r)),  b = 3 d + (r - 1/12 - 2 c^2 - 6 d^2)^(1/2),

where b is such that mean and variance are r: rounding adds 1/12 (Sheppard). What matters for a Fisher matrix is exact
so, to 2e-6 of r; as a distribution it differs from Poisson's by 4e-4 in all at 12, and by less above.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from ...protocols import Array
from ...records import record
from . import door
from .base import Elementwise

__all__ = ["Poisson"]

_FEW = 12.0
"""Rates below that are drawn by inversion."""
_TERMS = 40
"""Of such a rate more counts than that come once in 10^10 draws."""
_WHOLE = 2.0**20
"""From this rate on counts are not rounded: the rate itself is, in float32."""


@record
class Poisson(Elementwise):
    """Negative log-likelihood of counts y whose rate is e^z; *every element* of the outputs is an example.

    Outputs are log-rates of any shape, targets the same shape and not negative
    (counts, or real numbers). The constant log(y!) is left out: it changes no
    derivative and no difference of values, but the loss may be negative.
    torch's ``PoissonNLLLoss`` with its defaults is the same function. Unlike
    the other losses, this one really overflows: in float32 for z above 88.

    Examples
    --------
    >>> import numpy as np
    >>> loss = Poisson(reduction="sum")
    >>> z, y = np.array([0.0, 0.0]), np.array([1, 3])
    >>> float(loss.total(np, z, y, None)), loss.gradient(np, z, y, None)
    (2.0, array([ 0., -2.]))

    Of counts drawn at the rate 1, by two uniform numbers each, the slopes are 1 - y:

    >>> u = np.array([[0.2, 0.4, 0.99], [0.5, 0.5, 0.5]])
    >>> 1 - loss.drawn_slope(np, np.zeros(3), lambda k: u[k])
    array([2., 1., 0.])
    """

    name: ClassVar[str] = "Poisson negative log-likelihood"
    second_derivative: ClassVar[bool] = True

    def value(self, xp: Any, z: Array, y: Array) -> Array:
        return xp.exp(z) - y * z

    def slope(self, xp: Any, z: Array, y: Array) -> Array:
        return xp.exp(z) - y

    def drawn_slope(self, xp: Any, z: Array, uniform: Callable[[int], Array]) -> Array:
        u, v = uniform(0), uniform(1)
        rate = xp.exp(xp.astype(z, u.dtype, copy=False))
        few = rate < _FEW
        small, large = xp.where(few, rate, xp.ones_like(rate)), xp.where(few, xp.full_like(rate, _FEW), rate)
        return xp.where(few, _slope_of_few(xp, small, u, v), _slope_of_many(xp, large, u, v))

    def curvature(self, xp: Any, z: Array, y: Array) -> Array:
        return xp.exp(z)

    def refuse_targets(self, targets: np.ndarray[Any, Any], counted: np.ndarray[Any, Any]) -> None:
        door.refuse("Poisson", ~self.are_targets(np, targets) & counted, targets, "counts must not be negative")

    def are_targets(self, xp: Any, y: Array) -> Array:
        return y >= 0


def _slope_of_few(xp: Any, rate: Array, u: Array, v: Array) -> Array:
    """The rate minus a count drawn by inversion."""
    fine = (u - 2.0**-24) + 2.0**-23 * v  # of 46 bits, in units of the last where it is small
    slope, tail, term = rate, -xp.expm1(-rate), xp.exp(-rate)
    for j in range(1, _TERMS + 1):
        slope = xp.where(fine < tail, slope - 1.0, slope)
        term = term * (rate / j)
        tail = xp.minimum(tail - term, tail * (rate / (j + 1)))
    return slope


def _slope_of_many(xp: Any, rate: Array, u: Array, v: Array) -> Array:
    """The rate minus a rounded polynomial of a normal number, of the right mean and variance."""
    g = xp.sqrt(-2.0 * xp.log(u)) * xp.cos(2.0 * math.pi * v)
    c, d = 1.0 / 6.0, 1.0 / (72.0 * xp.sqrt(rate))
    b = 3.0 * d + xp.sqrt(rate - (1.0 / 12.0 + 2.0 * c * c) - 6.0 * d * d)
    away = g * (b + g * (c - d * g)) - c
    return xp.where(rate < _WHOLE, xp.minimum(rate, rate - xp.floor(rate + away + 0.5)), -away)
