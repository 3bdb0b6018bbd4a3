"""Losses from the user's own callables, differentiated by the framework."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

from ...dispatch import imported
from ...protocols import Array, Backend
from ...records import memo, record, static
from .base import Loss
from .recognised import computed
from .weighting import count, fit_weights, grand_total, keep

__all__ = ["FromFunction", "as_loss"]

_LOSSES = "SquaredError, CrossEntropy, BinaryCrossEntropy, Poisson, FromFunction"
_REDUCED = (
    "It has already summed or averaged the examples' losses: say which with FromFunction(fn, per_example=False, "
    "reduction='mean' or 'sum'), or make it return one loss for each example (reduction='none' in torch)."
)


@record
class FromFunction(Loss):
    """The loss that ``fn(outputs, targets)`` computes; its derivatives come from automatic differentiation.

    Parameters
    ----------
    fn : callable
        ``fn(outputs, targets)``, written in the framework of the arrays. With
        ``per_example=True`` it returns one loss for each example: an array whose
        shape is that of some leading axes of the outputs (one of them at least),
        which are then the example axes; weights apply to them. With
        ``per_example=False`` it returns one number.
    reduction : {"mean", "sum"}
        With ``per_example=False`` this names what the callable *itself* does. A
        mean is multiplied back by the number of examples in the batch, so that
        batches of different sizes combine rightly: these are the entries of all
        axes of the outputs but the last, or of their only axis. Weights are
        refused: nothing can be weighed once it has been summed.
    per_example : bool
        See above.
    convex : bool
        Your promise that the Hessian in the outputs is positive semidefinite
        everywhere, which lets solvers rely on it. It is not checked here.

    Notes
    -----
    Where the weight is zero the loss is replaced by zero, so its value may be
    NaN there; its derivative must not be (put the ``where`` into ``fn``).

    Examples
    --------
    >>> import numpy as np
    >>> huber = FromFunction(lambda z, y: np.sqrt(1 + (z - y) ** 2) - 1, convex=True)
    >>> z, y = np.array([3.0, 4.0]), np.array([3.0, 4.0 - 3.0**0.5])
    >>> round(float(huber.total(np, z, y, None)), 12)
    1.0
    """

    name: ClassVar[str] = "callable"

    fn: Callable[[Array, Any], Array] = static()
    per_example: bool = static(default=True)
    convex: bool = static(default=False, kw_only=True)  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.fn):
            raise TypeError(f"FromFunction: fn must be callable as fn(outputs, targets), got {type(self.fn).__name__}.")

    def total(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> Array:
        losses, examples = self._evaluate(xp, outputs, targets, weights)
        if not self.per_example:
            return losses * float(examples) if self.reduction == "mean" else losses
        w = fit_weights(xp, "FromFunction", weights, losses, len(losses.shape))
        return grand_total(xp, losses if w is None else w * keep(xp, w != 0, losses))

    def weight_sum(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> Array:
        if not self.per_example:
            self._refuse_weights(weights)
            return count(xp, None, outputs, max(1, len(outputs.shape) - 1))
        losses, _ = self._evaluate(xp, outputs, targets, weights)
        axes = len(losses.shape)
        return count(xp, fit_weights(xp, "FromFunction", weights, losses, axes), losses, axes)

    def _examples(self, shape: tuple[int, ...], weights: Array | None) -> tuple[int, ...]:
        if not self.per_example:
            self._refuse_weights(weights)
        return shape if weights is None else shape[: max(1, len(weights.shape))]

    def _check_targets(self, backend: Backend, shape: tuple[int, ...], targets: Any, counted: Any) -> Any:
        """Which examples count; the targets are the callable's own affair."""
        if self.convex:
            return counted
        before = memo(self).known
        known, one = memo(self).known = before or computed(backend, self.fn, shape, targets, self.reduction)
        if (known and before is None) or (one and self.per_example):
            told = f"FromFunction: {self._called} has at trial outputs the values of lg.losses.{known}. Give that: its "
            told += "curvature is in closed form, and known to be convex. "
            if one and self.per_example:
                raise ValueError(told + _REDUCED)
            keeps = "FromFunction(loss, convex=True) keeps yours without this warning."
            warnings.warn(told + keeps, UserWarning, stacklevel=2)
        return counted

    def _targets_fit(self, xp: Any, shape: tuple[int, ...], targets: Any, counted: Any) -> tuple[Any, Any]:
        return counted, True

    def _evaluate(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> tuple[Array, int]:
        """What the callable returns, in the outputs' dtype, and the number of examples."""
        losses = self.fn(outputs, targets)
        name = self._called
        if not (hasattr(losses, "shape") and hasattr(losses, "dtype")):
            raise TypeError(f"FromFunction: {name} returned {type(losses).__name__}, not an array of losses.")
        shape, outer = tuple(losses.shape), tuple(outputs.shape)
        if self.per_example and (not shape or shape != outer[: len(shape)]):
            advice = "Sum over the axes of one example, and keep the example axes in front." if shape else _REDUCED
            prefixes = " or ".join(str(outer[:n]) for n in range(1, len(outer) + 1))
            raise ValueError(
                f"FromFunction: {name} returned shape {shape} for outputs of shape {outer}; one loss for each example "
                f"is wanted, in the shape of leading axes of the outputs: {prefixes}. {advice}"
            )
        if not self.per_example:
            self._refuse_weights(weights)
            if shape:
                raise ValueError(
                    f"FromFunction: {name} returned shape {shape} where per_example=False asks for one number, shape "
                    "(). Leave per_example=True for a loss for each example, or reduce in the callable."
                )
        return xp.astype(losses, outputs.dtype, copy=False), math.prod(outer[: max(1, len(outer) - 1)])

    @property
    def _called(self) -> str:
        return getattr(self.fn, "__name__", type(self.fn).__name__)

    def _refuse_weights(self, weights: Array | None) -> None:
        if weights is not None:
            raise ValueError(
                "FromFunction: weights cannot be applied to a sum (per_example=False): return a loss for each example."
            )


def as_loss(obj: Any) -> Loss:
    """A loss from a loss, a loss module of torch, or a callable ``fn(outputs, targets)`` of one loss for each example.

    Raises
    ------
    TypeError
        For anything else, listing the losses there are.

    Examples
    --------
    >>> from linop_gn.curvature.losses import SquaredError, as_loss
    >>> as_loss(SquaredError(scale=1.0))
    SquaredError(scale=1.0)
    >>> as_loss(lambda z, y: abs(z - y) ** 3).autodiff
    True
    """
    if isinstance(obj, Loss):
        return obj
    if isinstance(obj, type):
        raise TypeError(f"{obj.__name__} is a class, not a loss: write {obj.__name__}(). Losses: {_LOSSES}.")
    if callable(obj):
        theirs = (backend.loss_of(obj) for backend in imported())
        return next((loss for loss in theirs if loss is not None), None) or FromFunction(obj)
    raise TypeError(
        f"A loss is wanted, got {type(obj).__name__} {obj!r}: use one of {_LOSSES} (in linop_gn.losses), or a callable "
        "fn(outputs, targets) that returns one loss for each example."
    )
