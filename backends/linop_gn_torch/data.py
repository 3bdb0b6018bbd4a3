"""The tensors among the data of operators and methods: found, replaced, and put back.

Records (:func:`linop_gn.record`) say which of their fields are data; in these,
optree finds containers. The parameters of a point, which are detached, count as
what they were detached from.

Looking costs a few microseconds for an operator of a few tensors, at each solve.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import optree
from torch import Tensor, nn

from linop_gn.curvature.point import Point
from linop_gn.records import data_fields, memo, rebuild, static_fields

__all__ = ["Data", "may_ask"]

_NAMESPACE = "linop_gn_torch"
_PLAIN = {type(None), bool, int, float, str}


class Data:
    """A tree of records and tensors; ``tensors`` are those that require gradients, each once.

    ``asks`` tells whether one of them does for another reason than being a module's parameter.
    """

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        found: dict[int, Tensor] = {}
        self._kinds: set[type] = set()
        self.asks = _collect(tree, True, found, self._kinds)
        self.tensors = list(found.values())

    def filled(self, tensors: list[Tensor]) -> Any:
        """The tree with these in place of :attr:`tensors`."""
        new = {id(old): t for old, t in zip(self.tensors, tensors, strict=True)}
        return _map(lambda t: new.get(id(t), t), self.tree)

    def detached(self) -> Any:
        """The tree with plain numbers."""
        return _map(lambda t: t.detach() if t.requires_grad else t, self.tree)

    def holds(self, kind: type) -> bool:
        """Whether there is a record of this kind anywhere."""
        return any(issubclass(found, kind) for found in self._kinds)


def may_ask(tree: Any) -> bool:
    """Whether :class:`Data` may find a tensor that requires gradients: False for most, in a third of its time."""
    kind = type(tree)
    if kind is Tensor:
        return tree.requires_grad  # type: ignore[no-any-return]
    if kind in _PLAIN:
        return False
    names = _names(kind)
    if names is None:
        return kind is not tuple or any(map(may_ask, tree))
    if issubclass(kind, Point):
        return True
    for name in names:  # noqa: SIM110  (a generator takes longer)
        if type(x := getattr(tree, name)) not in _PLAIN and may_ask(x):
            return True
    return False


@cache
def _names(kind: type) -> tuple[str, ...] | None:
    """Names of the data fields of a record; None for another type."""
    return data_fields(kind) if dataclasses.is_dataclass(kind) else None


def _is_record(node: Any) -> bool:
    return _names(type(node)) is not None


def _flatten(tree: Any) -> tuple[list[Any], optree.PyTreeSpec]:
    return optree.tree_flatten(tree, is_leaf=_is_record, namespace=_NAMESPACE)


def _collect(node: Any, asked: bool, found: dict[int, Tensor], kinds: set[type]) -> bool:
    """Add tensors that require gradients to ``found``, and types of records; True if somebody asked for a tensor."""
    if isinstance(node, Tensor):
        if node.requires_grad:
            found[id(node)] = node
            return asked
        return False
    names = _names(type(node))
    if names is not None:
        kinds.add(type(node))
        origin, some = _origin(node), False
        by_somebody = not origin or not all(isinstance(x, nn.Parameter) for x in origin[1] if x.requires_grad)
        for name in names:
            x = origin[0] if origin and name == "where" else getattr(node, name)
            if type(x) not in _PLAIN:
                some |= _collect(x, asked and (name != "where" or by_somebody), found, kinds)
        return some
    if node is None or isinstance(node, (int, float, str)):
        return False
    parts = node if type(node) in (tuple, list) else _flatten(node)[0]
    if len(parts) == 1 and parts[0] is node:
        return False
    some = False
    for part in parts:
        if type(part) not in _PLAIN:
            some |= _collect(part, asked, found, kinds)
    return some


def _before(record: Any) -> dict[str, Any]:
    """The data fields of a record, as they were before they were detached."""
    values = {name: getattr(record, name) for name in _names(type(record)) or ()}
    if origin := _origin(record):
        values["where"] = origin[0]
    return values


def _origin(record: Any) -> Any:
    """What a point's parameters were detached from, and the leaves that it was packed of."""
    return memo(record).origin if isinstance(record, Point) else None


def _map(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The tree with its tensors replaced; records of which nothing changes stay the same, with what they keep."""
    leaves, structure = _flatten(tree)
    made = [_map_leaf(function, leaf) for leaf in leaves]
    if all(new is old for new, old in zip(made, leaves, strict=True)):
        return tree
    return optree.tree_unflatten(structure, made)


def _map_leaf(function: Callable[[Tensor], Tensor], leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return function(leaf)
    if not _is_record(leaf):
        return leaf
    old = _before(leaf)
    new = {name: _map(function, value) for name, value in old.items()}
    if all(new[name] is old[name] for name in old):
        return leaf
    return rebuild(type(leaf), new | {name: getattr(leaf, name) for name in static_fields(leaf)})
