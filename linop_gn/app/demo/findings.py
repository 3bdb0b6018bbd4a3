"""What came out, in sentences with the numbers of this very run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .agreement import difference
from .problem import Problem
from .runs import Run
from .study import Outcome

__all__ = ["lead", "overtakes"]


def lead(problem: Problem, outcomes: Mapping[str, Outcome]) -> list[str]:
    """The paragraphs that the report opens with."""
    return [
        f"A perceptron of widths {' - '.join(map(str, problem.widths))} ({problem.parameters} parameters, tanh, "
        f"float64) on {len(problem.train[1])} handwritten digits, with {', '.join(outcomes)}: each backend has its own "
        "arrays and derivatives, and all share one source of operators and solvers.",
        " ".join([_validated(outcomes), *_agreed(outcomes)]),
        *_trained(outcomes),
    ]


def _validated(outcomes: Mapping[str, Outcome]) -> str:
    reports = [checked.report for outcome in outcomes.values() for checked in outcome.checks]
    dense = {
        name: max(c.error or 0.0 for checked in outcome.checks for c in checked.report if c.name == "dense")
        for name, outcome in outcomes.items()
    }
    passed = sum(report.passed for report in reports)
    largest = f" Largest relative error against a dense matrix: {', '.join(f'{k} {v:.0e}' for k, v in dense.items())}."
    return f"{passed} of {len(reports)} operators passed every check.{largest}"


def _agreed(outcomes: Mapping[str, Outcome]) -> list[str]:
    first, *others = outcomes.values()
    apart = [
        difference(other.sample[name], value)
        for other in others
        for name, value in first.sample.items()
        if name.endswith("product") and name in other.sample
    ]
    return [f"The backends' products agree to {max(apart):.1e}."] if apart else []


def _trained(outcomes: Mapping[str, Outcome]) -> list[str]:
    """How the methods compare on the first backend that has first-order methods beside Levenberg-Marquardt."""
    for name, outcome in outcomes.items():
        ours, *others = outcome.entries
        if not others:
            continue
        said = [
            f"{entry.best.method} {entry.best.final:.1e} ({100 * entry.test_accuracy:.1f} % of the test digits right)"
            for entry in outcome.entries
        ]
        best = min((entry.best for entry in others), key=lambda run: run.final)
        passes = overtakes(ours.best, best)
        when = "never overtakes" if passes is None else f"is ahead, from {passes:.0f} passes on, of"
        return [
            f"Training loss on {name} after the same number of passes over the data: {', '.join(said)}. "
            f"{ours.best.method} {when} {best.method}, the better of the tuned first-order methods; "
            "how well the network classifies new digits is another matter, and hardly differs."
        ]
    return []


def overtakes(run: Run, other: Run) -> float | None:
    """The passes from which on ``run`` has the lower loss, to its end or the other's; None if it doesn't.

    >>> slow = Run("A", "", [1.0, 0.9, 0.1, 0.01], [0, 1, 2, 3], [], 3, None)
    >>> quick = Run("B", "", [1.0, 0.2, 0.15, 0.12], [0, 1, 2, 3], [], 3, None)
    >>> overtakes(slow, quick), overtakes(quick, slow)
    (2.0, None)
    """
    theirs = np.interp(run.passes, other.passes, np.log(np.maximum(other.losses, 1e-300)))
    ahead = np.log(np.maximum(run.losses, 1e-300)) < theirs
    if not ahead[-1]:
        return None
    behind = np.flatnonzero(~ahead)
    return float(run.passes[behind[-1] + 1 if len(behind) else 0])
