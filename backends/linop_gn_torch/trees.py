"""Trees of tensors through optree, with dicts in the order that they have.

optree sorts dict keys by default. Kept in insertion order, a module's
parameters lie in a flat vector as ``torch.nn.utils.parameters_to_vector`` puts
them, which is what people compare with.
"""

from __future__ import annotations

from typing import Any

import optree

from linop_gn.eager.array_api import names_of

__all__ = ["NAMESPACE", "flatten_tree", "map_tree"]

NAMESPACE = "linop_gn_torch"
_in_insertion_order = optree.dict_insertion_ordered(True, namespace=NAMESPACE)  # ends when collected, so it is held
_in_insertion_order.__enter__()


def flatten_tree(tree: Any) -> tuple[list[str], list[Any], optree.PyTreeSpec]:
    """Names (paths joined by dots), leaves, structure.

    >>> names, leaves, _ = flatten_tree({"b": 1, "a": [2, {"0.weight": 3}]})
    >>> names, leaves
    (['b', 'a.0', 'a.1.0.weight'], [1, 2, 3])
    """
    leaves, structure = optree.tree_flatten(tree, namespace=NAMESPACE)
    return list(names_of(structure)), leaves, structure


def map_tree(function: Any, tree: Any) -> Any:
    """``function`` of every leaf."""
    return optree.tree_map(function, tree, namespace=NAMESPACE)
