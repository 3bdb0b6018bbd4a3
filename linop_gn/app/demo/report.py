"""The results as tables for the terminal, and as one HTML file that needs no other."""

from __future__ import annotations

import base64
import io
import os
import platform
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...validation import Report
from ..files import write_whole
from .plot import draw
from .problem import Problem
from .race import Entry
from .runs import Run
from .study import Outcome

__all__ = [
    "agreement",
    "drifts",
    "findings",
    "fitted",
    "overtakes",
    "settings",
    "training",
    "validation",
    "won",
    "write",
]

MARKS = (1e-1, 1e-3, 1e-5)
WIDE = 125
"""Columns of a terminal below which the training table leaves some of its own out."""
OTHERS = {"dense": "dense oracle", "differences": "differences", "gradient": "differences"}
TITLE = "linop_gn: curvature products validated and put to work"


def write(
    folder: Path,
    problem: Problem,
    outcomes: Mapping[str, Outcome],
    budget: int,
    console: Console,
    fits: Mapping[str, Sequence[Run]],
) -> tuple[Path, Path]:
    """Print the tables, and write the plot and the report into ``folder``."""
    page = Console(record=True, width=180, file=io.StringIO(), highlight=False)
    page.print(f"[bold]{TITLE}[/bold]")
    for paragraph in [problem.described, *findings(outcomes), *map(won, fits, fits.values())]:
        page.print("", paragraph, sep="\n", markup=False)
    for to in (console, page):
        shown = [
            validation(outcomes, problem),
            training(outcomes, budget, to.width >= WIDE),
            fitted(fits),
            agreement(outcomes),
        ]
        for table in filter(None, [*shown, settings(outcomes) if to is page else None]):
            to.print("", table)
    page.print("", " · ".join(_made_with(outcomes)), soft_wrap=True)
    picture, report, drawn = folder / "training.png", folder / "report.html", io.BytesIO()
    curves = {name: [entry.best for entry in o.entries] for name, o in outcomes.items()}
    draw(curves, drifts(outcomes), fits).savefig(drawn, format="png")
    image = base64.b64encode(drawn.getvalue()).decode()
    html = page.export_html(inline_styles=True).replace("<head>", f"<head><title>{TITLE}</title>", 1)
    plot = f'<figure><img width="1100" alt="Losses by steps, passes and seconds" src="data:image/png;base64,{image}">'
    plot += f"<figcaption>{escape(caption(outcomes))}</figcaption></figure>"
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(picture, drawn.getvalue())
    write_whole(report, html.replace("</body>", f"{plot}</body>").encode())
    return picture, report


def findings(outcomes: Mapping[str, Outcome]) -> list[str]:
    """What came out, in sentences with the numbers of this very run: the paragraphs that the report opens with."""
    reports = [report for outcome in outcomes.values() for report in outcome.reports.values()]
    dense = {
        name: max(check.error or 0.0 for report in o.reports.values() for check in report if check.name == "dense")
        for name, o in outcomes.items()
    }
    (_, first), *others = outcomes.items()
    products = [
        (o.sample[k], v) for _, o in others for k, v in first.sample.items() if "product" in k and k in o.sample
    ]
    apart = [_difference(theirs, ours) for theirs, ours in products]
    said = [
        f"{sum(report.passed for report in reports)} of {len(reports)} operators passed every check. Largest relative "
        f"error against a dense matrix: {', '.join(f'{name} {_number(error)}' for name, error in dense.items())}."
        + (f" The backends' products agree to {_number(max(apart))}." if apart else "")
    ]
    compared = next(((name, o.entries) for name, o in outcomes.items() if len(o.entries) > 1), None)
    if compared is None:
        return said
    name, (ours, *tuned) = compared
    best = min((entry.best for entry in tuned), key=lambda run: run.final)
    passes, right = overtakes(ours.best, best), [100 * entry.test_accuracy for entry in (ours, *tuned)]
    reached = [f"{entry.best.method} {_number(entry.best.final)}" for entry in (ours, *tuned)]
    when = f"has the lower loss from {passes:.0f} passes on" if passes is not None else "ends with the higher loss"
    return [
        *said,
        f"Training loss reached on {name} within the same number of passes: {', '.join(reached)}. {ours.best.method} "
        f"{when}, against {best.method}, the better of the tuned first-order methods. Test digits classified right: "
        f"{', '.join(f'{share:.1f} %' for share in right)}, {max(right) - min(right):.1f} points apart; "
        "a lower training loss is not a better classifier.",
    ]


def won(name: str, runs: Sequence[Run]) -> str:
    """What came of a fit, in a sentence."""
    ours, adam = runs
    return (
        f"{name[0].upper()}{name[1:]}: Gauss-Newton comes to {_number(ours.final)} in {ours.steps} steps and "
        f"{ours.seconds[-1]:.2f} s, Adam, at the best of its rates, to {_number(adam.final)} in {adam.steps} steps and "
        f"{adam.seconds[-1]:.2f} s."
    )


