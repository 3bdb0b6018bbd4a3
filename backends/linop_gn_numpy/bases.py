"""Rows of a basis written in one pass over memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from linop_gn.protocols import Array, Scalar, Vector

__all__ = ["NumpyBases"]


class NumpyBases:
    """What NumPy does better than the array-API standard can."""

    def store(self, basis: Array, index: Scalar, a: Scalar, x: Vector) -> Array:
        row: Any = basis[index]
        np.multiply(x, row.dtype.type(a), out=row)
        return basis
