"""A function whose derivative and transpose are given by rules, in every nesting of JAX's transformations.

``jax.custom_jvp`` has no transpose of its own, and ``lax.custom_linear_solve`` knows
regular systems only. :func:`apply` calls a function as an operation of JAX that has
both rules: each may apply functions with rules again, so that derivatives of any
order, forward and reverse, never look into the function. ``vmap`` maps the function
and its rules alike.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from .compiled import tracing

__all__ = ["CLOSES", "Rule", "apply"]

CLOSES = (
    "closes over arrays that are traced, so that the derivative of a solution would leave them out. Hand them to the "
    "operator: lg.FunctionOperator(..., args=(array,))."
)

Values = Sequence[Any]


@dataclass(frozen=True)
class Rule:
    """A function of arrays, and what is known of it; where a tangent, cotangent or argument is None there is none."""

    key: Hashable
    """Equal for equal functions."""
    call: Callable[..., list[Any]] = field(compare=False)
    """Arguments to values."""
    jvp: Callable[[Values, Values, Values], Values] = field(compare=False)
    """Arguments, their tangents and the values to the values' tangents."""
    transpose: Callable[[Values, Values], Values] = field(compare=False)
    """Arguments, None for those in which it is linear, and the values' cotangents to the arguments' cotangents."""


def apply(rule: Rule, arguments: Values, closing: bool = False) -> list[Any]:
    """``rule.call(*arguments)``, with the rule's derivatives; ``closing`` if the function closes over tracers."""
    jaxpr = None
    if closing or tracing():  # what is closed over must not leave its trace
        closed = jax.make_jaxpr(rule.call)(*arguments)
        rule, jaxpr, arguments = _without_closure(rule, closed), closed.jaxpr, [*closed.consts, *arguments]
    made: list[Any] = _ruled.bind(*arguments, rule=rule, jaxpr=jaxpr)
    return made


def _without_closure(rule: Rule, closed: core.ClosedJaxpr) -> Rule:
    """``rule`` as a function of what it closes over, too: first."""
    n, jaxpr = len(closed.consts), closed.jaxpr

    def call(*arguments: Any) -> list[Any]:
        return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, arguments[:n]))(*arguments[n:])  # type: ignore[no-any-return]

    def jvp(arguments: Values, tangents: Values, values: Values) -> Values:
        if any(tangent is not None for tangent in tangents[:n]):
            raise NotImplementedError(f"the operator of a solve {CLOSES}")
        return rule.jvp(arguments[n:], tangents[n:], values)

    def transpose(arguments: Values, cotangents: Values) -> Values:
        return [*[None] * n, *rule.transpose(arguments[n:], cotangents)]

    return Rule((rule.key, n), call, jvp, transpose)


_ruled = core.Primitive("linop_gn")
_ruled.multiple_results = True


@_ruled.def_impl
def _call(*arguments: Any, rule: Rule, jaxpr: core.Jaxpr | None) -> list[Any]:
    return rule.call(*arguments)


def _shapes(*avals: Any, rule: Rule, jaxpr: core.Jaxpr | None) -> tuple[Any, Any]:
    traced = jax.make_jaxpr(rule.call)(*avals).jaxpr if jaxpr is None else jaxpr
    return [x.aval for x in traced.outvars], traced.effects


def _jvp(arguments: Values, tangents: Values, *, rule: Rule, jaxpr: core.Jaxpr | None) -> tuple[Any, Any]:
    values = _ruled.bind(*arguments, rule=rule, jaxpr=jaxpr)
    moved = rule.jvp(arguments, [None if isinstance(t, ad.Zero) else t for t in tangents], values)
    still = [ad.Zero(jax.typeof(value).to_tangent_aval()) for value in values]
    return values, [zero if t is None else t for t, zero in zip(moved, still, strict=True)]


def _transpose(cotangents: Values, *arguments: Any, rule: Rule, jaxpr: core.Jaxpr | None) -> Values:
    known = [None if ad.is_undefined_primal(x) else x for x in arguments]
    return rule.transpose(known, [None if isinstance(c, ad.Zero) else c for c in cotangents])


def _batch(arguments: Values, axes: Values, *, rule: Rule, jaxpr: core.Jaxpr | None) -> tuple[Any, Any]:
    over = tuple(None if axis is None else 0 for axis in axes)
    arguments = [x if axis is None else jax.numpy.moveaxis(x, axis, 0) for x, axis in zip(arguments, axes, strict=True)]

    def jvp(arguments: Values, tangents: Values, values: Values) -> Values:
        moved: Values = jax.vmap(rule.jvp, (list(over), list(over), 0))(list(arguments), list(tangents), list(values))
        return moved

    def transpose(arguments: Values, cotangents: Values) -> Values:
        mapped = jax.vmap(lambda a, c: list(rule.transpose(a, c)), (list(over), 0))
        made = mapped(list(arguments), list(cotangents))
        return [c.sum(0) if c is not None and axis is None else c for c, axis in zip(made, over, strict=True)]

    values = apply(Rule(("vmap", over, rule.key), jax.vmap(rule.call, over), jvp, transpose), arguments)
    return values, [0] * len(values)


_ruled.def_effectful_abstract_eval(_shapes)
ad.primitive_jvps[_ruled] = _jvp
ad.primitive_transposes[_ruled] = _transpose
batching.primitive_batchers[_ruled] = _batch
mlir.register_lowering(_ruled, mlir.lower_fun(_call, multiple_results=True))
