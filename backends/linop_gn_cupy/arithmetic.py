"""Vector operations as one kernel each, in place.

``y += a * x`` in CuPy is two kernels and a temporary: 5 passes over memory
where ``axpy`` needs 3. A kernel is compiled at its first call for each dtype and
cached by CuPy on disk. Scalars take the vector's dtype, as in the other backends;
a host array ``(k,)`` of factors goes to the device first, without waiting.

Inner products are accumulated in double precision whatever the dtype, which
memory hides. CuPy gives a reduction to one number to one block of threads, so
that long vectors are cut into 1024 rows, each with a block of its own.
"""

from __future__ import annotations

from typing import Any

import cupy

from linop_gn.backend import Scalar, Vector

__all__ = ["CupyArithmetic"]

_ROWS = 1024

_scale = cupy.ElementwiseKernel("T a", "T x", "x = a * x", "linop_gn_scale")
_axpy = cupy.ElementwiseKernel("T a, T x", "T y", "y = a * x + y", "linop_gn_axpy")
_axpby = cupy.ElementwiseKernel("T a, T x, T b", "T y", "y = a * x + b * y", "linop_gn_axpby")
_subtract = cupy.ElementwiseKernel("T x", "T y", "y = x - y", "linop_gn_subtract")
_dot = cupy.ReductionKernel(
    "T x, T y", "float64 z", "(double)x * (double)y", "a + b", "z = a", "0", "linop_gn_dot", reduce_type="double"
)


class CupyArithmetic:
    """The operations that solvers spend their time in; the rest comes from the base class."""

    def scale(self, a: Scalar, x: Vector) -> Vector:
        return _scale(self._factor(a, x), x)

    def axpy(self, a: Scalar, x: Vector, y: Vector) -> Vector:
        return _axpy(self._factor(a, y), x, y)

    def axpby(self, a: Scalar, x: Vector, b: Scalar, y: Vector) -> Vector:
        return _axpby(self._factor(a, y), x, self._factor(b, y), y)

    def subtract(self, x: Vector, y: Vector) -> Vector:
        return _subtract(x, y)

    def dot(self, x: Vector, y: Vector) -> Scalar:
        total = _sum_of_products(x, y)
        return total.get() if total.ndim else float(total)


def _sum_of_products(x: Any, y: Any) -> Any:
    """An array without axes, or (k,) for columns."""
    whole = len(x) // _ROWS * _ROWS
    if whole <= 4 * _ROWS:
        return _dot(x, y, axis=0)
    shape = (_ROWS, whole // _ROWS, *x.shape[1:])
    total = _dot(x[:whole].reshape(shape), y[:whole].reshape(shape), axis=1).sum(axis=0)
    return total + _dot(x[whole:], y[whole:], axis=0) if whole < len(x) else total
