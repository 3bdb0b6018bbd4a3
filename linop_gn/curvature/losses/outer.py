"""A loss as the outer one of two functions, with its derivatives in closed form.

The Hessian of loss(model(p)) differentiates the loss twice. By a framework's derivatives that takes, of a vocabulary,
several arrays as large as the logits: the probabilities, what they are made of, and what each of these has for a
tangent or a cotangent. In closed form, and in parts (:mod:`.parts`), it takes the logits and what is returned. Where
operations are done one by one, a product takes .9 of the time for cross-entropy of ten classes, and .4 for thousands.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ...protocols import Array, Backend
from ...records import record, replace, static
from .base import Loss
from .hessians import OutputHessian
from .parts import as_rows, each_part, in_parts, rows_of_part

__all__ = ["OuterLoss"]


@record
class OuterLoss:
    """The unnormalised loss of one batch as a function of its outputs: an :class:`linop_gn.protocols.Outer`."""

    loss: Loss
    targets: Array | None
    weights: Array | None
    ops: Backend = static()
    whole: bool = static(default=False)
    """Whether it is asked of all outputs at once, in a program that a compiler fuses."""

    def total(self, z: Array) -> Array:
        return self.loss.total(*self._data(z))

    def known(self, z: Array) -> bool:
        """Where operations are done as they are asked for, which are fewer so; in compiled programs of many outputs."""
        if not _is_exact(type(self.loss)):
            return False
        return "compiled" not in self.ops.capabilities or self._asked(z) is not self.loss

    def value(self, z: Array) -> Array:
        made: Array = self._asked(z).total(*self._data(z))
        return made

    def slope(self, z: Array, numbers: tuple[Array, ...] = ()) -> Array:
        if numbers:
            return self.loss.gradient(*self._data(z), numbers)
        made: Array = self._asked(z).gradient(*self._data(z))
        return made

    def hessian(self, z: Array, numbers: tuple[Array, ...] = ()) -> OutputHessian:
        if numbers:
            return self.loss.hessian(*self._data(z), numbers)
        made: OutputHessian = self._asked(z).hessian(*self._data(z))
        return made

    def product(self, hessian: OutputHessian, v: Array) -> Array:
        return hessian.product(self.ops.namespace(), v)

    def through(self, hessian: OutputHessian, z: Array, v: Array, way: Callable[..., Array]) -> None:
        xp = self.ops.namespace()
        for place, H, slope in each_part(self.loss, hessian, *self._data(z)):
            v[place] = way(place, xp.astype(v[place], slope.dtype, copy=False), slope, partial(H.product, xp))

    def leading(self, z: Array) -> int:
        return max(1, min(len(z.shape[: self.loss.example_axes]), len(z.shape) - 1))

    def parted(self, z: Array) -> tuple[int, OuterLoss, Any]:
        axes, xp = self.leading(z), self.ops.namespace()
        data = as_rows(xp, self.loss, z, self.targets, self.weights, axes)
        return rows_of_part(tuple(z.shape), axes), replace(self, targets=None, weights=None), data

    def numbers(self, z: Array) -> tuple[Array, ...]:
        return self.loss.known(*self._data(z))

    def of_part(self, data: Any) -> OuterLoss:
        targets, weights = data
        return replace(self, targets=targets, weights=weights)

    def _asked(self, z: Array) -> Any:
        return self.loss if self.whole else in_parts(self.ops, self.loss, z)

    def _data(self, z: Array) -> tuple[Any, Array, Array | None, Array | None]:
        return self.ops.namespace(), z, self.targets, self.weights


def _is_exact(kind: type[Loss]) -> bool:
    """Whether the class that gives the curvature, or one derived of it, says itself that this is the second derivative.

    What a subclass of that one writes anew, be it a part that :meth:`Loss.total` asks for, total alone may go by.
    """
    says = next(c for c in kind.__mro__ if {"second_derivative", "curvature"} & vars(c).keys())
    written = {name for c in kind.__mro__[: kind.__mro__.index(says)] for name in vars(c) if name[:2] != "__"}
    return (
        says is not Loss
        and bool(vars(says).get("second_derivative"))
        and not any(callable(getattr(says, name, None)) for name in written)
    )
