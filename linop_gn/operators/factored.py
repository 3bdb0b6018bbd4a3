"""Kronecker products of two small matrices, by their factors or by their eigenvectors.

On matrices V (groups, outputs, inputs), with L, R symmetric positive semi-definite and U, W their eigenvectors,

    Factored    V -> L V R                                   the matrix  L (x) R
    Spectral    V -> U ((U^T V W) * values) W^T              (U (x) W) diag(values) (U (x) W)^T

A factor may be a diagonal, whose eigenvectors are the unit vectors. The inverse of a damped product is spectral,

    exact       1 / (l_i r_j + damping)
    heuristic   1 / ((l_i + sqrt(damping) / pi) (r_j + sqrt(damping) pi)),   pi^2 = (tr R / dim R) / (tr L / dim L),

the second the inverse of a Kronecker product again (Martens and Grosse, *Optimizing neural networks with
Kronecker-factored approximate curvature*, 2015, section 6.3), which damps more than it says.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any

import numpy as np

from ..protocols import Array, Backend, Scalar
from ..records import record

__all__ = ["Factored", "Spectral", "positive", "traces"]


@record
class Factored:
    """L (x) R for each group: factors (groups, n, n), or their diagonals (groups, n)."""

    left: Array
    right: Array

    def product(self, xp: Any, V: Array) -> Array:
        """L V R."""
        return _times_right(xp, _times_left(xp, self.left, V), self.right)

    def trace(self, xp: Any) -> Array:
        """The sum over groups of tr L tr R."""
        return xp.sum(traces(xp, self.left) * traces(xp, self.right))

    def square(self, xp: Any) -> Array:
        """The square of the Frobenius norm."""
        return xp.sum(_squares(xp, self.left) * _squares(xp, self.right))

    def diagonal(self, xp: Any) -> Array:
        """The diagonal, as matrices."""
        return _diagonals(xp, self.left)[:, :, None] * _diagonals(xp, self.right)[:, None, :]

    def spectral(self, ops: Backend) -> Spectral:
        """The same by eigenvectors; eigenvalues that rounding cannot tell from zero are zero."""
        (l, U), (r, W) = _eigen(ops, self.left), _eigen(ops, self.right)
        return Spectral(U, W, l[:, :, None] * r[:, None, :], l, r)


@record
class Spectral:
    """(U (x) W) diag(values) (U (x) W)^T for each group; eigenvectors None are the unit vectors."""

    left: Array | None
    right: Array | None
    values: Array
    """(groups, outputs, inputs)."""
    left_values: Array | None = None
    right_values: Array | None = None
    """The eigenvalues of the factors, where ``values`` are their products."""

    def product(self, xp: Any, V: Array) -> Array:
        """U ((U^T V W) * values) W^T."""
        inside = self.values * self.in_basis(xp, V)
        if self.left is not None:
            inside = xp.matmul(self.left, inside)
        return inside if self.right is None else xp.matmul(inside, xp.matrix_transpose(self.right))

    def in_basis(self, xp: Any, V: Array) -> Array:
        """U^T V W."""
        if self.left is not None:
            V = xp.matmul(xp.matrix_transpose(self.left), V)
        return V if self.right is None else xp.matmul(V, self.right)

    def trace(self, xp: Any) -> Array:
        """The sum of the values."""
        return xp.sum(self.values)

    def square(self, xp: Any) -> Array:
        """The square of the Frobenius norm."""
        return xp.sum(self.values * self.values)

    def diagonal(self, xp: Any) -> Array:
        """The diagonal, as matrices."""
        made = self.values
        if self.left is not None:
            made = xp.matmul(self.left * self.left, made)
        return made if self.right is None else xp.matmul(made, xp.matrix_transpose(self.right * self.right))

    def spectral(self, ops: Backend) -> Spectral:
        """Itself."""
        return self

    def inverse(self, xp: Any, damping: Scalar, rule: str) -> Spectral:
        """The inverse of it, damped; zero where there is nothing to invert."""
        if rule == "heuristic":
            assert self.left_values is not None
            assert self.right_values is not None
            l, r = self.left_values, self.right_values
            means = [xp.mean(side, axis=-1, keepdims=True) for side in (l, r)]
            known = (means[0] > 0) & (means[1] > 0)
            pi = xp.where(known, xp.where(known, means[1], 1.0) / xp.where(known, means[0], 1.0), 1.0) ** 0.5
            root = damping**0.5
            sums = (l + root / pi)[:, :, None] * (r + root * pi)[:, None, :]
        else:
            sums = self.values + damping
        good = sums > 0
        return Spectral(self.left, self.right, xp.where(good, 1.0 / xp.where(good, sums, 1.0), 0.0 * sums))


def _times_left(xp: Any, L: Array, V: Array) -> Array:
    return L[:, :, None] * V if len(L.shape) == 2 else xp.matmul(L, V)


def _times_right(xp: Any, V: Array, R: Array) -> Array:
    return V * R[:, None, :] if len(R.shape) == 2 else xp.matmul(V, R)


def _diagonals(xp: Any, factor: Array) -> Array:
    return factor if len(factor.shape) == 2 else xp.linalg.diagonal(factor)


def traces(xp: Any, factor: Array) -> Array:
    """The trace of each group (groups,)."""
    return xp.sum(_diagonals(xp, factor), axis=-1)


def _squares(xp: Any, factor: Array) -> Array:
    return xp.sum(xp.sum(factor * factor, axis=-1), axis=tuple(range(1, len(factor.shape) - 1)))


def _eigen(ops: Backend, factor: Array) -> tuple[Array, Array | None]:
    """Eigenvalues (groups, n) and eigenvectors (groups, n, n); of a diagonal itself, and None."""
    xp = ops.namespace()
    if len(factor.shape) == 2:
        return xp.where(factor > 0, factor, 0.0 * factor), None
    values, vectors = _of_groups(ops, 0.5 * (factor + xp.matrix_transpose(factor)))
    return positive(ops, values), vectors


def positive(ops: Backend, values: Array) -> Array:
    """The eigenvalues of each group (groups, ...), those that rounding cannot tell from zero as zeros."""
    xp, axes = ops.namespace(), tuple(range(1, len(values.shape)))
    least = max(values.shape[1:]) * ops.eps(values) * xp.max(values, axis=axes, keepdims=True)
    return xp.where(values > least, values, 0.0 * values)


def _of_groups(ops: Backend, factor: Array) -> tuple[Array, Array]:
    """Those of all groups at once where there are several, unless that fails for one of them."""
    xp = ops.namespace()
    if factor.shape[0] > 1:
        with suppress(RuntimeError, np.linalg.LinAlgError):  # of torch, of NumPy
            values, vectors = xp.linalg.eigh(factor)
            if not ops.is_concrete(values) or ops.all_finite(xp.reshape(values, (-1,))):
                return values, vectors
    pairs = [_eigh(ops, factor[i, ...]) for i in range(factor.shape[0])]
    values, vectors = (xp.stack(list(side)) for side in zip(*pairs, strict=True))
    return values, vectors


def _eigh(ops: Backend, matrix: Array) -> tuple[Array, Array]:
    values, vectors, found = ops.eigh(matrix)
    if ops.is_concrete(found) and not bool(found):
        host = np.asarray(ops.to_numpy(matrix), np.float64)
        if not np.isfinite(host).all():
            raise ValueError(
                "a Kronecker factor holds NaN or infinity: the model's gradients are not finite at these parameters, "
                "or squares of them overflow."
            )
        warnings.warn(
            f"the eigenvectors of a factor of {matrix.shape[0]} x {matrix.shape[0]} were not found in "
            f"{ops.describe(matrix)[1]}, and were computed in float64.",
            RuntimeWarning,
            stacklevel=2,
        )
        _, dtype, device = ops.describe(matrix)
        values, vectors = (ops.asarray(x, dtype, device) for x in np.linalg.eigh(host))
    return values, vectors
