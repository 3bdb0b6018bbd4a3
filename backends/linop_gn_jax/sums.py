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
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

__all__ = ["LARGE", "Factor", "bound", "in_blocks", "pays", "swapped"]

LARGE = 1 << 22
"""Entries of sums that are made in blocks."""
_BLOCKS = 8
_FEW = 128
"""Columns of the second factor of products that are turned."""
_SMALL = 3
"""So many times larger than both factors side by side the sum has to be."""


class Factor(NamedTuple):
    """A factor of a product, by its name or its numbers, and the axes that are summed over."""

    array: Any
    axes: Sequence[int]


class _Product(NamedTuple):
    """A product and its factors: as they are, and as they stand in memory where they are transposes."""

    dot: core.JaxprEqn
    factors: list[Factor]
    turned: list[Factor]


def pays(closed: core.ClosedJaxpr) -> bool:
    """Whether there is such an operation, and one device: to loop over rows that several share would gather these."""
    return jax.device_count() == 1 and bool(_sums(closed.jaxpr) or _as_they_lie(closed.jaxpr))


def in_blocks(closed: core.ClosedJaxpr, *arguments: Any) -> list[Any]:
    """What the program computes."""
    jaxpr, known = closed.jaxpr, dict[Any, Any]()
    sums, lying, stored = _sums(jaxpr), _as_they_lie(jaxpr), _transposes(jaxpr)
    inside = {id(dot) for dots in sums.values() for dot in dots}
    known.update(zip(jaxpr.constvars, closed.consts, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    def product(dot: core.JaxprEqn) -> _Product:
        as_it_is = list(map(Factor, dot.invars, dot.params["dimension_numbers"][0]))
        factors = [[Factor(read(v), axes) for v, axes in way] for way in (as_it_is, [stored(f) for f in as_it_is])]
        return _Product(dot, *factors)

    for eqn in jaxpr.eqns:
        if id(eqn) in inside:
            continue
        if id(eqn) in sums:
            made = [_summed([product(dot) for dot in sums[id(eqn)]])]
        elif id(eqn) in lying:
            made = [_as_it_lies(eqn, *(Factor(read(v), axes) for v, axes in lying[id(eqn)]))]
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
    return _multiplied(one.dot, *(Factor(jnp.concatenate([x, y], axis), (axis,)) for x, y, axis in pairs))


def _alike(*factors: Factor) -> tuple[Any, Any, int] | None:
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


def _as_they_lie(jaxpr: core.Jaxpr) -> dict[int, tuple[Factor, Factor]]:
    """The products of a large matrix, as it lies in memory, and one with few columns that XLA had better not turn.

    They sum over its rows, or over its columns where the program has its transpose. By the number of the operation.
    """
    stored, found = _transposes(jaxpr), dict[int, tuple[Factor, Factor]]()
    for eqn in jaxpr.eqns if jax.default_backend() == "cpu" else ():
        if eqn.primitive.name != "dot_general" or eqn.params["dimension_numbers"][1][0]:
            continue
        left, right = eqn.params["dimension_numbers"][0]
        x, axes = factor = stored(Factor(eqn.invars[0], left))
        ndim, summed = x.aval.ndim, sorted(axes)
        rows, columns = (list(range(n, n + len(axes))) == summed for n in (0, ndim - len(axes)))
        matrices = 0 < len(axes) < ndim and len(right) == eqn.invars[1].aval.ndim - 1
        few = matrices and x.aval.size >= LARGE and eqn.outvars[0].aval.shape[-1] <= _FEW
        if few and (rows or (columns and x is not eqn.invars[0])):
            found[id(eqn)] = factor, Factor(eqn.invars[1], right)
    return found


def _transposes(jaxpr: core.Jaxpr) -> Callable[[Factor], Factor]:
    """What takes a factor to the array that it is a transpose of, unless other axes than those summed over change."""
    made = {e.outvars[0]: e for e in jaxpr.eqns if e.primitive.name == "transpose"}

    def stored(factor: Factor) -> Factor:
        eqn = None if isinstance(factor.array, core.Literal) else made.get(factor.array)
        if eqn is None:
            return factor
        order = eqn.params["permutation"]
        rest = [axis for i, axis in enumerate(order) if i not in factor.axes]
        return factor if rest != sorted(rest) else Factor(eqn.invars[0], tuple(order[i] for i in factor.axes))

    return stored


def _as_it_lies(dot: core.JaxprEqn, x: Factor, y: Factor) -> Any:
    """x y, or x^T y as the transpose of y^T x: which XLA would turn back if it saw what becomes of it."""
    if 0 in x.axes:
        return jnp.moveaxis(lax.optimization_barrier(swapped(dot, x, y)), 0, -1)
    return lax.optimization_barrier(_multiplied(dot, x, y))


def swapped(dot: core.JaxprEqn, x: Factor, y: Factor) -> Any:
    """y^T x in the way in which ``dot`` makes x^T y."""
    precision = dot.params["precision"]
    return _multiplied(dot, y, x, precision=precision[::-1] if isinstance(precision, tuple) else precision)


def _multiplied(dot: core.JaxprEqn, x: Factor, y: Factor, **way: Any) -> Any:
    numbers = (x.axes, y.axes), ((), ())
    return dot.primitive.bind(x.array, y.array, **{**dot.params, **way, "dimension_numbers": numbers})
