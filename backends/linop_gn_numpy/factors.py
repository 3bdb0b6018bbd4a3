"""Cholesky and LU by LAPACK, whose status says what NumPy raises; with triangular solves, which NumPy lacks."""

from __future__ import annotations

from typing import Any

import numpy as np

from linop_gn.backend import Array, Scalar, Vector

__all__ = ["NumpyFactors"]


def _lapack(name: str, like: Array) -> Any:
    from scipy.linalg.lapack import get_lapack_funcs

    return get_lapack_funcs(name, (like,))


class NumpyFactors:
    """The part of :class:`linop_gn.protocols.Factors` that is not in the array-API standard."""

    def cholesky(self, matrix: Array) -> tuple[Any, Scalar]:
        factor, info = _lapack("potrf", matrix)(matrix, lower=True, clean=False)
        return factor, info == 0 and bool(np.isfinite(np.diagonal(factor)).all())

    def cholesky_solve(self, factor: Any, b: Vector) -> Vector:
        return np.asarray(_lapack("potrs", factor)(factor, b, lower=True)[0], order="C")

    def lu(self, matrix: Array) -> tuple[Any, Scalar]:
        factor, pivots, info = _lapack("getrf", matrix)(matrix)
        return (factor, pivots), info == 0 and bool(np.isfinite(np.diagonal(factor)).all())

    def lu_solve(self, factor: Any, b: Vector) -> Vector:
        return np.asarray(_lapack("getrs", factor[0])(*factor, b)[0], order="C")

    def upper_solve(self, R: Array, b: Vector) -> Vector:
        x, info = _lapack("trtrs", R)(R, b)
        return np.asarray(x, order="C") if info == 0 else np.full_like(b, np.nan)
