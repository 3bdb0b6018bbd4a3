"""Entries of a vector in groups that an operator never mixes.

An operator that knows such groups (``operator.sections``) can be solved with
group by group, all at once: :class:`linop_gn.Blockwise`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from ..spaces import Space

__all__ = ["Section", "consecutive", "of_leaves"]


class Section(NamedTuple):
    """A group's name, and where its entries lie in the flat vector: ranges (start, stop), ascending, with gaps."""

    name: str
    runs: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        return sum(stop - start for start, stop in self.runs)


def consecutive(sizes: Sequence[int]) -> tuple[Section, ...]:
    """Groups of these sizes, one after the other.

    >>> consecutive([2, 1])
    (Section(name='0', runs=((0, 2),)), Section(name='1', runs=((2, 3),)))
    """
    made, start = [], 0
    for number, size in enumerate(sizes):
        made.append(Section(str(number), ((start, start + size),)))
        start += size
    return _in_order(made)


@lru_cache(maxsize=64)
def of_leaves(space: Space, groups: tuple[tuple[str | None, tuple[int, ...]], ...]) -> tuple[Section, ...]:
    """Groups of leaves of a space, by index, with their names (None: what the leaves' names have in common).

    >>> import numpy as np
    >>> space = Space.of({"fc": {"b": np.ones(2), "w": np.ones(4)}, "out": np.ones(1)})
    >>> of_leaves(space, ((None, (2,)), (None, (0, 1))))
    (Section(name='fc', runs=((0, 6),)), Section(name='out', runs=((6, 7),)))
    """
    sizes = [math.prod(shape) for shape in space.shapes]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    made = []
    for name, leaves in groups:
        runs: list[tuple[int, int]] = []
        for i in sorted(leaves):
            if runs and runs[-1][1] == starts[i]:
                runs[-1] = (runs[-1][0], starts[i] + sizes[i])
            else:
                runs.append((starts[i], starts[i] + sizes[i]))
        made.append(Section(_common([space.names[i] for i in leaves]) if name is None else name, tuple(runs)))
    return _in_order(made)


def _common(names: Sequence[str]) -> str:
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(p) > shared and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return ".".join(parts[0][:shared]) or "+".join(names)


def _in_order(sections: Iterable[Section]) -> tuple[Section, ...]:
    """By their first entries; those without any left out."""
    return tuple(sorted((s for s in sections if s.size > 0), key=lambda s: s.runs[0]))
