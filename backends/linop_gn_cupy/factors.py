"""Factorisations by cuSOLVER, told when they fail.

CuPy does not look at what cuSOLVER says of a matrix unless it is asked to
(``cupyx.errstate``): a Cholesky factor of an indefinite matrix is then finite
nonsense. Looking is a read of one number, which the truth value that
:class:`linop_gn.protocols.Factors` returns needs anyway.
"""

from __future__ import annotations

from typing import Any

import cupyx

from linop_gn.backend import Array, Scalar, Vector

__all__ = ["CupyFactors"]


class CupyFactors:
    """Before :class:`linop_gn.eager.factors.ArrayApiFactors`, which catches what is raised."""

    def cholesky(self, matrix: Array) -> tuple[Any, Scalar]:
        with cupyx.errstate(linalg="raise"):
            return super().cholesky(matrix)  # type: ignore[misc]

    def cholesky_solve(self, factor: Any, b: Vector) -> Vector:
        from cupyx.scipy.linalg import solve_triangular

        return solve_triangular(factor, solve_triangular(factor, b, lower=True), trans="T", lower=True)

    def upper_solve(self, R: Array, b: Vector) -> Vector:
        from cupyx.scipy.linalg import solve_triangular

        return solve_triangular(R, b)

    def eigh(self, matrix: Array) -> tuple[Array, Array, Scalar]:
        with cupyx.errstate(linalg="raise"):
            return super().eigh(matrix)  # type: ignore[misc]

    def _solve(self, matrix: Array, b: Vector) -> Vector:
        with cupyx.errstate(linalg="raise"):
            return super()._solve(matrix, b)  # type: ignore[misc]
