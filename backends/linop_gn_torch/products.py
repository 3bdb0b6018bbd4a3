"""Uses in products: of matrices and vectors, and of a table with the choice of its rows.

``nn.Linear``, ``x @ W.T``, ``einsum`` and attention's projections are all products of two matrices, or of as many as
there are groups, to torch. What was one axis of the model's arrays, or several, shows before and after them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from math import prod
from operator import mul
from typing import Any, NamedTuple

import torch
from torch import Tensor

from linop_gn.backend import Use, View

from .graph import COPIES, VIEWS, Edge, Found, Graph, Placed, Shape, kind, number, one_placed

__all__ = ["READERS", "bias_of"]


class _Rows(NamedTuple):
    """The axes that were flattened into one, and the order in which they are told."""

    shape: Shape
    order: Shape

    @property
    def told(self) -> Shape:
        return tuple(self.shape[i] for i in self.order)

    def unflattened(self, x: Tensor) -> Tensor:
        """(groups, *rows, size) from (groups, one axis, size)."""
        x = x.reshape(x.shape[0], *self.shape, x.shape[-1])
        return x.permute(0, *(1 + i for i in self.order), x.ndim - 1)


def _leading(shape: Shape, size: int) -> Shape:
    """The first axes of ``shape``, so many that they have ``size`` entries; none where that cannot be."""
    sizes = list(accumulate(shape, mul))
    return shape[: sizes.index(size) + 1] if size in sizes else ()


def _rows(graph: Graph, data: Edge, result: Any, groups: int, size: int) -> _Rows:
    """How the rows of a product stood in the model.

    Before it, transposes are undone: an attention that works with positions first is mostly given examples first.
    """
    node = data[0]
    if groups == 1 and node is not None and kind(node) in VIEWS:
        before = tuple(node._saved_self_sym_sizes)
        if shape := _leading(before, size):
            return _Rows(shape, _untransposed(node.next_functions[0][0], len(before), len(shape)))
    for taker in graph.takers.get(result, []):
        if kind(taker) in VIEWS:
            after = graph.shape((taker, 0))
            front = _leading(after, groups) if groups > 1 else ()
            if (front or groups == 1) and (shape := _leading(after[len(front) :], size)):
                return _Rows(shape, tuple(range(len(shape))))
    return _Rows((size,), (0,))


def _untransposed(node: Any, ndim: int, rows: int) -> Shape:
    """The order in which the first axes of a tensor stood before it was transposed; ``node`` has made it."""
    axes = list(range(ndim))  # of what ``node`` was given, for each axis of the tensor
    while node is not None and kind(node) in COPIES | {"Transpose", "Permute"}:
        swap = list(range(ndim))
        if kind(node) == "Permute":
            swap = [number(d) % ndim for d in node._saved_dims]
        elif kind(node) == "Transpose":
            i, j = number(node._saved_dim0) % ndim, number(node._saved_dim1) % ndim
            swap[i], swap[j] = j, i
        axes = [swap[axis] for axis in axes]
        node = node.next_functions[0][0]
    return tuple(sorted(range(rows), key=lambda i: axes[i]))


def _product(graph: Graph, node: Any, first: int, names: tuple[str, str]) -> Iterator[Found]:
    """``first`` is the edge of the first factor; a bias may come before."""
    one, edges = one_placed(graph, node, first), node.next_functions
    if one is None or getattr(node, "_saved_alpha", 1) != 1:
        return
    side, weight = one
    name, e, copies, result = names[1 - side], weight.entries, weight.copies, graph.shape((node, 0))
    if e.ndim == 2:
        e = e[None]
    elif e.stride(0) == 0 and copies == 1:  # one matrix for all
        copies, e = e.shape[0], e[:1]
    e = e.mT if side else e  # (groups, outputs, inputs)
    groups, outputs, size = e.shape[0], e.shape[1], result[-2] if side else result[-1]
    rows = _Rows((size,), (0,))
    if copies == 1 and side:
        rows = _rows(graph, edges[first], node, groups, size)

    def arranged(x: Tensor) -> Tensor:
        x = (x if side else x.mT).reshape(copies, groups, size, -1).transpose(0, 1)
        return rows.unflattened(x[:, 0]) if copies == 1 else x

    view, taken = weight._replace(entries=e).view(), [(node, first + side)]
    use = Use("linear", view, 1, None, rows.told if copies == 1 else (copies, size))
    offset = graph.placed(edges[0]) if first and side else None
    if offset is not None and getattr(node, "_saved_beta", 1) == 1:
        bias = bias_of(offset, groups, outputs, grouped=copies == 1)
        if bias is not None:
            use, taken = use._replace(bias=bias), [*taken, (node, 0)]

    def inputs() -> Tensor:
        x = getattr(node, name)
        return arranged(x if x.layout is torch.strided else x.to_dense())

    yield Found(use, (node, 0), inputs, arranged, taken)


def bias_of(placed: Placed, groups: int, outputs: int, grouped: bool) -> View | None:
    """(groups, outputs) of what is added to a product, None where it differs between rows.

    ``grouped`` says whether the product is (groups, one axis, outputs).
    """
    shape = tuple(placed.entries.shape)
    if placed.copies > 1 or shape[-1:] != (outputs,):
        return None
    if groups == 1 and prod(shape) == outputs:
        return placed.view(1, outputs)
    return placed.view(groups, outputs) if grouped and shape == (groups, 1, outputs) else None


def _with_vector(graph: Graph, node: Any, first: int, names: tuple[str, str]) -> Iterator[Found]:
    """A matrix and a vector, or two vectors: one row, or the parameter's vector is that of a single output."""
    one = one_placed(graph, node, first)
    if one is None or getattr(node, "_saved_alpha", 1) != 1:
        return
    side, weight = one
    name, e, shape = names[1 - side], weight.entries, graph.shape((node, 0))
    many = e.ndim == 2
    view = weight._replace(entries=e[None] if many else e[None, None]).view()
    rows = shape if shape and not many else (1,)

    def inputs() -> Tensor:
        x: Tensor = getattr(node, name)
        return x.reshape(1, *rows, x.shape[-1])

    use = Use("linear", view, 1, None, rows)
    yield Found(use, (node, 0), inputs, lambda g: g.reshape(1, *rows, view.shape[1]), [(node, first + side)])


