"""Large products of matrices in programs: sums of two, of which nothing but the sum is held, and products turned.

J v of a model's last layer is x dW + dx W: over a large vocabulary each of the two is as large as the logits, and XLA
holds both, and their sum. A program that adds two large products, which nobody else wants, is rewritten. Where factors
are small beside the sum, it is one product of the factors side by side, (x dx) (dW W). Elsewhere it is a loop over a
few blocks of rows.

J^T u of such a layer has u^T x, for u as large as the logits. On the CPU, XLA takes .25 to .55 of the time for x^T u
where x has 64 columns (measured with 512 to 4096 rows; with 256 columns as long, with 512 half as long again).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

__all__ = ["LARGE", "bound", "in_blocks", "pays"]

LARGE = 1 << 22
"""Entries of sums that are made in blocks."""
_BLOCKS = 8
_FEW = 128
"""Columns of the second factor of products that are turned."""
_SMALL = 3
"""So many times larger than both factors side by side the sum has to be."""


class _Factor(NamedTuple):
    """A factor of a product, and the axes that are summed over."""

    array: Any
    axes: Sequence[int]


class _Product(NamedTuple):
    """A product and its factors: as they are, and as they stand in memory where they are transposes."""

    dot: core.JaxprEqn
    factors: list[_Factor]
    turned: list[_Factor]


def pays(closed: core.ClosedJaxpr) -> bool:
    """Whether there is such an operation, and one device: to loop over rows that several share would gather these."""
    return jax.device_count() == 1 and (bool(_sums(closed.jaxpr)) or any(map(_had_better_turn, closed.jaxpr.eqns)))


def in_blocks(closed: core.ClosedJaxpr, *arguments: Any) -> list[Any]:
    """What the program computes."""
    jaxpr, known = closed.jaxpr, dict[Any, Any]()
    sums = _sums(jaxpr)
    inside = {id(dot) for dots in sums.values() for dot in dots}
    turned = {e.outvars[0]: e for e in jaxpr.eqns if e.primitive.name == "transpose" and e.outvars[0].aval.ndim == 2}
    known.update(zip(jaxpr.constvars, closed.consts, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    def turn(atom: Any, factor: _Factor) -> _Factor:
        if isinstance(atom, core.Literal) or atom not in turned or len(factor.axes) > 1:
            return factor
        eqn = turned[atom]
        return _Factor(read(eqn.invars[0]), (eqn.params["permutation"][factor.axes[0]],))

    def product(dot: core.JaxprEqn) -> _Product:
        factors = [
            _Factor(read(v), axes) for v, axes in zip(dot.invars, dot.params["dimension_numbers"][0], strict=True)
        ]
        return _Product(dot, factors, list(map(turn, dot.invars, factors)))

    for eqn in jaxpr.eqns:
        if id(eqn) in inside:
            continue
        if id(eqn) in sums:
            made = [_summed([product(dot) for dot in sums[id(eqn)]])]
        elif _had_better_turn(eqn):
            made = [_the_other_way(eqn, *map(read, eqn.invars))]
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


def _summed(products: list[_Product]) -> Any:
    made = _side_by_side(*products)
    return _by_rows(products) if made is None else made


def _side_by_side(one: _Product, other: _Product) -> Any:
    """One product of the factors side by side along the axis that is summed over; None where that is no way.

    They are too large for it, multiplied in other ways, or summed over several axes.
    """
    way, also = ({**product.dot.params, "dimension_numbers": None} for product in (one, other))
    pairs = [_alike(*four) for four in zip(one.turned, other.turned, one.factors, other.factors, strict=True)]
    size = sum(factor.array.size for factor in (*one.factors, *other.factors))
    if way != also or _SMALL * size > one.dot.outvars[0].aval.size or None in pairs:
        return None
    joined, axes = zip(*((jnp.concatenate([x, y], axis), (axis,)) for x, y, axis in pairs), strict=True)
    return one.dot.primitive.bind(*joined, **{**way, "dimension_numbers": (axes, ((), ()))})


def _alike(*factors: _Factor) -> tuple[Any, Any, int] | None:
    """The first two, or the last two, that can stand side by side, and along which axis."""
    for (x, axes), (y, others) in (factors[:2], factors[2:]):
        rest = [[n for i, n in enumerate(a.shape) if i not in axes] for a in (x, y)]
        if x.dtype == y.dtype and tuple(axes) == tuple(others) and len(axes) == 1 and rest[0] == rest[1]:
            return x, y, axes[0]
    return None


def _by_rows(products: list[_Product]) -> Any:
    size, out = _rows(products[0].dot), products[0].dot.outvars[0].aval

    def block(i: Any) -> Any:
        parts = []
        for dot, ((x, axes), (y, _)), _ in products:
            axis = next(a for a in range(x.ndim) if a not in axes)
            x = lax.dynamic_slice_in_dim(x, i * size, size, axis)
            parts.append(dot.primitive.bind(x, y, **dot.params))
        return jnp.add(*parts)

    return lax.map(block, jnp.arange(out.shape[0] // size, dtype=jnp.int32)).reshape(out.shape)


def _had_better_turn(eqn: core.JaxprEqn) -> bool:
    """Whether it sums over the rows of a large matrix, and of one with few columns after it."""
    if eqn.primitive.name != "dot_general" or jax.default_backend() != "cpu":
        return False
    ((left, right), (batch, _)), (x, y) = eqn.params["dimension_numbers"], [v.aval for v in eqn.invars]
    matrices = not batch and len(left) == x.ndim - 1 and len(right) == y.ndim - 1
    return matrices and x.size >= LARGE and x.ndim - 1 not in left and eqn.outvars[0].aval.shape[1] <= _FEW


def _the_other_way(eqn: core.JaxprEqn, x: Any, y: Any) -> Any:
    """x^T y as the transpose of y^T x, which XLA would turn back if it saw both."""
    (left, right), _ = eqn.params["dimension_numbers"]
    precision = eqn.params["precision"]
    turned = {
        "dimension_numbers": ((right, left), ((), ())),
        "precision": precision[::-1] if isinstance(precision, tuple) else precision,
    }
    return lax.optimization_barrier(eqn.primitive.bind(y, x, **{**eqn.params, **turned})).T
