"""Parts of a Lanczos step: the unit of A, a probe of its symmetry, and conjugate gradients on the side."""

from __future__ import annotations

from ..protocols import Backend, Scalar, Vector
from ..solvers.problem import LinearProblem
from .state import LanczosState
from .tridiagonal import shifted

__all__ = ["conjugate", "conjugate_gradient_iterate", "crossed", "unit_of"]


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
    size: Scalar,
    eps: float,
) -> tuple[Scalar, ...]:
    """Pivot, transformed right-hand side, definiteness, residual, model and size of conjugate gradients' iterate.

    It ends where a pivot may be noise, or where x is so long that its product's rounding exceeds b: ||x|| is at least
    2 |model| / ||b||.
    """
    beta, following = betas
    ratio = ops.divide(beta, s.pivot)
    pivot = alpha - ratio * beta
    forward = ops.where(j > 0, -ratio * s.forward, s.norm)
    ours = counted & s.definite & (s.blocks == 1)
    last = ops.divide(forward, pivot)
    model = s.model - 0.5 * forward * last
    good = ours & (pivot > 2.0 * eps * (abs(alpha) + ratio * beta + size))
    good = good & (8.0 * eps * size * abs(model) <= s.norm * s.norm)
    return (
        ops.where(good, pivot, s.pivot),
        ops.where(good, forward, s.forward),
        ops.where(ours, good, s.definite),
        ops.where(good, abs(following * last), s.residual),
        ops.where(good, model, s.model),
        ops.where(good, s.steps + 1, s.positive),
    )


def conjugate_gradient_iterate(problem: LinearProblem, s: LanczosState) -> Vector:
    """x of A x = b in the space, or in the largest leading part of it on which A is positive definite."""
    ops = problem.operator.backend
    shift = ops.small([0.0], problem.rhs)
    found = shifted(ops, (s.alphas, s.betas), s.positive, s.norm, shift, ops.eps(problem.rhs))
    x = ops.combine(s.basis, found.h[:, 0], s.positive)
    return ops.scale(ops.divide(s.scale, s.unit), x)
