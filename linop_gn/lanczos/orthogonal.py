"""Keeping a Lanczos basis orthogonal: Gram-Schmidt by matrix products, and the estimate of when it is needed.

Simon's recurrence: with omega_(j,i) = q_j.q_i, the three-term recurrences of
q_(j+1) and of q_i give, up to rounding::

    beta_j omega_(j+1,i) = beta_i omega_(j,i+1) + (alpha_i - alpha_j) omega_(j,i)
                           + beta_(i-1) omega_(j,i-1) - beta_(j-1) omega_(j-1,i)

Rounding is added with the sign that makes it worse, as in PROPACK.
"""

from __future__ import annotations

from typing import Any

from .. import draws
from ..protocols import Array, Backend, Scalar, Vector
from ..spaces import Space

__all__ = ["LEVEL", "fresh", "levels", "orthogonalise"]

LEVEL, ENOUGH = 0.75, 0.8
"""Where orthogonality to any vector is worse than eps^.75, it is restored to all vectors up to the last one for which
it is worse than eps^.8. Semi-orthogonality, sqrt(eps), would keep T accurate, but solutions only to sqrt(eps)."""


def levels(
    ops: Backend, s: Any, j: Scalar, alpha: Scalar, betas: tuple[Scalar, Scalar], rounding: Scalar
) -> tuple[Array, Scalar, Scalar]:
    """omega_(j+1, i) for all i; numbers of vectors that w and the next w are orthogonalised against.

    The state ``s`` of the process has those of j and j - 1, and T's rows before j, with zeros beyond. ``betas`` are
    beta_(j-1) and beta_j; ``rounding`` is eps ||A||.
    """
    xp, eps, now, before = ops.small_namespace(), ops.eps(s.basis), s.omega, s.omega_before
    index = xp.arange(now.shape[0])
    nothing = xp.zeros(1, now.dtype)
    # Entry j, not yet there, counts for i < j only as zero.
    past, coupled = (xp.concat([part, nothing]) for part in (s.alphas, s.betas))
    earlier = xp.concat([nothing, coupled[:-1]])
    above = xp.concat([now[1:], nothing])
    below = xp.concat([nothing, now[:-1]])
    older, length = betas
    length = xp.where(xp.asarray(length) > 0, length, 1.0)
    sums = coupled * above + (past - alpha) * now + earlier * below - older * before
    sums = sums + xp.where(sums < 0, -0.5 * rounding, 0.5 * rounding)
    level = xp.where(index < j, sums / length, 0.0)
    level = xp.where(index == j, 2.0 * rounding / length, level)
    omega = xp.where(index == j + 1, 1.0, level)
    size = xp.abs(omega)
    lost = ~(xp.max(xp.where(index <= j, size, 0.0)) <= eps**LEVEL)
    reach = xp.max(xp.where((index <= j) & ~(size <= eps**ENOUGH), index + 1, 0))
    first = ops.where(lost, ops.maximum(reach, 1), 0 * j)
    count = ops.maximum(first, s.again)
    return xp.where(index < count, 2.0 * eps, omega), count, ops.where(s.again > 0, 0 * j, first)


def orthogonalise(
    ops: Backend, basis: Array, w: Vector, length: Scalar, needed: Scalar, count: Scalar
) -> tuple[Vector, Scalar, Scalar]:
    """w, where that is needed, without its parts along the first ``count`` vectors; its norm; that of these parts.

    Consumes w. A second pass follows where the first has removed much: it would have left as much rounding.
    """

    def twice(w: Vector, length: Scalar) -> tuple[Vector, Scalar, Scalar]:
        w, less, removed = once(ops, basis, w, count)
        again = less < 0.7 * length
        w, less = ops.branch(again, lambda w, _: once(ops, basis, w, count)[:2], lambda w, less: (w, less), w, less)
        return w, less, removed

    def leave(w: Vector, length: Scalar) -> tuple[Vector, Scalar, Scalar]:
        return w, length, 0.0 * length

    return ops.branch(needed, twice, leave, w, length)


def once(ops: Backend, basis: Array, w: Vector, count: Scalar) -> tuple[Vector, Scalar, Scalar]:
    """One pass of classical Gram-Schmidt: w, its norm, and the norm of what was removed. Consumes w."""
    parts = ops.project(basis, w, count)
    w = ops.deflate(basis, parts, w, count)
    xp = ops.small_namespace()
    return w, ops.sqrt(ops.dot(w, w)), ops.item(xp.sqrt(xp.sum(parts * parts)))


def fresh(ops: Backend, basis: Array, space: Space, seed: Scalar, count: Scalar) -> tuple[Vector, Scalar]:
    """A random vector orthogonal to the first ``count`` of a basis, and its norm."""
    w = draws.normal(space, seed, 1)[:, 0]
    w, _, _ = once(ops, basis, w, count)
    w, length, _ = once(ops, basis, w, count)
    return w, length
