"""Running a study: what is missing, one run after the other, each kept as it is finished."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import linop_gn as lg
from linop_gn.app.demo.problem import one_thread
from linop_gn.app.files import MissingDataError, UnusableFileError

from .plan import Form, Run, Study
from .store import Store

__all__ = ["cost", "ordered", "run"]


def cost(runs: Sequence[Run]) -> float:
    """About how many seconds the runs take on two cores."""
    return sum(run.seconds for run in runs)


def ordered(runs: Sequence[Run]) -> list[Run]:
    """The runs, each behind those that it comes after, which join; two of one name would share a file."""
    found: dict[str, Run] = {}
    for item in runs:
        for r in (*ordered(item.after), item):
            if found.setdefault(r.name, r) is not r:
                names = f"{found[r.name].entry!r} and {r.entry!r}"
                raise UnusableFileError(f"two runs would be kept as {r.name}.json, those of {names}: rename one.")
    return list(found.values())


def run(study: Study, runs: Sequence[Run], store: Store, console: Console) -> tuple[int, list[Run]]:
    """Make the runs that are not kept yet, and tell how long the rest will take.

    Returns how many were made, and those that failed: they are told of, and the others go on.
    """
    made, failed = 0, list[Run]()
    missing = [run for run in runs if not store.has(run)]
    columns: Any = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("about {task.fields[left]} left"),
    )
    with _threads(store.form), Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(study.name, total=len(runs), completed=len(runs) - len(missing), left="?")
        expected, spent = 0.0, 0.0
        for i, item in enumerate(missing):
            pace = spent / expected if expected else 1.0  # of this machine
            progress.update(bar, left=_minutes(pace * cost(missing[i:])))
            name = f"{study.name}: {item.case}, {item.entry}, seed {item.seed}"

            def tell(words: str, name: str = name) -> None:
                progress.update(bar, description=escape(f"{name}: {words}"))

            tell("beginning")
            begun = time.perf_counter()
            try:
                if store.has(item):  # another process has made it
                    continue
                before = store.before(item)
                if before is None:
                    absent = [r.name for r in item.after if not store.has(r)]
                    raise RuntimeError(f"it comes after {', '.join(absent)}")
                found = item.work(tell, before) if item.after else item.work(tell)
            except (MissingDataError, OSError, UnusableFileError):
                raise
            except Exception as error:  # of a method of anybody's: the other runs are not to blame
                failed.append(item)
                told = f"{item.name} failed{_where(error)}: {type(error).__name__}: {error}"
                console.print(told, markup=False, highlight=False, soft_wrap=True)
                continue
            finally:
                progress.update(bar, advance=1)
            took = time.perf_counter() - begun
            store.keep(item, found, took)
            made, expected, spent = made + 1, expected + item.seconds, spent + took
    return made, failed


def _where(error: Exception) -> str:
    """The line that raised it, where that is of no installed package."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
    return f" in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def _threads(form: Form) -> AbstractContextManager[Any]:
    """One thread in the quick form, whose matrices are small."""
    if not form.quick or find_spec("threadpoolctl") is None:
        return nullcontext()
    lg.load(form.backend)  # first: the limit is for what is loaded
    return one_thread()


def _minutes(seconds: float) -> str:
    """A duration as people say it.

    >>> _minutes(42.0), _minutes(300.0), _minutes(9000.0)
    ('42 s', '5 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
