"""Many batches against their union.

Batches that differ in how many examples they count have to be summed and divided
once. An average of their averages is the commonest way of getting curvature that is
silently wrong (by 40 % for batches of 1 and 9 examples, say), and the operator alone
cannot show it: it is as symmetric and as positive as the right one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..curvature.point import Point
from ..curvature.terms import Terms
from ..records import replace
from .data import entries, union
from .law import Found
from .measure import NotApplicableError, largest, relative
from .parts import rebuilt, with_terms
from .subject import Subject
from .twin import KEPT, Twin

__all__ = ["batches"]


def batches(subject: Subject) -> Found:
    """Value, gradient and products over many batches against those over their union in one."""
    if not subject.points:
        raise NotApplicableError("not a curvature operator")
    united: dict[int, Point] = {}
    for point in subject.points:
        twin = subject.oracle.at(point).twin
        if point.host or len(point.objective.batches) > 1 or point.objective.batches[0].stacked:
            united[id(point)] = with_terms(point, _together(point, twin))
    if not united:
        raise NotApplicableError("data of one batch")
    operator = rebuilt(subject.operator, lambda point: united.get(id(point), point))
    errors = [relative(Subject(operator).product(subject.V[:, 0]), subject.AV[:, 0])]
    for point in subject.points:
        if id(point) in united:
            one = united[id(point)]
            errors += [relative(_read(point, point.value), _read(one, one.value))]
            errors += [relative(_read(point, point.gradient), _read(one, one.gradient))]
    return Found(largest(errors))


def _read(point: Point, x: Any) -> Any:
    return np.asarray(point.space.backend.to_numpy(x)).astype(np.float64)


def _together(point: Point, twin: Twin) -> Terms:
    """The objective on all batches in one; NotApplicableError where that is another function."""
    ops, parts = point.space.backend, twin.batches
    if parts is None or entries(ops, parts) > KEPT:
        raise NotApplicableError(f"the batches hold more than {KEPT:,} numbers together")
    try:
        terms = replace(point.objective, batches=(union(ops, parts),), stream=None)
        one = Twin(with_terms(point, terms), twin.double)
        outputs = one.all_outputs(one.x)
    except Exception as error:
        raise NotApplicableError(f"the batches do not make one ({str(error).splitlines()[0]})") from None
    apart = twin.all_outputs(twin.x)
    if outputs.shape != apart.shape or not relative(outputs, apart) <= np.sqrt(twin.eps):
        raise NotApplicableError(
            "the model's outputs on the union are others (batch statistics, or examples not along the first axis)"
        )
    return terms
