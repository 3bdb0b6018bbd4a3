"""Rules that turn the gain ratio of a step into the next damping.

With predicted decrease m > 0 and actual decrease a, the gain ratio is
rho = a / m: near 1 the quadratic model is trustworthy and the damping falls;
small or negative, it rises.
"""

from __future__ import annotations

from typing import Any

from ..arguments import require_number
from ..protocols import Backend, Scalar
from ..records import record
from .controls import Control

__all__ = ["ConstantDamping", "Marquardt", "Nielsen"]


@record
class Marquardt(Control):
    """Two thresholds, two factors (Marquardt, 1963; these values as in Martens, 2010).

    rho < low: damping times ``increase``; rho > high: damping times ``decrease``; between them no change. It never
    falls below ``floor``.
    """

    low: Scalar = 0.25
    high: Scalar = 0.75
    increase: Scalar = 1.5
    decrease: Scalar = 2.0 / 3.0
    floor: Scalar = 0.0

    def __post_init__(self) -> None:
        for name in ("low", "high", "increase", "decrease", "floor"):
            require_number("Marquardt", name, getattr(self, name))
        if (self.increase < 1) is True or (self.decrease > 1) is True or (self.low > self.high) is True:
            raise ValueError(
                "Marquardt: increase must be at least 1, decrease at most 1, and low at most high, got "
                f"{self.increase}, {self.decrease}, {self.low} and {self.high}."
            )

    def update(self, ops: Backend, damping: Scalar, growth: Scalar, ratio: Scalar) -> tuple[Scalar, Scalar]:
        """The next damping, and the growth to apply at the next failure (not used here)."""
        failed = ops.logical_not(ratio >= self.low)  # NaN counts as failure
        change = ops.where(failed, self.increase, ops.where(ratio > self.high, self.decrease, 1.0))
        return ops.maximum(damping * change, self.floor), growth


@record
class Nielsen(Control):
    """Smooth decrease, and increase that doubles with every failure in a row (Nielsen, 1999).

    Success: damping times max(1/3, 1 - (2 rho - 1)^3); failure: damping times
    2, 4, 8, ... Finds its way from an initial damping that is wrong by many
    orders of magnitude.
    """

    least: Scalar = 1.0 / 3.0

    def __post_init__(self) -> None:
        require_number("Nielsen", "least", self.least, below=1.0)

    def update(self, ops: Backend, damping: Scalar, growth: Scalar, ratio: Scalar) -> tuple[Scalar, Scalar]:
        """The next damping, and the growth to apply at the next failure."""
        success = ratio > 0
        bounded = ops.minimum(ops.maximum(ops.where(success, ratio, 0.0), 0.0), 2.0)
        excess = 2.0 * bounded - 1.0
        shrink = ops.maximum(self.least, 1.0 - excess * excess * excess)
        return damping * ops.where(success, shrink, growth), ops.where(success, 2.0, 2.0 * growth)


@record
class ConstantDamping(Control):
    """The damping stays what it is (for damped Newton, and as a control)."""

    def update(self, ops: Backend, damping: Scalar, growth: Scalar, ratio: Scalar) -> tuple[Scalar, Scalar]:
        """The same damping again."""
        return damping, growth


def clip(ops: Backend, damping: Any, least: Scalar, most: Scalar) -> Scalar:
    """The damping within its bounds."""
    return ops.minimum(ops.maximum(damping, least), most)
