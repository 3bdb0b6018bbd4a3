"""The graph of an evaluated function: its nodes, who takes their results, and where entries of leaves are found again.

Autograd's nodes hold all that is asked for here: their names, the arguments of
the operation (``_saved_...``), the shapes of the results, and the edges to what
they were given. So nothing watches the forward, which costs no more than it does
for a gradient, and what is not known by name is not overlooked: it is a node.

A parameter is often given as a view of itself, or as a copy of one (``W.T``, a
slice, another dtype). The same views of a tensor that has a shape and no memory
tell where the entries of each stand in the leaf.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from linop_gn.backend import Use, View

from .advice import nodes

__all__ = [
    "COPIES",
    "LOOKS",
    "SHAPED",
    "VIEWS",
    "Edge",
    "Found",
    "Graph",
    "Map",
    "Placed",
    "Shape",
    "kind",
    "number",
    "one_placed",
]

Edge: TypeAlias = tuple[Any, int]
"""A node and which of its results; (None, 0) for what has no derivative."""
Shape: TypeAlias = tuple[int, ...]
Map: TypeAlias = Callable[[Tensor], Tensor]

VIEWS = frozenset({"View", "UnsafeView", "ReshapeAlias"})
"""Those that keep the order of the entries."""
COPIES = frozenset({"Clone", "ToCopy", "Alias"})

_NAME = re.compile(r"(\w+)Backward\d")


def kind(node: Any) -> str:
    """``Addmm`` for an ``AddmmBackward0``, nothing for what is not torch's own: a custom Function's has no digit."""
    return _kind(node.name())


@cache
def _kind(name: str) -> str:
    found = _NAME.fullmatch(name)
    return found[1] if found else ""


def number(saved: int) -> int:
    """What was saved of an argument: negative ones come without their sign."""
    return saved - 2**64 if saved >= 2**63 else saved


class Placed(NamedTuple):
    """Entries of a leaf, as an operation is given them."""

    leaf: int
    entries: Tensor
    """Without memory: shape, strides and offset are those in the leaf."""
    parts: Shape | None = None
    """How many axes of ``entries`` are each of the tensor's, where several are one that has no stride in the leaf."""

    def axes(self) -> list[list[int]]:
        """Those of ``entries`` for each of the tensor's."""
        ends = list(accumulate(self.parts or (1,) * self.entries.ndim, initial=0))
        return [list(range(i, j)) for i, j in pairwise(ends)]

    def view(self) -> View:
        """That of ``entries``."""
        e = self.entries
        return View(self.leaf, int(e.storage_offset()), tuple(e.shape), tuple(e.stride()))

    def seen(self, look: Callable[[Tensor], Tensor]) -> Placed:
        """Through a view of ``entries``."""
        return self._replace(entries=look(self.entries))


def _split(node: Any, e: Tensor) -> Sequence[Tensor]:
    return e.split(node._saved_split_size, number(node._saved_dim))


def _split_with_sizes(node: Any, e: Tensor) -> Sequence[Tensor]:
    return e.split(node._saved_split_sizes, number(node._saved_dim))


def _slice(node: Any, e: Tensor) -> Tensor:
    along = [slice(None)] * e.ndim
    along[number(node._saved_dim)] = slice(number(node._saved_start), number(node._saved_end), node._saved_step)
    return e[tuple(along)]


LOOKS: dict[str, Callable[[Any, Tensor], Tensor | Sequence[Tensor]]] = {
    "T": lambda node, e: e.t(),
    "Transpose": lambda node, e: e.transpose(number(node._saved_dim0), number(node._saved_dim1)),
    "Permute": lambda node, e: e.permute([number(d) for d in node._saved_dims]),
    "Select": lambda node, e: e.select(number(node._saved_dim), number(node._saved_index)),
    "Slice": _slice,
    "Diagonal": lambda node, e: e.diagonal(node._saved_offset, number(node._saved_dim1), number(node._saved_dim2)),
    "Unbind": lambda node, e: e.unbind(number(node._saved_dim)),
    "Split": _split,
    "UnsafeSplit": _split,
    "SplitWithSizes": _split_with_sizes,
    "UnsafeSplitWithSizes": _split_with_sizes,
}
"""Views by what their nodes have saved."""
SHAPED = VIEWS | {"Squeeze", "Unsqueeze"}
"""Those that the result's shape tells."""


