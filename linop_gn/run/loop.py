"""The one loop: a method is advanced, looked at, and watched.

Methods (CG, Levenberg-Marquardt) are pure functions without a loop. This module
holds the only driver: it asks the backend to *advance* at most n ticks, then
*looks* (status, step count and new history rows in one transfer), then shows
the look to the watchers. Unwatched runs are one call, one compiled program in
JAX; under a user's own ``jit`` nothing is read at all.

A look costs about 0.3 ms in JAX and nothing elsewhere, hence the defaults of
:func:`solve`: every 25 steps for a compiled backend, every step for others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from ..arguments import whole
from ..protocols import Backend, Carry, Iteration, leave_with
from ..protocols.processes import leaving
from .solution import History
from .status import Code

__all__ = ["Look", "Reached", "Watcher", "drive", "looks", "watched", "watchers_of"]

COMPILED_LOOK_EVERY = 25
_FIRST = ("value", "residual", "damping", "radius", "rate", "ratio")
"""What a narrow terminal shows."""

T = TypeVar("T")


@dataclass
class Look:
    """What a watcher sees: the run so far, on the host.

    Attributes
    ----------
    method
        Name of the method.
    step, limit
        Steps taken, and the most there can be (None: unknown).
    status
        Status codes: an int, or an array (k,) for columns.
    rows
        History since the previous look, by column name; the row of a step that was verified since comes again.
    first
        The step that the first of these rows belongs to.
    state
        The method's live state on the device, its own NamedTuple; read it, never write to it. Its numbers are in the
        method's own units: ``state.x`` of a solver is x over a power of two, that of a minimisation is flat. Iterates
        in yours are what ``lg.CG(keep=...)`` keeps, and ``params`` here.
    whole
        In a minimisation the ``lg.State``, which ``lg.result``, ``lg.save_state`` and ``lg.averaged`` take.
    """

    method: str
    step: int
    limit: int | None
    status: Any
    rows: History
    first: int = 0
    state: Any = field(repr=False, default=None)
    whole: Any = field(repr=False, default=None)

    @property
    def params(self) -> Any:
        """The parameters of a minimisation, in the format that it was started with, in memory of their own."""
        if self.whole is None:
            raise AttributeError("a look has params in lg.minimize and lg.least_squares; a solve has state.")
        return self.whole.params

    @property
    def running(self) -> bool:
        """Whether the run would go on."""
        return bool(np.any(np.equal(self.status, Code.RUNNING)))

    def newest(self) -> str:
        """The newest row of the history in a line; of columns the largest numbers."""
        columns = [(name, column) for name, column in self.rows.items() if len(column)]
        columns.sort(key=lambda named: _FIRST.index(named[0]) if named[0] in _FIRST else len(_FIRST))
        return "  ".join(f"{name} {float(np.max(np.asarray(column[-1]))):.3g}" for name, column in columns)


Watcher = Callable[[Look], Any]
"""Called with each look; a true result stops the run. ``begin(look)`` and ``end(look)`` are called if it has them."""


def looks(
    backend: Backend, method: Iteration, problem: Any, limit: int, every: int, title: str | None = None
) -> Iterator[tuple[Look, Carry]]:
    """Advance ``method`` and yield a look, with its carry, at step 0 and then every ``every`` ticks.

    Raises
    ------
    TypeError
        Inside a compiled function.
    """
    carry = backend.begin(method, problem, limit)
    if not backend.is_concrete(carry):
        raise TypeError(
            "a run inside a compiled function cannot be watched: values are not known there. Call it outside of jit, "
            "or without watch= or a loop over its steps."
        )
    names = tuple(type(method.observe(carry.state))._fields)
    seen = 0
    while True:
        try:
            status, step = backend.read((carry.state.status, carry.state.steps))
            last = int(np.max(step))
            first = min(seen, last)
            rows = backend.rows(carry, first, last + 1)
        except BaseException as error:
            leave_with(error, carry)
            raise
        history = History({name: rows[:, i] for i, name in enumerate(names)})
        look = Look(title or type(method).__name__, last, limit, _plain(status), history, first, carry.state)
        yield look, carry
        if not look.running:
            return
        seen = last + 1
        carry = backend.advance(method, problem, carry, every)


def _plain(status: Any) -> Any:
    array = np.asarray(status)
    return int(array) if array.ndim == 0 else array


def drive(
    backend: Backend,
    method: Iteration,
    problem: Any,
    limit: int,
    watch: Sequence[Watcher] = (),
    every: int | None = None,
    title: str | None = None,
) -> Carry:
    """Run ``method`` to its end and return the last carry; watchers, which were looked at, see it on the way."""
    if every is not None:
        every = whole("watch", "every", every, 1)
    if not watch:
        return backend.run(method, problem, limit)
    if every is None:
        every = COMPILED_LOOK_EVERY if "compiled" in backend.capabilities else 1

    def stop(carry: Carry) -> Carry:
        status = carry.state.status
        stopped = backend.where(status == Code.RUNNING, Code.STOPPED, status)
        return Carry(carry.state._replace(status=stopped), carry.rows)

    carry, stopped = watched(looks(backend, method, problem, limit, every, title), watch)
    return stop(carry) if stopped else carry


def watchers_of(watch: Sequence[Watcher]) -> list[Watcher]:
    """The watchers, looked at."""
    if type(watch) is tuple and not watch:
        return []
    watch = list(watch) if isinstance(watch, Iterable) else [watch]
    for watcher in watch:
        if isinstance(watcher, type) or not callable(watcher):
            raise TypeError(f"watch= takes watchers such as lg.ProgressBar(), functions of a look; got {watcher!r}.")
    return watch


def watched(run: Iterator[tuple[Look, T]], watch: Sequence[Watcher]) -> tuple[T, bool]:
    """Show each look to the watchers; the last of what came with the looks, and whether a watcher stopped the run."""
    look, latest = next(run)
    with ExitStack() as begun:
        for watcher in watch:
            if hasattr(watcher, "begin"):
                watcher.begin(look)
            if hasattr(watcher, "end"):
                begun.callback(lambda end: end(look), watcher.end)  # with the latest look, whatever happens
        while True:
            try:
                wishes = [watcher(look) for watcher in watch]  # every watcher sees every look
            except BaseException as error:
                if latest is not None:
                    error.carry = latest  # type: ignore[attr-defined]
                raise
            if not look.running or any(wishes):
                return latest, look.running
            look, latest = next(run)


class Reached:
    """What is raised inside, on the way of an eager run, leaves with ``result`` of the last carry as its attribute."""

    __slots__ = ("advice", "result")

    def __init__(self, result: Callable[[Carry], Any], advice: str) -> None:
        self.result, self.advice = result, advice

    def __enter__(self) -> None:  # a generator in its place takes three times as many calls, at each solve
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        carry = getattr(error, "carry", None)
        if carry is not None:
            del error.carry
            steps = int(np.max(carry.state.steps))
            with suppress(Exception), leaving():  # what broke the run off is what is told
                error.result = self.result(carry)
            error.add_note(f"{steps} steps were done: {self.advice}")
