"""J v of a last layer with many outputs: the terms of its sum written one over the other.

Of z = h W^T + b the tangent is dh W^T + h dW^T + db. Going backward through the graph of J^T u, autograd makes each
product by itself and holds two arrays like z before it adds them: over a vocabulary, 412 MB each. Here it is asked for
what comes to the operations that u went through first, which is dh, dW and db, and the products are added up where the
first of them stands. What u goes through otherwise than by products of matrices and sums over rows is left to autograd.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import GradientEdge
from torch.overrides import TorchFunctionMode

from .cotangents import MANY
from .graph import VIEWS, Edge, kind
from .recording import backward

__all__ = ["LastLayer", "TermByTerm"]

_PRODUCTS = {torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__}


class _Term(NamedTuple):
    """A product a b of matrices, of which one is what comes to ``node``; of a bias, that itself."""

    node: Any
    factors: Callable[[Tensor], tuple[Tensor, Tensor]] | None


class LastLayer:
    """How the cotangent of the outputs enters J^T u first."""

    def __init__(self, terms: list[_Term]) -> None:
        self._terms = terms

    @classmethod
    def of(cls, recorded: Sequence[GradientEdge | None], place: GradientEdge) -> LastLayer | None:
        """What the ``recorded`` J^T u does with the cotangent at ``place``; None where that is not known."""
        takers = _takers([r.node for r in recorded if r is not None])
        made = {(r.node, r.output_nr) for r in recorded if r is not None}
        here: Edge = (place.node, place.output_nr)
        while len(takers[here]) == 1 and kind(takers[here][0][0]) in VIEWS and here not in made:
            here = (takers[here][0][0], 0)
        if here in made:  # of a parameter that is added to the outputs
            return None
        terms = []
        for node, index in takers[here]:
            if kind(node) == "T":
                if (node, 0) in made:
                    return None
                inner = [(taker, _factors(taker, i, True)) for taker, i in takers[node, 0]]
            elif kind(node) == "Sum" and _sums_rows(node):
                terms.append(_Term(node, None))
                continue
            else:
                inner = [(node, _factors(node, index, False))]
            terms += [_Term(taker, factors) for taker, factors in inner if factors is not None]
            if any(factors is None for _, factors in inner):
                return None
        return cls(terms) if any(term.factors for term in terms) else None

    def jvp(self, recorded: Sequence[GradientEdge], tangents: Sequence[Tensor], like: Tensor) -> Tensor | None:
        """J v, new and like the outputs; None where it is zero."""
        edges = [GradientEdge(term.node, 0) for term in self._terms]
        made, biases = None, []
        for term, x in zip(self._terms, backward(recorded, edges, tangents, retain_graph=True), strict=True):
            if x is not None and term.factors is None:
                biases.append(x)
            elif x is not None and term.factors is not None:
                a, b = term.factors(x)
                made = torch.mm(a, b) if made is None else made.addmm_(a, b)
        if made is None and biases:
            made = like.new_zeros(like.shape).view(-1, biases[0].shape[-1])
        for x in biases:
            made = cast(Tensor, made).add_(x)
        return None if made is None else made.view(like.shape)


class TermByTerm(TorchFunctionMode):
    """Inside, forward mode makes large products with a matrix so: torch holds three more arrays like the result."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = None
        if function is nn.functional.linear and len(args) >= 2:
            x, w, bias = (*args, (kwargs or {}).get("bias"))[:3]
            made = _dual(x, w.t(), bias) if w.ndim == 2 else None
        elif function in _PRODUCTS and len(args) == 2 and not kwargs:
            made = _dual(*args, None)
        return function(*args, **(kwargs or {})) if made is None else made


def _dual(x: Any, w: Any, bias: Any) -> Tensor | None:
    """x w + bias of numbers that may have tangents; None where it is small, or no such product."""
    given = [t for t in (x, w, bias) if t is not None]
    if any(type(t) not in (Tensor, nn.Parameter) for t in given) or w.ndim != 2 or x.ndim < 2:
        return None
    if x.shape[:-1].numel() * w.shape[1] < MANY or torch.is_autocast_enabled(x.device.type):
        return None
    (x, dx), (w, dw) = map(forward_ad.unpack_dual, (x, w))
    rows, t = x.reshape(-1, x.shape[-1]), None
    for a, b in ((None if dx is None else dx.reshape(rows.shape), w), (rows, dw)):
        if a is not None and b is not None:
            t = torch.mm(a, b) if t is None else t.addmm_(a, b)
    made = torch.mm(rows, w) if bias is None else torch.addmm(forward_ad.unpack_dual(bias).primal, rows, w)
    if bias is not None and (db := forward_ad.unpack_dual(bias).tangent) is not None:
        t = db.expand(made.shape).clone() if t is None else t.add_(db)
    made = made.view(*x.shape[:-1], w.shape[1])
    return made if t is None else forward_ad.make_dual(made, t.view(made.shape))


def _takers(todo: list[Any]) -> dict[Edge, list[tuple[Any, int]]]:
    """Who takes each result in a graph, and as which of its arguments."""
    takers, seen = defaultdict[Edge, list[tuple[Any, int]]](list), set[Any]()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for index, edge in enumerate(node.next_functions):
            takers[edge].append((node, index))
            todo.append(edge[0])
    return takers


def _sums_rows(node: Any) -> bool:
    """Whether a sum is over the first of two axes; one over all of them has saved none."""
    return [*getattr(node, "_saved_dim", ())] == [0] and len(node._saved_self_sym_sizes) == 2


def _factors(node: Any, index: int, transposed: bool) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
    """The derivative of a product along that factor, or of what the factor is ``transposed``: a product of two.

    The other factor is read each time: torch looks then whether somebody has written to it.
    """
    if kind(node) != "Mm":
        return None
    name = "_saved_self" if index else "_saved_mat2"
    other = getattr(node, name)
    if type(other) not in (Tensor, nn.Parameter) or other.layout is not torch.strided:
        return None

    def factors(x: Tensor) -> tuple[Tensor, Tensor]:
        other = getattr(node, name).t()
        a, b = (other, x) if index else (x, other)
        return (b.t(), a.t()) if transposed else (a, b)

    return factors
