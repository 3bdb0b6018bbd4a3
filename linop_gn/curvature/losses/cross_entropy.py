"""Softmax cross-entropy, with its Hessian diag(p) - p p^T.

For logits z, p = softmax(z) and a distribution y over classes (one-hot for a
class index), with |y| = sum_j y_j (1 up to rounding),

    l = |y| log sum_j e^z_j - <y, z>,   gradient |y| p - y,   H = |y| (diag(p) - p p^T) = S S^T,
    S = sqrt(|y|) (diag(q) - p q^T),  q = sqrt(p).

Label smoothing e replaces y by (1 - e) y + e/C. How these are computed without
losing the small numbers of a trained classifier is told in ``softmax.py``.
"""

from __future__ import annotations

import operator
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ...protocols import Array, Backend
from ...records import record, static
from . import door
from .base import Loss
from .softmax import centred, closed, log_parts, over_classes, softmax
from .weighting import count, fit_weights, grand_total, index_dtype, keep, number, real

__all__ = ["CrossEntropy"]

_NO_TARGETS = "CrossEntropy: targets are missing; it needs class indices or probabilities."


class _Batch(NamedTuple):
    """Data in one form: zero logits and class 0 where nothing counts; weights (..., 1) are zero there."""

    logits: Array
    labels: Array | None  # (..., 1), or None where there are probabilities
    probabilities: Array | None
    weights: Array | None
    counted: Array | None


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
        (it is data: another value compiles nothing anew).

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

    ignore_index: int | None = static(default=None)
    label_smoothing: float | Array = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ignore_index is not None:
            object.__setattr__(self, "ignore_index", operator.index(self.ignore_index))
        e = real(self.label_smoothing)
        if e is not None and not 0 <= e <= 1:
            raise ValueError(f"CrossEntropy: label_smoothing must lie in [0, 1], got {self.label_smoothing}.")

    def total(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> Array:
        batch = self._read(xp, outputs, targets, weights)
        s, log_sum = log_parts(xp, batch.logits)
        if batch.labels is not None:
            losses = log_sum - xp.take_along_axis(s, batch.labels, axis=-1)
        else:
            y = batch.probabilities
            # A forbidden class (logit -inf) with probability zero adds nothing.
            losses = over_classes(xp, y) * log_sum - over_classes(xp, y * keep(xp, y != 0, s))
        e = number(xp, self.label_smoothing, s)
        if not _is_zero(e):
            s = s if isinstance(e, float) else keep(xp, e != 0, s)
            losses = (1 - e) * losses + e * (log_sum - xp.mean(s, axis=-1, keepdims=True))
        if batch.weights is not None:
            losses = batch.weights * losses
        return grand_total(xp, losses)

    def gradient(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> Array:
        batch = self._read(xp, outputs, targets, weights)
        p, top = softmax(xp, batch.logits)
        if batch.labels is not None:
            g = closed(xp, batch.labels, p)
        else:
            y = batch.probabilities
            g = closed(xp, top, over_classes(xp, y) * p - y)
        e = number(xp, self.label_smoothing, p)
        if not _is_zero(e):
            g = (1 - e) * g + e * (p - 1 / p.shape[-1])
        return g if batch.weights is None else batch.weights * g

    def shared(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> Any:
        batch = self._read(xp, outputs, targets, weights)
        return *softmax(xp, batch.logits), batch.counted, self._mass(xp, batch)

    def hessian_product(
        self,
        xp: Any,
        outputs: Array,
        targets: Array | None,
        weights: Array | None,
        v: Array,
        shared: Any = None,
    ) -> Array:
        if shared is None:
            shared = self.shared(xp, outputs, targets, weights)
        p, top, counted, mass = shared
        product = p * centred(xp, p, top, keep(xp, counted, v))
        return product if mass is None else mass * product

    def factor_product(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None, v: Array) -> Array:
        batch = self._read(xp, outputs, targets, weights)
        p, top = softmax(xp, batch.logits)
        x = xp.sqrt(p) * keep(xp, batch.counted, v)
        product, mass = closed(xp, top, x - p * over_classes(xp, x)), self._mass(xp, batch)
        return product if mass is None else xp.sqrt(mass) * product

    def factor_transposed_product(
        self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None, v: Array
    ) -> Array:
        batch = self._read(xp, outputs, targets, weights)
        p, top = softmax(xp, batch.logits)
        product, mass = xp.sqrt(p) * centred(xp, p, top, keep(xp, batch.counted, v)), self._mass(xp, batch)
        return product if mass is None else xp.sqrt(mass) * product

    def weight_sum(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> Array:
        *_, w, _ = self._read(xp, outputs, targets, weights)
        return count(xp, w, outputs, len(outputs.shape) - 1)

    def check(
        self,
        backend: Backend,
        outputs_shape: tuple[int, ...],
        targets: Array | None,
        weights: Array | None,
        *,
        empty_ok: bool = False,
    ) -> None:
        shape = tuple(outputs_shape)
        if not shape or shape[-1] < 2:
            raise ValueError(
                f"CrossEntropy: outputs must be logits (..., C) of at least two classes, got shape {shape}. "
                "For one logit per answer use BinaryCrossEntropy."
            )
        door.refuse_number(backend, "CrossEntropy", "label_smoothing", self.label_smoothing, 0, 1)
        counted = door.counted_examples(backend, "CrossEntropy", weights, shape[:-1])
        if targets is None:
            raise TypeError(_NO_TARGETS)
        values = door.to_host(backend, "CrossEntropy", "targets", targets, ("integer", "real"))
        _, dtype, _ = backend.describe(targets)
        if self._are_indices(shape, tuple(values.shape), door.kind(dtype) == "integer", dtype):
            if self.ignore_index is not None:
                counted = counted & (values != self.ignore_index)
            self._refuse_indices(values, counted, shape[-1])
        else:
            self._refuse_probabilities(values.astype(np.float64), counted, 2e-2 if "16" in dtype else 1e-3)
        if not empty_ok:
            door.refuse_empty("CrossEntropy", counted)

    def _read(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> _Batch:
        if targets is None:
            raise TypeError(_NO_TARGETS)
        shape = tuple(outputs.shape)
        w = fit_weights(xp, "CrossEntropy", weights, outputs, len(shape) - 1)
        counted = None if w is None else w != 0
        integral = xp.isdtype(targets.dtype, "integral")
        if not self._are_indices(shape, tuple(targets.shape), integral, str(targets.dtype)):
            y = xp.astype(targets, outputs.dtype, copy=False)
            return _Batch(keep(xp, counted, outputs), None, keep(xp, counted, y), w, counted)
        index = xp.astype(xp.expand_dims(targets, axis=-1), index_dtype(xp), copy=False)
        if self.ignore_index is not None:
            used = index != self.ignore_index
            counted = used if counted is None else used & counted
            w = xp.astype(used, outputs.dtype) if w is None else xp.where(used, w, 0)
        return _Batch(keep(xp, counted, outputs), keep(xp, counted, index), None, w, counted)

    def _mass(self, xp: Any, batch: _Batch) -> Array | None:
        """What multiplies diag(p) - p p^T: the weight, times the sum of the (smoothed) target distribution."""
        if batch.probabilities is None:
            return batch.weights
        y, e = over_classes(xp, batch.probabilities), number(xp, self.label_smoothing, batch.logits)
        mass = y if _is_zero(e) else (1 - e) * y + e
        return mass if batch.weights is None else batch.weights * mass

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
        else:
            advice = ""
        raise ValueError(
            f"CrossEntropy: logits of shape {outputs} are {outputs[-1]} classes for examples of shape {outputs[:-1]}; "
            f"targets must be integers of shape {outputs[:-1]} or probabilities of shape {outputs}, {got}. {advice}"
        )

    def _refuse_indices(self, y: np.ndarray[Any, Any], counted: np.ndarray[Any, Any], classes: int) -> None:
        ignored = "not set" if self.ignore_index is None else str(self.ignore_index)
        door.refuse(
            "CrossEntropy",
            ((y < 0) | (y >= classes)) & counted,
            y,
            lambda t: (
                f"class indices must lie in 0..{classes - 1} for these {classes} classes (positions that do not count: "
                f"set ignore_index, which is {ignored}, or give them weight zero), got {t}"
            ),
        )

    def _refuse_probabilities(self, y: np.ndarray[Any, Any], counted: np.ndarray[Any, Any], tolerance: float) -> None:
        used = counted[..., None]
        door.refuse("CrossEntropy", ~np.isfinite(y) & used, y, lambda t: f"probabilities must be finite, got {t:g}")
        door.refuse("CrossEntropy", (y < 0) & used, y, lambda t: f"probabilities must not be negative, got {t:g}")
        sums = y.sum(-1)
        door.refuse(
            "CrossEntropy",
            (abs(sums - 1) > tolerance) & counted,
            sums,
            lambda t: f"probabilities must sum to one over the last axis (normalise them), got {t:g}",
        )


def _is_zero(e: Any) -> bool:
    return isinstance(e, float) and e == 0
