"""Uses in products: of matrices and vectors, and of a table with the choice of its rows.

``nn.Linear``, ``x @ W.T``, ``einsum`` and attention's projections are all products of two matrices, or of as many as
there are groups, to torch. What was one axis of the model's arrays, or several, shows before and after them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from math import prod
from operator import mul
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from linop_gn.backend import Use, View

from .entrywise import shift
from .graph import COPIES, VIEWS, Edge, Found, Graph, Placed, Shape, kind, number, one_placed

__all__ = ["READERS", "bias_of"]

Reader: TypeAlias = Callable[[Graph, Any, int, tuple[str, str]], Iterator[Found]]
"""Of a graph, a node, which edge is that of the first factor, and under what names the factors are saved."""


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
    for taker in graph.seen_by(result):
        if kind(taker) in VIEWS | {"AsStrided"}:
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
    """A batch of matrices is that of the groups, and where the parameter is the same along an axis, one of the rows."""
    one, edges = one_placed(graph, node, first), node.next_functions
    if one is None:
        return
    side, weight = one
    e, name = weight.entries, names[1 - side]
    size = graph.shape((node, 0))[-2 if side else -1]
    *batch, left, right = weight.axes()
    stacked = batch[0] if batch else []
    outs, ins = (right, left) if side else (left, right)
    alike = [i for i in stacked if e.stride(i) == 0 and e.shape[i] > 1]
    apart = [i for i in stacked if i not in alike]
    sizes, copies = [e.shape[i] for i in stacked], [e.shape[i] for i in alike]
    e = e.permute(*alike, *apart, *outs, *ins)[(0,) * len(alike)]
    try:
        e = e.view(prod(e.shape[: len(apart)]), *e.shape[len(apart) :])
    except RuntimeError:  # groups along several axes, which are no single one of the leaf
        return
    groups, outputs = e.shape[0], e.shape[1 : 1 + len(outs)]
    rows = _Rows((*copies, size), tuple(range(len(copies) + 1)))
    if side and not copies:
        rows = _rows(graph, edges[first], node, groups, size)

    def arranged(x: Tensor) -> Tensor:
        if not stacked and rows.shape == (size,):  # as of a plain linear layer
            return (x if side else x.mT).reshape(1, size, -1)
        x = (x if side else x.mT).reshape(*sizes, size, -1)
        x = x.permute(*map(stacked.index, (*apart, *alike)), len(sizes), len(sizes) + 1)
        return rows.unflattened(x.reshape(groups, prod(copies) * size, -1))

    use = Use("linear", weight._replace(entries=e).view(), len(outs), None, rows.told)
    found = Found(use, (node, 0), lambda: arranged(_dense(getattr(node, name))), arranged, [(node, first + side)])
    if first and side and (offset := graph.placed(edges[0])):
        bias = bias_of(offset, (groups, *outputs), grouped=not copies)
        if bias is not None:
            found.use, found.taken = use._replace(bias=bias), [*found.taken, (node, 0)]
    yield found


def _dense(x: Tensor) -> Tensor:
    return x if x.layout is torch.strided else x.to_dense()


def _with_offset(read: Reader, names: tuple[str, str]) -> Callable[[Graph, Any], Iterator[Found]]:
    """What ``read`` finds in a product that something is added to, and that as what shifts the product otherwise."""

    def both(graph: Graph, node: Any) -> Iterator[Found]:
        found = list(read(graph, node, 1, names)) if node._saved_alpha == 1 == node._saved_beta else []
        yield from found
        offset = graph.placed(node.next_functions[0])
        if offset is not None and node._saved_beta == 1 and all((node, 0) not in f.taken for f in found):
            yield from shift((node, 0), offset, graph.shape((node, 0)), [(node, 0)])

    return both


def bias_of(placed: Placed, shape: Shape, grouped: bool) -> View | None:
    """(groups, *outputs), which is ``shape``, of what is added to a product, None where it differs between rows.

    ``grouped`` says whether the product is (groups, one axis, outputs).
    """
    own, outputs = tuple(placed.entries.shape), prod(shape[1:])
    if placed.parts or own[-1:] != (outputs,):
        return None
    if (shape[0] == 1 and prod(own) == outputs) or (grouped and own == (shape[0], 1, outputs)):
        return placed.seen(lambda e: e.view(shape)).view()
    return None


def _with_vector(graph: Graph, node: Any, first: int, names: tuple[str, str]) -> Iterator[Found]:
    """A matrix and a vector, or two vectors: one row, or the parameter's vector is that of a single output."""
    one = one_placed(graph, node, first)
    if one is None:
        return
    side, weight = one
    name, e, shape = names[1 - side], weight.entries, graph.shape((node, 0))
    if weight.parts:
        return
    view, rows = weight._replace(entries=e[None] if e.ndim == 2 else e[None, None]).view(), _Rows((1,), (0,))
    if e.ndim == 1 and shape:
        rows = _rows(graph, node.next_functions[first], node, 1, shape[0])

    def inputs() -> Tensor:
        x: Tensor = getattr(node, name)
        return rows.unflattened(x.reshape(1, -1, x.shape[-1]))

    def arranged(g: Tensor) -> Tensor:
        return rows.unflattened(g.reshape(1, -1, view.shape[1]))

    yield Found(Use("linear", view, 1, None, rows.told), (node, 0), inputs, arranged, [(node, first + side)])


def _lookup(
    graph: Graph, node: Any, indices: Callable[[], Tensor], shape: Shape, padding: int | None = None
) -> Iterator[Found]:
    """Rows of a table; those numbered ``padding`` have no derivative."""
    placed = graph.placed(node.next_functions[0])
    if placed is None or placed.parts:
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
    "Addmm": _with_offset(_product, ("_saved_mat1", "_saved_mat2")),
    "Baddbmm": _with_offset(_product, ("_saved_batch1", "_saved_batch2")),
    "Mv": lambda graph, node: _with_vector(graph, node, 0, ("_saved_self", "_saved_vec")),
    "Addmv": _with_offset(_with_vector, ("_saved_mat", "_saved_vec")),
    "Dot": lambda graph, node: _with_vector(graph, node, 0, ("_saved_self", "_saved_tensor")),
    "Embedding": _embedding,
    "Index": _index,
    "IndexSelect": _index_select,
}
