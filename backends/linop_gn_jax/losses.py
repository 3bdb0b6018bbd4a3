"""optax's losses in closed form, and those of them that are known to be convex."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any, ClassVar

from linop_gn.backend import Array
from linop_gn.curvature.losses import BinaryCrossEntropy, CrossEntropy, FromFunction, Loss, SquaredError
from linop_gn.records import record

__all__ = ["translated"]


@record
class EachSquared(SquaredError):  # noqa: N818
    """``optax.l2_loss`` (scale 1/2) and ``optax.squared_error`` (scale 1): every output is an example."""

    example_axes: ClassVar[int | None] = None

    scale: float | Array = 0.5


_CONVEX = ("huber_loss", "log_cosh")


def translated(loss: Any) -> Loss | None:
    """The loss of :mod:`linop_gn.losses` that a loss function of optax is, and its mean over examples; None for others.

    A ``functools.partial`` with options is differentiated by the framework, like all functions without a closed form.
    """
    optax = sys.modules.get("optax")
    if optax is None:
        return None
    closed = {
        "softmax_cross_entropy_with_integer_labels": CrossEntropy,
        "softmax_cross_entropy": CrossEntropy,
        "sigmoid_binary_cross_entropy": BinaryCrossEntropy,
        "l2_loss": EachSquared,
        "squared_error": partial(EachSquared, scale=1.0),
    }
    made = next((make() for name, make in closed.items() if getattr(optax, name, None) is loss), None)
    if made is not None:
        return made
    inner = loss.func if isinstance(loss, partial) else loss
    if any(getattr(optax, name, None) is inner for name in _CONVEX):
        return FromFunction(loss, convex=True)
    return None
