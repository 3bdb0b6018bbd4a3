"""The state of a Lanczos run, and the iterate of conjugate gradients in it: scalars step by step, x when asked for."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..protocols import Array, Backend, Scalar, Vector
from ..run.status import where_new
from ..solvers.problem import LinearProblem
from .tridiagonal import NOISE, shifted

__all__ = ["LanczosState", "conjugate", "conjugate_gradient_iterate", "in_basis", "rounding", "total"]


class LanczosState(NamedTuple):
    """The run for A / ascale and b / scale, whose solutions are in units of scale / ascale."""

    basis: Array
    """Rows q_0 .. q_steps; q_steps and the one before it, in turn, if the basis is not kept."""
    alphas: Array
    """alphas[j] = q_j.A q_j."""
    betas: Array
    """betas[j] = q_(j+1).A q_j; exactly zero where the process was restarted."""
    norm: Scalar
    """||b||."""
    scale: Scalar
    """A power of two near b's entries."""
    ascale: Scalar
    """A power of two near ||A||, or 1."""
    size: Scalar
    """||A||, estimated from T."""
    omega: Array
    """Simon's estimates of q_i.q_j for the current j."""
    omega_before: Array
    """The same for j - 1."""
    again: Scalar
    """The next w is orthogonalised against this many vectors at least."""
    pivot: Scalar
    """d_j of T = L D L^T: p.A p of the direction p of conjugate gradients."""
    forward: Scalar
    """z_j of L z = ||b|| e_1."""
    breadth: Scalar
    """||p||^2."""
    ahead: Scalar
    """x.p of the iterate x = Q h of conjugate gradients."""
    square: Scalar
    """||x||^2 = ||h||^2."""
    definite: Scalar
    """Whether x is the newest iterate: so far no pivot was below its noise."""
    residual: Scalar
    """||b - A x||."""
    model: Scalar
    """1/2 x.A x - b.x."""
    positive: Scalar
    """How many vectors x is made of."""
    first: Scalar
    """How many vectors were made before the first restart: the dimension of the Krylov space of b."""
    restarts: Scalar
    reorthogonalised: Scalar
    """How many vectors were orthogonalised against the basis."""
    removed: Scalar
    """2-norm of what that removed: a bound on ||A Q - Q T - beta q e^T||."""
    claim: Scalar
    """The status to end with once the next product, A x, has confirmed the residual; else ``RUNNING``."""
    status: Scalar
    steps: Scalar
    products: Scalar


def rounding(eps: float, s: LanczosState, shift: Scalar, length: Scalar) -> Scalar:
    """A bound on the error of ||b - (A + shift I) Q h|| as T gives it, for ||h|| = ``length``."""
    return (4.0 * eps * (s.size + shift) + s.removed) * length


def total(s: LanczosState, residual: Scalar, length: Scalar) -> Scalar:
    """max(residual, removed ||h||): the residual that T gives, or the error of A Q = Q T + beta q e^T."""
    removed = s.removed * length
    return 0.5 * (residual + removed + abs(residual - removed))


def conjugate(
    ops: Backend, s: LanczosState, j: Scalar, alpha: Scalar, betas: tuple[Scalar, Scalar], counted: Scalar, size: Scalar
) -> dict[str, Any]:
    """The fields of the state that describe the iterate of conjugate gradients, with one more vector.

    They stay as they are from the first pivot that may be noise, or the first x whose product has a rounding error
    above ||b||, since ||x|| >= 2 |model| / ||b||.
    """
    (beta, following), eps = betas, ops.eps(s.basis)
    ratio = ops.divide(beta, s.pivot)
    pivot = alpha - ratio * beta
    breadth = 1.0 + ratio * ratio * s.breadth
    ahead = -ratio * s.ahead
    forward = ops.where(j > 0, -ratio * s.forward, s.norm)
    ours = counted & s.definite & (s.restarts == 0)
    last = ops.divide(forward, pivot)
    model = s.model - 0.5 * forward * last
    good = ours & (pivot > NOISE * eps * size * breadth) & (8.0 * eps * size * abs(model) <= s.norm * s.norm)
    square, ahead = s.square + last * (2.0 * ahead + last * breadth), ahead + last * breadth
    residual, positive = abs(following * last), s.steps + 1
    return {
        **where_new(ops, ours, s, definite=good),
        **where_new(ops, good, s, pivot=pivot, breadth=breadth, ahead=ahead, square=square, forward=forward),
        **where_new(ops, good, s, residual=residual, model=model, positive=positive),
    }


def in_basis(ops: Backend, problem: LinearProblem, s: LanczosState) -> Vector:
    """x = Q h with T h = ||b|| e_1 for the ``positive`` leading rows of T."""
    shift = ops.small([0.0], problem.rhs)
    found = shifted(ops, (s.alphas, s.betas), s.positive, s.norm, shift, ops.eps(problem.rhs))
    return ops.combine(s.basis, found.h[:, 0], s.positive)


def conjugate_gradient_iterate(problem: LinearProblem, s: LanczosState) -> Vector:
    """The same x in the user's units."""
    ops = problem.operator.backend
    return ops.scale(ops.divide(s.scale, s.ascale), in_basis(ops, problem, s))
