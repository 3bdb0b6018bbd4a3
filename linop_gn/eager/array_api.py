"""The backend that any array-API library gets for free.

:class:`ArrayApiBackend` needs nothing but a namespace that follows the Python
array-API standard (2022.12 or later): it is NumPy's and CuPy's base, and with
``array_api_strict`` it shows that nothing outside the standard is relied on.
There are no derivatives here: those come with a framework or from the user.

Inner products in single precision are accumulated in two levels (blocks of
4096 in float32, their sums in float64), which keeps the relative error near
1e-9 at ten million entries, where one BLAS call has 2e-6 to 2e-5, for 10 % of
its time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import array_api_compat
import numpy as np
import optree

from ..protocols import Array, Scalar, Tree, Vector
from .bases import EagerBases
from .defaults import BackendDefaults
from .factors import ArrayApiFactors
from .loops import EagerLoops
from .scalars import EagerScalars
from .stores import EagerStores

__all__ = ["ArrayApiBackend", "names_of"]

R = TypeVar("R")

_BLOCK = 4096
_PLAIN_DOT_LIMIT = 65536


@lru_cache(maxsize=256)
def names_of(structure: Any) -> tuple[str, ...]:
    """The paths of a tree's leaves, joined by dots: keys, indices, names of fields."""
    return tuple(
        ".".join(str(getattr(entry, "field", entry.entry)) for entry in accessor) for accessor in structure.accessors()
    )


class _Limits(dict[Any, tuple[float, int]]):
    """Of each dtype its spacing at 1, and e for which 2^-e is its smallest normal number; asked of ``xp`` once."""

    def __init__(self, xp: Any) -> None:
        super().__init__()
        self.xp = xp

    def __missing__(self, dtype: Any) -> tuple[float, int]:
        info = self.xp.finfo(dtype)
        self[dtype] = found = float(info.eps), round(-math.log2(float(info.smallest_normal)))
        return found


