"""Factorisations by ``jax.numpy.linalg``, which marks what cannot be factored by NaN; traced as everything is."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from linop_gn.backend import Array, Scalar, Vector

from .arrays import gathered, laid_out

__all__ = ["JaxFactors"]


class JaxFactors:
    """The operations of :class:`linop_gn.protocols.Factors`."""

    gathered = staticmethod(gathered)

    def zeros(self, size: int, like: Vector) -> Vector:
        return jnp.zeros((size, *like.shape[1:]), like.dtype)

    def identity(self, size: int, like: Vector) -> Array:
        return jnp.eye(size, dtype=like.dtype)

    def qr(self, columns: Array) -> tuple[Array, Array]:
        Q, R = jnp.linalg.qr(gathered(columns))
        return laid_out(Q, jax.typeof(columns)), R

    def cholesky(self, matrix: Array) -> tuple[Any, Scalar]:
        factor = jnp.linalg.cholesky(gathered(matrix), symmetrize_input=False)
        return factor, jnp.isfinite(factor).all()

    def cholesky_solve(self, factor: Any, b: Vector) -> Vector:
        return jax.scipy.linalg.cho_solve((factor, True), gathered(b))

    def lu(self, matrix: Array) -> tuple[Any, Scalar]:
        factor, pivots = jax.scipy.linalg.lu_factor(gathered(matrix), check_finite=False)
        diagonal = jnp.diagonal(factor)
        return (factor, pivots), jnp.isfinite(diagonal).all() & (diagonal != 0).all()

    def lu_solve(self, factor: Any, b: Vector) -> Vector:
        return jax.scipy.linalg.lu_solve(factor, gathered(b), check_finite=False)

    def upper_solve(self, R: Array, b: Vector) -> Vector:
        return jax.scipy.linalg.solve_triangular(R, gathered(b), check_finite=False)

    def eigh(self, matrix: Array) -> tuple[Array, Array, Scalar]:
        values, vectors = jnp.linalg.eigh(gathered(matrix), symmetrize_input=False)
        return values, vectors, jnp.isfinite(values).all() & jnp.isfinite(vectors).all()
