"""What comes after the last product of a model entry by entry: a scale of the logits, a cap 30 tanh(z / 30).

Of z = f(y) the Jacobian is diag(f'(y)) J_y. Autograd holds for each step what that saves, and what u has become there
in the recorded J^T u: five arrays like z for a cap, and a product takes three more. Here f' is held, or the number that
it is everywhere, and the graph of y, at which J_y^T u is recorded as if there were nothing after it.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .cotangents import MANY
from .graph import kind
from .recording import backward

__all__ = ["Tail"]

_ENTRYWISE = frozenset({"Add", "Div", "Mul", "Neg", "Rsub", "Sub", "Tanh"})


class Tail(NamedTuple):
    """The place of y in a graph, and f' there."""

    place: GradientEdge
    slope: Tensor

    @classmethod
    def of(cls, outputs: Tensor) -> Tail | None:
        """What comes after y in the graph of many ``outputs``; None where that is nothing, or not known."""
        if outputs.numel() < MANY or type(outputs) is not Tensor or not outputs.requires_grad:
            return None
        start: GradientEdge = get_gradient_edge(outputs)
        node, number = start.node, start.output_nr
        while kind(node) in _ENTRYWISE:
            given = [edge for edge in node.next_functions if edge[0] is not None]
            found = given[0][0]._input_metadata[given[0][1]] if len(given) == 1 else None
            if found is None or tuple(found.shape) != tuple(outputs.shape) or found.dtype is not outputs.dtype:
                break
            node, number = given[0]
        if node is start.node or not kind(node):
            return None
        place = GradientEdge(node, number)
        (slope,) = backward([outputs], [place], [outputs.new_ones(()).expand(outputs.shape)], retain_graph=True)
        if slope is None:
            return None
        least, most = slope.aminmax()  # NaN where there is one
        if not (bool(least.isfinite()) and bool(most.isfinite())):
            return None  # who is at fault is found in the whole graph
        return cls(place, least if bool(least == most) else slope)
