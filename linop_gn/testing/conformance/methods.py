"""A method to try loops with, Richardson's iteration x <- x + w (b - A x), and its twin in NumPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...protocols import Array, Backend, Scalar, Vector
from ...records import record, static
from ...run.status import Code

__all__ = ["Expected", "Richardson", "RichardsonRow", "RichardsonState", "System", "by_numpy"]

NDArray = np.ndarray[Any, Any]


@record
class System:
    """A x = b; with ``host``, as if a product drew data from the host."""

    matrix: Array
    rhs: Vector
    host: bool = static(default=False)

    @property
    def like(self) -> Vector:
        """A vector of the problem."""
        return self.rhs


class RichardsonState(NamedTuple):
    """The iterate, the norm of the latest residual, and the counts."""

    x: Vector
    norm: Scalar
    status: Scalar
    steps: Scalar
    ticks: Scalar


class RichardsonRow(NamedTuple):
    """What the history keeps of each step."""

    norm: Scalar
    ticks: Scalar
    seven: Scalar
    """A number that is common to all columns."""


@record
class Richardson:
    """``limit`` steps, one limit for all columns or one for each; with ``slow``, every other tick counts no step."""

    weight: Scalar = 0.5
    limit: Any = 5
    slow: bool = static(default=False)

    def init(self, ops: Backend, problem: System) -> RichardsonState:
        b = problem.rhs
        whole = ops.scalar(0, b)
        return RichardsonState(ops.zeros_like(b), ops.sqrt(ops.dot(b, b)), whole + Code.RUNNING, whole, whole)

    def step(self, ops: Backend, problem: System, s: RichardsonState) -> RichardsonState:
        running = s.status == Code.RUNNING
        r = ops.subtract(problem.rhs, problem.matrix @ s.x)
        norm = ops.where(running, ops.sqrt(ops.dot(r, r)), s.norm)
        x = ops.axpy(ops.where(running, self.weight, 0.0), r, s.x)
        ticks = s.ticks + ops.where(running, 1, 0)
        counts = running & ((ticks % 2 == 0) | (not self.slow))
        steps = s.steps + ops.where(counts, 1, 0)
        ended = ops.where(running & (steps >= self.limit), Code.COMPLETED, s.status)
        return RichardsonState(x, norm, ended, steps, ticks)

    def observe(self, state: RichardsonState) -> RichardsonRow:
        return RichardsonRow(state.norm, state.ticks, 7.0)

    def answer(self, ops: Backend, problem: System, state: RichardsonState) -> Vector:
        return state.x


class Expected(NamedTuple):
    """What a run should be."""

    x: NDArray
    norm: NDArray
    status: NDArray
    steps: NDArray
    rows: NDArray
    """(steps + 1, 3[, k])."""


def by_numpy(matrix: NDArray, rhs: NDArray, weight: float, limit: Any, slow: bool, ticks: int) -> Expected:
    """The state and the rows after at most so many ticks, in float64."""
    columns = rhs.shape[1:]
    x, norm = np.zeros_like(rhs), np.linalg.norm(rhs, axis=0)
    limits = np.broadcast_to(np.asarray(limit), columns)
    steps, taken = np.zeros(columns, dtype=int), np.zeros(columns, dtype=int)
    seven = np.full(columns, 7.0)
    rows = [np.stack([norm, taken, seven])]
    for _ in range(ticks):
        running = steps < limits
        if not running.any():
            break
        r = rhs - matrix @ x
        norm = np.where(running, np.linalg.norm(r, axis=0), norm)
        x = x + weight * np.where(running, r, 0.0)
        taken = taken + running
        steps = steps + (running & ((taken % 2 == 0) | (not slow)))
        del rows[int(np.max(steps)) :]
        rows.append(np.stack([norm, taken, seven]))
    done = np.where(steps >= limits, Code.COMPLETED, Code.RUNNING)
    return Expected(x, norm, done, steps, np.array(rows))
