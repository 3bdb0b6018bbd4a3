"""Factors: dense factorisations of small matrices against NumPy, and what they say where there is none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from .base import EPS, Draws, Kit, NDArray, agree, claim, drawn

__all__ = ["Factors"]


class Factors(Kit):
    """What direct solvers are made of."""

    def _matrix(self, data: Draws) -> tuple[str, NDArray, NDArray]:
        """A dtype, a well-conditioned general matrix and a symmetric positive definite one."""
        dtype, noise = data.draw(st.sampled_from(self.dtypes)), 0.2 * self.normal(data, 4, 4)
        general = (np.eye(4)[[1, 0, 3, 2]] * 2 + noise).astype(dtype).astype(float)  # pivots have to be looked for
        definite = (np.eye(4) + noise @ noise.T).astype(dtype).astype(float)
        return dtype, general, (definite + definite.T) / 2

    def _found(self, found: Any, expected: bool, what: str) -> None:
        if not self.compiled:
            claim(isinstance(found, (bool, np.bool_)), f"{what}: found is a {type(found).__qualname__}, not a bool")
        claim(bool(self.ops.read(found)) == expected, f"{what}: found is {found!r}, expected {expected}")

    @drawn(6)
    def test_zeros_and_identity(self, data: Draws) -> None:
        """zeros(size, like) and identity(size, like) have the dtype, the device and the columns of ``like``."""
        dtype, shape = data.draw(st.sampled_from(self.dtypes)), self.shape(data)
        like = self.array(np.ones(shape), dtype)
        zeros, eye = self.ops.zeros(3, like), self.ops.identity(3, like)
        self.same_kind(zeros, self.array(np.zeros((3, *shape[1:])), dtype), "zeros")
        self.same_kind(eye, self.array(np.eye(3), dtype), "identity")
        agree(self.host(zeros), np.zeros((3, *shape[1:])), 0.0, "zeros")
        agree(self.host(eye), np.eye(3), 0.0, "identity")

    @drawn(6)
    def test_syrk(self, data: Draws) -> None:
        """syrk(x) is x x^T."""
        dtype, shape = data.draw(st.sampled_from(self.dtypes)), data.draw(st.sampled_from([(3, 5), (5, 3), (150, 400)]))
        x = self.array(np.random.default_rng(data.draw(st.integers(0, 9))).standard_normal(shape), dtype)
        with self.untouched("syrk", x):
            made = self.ops.syrk(x)
        self.same_kind(made, self.array(np.ones((shape[0], shape[0])), dtype), "syrk")
        host = self.host(x)
        agree(self.host(made), host @ host.T, 10 * EPS[dtype] * shape[1], "syrk")

    @drawn(6)
    def test_qr(self, data: Draws) -> None:
        """qr(columns) gives orthonormal ones and a triangle, whose product the columns are; of dependent ones too."""
        dtype = data.draw(st.sampled_from(self.dtypes))
        host = self.normal(data, 6, 3)
        host[:, 2] = host[:, 2] if data.draw(st.booleans()) else host[:, 0]
        A = self.array(host, dtype)
        with self.untouched("qr", A):
            Q, R = self.ops.qr(A)
        self.same_kind(Q, A, "Q")
        tolerance = 100 * EPS[dtype] * (1 + np.linalg.norm(host))
        agree(self.host(Q) @ self.host(R), self.host(A), tolerance, "Q R")
        agree(np.tril(self.host(R), -1), np.zeros((3, 3)), tolerance, "R below its diagonal")
        agree(self.host(Q)[:, :2].T @ self.host(Q)[:, :2], np.eye(2), tolerance, "Q^T Q")

    def _solves(self, data: Draws, name: str, definite: bool) -> None:
        dtype, general, positive = self._matrix(data)
        matrix, b = positive if definite else general, self.normal(data, 4, *data.draw(st.sampled_from([(), (3,)])))
        A, B = self.array(matrix, dtype), self.array(b, dtype)
        with self.untouched(name, A, B):
            factor, found = getattr(self.ops, name)(A)
            self._found(found, True, name)
            x = getattr(self.ops, f"{name}_solve")(factor, B)
            self.same_kind(x, B, f"{name}_solve")
            residual = matrix @ self.host(x) - self.host(B)
            size = 200 * EPS[dtype] * (1 + abs(self.host(x)).max() * np.linalg.norm(matrix))
            agree(residual, np.zeros_like(residual), size, f"A x - b after {name}")
            again = getattr(self.ops, f"{name}_solve")(factor, B)
            agree(self.host(again), self.host(x), 0.0, f"{name}_solve, a second time,")

    @drawn(6)
    def test_cholesky(self, data: Draws) -> None:
        """cholesky and cholesky_solve solve a positive definite system, for vectors and columns."""
        self._solves(data, "cholesky", definite=True)

    @drawn(6)
    def test_lu(self, data: Draws) -> None:
        """lu and lu_solve solve a general system, whose rows may have to be exchanged, for vectors and columns."""
        self._solves(data, "lu", definite=False)

    @drawn(6)
    def test_upper_solve(self, data: Draws) -> None:
        """upper_solve solves with an upper triangle, for vectors and columns; what is singular has no finite answer."""
        dtype, general, _ = self._matrix(data)
        matrix = np.triu(general) + 4 * np.eye(4)
        b = self.normal(data, 4, *data.draw(st.sampled_from([(), (3,)])))
        R, B = self.array(matrix, dtype), self.array(b, dtype)
        with self.untouched("upper_solve", R, B):
            x = self.ops.upper_solve(R, B)
        self.same_kind(x, B, "upper_solve")
        size = 200 * EPS[dtype] * (1 + abs(self.host(x)).max() * np.linalg.norm(matrix))
        agree(self.host(R) @ self.host(x) - self.host(B), np.zeros_like(b), size, "R x - b after upper_solve")
        singular = self.ops.upper_solve(self.array(np.triu(general) * [1, 1, 1, 0], dtype), B)
        claim(not np.isfinite(self.host(singular)).all(), "upper_solve of a singular triangle gives finite numbers")

    @drawn(6)
    def test_eigh(self, data: Draws) -> None:
        """eigh gives eigenvalues in ascending order and orthonormal eigenvectors that make up the matrix."""
        dtype, general, _ = self._matrix(data)
        matrix = general + general.T
        A = self.array(matrix, dtype)
        with self.untouched("eigh", A):
            values, vectors, found = self.ops.eigh(A)
        self._found(found, True, "eigh")
        self.same_kind(vectors, A, "eigh")
        w, Q = self.host(values), self.host(vectors)
        size = 200 * EPS[dtype] * (1 + abs(matrix).max())
        agree(w, np.linalg.eigvalsh(matrix.astype(dtype).astype(float)), size, "eigenvalues")
        agree(Q.T @ Q, np.eye(4), size, "Q^T Q")
        agree((Q * w) @ Q.T, self.host(A), size, "Q diag(w) Q^T")

    def test_what_has_no_factor(self) -> None:
        """A factorisation that does not exist is told, never raised: indefinite, singular or not finite matrices."""
        indefinite, singular, broken = np.diag([1.0, -1.0, 2.0, 3.0]), np.diag([1.0, 0.0, 2.0, 3.0]), np.eye(4)
        broken[1, 2] = broken[2, 1] = math.nan
        for what, matrix, names in (
            ("an indefinite matrix", indefinite, ["cholesky"]),
            ("a singular matrix", singular, ["cholesky", "lu"]),
            ("a matrix with NaN", broken, ["cholesky", "lu", "eigh"]),
        ):
            for name in names:
                found = getattr(self.ops, name)(self.array(matrix, self.wide))[-1]
                self._found(found, False, f"{name} of {what}")
