"""Derivatives by autograd: one recorded forward, and reverse mode on the record.

``J^T u`` is linear in u, so its derivative with respect to u, along v, is J v:
it is recorded once at the loss gradient, where its value is the gradient of the
loss, and products go through the two records. (autograd's own forward mode runs
the function anew for each product, and knows fewer operations.)

Records start from a list of leaves and may have several ends, which autograd's
own reverse pass doesn't; :func:`_pull` is that pass for many of both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from autograd.core import VJPNode, add_outgrads
from autograd.extend import Box
from autograd.tracer import getval, new_box, trace_stack

from linop_gn.backend import CalculusDefaults, LinearizationDefaults, writing_for
from linop_gn.dispatch import load

__all__ = ["AutogradCalculus", "AutogradGradientLinearization", "AutogradLinearization", "unboxed"]

Leaves = Sequence[Any]


class _Record:
    """A function of leaves that was run once: its value(s), and the nodes that its derivatives are found by."""

    def __init__(self, function: Callable[[list[Any]], Any], leaves: Leaves) -> None:
        self.leaves = list(leaves)
        self.roots = [VJPNode.new_root() for _ in leaves]
        with trace_stack.new_trace() as level, writing_for(load("autograd")):
            made = function([new_box(x, level, root) for x, root in zip(leaves, self.roots, strict=True)])
            ends = list(made) if isinstance(made, (list, tuple)) else [made]
            live = [isinstance(z, Box) and z._trace == level for z in ends]
            self.nodes = [z._node if on else None for z, on in zip(ends, live, strict=True)]
            self.values = [z._value if on else z for z, on in zip(ends, live, strict=True)]

    def pull(self, cotangents: Sequence[Any], only: Sequence[int] | None = None) -> list[Any]:
        """J^T of the cotangents, one for each end: a list like the leaves (or those in ``only``)."""
        chosen = range(len(self.leaves)) if only is None else only
        seeds = [(node, u) for node, u in zip(self.nodes, cotangents, strict=True) if node is not None]
        found = _pull(seeds, [self.roots[i] for i in chosen])
        return [np.zeros_like(self.leaves[i]) if g is None else g for i, g in zip(chosen, found, strict=True)]


def _pull(seeds: Sequence[tuple[Any, Any]], roots: Sequence[Any]) -> list[Any]:
    """One reverse pass from these nodes with these cotangents to the roots; None where nothing arrives."""
    needed = _ancestors_of_interest([node for node, _ in seeds], set(roots))
    waiting = dict.fromkeys(needed, 0)
    for node in needed:
        for parent in set(node.parents) & needed:
            waiting[parent] += 1
    sums: dict[Any, Any] = {}
    for node, u in seeds:
        if node in needed:
            sums[node] = add_outgrads(sums.get(node), u)
    ready = [node for node, count in waiting.items() if not count]
    while ready:
        node = ready.pop()
        arrived = sums.get(node) if node in roots else sums.pop(node, None)
        if arrived is not None and node.parents:
            for parent, part in zip(node.parents, node.vjp(arrived[0]), strict=True):
                if parent in needed:
                    sums[parent] = add_outgrads(sums.get(parent), part)
        for parent in set(node.parents) & needed:
            waiting[parent] -= 1
            if not waiting[parent]:
                ready.append(parent)
    return [sums[root][0] if root in sums else None for root in roots]


def _ancestors_of_interest(ends: list[Any], roots: set[Any]) -> set[Any]:
    """The nodes between the ends and the roots: no work is done for others."""
    leads: dict[Any, bool] = {}
    todo = list(ends)
    while todo:
        node = todo[-1]
        unknown = [parent for parent in node.parents if parent not in leads]
        if node in leads or not unknown:
            leads.setdefault(node, node in roots or any(leads[parent] for parent in node.parents))
            todo.pop()
        else:
            todo += unknown
    return {node for node, does in leads.items() if does}


def _plain(given: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    """New arrays of the leaves' shapes and dtypes."""
    return [np.array(x, dtype=a.dtype).reshape(a.shape) for x, a in zip(given, like, strict=True)]


def _array(value: Any, scalar: bool = False) -> Any:
    if not isinstance(value, (np.ndarray, np.number, float)) or np.asarray(value).dtype.kind != "f":
        raise TypeError(
            f"the function returned a {type(value).__qualname__}; it must return one array of real floating-point "
            "numbers, made with autograd.numpy or lg.namespace(x)."
        )
    if scalar and np.ndim(value):
        raise ValueError(f"a scalar function is needed here, not outputs of shape {np.shape(value)}: reduce them.")
    return np.asarray(value)


