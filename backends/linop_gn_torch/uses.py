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
from typing import Any, overload

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from linop_gn.backend import Use

from . import entrywise, products
from .advice import explained
from .graph import VIEWS, Edge, Found, Graph, kind
from .patches import convolution
from .recording import Recording, backward, filled, keeping
from .tracking import constant, tracking

__all__ = ["TorchUses"]

_READERS: dict[str, Callable[[Graph, Any], Iterator[Found]]] = {
    **products.READERS,
    **entrywise.READERS,
    "Convolution": convolution,
}


class TorchUses:
    """A function evaluated, with the operations that its parameters entered. See :class:`linop_gn.protocols.Uses`."""

    def __init__(self, recording: Recording, leaves: Sequence[Tensor], outputs: Tensor) -> None:
        self._recording, self._leaves, self._outputs = recording, list(leaves), outputs
        graph = Graph(outputs, leaves)
        self._found, self.otherwise = recording.resume(lambda: _read(graph))
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
        with torch.set_grad_enabled(tracking.get()):
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


def _with_biases(graph: Graph, uses: list[Found]) -> list[Found]:
    """A product to which a bias is added afterwards has the cotangent of the sum: the two are one use.

    Between them there may be views, and nobody else may take the product.
    """
    linear = {f.result[0]: f for f in uses if f.use.kind == "linear" and kind(f.result[0]) in {"Mm", "Bmm"}}
    separate = []
    for f in uses:
        node, edge = f.taken[0]
        if f.use.kind == "shift" and kind(node) == "Add":
            before, _ = node.next_functions[1 - edge]
            product = before
            while product is not None and kind(product) in VIEWS and graph.only_taker(product):
                product = product.next_functions[0][0]
            into = linear.get(product)
            if into is not None and into.use.bias is None and graph.only_taker(product):
                shape, placed = graph.shape((node, 0)), graph.placed(node.next_functions[edge])
                groups, outputs = into.use.weight.shape[:2]
                last = {s[-1] for s in (shape, graph.shape((product, 0)))} == {outputs}
                if placed is not None and last and (product, 1) in into.taken and shape == graph.shape((before, 0)):
                    bias = products.bias_of(placed, groups, outputs, grouped=len(shape) == 3)
                    if bias is not None:
                        into.use, into.taken = into.use._replace(bias=bias), [*into.taken, (node, edge)]
                        continue
        separate.append(f)
    return separate
