"""Vector operations through BLAS, for the arrays that BLAS takes.

``y += a * x`` in NumPy makes a temporary, passes over memory twice and costs
more in calls than in work below some thousand entries; ``axpy`` is one call and
one pass. Other arrays (half precision, columns, views with gaps, subclasses) go
the way of the base class. So do factors of zero, for which BLAS skips the work
and would hide a NaN, and read-only arrays, which SciPy's wrappers write to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from linop_gn.backend import Array, Scalar, Vector

__all__ = ["NumpyArithmetic"]

_LONG = 65536
"""Entries above which one chain of single-precision additions loses digits."""

_COLUMN = 1024
"""Entries of a column above which it is worth a call."""


class _Routines(NamedTuple):
    dot: Callable[..., float]
    axpy: Callable[..., Any]
    scal: Callable[..., Any]
    gemv: Callable[..., Any]
    gemm: Callable[..., Any]


class _Blas(dict[str, _Routines | None]):
    """BLAS by kind of array. Importing it takes longer than NumPy itself, hence only when it is needed."""

    def __missing__(self, kind: str) -> _Routines | None:
        from scipy.linalg import blas

        self["d"] = _Routines(blas.ddot, blas.daxpy, blas.dscal, blas.dgemv, blas.dgemm)
        self["f"] = _Routines(blas.sdot, blas.saxpy, blas.sscal, blas.sgemv, blas.sgemm)
        return self.setdefault(kind, None)


_blas = _Blas()


def _routines(y: Any) -> _Routines | None:
    """What may write to y, if anything."""
    return _blas[y.dtype.char] if type(y) is np.ndarray and y.ndim == 1 and y.flags.carray and y.size else None


def _are_columns(x: Any, y: Any) -> bool:
    """Whether these are long columns that lie in memory one after the other."""
    alike = type(y) is np.ndarray and y.ndim == 2 and y.shape == x.shape and x.dtype is y.dtype
    return alike and y.shape[0] >= _COLUMN and x.flags.f_contiguous and y.flags.farray


def _are_rows(basis: Any, x: Any) -> bool:
    """Whether these are vectors like x that lie in memory one after the other."""
    return type(basis) is np.ndarray and basis.dtype is x.dtype and basis.flags.c_contiguous


class NumpyArithmetic:
    """The operations that solvers spend their time in."""

    def dot(self, x: Vector, y: Vector) -> Scalar:
        kind = x.dtype.char
        if x.ndim == 1 and kind == y.dtype.char and (kind == "d" or (kind == "f" and x.size <= _LONG)) and x.size > 0:
            return _blas[kind].dot(x, y)  # type: ignore[union-attr]
        return super().dot(x, y)  # type: ignore[misc]

    def max_abs(self, x: Vector) -> Scalar:
        if type(x) is not np.ndarray or x.dtype.char not in "efd" or x.size == 0:
            return super().max_abs(x)  # type: ignore[misc]
        above, below = np.maximum.reduce(x), -np.minimum.reduce(x)  # abs would make an array
        if x.ndim == 2:
            return np.asarray(np.maximum(abs(above), below), dtype=float)
        above, below = above.item(), below.item()
        return abs(above) if above >= below or above != above else below

    def zeros(self, size: int, like: Vector) -> Vector:
        return np.zeros((size, *like.shape[1:]), like.dtype)

    def zeros_like(self, x: Vector) -> Vector:
        return np.zeros(x.shape, x.dtype) if type(x) is np.ndarray else super().zeros_like(x)  # type: ignore[misc]

    def scale(self, a: Scalar, x: Vector) -> Vector:
        if type(a) is float and a == 1.0:
            return x
        routines = _routines(x)
        if routines is not None and type(a) is float and a != 0:
            return routines.scal(a, x)
        return super().scale(a, x)  # type: ignore[misc]

    def axpy(self, a: Scalar, x: Vector, y: Vector) -> Vector:
        routines = _routines(y)
        if routines is not None and a != 0 and x.dtype is y.dtype:
            return routines.axpy(x, y, a=a)
        if _are_columns(x, y):
            for j, factor in enumerate(np.broadcast_to(a, y.shape[1:]).tolist()):
                self.axpy(factor, x[:, j], y[:, j])
            return y
        return super().axpy(a, x, y)  # type: ignore[misc]

    def axpby(self, a: Scalar, x: Vector, b: Scalar, y: Vector) -> Vector:
        if type(b) is float and b == 1.0:
            return self.axpy(a, x, y)
        routines = _routines(y)
        if routines is not None and a != 0 and b != 0 and x.dtype is y.dtype:
            return routines.axpy(x, routines.scal(b, y), a=a)
        return super().axpby(a, x, b, y)  # type: ignore[misc]

    def store(self, basis: Array, index: Scalar, a: Scalar, x: Vector) -> Array:
        row: Any = basis[index]
        np.multiply(x, row.dtype.type(a), out=row)
        return basis

    def deflate(self, basis: Array, coefficients: Array, x: Vector, count: Scalar) -> Vector:
        routines, rows = _routines(x), basis[:count]
        if count and _are_columns(x, x) and _are_rows(rows, x):
            gemm = _blas[x.dtype.char].gemm  # type: ignore[union-attr]
            return gemm(-1.0, rows.T, coefficients[:count], beta=1.0, c=x, overwrite_c=1)
        if not count or routines is None or coefficients.ndim > 1 or not _are_rows(rows, x):
            return super().deflate(basis, coefficients, x, count)  # type: ignore[misc]
        return routines.gemv(-1.0, rows.T, coefficients[:count], beta=1.0, y=x, overwrite_y=1)
