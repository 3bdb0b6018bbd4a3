"""Watchers: what to do at each look of a run.

A watcher is any callable that takes a :class:`~linop_gn.run.loop.Look` and returns
true to stop the run. Methods ``begin(look)`` and ``end(look)`` are called around
the run where a watcher has them.
"""

from __future__ import annotations

import inspect
import io
import math
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..arguments import require_number
from ..protocols import Tree
from .loop import Look
from .solution import History

__all__ = ["Budget", "ProgressBar", "Recorder", "as_scipy_calls", "found", "stop_when"]


class ProgressBar:
    """A progress bar (rich) with the newest row of the history beside it. Of several processes the first shows it.

    In notebooks it takes ipywidgets, and where there are none it is text that is written over.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Diagonal(np.array([1.0, 2.0]))
    >>> lg.solve(A, np.ones(2), watch=[lg.ProgressBar(disable=True)]).succeeded
    True
    """

    stops, shows = False, True
    """What runs over several processes ask: whether it may end a run, and whether one of them is enough to show it."""

    def __init__(self, description: str | None = None, *, disable: bool = False, console: Any = None) -> None:
        self.description, self.disable, self.console = description, disable, console
        self._open: list[Any] = []
        self._text: dict[Any, _Text] = {}

    def begin(self, look: Look) -> None:
        """Open a bar, below that of a run which this one is part of."""
        from rich.errors import LiveError
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

        columns = "{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "{task.fields[newest]}"
        made = Progress(*columns, console=self.console, disable=self.disable)
        try:
            if made.console.is_jupyter and not self.disable and find_spec("ipywidgets") is None:
                made = Progress(*columns, disable=True)  # rich would warn at each update
                self._text[made] = _Text()
            made.start()
        except LiveError:  # of a rich that shows one thing at a time
            made = Progress(*columns, disable=True)
        made.add_task(self.description or look.method, total=look.limit, newest="")
        self._open.append(made)

    def __call__(self, look: Look) -> None:
        """Move the bar."""
        if not self._open:
            self.begin(look)
        bar = self._open[-1]
        bar.update(bar.task_ids[0], completed=look.step, newest=look.newest())
        if bar in self._text:
            self._text[bar].show(bar)

    def end(self, look: Look) -> None:
        """Close the bar."""
        if self._open:
            bar = self._open.pop()
            bar.stop()
            if bar in self._text:
                self._text.pop(bar).show(bar, last=True)


class _Text:
    """What a notebook shows of a bar without ipywidgets: text in the place of the text before, ten times a second."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.latest = -math.inf

    def show(self, bar: Any, last: bool = False) -> None:
        """Write it over; the last time whatever the clock says."""
        from rich.console import Console

        if not last and time.perf_counter() < self.latest + 0.1:
            return
        self.latest = time.perf_counter()
        paper = io.StringIO()
        Console(file=paper, width=100, force_jupyter=False, color_system=None).print(bar)
        text = {"text/plain": paper.getvalue().rstrip()}
        if self.handle is None:
            self.handle = import_module("IPython.display").display(text, raw=True, display_id=True)
        else:
            self.handle.update(text, raw=True)


class Recorder:
    """Keeps every look's rows with the seconds since the start; optionally asks for more at each look.

    A run that begins clears what the one before left.

    >>> import numpy as np, linop_gn as lg
    >>> record = lg.Recorder()
    >>> _ = lg.solve(lg.Diagonal(np.array([1.0, 2.0])), np.ones(2), lg.CG(steps=2), watch=[record])
    >>> record.steps, len(record.seconds), len(record.history["residual"])
    ([0, 1, 2], 3, 3)
    """

    stops = False

    def __init__(self, measure: Callable[[Look], Any] | None = None) -> None:
        self.measure = measure
        self.begin()

    def begin(self, look: Look | None = None) -> None:
        """Forget the run before, and start the clock."""
        self.steps: list[int] = []
        self.seconds: list[float] = []
        self.measured: list[Any] = []
        self._rows: dict[str, list[Any]] = {}
        self._start = time.perf_counter()

    def __call__(self, look: Look) -> None:
        """Keep this look."""
        self.seconds.append(time.perf_counter() - self._start)
        self.steps.append(look.step)
        for name, column in look.rows.items():
            self._rows.setdefault(name, [])[look.first :] = list(column)
        if self.measure is not None:
            self.measured.append(self.measure(look))

    @property
    def history(self) -> History:
        """All rows seen, by name."""
        return History({name: np.asarray(columns) for name, columns in self._rows.items()})


class Budget:
    """A watcher that stops the run once it took so many seconds, or products by the method's own count.

    The clock starts with the run, or where it goes on. No step is broken off: the last one may go beyond.
    Where several processes work together, all of them stop once one has used it up.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Diagonal(np.arange(1.0, 99.0))
    >>> run = lg.solve(A, np.ones(98), watch=[lg.Budget(seconds=60.0, products=3)])
    >>> run.status.name, run.products
    ('STOPPED', 3)
    """

    def __init__(self, *, seconds: float = math.inf, products: float = math.inf) -> None:
        if seconds == products == math.inf:
            raise ValueError("Budget: give seconds=, products= or both; passes= and max_steps= are minimize's.")
        for name, limit in (("seconds", seconds), ("products", products)):
            require_number("Budget", name, limit, infinite=True)
        self.seconds, self.products = seconds, products
        self._start, self._before = time.perf_counter(), 0.0

    def begin(self, look: Look) -> None:
        """Start the clock."""
        self._start, self._before = time.perf_counter(), _products(look)

    def __call__(self, look: Look) -> bool:
        """Whether it is used up."""
        spent = _products(look) - self._before
        return time.perf_counter() - self._start >= self.seconds or spent >= self.products


def _products(look: Look) -> float:
    return float(np.sum(np.asarray(getattr(look.state, "products", 0.0))))


def stop_when(condition: Callable[[Look], Any]) -> Callable[[Look], bool]:
    """A watcher that stops the run when ``condition(look)`` is true.

    >>> import numpy as np, linop_gn as lg
    >>> enough = lg.stop_when(lambda look: look.step >= 1)
    >>> lg.solve(lg.Diagonal(np.arange(1.0, 9.0)), np.ones(8), watch=[enough]).status.name
    'STOPPED'
    """
    return lambda look: bool(condition(look))


def found(space: Any, state: Any) -> Tree:
    """A copy of x of a state, as users have it."""
    return space.unpack(space.backend.copy(state.x))


def as_scipy_calls(
    callback: Callable[..., Any], x_of: Callable[[Any], Tree], more: Callable[[Any], dict[str, Any]]
) -> Callable[[Look], bool]:
    """A watcher that calls with x = ``x_of(state)``, or with SciPy's ``intermediate_result=``, which has ``more``."""
    takes_result = "intermediate_result" in inspect.signature(callback).parameters

    def watcher(look: Look) -> bool:
        if look.step == 0:
            return False
        x = x_of(look.state)
        try:
            if takes_result:
                from scipy.optimize import OptimizeResult

                callback(intermediate_result=OptimizeResult(**{"x": x, "nit": look.step, **more(look.state)}))
            else:
                callback(x)
        except StopIteration:
            return True
        return False

    return watcher
