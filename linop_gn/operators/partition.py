"""A vector's entries in blocks that an operator never mixes: ranges of flat vectors, or whole leaves.

An operator that knows its blocks (``operator.partition``) can be solved with
block by block, all at once: :class:`linop_gn.Blockwise`. Where vectors lie over
several devices, in an order of their own, blocks of whole leaves can be, and no
others (``operator.leaf_blocks``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from ..spaces import Space

__all__ = ["Block", "LeafBlock", "Partition", "consecutive", "named", "of_leaves", "of_ranges"]


class Block(NamedTuple):
    """A block's name, and where its entries lie in the flat vector: ranges (start, stop), ascending, with gaps."""

    name: str
    ranges: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        return sum(stop - start for start, stop in self.ranges)


class LeafBlock(NamedTuple):
    """A block of whole leaves: its name, their indices, and their space, a flat dict from leaf name to array."""

    name: str
    leaves: tuple[int, ...]
    space: Space


Partition: TypeAlias = tuple[Block, ...]
"""Blocks that share a vector's entries out, in the order of their first entries."""


def consecutive(sizes: Sequence[int]) -> Partition:
    """Blocks of these sizes, one after the other.

    >>> consecutive([2, 1])
    (Block(name='0', ranges=((0, 2),)), Block(name='1', ranges=((2, 3),)))
    """
    made, start = [], 0
    for number, size in enumerate(sizes):
        made.append((str(number), [(start, start + size)]))
        start += size
    return of_ranges(made)


def of_ranges(blocks: Iterable[tuple[str, Sequence[tuple[int, int]]]]) -> Partition:
    """Blocks with these names and ranges (start, stop), which are in any order; those without entries are left out.

    >>> of_ranges([("late", [(2, 3)]), ("early", [(1, 2), (0, 1), (3, 4)])])
    (Block(name='early', ranges=((0, 2), (3, 4))), Block(name='late', ranges=((2, 3),)))
    """
    made = []
    for name, given in blocks:
        ranges: list[tuple[int, int]] = []
        for start, stop in sorted(given):
            if ranges and ranges[-1][1] == start:
                ranges[-1] = (ranges[-1][0], stop)
            else:
                ranges.append((start, stop))
        made.append(Block(name, tuple(ranges)))
    return tuple(sorted((block for block in made if block.size > 0), key=lambda block: block.ranges[0]))


@lru_cache(maxsize=64)
def of_leaves(space: Space, blocks: tuple[LeafBlock, ...]) -> Partition:
    """Where blocks of whole leaves of a space lie in its flat vectors.

    >>> import numpy as np
    >>> space = Space.of({"fc": {"b": np.ones(2), "w": np.ones(4)}, "out": np.ones(1)})
    >>> of_leaves(space, (LeafBlock("out", (2,), space.part((2,))), LeafBlock("fc", (0, 1), space.part((0, 1)))))
    (Block(name='fc', ranges=((0, 6),)), Block(name='out', ranges=((6, 7),)))
    """
    where = list(space.slices.values())
    return of_ranges((block.name, [(where[i].start, where[i].stop) for i in block.leaves]) for block in blocks)


@lru_cache(maxsize=64)
def named(space: Space, leaves: tuple[tuple[int, ...], ...], spaces: tuple[Space, ...]) -> tuple[LeafBlock, ...]:
    """Blocks of these leaves of a space, in spaces of their own, named by what the leaves' names have in common.

    >>> import numpy as np
    >>> space = Space.of({"fc": {"b": np.ones(2), "w": np.ones(4)}, "out": np.ones(1)})
    >>> [block.name for block in named(space, ((2,), (0, 1)), (space.part((2,)), space.part((0, 1))))]
    ['out', 'fc']
    """
    names = (_common([space.names[i] for i in group]) for group in leaves)
    return tuple(map(LeafBlock, names, leaves, spaces))


def _common(names: Sequence[str]) -> str:
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(p) > shared and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return ".".join(parts[0][:shared]) or "+".join(names)
