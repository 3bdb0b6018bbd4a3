"""Estimates that leave out one probe at a time, from small matrices: XTrace and XNysTrace.

Epperly, Tropp and Webber, *XTrace: Making the most of every sample in stochastic
trace estimation* (2024). Each of k probes omega_i serves twice. The others span
a low-rank approximation of A, whose trace is known; on what that leaves over,
omega_i is Hutchinson's probe. With Y = A Omega = Q R, leaving out a probe is a
change of rank one:

* XTrace: the projector on the range of the other products is Q (I - s s^T) Q^T,
  with s the normalised i-th column of R^-T.
* XNysTrace, for A >= 0: the Nystrom approximation Y H^-1 Y^T with H = Omega^T Y
  loses s s^T, with s = Q R H^-1 e_i / (e_i^T H^-1 e_i)^(1/2).

In either case omega_i only counts outside of a known space, and is therefore
projected out of it and brought back to the length that such a vector has on
average ("resphering"; section 2.3 there): what is left over, if it is a multiple
of the identity, then has no variance at all.

The k estimates share all of their probes but one, so that their scatter over
sqrt(k), the error that is published with them, is too small where eigenvalues
decay: true values lay within 1.96 of it in 41 to 95 runs of 100. The error here
is the jackknife's: the whole estimator without probe i, which leaves out pairs
(i, j), has a closed form as well, and by the inequality of Efron and Stein (1981)
its scatter is too large rather than too small.

All functions take small matrices (k, k) whose first ``count`` rows and columns
are in use, with zeros beyond.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ..protocols import Array, Backend, Scalar

__all__ = ["Sketch", "bordered", "entering", "extended", "inverse_basis", "jackknife"]
__all__ += ["left_out_basis", "left_out_nystrom", "nystrom_root", "orthogonal_block", "placed"]

ROUNDING = 8.0
"""A product adds no direction to the basis if what it adds is below ROUNDING eps of it."""


class Sketch(NamedTuple):
    """Probes Omega, Q and Z = A Q as rows; the small matrices that they make."""

    probes: Array
    basis: Array
    """Zero where a product added no direction."""
    images: Any
    R: Array
    W: Array
    """Q^T Omega; of XNysTrace Omega^T Omega."""
    H: Array
    """Q^T A Q; of XNysTrace Omega^T Y."""
    T: Any
    """Q^T A^T Omega; XNysTrace has none."""
    lengths: Array
    """Squared lengths of probes."""
    kept: Array
    """1 for a row of the basis that is no zero."""
    shift: Scalar
    """nu: of XNysTrace, whose products are those of A + nu I."""


def entering(ops: Backend, k: int, first: Scalar, block: int, like: Array) -> Array:
    """The small matrix (k, block) that puts columns at ``first`` and following."""
    xp = ops.small_namespace()
    return xp.asarray(xp.arange(k)[:, None] == first + xp.arange(block)[None, :], dtype=like.dtype)


def placed(
    ops: Backend, M: Array, E: Array, left: tuple[Array, Array], right: tuple[Array, Array], first: Scalar
) -> Array:
    """M = L^T X with new rows L and new columns X: ``left`` and ``right`` are (all rows, the new ones as columns)."""
    (L, new_left), (X, new_right) = left, right
    columns = ops.project(L, new_right, first + E.shape[1])
    return M + columns @ E.T + E @ ops.project(X, new_left, first).T


def bordered(ops: Backend, M: Array, E: Array, columns: Array, first: Scalar) -> Array:
    """The symmetric M with new columns (k, b), and rows."""
    xp = ops.small_namespace()
    return M + columns @ E.T + E @ xp.where(xp.arange(M.shape[0])[:, None] < first, columns, 0.0).T


def extended(ops: Backend, rows: Array, columns: Array, first: Scalar) -> Array:
    """The rows with columns (n, b) put in at ``first`` and following, where a program has zeros; consumes the rows."""
    if columns.shape[1] == rows.shape[0]:
        return ops.copy(columns.T)
    if not isinstance(first, int):  # in a program one matrix product is compiled in less time than many stores
        E = entering(ops, rows.shape[0], first, columns.shape[1], ops.small([0.0], columns))
        return rows + ops.combine(columns.T, E.T, columns.shape[1]).T
    for i in range(columns.shape[1]):
        rows = ops.store(rows, first + i, 1.0, columns[:, i])
    return rows


def orthogonal_block(ops: Backend, basis: Array, Y: Array, first: Scalar) -> tuple[Array, Array, Array]:
    """Q (n, b), orthonormal and orthogonal to the basis, with Y = basis^T C + Q R; the small matrices C and R.

    Block Gram-Schmidt, twice (Barlow and Smoktunowicz, 2013). Consumes Y.
    """
    qr, like = ops.qr, Y
    if Y.shape[1] == basis.shape[0]:  # all at once
        Q, R = qr(Y)
        R = ops.small(R, like)
        return Q, 0.0 * R, R
    C = ops.project(basis, Y, first)
    Q, R = qr(ops.axpy(-1.0, ops.combine(basis, C, first), Y))
    again = ops.project(basis, Q, first)
    Q, more = qr(ops.axpy(-1.0, ops.combine(basis, again, first), ops.copy(Q)))
    R, more = ops.small(R, like), ops.small(more, like)
    return Q, C + again @ R, more @ R


def inside(ops: Backend, M: Array, count: Scalar) -> Array:
    """The leading block of M where the count is known, M in a compiled program."""
    return ops.leading(ops.leading(M, count).T, count).T


def with_diagonal(xp: Any, M: Array, diagonal: Array) -> Array:
    """M with another diagonal."""
    return xp.where(xp.eye(M.shape[0], dtype=M.dtype) > 0, diagonal[None, :], M)


def inverse_basis(ops: Backend, R: Array, eps: float) -> Array:
    """The columns of R^-T, normalised; R with entries at the level of rounding in place of zeros on its diagonal."""
    xp = ops.small_namespace()
    d, size = xp.diagonal(R), xp.max(xp.abs(R))
    least = xp.where(size > 0, eps * size, 1.0)
    S = xp.linalg.inv(with_diagonal(xp, R, xp.where(xp.abs(d) > least, d, least))).T
    S = S / xp.max(xp.abs(S), axis=0)
    return S / xp.sqrt(xp.sum(S * S, axis=0))


def left_out_basis(ops: Backend, s: Sketch, n: int, count: Scalar, eps: float) -> tuple[Array, Array]:
    """XTrace's estimates (k,), one for each probe j left out; (k, k), for j with i left out as well.

    What stands beyond ``count``, and on the diagonal, has no meaning.
    """
    xp = ops.small_namespace()
    R, W, H, T = (inside(ops, M, count) for M in (s.R, s.W, s.H, s.T))
    lengths, kept = (ops.leading(part, count) for part in (s.lengths, s.kept))
    live = xp.arange(R.shape[0]) < count

    def paired(A: Array, B: Array) -> Array:
        return xp.sum(A * B, axis=0)

    S = inverse_basis(ops, with_diagonal(xp, R, xp.where(live, xp.diagonal(R), 1.0)), eps)
    whole, rank, outside = xp.linalg.trace(H), xp.sum(kept), lengths - paired(W, W)
    common = paired(W, H @ W) - paired(T, W)
    SW, SHS, SKS = S.T @ W, S.T @ H @ S, S.T @ (kept[:, None] * S)
    rest = S.T @ (T - H.T @ W + R - H @ W)
    a, b, h, k = (xp.diagonal(M) for M in (SW, rest, SHS, SKS))
    one = whole - h + (common + a * b + a * a * h) * (n - rank + k) / (outside + a * a)

    # The same for probe j without probe i, whose s_i and s_j span what is left out.
    angle = S.T @ S
    apart = xp.maximum(1.0 - angle * angle, eps)
    g, f = (SW - angle * a[None, :]) / apart, (a[None, :] - angle * SW) / apart
    lost = (h[:, None] + h[None, :] - angle * (SHS + SHS.T)) / apart
    freed = (k[:, None] + k[None, :] - 2.0 * angle * SKS) / apart
    inner = g * g * h[:, None] + f * f * h[None, :] + g * f * (SHS + SHS.T)
    outer = common[None, :] + g * rest + f * b[None, :] + inner
    two = whole - lost + outer * (n - rank + freed) / (outside[None, :] + g * SW + f * a[None, :])
    return one, two


def left_out_nystrom(ops: Backend, s: Sketch, n: int, count: Scalar, eps: float) -> tuple[Array, Array, Array]:
    """XNysTrace's estimates (k,) and (k, k), as those of XTrace; whether H = Omega^T Y is definite up to rounding."""
    xp = ops.small_namespace()
    R, H, M = (inside(ops, part, count) for part in (s.R, s.H, s.W))
    live = xp.arange(M.shape[0]) < count
    P, definite = nystrom_root(ops, H, live, eps)
    F = R @ P
    D = xp.linalg.inv(with_diagonal(xp, M, xp.where(live, xp.diagonal(M), 1.0)))
    K, B = P @ P.T, F @ P.T
    N = B.T @ B
    k, d, b = (xp.diagonal(part) for part in (K, D, N))
    k = xp.where(k > 0, k, xp.inf)  # of the zero operator
    whole = xp.sum(F * F) - s.shift * n
    one = whole - b / k + d / k * (n - count + 1)

    # The same for probe j without probe i: Schur complements of two by two.
    kk, dd = k[:, None] * k[None, :], d[:, None] * d[None, :]
    apart, away = xp.maximum(kk - K * K, eps * kk), xp.maximum(dd - D * D, eps * dd)
    lost = (k[None, :] * b[:, None] + k[:, None] * b[None, :] - 2.0 * K * N) / apart
    two = whole - lost + k[:, None] / apart * (away / d[:, None]) * (n - count + 2)
    return one, two, definite


