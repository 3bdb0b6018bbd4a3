"""Operators on the backend: their adjoint, symmetry, positivity, dense matrix and columns."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...operators import Damped, Dense, Diagonal, LinearOperator, LowRank
from .base import EPS, Draws, Kit, NDArray, agree, claim, drawn

__all__ = ["Operators"]


class _Pair(NamedTuple):
    operator: LinearOperator
    matrix: NDArray
    size: float
    """The same in absolute values, summed over the largest row."""


class Operators(Kit):
    """A general operator and a positive semi-definite one, made of several kinds."""

    def _operators(self, data: Draws) -> list[_Pair]:
        A, U, d = self.normal(data, 5, 4), self.normal(data, 4, 2), self.normal(data, 4)
        ours: list[Any] = [self.array(x, self.wide) for x in (A, U, d)]
        dense, low, diagonal = Dense(ours[0]), LowRank(ours[1]), Diagonal(ours[2])
        general = _Pair(dense @ (low + 0.5 * diagonal), A @ (U @ U.T + 0.5 * np.diag(d)), 0.0)
        gram = _Pair(Damped(dense.T @ dense + low, 0.25), A.T @ A + U @ U.T + 0.25 * np.eye(4), 0.0)
        bound = abs(A) @ (abs(U) @ abs(U.T) + np.diag(abs(d)))
        sizes = [bound.sum(axis=1).max(), bound.sum(axis=0).max(), abs(gram.matrix).sum(), (abs(A.T) @ abs(A)).sum()]
        size = float(max(sizes)) + 1.0
        return [general._replace(size=size), gram._replace(size=size)]

    def _tolerance(self, pair: _Pair) -> float:
        return 200 * EPS[self.wide] * pair.size

    @drawn(8)
    def test_products(self, data: Draws) -> None:
        """A v is the dense matrix's product, of the kind of v; v stays as it is."""
        for pair in self._operators(data):
            v = self.normal(data, pair.matrix.shape[1])
            V = self.array(v, self.wide)
            with self.untouched("a product", V):
                result = pair.operator @ V
                agree(self.host(result), pair.matrix @ v, self._tolerance(pair), f"{pair.operator!r} @ v")
                self.same_kind(result, self.array(pair.matrix @ v, self.wide), "a product")

    @drawn(8)
    def test_adjoint_products(self, data: Draws) -> None:
        """A.T is the adjoint: <u, A v> is <A.T u, v>."""
        for pair in self._operators(data):
            v, u = self.normal(data, pair.matrix.shape[1]), self.normal(data, pair.matrix.shape[0])
            forward = u @ self.host(pair.operator @ self.array(v, self.wide))
            backward = self.host(pair.operator.T @ self.array(u, self.wide)) @ v
            agree(backward, forward, 20 * self._tolerance(pair), f"{pair.operator!r}: <A.T u, v> and <u, A v>")

    @drawn(4)
    def test_columns(self, data: Draws) -> None:
        """A V is the products with each column side by side; so is A.T U."""
        for pair in self._operators(data):
            for A, matrix in ((pair.operator, pair.matrix), (pair.operator.T, pair.matrix.T)):
                v = self.normal(data, matrix.shape[1], 3)
                result = self.host(A @ self.array(v, self.wide))
                alone = [self.host(A @ self.array(v[:, j], self.wide)) for j in range(3)]
                agree(result, matrix @ v, self._tolerance(pair), f"{A!r} @ V")
                agree(result, np.stack(alone, axis=1), self._tolerance(pair), f"{A!r} @ V and single products")

    @drawn(4)
    def test_symmetry_and_positivity(self, data: Draws) -> None:
        """What is known to be symmetric and positive semi-definite is."""
        A, matrix, _ = self._operators(data)[1]
        claim(A.symmetric and A.psd and A.T is A, f"{A!r} is a damped sum of a Gram operator and U U^T")
        v, w = self.normal(data, 4), self.normal(data, 4)
        Av, Aw = (self.host(A @ self.array(x, self.wide)) for x in (v, w))
        tolerance = 1e4 * EPS[self.wide] * (1 + abs(matrix).sum())
        agree(w @ Av, v @ Aw, tolerance, "<w, A v> and <A w, v>")
        claim(v @ Av >= 0, f"v^T A v is {v @ Av}")