def fitted(fits: Mapping[str, Sequence[Run]]) -> Table:
    """The fits' runs: half the sum of squares that each came to."""
    rows = [
        {"fit": name, "method": run.method, "setting or end": run.setting, "steps": str(run.steps)}
        | {"seconds": f"{run.seconds[-1]:.2f}", "half the squares": _number(run.final)}
        for name, runs in fits.items()
        for run in runs
    ]
    note = (
        "On NumPy, from one start, with Jacobians by hand: lg.least_squares, and Adam at the best of four rates, one "
        "for all parameters, whatever their units. The network's are the residuals of u'' = f. How long a run of Adam "
        "goes on is a choice; its seconds are beside it."
    )
    ours = [i for i, row in enumerate(rows) if row["method"] != "Adam"]
    return _table("Fits in which curvature decides", rows, note, 3, ours)


def caption(outcomes: Mapping[str, Outcome]) -> str:
    """What each panel of the picture shows."""
    first = next(iter(outcomes))
    return (
        "Above: the training loss on the digits by steps, by passes over the data and by seconds. Below, left and in "
        "the middle: the two fits, half the sum of squares by seconds. Below, right: how far each backend's losses in "
        f"the run of Levenberg-Marquardt are from {first}'s, relative, the largest difference up to each step. They "
        "begin at rounding, and steps enlarge it."
    )


def overtakes(run: Run, other: Run) -> float | None:
    """The passes from which on ``run`` has the lower loss, to its end or the other's; None if it doesn't.

    >>> slow = Run("A", "", [1.0, 0.9, 0.1, 0.01], [0, 1, 2, 3], [], 3, None)
    >>> quick = Run("B", "", [1.0, 0.2, 0.15, 0.12], [0, 1, 2, 3], [], 3, None)
    >>> overtakes(slow, quick), overtakes(quick, slow)
    (2.0, None)
    """
    theirs = np.interp(run.passes, other.passes, np.log(np.maximum(other.losses, 1e-300)))
    behind = np.flatnonzero(~(np.log(np.maximum(run.losses, 1e-300)) < theirs)) + 1
    after = int(behind[-1]) if len(behind) else 0
    return float(run.passes[after]) if after < len(run.passes) else None


def _made_with(outcomes: Mapping[str, Outcome]) -> list[str]:
    """Versions and the machine."""
    made = [f"Python {platform.python_version()}"]
    named = [package for outcome in outcomes.values() for package in outcome.packages]
    for package in dict.fromkeys(["linop-gn", "numpy", "scipy", "scikit-learn", *named]):
        try:
            made.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return [*made, f"{platform.machine()}, {os.cpu_count()} cores, one thread for BLAS and OpenMP"]


