"""Squared error, l(z, y) = c |z - y|^2: H_L = 2c I, and least squares with c = 1/2."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, ClassVar

from ...protocols import Array
from ...records import record
from .base import Elementwise
from .weighting import number

__all__ = ["SquaredError"]


@record
class SquaredError(Elementwise):
    """``scale`` times the squared distance between output and target; an example is an entry of the *first* axis.

    Outputs are (N,) or (N, ...), targets the same shape, or None for zeros: the
    outputs are then residuals, and with ``reduction="sum"`` the objective is
    that of nonlinear least squares, 1/2 |r|^2, whose Gauss-Newton operator is
    J^T J.

    torch's ``MSELoss`` also divides by the number C of outputs of an example:
    it is ``SquaredError(scale=1 / C)``.

    Parameters
    ----------
    scale : float
        The positive c: a number, or a 0-d array (it is data: another
        value compiles nothing anew).

    Examples
    --------
    >>> import numpy as np
    >>> z, y = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 0.0], [3.0, 1.0]])
    >>> loss = SquaredError()
    >>> float(loss.total(np, z, y, None)), float(loss.weight_sum(np, z, y, None))
    (6.5, 2.0)
    >>> loss.gradient(np, z, y, np.array([True, False]))
    array([[0., 2.],
           [0., 0.]])
    """

    name: ClassVar[str] = "squared error"
    second_derivative: ClassVar[bool] = True
    example_axes: ClassVar[int | None] = 1
    targets_optional: ClassVar[bool] = True
    limits = MappingProxyType({"scale": ("be positive and finite", lambda c: 0 < c < math.inf)})

    scale: float | Array = 0.5

    def value(self, xp: Any, z: Array, y: Array) -> Array:
        r = z if y is None else z - y
        return number(xp, self.scale, z) * r * r

    def slope(self, xp: Any, z: Array, y: Array) -> Array:
        return 2 * number(xp, self.scale, z) * (z if y is None else z - y)

    def drawn_slope(self, xp: Any, z: Array, uniform: Callable[[int], Array]) -> Array:
        normal = xp.sqrt(-2.0 * xp.log(uniform(0))) * xp.cos(2.0 * math.pi * uniform(1))
        return (2 * number(xp, self.scale, z)) ** 0.5 * xp.astype(normal, z.dtype, copy=False)

    def curvature(self, xp: Any, z: Array, y: Array) -> Any:
        return 2 * number(xp, self.scale, z)
