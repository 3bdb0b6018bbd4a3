"""Trees of tensors through optree, with dicts in the order that they have.

optree sorts dict keys by default. Kept in insertion order, a module's
parameters lie in a flat vector as ``torch.nn.utils.parameters_to_vector`` puts
them, which is what people compare with.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import optree

__all__ = ["flatten_tree", "map_tree", "unflatten_tree"]

_NAMESPACE = "linop_gn_torch"
_in_insertion_order = optree.dict_insertion_ordered(True, namespace=_NAMESPACE)  # ends when collected, so it is kept
_in_insertion_order.__enter__()


@lru_cache(maxsize=256)
def _names(structure: optree.PyTreeSpec) -> tuple[str, ...]:
    return tuple(
        ".".join(str(getattr(entry, "field", entry.entry)) for entry in accessor) for accessor in structure.accessors()
    )


def flatten_tree(tree: Any) -> tuple[list[str], list[Any], optree.PyTreeSpec]:
    """Names (paths joined by dots), leaves, structure.

    >>> names, leaves, _ = flatten_tree({"b": 1, "a": [2, {"0.weight": 3}]})
    >>> names, leaves
    (['b', 'a.0', 'a.1.0.weight'], [1, 2, 3])
    """
    leaves, structure = optree.tree_flatten(tree, namespace=_NAMESPACE)
    return list(_names(structure)), leaves, structure


def unflatten_tree(structure: optree.PyTreeSpec, leaves: Sequence[Any]) -> Any:
    """The inverse of :func:`flatten_tree`."""
    return optree.tree_unflatten(structure, leaves)


def map_tree(function: Any, tree: Any) -> Any:
    """``function`` of every leaf."""
    return optree.tree_map(function, tree, namespace=_NAMESPACE)
