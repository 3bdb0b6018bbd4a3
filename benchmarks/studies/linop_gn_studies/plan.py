"""What a study is: runs that are made one by one, and claims that are judged by what the runs left.

study    a name, the paper, its runs in each form, its claims and its pictures
run      one piece of work with a name: a method trained from one seed, or a measurement
entry    a method that enters a study, under a name of its own, with the numbers that are swept
verdict  a claim, the paper's figure, ours, and whether it held
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

import linop_gn as lg
from linop_gn.app.files import MissingDataError, UnusableFileError

__all__ = ["HELD", "NOT_HELD", "NOT_REACHABLE", "NOT_RUN", "Entry", "Form", "Picture", "Results", "Run", "Study"]
__all__ += ["Verdict", "joined", "judged", "preferred"]

Tell = Callable[[str], None]
"""Called with a few words on how far a run has come."""

HELD, NOT_HELD, NOT_REACHABLE, NOT_RUN = "held", "not held", "not reachable here", "not run"


@dataclass(frozen=True)
class Form:
    """How large a study is to be: ``quick``, ``cpu`` or ``gpu``; on which backend, and where full data sets are."""

    name: str = "quick"
    backend: str = "jax"
    data: Path | None = None

    @property
    def quick(self) -> bool:
        """Whether it is the form of a few minutes."""
        return self.name == "quick"


def preferred() -> str:
    """The backend that studies run on where none is named: one that compiles, else one that differentiates."""
    found = {name: b for name, b in lg.available().items() if not isinstance(b, ImportError)}
    for capability in ("compiled", "derivatives"):
        named = sorted(name for name, b in found.items() if capability in b.capabilities)
        if named:
            return named[-1]  # torch before autograd
    raise MissingDataError("no framework that differentiates is installed: pip install 'linop-gn[cpu,studies]'.")


@dataclass(frozen=True)
class Entry:
    """A method in a study.

    ``method(**numbers)`` makes it; with ``sweep`` it is run at each of these values, and the best one counts.

    >>> import linop_gn as lg
    >>> entry = Entry("SGD", lambda rate: lg.FirstOrder(lg.optimisers.SGD(), rate), sweep={"rate": (0.1, 1.0)})
    >>> [(name, method.rate) for name, _, method in entry.made()]
    [('SGD rate=0.1', 0.1), ('SGD rate=1', 1.0)]
    """

    name: str
    method: Callable[..., Any]
    numbers: Mapping[str, float] = field(default_factory=dict)
    sweep: Mapping[str, Sequence[float]] = field(default_factory=dict)
    full_batch: bool = False
    """Whether a step is of all data."""
    steps: int | None = None
    """How many at most, where that is not what the study gives everybody."""
    seeds: int | None = None
    """From how many seeds at most."""

    def __post_init__(self) -> None:
        if not callable(self.method) or isinstance(self.method, lg.Method):
            raise TypeError(
                f"Entry {self.name!r}: method is a function that makes one, such as lambda rate: lg.SGN(rate=rate), so "
                f"that each run has its own; got {self.method!r}."
            )
        listed = Sequence, np.ndarray
        values = [value for given in self.sweep.values() for value in (given if isinstance(given, listed) else ())]
        numbers = not any(isinstance(v, bool) or not isinstance(v, Real) for v in values)
        if len(self.sweep) > 1 or bool(self.sweep) != bool(values) or not numbers or len(set(values)) < len(values):
            raise ValueError(
                f"Entry {self.name!r}: sweep is one name with its values, numbers that differ, such as "
                "{'rate': (0.1, 1.0)}; other numbers go into numbers=, or into an entry of their own."
            )
        for name, most in (("steps", self.steps), ("seeds", self.seeds)):
            if most is not None and (not isinstance(most, int) or most < 1):
                raise ValueError(f"Entry {self.name!r}: {name} is a whole number, 1 or more, or None; got {most!r}.")

    def made(self) -> Iterator[tuple[str, dict[str, float], Any]]:
        """The name of a run, its numbers and its method, for each value that is swept."""
        if not self.sweep:
            yield self.name, dict(self.numbers), self.method(**self.numbers)
            return
        ((swept, values),) = self.sweep.items()
        for value in values:
            numbers = {**self.numbers, swept: value}
            short = f"{value:g}" if sum(f"{v:g}" == f"{value:g}" for v in values) == 1 else repr(float(value))
            yield f"{self.name} {swept}={short}", numbers, self.method(**numbers)


def joined(own: Iterable[Entry], more: Iterable[Entry]) -> list[Entry]:
    """A study's own entries, and those of others, which need names of their own."""
    made = list(own)
    for entry in more:
        if any(entry.name == e.name for e in made):
            raise UnusableFileError(f"there is an entry called {entry.name!r} already: give yours another name.")
        made.append(entry)
    return made


