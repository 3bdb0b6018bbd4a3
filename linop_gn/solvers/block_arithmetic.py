"""A backend's arithmetic with one scalar for each block of a vector.

Where columns (n, k) have k scalars, one for each column, a vector (n,) cut into
k blocks has k scalars, one for each block: inner products are sums over blocks,
and ``a x + y`` takes each block times its own number. A method that is written
with these operations solves each block on its own, without knowing it.

Every operation is the backend's own on each range of entries (views, where it has
them), so that blocks are added up as safely as whole vectors. In-place backends
write into the vector; others join the parts.

Where vectors lie over several devices, no range of entries has a place, and blocks
are of whole leaves (:class:`SharedBlocks`): the layout sums over each on all devices
at once, by one all-reduce of k numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from ..operators.partition import LeafBlock, Partition
from ..protocols import Scalar, Vector

__all__ = ["BlockArithmetic", "SharedBlocks", "block_arithmetic"]

R = TypeVar("R")


class BlockArithmetic:
    """The view of ``ops`` in which a vector has one scalar for each block; the rest is the backend's.

    >>> import numpy as np, linop_gn as lg
    >>> from linop_gn.operators.partition import Block
    >>> x = np.array([1.0, 2.0, 3.0])
    >>> ops = BlockArithmetic(lg.backend_of(x), (Block("a", ((0, 2),)), Block("b", ((2, 3),))))
    >>> ops.dot(x, x), ops.scale(np.array([10.0, 0.0]), x)
    (array([5., 9.]), array([10., 20.,  0.]))
    """

    def __init__(self, ops: Any, partition: Partition) -> None:
        self.ops, self.count = ops, len(partition)
        self.size = sum(block.size for block in partition)
        ranges = sorted((start, stop, j) for j, block in enumerate(partition) for start, stop in block.ranges)
        self.ranges = [(slice(start, stop), j) for start, stop, j in ranges]
        self.in_place = _writes_through_views(ops)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ops, name)

    # one number for each block

    def _reduced(self, function: Callable[..., Scalar], join: Callable[..., Scalar], *vectors: Vector) -> Scalar:
        found: list[Any] = [None] * self.count
        for where, j in self.ranges:
            value = function(*[x[where] for x in vectors])
            found[j] = value if found[j] is None else join(found[j], value)
        return self.ops.stack(found)

    def dot(self, x: Vector, y: Vector) -> Scalar:
        return self._reduced(self.ops.dot, lambda a, b: a + b, x, y)

    def max_abs(self, x: Vector) -> Scalar:
        return self._reduced(self.ops.max_abs, self.ops.maximum, x)

    def scalar(self, value: Any, like: Vector) -> Scalar:
        return self.ops.stack([self.ops.scalar(value, like)] * self.count)

    # vectors

    def _joined(self, parts: Sequence[Vector]) -> Vector:
        concat: Callable[..., Vector] = self.ops.namespace().concat
        return parts[0] if len(parts) == 1 else concat(list(parts), axis=0)

    def scale(self, a: Scalar, x: Vector) -> Vector:
        if np.ndim(a) == 0:
            return self.ops.scale(a, x)
        parts = [self.ops.scale(_at(a, j), x[where]) for where, j in self.ranges]
        return x if self.in_place else self._joined(parts)

    def axpy(self, a: Scalar, x: Vector, y: Vector) -> Vector:
        if np.ndim(a) == 0:
            return self.ops.axpy(a, x, y)
        parts = [self.ops.axpy(_at(a, j), x[where], y[where]) for where, j in self.ranges]
        return y if self.in_place else self._joined(parts)

    def axpby(self, a: Scalar, x: Vector, b: Scalar, y: Vector) -> Vector:
        if np.ndim(a) == np.ndim(b) == 0:
            return self.ops.axpby(a, x, b, y)
        parts = [self.ops.axpby(_at(a, j), x[where], _at(b, j), y[where]) for where, j in self.ranges]
        return y if self.in_place else self._joined(parts)

    def select(self, condition: Scalar, x: Vector, y: Vector) -> Vector:
        if np.ndim(condition) == 0:
            return self.ops.select(condition, x, y)
        if isinstance(condition, np.ndarray) and condition.all() == condition.any():
            return x if condition.all() else y
        return self._joined([self.ops.select(_at(condition, j), x[where], y[where]) for where, j in self.ranges])

    def mask(self, condition: Scalar, x: Vector) -> Vector:
        return self.select(condition, x, self.ops.zeros_like(x)) if np.ndim(condition) else self.ops.mask(condition, x)

    def branch(self, condition: Scalar, then: Callable[..., R], otherwise: Callable[..., R], *operands: Any) -> R:
        if np.ndim(condition) == 0:
            chosen: R = self.ops.branch(condition, then, otherwise, *operands)
            return chosen

        def each(*operands: Any) -> R:
            if isinstance(condition, np.ndarray) and condition.all():
                return then(*operands)
            copies = [self.ops.copy(x) if self._is_vector(x) else x for x in operands]
            pairs = zip(then(*copies), otherwise(*operands), strict=True)  # type: ignore[call-overload]
            return tuple(
                self.select(condition, x, y) if self._is_vector(x) else self.ops.where(condition, x, y)
                for x, y in pairs
            )  # type: ignore[return-value]

        # Where it holds for no block, which is the rule for what is rare, a compiled program does not run both.
        made: R = self.ops.branch(self.ops.any(condition), each, otherwise, *operands)
        return made

    either = branch

    def dots(self, *pairs: tuple[Vector, Vector]) -> tuple[Scalar, ...]:
        return tuple(self.dot(x, y) for x, y in pairs)

    def _is_vector(self, x: Any) -> bool:
        # With as many blocks as entries, a scalar looks like one; then both are chosen from entry by entry.
        return self.ops.is_array(x) and tuple(x.shape) == (self.size,)

    # shelves

    def shelf(self, capacity: int, like: Vector) -> Any:
        return tuple(self.ops.shelf(capacity, like[where]) for where, _ in self.ranges)

    def put(self, shelf: Any, index: Scalar, value: Vector, wanted: Scalar) -> Any:
        return tuple(
            self.ops.put(part, _at(index, j), value[where], _at(wanted, j))
            for part, (where, j) in zip(shelf, self.ranges, strict=True)
        )

    def get(self, shelf: Any, index: int) -> Vector:
        return self._joined([self.ops.get(part, index) for part in shelf])


class SharedBlocks(BlockArithmetic):
    """The same where a layout has vectors on several devices: blocks are of leaves.

    An entry is multiplied by the number of its own block, and chosen by its own condition, so that what is not finite
    in one block stays there.
    """

    def __init__(self, ops: Any, blocks: tuple[LeafBlock, ...], layout: Any) -> None:
        self.ops, self.count, self.size, self.layout = ops, len(blocks), layout.size, layout
        self.leaves = tuple(block.leaves for block in blocks)

    def dot(self, x: Vector, y: Vector) -> Scalar:
        return self.layout.by_block("dot", self.leaves, x, y)

    def max_abs(self, x: Vector) -> Scalar:
        return self.layout.by_block("max_abs", self.leaves, x)

    def _entries(self, a: Scalar, like: Vector) -> Any:
        """One number as it is; of k, a vector of the number that belongs to each entry."""
        return a if np.ndim(a) == 0 else self.layout.of_blocks(a, self.leaves, like)

    def _as(self, like: Vector, x: Vector) -> Vector:
        return self.ops.cast(x, self.ops.describe(like)[1])

    def scale(self, a: Scalar, x: Vector) -> Vector:
        return self.ops.scale(a, x) if np.ndim(a) == 0 else self._as(x, self._entries(a, x) * x)

    def axpy(self, a: Scalar, x: Vector, y: Vector) -> Vector:
        return self.ops.axpy(a, x, y) if np.ndim(a) == 0 else self._as(y, self._entries(a, y) * x + y)

    def axpby(self, a: Scalar, x: Vector, b: Scalar, y: Vector) -> Vector:
        if np.ndim(a) == np.ndim(b) == 0:
            return self.ops.axpby(a, x, b, y)
        return self._as(y, self._entries(a, y) * x + self._entries(b, y) * y)

    def select(self, condition: Scalar, x: Vector, y: Vector) -> Vector:
        if np.ndim(condition) == 0:
            return self.ops.select(condition, x, y)
        if isinstance(condition, np.ndarray) and condition.all() == condition.any():
            return x if condition.all() else y
        chosen: Vector = self.ops.namespace().where(self._entries(condition, y), x, y)
        return chosen

    # A shelf is one for each place, since blocks put at different ones.

    def shelf(self, capacity: int, like: Vector) -> Any:
        return tuple(self.ops.shelf(1, like) for _ in range(capacity))

    def put(self, shelf: Any, index: Scalar, value: Vector, wanted: Scalar) -> Any:
        made = []
        for place, held in enumerate(shelf):
            here = wanted & (index == place)
            made.append(self.ops.put(held, 0, self.select(here, value, self.ops.get(held, 0)), self.ops.any(here)))
        return tuple(made)

    def get(self, shelf: Any, index: int) -> Vector:
        return self.ops.get(shelf[index], 0)


@lru_cache(maxsize=64)
def block_arithmetic(ops: Any, blocks: Any, layout: Any = None) -> BlockArithmetic:
    """The one view of ``ops`` with a scalar for each block: of a partition, or of leaves that a layout has."""
    return BlockArithmetic(ops, blocks) if layout is None else SharedBlocks(ops, blocks, layout)


@lru_cache(maxsize=64)
def _writes_through_views(ops: Any) -> bool:
    """Whether updates of part of a vector change the vector: tried, since results may also be new arrays."""
    if not {"in_place", "views"} <= ops.capabilities:
        return False
    one, y = ops.asarray(np.ones(1), "float32"), ops.asarray(np.ones(2), "float32")
    ops.scale(2.0, y[:1])
    ops.axpy(1.0, one, y[:1])
    ops.axpby(1.0, one, 2.0, y[:1])
    return bool(ops.to_numpy(y)[0] == 7.0)


def _at(a: Scalar, j: int) -> Scalar:
    """The number that belongs to block j: a Python number where work is eager."""
    if np.ndim(a) == 0:
        return a
    return a[j].item() if isinstance(a, np.ndarray) else a[j]
