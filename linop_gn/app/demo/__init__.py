"""``linop-gn demo``: curvature products on real data, validated and put to work.

For each backend: the Hessian, Gauss-Newton and block Gauss-Newton operators of
a small network are validated against dense matrices, and the network is trained
with Levenberg-Marquardt beside SGD and Adam. See :mod:`.race` for the rules.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from .problem import Problem
    from .study import Outcome

__all__ = ["command", "run", "write"]

BUDGET, QUICK_BUDGET = 500, 60


def command(options: argparse.Namespace) -> int:
    """Run the demo; 0 if every operator passed, 1 if one did not, 2 if something is not installed."""
    from .problem import MissingDataError

    console = Console(highlight=False)
    begin = time.perf_counter()
    try:
        problem, outcomes, missing = run(options.backend, options.quick, console)
        budget = QUICK_BUDGET if options.quick else BUDGET
        files = write(Path(options.out), problem, outcomes, budget, console)
    except (MissingDataError, LookupError) as error:
        console.print(str(error.args[0]), markup=False, soft_wrap=True)
        return 2
    for entry in missing:
        absent = f"{entry['name']} took no part ({entry['reason']}). To add it:  {entry['install']}"
        console.print(absent, markup=False, soft_wrap=True)
    console.print(f"\nDone in {time.perf_counter() - begin:.0f} s. Written:", *map(str, files), sep="\n  ")
    return 0 if all(outcome.passed for outcome in outcomes.values()) else 1


def run(
    names: Sequence[str] | None, quick: bool, console: Console
) -> tuple[Problem, dict[str, Outcome], list[dict[str, Any]]]:
    """Everything but the report: the problem, each backend's outcome, and the backends that are missing."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from .participants import find
    from .problem import load, one_thread
    from .study import count, study

    problem = load(quick)
    participants, missing = find(names)
    budget = QUICK_BUDGET if quick else BUDGET
    console.print(
        f"Digits: {len(problem.train[1])} to train on, {len(problem.test[1])} to test on; a perceptron of widths "
        f"{' - '.join(map(str, problem.widths))} with {problem.parameters} parameters, float64.\n"
        f"Backends: {', '.join(f'{name} {p.backend.version()}' for name, p in participants.items())}.",
        markup=False,
    )
    words = TextColumn("{task.fields[who]:>6}"), TextColumn("{task.description}")
    outcomes = {}
    with one_thread(), Progress(words[0], BarColumn(24), TimeElapsedColumn(), words[1], console=console) as progress:
        for name, participant in participants.items():
            total = count(participant, problem, budget, quick)
            task = progress.add_task("", total=total, who=name)
            done = _Pieces(progress, task)
            outcomes[name] = study(participant, problem, budget, quick, done)
            progress.update(task, completed=total, description="done")
    return problem, outcomes, missing


class _Pieces:
    """Moves a bar by one for each new piece of work, and says what it is."""

    def __init__(self, progress: Any, task: Any) -> None:
        self.progress, self.task, self.seen = progress, task, list[str]()

    def __call__(self, sentence: str) -> None:
        piece = sentence.partition(", step")[0].partition(", warming")[0]
        if piece not in self.seen:
            self.seen.append(piece)
        self.progress.update(self.task, completed=len(self.seen) - 1, description=sentence)


def write(
    folder: Path, problem: Problem, outcomes: Mapping[str, Outcome], budget: int, console: Console
) -> tuple[Path, Path]:
    """Print the tables and write the plot and the report into ``folder``."""
    from . import tables
    from .findings import lead
    from .plot import DARK, LIGHT, draw, png
    from .report import page
    from .show import show

    shown = [
        tables.validation(outcomes, len(problem.check[1]), problem.parameters),
        tables.training(outcomes, budget),
        tables.agreement(outcomes),
    ]
    present = [table for table in shown if table is not None]
    for table in present:
        show(table, console)
    curves = {name: [entry.best for entry in outcome.entries] for name, outcome in outcomes.items()}
    light, dark = (png(draw(curves, tables.drifts(outcomes), theme)) for theme in (LIGHT, DARK))
    folder.mkdir(parents=True, exist_ok=True)
    picture, report = folder / "training.png", folder / "report.html"
    picture.write_bytes(light)
    html = page(lead(problem, outcomes), (light, dark), present, tables.settings(outcomes), _made_with(outcomes))
    report.write_text(html, encoding="utf-8")
    return picture, report


def _made_with(outcomes: Mapping[str, Outcome]) -> list[str]:
    """Versions and the machine."""
    made = [f"linop-gn {version('linop-gn')}", f"Python {platform.python_version()}"]
    named = [package for outcome in outcomes.values() for package in outcome.packages]
    for package in dict.fromkeys(["numpy", "scipy", "scikit-learn", *named]):
        try:
            made.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return [*made, f"{platform.machine()}, {os.cpu_count()} cores, one thread for BLAS and OpenMP"]
