"""Factorisations through the array-API standard's ``linalg`` extension.

The standard has no triangular solve, so that a factor is solved with as any
matrix is; backends whose libraries know better say so (NumPy with LAPACK by way
of SciPy, torch, JAX). What those libraries raise for a matrix that cannot be
factored becomes a truth value here.
"""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

from ..protocols import Array, Scalar, Vector

__all__ = ["ArrayApiFactors"]


class ArrayApiFactors:
    """The operations of :class:`linop_gn.protocols.Factors` for an eager backend over a namespace ``xp``."""

    xp: Any

    def zeros(self, size: int, like: Vector) -> Vector:
        shape = (size, *tuple(like.shape)[1:])
        return self.xp.zeros(shape, dtype=like.dtype, device=array_api_compat.device(like))

    def identity(self, size: int, like: Vector) -> Array:
        return self.xp.eye(size, dtype=like.dtype, device=array_api_compat.device(like))

    def cholesky(self, matrix: Array) -> tuple[Any, Scalar]:
        try:
            factor = self.xp.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            return matrix, False
        return factor, self._all_finite(factor)

    def cholesky_solve(self, factor: Any, b: Vector) -> Vector:
        return self._solve(factor.T, self._solve(factor, b))

    def lu(self, matrix: Array) -> tuple[Any, Scalar]:
        regular = self._all_finite(self._solve(matrix, self.xp.ones_like(matrix[:, 0])))
        return matrix, regular

    def lu_solve(self, factor: Any, b: Vector) -> Vector:
        return self._solve(factor, b)

    def upper_solve(self, R: Array, b: Vector) -> Vector:
        return self._solve(R, b)

    def eigh(self, matrix: Array) -> tuple[Array, Array, Scalar]:
        try:
            values, vectors = self.xp.linalg.eigh(matrix)
        except np.linalg.LinAlgError:
            return matrix[:, 0], matrix, False
        return values, vectors, self._all_finite(vectors)

    def _solve(self, matrix: Array, b: Vector) -> Vector:
        try:
            return self.xp.linalg.solve(matrix, b)
        except np.linalg.LinAlgError:
            return self.xp.full_like(b, float("nan"))

    def _all_finite(self, x: Array) -> bool:
        return bool(self.xp.all(self.xp.isfinite(x)))
