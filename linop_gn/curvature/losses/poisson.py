"""Poisson regression with log-rates, l(z, y) = e^z - y z."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ...protocols import Array
from ...records import record
from . import door
from .base import Elementwise

__all__ = ["Poisson"]


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
    """

    name: ClassVar[str] = "Poisson negative log-likelihood"

    def value(self, xp: Any, z: Array, y: Array) -> Array:
        return xp.exp(z) - y * z

    def slope(self, xp: Any, z: Array, y: Array) -> Array:
        return xp.exp(z) - y

    def curvature(self, xp: Any, z: Array, y: Array) -> Array:
        return xp.exp(z)

    def refuse_targets(self, targets: np.ndarray[Any, Any], counted: np.ndarray[Any, Any]) -> None:
        door.refuse("Poisson", (targets < 0) & counted, targets, "counts must not be negative")
