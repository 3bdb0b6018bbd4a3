"""Parts of a Lanczos step: the unit of A, a probe of its symmetry, and conjugate gradients on the side."""

from __future__ import annotations

from ..protocols import Backend, Scalar, Vector
from .lanczos_state import LanczosState

__all__ = ["conjugate", "crossed", "unit_of"]


def unit_of(ops: Backend, j: Scalar, w: Vector, unit: Scalar) -> Scalar:
    """The power of two that A is divided by: 1 unless the first product is far from it."""

    def measure(w: Vector) -> tuple[Scalar]:
        found = ops.power_of_two(ops.max_abs(w) * w.shape[0] ** 0.5, w)
        ordinary = (found < 2.0**20) & (found > 2.0**-20)
        return (ops.where(ordinary, 1.0, found) + 0.0 * unit,)

    return ops.branch(j == 0, measure, lambda w: (unit,), w)[0]


def crossed(ops: Backend, j: Scalar, older: Vector, w: Vector, beta: Scalar) -> Scalar:
    """How far <q_0, A q_1> is from beta_0 = <q_1, A q_0>; 0 at all other steps."""

    def compare(older: Vector, w: Vector) -> tuple[Scalar]:
        return (abs(ops.dot(older, w) - beta),)

    return ops.branch(j == 1, compare, lambda older, w: (0.0 * beta,), older, w)[0]


def conjugate(
    ops: Backend,
    s: LanczosState,
    j: Scalar,
    alpha: Scalar,
    betas: tuple[Scalar, Scalar],
    counted: Scalar,
    eps: float,
) -> tuple[Scalar, ...]:
    """Pivot, transformed right-hand side, definiteness, residual and model of conjugate gradients' iterate."""
    beta, following = betas
    ratio = ops.divide(beta, s.pivot)
    pivot = alpha - ratio * beta
    forward = ops.where(j > 0, -ratio * s.forward, s.norm)
    ours = counted & s.definite & (s.blocks == 1)
    good = ours & (pivot > 2.0 * eps * (abs(alpha) + ratio * beta))
    last = ops.divide(forward, pivot)
    return (
        ops.where(good, pivot, s.pivot),
        ops.where(good, forward, s.forward),
        ops.where(ours, good, s.definite),
        ops.where(good, abs(following * last), s.residual),
        ops.where(good, s.model - 0.5 * forward * last, s.model),
    )
