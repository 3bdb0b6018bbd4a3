"""Dense matrices of an operator, and their factorisations, for solvers of small systems.

Matrices are ``(n, n)`` arrays of float32 or float64; right-hand sides are
vectors ``(n,)`` or columns ``(n, k)``. Nothing here raises for the values it is
given: a factorisation that does not exist is told by its second result, one
scalar (a Python bool where work is eager), and what is computed from it then is
of no use but is never read.
"""

from __future__ import annotations

from typing import Any, Protocol

from .types import Array, Scalar, Vector

__all__ = ["Factors"]


class Factors(Protocol):
    """What a direct solver is made of. No argument is written to."""

    def gathered(self, matrix: Array) -> Array:
        """The matrix, or vector, whole on each device, as factorisations take it."""

    def qr(self, columns: Array) -> tuple[Array, Array]:
        """Orthonormal Q (n, k), over devices as the columns are, and R (k, k), a triangle: the columns are Q R; k <= n.

        Where the columns are dependent, those of Q that none of them needs may be anything, zero too.
        """

    def zeros(self, size: int, like: Vector) -> Vector:
        """The zero vector ``(size,)``, or ``(size, k)`` where ``like`` has k columns, of its dtype and device."""

    def identity(self, size: int, like: Vector) -> Array:
        """The matrix I ``(size, size)`` of the dtype and device of ``like``."""

    def syrk(self, x: Array) -> Array:
        """x x^T (m, m) for x (m, k), by BLAS's name for it."""

    def cholesky(self, matrix: Array) -> tuple[Any, Scalar]:
        """A matrix with the factor L in its lower triangle, and whether the symmetric matrix is positive definite."""

    def cholesky_solve(self, factor: Any, b: Vector) -> Vector:
        """x of L L^T x = b."""

    def lu(self, matrix: Array) -> tuple[Any, Scalar]:
        """A factor for :meth:`lu_solve`, and whether no pivot is zero."""

    def lu_solve(self, factor: Any, b: Vector) -> Vector:
        """x of P L U x = b."""

    def upper_solve(self, R: Array, b: Vector) -> Vector:
        """x of R x = b for an upper triangle R, whose lower one is zero; not finite where R is singular."""

    def eigh(self, matrix: Array) -> tuple[Array, Array, Scalar]:
        """Eigenvalues, ascending, and orthonormal eigenvectors of a symmetric matrix; whether they were found."""
