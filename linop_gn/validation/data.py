"""Vectors and batches: to the host and back, cast, taken apart, put together."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from ..curvature.batches import Batch
from ..curvature.terms import Terms
from ..protocols import Array, Backend, Tree, Vector
from ..records import replace
from ..spaces import Space

__all__ = ["cast_floats", "digest", "entries", "host", "place", "union", "unstacked"]

NDArray = np.ndarray[Any, Any]


def host(space: Space, x: Array) -> NDArray:
    """The values of a vector in float64."""
    return np.asarray(space.backend.to_numpy(x)).astype(np.float64)


def place(space: Space, x: NDArray) -> Vector:
    """Host values as a new vector of the space, rounded to its dtype; whoever writes to it does not write to ``x``."""
    return space.backend.asarray(np.array(x), space.dtype, space.device)


def _arrays(backend: Backend, tree: Tree) -> list[Array]:
    return [leaf for leaf in backend.flatten(tree)[1] if backend.is_array(leaf)]


def digest(backend: Backend, tree: Tree) -> list[str]:
    """A fingerprint of each array in a tree."""
    values = (np.ascontiguousarray(backend.to_numpy(leaf)) for leaf in _arrays(backend, tree))
    return [hashlib.blake2b(x.tobytes(), digest_size=16).hexdigest() for x in values]


def parts(batch: Batch) -> tuple[Tree, Tree, Tree]:
    """Inputs, targets and weights as one tree."""
    return batch.inputs, batch.targets, batch.weights


def _mapped(backend: Backend, function: Callable[[Array], Array], tree: Tree) -> Tree:
    """``tree`` with ``function`` of each array in it; whatever is no array stays."""
    _, leaves, structure = backend.flatten(tree)
    return backend.unflatten(structure, [function(x) if backend.is_array(x) else x for x in leaves])


def cast_floats(backend: Backend, tree: Tree, dtype: str) -> Tree:
    """``tree`` with its floating arrays in another dtype."""

    def cast(x: Array) -> Array:
        return backend.cast(x, dtype) if "float" in backend.describe(x)[1] else x

    return _mapped(backend, cast, tree)


def _at(place: Any, i: int) -> Any:
    return None if place is None else place[i]


def unstacked(terms: Terms, space: Space) -> list[Batch]:
    """The batches in memory, each by itself."""
    ops, found = space.backend, []
    for batch in terms.batches:
        count = _arrays(ops, parts(batch))[0].shape[0] if batch.stacked else 0
        cut = [
            replace(Batch(*_mapped(ops, itemgetter(i), parts(batch))), place=_at(batch.place, i)) for i in range(count)
        ]
        found += cut or [batch]
    return found


def entries(backend: Backend, batches: Sequence[Batch]) -> int:
    """How many numbers the batches hold."""
    return sum(math.prod(backend.describe(x)[0]) for batch in batches for x in _arrays(backend, parts(batch)))


def union(backend: Backend, batches: Sequence[Batch]) -> Batch:
    """One batch of the examples of all, which lie along the first axis of every array.

    Raises
    ------
    ValueError
        If shapes, or what is no array, do not allow it.
    """
    flat = [backend.flatten(parts(batch)) for batch in batches]
    if any(structure != flat[0][2] for _, _, structure in flat):
        raise ValueError("batches differ in structure")

    def joined(arrays: Sequence[Any]) -> Any:
        if not backend.is_array(arrays[0]):
            if any(type(x) is not type(arrays[0]) or x != arrays[0] for x in arrays):
                raise ValueError("batches differ in inputs that are no arrays")
            return arrays[0]
        shapes = [tuple(x.shape) for x in arrays]
        if any(not shape or shape[1:] != shapes[0][1:] for shape in shapes):
            raise ValueError(f"arrays of shapes {shapes[0]} and {shapes[-1]} do not make one batch")
        return backend.namespace().concat(list(arrays))

    columns = zip(*(leaves for _, leaves, _ in flat), strict=True)
    return Batch(*backend.unflatten(flat[0][2], [joined(column) for column in columns]))
