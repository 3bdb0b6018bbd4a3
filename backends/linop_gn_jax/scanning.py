"""One loop over stacked data, which keeps once what doesn't change from index to index.

A linearisation keeps residuals: activations, which belong to a batch, and
weights, which belong to none. Stacked like everything else, the weights of a
model would be held, and read, once for each batch. What does not depend on the
index is therefore computed outside the loop and held as :class:`Everywhere`, a
wrapper that :func:`scan_over` takes off again when the linearisation comes back
as stacked data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, tree_util
from jax.extend import core
from jax.interpreters import ad

from linop_gn.records import Everywhere

from .calculus import JaxGradientLinearization, JaxLinearization
from .linear import without_dead_code
from .mapped import cast, varying

__all__ = ["scan_over"]

_Linear = (JaxLinearization, JaxGradientLinearization)


def _is_everywhere(node: Any) -> bool:
    return isinstance(node, Everywhere)


def scan_over(function: Callable[..., tuple[Any, Any]], stacked: Any, shared: tuple[Any, ...]) -> tuple[Any, Any]:
    """The sum of the parts and the stack of the pieces; see :meth:`linop_gn.protocols.Loops.scan_over`."""
    nodes, structure = tree_util.tree_flatten(stacked, is_leaf=_is_everywhere)
    columns = [jnp.asarray(node) for node in nodes if not _is_everywhere(node)]

    def at_index(*values: Any) -> tuple[Any, Any]:
        left = iter(values)
        leaves = [node.array if _is_everywhere(node) else next(left) for node in nodes]
        return function(tree_util.tree_unflatten(structure, leaves), *shared)

    element = [jax.eval_shape(lambda c: lax.index_in_dim(c, 0, keepdims=False), column) for column in columns]
    closed, (part, piece) = jax.make_jaxpr(at_index, return_shape=True)(*element)
    n_parts = len(tree_util.tree_leaves(part))
    once = [False] * n_parts + _independent_residuals(closed, piece, n_parts)

    def body(totals: list[Any], values: list[Any]) -> tuple[list[Any], list[Any]]:
        outputs = core.jaxpr_as_fun(closed)(*values)
        varying = [x for x, same in zip(outputs, once, strict=True) if not same]
        return [jnp.add(t, x) for t, x in zip(totals, varying[:n_parts], strict=True)], varying[n_parts:]

    zeros = [ad.zeros_like_aval(a) for a in closed.out_avals[:n_parts]]
    zeros = [cast(zero, varying(aval)) for zero, aval in zip(zeros, closed.out_avals, strict=False)]
    totals, stacks = lax.scan(body, zeros, columns)
    left, same = iter(stacks), iter(_evaluate_once(closed, once))
    leaves = [Everywhere(next(same)) if flag else next(left) for flag in once[n_parts:]]
    return (
        tree_util.tree_unflatten(tree_util.tree_structure(part), totals),
        tree_util.tree_unflatten(tree_util.tree_structure(piece), leaves),
    )


def _independent_residuals(closed: core.ClosedJaxpr, piece: Any, n_parts: int) -> list[bool]:
    """For each leaf of ``piece``: whether it is a residual that no stacked value enters."""
    varies = set(closed.jaxpr.invars)
    for eqn in closed.jaxpr.eqns:
        if eqn.effects or any(not isinstance(v, core.Literal) and v in varies for v in eqn.invars):
            varies.update(eqn.outvars)
    outputs = closed.jaxpr.outvars[n_parts:]
    fixed = [isinstance(v, core.Literal) or v not in varies for v in outputs]
    residual = tree_util.tree_map(_residual, piece, is_leaf=lambda node: isinstance(node, _Linear))
    return [a and b for a, b in zip(fixed, tree_util.tree_leaves(residual), strict=True)]


def _residual(node: Any) -> Any:
    """For each leaf of ``node``: whether it is a residual of a linearisation."""
    flags = tree_util.tree_map(lambda _: False, node)
    return replace(flags, residuals=[True] * len(node.residuals)) if isinstance(node, _Linear) else flags


def _evaluate_once(closed: core.ClosedJaxpr, wanted: Sequence[bool]) -> list[Any]:
    """The outputs that depend on no input."""
    if not any(wanted):
        return []
    pruned = without_dead_code(closed, wanted)
    return core.jaxpr_as_fun(pruned)(*map(ad.zeros_like_aval, closed.in_avals))  # type: ignore[no-any-return]
