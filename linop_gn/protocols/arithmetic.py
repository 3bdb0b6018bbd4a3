"""The few vector and scalar operations that a solver is made of.

**Scalars belong to the backend.** ``dot`` returns a Python float where work is
done eagerly, a traced 0-d array in JAX, and an array ``(k,)`` for ``k`` columns.
Solver code therefore never writes ``if``, ``and`` or ``not`` on a scalar: it
asks :meth:`Arithmetic.where`, ``&``, ``|`` and :meth:`Arithmetic.logical_not`.

**Vector updates consume their last argument.** After ``z = ops.axpy(a, x, y)``
the array ``y`` must not be read again: eager backends have overwritten it.
All other arguments are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from .types import Array, Scalar, Vector

__all__ = ["Arithmetic", "unchanged"]

R = TypeVar("R")


def unchanged(*operands: Any) -> Any:
    """The side of :meth:`Arithmetic.branch` that leaves the operands, so that a program writes over them: no copies."""
    return operands


class Arithmetic(Protocol):
    """What a solver is made of. Vectors are ``(n,)`` or ``(n, k)``; the last argument is consumed where noted."""

    def dot(self, x: Vector, y: Vector) -> Scalar:
        """Sum of products, a column at a time, accumulated safely for large n in float32."""

    def dots(self, *pairs: tuple[Vector, Vector]) -> tuple[Scalar, ...]:
        """``dot`` of each pair; where vectors are cut over processes, one sum over all of them."""

    def max_abs(self, x: Vector) -> Scalar:
        """Largest absolute entry (NaN or infinity if there is one)."""

    def copy(self, x: Vector) -> Vector:
        """A new array."""

    def zeros_like(self, x: Vector) -> Vector: ...

    def scale(self, a: Scalar, x: Vector) -> Vector:
        """``a x``; consumes x."""

    def axpy(self, a: Scalar, x: Vector, y: Vector) -> Vector:
        """``a x + y``; consumes y."""

    def axpby(self, a: Scalar, x: Vector, b: Scalar, y: Vector) -> Vector:
        """``a x + b y``; consumes y."""

    def subtract(self, x: Vector, y: Vector) -> Vector:
        """``x - y``; consumes y."""

    def select(self, condition: Scalar, x: Vector, y: Vector) -> Vector:
        """``x`` where the condition holds (of the whole vector, or of each column), else ``y``. May alias either."""

    def mask(self, condition: Scalar, x: Vector) -> Vector:
        """``x`` where the condition holds, else exact zeros, whatever ``x`` holds. May alias x, never writes to it."""

    def branch(self, condition: Scalar, then: Callable[..., R], otherwise: Callable[..., R], *operands: Any) -> R:
        """``then(*operands)`` or ``otherwise(*operands)``: only one is run where the condition is one scalar.

        Both return tuples of vectors and scalars of the same structure. Either may consume its
        operands: where both have to be run (columns that differ), the backend gives one of them copies.
        ``otherwise`` may be :func:`unchanged`.
        """

    def either(self, condition: Scalar, then: Callable[..., R], otherwise: Callable[..., R], *operands: Any) -> R:
        """The same, of sides that take no more than a pass: a compiler may run both, fused with what follows."""

    def scalar(self, value: Any, like: Vector) -> Scalar:
        """A scalar, repeated for each column of ``like`` where it has columns."""

    def item(self, x: Array) -> Scalar:
        """A 0-d array as a scalar of this backend: a Python float where work is eager, itself otherwise."""

    def where(self, condition: Scalar, x: Scalar, y: Scalar) -> Scalar: ...

    def divide(self, x: Scalar, y: Scalar) -> Scalar:
        """``x / y``, and 0 where y is 0: never an exception."""

    def sqrt(self, x: Scalar) -> Scalar:
        """Square root; NaN (never an exception) for negative numbers."""

    def minimum(self, x: Scalar, y: Scalar) -> Scalar: ...

    def maximum(self, x: Scalar, y: Scalar) -> Scalar: ...

    def isfinite(self, x: Scalar) -> Scalar: ...

    def logical_not(self, x: Scalar) -> Scalar: ...

    def any(self, x: Scalar) -> Scalar:
        """One truth value: whether any column's holds."""

    def power_of_two(self, x: Scalar, like: Vector) -> Scalar:
        """The power of two at or below ``|x|``, an exact scale for vectors of the dtype of ``like``.

        It and its inverse are normal numbers of that dtype; 1 for zero and non-finite x.
        """

    def eps(self, x: Vector) -> float:
        """Unit round-off spacing of the vector's dtype (a Python float)."""
