"""Sums of two large products of matrices, some rows at a time.

J v of a model's last layer is x dW + dx W: over a large vocabulary each of the two is as large as the logits, and XLA
holds both, and their sum. Where a program adds two products that nobody else wants, and that are large, it is rewritten
as a loop over a few blocks of their rows, and nothing but the sum is held whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

__all__ = ["LARGE", "bound", "in_blocks", "pays"]

LARGE = 1 << 22
"""Entries of sums that are made in blocks."""
_BLOCKS = 8


def pays(closed: core.ClosedJaxpr) -> bool:
    """Whether there is such a sum, and one device: to loop over rows that several share would gather these."""
    return bool(_sums(closed.jaxpr)) and jax.device_count() == 1


def in_blocks(closed: core.ClosedJaxpr, *arguments: Any) -> list[Any]:
    """What the program computes."""
    jaxpr, known = closed.jaxpr, dict[Any, Any]()
    sums = _sums(jaxpr)
    inside = {id(dot) for dots in sums.values() for dot in dots}
    known.update(zip(jaxpr.constvars, closed.consts, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    for eqn in jaxpr.eqns:
        if id(eqn) in inside:
            continue
        if id(eqn) in sums:
            made = [_summed([(dot, [read(v) for v in dot.invars]) for dot in sums[id(eqn)]])]
        else:
            made = bound(eqn, map(read, eqn.invars))
        known.update(zip(eqn.outvars, made, strict=True))
    return list(map(read, jaxpr.outvars))


def bound(eqn: core.JaxprEqn, values: Iterable[Any]) -> list[Any]:
    """What an operation makes of ``values``."""
    told = eqn.primitive.get_bind_params(eqn.params)
    functions, params = told if isinstance(told, tuple) else ((), told)  # a pair in older JAX
    with eqn.ctx.manager:
        made = eqn.primitive.bind(*functions, *values, **params)
    return list(made) if eqn.primitive.multiple_results else [made]


def _sums(jaxpr: core.Jaxpr) -> dict[int, list[core.JaxprEqn]]:
    """The products that each such addition adds, by the number of its operation."""
    dots = {e.outvars[0]: e for e in jaxpr.eqns if e.primitive.name == "dot_general" and _rows(e)}
    readers = Counter(v for e in jaxpr.eqns for v in e.invars if not isinstance(v, core.Literal))
    readers.update(v for v in jaxpr.outvars if not isinstance(v, core.Literal))
    large = (e for e in jaxpr.eqns if e.primitive.name in ("add", "add_any") and e.outvars[0].aval.size >= LARGE)

    def alone(v: Any) -> bool:
        return not isinstance(v, core.Literal) and v in dots and readers[v] == 1

    return {id(eqn): [dots[v] for v in eqn.invars] for eqn in large if all(map(alone, eqn.invars))}


def _rows(dot: core.JaxprEqn) -> int:
    """How many rows a block of its result has; 0 where its first axis is not one of the first factor, or is short."""
    (contracted, _), (batch, _) = dot.params["dimension_numbers"]
    shape = dot.outvars[0].aval.shape
    if batch or len(contracted) == dot.invars[0].aval.ndim or not shape:
        return 0
    blocks = next(n for n in range(min(_BLOCKS, shape[0]), 0, -1) if shape[0] % n == 0)
    return 0 if blocks == 1 else int(shape[0] // blocks)


def _summed(dots: list[tuple[core.JaxprEqn, list[Any]]]) -> Any:
    size, out = _rows(dots[0][0]), dots[0][0].outvars[0].aval

    def block(i: Any) -> Any:
        parts = []
        for dot, (x, y) in dots:
            axis = next(a for a in range(x.ndim) if a not in dot.params["dimension_numbers"][0][0])
            x = lax.dynamic_slice_in_dim(x, i * size, size, axis)
            parts.append(dot.primitive.bind(x, y, **dot.params))
        return jnp.add(*parts)

    return lax.map(block, jnp.arange(out.shape[0] // size, dtype=jnp.int32)).reshape(out.shape)