@dataclass(frozen=True)
class Run:
    """One piece of work, whose result is kept in a file of its own.

    ``work(tell)`` returns what JSON can hold; where the run comes ``after`` others, whose results it depends on, it is
    ``work(tell, results)`` with these. ``seconds`` is about how long it takes on two cores.
    """

    case: str
    entry: str
    seed: int
    work: Callable[..., dict[str, Any]] = field(repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All that the result depends on beside the code: a stored result of others is not this run's."""
    seconds: float = 1.0
    after: Sequence[Run] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        """The name of its file.

        >>> Run("MNIST 5000", "HF-GN, 4", 0, dict).name
        'mnist-5000--hf-gn-4--0'
        """
        parts = (re.sub(r"(?<=\de)\+", "", part.lower()) for part in (self.case, self.entry))  # 1e+20 is 1e20
        words = (re.sub(r"(?:[^\w.=]|_)+", "-", part).strip("-") for part in parts)
        return f"{'--'.join(words)}--{self.seed}"

    @property
    def key(self) -> str:
        """The settings in words, and those of the runs that it comes after."""
        settings = {**self.settings, "after": [run.key for run in self.after]} if self.after else self.settings
        return json.dumps(settings, sort_keys=True, default=str)


class Results:
    """Stored results of one study: dicts with ``case``, ``entry``, ``seed``, ``curves``, ``figures``, ``history``.

    >>> made = Results([{"case": "a", "entry": "SGD", "seed": s, "figures": {"loss": s}} for s in range(3)])
    >>> made.figure("a", "SGD", "loss")
    [0, 1, 2]

    A run that ended in numbers that are not finite has None for its last loss, which counts as infinite, and 0 for its
    accuracy, however good it was at the step before.
    """

    def __init__(self, found: Iterable[dict[str, Any]]) -> None:
        self.all = sorted(map(_broken_off, found), key=lambda r: (r["case"], r["entry"], r["seed"]))

    def __len__(self) -> int:
        return len(self.all)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.all)

    def of(self, case: str | None = None, entry: str | None = None) -> list[dict[str, Any]]:
        """Those of a case, or of an entry at all the values that were swept."""
        return [
            r
            for r in self.all
            if case in (None, r["case"]) and (entry is None or r["entry"] == entry or r.get("of") == entry)
        ]

    def cases(self) -> list[str]:
        """The cases, in order."""
        return list(dict.fromkeys(r["case"] for r in self.all))

    def figure(self, case: str, entry: str, name: str) -> list[Any]:
        """A figure of each seed."""
        return [r["figures"][name] for r in self.of(case, entry) if name in r["figures"]]

    def mean(self, case: str, entry: str, name: str) -> float:
        """The mean over seeds; NaN without runs. A run that diverged counts as infinite."""
        values = [np.inf if v is None else float(v) for v in self.figure(case, entry, name)]
        return float(np.mean(values)) if values else float("nan")

    def best(self, case: str, entry: str, name: str, largest: bool = False) -> str | None:
        """Of the values that an entry was swept over, the name of the one with the best mean figure."""
        names = list(dict.fromkeys(r["entry"] for r in self.of(case, entry)))
        means = {n: self.mean(case, n, name) for n in names}
        known = {n: v for n, v in means.items() if not np.isnan(v)}
        return (max if largest else min)(known, key=known.__getitem__) if known else None

    def edge(self, case: str, entry: str, label: str | None) -> str:
        """A word on it where ``label`` is of the least or the largest of an entry's values, of which no more tell."""
        tried = {r["entry"]: float(r["entry"].rpartition("=")[2]) for r in self.of(case, entry) if r["entry"] != entry}
        inside = label not in tried or min(tried.values()) < tried[label] < max(tried.values())
        return "" if inside else f"{label} is at the edge of what was tried"


def _broken_off(result: dict[str, Any]) -> dict[str, Any]:
    """The result; without its last losses and accuracies where what came next was not finite."""
    if result.get("status") != "NONFINITE":
        return result
    figures, curves = dict(result["figures"]), dict(result["curves"])
    for name in [n for n in {**figures, **curves} if n.endswith(("loss", "accuracy", "error", "rmse"))]:
        if name in figures:
            figures[name] = 0.0 if name.endswith("accuracy") else None
        if name in curves:
            curves[name] = [*curves[name][:-1], None]
    return {**result, "figures": figures, "curves": curves}


@dataclass(frozen=True)
class Verdict:
    """A claim, what the paper says, what came out, and which of the four it is; ``why`` where that needs a word."""

    claim: str
    paper: str
    ours: str
    outcome: str
    why: str = ""


def judged(claim: str, paper: str, ours: str, held: Any, why: str = "") -> Verdict:
    """The verdict of a condition; None: there are no runs to judge by.

    >>> judged("1 < 2", "yes", "yes", 1 < 2).outcome, judged("?", "", "", None).outcome
    ('held', 'not run')
    """
    if held is None:
        return Verdict(claim, paper, "" if "nan" in ours else ours, NOT_RUN, why)
    return Verdict(claim, paper, ours, HELD if held else NOT_HELD, why)


@dataclass(frozen=True)
class Picture:
    """Curves of one case: ``y`` against each of ``xs``, the entries' means over seeds with their spread."""

    title: str
    case: str
    y: str
    xs: Sequence[str] = ("step", "products", "seconds")
    entries: Sequence[str] | None = None
    log: bool = True


@dataclass(frozen=True)
class Study:
    """A published experiment, re-run."""

    name: str
    title: str
    paper: str
    """Where it was published, and who wrote it."""
    about: str
    """What is done here, and in what it differs."""
    plan: Callable[[Form, Sequence[Entry]], list[Run]]
    """``plan(form, more)``: the runs, those of entries of others among them."""
    claims: Callable[[Results], list[Verdict]]
    pictures: Callable[[Results], list[Picture]]
