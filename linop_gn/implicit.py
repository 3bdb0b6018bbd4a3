"""The derivative of a solution, by one more solve.

x solves A x = b, so that the *defect* b - A x stays zero whatever A and b do:

    A dx = db - dA x,        and for a cotangent u of x, with A^T w = u:    u.dx = w.(db - dA x)

One product at the solution is differentiated, and one linear system is solved
with the same method; the iteration that found x plays no part in it. Where a
method stops before it converges (``steps=k``), this is the derivative of the
solution that it was after, up to errors of the size of its residuals.

This module says what a framework's :meth:`~linop_gn.protocols.Loops.implicit`
needs to know, without a framework. A method whose answer solves something else
than A x = b defines ``defect(operator, rhs, x)`` and ``tangent(operator)``, the
operator of the system above; one whose answer solves no linear system at all
sets ``defect = None``.

Reference: Christianson, Reverse accumulation and implicit functions (1998).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from .operators.base import LinearOperator
from .protocols import Vector
from .status import Status

__all__ = ["TRUSTED", "defect", "require_implicit", "tangent_method", "tangent_operator"]

TRUSTED = tuple(int(s) for s in Status if (s.succeeded or s is Status.STAGNATED) and s is not Status.BOUNDARY)
"""Statuses of runs whose answer is a solution to working precision, or to the tolerance or steps asked for."""


def require_implicit(method: Any) -> None:
    """Raise for a method whose answers have no derivative by this way.

    Raises
    ------
    NotImplementedError
        If the method has ``defect = None``.
    """
    if getattr(method, "defect", defect) is None:
        name = type(method).__name__
        raise NotImplementedError(
            f"the answer of {name} is not the solution of a linear system, so that it cannot be differentiated by one "
            "more solve. Detach its right-hand side and operator (jax.lax.stop_gradient, tensor.detach()), or solve "
            "the system with lg.CG."
        )


def defect(method: Any, operator: LinearOperator, rhs: Vector, x: Vector) -> Vector:
    """What is zero at the solution x for all values of the data: b - A x, or what the method has in its place."""
    own = getattr(method, "defect", None)
    if own is not None:
        made: Vector = own(operator, rhs, x)
        return made
    return operator.backend.subtract(rhs, operator.apply(x))


def tangent_operator(method: Any, operator: LinearOperator) -> LinearOperator:
    """The derivative of minus the defect in x: A, or what the method has in its place."""
    own = getattr(method, "tangent", None)
    made: LinearOperator = operator if own is None else own(operator)
    return made


def tangent_method(method: Any, rhs: Vector, ops: Any) -> Any:
    """The method with its tolerances relative to the right-hand side of whatever it is given next.

    An absolute tolerance belongs to b; for cotangents, of any size, it becomes the relative one that it was for b.
    """
    names = {field.name for field in dataclasses.fields(method)} if dataclasses.is_dataclass(method) else set()
    if not {"rtol", "atol"} <= names or (isinstance(method.atol, float) and method.atol == 0):
        return method
    scale = ops.power_of_two(ops.max_abs(rhs), rhs)
    scaled = ops.scale(ops.divide(1.0, scale), ops.copy(rhs))
    rtol = ops.maximum(method.rtol, ops.divide(ops.divide(method.atol, scale), ops.sqrt(ops.dot(scaled, scaled))))
    return dataclasses.replace(method, rtol=rtol, atol=0.0)
