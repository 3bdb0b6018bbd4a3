"""Operators taken apart: the points inside them, and the same operator on other points."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from ..curvature.point import Point
from ..curvature.terms import Terms
from ..operators.base import LinearOperator
from ..protocols import Vector
from ..records import data_fields, replace

__all__ = ["at_parameters", "curvature_in", "fields_of", "made_anew", "points_in", "rebuilt", "with_terms"]


def fields_of(operator: LinearOperator) -> dict[str, Any]:
    """What an operator is made of, without what it has kept for itself."""
    return {name: value for name, value in operator.__dict__.items() if name != "_prepared"}


def _walk(value: Any) -> Iterator[Any]:
    """``value`` and the operators and points inside it."""
    if isinstance(value, tuple):
        for item in value:
            yield from _walk(item)
    elif isinstance(value, LinearOperator):
        yield value
        for item in fields_of(value).values():
            yield from _walk(item)
    elif isinstance(value, Point):
        yield value


def points_in(operator: LinearOperator) -> list[Point]:
    """The points that parts of ``operator`` were made at, each once."""
    return list({id(part): part for part in _walk(operator) if isinstance(part, Point)}.values())


def curvature_in(operator: LinearOperator) -> list[LinearOperator]:
    """The parts of ``operator`` that were made at a point: Hessians, Gauss-Newton operators, Jacobians; each once."""
    parts = {id(part): part for part in _walk(operator) if isinstance(part, LinearOperator)}
    return [part for part in parts.values() if any(isinstance(value, Point) for value in fields_of(part).values())]


def rebuilt(value: Any, change: Callable[[Point], Point]) -> Any:
    """The same operator on the points that ``change`` makes of its own, with nothing prepared.

    Operators that are no records, whose parts cannot be told, are returned as they are.
    """
    if isinstance(value, tuple):
        return tuple(rebuilt(item, change) for item in value)
    if isinstance(value, Point):
        return change(value)
    if not isinstance(value, LinearOperator) or "__dataclass_fields__" not in type(value).__dict__:
        return value
    made, kept, data = object.__new__(type(value)), value.__dict__, data_fields(value)
    for name in (field.name for field in dataclasses.fields(value) if field.name in kept):
        made.__dict__[name] = rebuilt(kept[name], change) if name in data else kept[name]
    return made


def with_terms(point: Point, terms: Terms) -> Point:
    """A new point at the same parameters, with nothing computed yet."""
    made = Point(terms, point.x, point.space)
    return made.expect_hessian() if "_hessian" in point.__dict__ else made


def at_parameters(point: Point, x: Vector) -> Point:
    """A new point at other parameters."""
    made = Point(replace(point.objective), x, point.space)
    return made.expect_hessian() if "_hessian" in point.__dict__ else made


def made_anew(operator: LinearOperator) -> LinearOperator:
    """The operator as its construction made it: at the same parameters and data, linearised at its next product."""
    points: dict[int, Point] = {}

    def change(point: Point) -> Point:
        if id(point) not in points:
            points[id(point)] = with_terms(point, replace(point.objective))
        return points[id(point)]

    made: LinearOperator = rebuilt(operator, change)
    return made
