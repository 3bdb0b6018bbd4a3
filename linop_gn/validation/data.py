"""Batches taken apart, put together, and cast."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

from ..curvature.batches import Batch
from ..curvature.terms import Terms
from ..protocols import Array, Backend, Tree
from ..spaces import Space

__all__ = ["cast_floats", "entries", "mapped", "union", "unstacked"]


def mapped(backend: Backend, function: Callable[[Array], Array], tree: Tree) -> Tree:
    """``tree`` with ``function`` of each array in it; None and whatever is no array stay."""
    if tree is None:
        return None
    _, leaves, structure = backend.flatten(tree)
    return backend.unflatten(structure, [function(x) if backend.is_array(x) else x for x in leaves])


def _each(backend: Backend, function: Callable[[Array], Array], batch: Batch) -> Batch:
    return Batch(*(mapped(backend, function, part) for part in (batch.inputs, batch.targets, batch.weights)))


def cast_floats(backend: Backend, tree: Tree, dtype: str) -> Tree:
    """``tree`` with its floating arrays in another dtype."""

    def cast(x: Array) -> Array:
        return backend.cast(x, dtype) if "float" in backend.describe(x)[1] else x

    return mapped(backend, cast, tree)


def unstacked(terms: Terms, space: Space) -> list[Batch]:
    """The batches in memory, each by itself."""
    ops, found = space.backend, []
    for batch in terms.batches:
        if not batch.stacked:
            found.append(batch)
            continue
        count = next(iter(_arrays(ops, batch))).shape[0]
        found += [_each(ops, itemgetter(i), batch) for i in range(count)]
    return found


def _arrays(backend: Backend, batch: Batch) -> list[Array]:
    _, leaves, _ = backend.flatten((batch.inputs, batch.targets, batch.weights))
    return [leaf for leaf in leaves if backend.is_array(leaf)]


def entries(backend: Backend, batches: Sequence[Batch]) -> int:
    """How many numbers the batches hold."""
    return sum(math.prod(backend.describe(x)[0]) for batch in batches for x in _arrays(backend, batch))


def union(backend: Backend, batches: Sequence[Batch]) -> Batch:
    """One batch of the examples of all, which lie along the first axis of every array.

    Raises
    ------
    ValueError
        If shapes, or what is no array, do not allow it.
    """
    xp = backend.namespace()

    def joined(parts: list[Any]) -> Any:
        if not backend.is_array(parts[0]):
            if any(type(part) is not type(parts[0]) or part != parts[0] for part in parts):
                raise ValueError("batches differ in inputs that are no arrays")
            return parts[0]
        shapes = [tuple(part.shape) for part in parts]
        if any(not shape or shape[1:] != shapes[0][1:] for shape in shapes):
            raise ValueError(f"arrays of shapes {shapes[0]} and {shapes[-1]} do not make one batch")
        return xp.concat(parts)

    def whole(parts: list[Tree]) -> Tree:
        if all(part is None for part in parts):
            return None
        flat = [backend.flatten(part) for part in parts]
        if any(structure != flat[0][2] for _, _, structure in flat):
            raise ValueError("batches differ in structure")
        columns = zip(*(leaves for _, leaves, _ in flat), strict=True)
        return backend.unflatten(flat[0][2], [joined(list(column)) for column in columns])

    weights = [batch.weights for batch in batches]
    if any(w is None for w in weights) and not all(w is None for w in weights):
        raise ValueError("some batches have weights and some have none")
    return Batch(whole([b.inputs for b in batches]), whole([b.targets for b in batches]), whole(weights))
