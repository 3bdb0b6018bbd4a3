"""The state of a Lanczos process, and how a finished one goes on with room for more steps."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..protocols import Array, Backend, Scalar, Vector
from ..records import record
from ..run.status import COMPLETED, INVARIANT, RUNNING
from ..solvers.problem import LinearProblem
from .orthogonal import fresh

__all__ = ["Begun", "LanczosRow", "LanczosState", "resume", "rounding", "total"]


class LanczosState(NamedTuple):
    """A is in units of ``unit``, b in units of ``scale``; solutions are in units of scale / unit."""

    basis: Array
    """q_0 .. q_steps as rows; the last two only, in turn, where the basis is not kept."""
    alphas: Array
    betas: Array
    """betas[j] couples q_j and q_(j+1); exact zeros where a new block begins."""
    norm: Scalar
    scale: Scalar
    unit: Scalar
    size: Scalar
    """An estimate of ||A||, from T."""
    omega: Array
    omega_before: Array
    """Simon's estimates of q_i.q_j for the current j and the one before."""
    again: Scalar
    """How many vectors the next w is to be orthogonalised against, whatever the estimates say."""
    pivot: Scalar
    forward: Scalar
    definite: Scalar
    residual: Scalar
    model: Scalar
    """Of conjugate gradients, whose iterate they belong to; frozen at the last one before a pivot <= 0."""
    positive: Scalar
    """Vectors that it is made of."""
    first: Scalar
    """Size of the first block: of the Krylov space of b."""
    blocks: Scalar
    reorthogonalised: Scalar
    """Vectors that were orthogonalised against the basis."""
    removed: Scalar
    """Norm of all that was removed from them, which A Q = Q T + beta q e^T does without."""
    status: Scalar
    steps: Scalar
    products: Scalar


def rounding(eps: float, s: LanczosState, shift: Scalar, length: Scalar) -> Scalar:
    """What a residual from T may be short of: x = Q h, of a norm ``length``, in which A Q = Q T holds up to that."""
    return (4.0 * eps * (s.size + shift) + s.removed) * length


def total(s: LanczosState, residual: Scalar, length: Scalar) -> Scalar:
    """The residual of T, or that of what was removed, up to ||removed|| ||h||, if it is larger."""
    removed = s.removed * length
    return 0.5 * (residual + removed + abs(residual - removed))


class LanczosRow(NamedTuple):
    """T as it grows, and residual norm and model of the conjugate gradient iterate in the same space."""

    residual: Scalar
    model: Scalar
    alpha: Scalar
    beta: Scalar


@record
class Begun(LinearProblem):
    """A problem whose run goes on from the state that an earlier one ended in."""

    begun: Any = None


def resume(ops: Backend, problem: LinearProblem, s: LanczosState, method: Any) -> LanczosState:
    """The state at the end of a run, with room for more steps; a new block is begun where the space was invariant."""
    n, capacity, xp = problem.rhs.shape[0], method.limit(problem), ops.small_namespace()

    def sized(table: Array, size: int) -> Array:
        return xp.concat([table[:size], xp.zeros(max(0, size - table.shape[0]), dtype=table.dtype)])

    basis = ops.grow(s.basis, capacity + 1, s.steps + 1) if method.keep else ops.grow(s.basis, 2, 2)
    index = s.steps
    anew = (s.status == INVARIANT) & (s.steps < n) & method.keep
    if method.keep:

        def renew(row: Vector) -> tuple[Vector, Scalar]:
            return fresh(ops, basis, problem.operator.domain, method.seed + s.blocks, index)

        row, length = ops.branch(anew, renew, lambda row: (row, 1.0 + 0.0 * s.norm), ops.row(basis, index))
        basis = ops.store(basis, index, ops.divide(1.0, length), row)
    last = ops.maximum(index - 1, 0)
    betas = sized(s.betas, capacity)
    betas = ops.write(betas, last, ops.where(anew, 0.0, ops.lookup(betas, last)))
    more = (s.steps < capacity) & ((s.status == COMPLETED) | anew)
    watched = capacity + 1 if method.reorthogonalise == "selective" else 1
    return s._replace(
        basis=basis,
        alphas=sized(s.alphas, capacity),
        betas=betas,
        omega=sized(s.omega, watched),
        omega_before=sized(s.omega_before, watched),
        again=ops.maximum(s.again, ops.where(anew, s.steps, 0)),
        blocks=s.blocks + ops.where(anew, 1, 0),
        status=ops.where(more, RUNNING, s.status),
    )