class ArrayApiBackend(EagerScalars, ArrayApiFactors, EagerStores, EagerBases, EagerLoops, BackendDefaults):
    """An eager backend over the array-API namespace ``xp``, whose arrays are instances of ``array_types``."""

    tree_namespace = ""
    """optree's name for what it is to take for a container."""
    capabilities: frozenset[str] = frozenset({"float64", "in_place", "trees", "views"})

    def __init__(self, name: str, xp: Any, array_types: tuple[type, ...]) -> None:
        self.name = name
        self.xp = xp
        self.array_types = array_types
        self._dtype_names: dict[Any, str] = {}  # NumPy takes 5 microseconds to name one
        self._limits = _Limits(xp)  # as long to ask for

    # arrays and trees

    def namespace(self) -> Any:
        return self.xp

    def version(self) -> str:
        return str(getattr(self.xp, "__version__", "unknown"))

    def devices(self) -> list[str]:
        return ["cpu"]

    def is_array(self, x: Any) -> bool:
        return isinstance(x, self.array_types)

    def is_concrete(self, tree: Any) -> bool:
        return True

    def lives_with(self, tree: Any, x: Array) -> bool:
        return self.is_concrete(tree)

    def flatten(self, tree: Tree) -> tuple[list[str], list[Array], Hashable]:
        leaves, structure = optree.tree_flatten(tree, namespace=self.tree_namespace)
        return list(names_of(structure)), leaves, structure

    def unflatten(self, structure: Hashable, leaves: Sequence[Any]) -> Tree:
        return optree.tree_unflatten(structure, leaves)  # type: ignore[arg-type]

    def describe(self, x: Array) -> tuple[tuple[int, ...], str, Hashable]:
        return tuple(x.shape), self._dtype_name(x.dtype), self._device(x)

    def _device(self, x: Array) -> Hashable:
        return str(array_api_compat.device(x))

    def _dtype_name(self, dtype: Any) -> str:
        name = self._dtype_names.get(dtype)
        if name is None:
            name = self._dtype_names[dtype] = str(dtype).rpartition(".")[2]
        return name

    def pack(self, leaves: Sequence[Array], dtype: str) -> Vector:
        flat = [self.cast(self.xp.reshape(leaf, (-1,)), dtype) for leaf in leaves]
        return self.xp.concat(flat) if len(flat) > 1 else self.copy(flat[0])

    def split(self, vector: Vector, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str]) -> list[Array]:
        columns, start, leaves = tuple(vector.shape[1:]), 0, []
        for shape, dtype in zip(shapes, dtypes, strict=True):
            stop = start + math.prod(shape)
            leaves.append(self.cast(self.xp.reshape(vector[start:stop, ...], shape + columns), dtype))
            start = stop
        return leaves

    def asarray(self, host: Any, dtype: str, device: Hashable = None) -> Array:
        return self.xp.asarray(np.asarray(host), dtype=getattr(self.xp, dtype), device=device, copy=True)

    def lendable(self, x: Array) -> Array:
        flags = getattr(x, "flags", None)
        if flags is None or (flags.c_contiguous and getattr(flags, "writeable", True)):
            return x
        return self.xp.reshape(self.copy(self.xp.reshape(x, (-1,))), x.shape)

    def borrow(self, x: Any) -> Array:
        return self.xp.from_dlpack(x)

    def cast(self, x: Array, dtype: str) -> Array:
        return self.xp.astype(x, getattr(self.xp, dtype), copy=False)

    def to_numpy(self, x: Array) -> Any:
        return np.asarray(x) if isinstance(x, (np.ndarray, np.generic)) else np.from_dlpack(x)

    def read(self, tree: Any) -> Any:
        if isinstance(tree, (int, float)):
            return tree
        return optree.tree_map(
            lambda x: self.to_numpy(x) if self.is_array(x) else x, tree, namespace=self.tree_namespace
        )

    # vectors

    def _factor(self, a: Scalar, like: Vector) -> Any:
        """``a`` as something that multiplies ``like`` without changing its dtype."""
        if isinstance(a, np.ndarray) and a.ndim:
            return self.asarray(a, self._dtype_name(like.dtype), self._device(like))
        return float(a)

    def dot(self, x: Vector, y: Vector) -> Scalar:
        if x.dtype != self.xp.float64 and x.dtype != self.xp.float32:  # half precision would overflow at 65504
            x, y = self.cast(x, "float32"), self.cast(y, "float32")
        if len(x.shape) == 2:
            return np.asarray(self.to_numpy(self.xp.sum(x * y, axis=0, dtype=self.xp.float64)), dtype=float)
        if x.shape[0] <= _PLAIN_DOT_LIMIT or x.dtype == self.xp.float64:
            return float(self._inner(x, y))
        whole = x.shape[0] // _BLOCK * _BLOCK
        blocks = self.xp.vecdot(self.xp.reshape(x[:whole], (-1, _BLOCK)), self.xp.reshape(y[:whole], (-1, _BLOCK)))
        total = float(self.xp.sum(blocks, dtype=self.xp.float64))
        return total + float(self._inner(x[whole:], y[whole:])) if whole < x.shape[0] else total

    def _inner(self, x: Vector, y: Vector) -> Any:
        return self.xp.vecdot(x, y)

    def max_abs(self, x: Vector) -> Scalar:
        if x.shape[0] == 0:
            return self.scalar(0.0, x)
        largest = self.xp.max(self.xp.abs(x), axis=0)
        return np.asarray(self.to_numpy(largest), dtype=float) if len(x.shape) == 2 else float(largest)

    def copy(self, x: Vector) -> Vector:
        return self.xp.asarray(x, copy=True)

    def zeros_like(self, x: Vector) -> Vector:
        return self.xp.zeros_like(x)

    def scale(self, a: Scalar, x: Vector) -> Vector:
        x *= self._factor(a, x)
        return x

    def axpy(self, a: Scalar, x: Vector, y: Vector) -> Vector:
        y += self._factor(a, y) * x
        return y

    def axpby(self, a: Scalar, x: Vector, b: Scalar, y: Vector) -> Vector:
        y *= self._factor(b, y)
        y += x if isinstance(a, float) and a == 1.0 else self._factor(a, y) * x
        return y

    def subtract(self, x: Vector, y: Vector) -> Vector:
        y *= -1.0
        y += x
        return y

    def select(self, condition: Scalar, x: Vector, y: Vector) -> Vector:
        if isinstance(condition, np.ndarray) and condition.ndim:
            if condition.all() or not condition.any():
                return x if condition.all() else y
            return self.xp.where(self.asarray(condition, "bool", self._device(x)), x, y)
        return x if condition else y

    def mask(self, condition: Scalar, x: Vector) -> Vector:
        if condition is True:
            return x
        if isinstance(condition, np.ndarray) and condition.ndim:
            return x if condition.all() else self.select(condition, x, self.zeros_like(x))
        return x if condition else self.zeros_like(x)

    def branch(self, condition: Scalar, then: Callable[..., R], otherwise: Callable[..., R], *operands: Any) -> R:
        if condition is True:
            return then(*operands)
        if condition is False:
            return otherwise(*operands)
        if not isinstance(condition, np.ndarray):
            return (then if condition else otherwise)(*operands)
        if condition.all() or not condition.any():
            return (then if condition.all() else otherwise)(*operands)
        copies: Any = optree.tree_map(lambda x: self.copy(x) if self.is_array(x) else x, operands)  # type: ignore[arg-type]
        pairs = zip(then(*copies), otherwise(*operands), strict=True)  # type: ignore[call-overload]
        return tuple(
            self.select(condition, x, y) if self.is_array(x) and len(x.shape) == 2 else self.where(condition, x, y)
            for x, y in pairs
        )  # type: ignore[return-value]

    def eps(self, x: Vector) -> float:
        return self._limits[x.dtype][0]

    def _exponent_limit(self, like: Vector) -> int:
        return self._limits[like.dtype][1]
