"""Losses whose Hessian is diagonal: each output has its own target, and l is a sum over outputs.

A subclass writes the value, the slope and the curvature of one element as
functions of arrays; weights, masks, sums and errors are here. With curvature
c(z, y) >= 0 the factor is S = diag(sqrt(w c)), its own transpose.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ...protocols import Array, Backend
from ...records import record
from . import door
from .base import Loss
from .weighting import count, fit_weights, grand_total, keep

__all__ = ["Elementwise"]


@record
class Elementwise(Loss):
    """Base class: subclasses define :meth:`value`, :meth:`slope` and :meth:`curvature` of one element.

    ``y`` is None where there are no targets, which only happens to a subclass with ``targets_optional``.
    """

    convex: ClassVar[bool] = True
    targets_optional: ClassVar[bool] = False

    def value(self, xp: Any, z: Array, y: Array) -> Array:
        """l(z, y), element by element."""
        self._lacks("value")

    def slope(self, xp: Any, z: Array, y: Array) -> Array:
        """dl/dz, element by element."""
        self._lacks("slope")

    def curvature(self, xp: Any, z: Array, y: Array) -> Array:
        """d^2l/dz^2 >= 0, element by element; a number of the right dtype where it is constant."""
        self._lacks("curvature")

    def example_axes(self, outputs_shape: tuple[int, ...]) -> int:
        """How many leading axes of the outputs count examples: all, unless a subclass says otherwise."""
        return len(outputs_shape)

    def total(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> Array:
        z, y, w, _ = self._read(xp, outputs, targets, weights)
        return grand_total(xp, _times(w, self.value(xp, z, y)))

    def gradient(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> Array:
        z, y, w, _ = self._read(xp, outputs, targets, weights)
        return _times(w, self.slope(xp, z, y))

    def hessian_product(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None, v: Array) -> Array:
        z, y, w, counted = self._read(xp, outputs, targets, weights)
        return _times(w, self.curvature(xp, z, y) * keep(xp, counted, v))

    def factor_product(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None, v: Array) -> Array:
        z, y, w, counted = self._read(xp, outputs, targets, weights)
        return _times(w, self.curvature(xp, z, y)) ** 0.5 * keep(xp, counted, v)

    def factor_transposed_product(
        self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None, v: Array
    ) -> Array:
        return self.factor_product(xp, outputs, targets, weights, v)

    def weight_sum(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> Array:
        axes = self.example_axes(tuple(outputs.shape))
        return count(xp, fit_weights(xp, type(self).__name__, weights, outputs, axes), outputs, axes)

    def check(
        self,
        backend: Backend,
        outputs_shape: tuple[int, ...],
        targets: Array | None,
        weights: Array | None,
        *,
        empty_ok: bool = False,
    ) -> None:
        name, shape = type(self).__name__, tuple(outputs_shape)
        axes = self.example_axes(shape)
        self.refuse_settings(backend)
        counted = door.counted_examples(backend, name, weights, shape[:axes])
        if targets is None:
            self._check_target_shape(shape, None)
        else:
            y = door.to_host(backend, name, "targets", targets, ("real", "integer", "bool"))
            self._check_target_shape(shape, y.shape)
            y, used = y.astype(np.float64), counted.reshape(counted.shape + (1,) * (len(shape) - axes))
            door.refuse(name, ~np.isfinite(y) & used, y, lambda t: f"targets must be finite, got {t:g}")
            self.refuse_targets(y, used)
        if not empty_ok:
            door.refuse_empty(name, counted)

    def refuse_settings(self, backend: Backend) -> None:
        """Raise if a number that the loss holds, which may be an array, is none for it."""

    def refuse_targets(self, targets: np.ndarray[Any, Any], counted: np.ndarray[Any, Any]) -> None:
        """Raise if a finite target (float64, on the host) is none for this loss. ``counted`` broadcasts."""

    def _read(
        self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None
    ) -> tuple[Array, Array | None, Array | None, Array | None]:
        """Outputs, targets and weights in one dtype, zero where they do not count, and where they do."""
        shape = tuple(outputs.shape)
        self._check_target_shape(shape, None if targets is None else tuple(targets.shape))
        w = fit_weights(xp, type(self).__name__, weights, outputs, self.example_axes(shape))
        counted = None if w is None else w != 0
        y = None if targets is None else keep(xp, counted, xp.astype(targets, outputs.dtype, copy=False))
        return keep(xp, counted, outputs), y, w, counted

    def _check_target_shape(self, outputs: tuple[int, ...], targets: tuple[int, ...] | None) -> None:
        name = type(self).__name__
        if targets is None:
            if not self.targets_optional:
                raise TypeError(f"{name}: targets are missing; it needs an array of the outputs' shape {outputs}.")
        elif targets != outputs:
            hint = ""
            if [n for n in targets if n != 1] == [n for n in outputs if n != 1]:
                hint = " They differ in axes of length one only: reshape one of them."
            raise ValueError(f"{name}: targets must have the outputs' shape {outputs}, got {targets}.{hint}")


def _times(weights: Array | None, x: Any) -> Any:
    return x if weights is None else weights * x
