"""The demo under ``torchrun``: one training run, its data shared out over the processes, beside the same run in one.

Each process has every so many-th digit, uneven where the number does not divide. The first one reports, and runs
the other by itself: the parameters that both come to differ by rounding.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ...distributed import DataParallel
from ...minimize import minimize
from ...run.watch import ProgressBar
from .participants import Participant, find
from .problem import Problem, load, one_thread
from .race import METHOD, accuracy

__all__ = ["CLOSE", "QUICK_STEPS", "STEPS", "command", "difference", "started"]

STEPS, QUICK_STEPS, CLOSE = 20, 5, 1e-6


def started() -> int:
    """How many processes a launcher such as torchrun has started for this program; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def command(quick: bool, names: list[str] | None, console: Console) -> int:
    """Run it; 0 if both runs agree, 1 if they do not, 2 if no framework here has process groups."""
    found, _ = find(names)
    ready = [participant for participant in found.values() if hasattr(participant, "in_processes")]
    if not ready:
        console.print(
            f"{started()} processes were started, and {', '.join(found)} cannot work together in several: start one, "
            "or install torch (pip install 'linop-gn[torch]').",
            soft_wrap=True,
        )
        return 2
    with one_thread(), ready[0].in_processes() as (rank, size):
        return _run(ready[0], load(quick), QUICK_STEPS if quick else STEPS, rank, size, console)


def _run(participant: Participant, problem: Problem, steps: int, rank: int, size: int, console: Console) -> int:
    (x, y), start = problem.train, problem.start
    params, whole = participant.params(start), participant.objective(problem.train, start)
    fit = DataParallel(participant.objective((x[rank::size], y[rank::size]), start))
    bar = ProgressBar(f"{size} processes", console=console)
    shared = minimize(fit, params, METHOD, max_steps=steps, watch=[bar])
    if rank:
        return 0
    alone = minimize(whole, params, METHOD, max_steps=steps, watch=[ProgressBar("one process", console=console)])
    apart = difference(participant, shared.params, alone.params)
    console.print(problem.described, markup=False)
    table = Table("run", "examples", "steps", "products", "loss", "accuracy on the test set", title="Training")
    examples = " + ".join(str(len(y[r::size])) for r in range(size))
    for name, told, run in ((f"{size} processes", examples, shared), ("one process", str(len(y)), alone)):
        hits = accuracy(participant, participant.objective(problem.test, start), run.params, problem.test)
        row = str(run.steps), str(run.products), f"{float(run.value):.6g}", f"{hits:.3f}"
        table.add_row(name, told, *row)
    console.print(table)
    console.print(
        f"Each product is one all-reduce of {problem.parameters} numbers; a step of CG sends nothing else. "
        f"The parameters of the two runs differ by {apart:.1e} of their size.",
        soft_wrap=True,
    )
    return 0 if apart < CLOSE else 1


def difference(participant: Participant, one: Any, other: Any) -> float:
    """How far the parameters of two runs are apart, relative to the second's."""
    flat = [
        np.concatenate([leaf.ravel() for layer in participant.weights(tree).values() for leaf in layer.values()])
        for tree in (one, other)
    ]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))