def _leaves(params: Leaves) -> list[Any]:
    return [np.array(p) for p in params]


class AutogradLinearization(LinearizationDefaults):
    """See :class:`linop_gn.protocols.Linearization`."""

    def __init__(self, function: Callable[[list[Any]], Any], params: Leaves, cotangent: Callable[[Any], Any]) -> None:
        self._record = _Record(function, _leaves(params))
        self.outputs = _array(self._record.values[0])
        u = np.asarray(cotangent(self.outputs), dtype=self.outputs.dtype)
        self._transposed = _Record(lambda boxed: self._record.pull([boxed[0]]), [u])
        self.gradient: list[Any] | None = _plain(self._transposed.values, self._record.leaves)

    def jvp(self, tangents: Leaves, only: tuple[int, ...] | None = None) -> Any:
        """J v, as the derivative of the recorded ``J^T u`` along u."""
        chosen = range(len(self._record.leaves)) if only is None else only
        nodes = [self._transposed.nodes[i] for i in chosen]
        seeds = [(node, np.asarray(v)) for node, v in zip(nodes, tangents, strict=True) if node is not None]
        (found,) = _pull(seeds, self._transposed.roots)
        return _plain([np.zeros_like(self.outputs) if found is None else found], [self.outputs])[0]

    def vjp(self, cotangent: Any, only: tuple[int, ...] | None = None) -> list[Any]:
        """J^T u, for the leaves in ``only`` alone where that is given."""
        chosen = range(len(self._record.leaves)) if only is None else only
        return _plain(self._record.pull([cotangent], only), [self._record.leaves[i] for i in chosen])


class AutogradGradientLinearization:
    """See :class:`linop_gn.protocols.GradientLinearization`."""

    def __init__(self, function: Callable[[list[Any]], Any], params: Leaves) -> None:
        value: list[Any] = []

        def gradient(leaves: list[Any]) -> list[Any]:
            inner = _Record(function, leaves)
            value[:] = inner.values
            return inner.pull([np.ones_like(_array(unboxed(inner.values[0]), scalar=True))])

        self._record = _Record(gradient, _leaves(params))
        self.value = _array(unboxed(value[0]))
        self.gradient = _plain(self._record.values, self._record.leaves)

    def hvp(self, tangents: Leaves) -> list[Any]:
        """H v, by one reverse pass through the gradient's record."""
        return _plain(self._record.pull(list(tangents)), self._record.leaves)


def unboxed(x: Any) -> Any:
    """The value inside autograd's boxes, or ``x`` itself."""
    while isinstance(x, Box):
        x = getval(x)
    return x


class AutogradCalculus(CalculusDefaults):
    """First and second derivatives of functions of a list of leaves."""

    linearize = AutogradLinearization
    linearize_gradient = AutogradGradientLinearization

    def gradient(
        self,
        function: Callable[[list[Any]], Any],
        params: Leaves,
        cotangent: Callable[[Any], Any] | None = None,
    ) -> tuple[Any, list[Any]]:
        record = _Record(function, _leaves(params))
        value = _array(record.values[0], scalar=cotangent is None)
        u = np.ones_like(value) if cotangent is None else cotangent(value)
        return value, _plain(record.pull([u]), record.leaves)

    def jacobian_rows(
        self, function: Callable[[list[Any]], Any], params: Leaves, rows: Sequence[int]
    ) -> list[list[Any]]:
        record = _Record(function, _leaves(params))
        outputs = _array(record.values[0])
        return [_plain(record.pull([_unit(outputs, row)]), record.leaves) for row in rows]

    def hessian_rows(
        self, function: Callable[[list[Any]], Any], params: Leaves, rows: Sequence[int]
    ) -> list[list[Any]]:
        curve = AutogradGradientLinearization(function, params)
        ends = np.cumsum([0, *(leaf.size for leaf in curve.gradient)])
        return [
            curve.hvp([_part(leaf, row - start) for leaf, start in zip(curve.gradient, ends[:-1], strict=True)])
            for row in rows
        ]


def _unit(like: Any, index: int) -> Any:
    unit = np.zeros_like(like)
    unit.reshape(-1)[index] = 1
    return unit


def _part(leaf: Any, index: int) -> Any:
    """One where ``index`` falls into this leaf, zeros elsewhere."""
    return _unit(leaf, index) if 0 <= index < leaf.size else np.zeros_like(leaf)
