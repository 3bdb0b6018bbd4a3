"""The NumPy backend: the array-API base, with BLAS for the vector operations of solvers.

NumPy has no derivatives of its own: supply products or a Jacobian
(``jvp=``, ``vjp=``, ``jacobian=``) with the objective.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from linop_gn.arguments import require_plain
from linop_gn.backend import ArrayApiBackend, declared

from .arithmetic import NumpyArithmetic
from .factors import NumpyFactors
from .ownership import NumpyOwnership

__all__ = ["NumpyBackend", "backend"]


class NumpyBackend(NumpyArithmetic, NumpyFactors, NumpyOwnership, ArrayApiBackend):
    """NumPy arrays (and subclasses), on the host; its scalars too, which is what arithmetic makes of 0-d arrays."""

    contract = 1
    capabilities = declared(__name__).capabilities

    def __init__(self) -> None:
        super().__init__("numpy", np, (np.ndarray, np.number, np.bool_))

    def is_array(self, x: Any) -> bool:
        if type(x) is np.ndarray:
            return True
        require_plain(type(x))
        return isinstance(x, self.array_types)

    def lendable(self, x: Any) -> Any:
        return super().lendable(x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("=")))

    def cast(self, x: Any, dtype: str) -> Any:
        return x.astype(dtype, copy=False)  # which scalars have too, and np.astype takes from NumPy 2.1 on

    def describe(self, x: Any) -> tuple[tuple[int, ...], str, Hashable]:
        return x.shape, self._dtype_names.get(x.dtype) or self._dtype_name(x.dtype), "cpu"

    def _dtype_name(self, dtype: Any) -> str:
        return super()._dtype_name(dtype) if dtype.isnative else f"{dtype.newbyteorder('=')} (big-endian)"

    def generators(self) -> tuple[Any, ...]:
        return (np.random,)

    def _inner(self, x: Any, y: Any) -> Any:
        return np.dot(x, y)

    def _device(self, x: Any) -> Hashable:
        return "cpu"


backend = NumpyBackend()
