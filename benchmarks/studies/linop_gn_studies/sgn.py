"""SGN: a stochastic generalised Gauss-Newton method, against stochastic gradient descent.

    (G + rho I) d = -g    by at most k steps of CG, g and G of one batch    rho0 = 1e-4, by the gain ratio
    x <- x + t d          t by halving from 1 (Armijo)

Perceptrons of sigmoids with weights N(0, 1), batches of 1000; the loss of a regression is the mean of r^2. One draw of
the weights: seeds change the order of the examples only. Nothing of SGN is tuned; SGD has a grid of rates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import linop_gn as lg

from .data import Data, boston, fashion_mnist, mnist, sine
from .models import convolutional, mlp, normal, uniform
from .plan import Entry, Form, Picture, Results, Run, Study, Tell, joined
from .sgn_claims import TIMED, claims
from .training import Task, array_maker, precise, train, tree_of

__all__ = ["study"]

DRAW = 10
"""The seed of the weights."""
SINE, HOUSES = (1, 20, 20, 20, 1), (13, 100, 100, 1)
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
DAMPINGS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Case:
    """A task, who enters, and how long they go on."""

    task: Task
    inner: tuple[int, ...]
    """Values of k."""
    steps: int
    """Of SGN."""
    every: int
    rates: tuple[float, ...] = ()
    sgd: tuple[int, int] = (0, 1)
    """Steps of SGD, and those between two measurements."""
    seeds: int = 5
    costs: tuple[float, float] = (0.001, 0.001)
    """Seconds of a gradient, and of a product."""
    measuring: float = 0.03
    """Seconds of a measurement."""
    dampings: tuple[float, ...] = ()
    """Values of rho0, where they are swept."""

    @property
    def entries(self) -> list[Entry]:
        made = []
        for k in self.inner:
            sweep = {"rho0": self.dampings} if self.dampings else {}
            made.append(Entry(f"SGN({k})", _sgn, {"k": k}, sweep))
        if self.rates:
            made.append(Entry("SGD", _sgd, sweep={"rate": self.rates}, steps=self.sgd[0], seeds=3))
        return made


def _sgn(k: int, rho0: float = 1e-4, early: int | None = 10) -> Any:
    return lg.SGN(k, damping=rho0, early=early, stopping=None)


def _sgd(rate: float) -> Any:
    return lg.FirstOrder(lg.optimisers.SGD(), rate)


def _cases(form: Form) -> dict[str, Case]:
    return _quick(form) if form.quick else _full(form)


def _quick(form: Form) -> dict[str, Case]:
    waves, rates = _regression(sine(10.0), SINE), (0.03, 0.1, 0.3)
    houses, images = _regression(boston(), HOUSES, 101), _digits(mnist(form.data, 2000))
    return {
        "sine 10": Case(waves, (5, 10), 150, 5, rates, (600, 50), seeds=2),
        "Boston": Case(houses, (10,), 110, 10, rates, (300, 50), seeds=1),
        "MNIST": Case(images, (5,), 60, 5, (1.0, 3.0), (300, 20), seeds=1, costs=(0.004, 0.003)),
        "sine 10, batch 100": Case(replace(waves, batch=100), (10,), 150, 25, rates, (150, 25), seeds=1),
        "sine 10, rho0": Case(waves, (10,), 100, 50, seeds=1, dampings=DAMPINGS[::2]),
    }


def _full(form: Form) -> dict[str, Case]:
    waves, quick_waves = _regression(sine(10.0), SINE), _regression(sine(100.0), SINE)
    houses, images, clothes = _regression(boston(), HOUSES, 101), mnist(form.data), fashion_mnist(form.data)
    patient = 3000 if len(images.train[0]) <= 5000 else 9000
    large = (0.004, 0.004)
    made = {
        "sine 10": Case(waves, (5, 10, 20), 1200, 5, RATES, (12000, 150)),
        "sine 10, batch 100": Case(replace(waves, batch=100), (10,), 450, 25, RATES, (1500, 50), seeds=3),
        "sine 10, batch 7000": Case(
            replace(waves, batch=7000), (10,), 450, 25, RATES, (1500, 50), seeds=3, costs=large
        ),
        "sine 10, rho0": Case(waves, (5, 10, 20), 450, 25, seeds=3, dampings=DAMPINGS),
        "sine 100": Case(quick_waves, (10, 20, 30), 900, 25, RATES, (4500, 150)),
        "Boston": Case(houses, (10,), 200, 5, RATES, (2100, 50)),
        "MNIST": Case(_digits(images), (3, 5, 10), 400, 5, RATES[2:], (patient, 50), costs=(0.004, 0.003)),
    }
    if clothes is not None:
        start = uniform(28, ((5, 6), (5, 16)), (120, 84, 10), DRAW)
        task, rates = _classes(clothes, convolutional(28), start), (0.03, 0.1, 0.3)
        seeds, costs = (5, (0.01, 0.02)) if form.name == "gpu" else (2, (0.25, 0.3))
        made["Fashion-MNIST"] = Case(task, (5,), 360, 20, rates, (1200, 60), seeds, costs, measuring=7.0)
    return made


def _digits(data: Data) -> Task:
    return _classes(data, mlp("sigmoid"), normal((784, 20, 20, 20, 10), DRAW))


def _regression(data: Data, widths: Sequence[int], batch: int = 1000) -> Task:
    loss = lg.losses.SquaredError(scale=1.0)
    return Task(mlp("sigmoid"), loss, normal(widths, DRAW), data, batch, accuracy=False)


def _classes(data: Data, model: Callable[[Any, Any], Any], start: Any) -> Task:
    return Task(model, lg.losses.CrossEntropy(), start, data, 1000, dtype="float32")


def plan(form: Form, more: Sequence[Entry] = ()) -> list[Run]:
    runs = []
    for name, case in _cases(form).items():
        for entry in joined(case.entries, [] if case.dampings else more):
            for title, numbers, method in entry.made():
                first = entry.name == "SGD"
                steps, every = case.sgd if first else (entry.steps or case.steps, case.every)
                each = case.costs[0] + (0 if first else numbers.get("k", 10) * case.costs[1])
                seconds = 2 + steps * each + steps // every * case.measuring
                for seed in range(min(case.seeds, entry.seeds or case.seeds)):
                    told = {"numbers": numbers, "steps": steps, "every": every, "data": case.task.data.told}
                    task = replace(case.task, batch=None) if entry.full_batch else case.task
                    settings = {**told, "batch": task.batch, "dtype": task.dtype}
                    work = partial(_train, task, entry.name, method, form.backend, seed, steps, every)
                    runs.append(Run(name, title, seed, work, settings, seconds))
        if name in TIMED:
            work = partial(_side_by_side, case, form.backend)
            runs.append(Run(name, "a step alone", 0, work, {"inner": case.inner}, 20 + 300 * sum(case.costs)))
    return runs


def _train(
    task: Task, entry: str, method: Any, backend: str, seed: int, steps: int, every: int, tell: Tell
) -> dict[str, Any]:
    made = train(task, method, backend, seed=seed, steps=steps, every=every, tell=tell)
    made["figures"]["seconds_per_step"] = made["figures"]["seconds"] / max(1, made["figures"]["step"])
    if seed:
        del made["history"]  # one of each is enough to look at
    return {"of": entry, **made}


REPEATS = 5


def _side_by_side(case: Case, backend: str, tell: Tell) -> dict[str, Any]:
    """Seconds of a step on one batch, many steps in one call: without loader, measuring and the call for each step."""
    task, ops = case.task, lg.load(backend)
    steps = 40 if case.costs[0] < 0.1 else 3
    methods = {"SGD": _sgd(1e-6), **{f"SGN({k})": _sgn(k, early=None) for k in case.inner}}
    clocks: dict[str, list[float]] = {name: [] for name in methods}
    with precise(ops, task.dtype):
        array = array_maker(ops, task.dtype)
        start, batch = tree_of(array, task.start), tuple(array(a[: task.batch]) for a in task.data.train)
        objective = lg.Objective(task.model, task.loss, batch)
        for i in range(REPEATS + 1):
            for name, method in methods.items():  # in turn, so that a busy machine is busy for all
                tell(f"{name}, {i} of {REPEATS}")
                begun = time.perf_counter()
                ops.wait(lg.minimize(objective, start, method, max_steps=steps).state.own)
                clocks[name].append((time.perf_counter() - begun) / steps)
    seconds = {f"seconds, {name}": min(clock[1:]) for name, clock in clocks.items()}  # the first one compiled
    return {"figures": seconds, "curves": {}, "data": task.data.told}


def pictures(results: Results) -> list[Picture]:
    made = []
    axes = ("step", "sequential", "products", "seconds")
    for case in results.cases():
        if case == "sine 10, rho0":
            made.append(Picture("sine 10: training loss at several rho0", case, "train_loss", ("step", "seconds")))
            continue
        best = results.best(case, "SGD", "train_loss")
        entries = list(dict.fromkeys(r["entry"] for r in results.of(case) if r.get("of") != "SGD"))
        entries += [] if best is None else [best]
        made.append(Picture(f"{case}: training loss, SGD at its best rate", case, "train_loss", axes, entries))
        if case in ("MNIST", "Fashion-MNIST"):
            for part, words in (("train", "training"), ("held_out", "held-out")):
                y = f"{part}_accuracy"
                made.append(Picture(f"{case}: {words} accuracy", case, y, ("epoch", "seconds"), entries, log=False))
        if "," not in case:
            made.append(Picture(f"{case}: held-out loss", case, "held_out_loss", axes, entries))
        if case in ("sine 10", "MNIST"):
            made.append(Picture(f"{case}: damping", case, "damping", ("step",), entries))
            made.append(Picture(f"{case}: gain ratio", case, "ratio", ("step",), entries, log=False))
    if results.of("sine 10", "SGD"):
        made.append(Picture("sine 10: SGD at all rates", "sine 10", "train_loss", ("step", "seconds"), ["SGD"]))
    return made


study = Study(
    name="sgn",
    title="SGN: a stochastic generalised Gauss-Newton method",
    paper="Gargiani, Zanelli, Diehl and Hutter, 2020, arXiv 2006.02409",
    about=(
        "Gauss-Newton directions by k steps of CG on one batch, damped by the gain ratio, with Armijo's rule, against "
        "SGD over a grid of rates: sines, Boston housing, MNIST and, where its files are there, Fashion-MNIST; batches "
        "of 1000. One draw of the weights, five orders of the examples, as theirs. Steps are read at the next "
        "measurement: every 5 for SGN. Time is told twice: of the steps alone, and as it was run, where each step has "
        "a call and a batch of its own. Left out: CIFAR-10."
    ),
    plan=plan,
    claims=claims,
    pictures=pictures,
)
