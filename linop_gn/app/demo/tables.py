"""The results as tables, which the terminal and the HTML report both show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...validation import Check, Report
from .agreement import difference
from .race import Entry
from .runs import Run
from .study import Outcome

__all__ = ["Table", "agreement", "drifts", "settings", "training", "validation"]

MARKS = (1e-1, 1e-3, 1e-5)
KINDS = {"dense oracle": "dense", "other laws": "law", "differences": "differences"}


@dataclass(frozen=True)
class Table:
    """Headings, rows of text, and a note that says how to read them. A row may be emphasised by its index."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    strong: frozenset[int] = frozenset()
    numbers_from: int = 1
    """The first column that holds numbers, which are aligned to the right."""
    left_out: frozenset[int] = frozenset()
    """Columns that a narrow terminal is not shown."""


def number(value: float | None, digits: int = 2) -> str:
    """A number as a table shows it."""
    if value is None:
        return "-"
    if not np.isfinite(value):
        return "diverged"
    return f"{value:.{digits}e}" if value and not 1e-2 <= abs(value) < 1e4 else f"{value:.3g}"


def training(outcomes: Mapping[str, Outcome], budget: int) -> Table:
    """What every method came to, and what it cost."""
    headings = ["backend", "method", "best setting", "steps", "products", "passes", "seconds", "warm-up", "final loss"]
    headings += [f"passes to {mark:g}" for mark in MARKS] + ["train %", "test %"]
    rows: list[list[str]] = []
    strong = set()
    for name, outcome in outcomes.items():
        for entry in outcome.entries:
            if not entry.tried:
                strong.add(len(rows))
            rows.append([name, *_training_row(entry)])
    note = (
        f"Budget: {budget} passes for each run; a pass is one gradient over the training set, a Gauss-Newton product "
        "counts as 1.2, a loss as 1/3. Levenberg-Marquardt (CG to a residual of 0.3, Nielsen's damping) ends early "
        "when it has converged or spent the budget. The others show the best of their learning rates and batch sizes "
        "by final training loss. Seconds are for the run shown, without compilation, tuning, or the evaluation of the "
        "curve; the warm-up is a first step, with compilation. Train and test are accuracies. The classes can be "
        "separated, so the loss has no minimum, and a smaller one is not a better classifier."
    )
    wide = frozenset({2, 7, 9, 10, 11})
    return Table("Training", headings, rows, note, frozenset(strong), numbers_from=3, left_out=wide)


def _training_row(entry: Entry) -> list[str]:
    run = entry.best
    reached = [run.reach(mark, run.passes) for mark in MARKS]
    return [
        run.method,
        run.setting,
        str(run.steps),
        str(run.products) if run.products else "-",
        f"{run.passes[-1]:.0f}",
        f"{run.seconds[-1]:.2f}",
        number(entry.warm_up),
        number(run.final),
        *("-" if passes is None else f"{passes:.0f}" for passes in reached),
        f"{100 * entry.train_accuracy:.1f}",
        f"{100 * entry.test_accuracy:.1f}",
    ]


def validation(outcomes: Mapping[str, Outcome], examples: int, parameters: int) -> Table:
    """Every operator against its dense matrix, and all the laws it has to obey."""
    rows = []
    for name, outcome in outcomes.items():
        for checked in outcome.checks:
            report = checked.report
            ran = len(report) - len(report.skipped)
            said = f"FAILED: {', '.join(report.failed)}" if report.failed else f"{ran} of {ran} passed"
            rows.append([name, checked.operator, *(number(_error(report, kind)) for kind in KINDS.values()), said])
    note = (
        f"At the starting point on {examples} examples, {parameters} parameters, float64. Errors are relative: "
        "against the dense matrix that lg.validate assembles by its own path; the largest over the other exact laws "
        "(adjoint, symmetry, columns and the like); and against central differences, which are less exact themselves. "
        "Where the derivatives are written by hand (NumPy), the dense matrix too comes from differences."
    )
    return Table("Validation", ["backend", "operator", *KINDS, "checks"], rows, note, numbers_from=2)


def _error(report: Report, kind: str) -> float | None:
    """The largest error of the checks of this kind; None if there was none."""

    def kind_of(check: Check) -> str:
        return {"dense": "dense", "differences": "differences", "gradient": "differences"}.get(check.name, "law")

    return max((c.error for c in report if c.tolerance and c.error is not None and kind_of(c) == kind), default=None)


def drifts(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Relative difference of each backend's Levenberg-Marquardt losses from the first backend's, step by step."""
    runs = {name: _levenberg(outcome) for name, outcome in outcomes.items()}
    reference = np.asarray(next(iter(runs.values())).losses)
    found = {}
    for name, run in list(runs.items())[1:]:
        losses = np.asarray(run.losses)
        count = min(len(losses), len(reference))
        found[name] = np.abs(losses[:count] - reference[:count]) / np.abs(reference[:count])
    return found


def _levenberg(outcome: Outcome) -> Run:
    return next(entry.best for entry in outcome.entries if not entry.tried)


def agreement(outcomes: Mapping[str, Outcome]) -> Table | None:
    """How closely the backends agree with the first one; None for a single backend."""
    if len(outcomes) < 2:
        return None
    reference, *others = outcomes
    theirs = outcomes[reference].sample
    rows = [
        [quantity, *(number(_apart(outcomes[name].sample.get(quantity), value)) for name in others)]
        for quantity, value in theirs.items()
    ]
    apart = drifts(outcomes)
    for step in (1, 5, 10, 20):
        values = [float(np.max(apart[name][: step + 1])) if step < len(apart[name]) else None for name in others]
        if any(value is not None for value in values):
            rows.append([f"loss, {step} Levenberg-Marquardt step{'s' * (step > 1)}", *map(number, values)])
    note = (
        f"Relative difference from {reference}, float64: first at the starting point, on the examples of the "
        "validation, then the losses of the training runs up to that step. The backends add in different orders; CG "
        "and the nonlinear steps amplify that round-off from one step to the next."
    )
    return Table("Agreement between backends", ["", *(f"{name} and {reference}" for name in others)], rows, note)


def _apart(value: Any, reference: Any) -> float | None:
    return None if value is None else difference(value, reference)


def settings(outcomes: Mapping[str, Outcome]) -> Table:
    """Every setting that was tried for the first-order methods, so that the tuning can be judged."""
    rows: list[list[str]] = []
    strong = set()
    for name, outcome in outcomes.items():
        for entry in outcome.entries:
            for run in entry.tried:
                if run is entry.best:
                    strong.add(len(rows))
                rows.append([name, run.method, run.setting, number(run.final), f"{run.seconds[-1]:.2f}"])
    headings = ["backend", "method", "setting", "final loss", "seconds"]
    return Table("Settings tried", headings, rows, strong=frozenset(strong), numbers_from=3)
