"""``linop-gn demo``: curvature products on real data, validated and put to work.

For each backend: the Hessian, Gauss-Newton and block Gauss-Newton operators of
a small network are validated against dense matrices, and the network is trained
with Levenberg-Marquardt beside SGD and Adam. See :mod:`.race` for the rules. Two fits, a curve's and a differential
equation's, show where curvature decides: :mod:`.fits`. Under
``torchrun`` it is one run over all processes: :mod:`.processes`; with ``--devices`` one over the devices of one:
:mod:`.devices`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..files import MissingDataError, require_folder
from . import devices, processes
from .fits import fits
from .participants import find
from .problem import Problem, load, one_thread
from .report import write
from .study import Outcome, pieces, study

__all__ = ["command", "run"]

BUDGET, QUICK_BUDGET = 500, 60


def command(options: argparse.Namespace) -> int:
    """Run the demo; 0 if every operator passed, 1 if one did not, 2 if something is not installed."""
    console = Console(highlight=False)
    if processes.started() > 1:
        return processes.command(options.quick, options.backend, console)
    if options.devices is not None:
        return devices.command(options.devices, options.quick, options.backend, console)
    begin, folder = time.perf_counter(), require_folder(options.out)
    try:
        problem, outcomes, missing = run(options.backend, options.quick, console)
        with one_thread(), console.status("two fits, on NumPy"):
            beside = fits(options.quick)
        files = write(folder, problem, outcomes, QUICK_BUDGET if options.quick else BUDGET, console, beside)
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
    problem = load(quick)
    participants, missing = find(names)
    console.print(problem.described, markup=False)
    budget, outcomes = QUICK_BUDGET if quick else BUDGET, {}
    who, what = TextColumn("{task.fields[who]}"), TextColumn("{task.description}", markup=False)
    columns = who, BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(), what
    with one_thread(), Progress(*columns, console=console) as progress:
        for name, participant in participants.items():
            total, seen = pieces(participant, problem, budget, quick), set[str]()
            task = progress.add_task("", total=total, who=f"{name} {participant.backend.version()}")

            def tell(sentence: str, task: Any = task, seen: set[str] = seen) -> None:
                seen.add(sentence.partition(":")[0])
                progress.update(task, completed=len(seen) - 1, description=sentence)

            outcomes[name] = study(participant, problem, budget, quick, tell)
            progress.update(task, completed=total, description="done")
    return problem, outcomes, missing
