"""Slopes of a loss of many outputs, through the end of the model (:mod:`.ends`), and how they change: in parts.

Of a loss L(t(y, s)) the slope is t'^T L'(t), and a product with its Hessian has four terms: of a capped softmax over a
vocabulary, ten arrays like the logits, which XLA holds. Here the end belongs to the loss. Slopes and products are loops
over a few rows at a time, in which the end is done again, so that what is held is y, the slope in y, and the vector,
which is written over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import tree_util
from jax.custom_derivatives import SymbolicZero

from linop_gn.backend import Array, Outer

from .ends import End
from .parts import by_rows

__all__ = ["slope", "slope_through"]

Pair = tuple[list[Any], list[Any]]


@jax.custom_jvp  # type: ignore[untyped-decorator]
def slope(outer: Outer, z: Array, numbers: tuple[Array, ...] = ()) -> Array:
    """The gradient of ``outer`` at z, whose derivative is known; ``numbers`` are those of z, or none."""
    return outer.slope(z, numbers)


def _rule_with(value: Callable[..., Array]) -> Callable[..., tuple[Array, Array]]:
    def rule(primals: tuple[Outer, Array, Any], tangents: tuple[Any, Any, Any]) -> tuple[Array, Array]:
        (outer, z, numbers), (moving, v, _) = primals, tangents
        made, change = value(outer, z, numbers), jnp.zeros_like(z)
        if not isinstance(v, SymbolicZero):
            # A checkpoint: what of the product does not depend on v is worked out for each v, and not kept.
            change = jax.checkpoint(lambda hessian, v: outer.product(hessian, v))(outer.hessian(z, numbers), v)
        if not all(isinstance(x, SymbolicZero) for x in tree_util.tree_leaves(moving)):  # of the data
            still = tree_util.tree_map(
                lambda x: np.zeros(x.shape, x.dtype) if isinstance(x, SymbolicZero) else x, moving
            )
            change = change + jax.jvp(lambda outer: outer.slope(z), (outer,), (still,))[1]
        return made, change

    return rule


@jax.custom_jvp  # type: ignore[untyped-decorator]
def _slope_of_part(outer: Outer, z: Array, numbers: tuple[Array, ...]) -> Array:
    return outer.slope(z, numbers)


slope.defjvp(_rule_with(slope), symbolic_zeros=True)
# In programs of products, where a function with a rule would be another object in each trace.
_slope_of_part.defjvp(_rule_with(lambda outer, z, numbers: outer.slope(z, numbers)), symbolic_zeros=True)


def slope_through(end: End, outer: Outer, z: Array, moving: Pair, still: Pair) -> Pair:
    """The gradient of ``outer`` at z, outputs of the ``end``, in the rows that it is made of and in what they share."""
    (ys, shared), (rows, fixed) = moving, still
    size, outer, data = outer.parted(z)
    return _slope_through(end, size, (ys, rows, data), (shared, fixed, outer))


def _outputs(end: End, cut: Any, whole: Any) -> Array:
    (ys, rows, _), (shared, fixed, _) = cut, whole
    z = end(ys, shared, rows, fixed)
    return z if jnp.finfo(z.dtype).bits > 16 else z.astype(jnp.float32)


def _of_rows(end: End, cut: Any, whole: Any, numbers: tuple[Array, ...] = ()) -> Pair:
    """The same of some rows."""
    (ys, rows, data), (shared, fixed, outer) = cut, whole
    at = lambda ys, shared: _outputs(end, (ys, rows, data), (shared, fixed, outer))  # noqa: E731
    z, pullback = jax.vjp(at, ys, shared)
    return pullback(_slope_of_part(outer.of_part(data), z, numbers))  # type: ignore[no-any-return]


def _sums(shared: Sequence[Array]) -> list[Array]:
    return [jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for x in shared]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _slope_through(end: End, size: int, cut: Any, whole: Any) -> Pair:
    return _slope_and_numbers(end, size, cut, whole)[0]


def _slope_and_numbers(end: End, size: int, cut: Any, whole: Any) -> tuple[Pair, list[Array]]:
    """Beside the slope what makes products cheap."""
    (ys, *_), (shared, _, outer) = cut, whole

    def numbers(cut: Any) -> list[Array]:
        return list(outer.of_part(cut[-1]).numbers(_outputs(end, cut, whole)))

    def part(xs: list[Array], cut: Any) -> tuple[list[Array], list[Array]]:
        found = numbers(cut)
        made, sums = _of_rows(end, cut, whole, tuple(found))
        return [*made, *found], sums

    room = [jnp.zeros(x.shape, x.dtype) for x in jax.eval_shape(numbers, cut)]
    made, sums = by_rows(part, size, [*map(jnp.zeros_like, ys), *room], cut, _sums(shared))
    slopes = made[: len(ys)], [x.astype(p.dtype) for x, p in zip(sums, shared, strict=True)]
    return slopes, made[len(ys) :]


@partial(_slope_through.defjvp, symbolic_zeros=True)
def _rule(end: End, size: int, primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    cut, whole = primals
    moves = tree_util.tree_map(lambda t: not isinstance(t, SymbolicZero), tangents)
    moving, n = _split(tangents, moves)[0], sum(tree_util.tree_leaves(moves[0]))
    slopes, numbers = _slope_and_numbers(end, size, cut, whole)

    def product(primals: Any, numbers: Any, by_row: list[Any], of_all: list[Any]) -> Pair:
        """For tangents of rows, and of what they share."""
        (ys, *_), (shared, *_) = primals
        tangents = iter(by_row)
        vs = [next(tangents) if here else jnp.zeros_like(y) for y, here in zip(ys, moves[0][0], strict=True)]

        def part(vs: list[Array], data: Any) -> Pair:
            cut, numbers, others = data
            variable, join = _split((cut, primals[1]), moves)
            own = [v for v, here in zip(vs, moves[0][0], strict=True) if here]
            function = lambda x: _of_rows(end, *join(x), tuple(numbers))  # noqa: E731
            return jax.jvp(function, (variable,), ([*own, *others, *of_all],))[1]  # type: ignore[no-any-return]

        made, sums = by_rows(part, size, vs, (primals[0], numbers, list(tangents)), _sums(shared))
        return made, [x.astype(p.dtype) for x, p in zip(sums, shared, strict=True)]

    # A checkpoint: what of the product does not depend on the tangents is worked out for each of them, and not kept.
    return slopes, jax.checkpoint(product)(primals, numbers, moving[:n], moving[n:])


def _split(tree: Any, moves: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The leaves that move, and what puts others in their place."""
    leaves, structure = tree_util.tree_flatten(tree)
    here = tree_util.tree_leaves(moves)

    def join(variable: list[Any]) -> Any:
        it = iter(variable)
        return structure.unflatten([next(it) if move else x for x, move in zip(leaves, here, strict=True)])

    return [x for x, move in zip(leaves, here, strict=True) if move], join
