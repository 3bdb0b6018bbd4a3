"""Ways of cutting the parameters into blocks.

======================== =====================================================
``"leaf"``               every array is a block
``"layer"``              the arrays under one path prefix: ``fc1.weight`` and
                         ``fc1.bias`` share ``fc1``; a leaf without a prefix
                         stands alone
``re.compile(r"h\\.\\d+")`` leaves whose names match share the block named by
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

from ..spaces import Space

__all__ = ["Blocks", "Partition", "partition"]

Partition: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]
"""Block names with the indices of their leaves, in the order of the first leaf."""
Blocks: TypeAlias = "str | re.Pattern[str] | Mapping[str, str | Sequence[str]] | Callable[[str], str]"


def partition(space: Space, blocks: Any) -> Partition:
    """The leaves of ``space`` by block.

    >>> import numpy as np
    >>> space = Space.of({"fc1": {"b": np.ones(2), "w": np.ones((2, 2))}, "fc2": {"w": np.ones(2)}})
    >>> partition(space, "layer")
    (('fc1', (0, 1)), ('fc2', (2,)))
    >>> partition(space, {"all": "*"})
    (('all', (0, 1, 2)),)

    Raises
    ------
    ValueError
        For a leaf in no block or in two, a pattern that matches nothing, or an unknown word.
    """
    name_of = _rule(space, blocks)
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(space.names):
        groups.setdefault(name_of(name), []).append(index)
    return tuple((name, tuple(indices)) for name, indices in groups.items())


def _rule(space: Space, blocks: Any) -> Callable[[str], str]:
    if blocks == "leaf":
        return lambda name: name
    if blocks == "layer":
        return _layer
    if isinstance(blocks, re.Pattern):
        return lambda name: _matched(blocks, name)
    if isinstance(blocks, Mapping):
        return _listed(space, blocks).__getitem__
    if callable(blocks):
        return lambda name: str(blocks(name))
    raise ValueError(
        f"blocks must be 'layer', 'leaf', a compiled regular expression, a dict of name patterns or a function from leaf "
        f"name to block name, got {blocks!r}."
    )


def _layer(name: str) -> str:
    prefix, _, _ = name.rpartition(".")
    return prefix or name


def _matched(pattern: re.Pattern[str], name: str) -> str:
    match = pattern.search(name)
    if match is None:
        return _layer(name)
    return match.group(1) if pattern.groups else match.group(0)


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
