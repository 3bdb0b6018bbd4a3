"""Uses in convolutions: the kernel is multiplied with patches of the input.

A transposed convolution is an ordinary one, with the kernel the other way round, of the input with zeros in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from torch import Tensor, nn

from linop_gn.backend import Use

from .entrywise import shift
from .graph import Found, Graph, Shape

__all__ = ["convolution"]


def convolution(graph: Graph, node: Any) -> Iterator[Found]:
    """Kernel and bias; the positions are one axis of the rows."""
    x, weight, offset = map(graph.placed, node.next_functions)
    result, groups = graph.shape((node, 0)), node._saved_groups
    outputs, rows = result[1] // groups, (result[0], prod(result[2:]))
    if weight is None or weight.parts or x is not None:
        if offset is not None and not offset.parts:
            channels = offset.seen(lambda e: e.view(-1, *[1] * (len(result) - 2)))
            yield from shift((node, 0), channels, result, [(node, 2)])
        return
    e = weight.entries.unflatten(0, (groups, -1))
    view = weight._replace(entries=e.transpose(1, 2) if node._saved_transposed else e).view()
    use, taken = Use("linear", view, 1, None, rows), [(node, 1)]
    if offset is not None and not offset.parts:
        bias = offset.seen(lambda e: e.view(groups, outputs)).view()
        use, taken = use._replace(bias=bias), [*taken, (node, 2)]

    def arranged(g: Tensor) -> Tensor:
        return g.reshape(rows[0], groups, outputs, rows[1]).permute(1, 0, 3, 2)

    yield Found(use, (node, 0), lambda: _patches(node, view.shape[3:]), arranged, taken)


def _patches(node: Any, kernel: Shape) -> Tensor:
    """(groups, N, positions, channels of the group and kernel)."""
    x, n = node._saved_input, len(kernel)
    padding, stride, dilation = node._saved_padding, node._saved_stride, node._saved_dilation
    span = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    sides = [(p, p) for p in padding]
    if node._saved_transposed:
        more = node._saved_output_padding
        sides = [(d - p, d - p + o) for d, p, o in zip(span, padding, more, strict=True)]
        apart = x.new_zeros(*x.shape[:2], *(s * (size - 1) + 1 for s, size in zip(stride, x.shape[2:], strict=True)))
        apart[(..., *(slice(None, None, s) for s in stride))] = x
        x, stride = apart, [1] * n
    x = nn.functional.pad(x, [size for pair in reversed(sides) for size in pair])
    for axis in range(n):
        x = x.unfold(2 + axis, span[axis] + 1, stride[axis])[..., :: dilation[axis]]
    if node._saved_transposed:
        x = x.flip(list(range(-n, 0)))
    x = x.unflatten(1, (node._saved_groups, -1))  # (N, groups, channels, *positions, *kernel)
    x = x.permute(1, 0, *range(3, 3 + n), 2, *range(3 + n, 3 + 2 * n))
    return x.reshape(*x.shape[:2], prod(x.shape[2 : 2 + n]), prod(x.shape[2 + n :]))
