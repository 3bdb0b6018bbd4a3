"""Functions to differentiate, written once with a namespace, and their derivatives by NumPy.

Jacobians and gradients come from the complex step and are exact to rounding;
Hessians from central differences of such gradients, to some 1e-9.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..oracles import complex_step_jacobian, finite_difference_hessian

__all__ = ["FUNCTIONS", "Differentiable", "scalar_of"]

NDArray = np.ndarray[Any, Any]


def _network(xp: Any, p: Any, x: Any) -> Any:
    return xp.tanh(x @ p[0] + p[1]) @ p[2]


def _ratio(xp: Any, p: Any, x: Any) -> Any:
    return xp.exp(p[0]) / (1.0 + p[1] * p[1])


def _ignoring(xp: Any, p: Any, x: Any) -> Any:
    return xp.sin(p[1]) * p[1]


def _linear(xp: Any, p: Any, x: Any) -> Any:
    return x @ p[0]


class Differentiable(NamedTuple):
    """A function ``(xp, leaves, x) -> array`` and the shapes of its leaves; x is (3, 2)."""

    value: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    ignored: tuple[int, ...] = ()

    def leaves(self, flat: NDArray) -> list[NDArray]:
        """A flat vector cut into leaves."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(flat, ends), self.shapes, strict=True)]

    @property
    def size(self) -> int:
        """How many parameters there are."""
        return sum(int(np.prod(shape)) for shape in self.shapes)

    def at(self, flat: NDArray, x: NDArray) -> Derivatives:
        """What it is at ``flat``, by NumPy."""
        return Derivatives(self, flat, x)


FUNCTIONS = {
    "network": Differentiable(_network, ((2, 3), (3,), (3, 2))),
    "ratio": Differentiable(_ratio, ((3,), (3,))),
    "ignoring": Differentiable(_ignoring, ((2, 2), (3,), (1,)), ignored=(0, 2)),
    "linear": Differentiable(_linear, ((2, 3),)),
}


def scalar_of(value: Callable[..., Any]) -> Callable[..., Any]:
    """sum sin f: a scalar function."""

    def objective(xp: Any, p: Any, x: Any) -> Any:
        return xp.sum(xp.sin(value(xp, p, x)))

    return objective


class Derivatives:
    """Dense derivatives of a function, and of the scalar made of it, at one point."""

    def __init__(self, function: Differentiable, flat: NDArray, x: NDArray) -> None:
        self._function, self._flat, self._x = function, flat, x

    def _value(self, flat: NDArray) -> NDArray:
        return np.asarray(self._function.value(np, self._function.leaves(flat), self._x))

    def _scalar(self, flat: NDArray) -> NDArray:
        return np.asarray(scalar_of(self._function.value)(np, self._function.leaves(flat), self._x))

    @cached_property
    def outputs(self) -> NDArray:
        """The value."""
        return self._value(self._flat)

    @cached_property
    def jacobian(self) -> NDArray:
        """(outputs.size, n)."""
        return complex_step_jacobian(self._value, self._flat)

    @cached_property
    def scalar(self) -> float:
        """sum sin f."""
        return float(self._scalar(self._flat))

    def _gradient(self, flat: NDArray) -> NDArray:
        gradient: NDArray = complex_step_jacobian(self._scalar, flat)[0]
        return gradient

    @cached_property
    def gradient(self) -> NDArray:
        """(n,), of the scalar."""
        return self._gradient(self._flat)

    @cached_property
    def hessian(self) -> NDArray:
        """(n, n), of the scalar."""
        return finite_difference_hessian(self._gradient, self._flat)
