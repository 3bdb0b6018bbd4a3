"""The derivative of a solution, by one more solve.

x solves A x = b, so that the *defect* b - A x stays zero whatever A and b do:

    A dx = db - dA x,        and for a cotangent u of x, with A^T w = u:    u.dx = w.(db - dA x)

One product at the solution is differentiated, and one linear system is solved
with the same method; the iteration that found x plays no part in it. Where a
method stops before it converges (``steps=k``), this is the derivative of the
solution that it was after, up to errors of the size of its residuals.

Least squares has the solution of least norm, x = A^+ b, for A of any shape and
rank. As long as the rank stays what it is, with r = b - A x and z = A^+T x,

    dx = A^+ (db - dA x + A^+T dA^T r) + (I - A^+ A) dA^T z,
    u.dx = w.(db - dA x) + (A^+ w).(dA^T r) + (u - A^T w).(dA^T z)    with w = A^+T u:

three solves with the same method, with A and A^T (Golub and Pereyra 1973). Damping
makes the system regular: (A^T A + lambda I) dx = d(A^T (b - A x) - lambda x) at fixed x.

This module says, without a framework, what :meth:`~linop_gn.protocols.Loops.implicit`
needs to know. A solver whose answer solves something else than A x = b defines
``defect(operator, rhs, x)``, and ``tangent(operator)``: the operator in place of A
on the left above, and a solver for it (:class:`~linop_gn.Solver`); where that is not
``square``, its answers are taken to be of least norm.

References: Christianson, Reverse accumulation and implicit functions (1998); Golub and
Pereyra, The differentiation of pseudo-inverses and nonlinear least squares problems (1973).
"""

from __future__ import annotations

from typing import Any

from .operators.base import LinearOperator
from .protocols import Backend, Scalar, Vector
from .records import replace
from .run.status import Code, Status
from .solvers.base import Solver
from .solvers.cg import CG
from .solvers.problem import LinearProblem
from .solvers.served import inner_solve

__all__ = ["require_implicit", "tangent", "tangent_solve", "trusted"]


def trusted(solver: Solver) -> tuple[int, ...]:
    """Statuses of runs whose answer solves the solver's system: to a tolerance, to rounding, in the steps asked for."""
    other = {Code.BOUNDARY, Code.INVARIANT} | ({Code.LEAST_SQUARES} if solver.square else set())
    return tuple(int(s) for s in Status if (s.succeeded or s == Code.STAGNATED) and s not in other)


def require_implicit(solver: Solver, problem: LinearProblem, x: Vector) -> None:
    """Raise for a solver whose answers have no derivative by this way.

    Raises
    ------
    NotImplementedError
        If it does not solve a system, or one of another shape.
    """
    if not solver.solves_system or (solver.square and tuple(x.shape) != tuple(problem.rhs.shape)):
        raise NotImplementedError(
            f"the answer of {solver.title} is not the solution of a linear system, so that it cannot be "
            "differentiated by one more solve. Cut its operator and right-hand side off from what is differentiated "
            "(jax.lax.stop_gradient, detach()), or solve a system, with lg.CG."
        )


def tangent(solver: Solver, operator: LinearOperator) -> tuple[LinearOperator, Solver]:
    """Minus the derivative of the defect in x, and a solver for it."""
    operator, inner = solver.tangent(operator)
    return operator, CG(rtol=1e-12) if inner is None else inner


def tangent_solve(
    ops: Backend, solver: Solver, problem: LinearProblem, operator: LinearOperator, inverse: Any, h: Vector
) -> tuple[Vector, Scalar]:
    """``operator``^-1 h as ``solver`` solved ``problem``, and the status; ``inverse`` preconditions.

    h is brought to the size of the problem's right-hand side, for which tolerances, absolute ones too, were given.
    """
    size, own = _size(ops, problem.rhs), _size(ops, h)
    rhs = ops.scale(size, ops.scale(ops.divide(1.0, own), ops.copy(h)))
    linear = replace(problem, operator=operator, rhs=rhs, x0=None, preconditioner=inverse)
    found = inner_solve(ops, solver, linear)
    return ops.scale(own, ops.scale(ops.divide(1.0, size), found.x)), found.status


def _size(ops: Backend, v: Vector) -> Scalar:
    """A power of two near the 2-norm of v."""
    unit = ops.power_of_two(ops.max_abs(v), v)
    scaled = ops.scale(ops.divide(1.0, unit), ops.copy(v))
    return ops.power_of_two(unit * ops.sqrt(ops.dot(scaled, scaled)), v)
