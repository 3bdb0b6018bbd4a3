"""The potential of second-order optimisation for language models: Gauss-Newton by an inner optimiser.

    Gauss-Newton     N inner steps of Muon on the loss's expansion to the second order along f(x) + J (q - x)
    prox-linear      the same with the loss itself
    layerwise        either with a model for each block (embedding, each layer, head), the others held
    control          the N inner steps on the true loss: nothing is linearised, nothing searched
    GGN-CG-LM        10 steps of conjugate gradients on the whole batch, damping by the gain ratio
    AdamW, Muon, SOAP   one step for a batch, the rate rising over the first 5

A batch is N minibatches; the search takes as many fresh ones. All begin at one checkpoint of parameters and read the
text once, in one order. Steps are counted to a common loss: what SOAP reaches after 40 steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import linop_gn as lg

from .language import BASELINES, CONTROL, LM, Case, Scale, Small, changed, inside
from .language import entries as entries_of
from .llm_claims import METHODS, claims
from .plan import Entry, Form, Picture, Results, Run, Study, Tell, joined
from .running import ordered
from .training import array_maker, tree_of
from .transformer import Size, blocks

__all__ = ["best_numbers", "study"]


def _cost(case: Case, entry: Entry, steps: int, programs: float = 1.0) -> float:
    """About how many seconds a run takes: what methods take beside Gauss-Newton, measurements, programs."""
    share = {"layerwise": 1.4, "layerwise prox": 1.4, CONTROL: 0.4, "AdamW": 0.3, "Muon": 0.35, "SOAP": 0.6, LM: 4.5}
    return steps * case.scale.seconds * (share.get(entry.name, 1.0) + 0.3) + programs * (3 if case.form.quick else 8)


class _Planner:
    """The runs of one case: sweeps on seed 0 at half the steps, then the best rate on all seeds."""

    def __init__(self, case: Case, entries: Mapping[str, Entry]) -> None:
        self.case, self.entries, self.sweeps = case, entries, dict[str, list[Run]]()

    def steps(self, entry: Entry) -> int:
        """Outer steps of an entry in full."""
        return entry.steps or self.case.scale.steps * (self.case.scale.longer if entry.name in BASELINES else 1)

    def every(self, entry: Entry) -> int:
        """Outer steps between two measurements."""
        return 2 if entry.name in BASELINES else 1

    def swept(self, name: str, case: str | None = None, half: bool = True, every: int = 5) -> list[Run]:
        """A run for each value."""
        entry, runs = self.entries[name], []
        steps = self.steps(entry) // 2 if half else self.steps(entry)
        for i, (value, numbers, method) in enumerate(entry.made()):
            work = partial(
                self.case.train, name, method, isinstance(entry, Small), 0, steps, every, numbers=dict(numbers)
            )
            settings = self.case.settings(steps, numbers=numbers)
            title = f"{self.case.name}: rates" if case is None else case
            runs.append(Run(title, value, 0, work, settings, _cost(self.case, entry, steps, i == 0)))
        return runs

    def best(self, name: str, seed: int, carried: Sequence[Run] | None = None) -> list[Run]:
        """The sweep, unless one is carried over, and the run at its best value."""
        entry, steps, case = self.entries[name], self.steps(self.entries[name]), self.case
        if not entry.sweep:
            method, small = entry.method(**entry.numbers), isinstance(entry, Small)
            plain = partial(case.train, name, method, small, seed, steps, self.every(entry))
            return [Run(case.name, name, seed, plain, case.settings(steps), _cost(case, entry, steps))]
        if name not in self.sweeps:
            self.sweeps[name] = self.swept(name) if carried is None else list(carried)
        after = self.sweeps[name]

        def work(tell: Tell, results: Results) -> dict[str, Any]:
            numbers = best_numbers(results)
            method = entry.method(**numbers)
            every = self.every(entry)
            return case.train(name, method, isinstance(entry, Small), seed, steps, every, tell, numbers=numbers)

        cost = _cost(case, entry, steps, 0.0 if carried is None else 1.0)
        run = Run(case.name, name, seed, work, case.settings(steps), cost, after)
        return [*([] if carried is not None else after), run]


def best_numbers(results: Results) -> dict[str, float]:
    """Those of the run that ends lowest."""

    def last(r: dict[str, Any]) -> float:
        loss = r["figures"]["held_out_loss"]
        return float("inf") if loss is None else float(loss)

    numbers: dict[str, float] = min(results, key=last)["numbers"]
    return numbers


def plan(form: Form, more: Sequence[Entry] = ()) -> list[Run]:
    scales = _scales(form)
    runs: list[Run] = []
    first: _Planner | None = None
    for i, (name, scale) in enumerate(scales.items()):
        entries = {e.name: e for e in joined(entries_of(form.backend, scale.size).values(), more)}
        planner = _Planner(Case(name, scale, form), entries)
        if first is None:
            first, seeds = planner, 3 if form.name == "cpu" and form.backend == "jax" else 1
            for seed, entry in itertools.product(range(seeds), entries):
                if seed < (entries[entry].seeds or seeds):
                    runs += planner.best(entry, seed)
        else:  # rates carried over
            kept = ("GN", "layerwise", *BASELINES, *(entry.name for entry in more))
            runs += [run for entry in kept for run in planner.best(entry, 0, first.sweeps.get(entry))]
        if i == 0 and form.name == "cpu" and form.backend == "jax":
            runs += _beyond(planner) + _changed(planner, seeds) + _batches(form, name, scale)
        if i == 0 and form.name != "gpu":
            runs += _spectra(planner.case)
    return ordered(runs)


def _scales(form: Form) -> dict[str, Scale]:
    if form.quick:
        return {"quick": Scale(Size(1, 32, 2), 32, 8, 8, 100, 12, 3, 16, 128, 0.05)}
    if form.name == "gpu":
        size, larger = Size(6, 384, 6), Size(14, 512, 8)
        big = Scale(size, 256, seconds=1.0)
        return {_title(size): big, _title(larger): replace(big, size=larger, seconds=3.0)}
    size, larger = Size(2, 64, 4), Size(5, 128, 4)
    return {_title(size): Scale(size, seconds=0.6), _title(larger): Scale(larger, seconds=3.3)}


def _title(size: Size) -> str:
    """The number of parameters.

    >>> _title(Size(2, 64, 4)), _title(Size(14, 512, 8))
    ('0.116M parameters', '44.2M parameters')
    """
    return f"{size.parameters / 1e6:.3g}M parameters"


BEYOND = {"layerwise": 0.08, "AdamW": 0.03, "Muon": 0.16, "SOAP": 0.1}
"""Rates beyond the largest that is chosen from, where that is the best one: to see that they are no better."""


def _beyond(planner: _Planner) -> list[Run]:
    """A run at each of these rates, which nothing comes after."""
    others = {name: replace(planner.entries[name], sweep={"rate": (rate,)}) for name, rate in BEYOND.items()}
    return [run for name in others for run in _Planner(planner.case, others).swept(name)]


def _changed(planner: _Planner, seeds: int) -> list[Run]:
    """Gauss-Newton at its best rate with one part another, and with AdamW inside at rates of its own."""
    case, after, runs = planner.case, planner.sweeps["GN"], []
    steps, title = case.scale.steps, f"{case.name}: changed"
    for name, (method, scale) in changed(case.form.backend, case.scale.size, case.scale).items():
        other = replace(case, scale=scale)

        def work(
            tell: Tell, results: Results, seed: int, name: str = name, method: Any = method, other: Case = other
        ) -> dict[str, Any]:
            numbers = best_numbers(results)
            return other.train(name, method(**numbers), False, seed, steps, 1, tell, numbers=numbers)

        for seed in range(seeds):
            settings, seconds = other.settings(steps), steps * scale.seconds * 1.3 + 8 * (seed == 0)
            runs.append(Run(title, name, seed, partial(_seeded, work, seed), settings, seconds, after))
    entry = inside(case.form.backend, case.scale.size)
    for name, numbers, method in entry.made():
        for seed in range(seeds):
            work = partial(case.train, entry.name, method, False, seed, steps, 1, numbers=dict(numbers))
            settings = case.settings(steps, numbers=numbers)
            runs.append(Run(title, name, seed, work, settings, _cost(case, entry, steps)))
    return runs


def _seeded(work: Any, seed: int, tell: Tell, results: Results) -> dict[str, Any]:
    made: dict[str, Any] = work(tell, results, seed)
    return made


def _batches(form: Form, name: str, scale: Scale) -> list[Run]:
    """Gauss-Newton and the baselines with N a quarter and four times as many, each at all rates, for equal tokens."""
    runs = []
    for count in (scale.count // 4, scale.count, scale.count * 4):
        other = replace(scale, count=count, seconds=scale.seconds * count / scale.count)
        outer = -(-scale.steps * scale.count // count)
        case = Case(f"{name}: batches of {count * scale.minibatch // 1024}k", other, form)
        entries = entries_of(form.backend, scale.size)
        chosen = {n: replace(entries[n], steps=outer * (1 if n == "GN" else 2)) for n in ("GN", *BASELINES)}
        planner = _Planner(case, chosen)
        for entry in chosen:
            runs += planner.swept(entry, case.name, half=False, every=max(1, scale.count // count))
    return runs


def _spectra(case: Case) -> list[Run]:
    """Ritz values of each block of the Gauss-Newton matrix at the checkpoint."""
    vectors = 10 if case.form.quick else 40

    def work(block: int, tell: Tell) -> dict[str, Any]:
        task = case.task("whole", 0)
        assert task.feed is not None
        array = array_maker(lg.load(case.form.backend), "float32")
        data = next(task.feed(array, 0, 1))
        start = tree_of(array, task.start)
        objective = lg.Objective(task.model, task.loss, data)
        parts = blocks(case.scale.size)
        A = lg.BlockGGN(objective, start, blocks=parts)
        space = objective.at(start).space
        places = next(b for b in A.partition or () if b.name == [*parts][block]).ranges
        b = np.zeros(space.size)
        rng = np.random.default_rng(block)
        for begin, end in places:
            b[begin:end] = rng.standard_normal(end - begin)
        tell(f"{vectors} products")
        values = lg.krylov(A, array(b), k=vectors).eigenvalues().values
        found = sorted((float(v) for v in values), reverse=True)
        figures = {"largest": found[0], "least": found[-1]}
        return {"curves": {"number": list(range(1, len(found) + 1)), "ritz": found}, "figures": figures}

    seconds = vectors * case.scale.seconds * 0.4 + 4
    settings = case.settings(0, vectors=vectors)
    names = enumerate(blocks(case.scale.size))
    title = f"{case.name}: Ritz values"
    return [Run(title, name, 0, partial(work, i), settings, seconds) for i, name in names]


# pictures


def pictures(results: Results) -> list[Picture]:
    made = []
    for case in [c for c in results.cases() if ":" not in c]:
        for y, name, log in (
            ("held_out_loss", "held-out loss", False),
            ("train_loss", "loss on text of the warm-up", False),
            ("held_out_accuracy", "held-out accuracy", False),
        ):
            made.append(Picture(f"{case}: {name}", case, y, ("step", "sequential", "products"), log=log))
            made.append(Picture(f"{case}: {name}, data and time", case, y, ("tokens", "seconds"), log=log))
        made.append(Picture(f"{case}: damping of {LM}", case, "damping", ("step",), [LM]))
        made.append(Picture(f"{case}: gain ratio of {LM}", case, "ratio", ("step",), [LM], log=False))
        inner = [n for n in METHODS if results.of(case, n) and "length" in results.of(case, n)[0]["curves"]]
        if inner:
            made.append(Picture(f"{case}: lengths of the search", case, "length", ("step",), inner, log=False))
        for c in results.cases():
            if c.startswith(f"{case}: batches of "):
                best = [results.best(c, n, "held_out_loss") for n in ("GN", *BASELINES)]
                kept = [n for n in best if n is not None]
                made.append(Picture(c, c, "held_out_loss", ("tokens", "solve_tokens", "step"), kept, log=False))
            if c == f"{case}: changed":
                made.append(Picture(c, c, "held_out_loss", ("step", "sequential"), log=False))
            if c == f"{case}: Ritz values":
                made.append(Picture(f"{c} of Gauss-Newton's blocks", c, "ritz", ("number",)))
    return made


study = Study(
    name="llm",
    title="The potential of second-order optimisation for language models",
    paper="Abreu, Vyas, Kakade and Morwani, arXiv 2510.09378",
    about=(
        "A decoder of characters on the source of Python's standard library, read once; 64 characters a sequence, "
        "minibatches of 16, N = 16 of them a batch; AdamW for 200 small steps, then parameters only. Rates: three "
        "values on one seed at half the steps (and a larger one where the largest of these was the best), the best on "
        "all seeds, by the held-out loss that is judged; those of the baselines rise over 5 steps. Weights are "
        "evaluated raw. The common loss is what the best-tuned SOAP has after 40 steps, for each seed; "
        "crossings are interpolated. In the paper a batch is 4M tokens and more and the network has 45M or 150M "
        "parameters. Beside it stand N inner steps on the true loss, and Gauss-Newton by conjugate gradients on the "
        "whole batch. Shampoo is left out. On torch SOAP is pytorch-optimizer's, whose first update is .72 of the "
        "authors'; on JAX it is held to the authors' rule."
    ),
    plan=plan,
    claims=claims,
    pictures=pictures,
)
