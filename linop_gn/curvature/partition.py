r"""Ways of cutting the parameters into blocks.

======================== =====================================================
``"leaf"``               every array is a block
``"layer"``              the arrays under one path prefix: ``fc1.weight`` and
                         ``fc1.bias`` share ``fc1``; a leaf without a prefix
                         stands alone
``re.compile(r"h\.\d+")`` leaves whose names match share the block named by
                         the match (its first group, if it has one); the rest
                         go by layer
``{"head": ["head.*"]}`` a block for each entry: leaf names or shell patterns
a function               leaf name -> block name
======================== =====================================================

Every leaf belongs to exactly one block.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from ..operators.partition import LeafBlock, Partition
from ..spaces import Space

__all__ = ["Blocks", "partition", "whole_leaves"]


Blocks: TypeAlias = "str | re.Pattern[str] | Mapping[str, str | Sequence[str]] | Callable[[str], str]"


def partition(space: Space, blocks: Blocks) -> tuple[LeafBlock, ...]:
    """The leaves of ``space`` by block, in the order of the blocks' first leaves.

    >>> import numpy as np
    >>> space = Space.of({"fc1": {"b": np.ones(2), "w": np.ones((2, 2))}, "fc2": {"w": np.ones(2)}})
    >>> [(block.name, block.leaves) for block in partition(space, "layer")]
    [('fc1', (0, 1)), ('fc2', (2,))]
    >>> [block.space for block in partition(space, {"all": "*"})]
    [Space(8 in 3 leaves, numpy float64 on cpu)]

    Raises
    ------
    ValueError
        For a leaf in no block or in two, a pattern that matches nothing, or an unknown word.
    """
    name_of = _rule(space, blocks)
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(space.names):
        groups.setdefault(name_of(name), []).append(index)
    return tuple(LeafBlock(name, tuple(leaves), space.part(tuple(leaves))) for name, leaves in groups.items())


def whole_leaves(space: Space, known: Partition) -> tuple[LeafBlock, ...] | None:
    """The blocks that an operator knows of, by their leaves; None where there are none or one cuts a leaf in two.

    >>> import numpy as np
    >>> from linop_gn.operators.partition import consecutive
    >>> space = Space.of({"b": np.ones(2), "w": np.ones((2, 2))})
    >>> [block.leaves for block in whole_leaves(space, consecutive([2, 4]))], whole_leaves(space, consecutive([3, 3]))
    ([(0,), (1,)], None)
    """
    if not known:
        return None
    made, leaves = [], list(space.slices.values())
    for block in known:
        mine = tuple(i for i, s in enumerate(leaves) if any(a <= s.start and s.stop <= b for a, b in block.ranges))
        if sum(leaves[i].stop - leaves[i].start for i in mine) != block.size:
            return None
        made.append(LeafBlock(block.name, mine, space.part(mine)))
    return tuple(made) or None


def _rule(space: Space, blocks: Any) -> Callable[[str], str]:
    if isinstance(blocks, str) and blocks == "leaf":
        return lambda name: name
    if isinstance(blocks, str) and blocks == "layer":
        return lambda name: name.rpartition(".")[0] or name
    if isinstance(blocks, re.Pattern):
        if not any(map(blocks.search, space.names)):
            raise ValueError(f"the pattern {blocks.pattern!r} matches no leaf; there are {list(space.names)}.")
        return lambda name: _matched(blocks, name)
    if isinstance(blocks, Mapping):
        return _listed(space, blocks).__getitem__
    if callable(blocks):
        return lambda name: _named(blocks, name)
    raise ValueError(
        "blocks must be 'layer', 'leaf', a compiled regular expression, a dict of name patterns or a function from "
        f"leaf name to block name, got {blocks!r}."
    )


def _matched(pattern: re.Pattern[str], name: str) -> str:
    match = pattern.search(name)
    if match is None:
        return name.rpartition(".")[0] or name
    return (match.group(1) if pattern.groups else None) or match.group(0)


def _named(rule: Callable[[str], Any], name: str) -> str:
    block = rule(name)
    if block is None:
        raise ValueError(f"leaf {name!r} is in no block: the function gave None. Every parameter needs a block's name.")
    return str(block)


def _listed(space: Space, blocks: Mapping[str, Any]) -> dict[str, str]:
    owner: dict[str, str] = {}
    for block, patterns in blocks.items():
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            hits = [name for name in space.names if name == pattern or fnmatchcase(name, pattern)]
            if not hits:
                raise ValueError(f"block {block!r}: {pattern!r} matches no leaf; there are {list(space.names)}.")
            for name in hits:
                if owner.setdefault(name, block) != block:
                    raise ValueError(f"leaf {name!r} is in two blocks, {owner[name]!r} and {block!r}.")
    missing = [name for name in space.names if name not in owner]
    if missing:
        raise ValueError(f"leaves {missing} are in no block; every parameter needs one (add a block with a pattern).")
    return owner
