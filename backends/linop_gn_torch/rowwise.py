"""Whether a graph of known operations shows that no example enters another's outputs.

With N entries along the outputs' first axis, the entries of every result in the graph, in their order, are N pieces of
equal length. Products with a parameter, what works entry by entry, convolutions and norms of each example by itself
take piece n of what they are given to piece n of what they make, wherever the lengths fit; so do all of them one after
the other, and their derivatives. That is known from the names of the nodes, and what is not known by its name is not
taken for such.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from .graph import VIEWS, Edge, Graph, kind

__all__ = ["is_rowwise"]

Fits: TypeAlias = Callable[[Graph, Any, int], bool]


def is_rowwise(graph: Graph) -> bool:
    """Whether entries along the outputs' first axis stay apart, as rows of all uses do along theirs."""
    n = ([*graph.shape(graph.root), 0] if graph.root[0] is not None else [0])[0]
    made = (node for node in graph.nodes if graph.placed((node, 0)) is None)
    return n > 0 and all((fits := _FITS.get(kind(node))) is not None and fits(graph, node, n) for node in made)


def _is_parameter(graph: Graph, edge: Edge) -> bool:
    return edge[0] is None or graph.placed(edge) is not None


def _entrywise(graph: Graph, node: Any, n: int) -> bool:
    """Activations of the result's shape, and parameters that are the same along its first axis."""
    shape = graph.shape((node, 0))
    for edge in node.next_functions:
        placed = graph.placed(edge)
        if placed is not None and (len(placed.axes()) >= len(shape) or shape[0] % n):
            return False
        if placed is None and edge[0] is not None and graph.shape(edge) != shape:
            return False
    return True


def _product(graph: Graph, node: Any, n: int) -> bool:
    """An activation times a parameter, and a parameter added."""
    *offset, data, weight = node.next_functions
    parameters = all(_is_parameter(graph, edge) for edge in (*offset, weight))
    return parameters and graph.placed(data) is None and graph.shape((node, 0))[0] % n == 0


def _of_each(behind: Callable[[Any, int], int]) -> Fits:
    """An activation, whose axes from ``behind(node, ndim)`` on may mix, and parameters, which have these alone."""

    def fits(graph: Graph, node: Any, n: int) -> bool:
        data, *others = node.next_functions
        if graph.placed(data) is not None or not all(_is_parameter(graph, edge) for edge in others):
            return False
        shapes = [graph.shape((node, 0))] + ([] if data[0] is None else [graph.shape(data)])
        axis = behind(node, len(shapes[0]))
        return axis > 0 and all(shape[0] % n == 0 and len(shape) == len(shapes[0]) for shape in shapes)

    return fits


_batched = _of_each(lambda node, ndim: 1)


def _batch_norm(graph: Graph, node: Any, n: int) -> bool:
    return not getattr(node, "_saved_training", True) and _batched(graph, node, n)


_ENTRYWISE = (
    "Add Sub Mul Div Neg Tanh Sigmoid Relu LeakyRelu Elu Gelu Silu Mish Softplus Hardtanh Hardswish Threshold "
    "Exp Sin Cos Pow Sqrt Abs NativeDropout Clone"
)
_FITS: dict[str, Fits] = {
    **dict.fromkeys(_ENTRYWISE.split(), _entrywise),
    **dict.fromkeys((*VIEWS, "Squeeze", "Unsqueeze"), lambda graph, node, n: True),
    **dict.fromkeys(("Mm", "Addmm"), _product),
    **dict.fromkeys(("Convolution", "NativeGroupNorm"), _batched),
    "NativeBatchNorm": _batch_norm,
    "NativeLayerNorm": _of_each(lambda node, ndim: ndim - len(node._saved_normalized_shape)),
    **dict.fromkeys(("MaxPool2DWithIndices", "AvgPool2D"), _of_each(lambda node, ndim: ndim - 2)),
}
