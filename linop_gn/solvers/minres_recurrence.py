"""The recurrences inside MINRES: Lanczos vectors, the rotated tridiagonal matrix, and directions.

With T_k's columns (beta_k, alpha_k, beta_(k+1)) and plane rotations (c_k, s_k)::

    beta_(k+1) p_(k+1) = A v_k - alpha_k p_k - beta_k p_(k-1)         v = M p
    delta_k = c_(k-1) dbar_k + s_(k-1) alpha_k      gbar_k = s_(k-1) dbar_k - c_(k-1) alpha_k
    gamma_k = ||(gbar_k, beta_(k+1))||              c_k = gbar_k / gamma_k,  s_k = beta_(k+1) / gamma_k
    w_k = (v_k - delta_k w_(k-1) - epsilon_k w_(k-2)) / gamma_k
    phi_k = c_k phibar_(k-1)                        phibar_k = s_k phibar_(k-1)

||A r_(k-1)|| = phibar_(k-1) ||(gbar_k, c_(k-1) beta_(k+1))|| is known before step k is taken.
"""

from __future__ import annotations

from typing import NamedTuple

from ..protocols import Backend, Scalar, Vector

__all__ = ["Column", "Recurrence", "begin", "direction", "follow", "rotate"]


class Recurrence(NamedTuple):
    """What step k starts from."""

    v: Vector
    p: Vector | None
    """M^-1 v; None without a preconditioner, where it is v."""
    p_old: Vector
    w: Vector
    w_old: Vector
    beta: Scalar
    cs: Scalar
    sn: Scalar
    dbar: Scalar
    epsilon: Scalar
    phibar: Scalar


class Column(NamedTuple):
    """Column k of the triangular factor, and what follows from it."""

    delta: Scalar
    epsilon: Scalar
    dbar: Scalar
    gamma: Scalar
    cs: Scalar
    sn: Scalar
    phi: Scalar
    root: Scalar
    """||A r|| / ||r|| where the step begins."""
    length: Scalar
    """2-norm of T's column."""


def begin(ops: Backend, r: Vector, z: Vector, beta: Scalar) -> Recurrence:
    """The start from a residual r, z = M r and beta = sqrt(r.z); none of them is kept."""
    nothing, turn = ops.scalar(0.0, r), ops.divide(1.0, beta)
    return Recurrence(
        v=ops.scale(turn, ops.copy(z)),
        p=None if z is r else ops.scale(turn, ops.copy(r)),
        p_old=ops.zeros_like(r),
        w=ops.zeros_like(r),
        w_old=ops.zeros_like(r),
        beta=nothing,
        cs=ops.scalar(-1.0, r),
        sn=nothing,
        dbar=nothing,
        epsilon=nothing,
        phibar=beta,
    )


def rotate(ops: Backend, q: Recurrence, alpha: Scalar, beta: Scalar) -> Column:
    """The step's scalars, from alpha_k and beta_(k+1)."""
    gbar, dbar = q.sn * q.dbar - q.cs * alpha, -q.cs * beta
    gamma = ops.sqrt(gbar * gbar + beta * beta)
    cs = ops.divide(gbar, gamma)
    return Column(
        delta=q.cs * q.dbar + q.sn * alpha,
        epsilon=q.sn * beta,
        dbar=dbar,
        gamma=gamma,
        cs=cs,
        sn=ops.divide(beta, gamma),
        phi=cs * q.phibar,
        root=ops.sqrt(gbar * gbar + dbar * dbar),
        length=ops.sqrt(q.beta * q.beta + alpha * alpha + beta * beta),
    )


def direction(ops: Backend, q: Recurrence, c: Column, moved: Scalar, stay: Scalar) -> Vector:
    """w_k; q's w_old where ``stay``, zero where neither. Consumes q's w_old."""
    inverse = ops.where(moved, ops.divide(1.0, c.gamma), 0.0)
    w = ops.axpby(inverse, q.v, ops.where(stay, 1.0, -q.epsilon * inverse), q.w_old)
    return ops.axpy(ops.where(moved, -c.delta * inverse, 0.0), q.w, w)


def follow(
    ops: Backend,
    q: Recurrence,
    c: Column,
    w: Vector,
    y: Vector,
    z: Vector,
    beta: Scalar,
    moved: Scalar,
    stay: Scalar,
) -> Recurrence:
    """The recurrence after step k; consumes y and z = M y.

    Where ``stay`` it is as it was; where neither, it starts again from the residual y.
    """
    kept = ops.mask(moved | stay, q.w)
    turn = ops.divide(1.0, beta)

    def scalar(before: Scalar, after: Scalar, fresh: Scalar) -> Scalar:
        return ops.where(moved, after, ops.where(stay, before, fresh))

    return Recurrence(
        v=ops.select(stay, q.v, ops.scale(turn, z)),
        p=None if q.p is None else ops.select(stay, q.p, ops.scale(turn, y)),
        p_old=ops.select(stay, q.p_old, ops.mask(moved, q.v if q.p is None else q.p)),
        w=ops.select(stay, kept, w),
        w_old=ops.select(stay, w, kept),
        beta=scalar(q.beta, beta, 0.0),
        cs=scalar(q.cs, c.cs, -1.0),
        sn=scalar(q.sn, c.sn, 0.0),
        dbar=scalar(q.dbar, c.dbar, 0.0),
        epsilon=scalar(q.epsilon, c.epsilon, 0.0),
        phibar=scalar(q.phibar, c.sn * q.phibar, beta),
    )
