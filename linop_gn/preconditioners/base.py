"""What recipes have in common: a check of what they prepared, the live damping, the point of an operator."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any

from ..curvature.point import Point
from ..operators.base import LinearOperator
from ..operators.congruence import Congruence
from ..operators.damped import undamped
from ..protocols import Array, Backend, Scalar
from ..records import data_fields, record
from ..solvers.problem import Recipe, finished
from ..spaces import Space

__all__ = ["Checked", "damped_by", "in_units_of", "point_of"]


@record
class Checked(Recipe):
    """A recipe that refuses, where values can be read, to make a preconditioner of numbers that are not finite.

    Inside a compiled program, and between the steps of a method, the solver's status tells.
    """

    def __call__(self, operator: LinearOperator) -> LinearOperator:
        prepared, ops = self.prepare(operator), operator.backend
        flat = [ops.namespace().reshape(x, (-1,)) for x in _arrays(ops, prepared)]
        if ops.is_concrete(flat) and not all(ops.isfinite(ops.max_abs(x)) for x in flat):
            raise ValueError(
                f"{type(self).__name__}: what it computed for {operator!r} holds NaN or infinity. Products with the "
                "operator are not finite at this point, or squares overflow its dtype: look at it with lg.validate, "
                "scale the problem, or use a wider dtype."
            )
        return finished(self, prepared, operator)


def _arrays(ops: Backend, tree: Any) -> list[Array]:
    if is_dataclass(tree):
        tree = tuple(getattr(tree, name) for name in data_fields(tree))
    if isinstance(tree, tuple):
        return [x for part in tree for x in _arrays(ops, part)]
    return [tree] if ops.is_array(tree) else []


def damped_by(space: Space, d: Array, damping: Scalar) -> Array:
    """d + damping, in the dtype of d."""
    ops = space.backend
    return ops.axpy(damping, ops.namespace().ones_like(d), ops.copy(d))


def point_of(operator: LinearOperator, recipe: str) -> Point:
    """The point that a curvature operator was made at, wherever in a composition it is.

    Raises
    ------
    TypeError
        For operators that were not made from an objective.
    """
    parts = [operator]
    while parts:
        part = parts.pop(0)
        if isinstance(point := getattr(part, "point", None), Point):
            return point
        parts = part._children() + parts
    raise TypeError(
        f"{recipe} needs the model's gradients, and {operator!r} was not made from an objective. Use it with "
        "lg.GGN, lg.BlockGGN, lg.Hessian, lg.Fisher or lg.EmpiricalFisher (damped or not), or use Jacobi, which needs "
        "products only."
    )


def in_units_of(operator: LinearOperator, squares: Array) -> Array:
    """Squares of gradients in the units of the operator, S^2 of a damped S A S."""
    inner, _ = undamped(operator)
    return inner.units * inner.units * squares if isinstance(inner, Congruence) else squares
