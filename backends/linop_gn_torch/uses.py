"""What each parameter is multiplied with, read from the graph of one forward.

Autograd's graph names every operation, where its parameter comes from, and the
other factor, which it has saved for the parameter's gradient. So the forward
runs as it does for a gradient, nothing is intercepted, and no hook is left. One
walk over the nodes finds the uses (:mod:`linop_gn_torch.products`, ``patches``,
``entrywise``), a second one, which does not enter what they account for, the
leaves that are reached otherwise as well: what is not known by its name, a
custom Function above all, is never overlooked.

The cotangents at all results are one backward, which leaves out the gradients of
the parameters (half the work of a backward, for matrix products).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any, overload

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from linop_gn.backend import Use

from . import entrywise, products
from .advice import explained
from .graph import VIEWS, Edge, Found, Graph, kind, one_placed
from .patches import convolution
from .recording import Recording, backward, filled, keeping
from .rowwise import is_rowwise
from .tracking import constant, tracking

__all__ = ["TorchUses"]

_READERS: dict[str, Callable[[Graph, Any], Iterator[Found]]] = {
    **products.READERS,
    **entrywise.READERS,
    "Convolution": convolution,
}
_LAST = {"Mm": 1, "Bmm": 1, "Mv": 0}
"""Which factor a parameter must be for its outputs to be the last axis of the product."""


class TorchUses:
    """A function evaluated, with the operations that its parameters entered. See :class:`linop_gn.protocols.Uses`."""

    def __init__(self, recording: Recording, leaves: Sequence[Tensor], outputs: Tensor) -> None:
        self._recording, self._leaves, self._outputs = recording, list(leaves), outputs
        graph = Graph(outputs, leaves)
        self._found, self.otherwise = recording.resume(lambda: _read(graph))
        mixed = any(_mixes(graph, node) for node in graph.nodes)
        self.mixes = "a batch norm in training mode (model.eval() ends that)" if mixed else ""
        hooked = recording.has_hooks or recording.is_watched  # what changes what goes back has no name
        self.apart = not (hooked or self.otherwise) and is_rowwise(graph)
        self.outputs = constant(outputs)
        self.uses: tuple[Use, ...] = tuple(f.use for f in self._found)
        self.inputs = Inputs(recording, self._found)
        self._edges: dict[Edge, Tensor] = {}  # with tensors without memory, for zeros
        for f in self._found:
            of = f.result[0]._input_metadata[f.result[1]]
            self._edges.setdefault(f.result, torch.empty(of.shape, dtype=of.dtype, device="meta"))

    def pull(self, cotangent: Tensor, leaves: tuple[int, ...] = ()) -> tuple[list[Tensor], list[Tensor]]:
        chosen = [self._leaves[i] for i in leaves]
        asked = [*(GradientEdge(*edge) for edge in self._edges), *chosen]
        with explained():
            gradients = self._recording.resume(
                lambda: backward([self._outputs], asked, [cotangent], **keeping()), records=tracking.get()
            )
        n = len(self._edges)
        at = {
            edge: torch.zeros_like(empty, device=cotangent.device) if g is None else constant(g)
            for (edge, empty), g in zip(self._edges.items(), gradients[:n], strict=True)
        }
        arranged = self._recording.resume(lambda: [f.arranged(at[f.result]) for f in self._found])
        return arranged, filled(gradients[n:], chosen)


class Inputs(Sequence[Tensor | None]):
    """The inputs of the uses, each made when it is asked for."""

    def __init__(self, recording: Recording, found: list[Found]) -> None:
        self._recording, self._found = recording, found

    def __len__(self) -> int:
        return len(self._found)

    @overload
    def __getitem__(self, i: int) -> Tensor | None: ...
    @overload
    def __getitem__(self, i: slice) -> list[Tensor | None]: ...
    def __getitem__(self, i: int | slice) -> Tensor | list[Tensor | None] | None:
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        found = self._found[i]
        with torch.set_grad_enabled(tracking.get()), explained():
            return constant(self._recording.resume(found.inputs))  # type: ignore[no-any-return]


def _read(graph: Graph) -> tuple[list[Found], tuple[int, ...]]:
    """The uses in the order of the forward, and the leaves that are reached not through them alone."""
    uses = [f for node in graph.nodes if (read := _READERS.get(kind(node))) for f in read(graph, node)]
    uses = _with_biases(graph, uses)
    taken = {pair for f in uses for pair in f.taken}
    todo, seen, reached = [graph.root], {None}, set()
    while todo:
        node, _ = edge = todo.pop()
        if edge in graph.leaves:
            reached.add(graph.leaves[edge])
        elif node not in seen:
            seen.add(node)
            todo += [tuple(given) for i, given in enumerate(node.next_functions) if (node, i) not in taken]
    return uses, tuple(sorted(reached))


def _mixes(graph: Graph, node: Any) -> bool:
    """Whether it takes means over examples; an instance norm is a batch norm of one example to autograd."""
    training = kind(node).endswith("BatchNorm") and getattr(node, "_saved_training", False)
    return training and graph.shape((node, 0))[0] > 1


def _with_biases(graph: Graph, uses: list[Found]) -> list[Found]:
    """A product to which a bias is added afterwards has the cotangent of the sum: the two are one use.

    Between them there may be views, and nobody else may take the product.
    """
    linear = {f.result[0]: f for f in uses if f.use.kind == "linear" and _LAST.get(kind(f.result[0])) == f.taken[0][1]}
    merged = set()
    for node in graph.nodes:
        one = one_placed(graph, node) if kind(node) == "Add" else None
        if one is None or node._saved_alpha != 1:  # the sum with a number, which has one operand, saves none
            continue
        side, placed = one
        before = product = node.next_functions[1 - side][0]
        while product is not None and kind(product) in VIEWS and graph.only_taker(product):
            product = product.next_functions[0][0]
        f, shape = linear.get(product), graph.shape((node, 0))
        if f is None or f.use.bias is not None or not graph.only_taker(product) or shape != graph.shape((before, 0)):
            continue
        whole = f.use.weight.shape[: 1 + f.use.outputs]
        if shape[-1:] == graph.shape((product, 0))[-1:] == (prod(whole[1:]),):  # the views are of the rows alone
            bias = products.bias_of(placed, whole, grouped=len(shape) == 3)
            if bias is not None:
                f.use, f.taken = f.use._replace(bias=bias), [*f.taken, (node, side)]
                merged.add((node, side))
    return [f for f in uses if f.taken[0] not in merged]
