"""Uses entry by entry: a parameter that scales or shifts an array along some of its axes, as those of norms do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, NamedTuple

from torch import Tensor, nn

from linop_gn.backend import Use, View

from .graph import Edge, Found, Graph, Placed, Shape, kind, one_placed

__all__ = ["READERS", "shift"]


class _Broadcast(NamedTuple):
    """A parameter that is the same along some axes of an array, the rows."""

    view: View
    shape: Shape
    rows: Shape
    order: Shape
    """The axes of the rows, then the parameter's own."""

    def use(self, kind: str) -> Use:
        return Use(kind, self.view, len(self.view.shape) - 1, None, self.rows)

    def arranged(self, x: Tensor) -> Tensor:
        return x.reshape(self.shape).permute(self.order).reshape(1, *self.rows, prod(self.view.shape))


def _broadcast(placed: Placed, shape: Shape) -> _Broadcast | None:
    """None without rows: then the parameter is made into another one."""
    axes = placed.axes()
    front = len(shape) - len(axes)
    # The array's axes are divided as the parameter's are.
    inner = [
        placed.entries.shape[i] if len(part) > 1 else n
        for part, n in zip(axes, shape[front:], strict=True)
        for i in part
    ]
    e, shape = placed.entries[(None,) * front], (*shape[:front], *inner)
    alike = [i for i in range(len(shape)) if e.shape[i] == 1 or e.stride(i) == 0]
    if not alike:
        return None
    own = [i for i in range(len(shape)) if i not in alike]
    e = e.permute(*alike, *own)[(0,) * len(alike)]
    e = e[None] if own else e[None, None]
    return _Broadcast(placed._replace(entries=e).view(), shape, tuple(shape[i] for i in alike), (*alike, *own))


def shift(result: Edge, placed: Placed, shape: Shape, taken: list[tuple[Any, int]]) -> Iterator[Found]:
    """What is added to an array of that shape."""
    if how := _broadcast(placed, shape):
        yield Found(how.use("shift"), result, lambda: None, how.arranged, taken)


def _scale(
    result: Edge, placed: Placed, shape: Shape, taken: list[tuple[Any, int]], inputs: Callable[[], Tensor]
) -> Iterator[Found]:
    if how := _broadcast(placed, shape):
        yield Found(how.use("scale"), result, lambda: how.arranged(inputs()), how.arranged, taken)


def _multiplied(graph: Graph, node: Any) -> Iterator[Found]:
    if (one := one_placed(graph, node)) is None:
        return
    side, weight = one
    shape, other, name = graph.shape((node, 0)), node.next_functions[1 - side], ("_saved_other", "_saved_self")[side]
    ndim = getattr(node, name).ndim if other[0] is None else len(graph.shape(other))
    if ndim == len(shape):  # with less, the parameter is made into another one: 2 * W
        yield from _scale((node, 0), weight, shape, [(node, side)], lambda: getattr(node, name).expand(shape))


def _added(graph: Graph, node: Any) -> Iterator[Found]:
    if one := one_placed(graph, node):
        side, weight = one
        if side == 0 or (kind(node) == "Add" and node._saved_alpha == 1):
            yield from shift((node, 0), weight, graph.shape((node, 0)), [(node, side)])


def _norm(graph: Graph, node: Any, axis: int, normalised: Callable[[], Tensor]) -> Iterator[Found]:
    """Weight and bias of a normalisation, the first of their axes at ``axis`` of the input."""
    for edge, following in enumerate(node.next_functions[1:3], 1):
        if (placed := graph.placed(following)) is None:
            continue
        shape = graph.shape((node, 0))
        behind = len(shape) - axis - len(placed.axes())
        if axis == 0:  # one example alone
            shape = (1, *shape)
        elif placed.parts and shape[0] == 1:  # an instance norm, to which examples are channels
            shape = shape[1:]
        weight = Placed(
            placed.leaf,
            placed.entries[(..., *[None] * behind)],
            (*placed.parts, *[1] * behind) if placed.parts else None,
        )
        taken: list[tuple[Any, int]] = [(node, edge)]
        if edge == 1:
            yield from _scale((node, 0), weight, shape, taken, normalised)
        else:
            yield from shift((node, 0), weight, shape, taken)


def _layer_norm(graph: Graph, node: Any) -> Iterator[Found]:
    def normalised() -> Tensor:
        x: Tensor = node._saved_input
        return ((x - node._saved_result1) * node._saved_result2).to(x.dtype)

    yield from _norm(graph, node, len(graph.shape((node, 0))) - len(node._saved_normalized_shape), normalised)


def _rms_norm(graph: Graph, node: Any) -> Iterator[Found]:
    def normalised() -> Tensor:
        x: Tensor = node._saved_input
        return (x * node._saved_result1).to(x.dtype)

    yield from _norm(graph, node, len(graph.shape((node, 0))) - len(node._saved_normalized_shape), normalised)


def _group_norm(graph: Graph, node: Any) -> Iterator[Found]:
    def normalised() -> Tensor:
        x: Tensor = node._saved_input
        by_group = x.reshape(node._saved_N, node._saved_group, -1)
        centred = by_group - node._saved_result1[..., None]
        return (centred * node._saved_result2[..., None]).reshape(x.shape).to(x.dtype)

    yield from _norm(graph, node, 1, normalised)


def _batch_norm(graph: Graph, node: Any) -> Iterator[Found]:
    def normalised() -> Tensor:
        training, eps = node._saved_training, getattr(node, "_saved_eps", None)
        running = (None, None) if training else (node._saved_running_mean, node._saved_running_var)
        eps = node._saved_epsilon if eps is None else eps  # cuDNN's and MIOpen's name for it
        return nn.functional.batch_norm(node._saved_input, *running, training=training, eps=eps)

    yield from _norm(graph, node, 1, normalised)


READERS: dict[str, Callable[[Graph, Any], Iterator[Found]]] = {
    "Mul": _multiplied,
    "Add": _added,
    "Sub": _added,
    "NativeLayerNorm": _layer_norm,
    "FusedRmsNorm": _rms_norm,
    "NativeGroupNorm": _group_norm,
    "NativeBatchNorm": _batch_norm,
    "CudnnBatchNorm": _batch_norm,
    "MiopenBatchNorm": _batch_norm,
}
