"""Watchers: what to do at each look of a run.

A watcher is any callable that takes a :class:`~linop_gn.run.loop.Look` and returns
true to stop the run. Methods ``begin(look)`` and ``end(look)`` are called around
the run where a watcher has them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .loop import Look
from .solution import History

__all__ = ["ProgressBar", "Recorder", "stop_when"]


class ProgressBar:
    """A progress bar (rich) with the newest row of the history beside it.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Diagonal(np.array([1.0, 2.0]))
    >>> lg.solve(A, np.ones(2), watch=[lg.ProgressBar(disable=True)]).succeeded
    True
    """

    def __init__(self, description: str | None = None, *, disable: bool = False, console: Any = None) -> None:
        self.description, self.disable, self.console = description, disable, console
        self._progress: Any = None

    def begin(self, look: Look) -> None:
        """Open the bar."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

        columns = "{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "{task.fields[newest]}"
        self._progress = Progress(*columns, console=self.console, disable=self.disable)
        self._progress.start()
        self._progress.add_task(self.description or look.method, total=look.limit, newest="")

    def __call__(self, look: Look) -> None:
        """Move the bar."""
        if self._progress is None:
            self.begin(look)
        newest = "  ".join(f"{name} {_worst(column[-1]):.3g}" for name, column in look.rows.items() if len(column))
        self._progress.update(self._progress.task_ids[0], completed=look.step, newest=newest)

    def end(self, look: Look) -> None:
        """Close the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _worst(value: Any) -> float:
    return float(np.max(np.asarray(value)))


class Recorder:
    """Keeps every look's rows with the seconds since the start; optionally asks for more at each look.

    A run that begins clears what the one before left.

    >>> import numpy as np, linop_gn as lg
    >>> record = lg.Recorder()
    >>> _ = lg.solve(lg.Diagonal(np.array([1.0, 2.0])), np.ones(2), lg.CG(steps=2), watch=[record])
    >>> record.steps, len(record.seconds), len(record.history["residual"])
    ([0, 1, 2], 3, 3)
    """

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


def stop_when(condition: Callable[[Look], Any]) -> Callable[[Look], bool]:
    """A watcher that stops the run when ``condition(look)`` is true.

    >>> import numpy as np, linop_gn as lg
    >>> enough = lg.stop_when(lambda look: look.step >= 1)
    >>> lg.solve(lg.Diagonal(np.arange(1.0, 9.0)), np.ones(8), watch=[enough]).status.name
    'STOPPED'
    """
    return lambda look: bool(condition(look))
