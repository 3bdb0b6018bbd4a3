"""Bases: vectors as rows, their products and combinations, and the small dense problems in them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from .base import EPS, Draws, Kit, NDArray, agree, claim, drawn

__all__ = ["Bases"]

SIZE, CAPACITY = 5, 4


class Bases(Kit):
    """What Krylov methods are made of."""

    def _basis(self, data: Draws) -> tuple[str, NDArray, Any, int]:
        """A dtype, rows, a basis that holds them, and how many take part."""
        dtype = data.draw(st.sampled_from(self.dtypes))
        rows = self.normal(data, CAPACITY, SIZE, dtype=dtype)
        basis = self.ops.basis(self.array(rows[0], dtype), CAPACITY)
        for index, row in enumerate(rows):
            basis = self.ops.store(basis, index, 1.0, self.array(row, dtype))
        return dtype, rows, basis, data.draw(st.integers(0, CAPACITY))

    @drawn(8)
    def test_basis_rows(self, data: Draws) -> None:
        """store puts a copy of a x at an index, row gives it back, and grow keeps what is there and the old basis."""
        dtype, rows, basis, _ = self._basis(data)
        x, factor = self.normal(data, SIZE, dtype=dtype), data.draw(st.sampled_from([1.0, -0.5, 4.0]))
        X, index = self.array(x, dtype), data.draw(st.integers(0, CAPACITY - 1))
        with self.untouched("store", X):
            basis = self.ops.store(basis, index, factor, X)
        self.ops.scale(5.0, X)  # the basis must hold a copy
        rows[index] = factor * x
        wider = self.ops.grow(basis, CAPACITY + 2, CAPACITY)
        wider = self.ops.store(wider, CAPACITY, 1.0, self.array(x, dtype))
        for held in (basis, wider):
            for i in range(CAPACITY):
                row = self.ops.row(held, i)
                self.same_kind(row, self.array(x, dtype), "row")
                agree(self.host(row), rows[i], 0.0, f"row {i}")
        agree(self.host(self.ops.row(wider, CAPACITY)), x, 0.0, "a row beyond the old capacity")

    @drawn(8)
    def test_basis_project(self, data: Draws) -> None:
        """project gives inner products of leading rows with vectors and columns, and exact zeros; x does not change."""
        dtype, rows, basis, count = self._basis(data)
        x = self.normal(data, SIZE, dtype=dtype)
        X = self.array(x, dtype)
        with self.untouched("project", X):
            found = np.asarray(self.ops.project(basis, X, count), dtype=float)
        expected = np.where(np.arange(CAPACITY) < count, rows @ x, 0.0)
        size = np.where(np.arange(CAPACITY) < count, 4 * SIZE * EPS[dtype] * (np.abs(rows) @ np.abs(x)), 0.0)
        agree(found, expected, size, "project")
        columns = self.array(np.stack([x, -2.0 * x], axis=1), dtype)
        both = np.asarray(self.ops.project(basis, columns, count), dtype=float)
        agree(both, np.stack([expected, -2.0 * expected], axis=1), 2.0 * size[:, None], "project of columns")

    @drawn(8)
    def test_basis_combinations(self, data: Draws) -> None:
        """combine and deflate add and subtract combinations of the leading rows, of vectors and of columns."""
        dtype, rows, basis, count = self._basis(data)
        x, c = self.normal(data, SIZE, dtype=dtype), self.normal(data, CAPACITY, 3, dtype=dtype)
        X = self.array(x, dtype)
        small = self.ops.small(c, X)
        used = np.where((np.arange(CAPACITY) < count)[:, None], c, 0.0)
        slack = 4 * CAPACITY * EPS[dtype] * (np.abs(rows).T @ np.abs(used)).max() + EPS[dtype] * np.abs(x).max()
        columns = self.ops.combine(basis, small, count)
        agree(self.host(columns), rows.T @ used, slack, "combine to columns")
        one = self.ops.combine(basis, small[:, 0], count)
        self.same_kind(one, X, "combine")
        agree(self.host(one), rows.T @ used[:, 0], slack, "combine")
        left = self.ops.deflate(basis, small[:, 0], self.ops.copy(X), count)
        self.same_kind(left, X, "deflate")
        agree(self.host(left), x - rows.T @ used[:, 0], slack, "deflate")
        left = self.ops.deflate(basis, small, columns, count)
        agree(self.host(left), np.zeros((SIZE, 3)), 2 * slack, "deflate of columns")
        for i, row in enumerate(rows):
            agree(self.host(self.ops.row(basis, i)), row, 0.0, f"row {i} after it was combined")

    def test_project_long(self) -> None:
        """Inner products of long rows in single precision keep its accuracy."""
        n = 200_000
        x = self.array(np.ones(n), "float32")
        basis = self.ops.store(self.ops.basis(x, 1), 0, 1.0, x)
        agree(np.asarray(self.ops.project(basis, x, 1), dtype=float), [n], 1e-6 * n, "a product of 200000 ones")

    @drawn(3)
    def test_small_problems(self, data: Draws) -> None:
        """Small tridiagonal matrices have their eigenvectors, of each part alone where they split; loops repeat."""
        like = self.array(np.zeros(2), self.wide)
        alphas, betas = self.normal(data, CAPACITY), self.normal(data, CAPACITY)
        betas[1] = 0.0
        values, vectors = self.ops.eigh_tridiagonal(self.ops.small(alphas, like), self.ops.small(betas, like))
        values, vectors = np.asarray(values, dtype=float), np.asarray(vectors, dtype=float)
        T = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
        slack = 50 * EPS[self.wide] * (1 + np.abs(T).max())
        agree(T @ vectors, vectors * values, slack, "T times its eigenvectors")
        agree(vectors.T @ vectors, np.eye(CAPACITY), slack, "products of eigenvectors")
        claim((np.diff(values) >= 0).all(), "eigenvalues do not ascend")
        parts = np.minimum(np.abs(vectors[:2]).max(axis=0), np.abs(vectors[2:]).max(axis=0))
        agree(parts, np.zeros(CAPACITY), slack, "an eigenvector of one part, on the other part,")
        total = self.ops.repeat(5, lambda i, s: s + (i + 1), self.ops.small([0.0], like))
        agree(np.asarray(total, dtype=float), [15.0], 0.0, "a loop that adds 1 .. 5")
        leading = np.asarray(self.ops.leading(self.ops.small(alphas, like), CAPACITY), dtype=float)
        agree(leading, alphas.astype(self.wide), 1e-6, "all leading entries")
