"""The inverse of a matrix known by eigenvectors: of all its space, or of its largest part.

    M = (I - U U^T)^2 / (rest + damping) + U diag(1 / (values + damping)) U^T

The projection stands squared because U is orthonormal only to rounding: written
this way M is positive definite whatever U is, also where values + damping spread
over more than the precision holds. (Written as I + U diag(...) U^T it is not: in
float32 r^T M r turns negative for spreads above 1e7.)
"""

from __future__ import annotations

from ..operators.base import LinearOperator
from ..protocols import Array, Scalar, Vector
from ..records import record, static
from ..spaces import Space
from .base import damped_by

__all__ = ["SpectralInverse", "spectral_inverse"]


@record
class SpectralInverse(LinearOperator):
    """U diag(inner) U^T + outer (I - U U^T)^2, with positive inner (r,) and outer (1,); without outer U is square."""

    vectors: Array
    inner: Array
    outer: Array | None
    domain: Space = static(default=None)
    psd = True

    def matvec(self, v: Vector) -> Vector:
        if self.domain.layout is not None and "compiled" not in self.backend.capabilities:
            return self._over_processes(v)
        U = self.vectors
        inside = self._within(v)
        product: Vector = U @ ((self.inner if len(inside.shape) == 1 else self.inner[:, None]) * inside)
        if self.outer is None:
            return product
        outside = v - U @ inside
        outside = outside - U @ self._within(outside)
        return product + (self.outer if len(v.shape) == 1 else self.outer[:, None]) * outside

    matmat = matvec

    def _within(self, v: Vector) -> Array:
        """U^T v: of vectors that lie over devices summed over these, which explicit axes of a mesh want to be told."""
        ops, U = self.backend, self.vectors
        return U.T @ v if self.domain.layout is None else ops.cast(ops.project(U.T, v, U.shape[1]), ops.describe(v)[1])

    def _over_processes(self, v: Vector) -> Vector:
        """The same, of vectors of which each process has a part."""
        ops, U, k = self.backend, self.vectors.T, self.inner.shape[0]

        def without(v: Vector, inside: Array) -> Vector:
            return ops.axpy(-1.0, ops.combine(U, inside, k), ops.copy(v))

        inside = ops.project(U, v, k)
        product: Vector = ops.combine(U, (ops.small(self.inner, v) * inside.T).T, k)
        if self.outer is None:
            return product
        outside = without(v, inside)
        return ops.axpy(float(ops.small(self.outer, v)[0]), without(outside, ops.project(U, outside, k)), product)


def spectral_inverse(space: Space, vectors: Array, values: Array, damping: Scalar, whole: bool) -> SpectralInverse:
    """The inverse of U diag(values) U^T + damping, whose other eigenvalues, if any, are taken for the smallest.

    Negative ones count by their size, and those below rounding of the largest as what rounding leaves.
    """
    ops = space.backend
    xp = ops.namespace()
    sizes = xp.abs(values)
    least = ops.eps(values) * xp.max(sizes, keepdims=True)
    e = damped_by(space, xp.maximum(sizes, xp.broadcast_to(least, sizes.shape)), damping)
    e = xp.where(e == 0, xp.ones_like(e), e)  # the zero matrix, not damped
    return SpectralInverse(vectors, 1.0 / e, None if whole else 1.0 / xp.min(e, keepdims=True), space)
