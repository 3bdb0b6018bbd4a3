"""Bases as arrays of a fixed capacity, written to in place by compiled loops; small problems are traced too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from linop_gn.backend import Array, Scalar, Vector

from .arithmetic import scalar_dtype
from .arrays import whole_on_each
from .compiled import tracing
from .mapped import steady

__all__ = ["JaxBases"]

R = TypeVar("R")


_LARGE = 1 << 17


def _one_by_one(basis: Array) -> bool:
    """Whether to go through the rows of a basis one by one, at half the time and memory.

    On the CPU XLA makes an array of all products before it adds them up in trees, and copies the rows that a matrix
    product takes: each as large as the basis.
    """
    return basis.size > _LARGE and jax.default_backend() == "cpu"


def _valid(rows: Array, count: Scalar) -> Array:
    return jnp.arange(rows.shape[0]) < count


class JaxBases:
    """The operations of :class:`linop_gn.protocols.Bases`; rows that don't take part are masked, not cut off."""

    def basis(self, like: Vector, capacity: int) -> Array:
        return jnp.broadcast_to(jnp.zeros_like(like), (capacity, *like.shape))  # over an explicit mesh as ``like`` is

    def grow(self, basis: Array, capacity: int, count: Scalar) -> Array:
        return lax.dynamic_update_slice_in_dim(self.basis(basis[0], capacity), basis[:capacity], 0, 0)

    def store(self, basis: Array, index: Scalar, a: Scalar, x: Vector) -> Array:
        return lax.dynamic_update_index_in_dim(basis, (a * x).astype(basis.dtype), index, 0)

    def row(self, basis: Array, index: Scalar) -> Vector:
        return lax.dynamic_index_in_dim(basis, index, 0, keepdims=False)

    def project(self, basis: Array, x: Vector, count: Scalar) -> Array:
        # A sum in trees, fused with the products: XLA's matrix products add up in a few long chains.
        dtype = scalar_dtype(x.dtype)
        if x.ndim == 2:
            told = whole_on_each(x)
            exact = lax.Precision.HIGHEST
            products = jnp.matmul(basis.astype(dtype), x.astype(dtype), precision=exact, out_sharding=told)
            return jnp.where(_valid(basis, count)[:, None], products, 0)
        v = x.astype(dtype)
        if _one_by_one(basis):
            products = lax.map(lambda row: jnp.sum(row.astype(dtype) * v), basis)
        else:
            products = jnp.sum(basis.astype(dtype) * v, axis=1)
        return jnp.where(_valid(basis, count), products, 0)

    def deflate(self, basis: Array, coefficients: Array, x: Vector, count: Scalar) -> Vector:
        return (x - self.combine(basis, coefficients, count)).astype(x.dtype)

    def combine(self, basis: Array, coefficients: Array, count: Scalar) -> Vector:
        if coefficients.ndim == 2 and coefficients.shape[1] == 1:
            return self.combine(basis, coefficients[:, 0], count)[:, None]
        if coefficients.ndim == 1 and _one_by_one(basis):
            return self._added_up(basis, coefficients, count)
        rows = basis[: coefficients.shape[0]]
        valid = _valid(rows, count)
        wanted = jnp.where(valid if coefficients.ndim == 1 else valid[:, None], coefficients, 0)
        product = jnp.matmul(wanted.T.astype(rows.dtype), rows, precision=lax.Precision.HIGHEST)
        return product if coefficients.ndim == 1 else product.T

    def _added_up(self, basis: Array, coefficients: Array, count: Scalar) -> Vector:
        wanted = jnp.where(_valid(coefficients, count), coefficients, 0)

        def add(i: Any, total: Array) -> Array:
            return total + wanted[i] * self.row(basis, i).astype(total.dtype)

        total = jnp.zeros_like(basis[0], scalar_dtype(basis.dtype))
        return self.repeat(coefficients.shape[0], add, total).astype(basis.dtype)

    # small arrays

    def small_namespace(self) -> Any:
        return jnp

    def small(self, values: Any, like: Vector) -> Array:
        return jnp.array(values, scalar_dtype(like.dtype))

    def leading(self, small: Array, count: Scalar) -> Array:
        return small

    def repeat(self, count: int, body: Callable[[Any, R], R], state: R) -> R:
        if tracing():
            return lax.fori_loop(0, count, *steady(body, state, jnp.int32(0)))
        for i in range(count):  # outside of a program a loop would be compiled anew at every call
            state = body(i, state)
        return state

    def eigh_tridiagonal(self, diagonal: Array, off: Array) -> tuple[Array, Array]:
        off = off[: diagonal.shape[0] - 1]
        matrix = jnp.diag(diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1)
        return jnp.linalg.eigh(matrix, symmetrize_input=False)
