"""How far to go along a direction, and whether to go at all.

======================  ===========================================================================================
:class:`Accept`          the whole direction, if the gain ratio is large enough
:class:`FixedLength`     a multiple of it, whatever the value there
:class:`Armijo`          shorter and shorter, until the value falls by a share of what the slope promises
:class:`Goldstein`       neither too little nor too much of it
:class:`Wolfe`           the strong Wolfe conditions: enough decrease, and a slope that has flattened
:class:`Grid`            the best of several lengths
:class:`Iterates`        the best of the iterates that CG kept, then :class:`Armijo` (Martens, 2010)
======================  ===========================================================================================

Nocedal and Wright, *Numerical Optimization* (2006), chapter 3. A value that is not finite is never gone to.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from ..arguments import require_instance, require_number, whole
from ..protocols import Backend, Scalar, Vector
from ..records import record, static
from ..run.returned import require_scalar
from .descents.base import Model, Trial
from .problem import MinimizeProblem

__all__ = ["Accept", "Armijo", "FixedLength", "Found", "Goldstein", "Grid", "Iterates", "Line", "Search", "Wolfe"]


class Line:
    """The objective along x + t d: what a search may ask."""

    def __init__(
        self, ops: Backend, problem: MinimizeProblem, model: Model, trial: Trial, last: Scalar = 0.0, units: Any = None
    ) -> None:
        self._problem, self._model, self.trial, self._units = problem, model, trial, units
        self._way: Vector = trial.direction if units is None else units * trial.direction
        self.last: Scalar = last
        """The length that the search of the step before came to; 0 at the first."""
        self.direction: Vector = trial.direction
        self.start: Scalar = model.value
        """The value at t = 0."""
        self.slope: Scalar = ops.dot(model.gradient, trial.direction)
        """g.d."""
        self.one: Scalar = ops.scalar(1.0, model.x)
        self.count: Scalar = ops.scalar(0, model.x)

    def along(self, ops: Backend, direction: Vector) -> Line:
        """The line along another direction."""
        return Line(ops, self._problem, self._model, self.trial._replace(direction=direction), self.last, self._units)

    def at(self, ops: Backend, length: Scalar) -> Vector:
        """x + t d, a new vector."""
        return ops.axpy(length, self._way, ops.copy(self._model.x))

    def value(self, ops: Backend, length: Scalar) -> Scalar:
        """The value at x + t d."""
        return self._problem.value_at(self.at(ops, length))

    def value_and_slope(self, ops: Backend, length: Scalar) -> tuple[Scalar, Scalar]:
        """The value and its derivative in t."""
        point = self._problem.for_acceptance(self._problem.at(self.at(ops, length)))
        gradient = point.gradient
        return ops.item(point.value), ops.dot(gradient, self._way)

    def predicted(self, length: Scalar) -> Scalar:
        """The decrease that the model promises at t, undamped; no product is needed."""
        bend = -2.0 * (self.trial.predicted + self.slope)  # d.G d
        return -length * (self.slope + 0.5 * length * bend)

    def ratio(self, ops: Backend, value: Scalar, predicted: Scalar, start: Scalar = None) -> Scalar:
        """Actual over predicted decrease; minus infinity unless that is positive and the value finite."""
        actual = (self.start if start is None else start) - value
        return ops.where((predicted > 0) & ops.isfinite(actual), ops.divide(actual, predicted), -math.inf)


class Found(NamedTuple):
    """Where a search ended."""

    line: Line
    """The one it was given, or along another direction."""
    length: Scalar
    value: Scalar
    accepted: Scalar
    evaluations: Scalar
    whole: Scalar | None = None
    """The value at t = 1 of the line given, by which the step is judged; None: it is judged at ``length``."""
    at: Scalar | None = None
    """Another t than 1 that ``whole`` is the value at."""


@record
class Search(ABC):
    """Base of searches: a subclass is a record with ``search``.

    >>> import linop_gn as lg
    >>> @lg.record
    ... class Halved(lg.searches.Search):
    ...     '''Half of the way, if the value falls.'''
    ...     def search(self, ops, line):
    ...         value = line.value(ops, 0.5)
    ...         return lg.searches.Found(line, 0.5 * line.one, value, value < line.start, 1)
    """

    @abstractmethod
    def search(self, ops: Backend, line: Line) -> Found:
        """The length to go, the value there, and whether to go."""


def searched(search: Search, ops: Backend, line: Line) -> Found:
    """What the search finds, looked at."""
    made = search.search(ops, line)
    if not isinstance(made, Found):
        raise TypeError(
            f"{type(search).__qualname__}.search must return an lg.searches.Found(line, length, value, accepted, "
            f"evaluations), got {made!r:.200}."
        )
    for name in ("length", "value", "accepted", "evaluations"):
        require_scalar(search, "search", getattr(made, name), f"a Found with a number for {name}")
    return made


@record
class Accept(Search):
    """The whole direction, if its gain ratio is above ``threshold``."""

    threshold: Scalar = 1e-4

    def __post_init__(self) -> None:
        require_number("Accept", "threshold", self.threshold, below=1.0)

    def search(self, ops: Backend, line: Line) -> Found:
        """t = 1."""
        value = line.value(ops, 1.0)
        accepted = line.ratio(ops, value, line.trial.predicted) > self.threshold
        return Found(line, line.one, value, accepted, line.count + 1, value)


@record
class FixedLength(Search):
    """``length`` times the direction, taken wherever the value is finite."""

    length: Scalar = 1.0

    def __post_init__(self) -> None:
        require_number("FixedLength", "length", self.length, positive=True)

    def search(self, ops: Backend, line: Line) -> Found:
        """t = length."""
        length = self.length * line.one
        value = line.value(ops, length)
        return Found(line, length, value, ops.isfinite(value), line.count + 1)


@record
class Armijo(Search):
    """t = first, first shrink, first shrink^2, ... until f(x + t d) <= f(x) + c t g.d.

    Parameters
    ----------
    c, shrink, first
        As above.
    most
        Limit on trials.
    fixed
        Whether the bound is that of t = first for all (as in SGN's code).
    last
        Whether the last trial is taken where all failed, if its value is finite (as in SGN's code).
    grow
        The first trial is at most ``grow`` times the length that the step before came to (1.5 in EGN's code).
    """

    c: Scalar = 1e-4
    shrink: Scalar = 0.5
    first: Scalar = 1.0
    most: int = static(default=30)
    fixed: bool = static(default=False)
    last: bool = static(default=False)
    grow: Scalar | None = None

    def __post_init__(self) -> None:
        for name in ("first", "grow"):
            require_number("Armijo", name, getattr(self, name), positive=True, optional=name == "grow")
        for name in ("c", "shrink"):
            require_number("Armijo", name, getattr(self, name), positive=True, below=1.0)
        object.__setattr__(self, "most", whole("Armijo", "most", self.most, 1))

    def search(self, ops: Backend, line: Line) -> Found:
        """The first length that does."""
        longest = self.first * line.one
        if self.grow is not None:
            longest = ops.minimum(longest, ops.where(line.last > 0, self.grow * line.last, math.inf))

        def enough(length: Scalar, value: Scalar) -> Scalar:
            promised = (longest if self.fixed else length) * line.slope
            return value <= line.start + self.c * promised

        def trial(i: Scalar, s: Any) -> Any:
            def shorter(length: Scalar, value: Scalar, whole: Scalar, count: Scalar) -> tuple[Scalar, ...]:
                length = ops.where(count > 0, self.shrink * length, length)
                value = line.value(ops, length)
                return length, value, ops.where(count > 0, whole, value), count + 1

            return ops.branch(enough(s[0], s[1]), lambda *s: s, shorter, *s)

        nothing = 0.0 * line.one + math.inf
        first = longest, nothing, nothing, line.count
        length, value, whole, count = ops.repeat(self.most, trial, first)
        accepted = ops.isfinite(value) & (enough(length, value) | self.last)
        unit = longest == 1.0
        return Found(
            line, length, value, accepted, count, ops.where(unit, whole, value), ops.where(unit, longest, length)
        )


@record
class Goldstein(Search):
    """f(x) + (1 - c) t g.d <= f(x + t d) <= f(x) + c t g.d, by doubling and halving; 0 < c < 1/2."""

    c: Scalar = 0.25
    first: Scalar = 1.0
    most: int = static(default=30)

    def __post_init__(self) -> None:
        require_number("Goldstein", "c", self.c, positive=True, below=0.5)
        require_number("Goldstein", "first", self.first, positive=True)
        object.__setattr__(self, "most", whole("Goldstein", "most", self.most, 1))

    def search(self, ops: Backend, line: Line) -> Found:
        """A length between the two lines, or the longest one found below the upper line."""

        def trial(i: Scalar, s: Any) -> Any:
            def ask(t: Scalar, low: Scalar, high: Scalar, best: Scalar, lowest: Scalar, done: Scalar, n: Scalar) -> Any:
                value, promised = line.value(ops, t), t * line.slope
                enough = value <= line.start + self.c * promised
                short = enough & (value < line.start + (1.0 - self.c) * promised)
                low, high = ops.where(short, t, low), ops.where(enough, high, t)
                best, lowest = ops.where(enough, t, best), ops.where(enough, value, lowest)
                done = enough & ops.logical_not(short)
                t = ops.where(done, t, ops.where(high < math.inf, 0.5 * (low + high), 2.0 * t))
                return t, low, high, best, lowest, done, n + 1

            return ops.branch(s[5], lambda *s: s, ask, *s)

        one, zero = line.one, 0.0 * line.one
        never = line.count > 0
        begun = self.first * one, zero, zero + math.inf, zero, zero + math.inf, never, line.count
        _, _, _, length, value, _, count = ops.repeat(self.most, trial, begun)
        return Found(line, length, value, ops.isfinite(value), count)


@record
class Wolfe(Search):
    """f(x + t d) <= f(x) + c1 t g.d and |f'(t)| <= c2 |f'(0)|, by doubling and bisection; 0 < c1 < c2 < 1.

    Each trial takes a gradient. Where no length is found within ``most`` trials, the best one with enough decrease.
    """

    c1: Scalar = 1e-4
    c2: Scalar = 0.9
    first: Scalar = 1.0
    most: int = static(default=30)

    def __post_init__(self) -> None:
        for name, below in (("c1", 1.0), ("c2", 1.0), ("first", math.inf)):
            require_number("Wolfe", name, getattr(self, name), positive=True, below=below)
        if (self.c1 >= self.c2) is True:
            raise ValueError(f"Wolfe: c1 must be less than c2, got {self.c1} and {self.c2}: no length satisfies both.")
        object.__setattr__(self, "most", whole("Wolfe", "most", self.most, 1))

    def search(self, ops: Backend, line: Line) -> Found:
        """A length that fulfils both."""

        def trial(i: Scalar, s: Any) -> Any:
            def ask(t: Scalar, low: Scalar, high: Scalar, lowest: Scalar, done: Scalar, n: Scalar) -> Any:
                value, slope = line.value_and_slope(ops, t)
                # The best length yet is ``low``, and the minimum lies between it and ``high``.
                worse = ops.logical_not((value <= line.start + self.c1 * t * line.slope) & (value < lowest))
                worse = worse | ops.logical_not(ops.isfinite(slope))
                flat = ops.logical_not(worse) & (ops.maximum(slope, -slope) <= -self.c2 * line.slope)
                onward = slope * ops.where(high < math.inf, high - low, 1.0) < 0
                high = ops.where(worse, t, ops.where(onward, high, low))
                low, lowest = ops.where(worse, low, t), ops.where(worse, lowest, value)
                t = ops.where(flat, t, ops.where(high < math.inf, 0.5 * (low + high), 2.0 * t))
                return t, low, high, lowest, flat, n + 1

            return ops.branch(s[4], lambda *s: s, ask, *s)

        one, zero = line.one, 0.0 * line.one
        begun = self.first * one, zero, zero + math.inf, zero + line.start, line.count > 0, line.count
        _, length, _, value, _, count = ops.repeat(self.most, trial, begun)
        return Found(line, length, value, (length > 0) & ops.isfinite(value), count)


@record
class Grid(Search):
    """The best of t = 1, shrink, shrink^2, ..., ``count`` of them; of equal ones the longest.

    ``decrease``: whether the value has to fall.
    """

    shrink: Scalar = 0.5**0.5
    count: int = static(default=5)
    decrease: bool = static(default=False)

    def __post_init__(self) -> None:
        require_number("Grid", "shrink", self.shrink, positive=True, below=1.0)
        object.__setattr__(self, "count", whole("Grid", "count", self.count, 1))

    def search(self, ops: Backend, line: Line) -> Found:
        """The length of the lowest value."""

        def trial(i: Scalar, s: Any) -> Any:
            length, best, lowest, whole = s
            value = line.value(ops, length)
            better = value < lowest
            whole = ops.where(length == 1.0, value, whole)
            return self.shrink * length, ops.where(better, length, best), ops.where(better, value, lowest), whole

        nothing = 0.0 * line.one + math.inf
        _, length, value, whole = ops.repeat(self.count, trial, (line.one, line.one, nothing, nothing))
        accepted = ops.isfinite(value) & (value < line.start) if self.decrease else ops.isfinite(value)
        return Found(line, length, value, accepted, line.count + self.count, whole)


@record
class Iterates(Search):
    """Back through the iterates that the solver kept while the value falls, then ``then`` along the best of them.

    For a descent whose solver keeps them: ``lg.descents.Solve(lg.CG(max_steps=50, keep=1.3))``. The step is judged at
    the last iterate.
    """

    then: Search = Armijo(c=1e-2, shrink=0.8, most=60)

    def __post_init__(self) -> None:
        require_instance("Iterates", self.then, Search, "a search such as lg.searches.Armijo()", "See lg.searches.")

    def search(self, ops: Backend, line: Line) -> Found:
        """The best iterate, and the length along it."""
        kept = line.trial.iterates
        if kept is None:
            raise ValueError(
                "searches.Iterates goes back through iterates, and the descent keeps none: write "
                "lg.descents.Solve(lg.CG(max_steps=50, keep=1.3))."
            )
        last, steps = len(kept.x) - 1, kept.steps
        shelf = ops.basis(line.direction, last + 1)
        for place, x in enumerate(kept.x):
            shelf = ops.store(shelf, place, 1.0, x)
        whole, noise = line.value(ops, 1.0), 4.0 * ops.eps(line.direction) * ops.maximum(line.start, -line.start)

        def trial(i: Scalar, s: Any) -> Any:
            best, lowest, going, count = s
            place = last - 1 - i
            same = ops.lookup(steps, place) == ops.lookup(steps, last)  # of a program, whose room was not used up

            def ask(best: Scalar, lowest: Scalar, going: Scalar, count: Scalar) -> Any:
                value = line.along(ops, ops.copy(ops.row(shelf, place))).value(ops, 1.0)
                lost = ops.logical_not(ops.isfinite(lowest))
                better = (value < lowest) | lost
                onward = (value <= lowest + noise) | lost  # what CG did below rounding stops nothing
                return ops.where(better, place, best), ops.where(better, value, lowest), onward, count + 1

            return ops.branch(going & ops.logical_not(same), ask, lambda *s: s, best, lowest, going, count)

        begun = line.count + last, whole, line.count == 0, line.count + 1
        best, _, _, count = ops.repeat(last, trial, begun)
        found = searched(self.then, ops, line.along(ops, ops.copy(ops.row(shelf, best))))
        return found._replace(evaluations=found.evaluations + count, whole=whole, at=None)
