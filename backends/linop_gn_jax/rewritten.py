"""A program written such that its end shows: functions that it calls are written out, and transposes stand first.

A model mapped over examples, ``jax.vmap(lambda x: f(W @ x))(x)``, works on the transpose of its outputs and turns them
last. What is done entry by entry is as well done to a transpose, f(z)^T = f(z^T), and (W x)^T = x^T W^T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jax.extend import core

from .linear import inner_jaxprs, jaxpr_of
from .sums import Factor, bound, swapped

__all__ = ["ALONG_AXES", "ENTRYWISE", "rewritten"]

ENTRYWISE = frozenset(
    """
    abs add add_any and cbrt ceil clamp convert_element_type copy cos cosh div eq erf erfc exp exp2 expm1 floor ge gt
    integer_pow is_finite le log log1p logistic lt max min mul ne neg not or pow reduce_precision rem round rsqrt
    select_n sign sin sinh sqrt square stop_gradient sub tan tanh xor
    """.split()  # noqa: SIM905
)
ALONG_AXES = frozenset(("argmax", "argmin", *(f"reduce_{name}" for name in ("and", "max", "min", "or", "prod", "sum"))))
_CALLS = frozenset(("closed_call", "core_call", "jit", "pjit"))

Order = tuple[int, ...]
"""Axis i of an array as it is held is axis order[i] of the array that is meant."""


def rewritten(closed: core.ClosedJaxpr, size: int) -> core.ClosedJaxpr:
    """The same program, in what takes or makes arrays of this size."""
    return _turned_first(_inlined(closed, size), size)


def _inlined(closed: core.ClosedJaxpr, size: int) -> core.ClosedJaxpr:
    def large(jaxpr: core.Jaxpr) -> bool:
        own = any(getattr(v.aval, "size", 0) >= size for eqn in jaxpr.eqns for v in (*eqn.invars, *eqn.outvars))
        return own or any(large(inner) for eqn in jaxpr.eqns for inner in inner_jaxprs(eqn.params))

    def called(eqn: core.JaxprEqn) -> core.ClosedJaxpr | None:
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")) if eqn.primitive.name in _CALLS else None
        return None if inner is None or not large(jaxpr_of(inner)) else inner

    def run(jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else known[atom]

        for eqn in jaxpr.eqns:
            values, inner = list(map(read, eqn.invars)), called(eqn)
            made = bound(eqn, values) if inner is None else run(jaxpr_of(inner), getattr(inner, "consts", ()), values)
            known.update(zip(eqn.outvars, made, strict=True))
        return list(map(read, jaxpr.outvars))

    if not any(map(called, closed.jaxpr.eqns)):
        return closed
    return jax.make_jaxpr(lambda *arguments: run(closed.jaxpr, closed.consts, arguments))(*closed.in_avals)


def _turned_first(closed: core.ClosedJaxpr, size: int) -> core.ClosedJaxpr:
    jaxpr = closed.jaxpr
    orders = _orders(jaxpr, size)
    if not orders:
        return closed

    def held(atom: Any) -> Order:
        plain = tuple(range(len(atom.aval.shape)))
        return plain if isinstance(atom, core.Literal) else orders.get(atom, plain)

    def run(*arguments: Any) -> list[Any]:
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *arguments), strict=True))

        def read(atom: Any, order: Order | None = None) -> Any:
            if isinstance(atom, core.Literal):
                return atom.val
            own, order = held(atom), order or tuple(range(atom.aval.ndim))
            return known[atom] if own == order else lax.transpose(known[atom], [own.index(axis) for axis in order])

        def turned(eqn: core.JaxprEqn, order: Order) -> Any:
            """The result as it is held; None where that is a transpose of what is made."""
            name, params, (x, *rest) = eqn.primitive.name, eqn.params, eqn.invars
            if name == "transpose":
                return read(x, tuple(params["permutation"][axis] for axis in order))
            if name in ENTRYWISE:
                return bound(eqn, (read(v, order if v.aval.shape else None) for v in eqn.invars))[0]
            if name in ALONG_AXES and (own := held(x)) != tuple(range(len(own))):
                kept = tuple(axis for axis in own if axis not in params["axes"])
                if kept == tuple(sorted(kept)) and order == tuple(range(len(kept))):
                    axes = tuple(sorted(map(own.index, params["axes"])))
                    return bound(eqn.replace(params={**params, "axes": axes}), (read(x, own),))[0]
            if name == "broadcast_in_dim" and not rest:
                places = [order.index(axis) for axis in params["broadcast_dimensions"]]
                sizes = {"shape": tuple(params["shape"][axis] for axis in order)}
                by_place = tuple(sorted(range(len(places)), key=places.__getitem__))
                sizes["broadcast_dimensions"] = tuple(sorted(places))
                return bound(eqn.replace(params={**params, **sizes}), (read(x, by_place),))[0]
            if name == "dot_general" and not params["dimension_numbers"][1][0]:
                one, other = map(Factor, map(read, eqn.invars), params["dimension_numbers"][0])
                first = x.aval.ndim - len(one.axes)
                return swapped(eqn, one, other) if order == (*range(first, len(order)), *range(first)) else None
            return None

        for eqn in jaxpr.eqns:
            out, made = eqn.outvars[0] if len(eqn.outvars) == 1 else None, None
            if out is not None and eqn.invars and (out in orders or any(v in orders for v in _names(eqn.invars))):
                made = turned(eqn, held(out))
            if made is None:
                results = bound(eqn, map(read, eqn.invars))
                pairs = zip(eqn.outvars, results, strict=True)
                known.update((v, lax.transpose(x, orders[v]) if v in orders else x) for v, x in pairs)
            else:
                known[out] = made
        return list(map(read, jaxpr.outvars))

    return jax.make_jaxpr(run)(*closed.in_avals)


def _orders(jaxpr: core.Jaxpr, size: int) -> dict[Any, Order]:
    """How to hold what a transpose is made of, as far as that is done entry by entry."""
    orders: dict[Any, Order] = {}
    for eqn in reversed(jaxpr.eqns):
        out: Any = eqn.outvars[0] if len(eqn.outvars) == 1 else None
        if eqn.primitive.name == "transpose" and out.aval.size >= size:
            (x,), way = eqn.invars, eqn.params["permutation"]
            orders.setdefault(x, tuple(way[axis] for axis in orders.get(out, range(len(way)))))
        elif out in orders and eqn.primitive.name in ENTRYWISE:
            for x in _names(eqn.invars):
                if x.aval.shape:
                    orders.setdefault(x, orders[out])
    for given in (*jaxpr.constvars, *jaxpr.invars):
        orders.pop(given, None)
    return orders


def _names(atoms: Sequence[Any]) -> list[Any]:
    return [atom for atom in atoms if not isinstance(atom, core.Literal)]
