"""Which iterates a run keeps, and how they come back.

Martens (2010) keeps x_i at i = ceil(1.3^j) and, once the linear solve is done,
goes back through them while the true objective falls ("CG backtracking").

The steps to keep are part of the program: a schedule is turned into a table
over the steps, and the run keeps room for as many vectors as it has entries up
to the limit on steps. Eager backends take that memory as the vectors come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..protocols import Backend, Scalar, Vector
from ..records import record

__all__ = ["MOST", "Iterates", "Plan", "as_schedule", "collect", "plan"]

MOST = 1_000_000
"""Steps that can be planned for."""

Schedule = Any
"""None, ``"every"``, a ratio above 1, or the steps themselves."""


def as_schedule(given: Any, method: str) -> Schedule:
    """The schedule that ``keep=`` of a solver means.

    Raises
    ------
    ValueError, TypeError
        If it is no schedule.
    """
    if given is None or (isinstance(given, str) and given == "every"):
        return given
    if isinstance(given, float) and given > 1 and math.isfinite(given):
        return given
    if isinstance(given, (Sequence, np.ndarray, frozenset, set)) and not isinstance(given, str):
        steps = [int(step) for step in given]
        if all(step == whole >= 0 for step, whole in zip(given, steps, strict=True)):
            return tuple(sorted(set(steps)))
    raise ValueError(
        f"{method}: keep must be 'every', a ratio such as 1.3 (the iterates at ceil(1.3^j)), or the steps to keep as "
        f"whole numbers >= 0, got {given!r}."
    )


class Plan(NamedTuple):
    """A schedule as tables over the steps 0 .. limit."""

    steps: tuple[int, ...]
    places: np.ndarray[Any, Any]
    """places[i]: how many steps before i are scheduled."""
    wanted: np.ndarray[Any, Any]
    """wanted[i]: whether step i is scheduled."""

    @property
    def capacity(self) -> int:
        """Vectors to make room for: the scheduled ones, and a place for what comes after the last."""
        return len(self.steps) + 1


@lru_cache(maxsize=64)
def plan(schedule: Schedule, limit: int) -> Plan:
    """The plan of a schedule up to step ``limit``.

    >>> plan(1.3, 20).steps
    (1, 2, 3, 4, 5, 7, 9, 11, 14, 18)
    >>> plan((0, 2, 99), 3).places.tolist()
    [0, 1, 1, 2]
    """
    wanted = np.zeros(limit + 1, dtype=bool)
    if isinstance(schedule, str):
        wanted[:] = True
    elif isinstance(schedule, float):
        power = 0
        while (step := math.ceil(schedule**power)) <= limit:
            wanted[step] = True
            power += 1
    else:
        wanted[[step for step in schedule if step <= limit]] = True
    return Plan(tuple(np.flatnonzero(wanted).tolist()), np.cumsum(wanted) - wanted, wanted)


@record
class Iterates:
    """The iterates that a run kept, in order; the last one is the solution.

    ``x[i]`` is the iterate of step ``steps[i]``, in the format of the solution. With columns
    or blocks ``steps[i]`` has a number for each; one that ended repeats its last iterate.
    Inside a compiled program the last iterate is repeated up to the schedule's capacity.

    >>> import numpy as np, linop_gn as lg
    >>> solution = lg.solve(lg.Diagonal(np.arange(1.0, 9.0)), np.ones(8), lg.CG(steps=6, keep=1.3))
    >>> solution.iterates
    6 iterates, of steps 1, 2, 3, 4, 5, 6
    """

    steps: Any
    x: Any

    def __len__(self) -> int:
        return len(self.x)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        yield from zip(self.steps, self.x, strict=True)

    def __reversed__(self) -> Iterator[tuple[Any, Any]]:
        yield from reversed(list(self))

    def __getitem__(self, index: Any) -> Any:
        return self.x[index]

    def leave(self, leave: Callable[[Vector], Any]) -> Iterates:
        """The iterates with ``leave`` applied to each ``x[i]``."""
        return Iterates(self.steps, tuple(map(leave, self.x)))

    def __repr__(self) -> str:
        try:
            latest = np.asarray(self.steps).reshape(len(self.x), -1).max(1).tolist()
        except TypeError:  # values are not known inside a compiled program
            return f"at most {len(self.x)} iterates"
        shown = latest if len(latest) <= 8 else [*latest[:3], "...", *latest[-3:]]
        return f"{len(latest)} iterates, of steps {', '.join(map(str, shown))}"


def collect(ops: Backend, planned: Plan, shelf: Any, x: Vector, steps: Scalar, scale: Scalar) -> Iterates:
    """``scale`` times the vectors on ``shelf``, then the answer ``x``, as iterates. Consumes ``shelf``."""
    before = ops.lookup(planned.places, steps)  # how many scheduled steps came before the last one
    known = ops.is_concrete(before)
    count = int(np.max(ops.read(before))) if known else len(planned.steps)
    taken, iterates = [], []
    for place, step in enumerate(planned.steps[:count]):
        earlier = place < before
        taken.append(ops.where(earlier, step, steps))
        value = ops.scale(scale, ops.get(shelf, place))
        value = ops.mask(ops.isfinite(ops.max_abs(value)), value)  # as the answer, zero where it is out of range
        iterates.append(ops.select(earlier, value, x))
    return Iterates(ops.stack([*taken, steps]), (*iterates, x))
