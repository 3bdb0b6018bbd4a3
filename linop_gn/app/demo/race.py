"""Training from one start on one data set: Levenberg-Marquardt beside first-order methods.

Everybody minimises the mean cross-entropy over the training set and may spend
the same number of passes. First-order methods are tuned: every learning rate on
their grid, with the full batch and with mini-batches, each for the whole budget,
and the run with the lowest final training loss counts. Levenberg-Marquardt is
run once, full batch, with settings that are the same for all backends.

Seconds are those of the steps: compilation and the evaluation of the curve are
outside the clock, except that Levenberg-Marquardt evaluates its loss anyway.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...curvature.at_point import GGN
from ...curvature.objective import Objective
from ...methods.named import LevenbergMarquardt
from ...minimize import minimize
from ...run.loop import Look
from ...solvers.cg import CG
from .participants import Participant, Tell
from .problem import Batch, Problem
from .runs import LOSS, PRODUCT, Plan, Run

__all__ = ["RATES", "Entry", "first_order", "levenberg_marquardt", "plans"]

RATES = {"SGD": (0.1, 0.3, 1.0, 3.0), "Adam": (0.003, 0.01, 0.03, 0.1)}
METHOD = LevenbergMarquardt(curvature=GGN, solver=CG(rtol=0.3, max_steps=30), damping=1.0, rtol=1e-7)
MOST_STEPS = 60


@dataclass(frozen=True)
class Entry:
    """A method's best run, all the runs that were tried for it, and how well the result classifies."""

    best: Run
    train_accuracy: float
    test_accuracy: float
    tried: list[Run] = field(default_factory=list)
    warm_up: float | None = None
    """Seconds before the clock: a first step, with compilation, where that is what was timed."""


class _Clock:
    """A watcher that notes the time of each step, and stops the run when its passes are spent."""

    def __init__(self, budget: float, tell: Tell) -> None:
        self.budget, self.tell, self.start = budget, tell, time.perf_counter()
        self.seconds: list[float] = []

    def __call__(self, look: Look) -> bool:
        self.seconds.append(time.perf_counter() - self.start)
        self.tell(f"Levenberg-Marquardt: step {look.step}, loss {float(look.rows['value'][-1]):.2e}")
        return float(passes_of(look.step, look.rows["products"][-1])) >= self.budget


def passes_of(steps: Any, products: Any) -> Any:
    """Passes after ``steps`` steps: a gradient, and for each step a loss, at most one new gradient, and products.

    >>> round(float(passes_of(3, 10)), 6)
    17.0
    """
    return 1 + (1 + LOSS) * np.asarray(steps) + PRODUCT * np.asarray(products)


def levenberg_marquardt(participant: Participant, problem: Problem, budget: int, tell: Tell) -> Entry:
    """Levenberg-Marquardt with the Gauss-Newton operator and CG, after a warm-up of one step."""
    objective = participant.objective(problem.train, problem.start)
    params = participant.params(problem.start)
    tell("Levenberg-Marquardt: warming up")
    begin = time.perf_counter()
    minimize(objective, params, METHOD, max_steps=MOST_STEPS, watch=[lambda look: look.step >= 1])
    warm_up = time.perf_counter() - begin
    clock = _Clock(budget, tell)
    result = minimize(objective, params, METHOD, max_steps=MOST_STEPS, watch=[clock])
    history = result.history
    steps = np.arange(len(history["value"]))
    run = Run(
        method="LM-GN-CG",
        setting="fixed, full batch",
        losses=history["value"].tolist(),
        passes=passes_of(steps, history["products"]).tolist(),
        seconds=clock.seconds,
        steps=int(steps[-1]),
        products=int(history["products"][-1]),
        params=result.params,
    )
    return _entry(participant, problem, objective, run, warm_up=warm_up)


def plans(optimizer: str, problem: Problem, budget: int, quick: bool) -> Iterator[Plan]:
    """Every setting that is tried for a first-order method."""
    for batch in (None, problem.batch):
        for rate in RATES[optimizer][1:3] if quick else RATES[optimizer]:
            yield Plan(optimizer, rate, batch, budget)


def first_order(
    participant: Participant, optimizer: str, problem: Problem, budget: int, quick: bool, tell: Tell
) -> Entry:
    """The best run of a first-order method over its settings."""
    tried = []
    for plan in plans(optimizer, problem, budget, quick):
        tell(f"{optimizer}, {plan.setting}")
        tried.append(participant.train(plan, problem.start, problem.train))
    best = min(tried, key=lambda run: run.final)
    objective = participant.objective(problem.train, problem.start)
    return _entry(participant, problem, objective, best, tried=tried)


def _entry(participant: Participant, problem: Problem, objective: Objective, run: Run, **more: Any) -> Entry:
    return Entry(
        run,
        accuracy(participant, objective, run.params, problem.train),
        accuracy(participant, participant.objective(problem.test, problem.start), run.params, problem.test),
        **more,
    )


def accuracy(participant: Participant, objective: Objective, params: Any, data: Batch) -> float:
    """The fraction of digits whose largest logit is the right one."""
    logits = participant.backend.to_numpy(objective.outputs(params))
    return float(np.mean(np.argmax(logits, axis=1) == data[1]))
