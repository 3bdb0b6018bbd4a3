"""Vector and scalar operations, all functional, with scalars that stay on the device.

A scalar is a 0-d array (or ``(k,)``) of the vectors' dtype, and of at least
float32: sums over bfloat16 and float16 vectors are accumulated there.
XLA adds in trees, so a float32 dot product of 1e8 positive entries has a
relative error of 1e-7 (one BLAS call: 6e-4), and no second level is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, tree_util

from linop_gn.backend import Array, Scalar, Vector, unchanged

from .mapped import alike, steady

__all__ = ["JaxArithmetic", "floats_like", "scalar_dtype", "size", "sizes"]

R = TypeVar("R")


def scalar_dtype(dtype: Any) -> Any:
    """The dtype of scalars that belong to vectors of this dtype."""
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype


def floats_like(tree: Any, like: Any) -> Any:
    """``tree`` with its Python floats as scalars that belong to the floating arrays in ``like``, if there are any."""
    leaves, structure = tree_util.tree_flatten(tree)
    if not any(isinstance(leaf, float) for leaf in leaves):
        return tree
    arrays = [leaf for leaf in tree_util.tree_leaves(like) if isinstance(leaf, jax.Array)]
    dtypes = [scalar_dtype(x.dtype) for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)]
    if not dtypes:
        return tree
    dtype = jnp.result_type(*dtypes)
    return structure.unflatten(np.asarray(leaf, dtype) if isinstance(leaf, float) else leaf for leaf in leaves)


def _counted(tree: Any) -> Any:
    """``tree`` with its Python integers of 32 bits, as counts and codes are, where JAX in double precision takes 64."""

    def count(leaf: Any) -> Any:
        weak = isinstance(leaf, jax.Array) and leaf.weak_type and jnp.issubdtype(leaf.dtype, jnp.integer)
        whole = isinstance(leaf, int) and not isinstance(leaf, bool)
        return jnp.asarray(leaf, jnp.int32) if weak or whole else leaf

    return tree_util.tree_map(count, tree)


def sizes(x: Vector) -> Any:
    """The bits of |x| as whole numbers, which are ordered as |x| is, with NaN above all: see :func:`size`.

    The largest of floats over several devices leaves NaN out.
    """
    wide = jnp.abs(x).astype(scalar_dtype(x.dtype))
    return lax.bitcast_convert_type(wide, {4: jnp.int32, 8: jnp.int64}[wide.dtype.itemsize])


def size(bits: Any) -> Scalar:
    """The inverse of :func:`sizes`."""
    return lax.bitcast_convert_type(bits, {4: jnp.float32, 8: jnp.float64}[bits.dtype.itemsize])


_WINDOW, _LARGE = 32, 1 << 16


def _over_windows(reduce: Callable[..., Array], x: Vector) -> Array:
    """``reduce`` over the first axis. Of a long one XLA's CPU code would write down all that it is to reduce.

    It does so for any axis longer than 32. Windows of 32 it takes as they are made: in a third less time.
    """
    if not _is_long(x):
        return reduce(x, axis=0)
    whole = x.shape[0] // _WINDOW * _WINDOW
    parts = reduce(x[:whole].reshape(-1, _WINDOW), axis=1)
    return reduce(jnp.concatenate([parts, x[whole:]]), axis=0)


def _is_long(x: Vector) -> bool:
    return x.ndim == 1 and x.shape[0] >= _LARGE and jax.device_count() == 1 and jax.default_backend() == "cpu"


@jax.jit
def _long_dots(pairs: tuple[tuple[Vector, Vector], ...]) -> tuple[Scalar, ...]:
    """The sums of the products of all pairs in one pass: three take little more time than one."""
    products = [x * y for x, y in pairs]
    whole = products[0].shape[0] // _WINDOW * _WINDOW
    zeros = [np.zeros((), p.dtype) for p in products]
    parts = lax.reduce([p[:whole].reshape(-1, _WINDOW) for p in products], zeros, _added, (1,))
    return tuple(jnp.sum(jnp.concatenate([part, p[whole:]])) for part, p in zip(parts, products, strict=True))


def _added(ours: Any, theirs: Any) -> Any:
    return tuple(map(lax.add, ours, theirs))


@jax.jit
def _max_abs(x: Vector) -> Scalar:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.max(jnp.abs(x), axis=0, initial=0)
    return size(_over_windows(partial(jnp.max, initial=0), sizes(x)))


def _at_most_once(condition: Scalar, function: Callable[..., R], operands: Any) -> R:
    """A loop of one round or none, which writes over its operands: a conditional would make copies of them."""

    def run(carry: tuple[Any, Any]) -> tuple[Any, Any]:
        going, given = carry
        with jax.named_scope("at_most_once"):  # so that who reads a program can tell it from a loop
            results = function(*given)
        made = [lax.convert_element_type(x, y.dtype) for x, y in zip(results, given, strict=True)]
        return jnp.zeros_like(going), made

    given = [jnp.asarray(x) for x in operands]
    return tuple(lax.while_loop(lambda carry: carry[0], *steady(run, (condition, given)))[1])  # type: ignore[return-value]


class JaxArithmetic:
    """The part of the backend that solvers are written with."""

    # vectors

    def dot(self, x: Vector, y: Vector) -> Scalar:
        return self.dots((x, y))[0]

    def dots(self, *pairs: tuple[Vector, Vector]) -> tuple[Scalar, ...]:
        kinds = [scalar_dtype(jnp.result_type(*pair)) for pair in pairs]
        wide = tuple((x.astype(kind), y.astype(kind)) for (x, y), kind in zip(pairs, kinds, strict=True))
        if all(_is_long(x) and x.shape == wide[0][0].shape for x, _ in wide):
            return _long_dots(wide)  # type: ignore[no-any-return]
        return tuple(jnp.sum(x * y, axis=0) for x, y in wide)

    def max_abs(self, x: Vector) -> Scalar:
        return _max_abs(x)  # one program where it stands alone

    copy, zeros_like, subtract, select = map(staticmethod, (jnp.copy, jnp.zeros_like, jnp.subtract, jnp.where))

    def scale(self, a: Scalar, x: Vector) -> Vector:
        return (a * x).astype(x.dtype)

    def axpy(self, a: Scalar, x: Vector, y: Vector) -> Vector:
        return (a * x + y).astype(y.dtype)

    def axpby(self, a: Scalar, x: Vector, b: Scalar, y: Vector) -> Vector:
        return (a * x + b * y).astype(y.dtype)

    def mask(self, condition: Scalar, x: Vector) -> Vector:
        return jnp.where(condition, x, jnp.zeros_like(x))

    def branch(self, condition: Scalar, then: Callable[..., R], otherwise: Callable[..., R], *operands: Any) -> R:
        if np.ndim(condition):
            return tree_util.tree_map(lambda x, y: jnp.where(condition, x, y), then(*operands), otherwise(*operands))
        if not isinstance(condition, jax.core.Tracer):
            return then(*operands) if condition else otherwise(*operands)
        if otherwise is unchanged:
            return _at_most_once(condition, then, operands)
        sides = [lambda *given, side=side: _counted(floats_like(side(*given), operands)) for side in (then, otherwise)]
        return lax.cond(condition, *alike(sides, operands), *operands)

    def either(self, condition: Scalar, then: Callable[..., R], otherwise: Callable[..., R], *operands: Any) -> R:
        if not isinstance(condition, jax.core.Tracer):
            return self.branch(condition, then, otherwise, *operands)
        # A conditional makes copies of what goes in and comes out, and what uses it starts with reading them.
        return tree_util.tree_map(lambda x, y: jnp.where(condition, x, y), then(*operands), otherwise(*operands))

    def eps(self, x: Vector) -> float:
        return float(jnp.finfo(x.dtype).eps)

    # scalars

    def scalar(self, value: Any, like: Vector) -> Scalar:
        given = jnp.result_type(value)
        if jnp.issubdtype(given, jnp.floating):
            dtype = scalar_dtype(like.dtype)
        else:
            dtype = jnp.bool_ if given == jnp.bool_ else jnp.int32
        return jnp.broadcast_to(jnp.asarray(value, dtype), like.shape[1:])

    def item(self, x: Any) -> Scalar:
        # Of bfloat16 float32, as all scalars.
        return jnp.asarray(x, scalar_dtype(x.dtype)) if hasattr(x, "dtype") else x

    where, sqrt, minimum, maximum = map(staticmethod, (jnp.where, jnp.sqrt, jnp.minimum, jnp.maximum))
    isfinite, logical_not, any = map(staticmethod, (jnp.isfinite, jnp.logical_not, jnp.any))

    def divide(self, x: Scalar, y: Scalar) -> Scalar:
        zero = jnp.equal(y, 0)
        return jnp.where(zero, 0, x / jnp.where(zero, 1, y))

    def power_of_two(self, x: Scalar, like: Vector) -> Scalar:
        # On the bits, because XLA's CPU code takes subnormal numbers for zero and log2 rounds.
        x = jnp.asarray(x, scalar_dtype(like.dtype))
        layout = jnp.finfo(x.dtype)
        integers = {32: jnp.int32, 64: jnp.int64}[layout.bits]
        bits = lax.bitcast_convert_type(x, integers) & np.array(np.iinfo(integers).max, integers)
        limit = round(-math.log2(float(jnp.finfo(like.dtype).smallest_normal)))
        exponent = jnp.clip((bits >> layout.nmant) - (layout.maxexp - 1), -limit, limit)
        power = lax.bitcast_convert_type((exponent + (layout.maxexp - 1)) << layout.nmant, x.dtype)
        return jnp.where(jnp.isfinite(x) & (bits != 0), power, jnp.ones_like(x))
