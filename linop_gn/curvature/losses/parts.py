"""A loss over a few examples at a time, where the outputs of all are many.

On its way from logits to a number or to p v - p <p, v> a loss makes several arrays of their size, and a vocabulary of
50304 over 2048 tokens is 412 MB each. Taken in parts, these stay in the processor's cache, and nothing but what is
returned is as large as the outputs. A Hessian keeps the outputs, which the linearisation holds anyway, and three
numbers for each example in place of its probabilities: they are made again for each product, part by part, which costs
no more than reading them from memory.

Compiled programs fuse the steps of a number or a slope by themselves. Their Hessians keep the outputs alone, too, and
are a loop over parts: XLA would hold e^z and p v whole, since both are summed before they are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import array_api_compat

from ...protocols import Array, Backend
from ...records import Partial, record, replace, static
from .base import Loss
from .hessians import Columns, OutputHessian, OutputRoot, as_hessian
from .weighting import fit_weights, grand_total, placement

__all__ = [
    "FEW",
    "MANY",
    "HessianInLoop",
    "HessianInParts",
    "RootInParts",
    "as_rows",
    "each_part",
    "in_parts",
    "places",
    "rows_of_part",
]

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
    if not apart:
        return loss
    return _Fused(backend, loss) if "compiled" in backend.capabilities else _LossInParts(loss)


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
        if not _tells(self.loss):
            return self._diagonal(xp, z, y, w)
        known: list[Array] = []
        shape, axes = tuple(z.shape), len(z.shape[: self.loss.example_axes])
        for place in _places(self.loss, z):
            loss = self.loss.of_part(shape, _first(shape, place))
            found = loss.known(xp, *_part(xp, place, z, y, w))
            known = known or [xp.empty(shape[:axes] + x.shape[axes:], dtype=x.dtype, **placement(z)) for x in found]
            for whole, x in zip(known, found, strict=True):
                whole[place] = x
        return HessianInParts(self.loss, z, y, w, tuple(known))

    def _diagonal(self, xp: Any, z: Array, y: Array | None, w: Array | None) -> OutputHessian:
        """A diagonal like the outputs is made in parts, and what is none as it is."""
        values = None
        for place in _places(self.loss, z):
            at, of, _ = self.loss._read(xp, *_part(xp, place, z, y, w))
            made = self.loss.curvature(xp, at, of)
            if tuple(getattr(made, "shape", ())) != tuple(at.shape):
                return self.loss.hessian(xp, z, y, w)
            values = xp.empty_like(z) if values is None else values
            values[place] = made
        lead = len(z.shape[: self.loss.example_axes])
        return as_hessian(xp, values, z, fit_weights(xp, type(self.loss).__name__, w, z, lead))


def _tells(loss: Loss) -> bool:
    """Whether the class that gives the curvature says what may be known of it."""
    kind = next(c for c in type(loss).__mro__ if "curvature" in c.__dict__)
    return loss.of_known or (kind is not Loss and "known" in kind.__dict__)


class _Fused:
    """What a linearisation asks of a loss in a compiled program, which needs no parts but for the Hessian."""

    def __init__(self, ops: Backend, loss: Loss) -> None:
        self.ops, self.loss = ops, loss
        self.total, self.weight_sum, self.gradient = loss.total, loss.weight_sum, loss.gradient

    def hessian(self, xp: Any, z: Array, y: Array | None, w: Array | None) -> OutputHessian:
        if self.loss.of_known or not _tells(self.loss):
            return self.loss.hessian(xp, z, y, w)
        wide = z if xp.finfo(z.dtype).bits > 16 else xp.astype(z, xp.float32)
        return HessianInLoop(self.loss, z, y, w, self.loss.known(xp, wide, y, w), self.ops)


@record
class HessianInLoop(OutputHessian):
    """:class:`HessianInParts` as a loop of a compiled program, which rewrites the vector where it stands."""

    loss: Loss
    outputs: Array | None
    """None where a piece holds them: a program would return them twice."""
    targets: Array | None
    weights: Array | None
    known: tuple[Array, ...]
    ops: Backend = static()

    def whole(self, xp: Any) -> OutputHessian:
        assert self.outputs is not None
        return self.loss.hessian(xp, self.outputs, self.targets, self.weights)

    def without_outputs(self) -> OutputHessian:
        return replace(self, outputs=None)

    def with_outputs(self, outputs: Array) -> OutputHessian:
        return replace(self, outputs=outputs) if self.outputs is None else self

    def product(self, xp: Any, v: Array) -> Array:
        return self.each(xp, Partial(_way, "product"), v)

    def root(self, xp: Any) -> RootInParts:
        return RootInParts(self)

    def each(self, xp: Any, way: Callable[..., Array], v: Array) -> Array:
        """``way(xp, H_L of a part, v of the part)`` of each part, put together."""
        assert self.outputs is not None
        shape = tuple(self.outputs.shape)
        axes = len(shape[: self.loss.example_axes])

        def rows(x: Array) -> Array:
            return xp.reshape(x, (-1, *x.shape[axes:]))

        y, w = as_rows(xp, self.loss, self.outputs, self.targets, self.weights, axes)
        data = rows(self.outputs), y, w, tuple(map(rows, self.known))
        function, size = Partial(_of_part, way, self.loss), rows_of_part(shape, axes)
        return xp.reshape(self.ops.by_parts(function, size, rows(v), *data), shape)


def rows_of_part(shape: tuple[int, ...], axes: int) -> int:
    """How many rows a part of outputs of this shape has in compiled programs, if these are the first ``axes`` axes."""
    return max(1, math.prod(shape[:axes]) // _PARTS)


def as_rows(
    xp: Any, loss: Loss, z: Array, y: Array | None, w: Array | None, axes: int
) -> tuple[Array | None, Array | None]:
    """Targets and weights with one axis for the first ``axes`` of the outputs, which count examples."""
    examples = tuple(z.shape[: loss.example_axes])
    w = fit_weights(xp, type(loss).__name__, w, z, len(examples))
    if w is not None:
        w = xp.broadcast_to(w, (*examples[:axes], *w.shape[axes:]))
        w = xp.reshape(w, (-1, *w.shape[axes : len(examples)]))
    return None if y is None else xp.reshape(y, (-1, *y.shape[axes:])), w


def _way(name: str, xp: Any, H: OutputHessian, v: Array) -> Array:
    made: Array = getattr(H, name)(xp, v)
    return made


def _of_root(name: str, xp: Any, H: OutputHessian, v: Array) -> Array:
    made: Array = getattr(H.root(xp), name)(xp, v)
    return made


def _of_part(
    way: Callable[..., Array], loss: Loss, v: Array, z: Array, y: Any, w: Any, known: tuple[Array, ...]
) -> Array:
    xp = array_api_compat.array_namespace(z)
    z = z if xp.finfo(z.dtype).bits > 16 else xp.astype(z, xp.float32)
    return way(xp, loss.hessian(xp, z, y, w, known), xp.astype(v, z.dtype, copy=False))


@record
class HessianInParts(OutputHessian):
    """H_L at outputs that were kept, made anew for each part of them in each product."""

    loss: Loss
    outputs: Array
    targets: Array | None
    weights: Array | None
    known: tuple[Array, ...]
    """What the loss has found out of each example."""

    def whole(self, xp: Any) -> OutputHessian:
        known = self.known if self.loss.of_known else ()
        return self.loss.hessian(xp, self.outputs, self.targets, self.weights, known)

    def columns(self, xp: Any, outputs: Array) -> Columns:
        return self.whole(xp).columns(xp, outputs) if self.loss.of_known else super().columns(xp, outputs)

    def product(self, xp: Any, v: Array) -> Array:
        return self.each(xp, Partial(_way, "product"), v)

    def root(self, xp: Any) -> RootInParts:
        return RootInParts(self)

    def consuming(self, xp: Any, v: Array) -> Array:
        return self.each(xp, Partial(_way, "product"), v, v)

    def each(self, xp: Any, way: Callable[..., Array], v: Array, made: Array | None = None) -> Array:
        """``way(xp, H_L of a part, v of the part)`` of each part, put together: in ``made``, which may be ``v``."""
        made = xp.empty_like(v) if made is None else made
        for place in _places(self.loss, self.outputs):
            z, y, w = _part(xp, place, self.outputs, self.targets, self.weights)
            H = self.loss.hessian(xp, z, y, w, tuple(x[place] for x in self.known))
            made[place] = way(xp, H, xp.astype(v[place], z.dtype, copy=False))
        return made


def each_part(
    loss: Loss, hessian: OutputHessian, xp: Any, z: Array, y: Array | None, w: Array | None
) -> Iterator[tuple[Place, OutputHessian, Array]]:
    """Places of whole rows, with H_L and dL/dz there; ``hessian`` is that of all examples."""
    apart = loss.by_rows and not loss.autodiff
    for place in _places(loss, z, rows=True) if apart else [(...,)]:
        part = _part(xp, place, z, y, w)
        known = tuple(x[place] for x in hessian.known) if isinstance(hessian, HessianInParts) else ()
        yield place, loss.hessian(xp, *part, known) if apart else hessian, loss.gradient(xp, *part, known)


@record
class RootInParts(OutputRoot):
    """The root of a Hessian in parts."""

    hessian: HessianInParts | HessianInLoop

    def product(self, xp: Any, u: Array) -> Array:
        return self.hessian.each(xp, Partial(_of_root, "product"), u)

    def transposed(self, xp: Any, v: Array) -> Array:
        return self.hessian.each(xp, Partial(_of_root, "transposed"), v)

    def solve(self, xp: Any, r: Array) -> Array:
        return self.hessian.each(xp, Partial(_of_root, "solve"), r)


def _places(loss: Loss, z: Array, rows: bool = False) -> Iterator[Place]:
    shape, host = tuple(z.shape), str(array_api_compat.device(z)).startswith("cpu")
    most = FEW if host else max(FEW, math.prod(shape) // _PARTS)
    axes = len(shape[: loss.example_axes])
    return places(shape, min(axes, max(0, len(shape) - 1)) if rows else axes, most)


def _first(shape: tuple[int, ...], place: Place) -> int:
    """The number of the first entry in this place."""
    return sum(cut.start * math.prod(shape[i + 1 :]) for i, cut in enumerate(place[:-1]))


def _part(xp: Any, place: Place, z: Array, y: Array | None, w: Array | None) -> tuple[Any, Any, Any]:
    """Outputs in single precision at least, targets and weights of a part; weights broadcast from the left."""
    z = z[place] if xp.finfo(z.dtype).bits > 16 else xp.astype(z[place], xp.float32)
    if w is not None:
        w = w[tuple(cut if n > 1 else slice(None) for cut, n in zip(place, w.shape, strict=False))]
    return z, None if y is None else y[place], w


def _sum(xp: Any, loss: Loss, function: Callable[..., Array], z: Array, *data: Array | None) -> Array:
    made = [function(xp, *_part(xp, place, z, *data)) for place in _places(loss, z)]
    return xp.astype(grand_total(xp, xp.stack(made)), z.dtype, copy=False)
