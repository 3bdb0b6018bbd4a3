"""Vector operations through BLAS, for the arrays that BLAS takes.

``y += a * x`` in NumPy makes a temporary, passes over memory twice and costs
more in calls than in work below some thousand entries; ``axpy`` is one call and
one pass. Other arrays (half precision, columns, views with gaps, subclasses) go
the way of the base class. So do factors of zero, for which BLAS skips the work
and would hide a NaN, and read-only arrays, which SciPy's wrappers write to.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from linop_gn.backend import Array, Scalar, Vector

__all__ = ["NumpyArithmetic"]

_LONG = 65536
"""Entries above which one chain of single-precision additions loses digits."""


class _Routines(NamedTuple):
    dot: Callable[..., float]
    axpy: Callable[..., Any]
    scal: Callable[..., Any]


@cache
def _blas() -> dict[str, _Routines]:
    """BLAS by kind of array. Importing it takes longer than NumPy itself, hence only when it is needed."""
    from scipy.linalg import blas

    return {"d": _Routines(blas.ddot, blas.daxpy, blas.dscal), "f": _Routines(blas.sdot, blas.saxpy, blas.sscal)}


def _is_plain(y: Any) -> bool:
    return type(y) is np.ndarray and y.ndim == 1 and y.dtype.char in "df" and y.flags.carray and y.size > 0


class NumpyArithmetic:
    """The operations that solvers spend their time in."""

    def dot(self, x: Vector, y: Vector) -> Scalar:
        kind = x.dtype.char
        if x.ndim == 1 and kind == y.dtype.char and (kind == "d" or (kind == "f" and x.size <= _LONG)) and x.size > 0:
            return _blas()[kind].dot(x, y)
        return super().dot(x, y)  # type: ignore[misc]

    def axpy(self, a: Scalar, x: Vector, y: Vector) -> Vector:
        if _is_plain(y) and a != 0 and x.dtype is y.dtype:
            return _blas()[y.dtype.char].axpy(x, y, a=a)
        return super().axpy(a, x, y)  # type: ignore[misc]

    def axpby(self, a: Scalar, x: Vector, b: Scalar, y: Vector) -> Vector:
        if isinstance(b, float) and b == 1.0:
            return self.axpy(a, x, y)
        if _is_plain(y) and a != 0 and b != 0 and x.dtype is y.dtype:
            routines = _blas()[y.dtype.char]
            return routines.axpy(x, routines.scal(b, y), a=a)
        return super().axpby(a, x, b, y)  # type: ignore[misc]

    def store(self, basis: Array, index: Scalar, a: Scalar, x: Vector) -> Array:
        row: Any = basis[index]
        np.multiply(x, row.dtype.type(a), out=row)
        return basis
