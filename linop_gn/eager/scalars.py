"""Scalars where Python itself does the work."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..protocols import Scalar, Vector

__all__ = ["EagerScalars"]


class EagerScalars:
    """Scalar arithmetic on Python numbers and host arrays ``(k,)``; never raises, never warns.

    What most calls are given comes first: asking for the kind of a number takes longer than working with it.
    """

    def scalar(self, value: Any, like: Vector) -> Scalar:
        columns = like.shape[1:]
        return np.full(columns, value) if columns else value

    def item(self, x: Any) -> Scalar:
        return float(x)

    def where(self, condition: Scalar, x: Scalar, y: Scalar) -> Scalar:
        if condition is True:
            return x
        if condition is False:
            return y
        if isinstance(condition, np.ndarray):
            return np.where(condition, x, y)
        return x if condition else y

    def divide(self, x: Scalar, y: Scalar) -> Scalar:
        if type(x) is type(y) is float:
            return x / y if y != 0 else 0.0
        if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
            with np.errstate(all="ignore"):
                return np.where(np.equal(y, 0), 0.0, np.divide(x, np.where(np.equal(y, 0), 1.0, y)))
        return x / y if y != 0 else 0.0

    def sqrt(self, x: Scalar) -> Scalar:
        if type(x) is float:
            return math.sqrt(x) if x >= 0 else math.nan
        if isinstance(x, np.ndarray):
            with np.errstate(all="ignore"):
                return np.sqrt(x)
        return math.sqrt(x) if x >= 0 else math.nan

    def minimum(self, x: Scalar, y: Scalar) -> Scalar:
        if type(x) is type(y) is float:
            return x if x <= y or x != x else y
        if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
            return np.minimum(x, y)
        return x if x <= y or x != x else y

    def maximum(self, x: Scalar, y: Scalar) -> Scalar:
        if type(x) is type(y) is float:
            return x if x >= y or x != x else y
        if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
            return np.maximum(x, y)
        return x if x >= y or x != x else y

    def isfinite(self, x: Scalar) -> Scalar:
        if type(x) is float:
            return math.isfinite(x)
        return np.isfinite(x) if isinstance(x, np.ndarray) else math.isfinite(x)

    def logical_not(self, x: Scalar) -> Scalar:
        if x is True or x is False:
            return not x
        return np.logical_not(x) if isinstance(x, np.ndarray) else not x

    def any(self, x: Scalar) -> Scalar:
        if x is True or x is False:
            return x
        return bool(x.any()) if isinstance(x, np.ndarray) else bool(x)

    def power_of_two(self, x: Scalar, like: Vector) -> Scalar:
        limit = self._exponent_limit(like)
        if type(x) is float and 0.0 < x < math.inf:
            return math.ldexp(1.0, min(max(math.frexp(x)[1] - 1, -limit), limit))
        if isinstance(x, np.ndarray):
            _, exponent = np.frexp(x)
            usable = np.isfinite(x) & (x != 0)
            return np.where(usable, np.ldexp(1.0, np.clip(exponent - 1, -limit, limit)), 1.0)
        if x == 0 or not math.isfinite(x):
            return 1.0
        return math.ldexp(1.0, min(max(math.frexp(x)[1] - 1, -limit), limit))

    def _exponent_limit(self, like: Vector) -> int:
        """The largest e for which 2^e and 2^-e are both normal numbers of the dtype of ``like``."""
        raise NotImplementedError
