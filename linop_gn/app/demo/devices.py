"""``linop-gn demo --devices 8``: one training run on several devices of one process, beside the same run on one.

The examples are spread over the devices, and once the parameters with them, so that each holds a part of every vector
that a solver has. A participant that can says so by a method ``on_devices(count, data, start)``, which returns the
start and the objective by how they lie. All runs come to parameters that differ by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import entry_points

from rich.console import Console
from rich.table import Table

from ...minimize import minimize
from ...run.watch import ProgressBar
from ...spaces import Space
from .participants import GROUP, Participant, precision
from .problem import load, one_thread
from .processes import CLOSE, QUICK_STEPS, STEPS, difference
from .race import METHOD, accuracy

__all__ = ["command"]


def command(count: int, quick: bool, names: Sequence[str] | None, console: Console) -> int:
    """Run it; 0 if all runs agree, 1 if they do not, 2 if no framework here spreads arrays over devices."""
    if count < 1:
        console.print(f"--devices takes a number of devices, 1 or more, got {count}.")
        return 2
    loaded = []
    for entry in entry_points(group=GROUP):  # not by find(), whose doctor looks for devices before they are asked for
        with suppress(ImportError):
            loaded += [entry.load()] if entry.name in (names or [entry.name]) else []
    ready = [participant for participant in loaded if hasattr(participant, "on_devices")]
    if not ready:
        named = ", ".join(participant.backend.name for participant in loaded) or "what was named"
        console.print(
            f"{named} cannot spread arrays over devices in one process. Give --backend jax, or start several "
            "processes: torchrun -m linop_gn demo.",
            soft_wrap=True,
        )
        return 2
    with one_thread(), precision(ready[0]):
        return _run(ready[0], count, quick, console)


def _run(participant: Participant, count: int, quick: bool, console: Console) -> int:
    problem, steps = load(quick), QUICK_STEPS if quick else STEPS
    try:
        spread = participant.on_devices(count, problem.train, problem.start)  # type: ignore[attr-defined]
    except LookupError as error:
        console.print(str(error.args[0]), markup=False, soft_wrap=True)
        return 2
    alone = participant.params(problem.start), participant.objective(problem.train, problem.start)
    console.print(problem.described, markup=False)
    table, apart, one = Table(title=f"Training on {count} devices"), [], None
    for heading in ("run", "numbers of a vector on a device", "steps", "products", "loss", "accuracy on the test set"):
        table.add_column(heading)
    for name, (params, fit) in ({"one device": alone} | spread).items():
        bar = ProgressBar(name, console=console)
        run = minimize(fit, params, METHOD, max_steps=steps, watch=[bar])
        layout = Space.of(run.params).layout
        held = problem.parameters if layout is None else layout.size // count
        found = participant.params(participant.weights(run.params))
        hits = accuracy(participant, participant.objective(problem.test, problem.start), found, problem.test)
        table.add_row(name, str(held), str(run.steps), str(run.products), f"{float(run.value):.6g}", f"{hits:.3f}")
        one = run.params if one is None else one
        apart.append(difference(participant, run.params, one))
    console.print(table)
    console.print(
        f"A product of the second run is one all-reduce of {problem.parameters} numbers; in the third the parameters "
        "and the vectors of all solvers lie over the devices. The parameters that the runs come to differ by "
        f"{max(apart):.1e} of their size.",
        soft_wrap=True,
    )
    return 0 if max(apart) < CLOSE else 1
