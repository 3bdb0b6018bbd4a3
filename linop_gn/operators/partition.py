"""A vector's entries in blocks that an operator never mixes.

An operator that knows its blocks (``operator.partition``) can be solved with
block by block, all at once: :class:`linop_gn.Blockwise`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from ..spaces import Space

__all__ = ["Block", "Partition", "consecutive", "of_leaves"]


class Block(NamedTuple):
    """A block's name, and where its entries lie in the flat vector: ranges (start, stop), ascending, with gaps."""

    name: str
    ranges: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        return sum(stop - start for start, stop in self.ranges)


Partition: TypeAlias = tuple[Block, ...]
"""Blocks that share a vector's entries out, in the order of their first entries."""


def consecutive(sizes: Sequence[int]) -> Partition:
    """Blocks of these sizes, one after the other.

    >>> consecutive([2, 1])
    (Block(name='0', ranges=((0, 2),)), Block(name='1', ranges=((2, 3),)))
    """
    made, start = [], 0
    for number, size in enumerate(sizes):
        made.append(Block(str(number), ((start, start + size),)))
        start += size
    return _in_order(made)


@lru_cache(maxsize=64)
def of_leaves(space: Space, blocks: tuple[tuple[str | None, tuple[int, ...]], ...]) -> Partition:
    """Blocks of leaves of a space, by index, with their names (None: what the leaves' names have in common).

    >>> import numpy as np
    >>> space = Space.of({"fc": {"b": np.ones(2), "w": np.ones(4)}, "out": np.ones(1)})
    >>> of_leaves(space, ((None, (2,)), (None, (0, 1))))
    (Block(name='fc', ranges=((0, 6),)), Block(name='out', ranges=((6, 7),)))
    """
    sizes = [math.prod(shape) for shape in space.shapes]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    made = []
    for name, leaves in blocks:
        ranges: list[tuple[int, int]] = []
        for i in sorted(leaves):
            if ranges and ranges[-1][1] == starts[i]:
                ranges[-1] = (ranges[-1][0], starts[i] + sizes[i])
            else:
                ranges.append((starts[i], starts[i] + sizes[i]))
        made.append(Block(_common([space.names[i] for i in leaves]) if name is None else name, tuple(ranges)))
    return _in_order(made)


def _common(names: Sequence[str]) -> str:
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(p) > shared and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return ".".join(parts[0][:shared]) or "+".join(names)


def _in_order(blocks: Iterable[Block]) -> Partition:
    """By their first entries; those without any left out."""
    return tuple(sorted((block for block in blocks if block.size > 0), key=lambda block: block.ranges[0]))
