"""Arrays that spoil what has been consumed.

Vector updates consume their last argument (see :mod:`linop_gn.protocols`), and
which backends really overwrite it differs: JAX never does, so code that reads a
consumed array works there and is wrong elsewhere; code that counts on the
overwriting works on NumPy and is wrong in JAX. Here the result is a new array
*and* the consumed one is filled with NaN, so that both mistakes show.

    >>> import linop_gn as lg
    >>> y = poison(np.ones(2))
    >>> ops = lg.backend_of(y)
    >>> ops.axpy(2.0, poison(np.ones(2)), y), y
    (PoisonArray([3., 3.]), PoisonArray([nan, nan]))

Anything that is given :func:`poison`-ed arrays runs on this backend: they are a
subclass of NumPy's, announced by :func:`linop_gn.register`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import optree

from ..dispatch import register
from ..eager.array_api import ArrayApiBackend
from ..protocols import Array, Backend, Scalar, Tree, Vector

__all__ = ["Poison", "PoisonArray", "PoisonBackend", "poison", "poison_backend", "poisoned"]


class Poison:
    """A mix-in for eager backends: consumed vectors become NaN, results are new.

    Put it before the backend class: ``class Poisoned(Poison, MyBackend)``.
    """

    def scale(self, a: Scalar, x: Vector) -> Vector:
        return self._spoil(super().scale(a, self.copy(x)), x)  # type: ignore[misc]

    def axpy(self, a: Scalar, x: Vector, y: Vector) -> Vector:
        return self._spoil(super().axpy(a, x, self.copy(y)), y)  # type: ignore[misc]

    def axpby(self, a: Scalar, x: Vector, b: Scalar, y: Vector) -> Vector:
        return self._spoil(super().axpby(a, x, b, self.copy(y)), y)  # type: ignore[misc]

    def subtract(self, x: Vector, y: Vector) -> Vector:
        return self._spoil(super().subtract(x, self.copy(y)), y)  # type: ignore[misc]

    def deflate(self, basis: Array, coefficients: Array, x: Vector, count: Scalar) -> Vector:
        return self._spoil(super().deflate(basis, coefficients, self.copy(x), count), x)  # type: ignore[misc]

    def copy(self, x: Vector) -> Vector:
        return super().copy(x)  # type: ignore[misc]

    def _spoil(self, result: Vector, consumed: Vector) -> Vector:
        consumed[...] = float("nan")
        return result


def poisoned(backend: Backend) -> Any:
    """A twin of an eager backend, for the same arrays, that spoils what is consumed.

    >>> import linop_gn as lg
    >>> y = np.ones(2)
    >>> poisoned(lg.load("numpy")).axpy(2.0, np.ones(2), y), y
    (array([3., 3.]), array([nan, nan]))
    """
    if isinstance(backend, Poison):
        return backend
    kind = type(f"Poisoned{type(backend).__name__}", (Poison, type(backend)), {})
    twin: Any = object.__new__(kind)
    twin.__dict__.update(vars(backend))
    return twin


class PoisonArray(np.ndarray[Any, Any]):
    """A NumPy array that belongs to the poisoning backend."""


class _Namespace:
    """NumPy's functions, whose arrays are :class:`PoisonArray` whichever way they were made."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if isinstance(value, ModuleType):
            return _Namespace(value)
        return value if isinstance(value, type) or not callable(value) else _marked(value)


def _marked(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        result = function(*args, **options)
        if isinstance(result, (tuple, list)):
            return type(result)(map(_mark, result)) if type(result) in (tuple, list) else result
        return _mark(result)

    return run


def _mark(x: Any) -> Any:
    return x.view(PoisonArray) if isinstance(x, np.ndarray) else x


class PoisonBackend(Poison, ArrayApiBackend):
    """NumPy, with consumed vectors overwritten by NaN."""

    contract = 1

    def __init__(self) -> None:
        super().__init__("poison", _Namespace(np), (PoisonArray,))

    def __reduce__(self) -> Any:
        return "poison_backend"

    def to_numpy(self, x: Array) -> Any:
        return np.asarray(x)


poison_backend = PoisonBackend()
"""The one instance, to which every :class:`PoisonArray` belongs."""

register(PoisonArray, poison_backend)


def poison(tree: Tree) -> Tree:
    """A copy of a tree of NumPy arrays in which each is a :class:`PoisonArray`."""
    return optree.tree_map(lambda x: np.array(x).view(PoisonArray), tree)