class Graph:
    """What is reached from ``outputs``, which has been computed from ``leaves``."""

    def __init__(self, outputs: Tensor, leaves: Sequence[Tensor]) -> None:
        self.root: Edge = get_gradient_edge(outputs)[:2] if outputs.requires_grad else (None, 0)
        edges: list[Edge] = [get_gradient_edge(leaf)[:2] for leaf in leaves]
        self.leaves: dict[Edge, int] = {edge: i for i, edge in enumerate(edges)}
        self._placed: dict[Edge, Placed | None] = {
            edge: Placed(i, torch.empty(leaf.shape, device="meta"))
            for i, (edge, leaf) in enumerate(zip(edges, leaves, strict=True))
        }
        # In the order of the forward. The leaves' own nodes have the highest number.
        self.nodes: list[Any] = sorted(nodes(outputs), key=lambda node: node._sequence_nr())
        self.takers: dict[Any, list[Any]] = {}
        for node in self.nodes:
            for given, _ in node.next_functions:
                self.takers.setdefault(given, []).append(node)

    def shape(self, edge: Edge) -> Shape:
        """Of a result."""
        return tuple(edge[0]._input_metadata[edge[1]].shape)

    def seen_by(self, node: Any) -> Iterator[Any]:
        """Who takes the results of ``node``; of a view that was written into, the view comes after the writing."""
        for taker in self.takers.get(node, []):
            yield from self.seen_by(taker) if taker.name().endswith("CopySlices") else [taker]

    def only_taker(self, node: Any) -> Any:
        """Who alone takes the results of ``node``, None where there are several, or they are outputs."""
        takers = self.takers.get(node, [])
        return takers[0] if len(takers) == 1 and node is not self.root[0] else None

    def placed(self, edge: Edge) -> Placed | None:
        """Which entries of which leaf that result is, None where it is anything else."""
        if edge[0] is None:
            return None
        if edge not in self._placed:
            self._placed[edge] = self._look(edge)
        return self._placed[edge]

    def _look(self, edge: Edge) -> Placed | None:
        node, which = edge
        name = kind(node)
        if not (name in LOOKS or name in SHAPED or name in COPIES or name in {"Expand", "Repeat"}):
            return None
        inner = self.placed(node.next_functions[0])
        if inner is None or (inner.parts and name not in COPIES):
            return None
        if name in COPIES:
            return inner if node._input_metadata[which].dtype.is_floating_point else None
        if name == "Repeat":
            return _repeated(inner, node._saved_repeats)
        shape = self.shape(edge)
        if name == "Expand":
            return inner.seen(lambda e: e.expand(shape))
        if name in SHAPED:
            return _reshaped(inner, shape)
        made = LOOKS[name](node, inner.entries)
        return inner._replace(entries=made if isinstance(made, Tensor) else made[which])


def _reshaped(placed: Placed, shape: Shape) -> Placed | None:
    """Where axes become one that has no stride, they stay apart; None where they should also be divided."""
    e = placed.entries
    try:
        return placed._replace(entries=e.view(shape))
    except RuntimeError:
        e = e[tuple(0 if size == 1 else slice(None) for size in e.shape)]
    parts, axis = [], 0
    for size in shape:
        start, many = axis, 1
        while many < size and axis < e.ndim:
            many, axis = many * e.shape[axis], axis + 1
        if many != size:
            return None
        if start == axis:
            e, axis = e.unsqueeze(axis), axis + 1
        parts.append(axis - start)
    return Placed(placed.leaf, e, tuple(parts))


def _repeated(placed: Placed, times: Shape) -> Placed | None:
    """One after the other along the first axis, as an instance norm's weight for each example."""
    copies, *others = times
    if len(times) != placed.entries.ndim or any(n != 1 for n in others):
        return None
    return Placed(placed.leaf, placed.entries.expand(copies, *placed.entries.shape), (2, *others))


@dataclass
class Found:
    """A use, and how to come by its tensors.

    They are read from the nodes when they are asked for: patches of a convolution are many times its input.
    """

    use: Use
    result: Edge
    inputs: Callable[[], Tensor | None]
    arranged: Map
    """(groups, *rows, outputs) of the cotangent at ``result``."""
    taken: list[tuple[Any, int]]
    """What this accounts for: nodes, and which of their edges. Leaves behind others have entered something else."""


def one_placed(graph: Graph, node: Any, first: int = 0) -> tuple[int, Placed] | None:
    """Which one of two operands, the edges from ``first`` on, is a parameter's; None for both and for neither."""
    pair = [graph.placed(edge) for edge in node.next_functions[first : first + 2]]
    if len(pair) < 2 or (pair[0] is None) == (pair[1] is None):
        return None
    return next((side, placed) for side, placed in enumerate(pair) if placed is not None)
