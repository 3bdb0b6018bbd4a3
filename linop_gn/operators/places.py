"""Where the blocks of a Kronecker-factored operator lie among the parameters.

A weight is a matrix (outputs, inputs) to its factors, and any array to the model: transposed, cut out of a larger one,
with several axes on either side. A :class:`Place` reads the matrix off a flat vector and writes it back; where a weight
is a run of entries, which it nearly always is, that copies no more than a transposition does.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..protocols import Array, Product, Vector, View
from ..spaces import Space
from .partition import Partition, of_ranges

__all__ = ["Place", "assembled", "disjoint", "entries", "lies_as_product", "lies_by_columns", "partition_of_places"]


class Place(NamedTuple):
    """The matrices (groups, outputs, inputs) of one block: a weight, and a bias as one more input."""

    name: str
    weight: View
    """(groups, *outputs, *inputs)."""
    outputs: int
    """Axes of the outputs."""
    bias: View | None = None
    """(groups, *outputs)."""

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Groups, outputs, inputs."""
        shape, last = self.weight.shape, 1 + self.outputs
        return shape[0], math.prod(shape[1:last]), math.prod(shape[last:]) + (self.bias is not None)

    @property
    def views(self) -> tuple[View, ...]:
        """The weight, and the bias if there is one."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def read(self, space: Space, v: Vector) -> Array:
        """The matrices (groups, outputs, inputs) of a flat vector (n,), or (k, groups, outputs, inputs) of (k, n)."""
        xp, lead, (groups, outputs, inputs) = space.backend.namespace(), tuple(v.shape[:-1]), self.sizes
        parts = [_read(space, v, view) for view in self.views]
        if self.bias is None:
            return xp.reshape(parts[0], (*lead, groups, outputs, inputs))
        weight = xp.reshape(parts[0], (*lead, groups, outputs, inputs - 1))
        return xp.concat([weight, xp.reshape(parts[1], (*lead, groups, outputs, 1))], axis=-1)

    def written(self, space: Space, matrices: Array) -> list[tuple[View, Array]]:
        """The entries of each view as they lie in the vector, (n_view,) or (k, n_view), of matrices that were read."""
        lead = tuple(matrices.shape[:-3])
        if self.bias is None:
            return [(self.weight, _laid(space, matrices, self.weight, lead))]
        weight, bias = matrices[..., :-1], matrices[..., -1]
        return [
            (self.weight, _laid(space, weight, self.weight, lead)),
            (self.bias, _laid(space, bias, self.bias, lead)),
        ]


def assembled(space: Space, parts: list[tuple[View, Array | Product]], rest: Array | None) -> Vector:
    """The flat vector (n,), or (k, n), of which these are entries; the others are those of ``rest``, or zero.

    No entry may be in two parts. Of a vector (n,) a part may be a product that lies as its view does.
    """
    xp = space.backend.namespace()
    views = tuple(view for view, _ in parts)
    if rest is None:  # seldom is anything missing
        whole = sum(part.size if isinstance(part, Product) else part.shape[-1] for _, part in parts) == space.size
        one = next((part for _, part in parts if not isinstance(part, Product)), None)
        like: Any = parts[0][1].left if one is None else one
        if whole:
            rest = xp.reshape(like, (-1,))[:0] if one is None else like[..., :0]
        else:
            rest = xp.astype(space.zeros(), like.dtype, copy=False)
    runs = [_run(space, view) for view in views]
    if any(run.start is None for run in runs):
        inverse, missing = _scattered(space, views)
        pieces = [*(part for _, part in parts), xp.take(rest, _positions(space, missing), axis=-1)]
        return xp.take(xp.concat(pieces, axis=-1), _positions(space, inverse), axis=-1)
    pieces, end = [], 0
    for run, (_, part) in sorted(zip(runs, parts, strict=True), key=lambda both: both[0].start or 0):
        if run.start > end:  # type: ignore[operator]
            pieces.append(rest[..., end : run.start])
        pieces.append(part)
        end = run.stop  # type: ignore[assignment]
    if end < space.size:
        pieces.append(rest[..., end:])
    if any(isinstance(piece, Product) for piece in pieces):
        return space.backend.laid(pieces)
    return pieces[0] if len(pieces) == 1 else xp.concat(pieces, axis=-1)


def lies_by_columns(place: Place) -> bool:
    """Whether the inputs of a weight come before its outputs in memory, so that to write its rows is to transpose."""
    view, last = place.weight, 1 + place.outputs
    steps = [abs(s) for s, n in zip(view.strides, view.shape, strict=True) if n > 1]
    inputs = [abs(s) for s, n in zip(view.strides[last:], view.shape[last:], strict=True) if n > 1]
    return bool(inputs) and min(inputs) > min(steps)


@lru_cache(maxsize=512)
def lies_as_product(space: Space, place: Place, flipped: bool) -> bool:
    """Whether a weight lies in memory as a matrix (outputs, inputs) does, or as its transpose if ``flipped``."""
    view, last, run = place.weight, 1 + place.outputs, _run(space, place.weight)
    outputs, inputs = list(range(1, last)), list(range(last, len(view.shape)))
    wanted = [i for i in (inputs + outputs if flipped else outputs + inputs) if view.shape[i] > 1]
    return view.shape[0] == 1 and run.start is not None and [i for i in run.order if view.shape[i] > 1] == wanted


@lru_cache(maxsize=8)  # they hold a number for each entry
def _scattered(space: Space, views: tuple[View, ...]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Where each entry of the vector is among those of the views and, after them, the missing ones; and these."""
    places = np.concatenate([entries(space, view) for view in views])
    absent = np.ones(space.size, bool)
    absent[places] = False
    missing = np.flatnonzero(absent)
    inverse = np.empty(space.size, np.int64)
    inverse[np.concatenate([places, missing])] = np.arange(space.size)
    return inverse, missing


