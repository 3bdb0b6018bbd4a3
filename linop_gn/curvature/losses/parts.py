"""A loss over a few examples at a time, where the outputs of all are many.

On its way from logits to a number or to p v - p <p, v> a loss makes several arrays of their size, and a vocabulary of
50304 over 2048 tokens is 412 MB each. Taken in parts, these stay in the processor's cache, and nothing but what is
returned is as large as the outputs. A Hessian keeps the outputs, which the linearisation holds anyway, and three
numbers for each example in place of its probabilities: they are made again for each product, part by part, which costs
no more than reading them from memory.

Compiled programs fuse these steps by themselves, and are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import array_api_compat

from ...protocols import Array, Backend
from ...records import record
from .base import Loss
from .hessians import OutputHessian, OutputRoot
from .weighting import grand_total, placement

__all__ = ["FEW", "MANY", "HessianInParts", "RootInParts", "in_parts", "places"]

MANY = 1 << 22
"""Fewer outputs than these are taken at once."""
FEW = 1 << 18
"""Entries of a part on the host: a megabyte in single precision, which a processor's cache holds."""
_PARTS = 64
"""Parts at most of outputs elsewhere, where a step takes as long to start as a million entries to go through."""

Place = tuple[Any, ...]


def in_parts(backend: Backend, loss: Loss, outputs: Array) -> Any:
    """``loss``, or what does its work in parts for outputs that no derivatives are taken through."""
    apart = loss.by_rows and not loss.autodiff and math.prod(outputs.shape) >= MANY
    return _LossInParts(loss) if apart and "compiled" not in backend.capabilities else loss


def places(shape: tuple[int, ...], axes: int, most: int) -> Iterator[Place]:
    """Indices along the first ``axes`` axes of an array, which cut it into parts of ``most`` entries or of one example.

    >>> list(places((3, 100), 1, 250))
    [(slice(0, 2, None), Ellipsis), (slice(2, 3, None), Ellipsis)]
    >>> len(list(places((2, 3, 100), 2, 100)))
    6
    """
    if not axes or math.prod(shape) <= most:
        yield (...,)
        return
    step = max(1, most // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        for rest in places(shape[1:], axes - 1, most) if step == 1 else [(...,)]:
            yield slice(start, min(start + step, shape[0])), *rest


class _LossInParts:
    """What a linearisation asks of a loss, answered part by part."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def total(self, xp: Any, z: Array, y: Array | None, w: Array | None) -> Array:
        return _sum(xp, self.loss, self.loss.total, z, y, w)

    def weight_sum(self, xp: Any, z: Array, y: Array | None, w: Array | None) -> Array:
        return _sum(xp, self.loss, self.loss.weight_sum, z, y, w)

    def gradient(self, xp: Any, z: Array, y: Array | None, w: Array | None) -> Array:
        made = xp.empty_like(z)
        for place in _places(self.loss, z):
            made[place] = self.loss.gradient(xp, *_part(xp, place, z, y, w))
        return made

    def hessian(self, xp: Any, z: Array, y: Array | None, w: Array | None) -> OutputHessian:
        kind = next(c for c in type(self.loss).__mro__ if "curvature" in c.__dict__)
        if kind is Loss or "known" not in kind.__dict__:
            return self.loss.hessian(xp, z, y, w)
        known: list[Array] = []
        for place in _places(self.loss, z):
            found = self.loss.known(xp, *_part(xp, place, z, y, w))
            known = known or [xp.empty((*z.shape[:-1], 1), dtype=x.dtype, **placement(z)) for x in found]
            for whole, x in zip(known, found, strict=True):
                whole[place] = x
        return HessianInParts(self.loss, z, y, w, tuple(known))


@record
class HessianInParts(OutputHessian):
    """H_L at outputs that were kept, made anew for each part of them in each product."""

    loss: Loss
    outputs: Array
    targets: Array | None
    weights: Array | None
    known: tuple[Array, ...]
    """What the loss has found out of each example."""

    def product(self, xp: Any, v: Array) -> Array:
        return self.each(xp, lambda H, v: H.product(xp, v), v)

    def root(self, xp: Any) -> RootInParts:
        return RootInParts(self)

    def each(self, xp: Any, function: Callable[[OutputHessian, Array], Array], v: Array) -> Array:
        """``function(H_L of a part, v of the part)`` of each part, put together."""
        made = xp.empty_like(v)
        for place in _places(self.loss, self.outputs):
            z, y, w = _part(xp, place, self.outputs, self.targets, self.weights)
            H = self.loss.hessian(xp, z, y, w, tuple(x[place] for x in self.known))
            made[place] = function(H, xp.astype(v[place], z.dtype, copy=False))
        return made


@record
class RootInParts(OutputRoot):
    """The root of :class:`HessianInParts`."""

    hessian: HessianInParts

    def product(self, xp: Any, u: Array) -> Array:
        return self.hessian.each(xp, lambda H, u: H.root(xp).product(xp, u), u)

    def transposed(self, xp: Any, v: Array) -> Array:
        return self.hessian.each(xp, lambda H, v: H.root(xp).transposed(xp, v), v)

    def solve(self, xp: Any, r: Array) -> Array:
        return self.hessian.each(xp, lambda H, r: H.root(xp).solve(xp, r), r)


def _places(loss: Loss, z: Array) -> Iterator[Place]:
    shape, host = tuple(z.shape), str(array_api_compat.device(z)).startswith("cpu")
    most = FEW if host else max(FEW, math.prod(shape) // _PARTS)
    return places(shape, len(shape[: loss.example_axes]), most)


def _part(xp: Any, place: Place, z: Array, y: Array | None, w: Array | None) -> tuple[Any, Any, Any]:
    """Outputs in single precision at least, targets and weights of a part; weights broadcast from the left."""
    z = z[place] if xp.finfo(z.dtype).bits > 16 else xp.astype(z[place], xp.float32)
    if w is not None:
        w = w[tuple(cut if n > 1 else slice(None) for cut, n in zip(place, w.shape, strict=False))]
    return z, None if y is None else y[place], w


def _sum(xp: Any, loss: Loss, function: Callable[..., Array], z: Array, *data: Array | None) -> Array:
    made = [function(xp, *_part(xp, place, z, *data)) for place in _places(loss, z)]
    return xp.astype(grand_total(xp, xp.stack(made)), z.dtype, copy=False)
