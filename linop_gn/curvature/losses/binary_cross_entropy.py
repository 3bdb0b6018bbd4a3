"""Binary cross-entropy from logits, l(z, y) = log(1 + e^z) - y z.

Written as (1 - y) softplus(z) + y softplus(-z) with softplus = logaddexp(0, .):
both terms are nonnegative, so a small loss keeps its relative accuracy in
float32, and logaddexp is smooth, where the usual max(z, 0) - z y +
log(1 + e^-|z|) has a wrong second derivative under automatic differentiation
at z = 0, which is where a head initialised with zeros starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from ...protocols import Array
from ...records import record
from . import door
from .base import Elementwise

__all__ = ["BinaryCrossEntropy"]


@record
class BinaryCrossEntropy(Elementwise):
    """Cross-entropy of independent yes-or-no answers; *every element* of the outputs is an example.

    Outputs are logits of any shape, targets the same shape, in [0, 1]: booleans,
    integers 0 and 1, or probabilities. The mean is over all elements, as
    torch's ``BCEWithLogitsLoss`` has it; weights broadcast from the left, so
    that weights (N,) weigh the rows of outputs (N, C), and their sum counts
    each of the C elements.

    Examples
    --------
    >>> import numpy as np
    >>> loss = BinaryCrossEntropy()
    >>> z, y = np.array([0.0, 1e4]), np.array([1, 1])
    >>> float(loss.total(np, z, y, None))
    0.6931471805599453
    >>> loss.gradient(np, z, y, None), loss.hessian_product(np, z, y, None, np.ones(2))
    (array([-0.5,  0. ]), array([0.25, 0.  ]))
    """

    name: ClassVar[str] = "binary cross-entropy"
    second_derivative: ClassVar[bool] = True

    def value(self, xp: Any, z: Array, y: Array) -> Array:
        zero = xp.zeros_like(z)
        return (1 - y) * xp.logaddexp(zero, z) + y * xp.logaddexp(zero, -z)

    def slope(self, xp: Any, z: Array, y: Array) -> Array:
        zero = xp.zeros_like(z)
        return (1 - y) * xp.exp(-xp.logaddexp(zero, -z)) - y * xp.exp(-xp.logaddexp(zero, z))

    def drawn_slope(self, xp: Any, z: Array, uniform: Callable[[int], Array]) -> Array:
        p = xp.exp(-xp.logaddexp(xp.zeros_like(z), -z))
        return self.slope(xp, z, xp.astype(uniform(0) < p, z.dtype))

    def curvature(self, xp: Any, z: Array, y: Array) -> Array:
        zero = xp.zeros_like(z)
        return xp.exp(-(xp.logaddexp(zero, z) + xp.logaddexp(zero, -z)))

    def refuse_targets(self, targets: np.ndarray[Any, Any], counted: np.ndarray[Any, Any]) -> None:
        must = "targets must lie in [0, 1] (for signs -1 and 1, pass (y + 1) / 2)"
        door.refuse("BinaryCrossEntropy", ~self.are_targets(np, targets) & counted, targets, must)

    def are_targets(self, xp: Any, y: Array) -> Array:
        return (y >= 0) & (y <= 1)
