"""A basis of vectors, and the small dense problems that live in it.

A *basis* holds the vectors q_0, q_1, ... of a Krylov method as the rows of one
array ``(capacity, n)``, so that orthogonalising against all of them, and
combining them, are matrix products. A *small array* holds scalars, with one
axis that counts basis vectors: a NumPy array in float64 where work is eager, a
traced array of the scalars' dtype in JAX. Small arrays are worked on with the
functions of :meth:`Bases.small_namespace`.

``count`` tells how many leading vectors take part: a Python int where work is
eager, a traced integer in a compiled program, whose arrays keep their capacity.
Vectors are ``(n,)``; there are no bases of columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from .types import Array, Scalar, Vector

__all__ = ["Bases"]

R = TypeVar("R")


class Bases(Protocol):
    """Bases of vectors ``(n,)``; the first argument is consumed by what returns a basis."""

    def basis(self, like: Vector, capacity: int) -> Array:
        """Room for ``capacity`` vectors like this one; what a row holds before it is stored to is not defined."""

    def grow(self, basis: Array, capacity: int, count: Scalar) -> Array:
        """A new basis of a larger capacity with the same leading ``count`` vectors; the old one is left alone."""

    def store(self, basis: Array, index: Scalar, a: Scalar, x: Vector) -> Array:
        """The basis with ``a x`` at ``index``; consumes the basis, x is left alone."""

    def row(self, basis: Array, index: Scalar) -> Vector:
        """Vector ``index``: never to be consumed, and not to be read after the next :meth:`store`."""

    def project(self, basis: Array, x: Vector, count: Scalar) -> Array:
        """The small array (capacity,) of the inner products q_i . x for i < count, and exact zeros beyond.

        Accumulated as safely as :meth:`Arithmetic.dot`, whatever the rows beyond hold. For columns x (n, m) it is
        (capacity, m).
        """

    def deflate(self, basis: Array, coefficients: Array, x: Vector, count: Scalar) -> Vector:
        """``x - sum over i < count of c_i q_i`` for a small array (capacity,); consumes x.

        Columns (n, m) take a small array with a second axis of m.
        """

    def combine(self, basis: Array, coefficients: Array, count: Scalar) -> Vector:
        """``sum over i < count of c_i q_i``, a new vector (n,), for a small array of at least ``count`` entries.

        A small array with a second axis of m gives the columns (n, m).
        """

    # small arrays

    def small_namespace(self) -> Any:
        """The array namespace of small arrays: ``numpy`` where work is eager."""

    def small(self, values: Any, like: Vector) -> Array:
        """A new small array from numbers, of the dtype of the scalars that belong to ``like``."""

    def leading(self, small: Array, count: Scalar) -> Array:
        """The first ``count`` entries where the count is known, all of them in a compiled program. May alias."""

    def repeat(self, count: int, body: Callable[[Any, R], R], state: R) -> R:
        """``state = body(i, state)`` for i = 0 .. count - 1, as one loop in a compiled program."""

    def eigh_tridiagonal(self, diagonal: Array, off: Array) -> tuple[Array, Array]:
        """Eigenvalues (k,), ascending, and eigenvectors (k, k) as columns, of the symmetric tridiagonal matrix.

        ``diagonal`` has k entries and ``off`` at least k - 1, finite ones. Where a zero in ``off`` splits the matrix,
        eigenvectors of one part are zero on the other, to rounding.
        """
