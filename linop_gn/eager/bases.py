"""Bases where work is eager: contiguous rows, matrix products, and small problems on the host in float64.

A matrix product in single precision adds up in a few long chains, so that the
inner products of :meth:`EagerBases.project` are taken a block of columns at a
time, and the blocks added up in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import array_api_compat
import numpy as np

from ..protocols import Array, Scalar, Vector

__all__ = ["EagerBases"]

R = TypeVar("R")

_BLOCK = 65536


def _blocks(n: int, size: int = _BLOCK) -> list[tuple[int, int]]:
    """Pieces of n entries."""
    return [(start, min(start + size, n)) for start in range(0, n, size)]


class EagerBases:
    """The operations of :class:`linop_gn.protocols.Bases` for an eager backend over a namespace ``xp``."""

    xp: Any

    def basis(self, like: Vector, capacity: int) -> Array:
        shape = (capacity, like.shape[0])
        return self.xp.empty(shape, dtype=like.dtype, device=array_api_compat.device(like))

    def grow(self, basis: Array, capacity: int, count: Scalar) -> Array:
        wider = self.basis(basis[0, ...], capacity)
        wider[:count, ...] = basis[:count, ...]
        return wider

    def store(self, basis: Array, index: Scalar, a: Scalar, x: Vector) -> Array:
        basis[index, ...] = x if a == 1.0 else x * float(a)
        return basis

    def row(self, basis: Array, index: Scalar) -> Vector:
        return basis[index, ...]

    def project(self, basis: Array, x: Vector, count: Scalar) -> Array:
        products = np.zeros((basis.shape[0], *x.shape[1:]))
        if count:
            products[:count] = self._on_host(self.projected(basis[:count, ...], x))
        return products

    def projected(self, rows: Array, x: Vector) -> Array:
        """The inner products with all of these rows, where the vectors are."""
        double = x.dtype == self.xp.float64
        if not double and x.dtype != self.xp.float32:
            rows, x = self.xp.astype(rows, self.xp.float32), self.xp.astype(x, self.xp.float32)
        if double or x.shape[0] <= _BLOCK:
            return self.xp.matmul(rows, x)
        parts = [self.xp.matmul(rows[:, start:stop], x[start:stop, ...]) for start, stop in _blocks(x.shape[0])]
        return self.xp.sum(self.xp.stack(parts), axis=0, dtype=self.xp.float64)

    def _on_host(self, x: Array) -> Any:
        return np.asarray(self.to_numpy(x), dtype=float)  # type: ignore[attr-defined]

    def deflate(self, basis: Array, coefficients: Array, x: Vector, count: Scalar) -> Vector:
        if count:
            wanted, size = coefficients[:count], max(1024, _BLOCK // math.prod(x.shape[1:]))
            for start, stop in _blocks(x.shape[0], size):  # pieces that stay in the cache, without a vector in between
                part = x[start:stop, ...]
                made = self._product(wanted.T, basis[:count, start:stop])
                part -= made if wanted.ndim == 1 else made.T
        return x

    def combine(self, basis: Array, coefficients: Array, count: Scalar) -> Vector:
        wanted, rows = coefficients[:count], basis[:count, ...]
        # Rows first: the solutions then lie in memory one after the other, which is a third quicker to make.
        return self._product(wanted, rows) if wanted.ndim == 1 else self._product(wanted.T, rows).T

    def _product(self, coefficients: Any, rows: Array) -> Array:
        dtype = self._dtype_name(rows.dtype)  # type: ignore[attr-defined]
        factors = self.asarray(coefficients, dtype, array_api_compat.device(rows))  # type: ignore[attr-defined]
        return self.xp.matmul(factors, rows)

    # small arrays

    def small_namespace(self) -> Any:
        return np

    def small(self, values: Any, like: Vector) -> Array:
        if self.is_array(values):  # type: ignore[attr-defined]
            values = self.to_numpy(values)  # type: ignore[attr-defined]
        return np.array(values, dtype=float)

    def leading(self, small: Array, count: Scalar) -> Array:
        return small[:count]

    def repeat(self, count: int, body: Callable[[Any, R], R], state: R) -> R:
        for i in range(count):
            state = body(i, state)
        return state

    def eigh_tridiagonal(self, diagonal: Array, off: Array) -> tuple[Array, Array]:
        k = len(diagonal)
        if k == 1:
            return np.array(diagonal, dtype=float), np.ones((1, 1))
        from scipy.linalg import eigh_tridiagonal

        # QL with implicit shifts: the most accurate of LAPACK's, and quick enough below some hundred steps.
        driver: Any = "stev" if k <= 256 else "stemr"
        made: Any = eigh_tridiagonal(diagonal, off[: k - 1], check_finite=False, lapack_driver=driver)
        values, vectors = made
        return values, vectors
