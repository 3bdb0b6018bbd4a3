"""A run outside of any compiled program: stretch after stretch, shown to watchers, written to files.

Between two stretches the latest state is at hand, whatever happens in the next. On an eager backend a
stretch is one step; a compiled one takes as many steps as fit in a quarter of a second, 63 at most. What it leaves is
read in one transfer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

from ..distributed.reduction import OtherProcessError, Reduction
from ..distributed.watching import telling, together
from ..protocols import Backend, Carry
from ..protocols.processes import leaving
from ..records import memo
from ..run.log import listening
from ..run.loop import Look, Watcher, drive, watched
from ..run.solution import History
from ..run.status import Code
from .base import ServedMethod
from .problem import MinimizeProblem
from .state import State, Stretch

__all__ = ["NO_LIMIT", "Run", "began", "in_a_program", "stretched"]

T = TypeVar("T")

_ADVICE = (
    "{}: a run has no derivative. Cut what goes in off (jax.lax.stop_gradient), and differentiate one step of Newton's "
    "method at the solution, x - lg.solve(lg.Hessian(objective, x), objective.gradient(x)).x: see "
    "docs/differentiating_solves.md."
)

NO_LIMIT = 2**31 - 1
ROWS = 63
"""Steps of a stretch at most."""
QUARTER = 0.25
GUESS = 10
"""What a step takes, in units of the first look, until that is known."""
_FAILED = Code.NONFINITE, Code.NONFINITE_INPUT


def began(served: ServedMethod, problem: MinimizeProblem) -> Carry:
    """The carry of the method's first state."""
    return problem.backend.begin(Stretch(served), problem, ROWS)


def stretched(served: ServedMethod, problem: MinimizeProblem, own: Any, renew: bool, steps: int) -> Carry:
    """The carry ``steps`` steps on from the state ``own``, which stays as it is: one program, whatever the steps."""
    return problem.backend.run(Stretch(served, own, steps, renew), problem, ROWS)


def in_a_program(
    door: str, served: ServedMethod, problem: MinimizeProblem, limit: int, watch: Sequence[Watcher], every: int | None
) -> Carry:
    """The last carry of a run in one program, which may be a part of what somebody else compiles."""
    ops, advice = problem.backend, _ADVICE.format(door)
    served, problem = ops.constant((served, problem), advice)
    return ops.constant(drive(ops, served, problem, limit, watch, every, served.title), advice)