class _Run(NamedTuple):
    """A view as it lies in memory: its axes by falling stride, and where it starts if its entries are a run."""

    order: tuple[int, ...]
    start: int | None
    stop: int | None


@lru_cache(maxsize=512)
def _run(space: Space, view: View) -> _Run:
    first = list(space.slices.values())[view.leaf].start + view.offset
    order = tuple(sorted(range(len(view.shape)), key=lambda i: (view.shape[i] > 1, -abs(view.strides[i]), i)))
    wanted = 1
    for i in reversed([i for i in order if view.shape[i] > 1]):
        if view.strides[i] != wanted:
            return _Run(order, None, None)
        wanted *= view.shape[i]
    return _Run(order, first, first + wanted)


def entries(space: Space, view: View) -> np.ndarray[Any, Any]:
    """The places in the flat vector of a view's entries, in the order of its axes by falling stride."""
    first = list(space.slices.values())[view.leaf].start + view.offset
    made = np.full((1,) * len(view.shape), first, np.int64)
    for axis, (n, stride) in enumerate(zip(view.shape, view.strides, strict=True)):
        steps = np.arange(n, dtype=np.int64) * (stride if n > 1 else 0)
        made = made + steps.reshape([-1 if i == axis else 1 for i in range(len(view.shape))])
    return made.transpose(_run(space, view).order).reshape(-1)


def disjoint(space: Space, views: list[View]) -> bool:
    """Whether no entry of the vector is in two of the views."""
    runs = [_run(space, view) for view in views]
    if all(run.start is not None for run in runs):
        ends = sorted((run.start or 0, run.stop or 0) for run in runs)
        return all(stop <= start for (_, stop), (start, _) in itertools.pairwise(ends))
    places = np.concatenate([entries(space, view) for view in views])
    return len(np.unique(places)) == len(places)


@lru_cache(maxsize=64)
def partition_of_places(space: Space, places: tuple[Place, ...]) -> Partition | None:
    """A block for each place, and one for each run of entries that are in none, named by its leaf and where in it.

    None where a weight is no run of entries: it may have a range for each of its rows, and vectors would be cut into
    as many pieces.
    """
    blocks: list[tuple[str, list[tuple[int, int]]]] = []
    covered: list[tuple[int, int]] = []
    for place in places:
        runs = [_run(space, view) for view in place.views]
        if any(run.start is None for run in runs):
            return None
        ranges = [(run.start or 0, run.stop or 0) for run in runs]
        blocks.append((place.name, ranges))
        covered += ranges
    covered.sort()
    for name, leaf in space.slices.items():
        inside = [(max(a, leaf.start), min(b, leaf.stop)) for a, b in covered if a < leaf.stop and leaf.start < b]
        ends = [leaf.start, *itertools.chain.from_iterable(inside), leaf.stop]
        for start, stop in zip(ends[::2], ends[1::2], strict=True):
            part = "" if (start, stop) == (leaf.start, leaf.stop) else f"[{start - leaf.start}:{stop - leaf.start}]"
            blocks.append((name + part, [(start, stop)]))
    return of_ranges(blocks)


def _read(space: Space, v: Vector, view: View) -> Array:
    xp, run, lead = space.backend.namespace(), _run(space, view), tuple(v.shape[:-1])
    if run.start is None:
        flat = xp.take(v, _positions(space, entries(space, view)), axis=-1)
    else:
        flat = v[..., run.start : run.stop]
    laid = xp.reshape(flat, lead + tuple(view.shape[i] for i in run.order))
    back, k = tuple(np.argsort(run.order).tolist()), len(lead)
    return xp.permute_dims(laid, (*range(k), *(k + i for i in back)))


def _laid(space: Space, matrices: Array, view: View, lead: tuple[int, ...]) -> Array:
    xp, k = space.backend.namespace(), len(lead)
    whole = xp.reshape(matrices, lead + view.shape)
    ordered = xp.permute_dims(whole, (*range(k), *(k + i for i in _run(space, view).order)))
    return xp.reshape(ordered, (*lead, math.prod(view.shape)))


def _positions(space: Space, places: np.ndarray[Any, Any]) -> Array:
    kind = "int32" if space.size < 2**31 else "int64"
    return space.backend.asarray(places, kind, space.device)