def _table(
    title: str, rows: Sequence[Mapping[str, str]], note: str = "", words: int = 1, strong: Collection[int] = ()
) -> Table:
    """Rows by heading; all but the first ``words`` columns hold numbers, and some rows, by index, are emphasised."""
    made = Table(title=title, caption=note, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    made.title_justify, made.title_style = made.caption_justify, made.caption_style = "left", "bold"
    made.caption_style = "dim"
    for i, heading in enumerate(rows[0]):
        made.add_column(heading, justify="right" if i >= words else "left")
    for i, row in enumerate(rows):
        made.add_row(*map(escape, row.values()), style="bold" if i in strong else None)
    return made


def _number(value: float | None, digits: int = 2) -> str:
    if value is None:
        return "-"
    if not np.isfinite(value):
        return "diverged"
    return f"{value:.{digits}e}" if value and not 1e-2 <= abs(value) < 1e4 else f"{value:.3g}"


def training(outcomes: Mapping[str, Outcome], budget: int, wide: bool = True) -> Table:
    """What every method came to, and what it cost."""
    rows = [_training_row(name, entry, wide) for name, outcome in outcomes.items() for entry in outcome.entries]
    ours = [i for i, entry in enumerate(e for o in outcomes.values() for e in o.entries) if not entry.tried]
    note = (
        f"Budget: {budget} passes for each run; a pass is one gradient over the training set, a Gauss-Newton product "
        "counts as 1.2, a loss as 1/3. Levenberg-Marquardt (CG to a residual of 0.3, Nielsen's damping) ends early "
        "when it has converged or spent the budget. The others show the best of their learning rates and batch sizes "
        "by final training loss. Seconds are for the run shown, without compilation, tuning, or the evaluation of the "
        "curve; the warm-up is a first step, with compilation. Train and test are accuracies. The classes can be "
        "separated, so the loss has no minimum, and a smaller one is not a better classifier."
    )
    return _table("Training", rows, note, 3 if wide else 2, ours)


def _training_row(name: str, entry: Entry, wide: bool) -> dict[str, str]:
    run = entry.best
    reached = {f"passes to {mark:g}": run.reach(mark) for mark in MARKS}
    row = {"backend": name, "method": run.method}
    row |= {"best setting": run.setting} if wide else {}
    row |= {"steps": str(run.steps), "products": str(run.products or "-"), "passes": f"{run.passes[-1]:.0f}"}
    row |= {"seconds": f"{run.seconds[-1]:.2f}"}
    row |= {"warm-up": _number(entry.warm_up)} if wide else {}
    row |= {"final loss": _number(run.final)}
    row |= {mark: "-" if passes is None else f"{passes:.0f}" for mark, passes in reached.items()} if wide else {}
    return row | {"train %": f"{100 * entry.train_accuracy:.1f}", "test %": f"{100 * entry.test_accuracy:.1f}"}


def validation(outcomes: Mapping[str, Outcome], problem: Problem) -> Table:
    """Every operator against its dense matrix, and all the laws it has to obey."""
    rows = []
    for backend, outcome in outcomes.items():
        for operator, report in outcome.reports.items():
            ran = len(report) - len(report.skipped)
            said = f"FAILED: {', '.join(report.failed)}" if report.failed else f"{ran} of {ran} passed"
            rows.append({"backend": backend, "operator": operator, **_errors(report), "checks": said})
    note = (
        f"At the starting point on {len(problem.check[1])} examples, {problem.parameters} parameters, float64. Errors "
        "are relative: against the dense matrix that lg.validate assembles by its own path; the largest over the other "
        "exact laws (adjoint, symmetry, columns and the like); and against central differences, which are less exact "
        "themselves. Where the derivatives are written by hand (NumPy), the dense matrix too comes from differences."
    )
    return _table("Validation", rows, note, 2)


def _errors(report: Report) -> dict[str, str]:
    """The largest error of each kind of checks."""
    worst: dict[str, float | None] = {"dense oracle": None, "other laws": None, "differences": None}
    for check in report:
        if check.tolerance and check.error is not None:
            kind = OTHERS.get(check.name, "other laws")
            worst[kind] = max(worst[kind] or 0.0, check.error)
    return {kind: _number(error) for kind, error in worst.items()}


def drifts(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Relative difference of each backend's Levenberg-Marquardt losses from the first backend's, step by step."""
    first, *others = ((name, np.asarray(outcome.entries[0].best.losses)) for name, outcome in outcomes.items())
    found = {}
    for name, losses in others:
        count = min(len(losses), len(first[1]))
        found[name] = np.abs(losses[:count] - first[1][:count]) / np.abs(first[1][:count])
    return found


def agreement(outcomes: Mapping[str, Outcome]) -> Table | None:
    """How closely the backends agree with the first one; None for a single backend."""
    if len(outcomes) < 2:
        return None
    reference, *others = outcomes
    rows: list[tuple[str, list[float | None]]] = []
    for quantity, value in outcomes[reference].sample.items():
        theirs = (outcomes[name].sample.get(quantity) for name in others)
        rows.append((quantity, [None if x is None else _difference(x, value) for x in theirs]))
    apart = drifts(outcomes)
    for step in (1, 5, 10, 20):
        values = [float(np.max(apart[name][: step + 1])) if step < len(apart[name]) else None for name in others]
        if any(value is not None for value in values):
            rows.append((f"loss, {step} Levenberg-Marquardt step{'s' * (step > 1)}", values))
    note = (
        f"Relative difference from {reference}, float64: first at the starting point, on the examples of the "
        "validation, then the losses of the training runs up to that step. The backends add in different orders; CG "
        "and the nonlinear steps amplify that round-off from one step to the next."
    )
    headings = ["", *(f"{name} and {reference}" for name in others)]
    shown = [dict(zip(headings, [quantity, *map(_number, values)], strict=True)) for quantity, values in rows]
    return _table("Agreement between backends", shown, note)


def _difference(value: Any, reference: Any) -> float:
    """The 2-norm of the difference over that of the reference."""
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def settings(outcomes: Mapping[str, Outcome]) -> Table | None:
    """Every setting that was tried for the first-order methods, so that the tuning can be judged; None for none."""
    tried = [(name, e, run) for name, outcome in outcomes.items() for e in outcome.entries for run in e.tried]
    rows = [
        {"backend": name, "method": run.method, "setting": run.setting}
        | {"final loss": _number(run.final), "seconds": f"{run.seconds[-1]:.2f}"}
        for name, _, run in tried
    ]
    best = [i for i, (_, entry, run) in enumerate(tried) if run is entry.best]
    return _table("Settings tried", rows, words=3, strong=best) if rows else None