class Run:
    """A run that goes on from the carry that ``begin`` returns, with its history from there.

    ``plan`` gives the problem of each stretch and whether its data are other ones than the state's; for ``batches`` one
    for each step, where what a test says of a batch ends nothing. ``keep`` is told of every new state. ``left`` is how
    many steps there are batches for, where that is known.
    """

    def __init__(
        self,
        served: ServedMethod,
        problem: MinimizeProblem,
        begin: Callable[[], Carry],
        plan: Iterable[tuple[MinimizeProblem, bool]],
        batches: bool,
        keep: Callable[[Run], Any],
        left: int = NO_LIMIT,
    ) -> None:
        self.served, self.plan, self.batches, self.keep = served, plan, batches, keep
        self.ops: Backend = problem.backend
        self.rows: list[Any] = []
        clock, carry = time.perf_counter(), begin()
        if not self.ops.is_concrete(carry.state):
            self.ops.constant(carry.state, _ADVICE.format(served.title))
            raise TypeError(
                f"{served.title}: the objective closes over arrays of a program that is being traced. Hand them over "
                "as data, or start from parameters that are traced too."
            )
        self.steps = int(self.ops.read(carry.state.own.steps))
        self._look_at(problem, carry)
        self._limit = min(int(problem.max_steps), self.steps + left)
        self.first, self._begun = self.steps, time.perf_counter() - clock

    def _look_at(self, problem: MinimizeProblem, carry: Carry) -> None:
        rows = self.ops.rows(carry, 0, ROWS + 1)
        taken = int(rows[:, -1].max())
        status, known = int(rows[taken, -2]), bool(self.rows)
        self.rows.extend(rows[known : taken + 1, :-2])
        self.own, self.steps, self.problem = carry.state.own, self.steps + taken, problem
        late = self.batches and self.steps >= int(problem.max_steps)
        self.code = Code.MAX_STEPS if late and status not in _FAILED else status

    @property
    def state(self) -> State:
        """The latest state."""
        made = State(self.own, self.problem.start, self.served.method, self.problem.space)
        memo(made).terms = None if self.problem.once else self.problem.terms
        memo(made).reduction = self._reduction
        return made

    @property
    def _reduction(self) -> Reduction | None:
        return self.problem.objective.reduce

    @property
    def ended(self) -> bool:
        """Whether the run is over, for all that the latest state says."""
        return self.code in (Code.MAX_STEPS, Code.COMPLETED, *_FAILED) if self.batches else self.code != Code.RUNNING

    def watched(self, watch: Sequence[Watcher], every: int | None, result: Callable[[Run], T], door: str) -> T:
        """The result at the end, shown to the watchers every ``every`` steps (None: at both ends).

        What is raised on the way leaves with ``state`` and ``result``, for ``lg.<door>(..., state=)``.
        """
        told: list[Watcher] = [*listening(door)]
        if told and self._reduction is None:  # processes that work together look together
            every = every or 1
        try:
            with telling(self._reduction):
                shown = [*together(self._reduction, self.ops, self.problem.start, watch), *told]
                _, stopped = watched(self._looks(every, bool(watch)), shown)
        except BaseException as error:
            with suppress(AttributeError, OtherProcessError), leaving():
                error.__dict__.pop("carry", None)  # of the loop
                error.state = self.state  # type: ignore[attr-defined]
                error.result = result(self)  # type: ignore[attr-defined]
            error.add_note(
                f"{self.steps} steps were done: error.state is where to go on from, lg.{door}(..., state=error.state)."
            )
            raise
        self.code = Code.STOPPED if stopped else self.code
        return result(self)

    def _looks(self, every: int | None, shown_to: bool) -> Iterator[tuple[Look, Any]]:
        yield self._look(0, shown_to), None
        seen, shown, most = len(self.rows), self.steps, 1
        if "compiled" in self.ops.capabilities:
            most = max(8, min(ROWS, int(QUARTER / GUESS / self._begun)))
        plan = iter(self.plan)
        while not self.ended:  # a batch is taken when it is needed
            problem, renew = next(plan, (None, False))
            if problem is None:
                self.code = Code.COMPLETED
                break
            left = ROWS if every is None else shown + every - self.steps
            before, clock = self.steps, time.perf_counter()
            renew = renew or self.code != Code.RUNNING  # what a test said of the batch before
            steps = 1 if self.batches else min(most, left, ROWS)
            self._look_at(problem, stretched(self.served, problem, self.own, renew, steps))
            if most > 1 and before > self.first:  # the first stretch was compiled on the way
                rate = (self.steps - before) / (time.perf_counter() - clock)
                most = max(2, min(ROWS, 8 * most, int(QUARTER * rate)))
            self.keep(self)
            if every is not None and self.steps >= shown + every and not self.ended:
                yield self._look(seen, shown_to), None
                seen, shown = len(self.rows), self.steps
        yield self._look(seen, shown_to), None  # also where a step that failed leaves their number as it was shown

    def _look(self, seen: int, live: bool) -> Look:
        names, rows = type(self.served.observe(self.own))._fields, np.asarray(self.rows[seen:])
        history = History({name: rows[:, i] if len(rows) else rows for i, name in enumerate(names)})
        limit = None if self._limit >= NO_LIMIT else self._limit
        code = self.code if self.ended else Code.RUNNING
        whole = self.state if live else None
        own = None if whole is None else whole.own
        return Look(self.served.title, self.steps, limit, code, history, self.first + seen, own, whole)
