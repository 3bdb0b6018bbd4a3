"""How the damping, or the radius, goes on from step to step: rules by the gain ratio, and schedules.

A control is a record with one function, ``update(ops, level, growth, ratio)``, or ``follow`` where more than the gain
ratio is needed. Levels are scalars of the backend, data of the compiled program; ``growth`` is a number to remember.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

from ..arguments import require_number
from ..protocols import Backend, Scalar
from ..records import record
from ..run.returned import require_level, require_scalar

__all__ = ["Control", "Cosine", "Exponential", "Linear", "Radius", "Ramp", "Schedule", "Seen", "Stages", "WarmUp"]


class Seen(NamedTuple):
    """What a control is told of a step."""

    step: Scalar
    """How many steps there have been, this one included."""
    first: Scalar
    """The level at the start."""
    ratio: Scalar
    """Actual over predicted decrease; minus infinity of a trial that was refused."""
    norm: Scalar
    """||d|| of the direction that was tried."""


@record
class Control:
    """Base of controls.

    A rule defines ``update``, as :class:`~linop_gn.Nielsen`, :class:`~linop_gn.Marquardt` and
    :class:`~linop_gn.ConstantDamping` do; where more than the gain ratio is needed, ``follow``.
    A level below zero is an error, in a compiled program zero; one beyond the bounds of the method becomes the bound.

    >>> import linop_gn as lg
    >>> @lg.record
    ... class Tenfold(lg.controls.Control):
    ...     def update(self, ops, level, growth, ratio):
    ...         return level * ops.where(ratio > 0, 0.1, 10.0), growth
    >>> Tenfold().update(lg.load("numpy"), 1.0, 2.0, -1.0)
    (10.0, 2.0)
    """

    level: ClassVar[str | None] = None
    """What the rule is for, ``"damping"`` or ``"radius"``, where it would do harm to the other; None: for both."""

    def update(self, ops: Backend, level: Scalar, growth: Scalar, ratio: Scalar) -> tuple[Scalar, Scalar]:
        """The next level, and the number to remember, from the gain ratio."""
        raise NotImplementedError(f"{type(self).__name__} defines neither update nor follow.")

    def follow(self, ops: Backend, level: Scalar, growth: Scalar, seen: Seen) -> tuple[Scalar, Scalar]:
        """The same from all that was seen."""
        return self.update(ops, level, growth, seen.ratio)


def followed(control: Control, ops: Backend, level: Scalar, growth: Scalar, seen: Seen) -> tuple[Scalar, Scalar]:
    """The next level and the number to remember, looked at."""
    kind = type(control).follow
    member = "update" if kind is Control.follow else "at" if kind is Schedule.follow else "follow"
    made: tuple[Scalar, Scalar] = require_level(control, member, control.follow(ops, level, growth, seen))
    return made


@record
class Radius(Control):
    """The radius of a trust region (Nocedal and Wright, *Numerical Optimization*, 2006, algorithm 4.1).

    ratio < low: ``shrink`` times the length of the direction; ratio > high, at the boundary: ``grow`` times the radius.
    """

    low: Scalar = 0.25
    high: Scalar = 0.75
    shrink: Scalar = 0.25
    grow: Scalar = 2.0
    level = "radius"

    def __post_init__(self) -> None:
        for name in ("low", "high", "grow"):
            require_number("Radius", name, getattr(self, name))
        require_number("Radius", "shrink", self.shrink, positive=True, below=1.0)
        if (self.grow < 1) is True or (self.low > self.high) is True:
            raise ValueError(
                f"Radius: grow must be at least 1, and low at most high, got {self.grow}, {self.low} and {self.high}."
            )

    def follow(self, ops: Backend, level: Scalar, growth: Scalar, seen: Seen) -> tuple[Scalar, Scalar]:
        """The next radius."""
        norm = ops.where(seen.norm > 0, ops.minimum(seen.norm, level), level)
        failed = ops.logical_not(seen.ratio >= self.low)  # NaN counts as failure
        grown = ops.where((seen.ratio > self.high) & (seen.norm >= 0.99 * level), self.grow * level, level)
        return ops.where(failed, self.shrink * norm, grown), growth


@record
class Schedule(Control):
    """Base of levels that are a function of the step: dampings, radii, and the rates of ``lg.FirstOrder``."""

    def at(self, ops: Backend, step: Scalar, first: Scalar) -> Scalar:
        """The level after ``step`` steps, ``first`` being that of none; both are scalars, which may be traced."""
        raise NotImplementedError(f"{type(self).__name__} does not define at.")

    def follow(self, ops: Backend, level: Scalar, growth: Scalar, seen: Seen) -> tuple[Scalar, Scalar]:
        """The level of the next step."""
        return self.at(ops, seen.step, seen.first), growth


def level_at(schedule: Schedule, ops: Backend, step: Scalar, first: Scalar) -> Scalar:
    """That of the schedule, looked at."""
    return require_scalar(schedule, "at", schedule.at(ops, step, first), "a number")


@record
class Stages(Schedule):
    """``early`` for the first ``steps`` steps, then ``then``; None: the first level."""

    early: Scalar
    steps: Scalar
    then: Scalar | None = None

    def at(self, ops: Backend, step: Scalar, first: Scalar) -> Scalar:
        """The one or the other."""
        late = first if self.then is None else self.then
        return ops.where(step + 0.0 * first < self.steps, self.early, late) + 0.0 * first


@record
class Ramp(Schedule):
    """Base of schedules from the first level to ``last`` after ``steps`` steps, where they stay."""

    last: Scalar = 0.0
    steps: Scalar = 100

    def __post_init__(self) -> None:
        require_number(type(self).__name__, "steps", self.steps, positive=True)
        require_number(type(self).__name__, "last", self.last)

    def share(self, ops: Backend, done: Scalar) -> Scalar:
        """The part of the way that is made, from 0 to 1, when the part ``done`` of the steps is."""
        raise NotImplementedError(f"{type(self).__name__} does not define share.")

    def at(self, ops: Backend, step: Scalar, first: Scalar) -> Scalar:
        """first + share (last - first)."""
        share = self.share(ops, ops.minimum((step + 0.0 * first) / self.steps, 1.0))
        return first + share * (self.last - first)


@record
class Linear(Ramp):
    """In a straight line from the first level to ``last``."""

    def share(self, ops: Backend, done: Scalar) -> Scalar:
        """``done``."""
        return done


@record
class Cosine(Ramp):
    """Half a wave of the cosine from the first level to ``last``."""

    def share(self, ops: Backend, done: Scalar) -> Scalar:
        """(1 - cos(pi done)) / 2."""
        return 0.5 - 0.5 * _cosine(ops, math.pi * done)


@record
class WarmUp(Schedule):
    """In a straight line from ``begin`` to the first level in ``steps`` steps, and from there as ``then`` says.

    >>> import linop_gn as lg
    >>> rule = lg.controls.WarmUp(4, then=lg.controls.Linear(steps=2))
    >>> [rule.at(lg.load("numpy"), step, 1.0) for step in range(7)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 0.5, 0.0]
    """

    steps: Scalar
    begin: Scalar = 0.0
    then: Schedule | None = None

    def __post_init__(self) -> None:
        require_number("WarmUp", "steps", self.steps, positive=True)
        require_number("WarmUp", "begin", self.begin)

    def at(self, ops: Backend, step: Scalar, first: Scalar) -> Scalar:
        """The level, rising and then."""
        done = step + 0.0 * first
        rising = self.begin + done / self.steps * (first - self.begin)
        after = first if self.then is None else level_at(self.then, ops, ops.maximum(done - self.steps, 0.0), first)
        return ops.where(done < self.steps, rising, after)


@record
class Exponential(Control):
    """``factor`` times the level at each step."""

    factor: Scalar = 0.99

    def __post_init__(self) -> None:
        require_number("Exponential", "factor", self.factor, positive=True)

    def follow(self, ops: Backend, level: Scalar, growth: Scalar, seen: Seen) -> tuple[Scalar, Scalar]:
        """The level of the next step."""
        return self.factor * level, growth


def _cosine(ops: Backend, angle: Any) -> Scalar:
    return ops.small_namespace().cos(angle) + 0.0
