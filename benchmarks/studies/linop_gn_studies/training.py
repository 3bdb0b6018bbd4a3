"""The one loop in which all methods of all studies are trained, so that they share batches, measures and clock.

``lg.minimize`` runs the method on the batches. Every so many steps the parameters are measured on all training and
held-out data. Seconds are those of the steps alone: compilation happens in a run of a few steps before, and
measuring is off the clock.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

import linop_gn as lg

from .data import Data
from .plan import Tell

__all__ = ["Task", "array_maker", "epoch_means", "precise", "train", "tree_of"]

NDArray = np.ndarray[Any, Any]

ROWS = 400
"""Rows of the history that a result keeps."""
CHUNK = 10000
"""Examples that are measured at once."""


@dataclass(frozen=True)
class Task:
    """What is trained: a network on data, in batches of so many; None: all at once."""

    model: Callable[[Any, Any], Any]
    loss: Any
    start: Mapping[str, Any]
    """NumPy arrays."""
    data: Data
    batch: int | None
    dtype: str = "float64"
    accuracy: bool = True
    """Whether the largest output is a class."""
    errors: Callable[[NDArray, NDArray], Mapping[str, float]] | None = None
    """Other figures of outputs and targets, as NumPy arrays, by name."""
    l2: float | None = None
    """Of a Gaussian prior, which is trained with and not measured."""
    chunks: int | None = None
    """Where a step is on all data: into how many parts they are cut, which are those of the curvature in turn."""
    feed: Callable[[Callable[[NDArray], Any], int, int], Iterator[Any]] | None = None
    """``feed(array, seed, steps)``: the items of ``batches=`` of so many steps, where they aren't shuffled epochs."""
    short: bool = True
    """Whether the rest of an epoch, too few for a batch, is a batch."""

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        count = len(self.data.train[0])
        return 1 if self.batch is None else -(-count // self.batch) if self.short else max(1, count // self.batch)


def train(
    task: Task,
    method: Any,
    backend: str,
    *,
    seed: int,
    steps: int,
    every: int,
    tell: Tell,
    before: bool = False,
    counted: Callable[[int, Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """A run as a result keeps it: curves, the history of the method's own columns, figures, status.

    Parameters
    ----------
    seed
        Of the order of the examples.
    every
        Steps between two measurements.
    before
        Whether each batch's loss before its step is wanted, as the figure ``"batch_losses"``.
    counted
        ``counted(step, row)``: more columns of the curves, from the step and the latest row of the method's own.
    """
    ops = lg.load(backend)
    with precise(ops, task.dtype):
        array = array_maker(ops, task.dtype)
        params = tree_of(array, task.start)
        x, y = (a if a.dtype.kind in "iu" else a.astype(task.dtype) for a in task.data.train)
        everything = array(x), array(y)
        whole = lg.Objective(task.model, task.loss, everything, l2=task.l2)
        measure = _Measure(ops, task, lg.Objective(task.model, task.loss, everything) if task.l2 else whole, array)
        feed, plan = task.feed, None
        if feed is None and (task.batch is not None or task.chunks is not None):
            plan = list(itertools.islice(_orders(task, seed), steps))

        def batches(chosen: list[NDArray]) -> Iterator[Any]:
            parts = ((array(x[rows]), array(y[rows])) for rows in chosen)
            return parts if task.batch is not None else (lg.StepData(everything, curvature=part) for part in parts)

        def run(chosen: list[NDArray] | None, limit: int, watch: Any) -> lg.Result:
            parts: dict[str, Any] = {"max_steps": limit} if chosen is None else {"batches": batches(chosen)}
            parts = parts if feed is None else {"batches": feed(array, seed, limit)}
            return lg.minimize(whole, params, method, watch=watch, every=1 if before else every, **parts)

        tell("compiling")
        begun = time.perf_counter()
        measure(params)
        sizes = {} if plan is None else {len(rows): rows for rows in plan}
        # A state is of its batch's size: from each size to each there is a program.
        run(None if plan is None else [*sizes.values(), *sizes.values()], 2, [])
        compiling = time.perf_counter() - begun
        recorder = _Recorder(measure, every, steps, tell, None, counted)
        if before and plan is not None:
            recorder.batch = lambda i: whole.with_data(next(batches([plan[i]]))) if i < len(plan) else None
        recorder.start()
        result = run(plan, steps, [recorder])
    recorder.curves["epoch"] = [step / task.per_epoch for step in recorder.curves["step"]]
    history = {name: _thin(column) for name, column in result.history.items()}
    figures: dict[str, Any] = {name: column[-1] for name, column in recorder.curves.items()}
    if before:
        figures["batch_losses"] = recorder.losses
    return {
        "curves": recorder.curves,
        "history": history,
        "figures": figures,
        "status": result.status.name,
        "steps": int(result.steps),
        "compiling": compiling,
        "data": task.data.told,
    }


class _Measure:
    """Loss on all training and held-out data, the accuracy where there are classes, and the task's own errors."""

    def __init__(self, ops: Any, task: Task, objective: lg.Objective, array: Callable[[NDArray], Any]) -> None:
        self.ops, self.task, self.parts = ops, task, {}
        for name, (x, y) in {"train": task.data.train, "held_out": task.data.test}.items():
            cuts = [slice(i, i + CHUNK) for i in range(0, len(x), CHUNK)]
            self.parts[name] = [(y[cut], objective.with_data((array(x[cut]), array(y[cut])))) for cut in cuts]

    def __call__(self, params: Any) -> dict[str, float | None]:
        made: dict[str, float | None] = {}
        for name, parts in self.parts.items():
            losses, outputs, sizes = [], [], [len(y) for y, _ in parts]
            for y, objective in parts:
                if self.task.accuracy or self.task.errors is not None:  # of the outputs, which take one pass
                    z = self.ops.to_numpy(objective.outputs(params)).astype(float)
                    outputs.append(z)
                if self.task.accuracy:
                    losses.append(float(self.task.loss.total(np, z, y, None)) / y.size)
                else:
                    losses.append(float(objective.value(params)))
            made[f"{name}_loss"] = _number(np.average(losses, weights=sizes))
            whole, targets = np.concatenate(outputs or [[]]), np.concatenate([y for y, _ in parts])
            if self.task.accuracy:
                made[f"{name}_accuracy"] = float(np.mean(whole.argmax(-1) == targets))
            if self.task.errors is not None:
                found = self.task.errors(whole, targets)
                made |= {f"{name}_{error}": _number(value) for error, value in found.items()}
        return made


class _Recorder:
    """A watcher: measures every so many steps, with the clock stopped."""

    def __init__(self, measure: _Measure, every: int, limit: int, tell: Tell, batch: Any, counted: Any) -> None:
        self.measure, self.every, self.limit, self.tell, self.batch = measure, every, limit, tell, batch
        self.counted = counted
        self.curves: dict[str, list[Any]] = {}
        self.losses: list[float | None] = []
        self.spent = 0.0

    def start(self) -> None:
        self.since = time.perf_counter()

    def __call__(self, look: Any) -> bool:
        self.spent += time.perf_counter() - self.since
        last = {name: column[-1] for name, column in look.rows.items() if len(column)}
        due = look.step % self.every == 0 or look.step == self.limit or not look.running
        if due and look.step not in self.curves.get("step", [])[-1:]:
            self._note(look.step, last, look)
        if self.batch is not None and len(self.losses) <= look.step:
            objective = self.batch(look.step)
            if objective is not None:
                self.losses.append(_number(objective.value(look.params)))
        self.since = time.perf_counter()
        return False

    def _note(self, step: int, last: Mapping[str, Any], look: Any) -> None:
        products, evaluations = (int(last.get(name, 0)) for name in ("products", "evaluations"))
        gradients = int(last.get("linearisations", last.get("inner_steps", step)))  # SecondOrder's are its solver's
        row = {
            "step": step,
            "seconds": self.spent,
            "products": products,
            "evaluations": evaluations,
            "sequential": gradients + products + evaluations,
            **self.measure(look.params),
            **{name: _number(last[name]) for name in ("damping", "radius", "ratio") if name in last},
            **({} if self.counted is None else self.counted(step, last)),
        }
        if getattr(look.state, "average", None) is not None:
            row |= {f"averaged_{name}": value for name, value in self.measure(lg.averaged(look.whole)).items()}
        for name, value in row.items():
            self.curves.setdefault(name, []).append(value)
        told = row["train_loss"]
        self.tell(f"step {step} of {self.limit}, loss {'not finite' if told is None else f'{told:.3g}'}")


def _orders(task: Task, seed: int) -> Iterator[NDArray]:
    """The examples of each batch, epoch after epoch in a new order; of each part of all data, in turn."""
    rng, count, size = np.random.default_rng([seed, 2]), len(task.data.train[0]), task.batch
    if size is None:
        assert task.chunks is not None
        yield from itertools.cycle(np.array_split(rng.permutation(count), task.chunks))
    while size is not None:
        order = rng.permutation(count)
        yield from (order[i : i + size] for i in range(0, task.per_epoch * size, size))


def epoch_means(losses: list[float | None], per_epoch: int) -> list[float | None]:
    """The mean of each epoch's numbers; None where one is not finite.

    >>> epoch_means([1.0, 3.0, 2.0, None], 2)
    [2.0, None]
    """
    epochs = (losses[i : i + per_epoch] for i in range(0, len(losses), per_epoch))
    return [None if None in part else float(np.mean(np.array(part, float))) for part in epochs]


def precise(ops: Any, dtype: str) -> AbstractContextManager[Any]:
    """Where that dtype is what it says."""
    wide = dtype == "float64" and ops.calculus is not None
    return ops.calculus.high_precision() if wide else nullcontext()


def array_maker(ops: Any, dtype: str) -> Callable[[NDArray], Any]:
    """NumPy arrays as the backend's: numbers of that dtype, integers of 32 bits."""

    def array(host: NDArray) -> Any:
        return ops.asarray(np.asarray(host), "int32" if host.dtype.kind in "iu" else dtype)

    return array


def tree_of(array: Callable[[NDArray], Any], start: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of NumPy arrays as one of the backend's."""
    return {k: tree_of(array, v) if isinstance(v, Mapping) else array(v) for k, v in start.items()}


def _number(x: Any) -> float | None:
    """A number that JSON knows."""
    value = float(x)
    return value if np.isfinite(value) else None


def _thin(column: Any) -> list[float | None]:
    """At most so many rows, evenly, first and last among them."""
    column = np.asarray(column, dtype=float)
    rows = np.unique(np.linspace(0, len(column) - 1, min(ROWS, len(column))).round().astype(int))
    return [_number(value) for value in column[rows]]
