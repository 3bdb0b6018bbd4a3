"""What runs of SGN and SGD showed: races to one loss, in steps and in seconds."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .plan import NOT_REACHABLE, Results, Verdict, judged

__all__ = ["TIMED", "claims"]

BATCHES = (100, 1000, 7000)
"""On sine 10."""
TIMED = ("sine 10", "MNIST", "Fashion-MNIST")
"""Cases in which steps are timed side by side."""
PAPER = {5: 3.5e-4, 10: 1.3e-4, 20: 1.0e-4}
"""Final training loss of SGN(k) on sine 10."""
DEEP, EARLY = (3e-4, 450), (0.15, 35)
"""Losses on sine 10, and the steps that they are to be reached within."""
SEEDS, ENOUGH = 5, 4
"""Runs, and on how many of them a loss is to be reached."""
SLOW = 3900
"""Steps that SGD has learnt nothing after."""


def _reached(run: dict[str, Any], level: float, column: str = "train_loss", sign: float = 1.0) -> tuple[float, float]:
    """The step, and the seconds, at which a curve times ``sign`` first came to a level; infinite if never."""
    curves = run["curves"]
    for i, value in enumerate(curves.get(column, [])):
        if value is not None and sign * value <= level:
            return curves["step"][i], curves["seconds"][i]
    return np.inf, np.inf


def _means(results: Results, case: str, entry: str, level: float) -> tuple[float, float]:
    """The mean over seeds of what a loss took; infinite if a seed never came there."""
    found = [_reached(run, level) for run in results.of(case, entry)]
    steps, seconds = np.mean(found, axis=0) if found else (np.nan, np.nan)
    return float(steps), float(seconds)


class _Race(NamedTuple):
    """Steps and seconds of SGN(k), and of SGD at its quickest rate, to one training loss."""

    k: int
    rival: str
    ours: tuple[float, float]
    theirs: tuple[float, float]
    came: bool
    """Whether SGD came there; else its numbers are those of the whole run at its best rate."""
    edge: str = ""
    """A word on it where its quickest rate is the least or largest that was tried."""

    @property
    def known(self) -> bool:
        return bool(np.isfinite([*self.ours, *self.theirs]).all())

    @property
    def told(self) -> str:
        more = "" if self.came else "more than "
        return f"{_told(self.ours[0])} against {more}{_told(self.theirs[0])} steps ({self.rival})"


def _race(results: Results, case: str, k: int, level: float) -> _Race:
    ours, names = _means(results, case, f"SGN({k})", level), dict.fromkeys(r["entry"] for r in results.of(case, "SGD"))
    made = {name: _means(results, case, name, level) for name in names}
    made = {name: both for name, both in made.items() if np.isfinite(both[0])}
    if made:
        rival = min(made, key=made.__getitem__)
        return _Race(k, rival, ours, made[rival], True, results.edge(case, "SGD", rival))
    best = results.best(case, "SGD", "train_loss")
    if best is None:
        return _Race(k, "no SGD", ours, (np.nan, np.nan), False)
    return _Race(k, best, ours, (results.mean(case, best, "step"), results.mean(case, best, "seconds")), False)


def _at(results: Results, case: str, entry: str, step: int) -> float:
    """The mean training loss at a step; infinite where a run had ended before."""
    values = []
    for run in results.of(case, entry):
        kept = dict(zip(run["curves"]["step"], run["curves"]["train_loss"], strict=True))
        value = kept.get(step)
        values.append(np.inf if value is None else value)
    return float(np.mean(values)) if values else float("nan")


def claims(results: Results) -> list[Verdict]:
    made = [*_sine(results), *_sine_100(results), *_boston(results), *_mnist(results), *_fashion(results)]
    made += [*_robust(results), *_big_batches(results), *_costs(results)]
    cifar = "70.9 % right (SGN(10)) against 65.6 % (SGD); loss .8 after 350 against 2800 steps"
    why = "no package ships CIFAR-10, and the study does not read it"
    return [*made, Verdict("CIFAR-10: SGN is more accurate than SGD", cifar, "not run", NOT_REACHABLE, why)]


def _sine(results: Results) -> list[Verdict]:
    case, made = "sine 10", []
    for level, limit in (DEEP, EARLY):
        for k in PAPER:
            steps = [_reached(run, level)[0] for run in results.of(case, f"SGN({k})")]
            within = sum(step <= limit for step in steps)
            paper = f"{PAPER[k]:.1e} in the end" if level == DEEP[0] else "in the figure"
            claim = f"{case}: SGN({k}) has a loss of {level:g} within {limit} steps on 4 of 5 seeds"
            ours = (
                f"on {within} of {len(steps)}, after {', '.join(_told(step) for step in steps)} steps" if steps else ""
            )
            why = "its own loss in the paper is above that" if PAPER[k] > level else ""
            whole = results.mean(case, f"SGN({k})", "step") >= limit  # or the run was too short to tell
            left = SEEDS - len(steps) + (0 if whole else len(steps) - within)
            why = why or (f"run from {len(steps)} seeds of {SEEDS}" if steps and len(steps) < SEEDS else "")
            held = True if within >= ENOUGH else None if within + left >= ENOUGH else False
            made.append(judged(claim, paper, ours, held, why))
    for k, theirs in PAPER.items():
        loss, taken = results.mean(case, f"SGN({k})", "train_loss"), results.mean(case, f"SGN({k})", "step")
        ours, good = f"{loss:.2e} after {taken:.0f} steps", loss <= 1.5 * theirs
        known = good if good or taken >= 1000 else None  # else the run was too short to tell
        claim = f"{case}: SGN({k})'s training loss is at most one and a half times the paper's"
        made.append(judged(claim, f"{theirs:.1e}", ours, known))
    best = results.best(case, "SGD", "train_loss")
    if best is None:
        return made
    low = min(_at(results, case, name, SLOW) for name in dict.fromkeys(r["entry"] for r in results.of(case, "SGD")))
    loss, taken = results.mean(case, best, "train_loss"), results.mean(case, best, "step")
    told = f"{low:.3g}; {best} {loss:.3g} after {taken:.0f}"
    claim = f"{case}: SGD at its best rate is still above .4 after {SLOW} steps"
    made.append(judged(claim, ".148 after 11392 steps", told, low > 0.4 if np.isfinite(low) else None))
    race = _race(results, case, 10, EARLY[0])
    claim = f"{case}: SGN(10) takes a third of SGD's steps, or fewer, to a loss of {EARLY[0]}"
    held = race.theirs[0] >= 3 * race.ours[0] if race.known else None
    made.append(judged(claim, "SGD comes to .148 after 11392 steps", race.told, held, race.edge))
    made.append(_in_time(results, case, race, "wins"))
    return made


def _in_time(results: Results, case: str, race: _Race, outcome: str) -> Verdict:
    """Who wins on time: the steps alone, and with the batch and the call that each step takes."""
    alone = results.of(case, "a step alone")
    figures = alone[0]["figures"] if alone else {}
    names = f"SGN({race.k})", "SGD"
    each = [figures.get(f"seconds, {name}", np.nan) for name in names]
    bare, more = [race.ours[0] * each[0], race.theirs[0] * each[1]], "" if race.came else "more than "
    told = (
        f"steps alone {bare[0]:.3g} s against {more}{bare[1]:.3g} s; with their calls and batches {race.ours[1]:.3g} s "
        f"against {more}{race.theirs[1]:.3g} s ({race.rival})"
    )
    held = bare[0] < bare[1] if outcome == "wins" else bare[0] >= bare[1]
    known = race.known and not np.isnan(bare).any() and (race.came or bare[0] < bare[1])
    why = "judged by the steps alone: a call and a batch for each step weigh more on SGD"
    claim = f"{case}: {names[0]} {outcome} on time, to the same training loss"
    return judged(claim, f"it {outcome}", told, held if known else None, why)


def _sine_100(results: Results) -> list[Verdict]:
    case = "sine 100"
    if not results.of(case):
        return []
    loss = _at(results, case, "SGN(20)", 700)
    best = results.best(case, "SGD", "train_loss")
    sgd = float("nan") if best is None else results.mean(case, best, "train_loss")
    return [
        judged(
            f"{case}: SGN(20)'s loss is below .42 after 700 steps",
            ".357 (SGN(30) after 601 steps)",
            f"{loss:.3f}; SGN(30) after 600: {_at(results, case, 'SGN(30)', 600):.3f}",
            None if np.isnan(loss) else loss < 0.42,
        ),
        judged(
            f"{case}: SGD learns nothing",
            ".506",
            f"{sgd:.3f} ({best}); the targets' variance is .5",
            None if np.isnan(sgd) else sgd > 0.45,
        ),
    ]


def _boston(results: Results) -> list[Verdict]:
    case, best = "Boston", results.best("Boston", "SGD", "train_loss")
    if best is None or not results.of(case, "SGN(10)"):
        return []
    ours = {n: [results.mean(case, n, f"{part}_loss") for part in ("train", "held_out")] for n in ("SGN(10)", best)}
    steps = results.mean(case, best, "step")
    early = _at(results, case, "SGN(10)", 110)
    told = "; ".join(f"{n} {a:.4f} / {b:.4f}" for n, (a, b) in ours.items())
    told = f"{told} in the end; SGN(10) after 110 steps {early:.4f}, SGD took {steps:.0f}"
    return [
        judged(
            f"{case}: SGN(10) is after 110 steps below the best SGD after all of its own (training / held-out)",
            "SGN(10) .0103 / .0097 in 109 steps; SGD .0239 / .0260 in 2062",
            told,
            early < ours[best][0],
        ),
        judged(
            f"{case}: SGN(10)'s training loss is at most .0103",
            ".0103",
            f"{ours['SGN(10)'][0]:.4f}",
            ours["SGN(10)"][0] <= 0.0103,
        ),
    ]


def _mnist(results: Results) -> list[Verdict]:
    case, found = "MNIST", results.of("MNIST", "SGN(5)")
    if not found:
        return []
    source, made = found[0]["data"]["source"], []
    loss, right = (results.mean(case, "SGN(5)", name) for name in ("train_loss", "held_out_accuracy"))
    best = results.best(case, "SGD", "held_out_accuracy", largest=True)
    sgd = float("nan") if best is None else results.mean(case, best, "held_out_accuracy")
    told = f"SGN(5) {loss:.3f}, {100 * right:.1f} %; {best} {100 * sgd:.1f} %"
    claim, paper = f"{case}: SGN(5) has 93 % of the held-out images right within 400 steps", "after 360; SGD after 8280"
    if "60000" in source:
        steps = [_reached(run, -0.93, "held_out_accuracy", -1.0)[0] for run in found]
        made.append(judged(claim, paper, f"after {', '.join(map(_told, steps))} steps", max(steps) <= 400))
    else:
        small, good = f"{case}: SGN(5) has a training loss of .15 and 87 % of the held-out images right", right >= 0.87
        held = None if "first" in source else loss <= 0.15 and good
        made.append(judged(small, "94.1 % of 60000", told, held, f"run on {source}"))
        made.append(Verdict(claim, paper, told, NOT_REACHABLE, "give all 60000 images: --data DIR"))
    race = _race(results, case, 5, 0.15)
    claim = f"{case}: SGN(5) takes a third of SGD's steps, or fewer, to a training loss of .15"
    paper = "360 against 8280 steps (23 times; to 93 %)"
    told = f"{race.told}; {race.theirs[0] / race.ours[0]:.1f} times"
    made.append(judged(claim, paper, told, race.theirs[0] >= 3 * race.ours[0] if race.known else None, race.edge))
    made.append(_in_time(results, case, race, "wins"))
    return made


def _fashion(results: Results) -> list[Verdict]:
    case = "Fashion-MNIST"
    if not results.of(case, "SGN(5)"):
        why = "give its files: --data DIR with fashion-mnist/, or Debian's dataset-fashion-mnist"
        paper = "88.9 % (SGN(5)), 89.1 % (SGD); loss .3 after 360 against 1200 steps; SGD wins on time"
        return [Verdict(f"{case}: fewer steps than SGD, and more time", paper, "no images", NOT_REACHABLE, why)]
    race, right = _race(results, case, 5, 0.3), results.mean(case, "SGN(5)", "held_out_accuracy")
    best = results.best(case, "SGD", "held_out_accuracy", largest=True)
    sgd = float("nan") if best is None else results.mean(case, best, "held_out_accuracy")
    told = f"{100 * right:.1f} %; {best} {100 * sgd:.1f} %"
    claim = f"{case}: SGN(5) takes a third of SGD's steps, or fewer, to a training loss of .3"
    held = race.theirs[0] >= 3 * race.ours[0] if race.known else None
    return [
        judged(f"{case}: SGN(5) has 88 % of the held-out images right", "88.9 %; SGD 89.1 %", told, right >= 0.88),
        judged(claim, "360 against 1200 steps", race.told, held, race.edge),
        _in_time(results, case, race, "loses"),
    ]


def _robust(results: Results) -> list[Verdict]:
    case = "sine 10, rho0"
    names = dict.fromkeys(r["entry"] for r in results.of(case))
    ours = {n: results.mean(case, n, "train_loss") for n in names}
    rates = dict.fromkeys(r["entry"] for r in results.of("sine 10", "SGD"))
    theirs = {n: results.mean("sine 10", n, "train_loss") for n in rates}
    if not ours or not theirs:
        return []
    start = results.of("sine 10", "SGD")[0]["curves"]["train_loss"][0]
    settled = [loss for loss in theirs.values() if loss <= start]
    worst, best, lost = max(ours.values()), min(settled, default=np.inf), len(theirs) - len(settled)
    spread = worst / min(ours.values())
    told = (
        f"SGN {min(ours.values()):.2e} to {worst:.2e} ({spread:.3g} times, {len(ours)} settings); SGD {best:.2e} to "
        f"{max(settled, default=np.inf):.2e}, and {lost} of {len(theirs)} rates diverge"
    )
    grids = len(ours) > 6 and len(theirs) > 6  # else there is no spread to tell of
    claims = {
        "no rho0 in 1e-6 .. 1e-1 at any k fails (at most ten times the least loss), and some rates of SGD do": (
            spread <= 10 and lost > 0
        ),
        "SGN at its worst rho0 and k ends below SGD at its best rate": worst < best,
    }
    why = "the rates that do not diverge end close together, since none of them has learnt the sine by then"
    return [
        judged(f"sine 10: {claim}", "in the figures", told, held if grids else None, why if best > 0.3 else "")
        for claim, held in claims.items()
    ]


def _big_batches(results: Results) -> list[Verdict]:
    gains, told = [], []
    cases = {batch: "sine 10" if batch == 1000 else f"sine 10, batch {batch}" for batch in BATCHES}
    ends = [run["figures"]["step"] for case in cases.values() for run in results.of(case, "SGN(10)")]
    limit = min(ends, default=0)
    for batch, case in cases.items():
        names = dict.fromkeys(r["entry"] for r in results.of(case, "SGD"))
        ours = _at(results, case, "SGN(10)", limit)
        theirs = min((_at(results, case, name, limit) for name in names), default=np.nan)
        gains.append(theirs / ours)
        if not np.isnan(ours):
            told.append(f"batch {batch}: SGN(10) {ours:.2e}, best SGD {theirs:.2e} ({theirs / ours:.0f} times)")
    known = not np.isnan(gains).any()
    return [
        judged(
            f"sine 10: the larger the batch, the more SGN(10) gains on SGD (loss after {limit} steps)",
            "in the figures",
            "; ".join(told),
            gains[0] < gains[1] < gains[2] if known else None,
        )
    ]


def _costs(results: Results) -> list[Verdict]:
    made = []
    for case in TIMED:
        for run in results.of(case, "a step alone"):
            figures = run["figures"]
            sgd = figures["seconds, SGD"]
            inner = [int(name[13:-1]) for name in figures if name.startswith("seconds, SGN(")]
            each = {k: (figures[f"seconds, SGN({k})"] / sgd - 1) / k for k in inner}
            told = ", ".join(f"k = {k}: 1 + {c:.2f} k" for k, c in each.items())
            told = f"{told}; SGD {1e3 * sgd:.3g} ms"
            claim = f"{case}: a step of SGN(k) costs at most 1 + 1.5 k steps of SGD"
            made.append(judged(claim, "1 + (1.1 to 1.5) k", told, max(each.values()) <= 1.5))
    return made


def _told(steps: float) -> str:
    return f"{steps:.0f}" if np.isfinite(steps) else "no"
