"""The second pass of a Lanczos process whose vectors were not kept: they are made again, and combined on the way.

From the recorded T, one product makes each vector after the first; nothing is
measured again, so that the pass follows the first one to rounding. Solutions
with m columns of coefficients are built up together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..operators.base import LinearOperator
from ..protocols import Array, Backend, Scalar, Vector
from ..records import record
from ..run.status import COMPLETED, RUNNING

__all__ = ["Replay", "ReplayProblem"]


@record
class ReplayProblem:
    """``sum over j < count of q_j c_j`` for coefficients c (k, m), from q_0 and the T that was recorded."""

    operator: LinearOperator
    rhs: Vector
    """q_0."""
    alphas: Array
    betas: Array
    unit: Scalar
    coefficients: Array
    count: Scalar

    @property
    def like(self) -> Vector:
        """A vector of the problem."""
        return self.rhs

    @property
    def host(self) -> bool:
        """Whether a product draws data from the host."""
        return self.operator.host


class ReplayState(NamedTuple):
    """The latest two vectors, and the combinations so far."""

    q: Vector
    older: Vector
    total: Vector
    status: Scalar
    steps: Scalar
    products: Scalar


class ReplayRow(NamedTuple):
    """Products taken."""

    products: Scalar


@record
class Replay:
    """The method; its state ends with ``total`` (n, m)."""

    def init(self, ops: Backend, problem: ReplayProblem) -> ReplayState:
        q = problem.rhs
        none = ops.scalar(0, q)
        return ReplayState(
            q=ops.copy(q),
            older=ops.zeros_like(q),
            total=self._outer(ops, problem, q, none),
            status=ops.where(problem.count > 1, RUNNING, COMPLETED),
            steps=none,
            products=none,
        )

    def _outer(self, ops: Backend, problem: ReplayProblem, q: Vector, j: Scalar) -> Vector:
        """q_j c_j (n, m): the combination of a basis of one vector."""
        one = ops.store(ops.basis(q, 1), 0, 1.0, q)
        return ops.combine(one, problem.coefficients[j, :][None, :], 1)

    def step(self, ops: Backend, problem: ReplayProblem, s: ReplayState) -> ReplayState:
        running = s.status == RUNNING
        j = ops.where(running, s.steps, 0)
        alpha, beta = ops.lookup(problem.alphas, j), ops.lookup(problem.betas, j)
        before = ops.where(j > 0, ops.lookup(problem.betas, ops.maximum(j - 1, 0)), 0.0)
        w = problem.operator.apply(s.q)
        w = ops.axpby(-before, s.older, ops.divide(1.0, problem.unit), w)
        w = ops.axpy(-alpha, s.q, w)
        w = ops.scale(ops.where(running, ops.divide(1.0, beta), 0.0), w)
        part = self._outer(ops, problem, w, j + 1)
        total = ops.axpy(ops.where(running, 1.0, 0.0), part, s.total)
        steps = s.steps + ops.where(running, 1, 0)
        done = ops.where(steps + 1 >= problem.count, COMPLETED, s.status)
        return ReplayState(w, s.q, total, done, steps, s.products + ops.where(running, 1, 0))

    def observe(self, state: ReplayState) -> ReplayRow:
        return ReplayRow(state.products)

    def answer(self, ops: Backend, problem: ReplayProblem, state: ReplayState) -> Any:
        return state.total
