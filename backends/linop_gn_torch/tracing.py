"""A function traced into operations, once, and cut in two at what depends on the vectors of a product.

    f(inputs, v, u) -> kept, J v, J^T u        becomes        known(inputs) -> kept, saved;  J(saved, v);  J^T(saved, u)

``known`` is run at each new point or batch, the others for each product. Parameters and data are inputs, and so are
constants of the model: nothing is traced again when their values change.

The trace is made of tensors that have a shape and no values (``make_fx`` with fake tensors), so that no value can be
taken for a constant: a model that asks for one (``if x.sum() > 0``, ``x.item()``, ``x[x > 0]``) is refused, with the
reason, and so is one that draws random numbers or writes to what it was given.

What is saved is what products read, the base of a view rather than the view. What is written in place becomes a new
tensor first: else one product would leave its numbers to the next.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import SymInt, Tensor
from torch._functorch.compile_utils import fx_graph_cse
from torch._ops import OpOverload
from torch.func import functionalize
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from .added import together

__all__ = ["Half", "RefusedError", "Traced", "trace"]

Function = Callable[..., Sequence[Sequence[Tensor]]]


class RefusedError(Exception):
    """No program can be made of a function, for the reason that this says."""


@dataclass
class Half:
    """A part of the trace that is linear in its vectors."""

    module: GraphModule
    """``module(*saved, *vectors) -> results``."""
    reads: list[int]
    """Which of what is saved."""


@dataclass
class Traced:
    """A function as programs."""

    known: GraphModule
    """``known(*inputs, *constants) -> (*kept, *made)``."""
    constants: list[Tensor]
    """What the function holds, by reference: values that are written into them count."""
    saved: list[tuple[bool, int]]
    """What products read: (True, i) is input i itself, (False, i) is result i of ``known``."""
    kept: int
    halves: list[Half]


def trace(function: Function, inputs: Sequence[Tensor], *vectors: Sequence[Tensor]) -> Traced:
    """``function(inputs, *vectors) -> (kept, *results)``: each result depends on ``inputs`` and its own vectors alone.

    Raises
    ------
    RefusedError
        With the reason, where values decide what the function does, or where it draws or writes.
    """
    ends = list(accumulate([len(inputs), *map(len, vectors)], initial=0))
    examples = [t.detach() for group in (inputs, *vectors) for t in group]  # new objects, also of one given twice

    def flat(*tensors: Tensor) -> Any:
        return function(*(list(tensors[i:j]) for i, j in pairwise(ends)))

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the first, eager, run has told
        made = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*examples)
        _require_known(made.graph)
        made.graph.eliminate_dead_code()  # such as a module's parameters, in place of which others are given
        made, constants = _lifted(made)
        if any(map(_writes, made.graph.nodes)):
            pure = functionalize(made, remove="mutations")
            made = make_fx(pure, tracing_mode="fake", _allow_non_fake_inputs=True)(*examples, *constants)
            if any(map(_writes, made.graph.nodes)):
                raise RefusedError("the model writes to its inputs, or to a tensor that it holds")
    graph = fx_graph_cse(made.graph)
    together(graph)
    graph.eliminate_dead_code()
    return _cut(made, graph, ends, constants)


def _require_known(graph: Graph) -> None:
    """Refuse what would be other operations, or other numbers, the next time."""
    for node in graph.nodes:
        tags = node.target.tags if isinstance(node.target, OpOverload) else ()
        if torch.Tag.nondeterministic_seeded in tags:
            raise RefusedError(f"the model draws random numbers ({node.target})")
        shape = getattr(node.meta.get("val"), "shape", ())
        if torch.Tag.data_dependent_output in tags or any(isinstance(size, SymInt) for size in shape):
            raise RefusedError(f"a number or a shape in the model depends on the values of tensors ({node.target})")


def _writes(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _lifted(module: GraphModule) -> tuple[GraphModule, list[Tensor]]:
    """The module with its constants as further inputs."""
    graph, env, constants = Graph(), {}, {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            env[node] = graph.node_copy(node)
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value = getattr(module, node.target)
            if not isinstance(value, Tensor):
                raise RefusedError("the model holds a program of its own")
            if node.target not in constants:
                constants[node.target] = (graph.placeholder(f"constant_{node.target}"), value.detach())
            env[node] = constants[node.target][0]
    for node in module.graph.nodes:
        if node not in env:
            env[node] = graph.node_copy(node, env.__getitem__)
    return GraphModule(module, graph), [value for _, value in constants.values()]


def _cut(module: GraphModule, graph: Graph, ends: list[int], constants: list[Tensor]) -> Traced:
    heads = [node for node in graph.nodes if node.op == "placeholder"]
    (tail,) = (node for node in graph.nodes if node.op == "output")
    kept, *results = (list(part) for part in tail.args[0])
    inputs, groups = [*heads[: ends[1]], *heads[ends[-1] :]], [heads[i:j] for i, j in pairwise(ends[1:])]
    moving = [_reached(graph, group) for group in groups]
    halves = [_half(module, graph, *each) for each in zip(moving, groups, results, strict=True)]
    needed = list(dict.fromkeys(node for _, nodes in halves for node in nodes))
    if any(node in reached for node in (*needed, *kept) for reached in moving):
        raise RefusedError("a product depends on the vectors of another")
    places = {node: (True, i) for i, node in enumerate(inputs)}
    made = list(dict.fromkeys(node for node in needed if node not in places))
    places |= {node: (False, len(kept) + i) for i, node in enumerate(made)}
    known = _copied(module, (n for n in graph.nodes if not any(n in r for r in moving)), inputs, [*kept, *made])
    parts = [Half(part, [needed.index(node) for node in nodes]) for part, nodes in halves]
    return Traced(known, constants, [places[node] for node in needed], len(kept), parts)


def _reached(graph: Graph, vectors: list[Node]) -> set[Node]:
    """What depends on ``vectors``."""
    found = set(vectors)
    for node in graph.nodes:
        if node.op != "output" and any(given in found for given in node.all_input_nodes):
            found.add(node)
    return found


def _half(
    module: GraphModule, graph: Graph, moving: set[Node], vectors: list[Node], results: list[Node]
) -> tuple[GraphModule, list[Node]]:
    """The part that computes ``results``, and what it reads."""
    live, todo = set(), [node for node in results if node in moving]
    while todo:
        node = todo.pop()
        if node not in live:
            live.add(node)
            todo += [given for given in node.all_input_nodes if given in moving]
    views, needed = set(), dict.fromkeys(_without_views([n for n in results if n not in moving], set()))
    for node in graph.nodes:
        if node in live:
            needed |= dict.fromkeys(_without_views([n for n in node.all_input_nodes if n not in moving], views))
    part = [node for node in graph.nodes if node in live or node in views]
    return _copied(module, part, [*needed, *vectors], results), list(needed)


def _without_views(given: list[Node], views: set[Node]) -> Iterator[Node]:
    """What ``given`` are views of; the views between are added to ``views``."""
    for node in given:
        while (base := _base(node)) is not None:
            views.add(node)
            node = base
        yield node


def _base(node: Node) -> Node | None:
    """What ``node`` is a view of, None where it is none."""
    given = node.all_input_nodes
    if len(given) != 1:
        return None
    if not isinstance(node.target, OpOverload):  # one of several views
        return given[0] if node.op == "call_function" and _base(given[0]) is not None else None
    infos = [argument.alias_info for argument in node.target._schema.arguments]
    return given[0] if any(info is not None and not info.is_write for info in infos) else None


def _copied(module: GraphModule, nodes: Any, inputs: list[Node], results: list[Node]) -> GraphModule:
    """A module of these nodes."""
    graph, env = Graph(), {}
    for i, node in enumerate(inputs):
        env[node] = graph.placeholder(f"given_{i}")
    for node in nodes:
        if node not in env and node.op not in ("placeholder", "output"):
            env[node] = graph.node_copy(node, env.__getitem__)
    given = set(inputs)
    clone = torch.ops.aten.clone.default
    graph.output([graph.call_function(clone, (env[n],)) if n in given else env[n] for n in results])
    graph.eliminate_dead_code()
    return GraphModule(module, graph)
