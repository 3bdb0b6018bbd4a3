"""Sums of two products of matrices in traces, a b + c d, the second written over the first where it is large.

J v of a last layer is such a sum, over a vocabulary. A compiler would make both products and then add them: two arrays
like the logits where one will do. In a trace they become one operation, which no compiler looks into.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from .cotangents import MANY

__all__ = ["together"]

_aten = torch.ops.aten
_SAME = {_aten.view.default, _aten._unsafe_view.default, _aten.detach.default}
_library = torch.library.Library("linop_gn", "FRAGMENT")
_library.define("added(Tensor a, Tensor b, Tensor c, Tensor d) -> Tensor")


def _added(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.mm(a, b).addmm_(c, d)


def _of_columns(info: Any, axes: tuple[int | None, ...], *given: Tensor) -> tuple[Tensor, int]:
    a, b, c, d = (x if axis is None else x.movedim(axis, 0) for x, axis in zip(given, axes, strict=True))
    return a @ b + c @ d, 0


_library.impl("added", _added, "CompositeExplicitAutograd")
torch.library.register_fake("linop_gn::added", lambda a, b, c, d: a.new_empty(a.shape[0], b.shape[1]), lib=_library)
torch.library.register_vmap("linop_gn::added", _of_columns, lib=_library)


def together(graph: Graph) -> None:
    """Make such sums of large products, which nothing else reads, one operation each; what is added beside them stays.

    They are looked for through views that change nothing, which derivatives of layers leave behind.
    """
    for node in reversed(list(graph.nodes)):
        if not _is_sum(node) or not node.users or node.meta["val"].numel() < MANY:
            continue
        terms = _terms(node)
        products = [term for term in map(_bare, terms) if term.target is _aten.mm.default and len(term.users) == 1]
        if len(products) != 2 or not _lie_alike(node, *products):
            continue
        with graph.inserting_before(node):
            made = graph.call_function(torch.ops.linop_gn.added.default, (*products[0].args, *products[1].args))
            made = graph.call_function(_aten.view.default, (made, list(node.meta["val"].shape)))
            for other in (term for term in terms if _bare(term) not in products):
                made = graph.call_function(_aten.add.Tensor, (made, other))
        made.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        graph.erase_node(node)


def _is_sum(node: Node) -> bool:
    return node.target is _aten.add.Tensor and not node.kwargs and all(isinstance(x, Node) for x in node.args)


def _lie_alike(node: Node, *products: Node) -> bool:
    """Whether two matrices have the sum's entries, none of them repeated, in its dtype."""
    (first, second), whole = (product.meta["val"] for product in products), node.meta["val"]
    alike = first.shape == second.shape and first.dtype is second.dtype is whole.dtype
    return alike and first.numel() == whole.numel()


def _terms(node: Any) -> list[Node]:
    """What a sum adds, in sums of its own as well."""
    made: list[Node] = []
    for x in node.args:
        inner = _bare(x)
        alike = inner.meta["val"].shape == node.meta["val"].shape
        made += _terms(inner) if _is_sum(inner) and len(inner.users) == 1 and alike else [x]
    return made


def _bare(node: Any) -> Node:
    """What ``node`` is the same entries of, in the same order, for nobody else."""
    while len(node.users) == 1 and (node.target in _SAME or _turned_twice(node)):
        node = node.args[0] if node.target in _SAME else node.args[0].args[0]
    return node  # type: ignore[no-any-return]


def _turned_twice(node: Any) -> bool:
    inner = node.args[0] if node.target is _aten.t.default else None
    return inner is not None and inner.target is _aten.t.default and len(inner.users) == 1
