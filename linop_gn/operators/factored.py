"""Kronecker products of two small matrices, by their factors or by their eigenvectors.

On matrices V (groups, outputs, inputs), with L, R symmetric positive semi-definite and U, W their eigenvectors,

    Factored    V -> L V R                                   the matrix  L (x) R
    Spectral    V -> U ((U^T V W) * values) W^T              (U (x) W) diag(values) (U (x) W)^T

A factor may be a diagonal, whose eigenvectors are the unit vectors. The inverse of a damped product is spectral,

    exact       1 / (l_i r_j + damping)
    heuristic   1 / ((l_i + sqrt(damping) / pi) (r_j + sqrt(damping) pi)),   pi^2 = (tr R / dim R) / (tr L / dim L),
                1 / ((s l_i / m + sqrt(damping)) (s r_j / n + sqrt(damping))),   m, n the two means, s^2 = m n,

the last two the same, the inverse of a Kronecker product again (Martens and Grosse, *Optimizing neural networks with
Kronecker-factored approximate curvature*, 2015, section 6.3), which damps more than it says.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any

import numpy as np

from ..protocols import Array, Backend, Scalar
from ..records import record
from ..spaces import wide
from .checks import SYMMETRY_TOLERANCE
from .norms import norm_of, norms_of

__all__ = ["Factored", "Spectral", "positive", "traces", "widened"]


@record
class Factored:
    """L (x) R for each group: factors (groups, n, n), or their diagonals (groups, n)."""

    left: Array
    right: Array

    def product(self, xp: Any, V: Array) -> Array:
        """L V R."""
        return _times_right(xp, _times_left(xp, self.left, V), self.right)

    def trace(self, ops: Backend) -> Array:
        """The sum over groups of tr L tr R."""
        xp = ops.namespace()
        return xp.sum(traces(xp, widened(ops, self.left)) * traces(xp, widened(ops, self.right)))

    def norm(self, ops: Backend) -> Scalar:
        """The Frobenius norm: of a group it is the product of the factors' norms."""
        return norm_of(ops, norms_of(ops, self.left) * norms_of(ops, self.right))

    def diagonal(self, xp: Any) -> Array:
        """The diagonal, as matrices."""
        return _diagonals(xp, self.left)[:, :, None] * _diagonals(xp, self.right)[:, None, :]

    def spectral(self, ops: Backend) -> Spectral:
        """The same by eigenvectors, in single precision at least.

        Eigenvalues that rounding cannot tell from zero are zero.
        """
        (l, U), (r, W) = (_eigen(ops, widened(ops, side)) for side in (self.left, self.right))
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

    def trace(self, ops: Backend) -> Array:
        """The sum of the values."""
        return ops.namespace().sum(widened(ops, self.values))

    def norm(self, ops: Backend) -> Scalar:
        """The Frobenius norm."""
        return norm_of(ops, self.values)

    def root(self, xp: Any) -> Spectral:
        """The root that is symmetric and psd."""
        return Spectral(self.left, self.right, xp.sqrt(self.values))

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
            means = [xp.where(known, mean, xp.ones_like(mean)) for mean in means]
            size, root = xp.sqrt(means[0]) * xp.sqrt(means[1]), damping**0.5  # no quotient of means, which may overflow
            l, r = (size * (side / mean) + root for side, mean in zip((l, r), means, strict=True))
            sums = l[:, :, None] * r[:, None, :]
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


def widened(ops: Backend, x: Array) -> Array:
    """In single precision at least."""
    return ops.cast(x, wide(ops.describe(x)[1]))


def traces(xp: Any, factor: Array) -> Array:
    """The trace of each group (groups,)."""
    return xp.sum(_diagonals(xp, factor), axis=-1)


def _eigen(ops: Backend, factor: Array) -> tuple[Array, Array | None]:
    """Eigenvalues (groups, n) and eigenvectors (groups, n, n); of a diagonal itself, and None."""
    xp = ops.namespace()
    if len(factor.shape) == 2:
        return _clipped(ops, factor, 0.0 * factor), None
    values, vectors = _of_groups(ops, 0.5 * (factor + xp.matrix_transpose(factor)))
    return positive(ops, values), vectors


def positive(ops: Backend, values: Array) -> Array:
    """The eigenvalues of each group (groups, ...), those that rounding cannot tell from zero as zeros.

    A negative one that is no rounding is an error where it can be read, and makes its group NaN in a trace.
    """
    xp, axes = ops.namespace(), tuple(range(1, len(values.shape)))
    return _clipped(ops, values, max(values.shape[1:]) * ops.eps(values) * xp.max(values, axis=axes, keepdims=True))


def _clipped(ops: Backend, values: Array, least: Array) -> Array:
    if 0 in values.shape:
        return values
    xp, axes = ops.namespace(), tuple(range(1, len(values.shape)))
    lowest, size = xp.min(values, axis=axes, keepdims=True), xp.max(xp.abs(values), axis=axes, keepdims=True)
    allowed = max(SYMMETRY_TOLERANCE, *values.shape[1:]) * ops.eps(values)
    wrong = lowest < -allowed * size
    if ops.is_concrete(wrong) and bool(xp.any(wrong)):
        raise ValueError(
            f"a Kronecker factor has the eigenvalue {float(xp.min(xp.where(wrong, lowest, 0.0 * lowest))):.3g} (their "
            f"sizes reach {float(xp.max(size)):.3g}), so that it is not positive semi-definite, as this operator is "
            "taken to be: look for an error in the factors, or keep what is indefinite in lg.Dense."
        )
    return xp.where(wrong, xp.nan, xp.where(values > least, values, 0.0 * values))


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
