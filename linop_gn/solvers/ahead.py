"""Steps that are taken before a scalar is looked at, for devices where a look is dear.

On a GPU reading a number waits for all that was asked for before it. A run of so many steps needs none to go on: what
the vectors are made with may stay where they are. So up to 32 steps are queued (:meth:`linop_gn.Solver.ahead`), their
inner products are read together, and the solver's own step is taken once more for each with these numbers, and no
vectors, to judge it. Where one of them was not ordinary, the vectors from before are still there: the steps are lost,
and are taken again one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import optree

from ..protocols import Scalar, Vector
from ..records import replace
from ..run.status import Code
from .problem import LinearProblem

__all__ = ["states_ahead"]

MOST = 32
"""Steps between looks; so many are lost where one was not ordinary."""


class _UnusualError(Exception):
    """A step asks for what an ordinary one does not."""


class _Known:
    """A backend's arithmetic where the numbers of a step are known: vectors are left as they are."""

    def __init__(self, ops: Any) -> None:
        self._ops = ops
        self.numbers: Iterator[float] = iter(())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def dot(self, x: Vector, y: Vector) -> Scalar:
        for number in self.numbers:
            return number
        raise _UnusualError

    def max_abs(self, x: Vector) -> Scalar:
        raise _UnusualError

    def project(self, basis: Any, x: Vector, count: Scalar) -> Any:
        return np.array([self.dot(x, x)]) ** 0.5  # the norm of the parts, for the parts

    def scale(self, a: Scalar, x: Vector) -> Vector:
        return x

    def axpy(self, a: Scalar, x: Vector, y: Vector) -> Vector:
        return y

    def axpby(self, a: Scalar, x: Vector, b: Scalar, y: Vector) -> Vector:
        return y

    def subtract(self, x: Vector, y: Vector) -> Vector:
        return y

    def deflate(self, basis: Any, coefficients: Any, x: Vector, count: Scalar) -> Vector:
        return x

    def store(self, basis: Any, index: Scalar, a: Scalar, x: Vector) -> Any:
        return basis


class _Applied:
    """An operator whose products are known."""

    def __init__(self, operator: Any, product: Vector) -> None:
        self._operator, self._product = operator, product

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operator, name)

    def apply(self, v: Vector) -> Vector:
        return self._product


def states_ahead(solver: Any, ops: Any, problem: LinearProblem, s: Any) -> Iterator[Any]:
    """The next states of a run for as long as the solver tells how many steps may be taken ahead of their numbers.

    ``ops`` is arithmetic whose numbers stay where vectors are; it has ``read``, of all that inner products have told
    since the last time, and the ordinary ``backend``. Of the states that come together the last one's vectors are its
    own.
    """
    known = _Known(ops.backend)
    inner, like = problem.preconditioner, problem.rhs
    told: Any = _Applied(problem.operator, like), None if inner is None else _Applied(inner, like)
    told = replace(problem, operator=told[0], preconditioner=told[1])
    while s.status == Code.RUNNING:
        steps = solver.steps_ahead(problem, s)
        if steps is None:
            return
        if steps < 1:
            s = solver.step(ops.backend, problem, s)
            yield s
            continue
        steps = min(steps, MOST)
        reached = solver.ahead(ops, problem, s, steps)
        made = [reached]
        for numbers in ops.read(steps):
            known.numbers = iter(numbers)
            after = _judged(solver, known, told, made[-1])
            if after is None:
                break
            made.append(after)
        lost = steps + 1 - len(made)
        if lost and reached is not s:
            made, lost = [s], steps
        made[1:] = [_with_vectors(ops.backend, reached, after) for after in made[1:]]
        yield from made[1:]
        s = made[-1]
        if lost:
            yield s._replace(products=s.products + lost)
            return


def _judged(solver: Any, known: _Known, problem: LinearProblem, s: Any) -> Any:
    """The state after ``s``, by the step's numbers; None if it was no ordinary step."""
    try:
        after = solver.step(known, problem, s)
    except _UnusualError:
        return None
    usual = after.status == Code.RUNNING and after.steps == s.steps + 1 and next(known.numbers, None) is None
    return after if usual else None


def _with_vectors(ops: Any, vectors: Any, scalars: Any) -> Any:
    """The state whose arrays are those of one state, and whose scalars are those of another."""
    return optree.tree_map(lambda x, a: x if ops.is_array(x) else a, vectors, scalars, namespace=ops.tree_namespace)