def _lookup(
    graph: Graph, node: Any, indices: Callable[[], Tensor], shape: Shape, padding: int | None = None
) -> Iterator[Found]:
    """Rows of a table; those numbered ``padding`` have no derivative."""
    placed = graph.placed(node.next_functions[0])
    if placed is None or placed.copies > 1:
        return
    e = placed.entries if placed.entries.ndim > 1 else placed.entries[:, None]
    many, size = e.shape[0], prod(e.shape[1:])
    view = placed._replace(entries=e.movedim(0, -1)[None]).view()

    def inputs() -> Tensor:
        i = indices().reshape(shape)
        i = torch.where(i < 0, i + many, i)
        return i if padding is None else torch.where(i == padding, -1, i)

    def arranged(g: Tensor) -> Tensor:
        g = g.reshape(1, *shape, size)
        return g if padding is None else g.masked_fill((inputs() < 0)[None, ..., None], 0)

    yield Found(Use("lookup", view, e.ndim - 1, None, shape), (node, 0), inputs, arranged, [(node, 0)])


def _embedding(graph: Graph, node: Any) -> Iterator[Found]:
    if not node._saved_scale_grad_by_freq:
        padding = number(node._saved_padding_idx)
        shape = graph.shape((node, 0))[:-1]
        yield from _lookup(graph, node, lambda: node._saved_indices, shape, None if padding < 0 else padding)


def _index(graph: Graph, node: Any) -> Iterator[Found]:
    first, *others = node._saved_indices
    if first is not None and first.dtype in (torch.int64, torch.int32) and all(i is None for i in others):
        yield from _lookup(graph, node, lambda: node._saved_indices[0], tuple(first.shape))


def _index_select(graph: Graph, node: Any) -> Iterator[Found]:
    if node._saved_dim == 0:
        yield from _lookup(graph, node, lambda: node._saved_index, graph.shape((node, 0))[:1])


READERS: dict[str, Callable[[Graph, Any], Iterator[Found]]] = {
    "Mm": lambda graph, node: _product(graph, node, 0, ("_saved_self", "_saved_mat2")),
    "Bmm": lambda graph, node: _product(graph, node, 0, ("_saved_self", "_saved_mat2")),
    "Addmm": lambda graph, node: _product(graph, node, 1, ("_saved_mat1", "_saved_mat2")),
    "Baddbmm": lambda graph, node: _product(graph, node, 1, ("_saved_batch1", "_saved_batch2")),
    "Mv": lambda graph, node: _with_vector(graph, node, 0, ("_saved_self", "_saved_vec")),
    "Addmv": lambda graph, node: _with_vector(graph, node, 1, ("_saved_mat", "_saved_vec")),
    "Dot": lambda graph, node: _with_vector(graph, node, 0, ("_saved_self", "_saved_tensor")),
    "Embedding": _embedding,
    "Index": _index,
    "IndexSelect": _index_select,
}
