"""The derivative of a solution, by one more solve.

x solves A x = b, so that the *defect* b - A x stays zero whatever A and b do:

    A dx = db - dA x,        and for a cotangent u of x, with A^T w = u:    u.dx = w.(db - dA x)

One product at the solution is differentiated, and one linear system is solved
with the same method; the iteration that found x plays no part in it. Where a
method stops before it converges (``steps=k``), this is the derivative of the
solution that it was after, up to errors of the size of its residuals.

This module says, without a framework, what :meth:`~linop_gn.protocols.Loops.implicit`
needs to know. A method whose answer solves something else than A x = b defines
``defect(operator, rhs, x)``, and ``tangent(operator)``: the operator in place of A
on the left above, and a method to solve with it. One whose answer solves no
linear system sets ``defect = None``.

Reference: Christianson, Reverse accumulation and implicit functions (1998).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from .operators.base import LinearOperator
from .protocols import Backend, Scalar, Vector
from .records import replace
from .run.status import Status
from .solvers.problem import LinearProblem

__all__ = ["defect", "require_implicit", "tangent", "tangent_solve", "trusted"]

_OF_ANOTHER_PROBLEM = (Status.BOUNDARY, Status.INVARIANT)


def trusted(method: Any) -> tuple[int, ...]:
    """Statuses of runs whose answer solves the method's system: to a tolerance, to rounding, in the steps asked for."""
    good = [s for s in Status if (s.succeeded or s is Status.STAGNATED) and s not in _OF_ANOTHER_PROBLEM]
    own = getattr(method, "defect", None) is not None
    return tuple(int(s) for s in good if own or s is not Status.LEAST_SQUARES)


def require_implicit(method: Any, problem: LinearProblem, x: Vector) -> None:
    """Raise for a method whose answers have no derivative by this way.

    Raises
    ------
    NotImplementedError
        If the method has ``defect = None``, or x is not of the right-hand side's shape and there is none.
    """
    own = getattr(method, "defect", defect)
    if own is None or (own is defect and tuple(x.shape) != tuple(problem.rhs.shape)):
        raise NotImplementedError(
            f"the answer of {type(method).__name__} is not the solution of a linear system, so that it cannot be "
            "differentiated by one more solve. Cut its operator and right-hand side off from what is differentiated "
            "(jax.lax.stop_gradient, detach()), or solve a system, with lg.CG."
        )


def defect(method: Any, operator: LinearOperator, rhs: Vector, x: Vector) -> Vector:
    """What is zero at the solution x for all values of the data: b - A x, or what the method has in its place."""
    own = getattr(method, "defect", None)
    made: Vector = operator.backend.subtract(rhs, operator.apply(x)) if own is None else own(operator, rhs, x)
    return made


def tangent(method: Any, operator: LinearOperator) -> tuple[LinearOperator, Any]:
    """The derivative of minus the defect in x, and a method for it: A and the method itself, if it has no others."""
    own = getattr(method, "tangent", None)
    made: tuple[LinearOperator, Any] = (operator, method) if own is None else own(operator)
    return made


def tangent_solve(
    ops: Backend, method: Any, problem: LinearProblem, operator: LinearOperator, inverse: Any, h: Vector
) -> tuple[Vector, Scalar]:
    """``operator``^-1 h as ``method`` solved ``problem``, and the status; ``inverse`` preconditions.

    h is brought to the size of the problem's right-hand side, for which tolerances, absolute ones too, were given.
    """
    if getattr(method, "keep", None) is not None:
        method = dataclasses.replace(method, keep=None)
    size, own = _size(ops, problem.rhs), _size(ops, h)
    rhs = ops.scale(size, ops.scale(ops.divide(1.0, own), ops.copy(h)))
    linear = replace(problem, operator=operator, rhs=rhs, x0=None, preconditioner=inverse)
    state = ops.iterate(method, linear)
    answer = ops.scale(ops.divide(1.0, size), method.answer(ops, linear, state))
    return ops.scale(own, answer), state.status


def _size(ops: Backend, v: Vector) -> Scalar:
    """A power of two near the 2-norm of v."""
    unit = ops.power_of_two(ops.max_abs(v), v)
    scaled = ops.scale(ops.divide(1.0, unit), ops.copy(v))
    return ops.power_of_two(unit * ops.sqrt(ops.dot(scaled, scaled)), v)