def nystrom_root(ops: Backend, H: Array, live: Array, eps: float) -> tuple[Array, Array]:
    """P with P P^T = H^-1 for the rows that are in use; whether H is symmetric and PSD, up to rounding."""
    xp = ops.small_namespace()
    finite = xp.all(xp.isfinite(H))
    skew = xp.max(xp.abs(H - H.T)) > eps ** (1 / 3) * xp.max(xp.abs(H))
    d, V = xp.linalg.eigh(xp.where(finite, (H + H.T) / 2, 0.0))
    definite = ~((d[0] < -100.0 * H.shape[0] ** 0.5 * eps * xp.max(xp.abs(d))) | skew)
    d = xp.maximum(d, eps * xp.max(d))
    P = V * xp.where(d > 0, 1.0 / xp.sqrt(xp.where(d > 0, d, 1.0)), 0.0)
    return xp.where(finite, xp.where(live[:, None], P, 0.0), xp.nan), definite


def jackknife(ops: Backend, one: Array, two: Array, count: Scalar, eps: float) -> tuple[Scalar, Scalar]:
    """The mean of the estimates, and its standard error: the jackknife's, or their scatter's if that is larger.

    Not less than 4 eps sqrt(count) times the mean: rounding.
    """
    xp, index = ops.small_namespace(), ops.small_namespace().arange(one.shape[0])
    live, number = index < count, 1.0 * count

    def spread(values: Array) -> tuple[Array, Array]:
        mean = xp.sum(xp.where(live, values, 0.0)) / number
        return mean, xp.sum(xp.where(live, (values - mean) ** 2, 0.0))

    mean, scatter = spread(one)
    pairs = live[None, :] & (index[:, None] != index[None, :])
    without = xp.sum(xp.where(pairs, two, 0.0), axis=1) / ops.maximum(number - 1.0, 1.0)
    moved = spread(without)[1] * (number - 1.0) / number
    scatter = ops.sqrt(ops.divide(ops.item(scatter), number * (number - 1.0)))
    moved = ops.sqrt(ops.item(moved))
    error = ops.where(ops.isfinite(moved), ops.maximum(moved, scatter), scatter)
    mean = ops.item(mean)
    error = ops.maximum(error, 4.0 * eps * ops.sqrt(number) * abs(mean))
    return mean, ops.where(count > 1, error, math.inf)
