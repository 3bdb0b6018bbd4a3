"""Softmax cross-entropy, with its Hessian diag(p) - p p^T.

For logits z, p = softmax(z) and a distribution y over classes (one-hot for a
class index), with |y| = sum_j y_j (1 up to rounding),

    l = |y| log sum_j e^z_j - <y, z>,   gradient |y| p - y,   H = |y| (diag(p) - p p^T) = S S^T,
    S = sqrt(|y|) (diag(q) - p q^T),  q = sqrt(p).

Label smoothing e replaces y by (1 - e) y + e/C, weights w of the classes replace what that gives by w y, with |y| for
its sum. How these are computed without
losing the small numbers of a trained classifier is told in ``softmax.py``. Logits may differ by more than the largest
number where the loss is representable: what is subtracted are their halves.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from ...dispatch import how_to_bring
from ...protocols import Array, Backend
from ...records import record, static
from . import door
from .base import Loss
from .hessians import OutputHessian, OutputRoot, Weighted, divided
from .softmax import centred, closed, log_parts, numbers, over_classes, softmax
from .weighting import count, fit_weights, grand_total, index_dtype, keep, number, placed, real

__all__ = ["CrossEntropy"]

_NO_TARGETS = "CrossEntropy: targets are missing; it needs class indices or probabilities."


@record
class SoftmaxHessian(OutputHessian):
    """diag(p) - p p^T, for p (..., C) whose largest has the index ``top`` (..., 1)."""

    p: Array
    top: Array

    def product(self, xp: Any, v: Array) -> Array:
        return self.p * centred(xp, self.p, self.top, v)

    def root(self, xp: Any) -> SoftmaxRoot:
        return SoftmaxRoot(self.p, self.top)


@record
class SoftmaxRoot(OutputRoot):
    """S = diag(q) - p q^T, q = sqrt(p)."""

    p: Array
    top: Array

    def product(self, xp: Any, u: Array) -> Array:
        x = xp.sqrt(self.p) * u
        return closed(xp, self.top, x - self.p * over_classes(xp, x))

    def transposed(self, xp: Any, v: Array) -> Array:
        return xp.sqrt(self.p) * centred(xp, self.p, self.top, v)

    def solve(self, xp: Any, r: Array) -> Array:
        """r / q, since r adds up to zero."""
        return divided(xp, r, xp.sqrt(self.p))


@record
class CrossEntropy(Loss):
    """Cross-entropy of logits (..., C) with class indices (...) or probabilities (..., C); classes come *last*.

    All leading axes are example axes, so logits (B, T, C) and tokens (B, T) are
    B*T examples. Integer targets are class indices; floating targets of the
    logits' shape are probabilities. Logits of -inf (forbidden classes) are
    taken as they are.

    Parameters
    ----------
    ignore_index : int, optional
        The class index that marks positions which do not count (torch's default
        is -100; here there is none). It is never used as an index.
    label_smoothing : float
        Weight e of the uniform distribution, in [0, 1]: a number or a 0-d array
        (it is data: another value compiles nothing anew). None, like the number 0, leaves its terms out.
    weight : array (C,), optional
        Of the classes, not negative: data too. As in torch, a mean over class indices divides by the weights of the
        classes that occur, a mean over probabilities by the number of examples.

    Examples
    --------
    >>> import numpy as np
    >>> loss = CrossEntropy(ignore_index=-1)
    >>> z, y = np.array([[0.0, 0.0], [1e4, 0.0], [3.0, 1.0]]), np.array([0, 1, -1])
    >>> float(loss.total(np, z, y, None)), float(loss.weight_sum(np, z, y, None))
    (10000.69314718056, 2.0)
    >>> loss.hessian_product(np, z, y, None, np.array([[1.0, 0.0]] * 3))
    array([[ 0.25, -0.25],
           [ 0.  , -0.  ],
           [ 0.  ,  0.  ]])
    """

    name: ClassVar[str] = "softmax cross-entropy"
    convex: ClassVar[bool] = True
    example_axes: ClassVar[int | None] = -1
    by_rows: ClassVar[bool] = True
    second_derivative: ClassVar[bool] = True
    slope_of_known: ClassVar[bool] = True
    limits = MappingProxyType({"label_smoothing": ("lie in [0, 1]", lambda e: 0 <= e <= 1)})

    ignore_index: int | None = static(default=None)
    label_smoothing: float | Array | None = None
    weight: Array | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if real(self.label_smoothing) == 0:  # as data, a compiled program could not know that it is
            object.__setattr__(self, "label_smoothing", None)
        if isinstance(self.weight, (list, tuple)):
            object.__setattr__(self, "weight", np.asarray(self.weight, dtype=np.float64))
        if self.ignore_index is not None:
            object.__setattr__(self, "ignore_index", operator.index(self.ignore_index))

    def value(self, xp: Any, z: Array, y: Array) -> Array:
        largest, log_sum = log_parts(xp, z)
        w, e = self._class_weights(xp, z), self._smoothing(xp, z)
        if self._has_labels(xp, y):
            chosen = xp.take_along_axis(z, y, axis=-1)
            if w is None and e is None:
                return log_sum + (largest - chosen)
            mass = (1 - (0.0 if e is None else e)) * (1.0 if w is None else _at(xp, w, y))
            losses = mass * log_sum - _times(xp, 2 * mass, 0.5 * chosen - 0.5 * largest)
        else:
            y = y if w is None else w * y
            y = y if e is None else (1 - e) * y
            halves = keep(xp, y != 0, 0.5 * z - 0.5 * largest)  # a forbidden class (logit -inf) may have none
            losses = over_classes(xp, y) * log_sum - 2 * over_classes(xp, y * halves)
        if e is None:
            return losses
        classes, power = z.shape[-1], 2.0 ** z.shape[-1].bit_length()  # 1/C may have few digits in half precision
        halves = 0.5 / power * z - 0.5 / power * largest
        if w is None:
            return losses + e * log_sum - _times(xp, 2 * power / classes * e, over_classes(xp, halves))
        return losses + e * xp.mean(w) * log_sum - over_classes(xp, _times(xp, 2 * power / classes * e * w, halves))

    def total(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> Array:
        if self.weight is not None or self.label_smoothing is not None:
            return super().total(xp, outputs, targets, weights)
        z, y, w = self._read(xp, outputs, targets, weights)
        if not self._has_labels(xp, y):
            return super().total(xp, outputs, targets, weights)
        largest, log_sum = log_parts(xp, z)  # summed by themselves: XLA takes half as long again for their sum's sum
        parts = log_sum, largest - xp.take_along_axis(z, y, axis=-1)
        first, second = (grand_total(xp, part if w is None else w * keep(xp, w != 0, part)) for part in parts)
        return xp.reshape(xp.reshape(first, (1,)) + second, ())  # an array: NumPy's sum of two would be a scalar

    def slope(self, xp: Any, z: Array, y: Array, known: tuple[Array, ...] = ()) -> Array:
        p, top = softmax(xp, z, known)
        w, e = self._class_weights(xp, z), self._smoothing(xp, z)
        if self._has_labels(xp, y):
            g = closed(xp, y, p) if w is None else _at(xp, w, y) * closed(xp, y, p)
        else:
            y = y if w is None else w * y
            g = closed(xp, top, over_classes(xp, y) * p - y)
        if e is None:
            return g
        return (1 - e) * g + e * (p - 1 / p.shape[-1] if w is None else xp.mean(w) * p - w / p.shape[-1])

    def score(self, xp: Any, z: Array, y: Array) -> tuple[Array, Array | None]:
        w = self._class_weights(xp, z)
        if w is None or not self._has_labels(xp, y):
            return self.slope(xp, z, y), None
        mass = _at(xp, w, y)
        return divided(xp, self.slope(xp, z, y), mass + xp.zeros_like(z)), mass

    def drawn_slope(self, xp: Any, z: Array, uniform: Callable[[int], Array]) -> Array:
        gumbel = -xp.log(-xp.log(uniform(0)))
        drawn = xp.argmax(xp.astype(z, gumbel.dtype, copy=False) + gumbel, axis=-1, keepdims=True)
        return closed(xp, drawn, softmax(xp, z)[0])

    def known(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> tuple[Array, ...]:
        return numbers(xp, self._read(xp, outputs, targets, weights)[0])

    def curvature(self, xp: Any, z: Array, y: Array, known: tuple[Array, ...] = ()) -> OutputHessian:
        made, w = SoftmaxHessian(*softmax(xp, z, known)), self._class_weights(xp, z)
        e = self._smoothing(xp, z)
        if self._has_labels(xp, y):
            if w is None:
                return made
            mass = _at(xp, w, y)
        else:
            mass = over_classes(xp, y if w is None else w * y)
        return Weighted(made, mass if e is None else (1 - e) * mass + e * (1.0 if w is None else xp.mean(w)))

    def weight_sum(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> Array:
        z, y, counted = self._read(xp, outputs, targets, weights)
        w = self._class_weights(xp, z)
        if w is not None and self._has_labels(xp, y):
            w = _at(xp, w, y)
            counted = w if counted is None else counted * w
        return count(xp, counted, outputs, len(outputs.shape) - 1)

    def _class_weights(self, xp: Any, z: Array) -> Any:
        """The weights (C,) in the dtype of z; None where there are none."""
        if isinstance(self.weight, np.ndarray) and not isinstance(z, np.ndarray):
            return placed(xp, self.weight, z)
        return None if self.weight is None else xp.astype(self.weight, z.dtype, copy=False)

    def _smoothing(self, xp: Any, z: Array) -> Any:
        """e, a number or in the dtype of z; None where there is none."""
        return None if self.label_smoothing is None else number(xp, self.label_smoothing, z)

    def _has_labels(self, xp: Any, y: Array) -> bool:
        """Whether targets, as :meth:`_read` gives them, are class indices (..., 1) rather than probabilities."""
        return bool(xp.isdtype(y.dtype, "integral"))

    def _read(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> tuple[Array, Any, Any]:
        """Logits, class indices (..., 1) or probabilities, and weights (..., 1): zero where they do not count."""
        if targets is None:
            raise TypeError(_NO_TARGETS)
        shape = tuple(outputs.shape)
        w = fit_weights(xp, "CrossEntropy", weights, outputs, len(shape) - 1)
        integral = xp.isdtype(targets.dtype, "integral")
        if self._are_indices(shape, tuple(targets.shape), integral, str(targets.dtype)):
            y = xp.astype(xp.expand_dims(targets, axis=-1), index_dtype(xp), copy=False)
            if self.ignore_index is not None:
                used = y != self.ignore_index
                w = xp.astype(used, outputs.dtype) if w is None else xp.where(used, w, 0)
        else:
            y = xp.astype(targets, outputs.dtype, copy=False)
        counted = None if w is None else w != 0
        return keep(xp, counted, outputs), keep(xp, counted, y), w

    def _check_targets(
        self, backend: Backend, shape: tuple[int, ...], targets: Array | None, counted: np.ndarray[Any, Any]
    ) -> np.ndarray[Any, Any]:
        if shape[-1] < 2:
            raise ValueError(
                f"CrossEntropy: outputs must be logits (..., C) of at least two classes, got shape {shape}. "
                "For one logit per answer use BinaryCrossEntropy."
            )
        if targets is None:
            raise TypeError(_NO_TARGETS)
        values = door.to_host(backend, "CrossEntropy", "targets", targets, ("integer", "real"))
        _, dtype, _ = backend.describe(targets)
        indices = self._are_indices(shape, tuple(values.shape), door.kind(dtype) == "integer", dtype)
        if self.weight is not None:
            self._check_class_weights(backend, shape[-1])
        if indices:
            if self.ignore_index is not None:
                counted = counted & (values != self.ignore_index)
            classes, ignored = shape[-1], "not set" if self.ignore_index is None else self.ignore_index
            must = (
                f"class indices must lie in 0..{classes - 1} for these {classes} classes (positions that do not count: "
                f"set ignore_index, which is {ignored}, or give them weight zero)"
            )
            door.refuse("CrossEntropy", ((values < 0) | (values >= classes)) & counted, values, must)
        else:
            y, sums, used = values.astype(np.float64), values.sum(-1, dtype=np.float64), counted[..., None]
            far = abs(sums - 1) > _off_by(dtype)
            door.refuse("CrossEntropy", ~np.isfinite(y) & used, y, "probabilities must be finite")
            door.refuse("CrossEntropy", (y < 0) & used, y, "probabilities must not be negative")
            must = "probabilities must sum to one over the last axis (normalise them)"
            door.refuse("CrossEntropy", far & counted, sums, must)
        return counted

    def _targets_fit(self, xp: Any, shape: tuple[int, ...], targets: Any, counted: Any) -> tuple[Any, Any]:
        if self.weight is not None or targets is None or shape[-1] < 2:
            return counted, False
        if xp.isdtype(targets.dtype, "integral"):
            if self.ignore_index is not None:
                counted = counted & (targets != self.ignore_index)
            return counted, xp.all(~counted | ((targets >= 0) & (targets < shape[-1])))
        if tuple(targets.shape) != shape or not xp.isdtype(targets.dtype, "real floating"):
            return counted, False
        near = abs(xp.sum(targets, axis=-1) - 1) <= _off_by(str(targets.dtype))  # NaN and infinity are not
        return counted, xp.all(~counted | (near & xp.all(targets >= 0, axis=-1)))

    def _check_class_weights(self, backend: Backend, classes: int) -> None:
        given: Any = self.weight
        if not backend.is_array(given) and not isinstance(given, np.ndarray):
            got = type(given).__qualname__
            raise TypeError(
                f"CrossEntropy: weight must be an array of {backend.name}, got a {got}; {how_to_bring(backend)}."
            )
        if tuple(given.shape) != (classes,):
            raise ValueError(f"CrossEntropy: weight has shape {tuple(given.shape)} for {classes} classes.")
        if backend.is_concrete(given):
            values = np.asarray(given if isinstance(given, np.ndarray) else backend.to_numpy(given), dtype=np.float64)
            door.refuse("CrossEntropy", ~np.isfinite(values), values, "weight must be finite")
            door.refuse("CrossEntropy", values < 0, values, "weight must not be negative")

    def _are_indices(self, outputs: tuple[int, ...], targets: tuple[int, ...], integral: bool, dtype: str) -> bool:
        """Whether targets are class indices (True) or probabilities (False); raises if they can be neither."""
        fitting = outputs[:-1] if integral else outputs
        if targets == fitting and (integral or self.ignore_index is None):
            return integral
        got = f"got {dtype.rpartition('.')[2]} of shape {targets}"
        if targets == outputs and integral:
            advice = "One-hot integers are probabilities: cast them to the dtype of the logits."
        elif targets == outputs:
            advice = "ignore_index has no meaning for probabilities: give those positions weight zero instead."
        elif targets == outputs[:-1]:
            advice = "Cast the class indices to integers."
        elif len(outputs) > 2 and targets == outputs[:1] + outputs[2:]:
            advice = "Classes are the last axis of the logits here (in torch the second): move that axis last."
        elif targets == (*outputs[:-1], 1):
            advice = "Drop the last axis of the targets: targets[..., 0]."
        else:
            advice = "Give one for each example."
        raise ValueError(
            f"CrossEntropy: logits of shape {outputs} are {outputs[-1]} classes for examples of shape {outputs[:-1]}; "
            f"targets must be integers of shape {outputs[:-1]} or probabilities of shape {outputs}, {got}. {advice}"
        )


def _off_by(dtype: str) -> float:
    """How far from one the sum of probabilities may be."""
    return 2e-2 if "16" in dtype else 1e-3


def _at(xp: Any, w: Array, index: Array) -> Array:
    """The entries of w (C,) that ``index`` (..., 1) names."""
    return xp.reshape(xp.take(w, xp.reshape(index, (-1,))), index.shape)


def _times(xp: Any, c: Any, x: Array) -> Array:
    """c x, and zero where c is and x is infinite."""
    if isinstance(c, float):
        return c * x if c else xp.zeros_like(x)
    return c * keep(xp, (c != 0) | (x > -math.inf), x)
