"""Keeping a Lanczos basis orthogonal: Gram-Schmidt by matrix products, and the estimate of when it is needed.

Simon's recurrence: with omega_(j,i) = q_j.q_i, the three-term recurrences of
q_(j+1) and of q_i give, up to rounding::

    beta_j omega_(j+1,i) = beta_i omega_(j,i+1) + (alpha_i - alpha_j) omega_(j,i)
                           + beta_(i-1) omega_(j,i-1) - beta_(j-1) omega_(j-1,i)

Rounding is added with the sign that makes it worse, as in PROPACK.
"""

from __future__ import annotations

from .. import draws
from ..protocols import Array, Backend, Scalar, Vector
from ..spaces import Space

__all__ = ["fresh", "levels", "orthogonalise"]


def levels(
    ops: Backend,
    omegas: tuple[Array, Array],
    T: tuple[Array, Array],
    j: Scalar,
    alpha: Scalar,
    betas: tuple[Scalar, Scalar],
    rounding: Scalar,
) -> Array:
    """omega_(j+1, i) for all i, from those of j and j - 1; ``betas`` are beta_(j-1) and beta_j.

    ``T`` holds the rows before j, with zeros beyond; ``rounding`` is eps ||A||.
    """
    xp = ops.small_namespace()
    now, before = omegas
    index = xp.arange(now.shape[0])
    nothing = xp.zeros(1, now.dtype)
    past, coupled = (xp.concat([part, nothing]) for part in T)  # entry j, not yet there, counts for i < j only as zero
    earlier = xp.concat([nothing, coupled[:-1]])
    above = xp.concat([now[1:], nothing])
    below = xp.concat([nothing, now[:-1]])
    older, length = betas
    sums = coupled * above + (past - alpha) * now + earlier * below - older * before
    sums = sums + xp.where(sums < 0, -0.5 * rounding, 0.5 * rounding)
    level = xp.where(index < j, sums / xp.where(xp.asarray(length) > 0, length, 1.0), 0.0)
    level = xp.where(index == j, 2.0 * rounding / xp.where(xp.asarray(length) > 0, length, 1.0), level)
    return xp.where(index == j + 1, 1.0, level)


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
