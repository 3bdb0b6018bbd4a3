"""A language model of characters: the methods, the data and a run of the study :mod:`~.llm`, which tells of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

import linop_gn as lg
from linop_gn.app.files import MissingDataError

from .data import Data, Text, characters
from .plan import Entry, Form, Tell
from .training import Task, array_maker, train, tree_of
from .transformer import Size, blocks, decoder, drawn

__all__ = ["BASELINES", "CONTROL", "LM", "Case", "Scale", "Small", "Transposed", "changed", "entries", "inside"]

NDArray = np.ndarray[Any, Any]
o = lg.optimisers

RATES = {
    "GN": (0.01, 0.02, 0.04),
    "AdamW": (0.001, 0.003, 0.01),
    "Muon": (0.02, 0.04, 0.08),
    "SOAP": (0.003, 0.01, 0.03),
    "AdamW inside": (0.001, 0.003, 0.01),
}
BASELINES = ("AdamW", "Muon", "SOAP")
CONTROL, LM = "control: N steps on the true loss", "GGN-CG-LM"
DECAYS = (0.5, 0.8, 0.9)
WARM = 16
"""Sequences in a batch of the warm-up."""


@dataclass(frozen=True)
class Scale:
    """How large a case is: the network, sequences of ``length`` characters, N minibatches of ``inner`` of them."""

    size: Size
    length: int = 64
    inner: int = 16
    count: int = 16
    warm: int = 200
    steps: int = 30
    """Outer steps; those with one gradient a step take ``longer`` times as many."""
    longer: int = 4
    common: int = 40
    """The common loss is what SOAP has after so many."""
    measured: int = 256
    """Sequences of each measurement."""
    seconds: float = 1.0
    """What an outer step of Gauss-Newton takes."""

    @property
    def minibatch(self) -> int:
        """Its tokens."""
        return self.inner * self.length

    @property
    def told(self) -> dict[str, Any]:
        """What a result depends on."""
        settings = {name: value for name, value in vars(self).items() if name not in ("size", "seconds")}
        return {**settings, **vars(self.size)}


@dataclass(frozen=True)
class Small(Entry):
    """An entry whose step is of one minibatch: N of them stand beside one step of the others."""


@lg.record
class Transposed(o.Optimiser):
    """``optimiser`` on the transposes of matrices: for one that takes them as (outputs, inputs)."""

    optimiser: o.Optimiser

    def init(self, ops: Any, space: lg.Space, x: Any) -> Any:
        """The optimiser's."""
        return self.optimiser.init(ops, _turned(space), _turn(ops, space, x))

    def update(self, ops: Any, space: lg.Space, gradient: Any, kept: Any, x: Any, rate: Any) -> tuple[Any, Any]:
        """The optimiser's."""
        there = _turned(space)
        g, w = (_turn(ops, space, v) for v in (gradient, x))
        d, kept = self.optimiser.update(ops, there, g, kept, w, rate)
        return _turn(ops, there, d), kept


def _turned(space: lg.Space) -> lg.Space:
    return replace(space, shapes=tuple(shape[::-1] for shape in space.shapes))


def _turn(ops: Any, space: lg.Space, x: Any) -> Any:
    return space.join([ops.namespace().permute_dims(leaf, (1, 0)) for leaf in space.split(x)])


# methods


@lru_cache(maxsize=8)
def _optimisers(backend: str, size: Size) -> dict[str, Any]:
    """Each by name, made once for each backend: an object of optax is a part of the compiled program."""
    adamw = o.Adam(weight_decay=1e-3)
    muon: o.Optimiser
    rotated: o.Optimiser
    if backend == "jax":
        try:
            import optax
        except ImportError as error:
            raise MissingDataError(
                "on JAX Muon is optax's, which is not installed.\nGet it by:  pip install 'linop-gn[studies]'"
            ) from error
        from linop_gn_jax.optimisers import Optax

        from .soap import soap

        muon = Optax(optax.contrib.muon(1.0, beta=0.95, adam_weight_decay=1e-3))
        rotated = Optax(soap(1.0, 0.9, 0.95, weight_decay=1e-4))
    else:
        import torch
        from linop_gn_torch.optimisers import TorchOptimiser

        try:
            from pytorch_optimizer import SOAP
        except ImportError as error:
            raise MissingDataError(
                "on torch SOAP is pytorch-optimizer's, which is not installed.\n"
                "Get it by:  pip install 'linop-gn[studies-torch]'"
            ) from error
        matrices = Transposed(TorchOptimiser(torch.optim.Muon, weight_decay=0.0))
        muon = o.Groups("matrices", {"matrices": matrices, "others": adamw})
        rotated = TorchOptimiser(SOAP, betas=(0.9, 0.95), weight_decay=1e-4, precondition_frequency=10)
    rules = {name: o.Clip(muon if name.startswith("block") else adamw) for name in blocks(size)}
    return {
        "muon": o.Groups({"adamw": ["embedding", "head"], "muon": "*"}, {"adamw": o.Clip(adamw), "muon": o.Clip(muon)}),
        "layerwise": o.Groups(blocks(size), rules),
        "AdamW": o.Clip(o.Adam(0.9, 0.95)),
        "AdamW inside": o.Clip(adamw),
        "SOAP": o.Clip(rotated),
    }


def entries(backend: str, size: Size) -> dict[str, Entry]:
    """The methods by name."""
    found, rates = _optimisers(backend, size), {"rate": RATES["GN"]}
    muon, each, parts = found["muon"], found["layerwise"], blocks(size)
    made = [
        Entry("GN", lambda rate: lg.InnerGaussNewton(muon, rate), sweep=rates),
        Entry("layerwise", lambda rate: lg.InnerGaussNewton(each, rate, blocks=parts), sweep=rates),
        Entry("prox", lambda rate: lg.ProxLinear(muon, rate), sweep=rates),
        Entry("layerwise prox", lambda rate: lg.ProxLinear(each, rate, blocks=parts), sweep=rates),
        Small(CONTROL, lambda rate: lg.FirstOrder(muon, rate), sweep=rates),
        Entry(LM, lambda: lg.LevenbergMarquardt(solver=lg.CG(rtol=1e-3, max_steps=10), stopping=None)),
        Entry("AdamW", lambda rate: _warmed(found["AdamW"], rate), sweep={"rate": RATES["AdamW"]}),
        Entry("Muon", lambda rate: _warmed(muon, rate), sweep={"rate": RATES["Muon"]}),
        Entry("SOAP", lambda rate: _warmed(found["SOAP"], rate), sweep={"rate": RATES["SOAP"]}),
    ]
    return {entry.name: entry for entry in made}


def _warmed(rule: o.Optimiser, rate: float) -> lg.FirstOrder:
    """A baseline: at the checkpoint it knows nothing of the gradients before, and its rate rises over 5 steps."""
    return lg.FirstOrder(rule, rate, schedule=lg.controls.WarmUp(5, begin=rate / 5))


def changed(backend: str, size: Size, scale: Scale) -> dict[str, tuple[Callable[[float], Any], Scale]]:
    """What is changed of Gauss-Newton, at its best rate: the method, and the case where that is another one."""
    muon, n = _optimisers(backend, size)["muon"], scale.count
    gn = partial(lg.InnerGaussNewton, muon)
    whole, inner = lg.controls.Cosine(steps=n * scale.steps), lg.controls.Cosine(steps=n)
    made: dict[str, tuple[Callable[[float], Any], Scale]] = {
        "no line search": (partial(gn, search=None), scale),
        "10 lengths": (partial(gn, search=lg.searches.Grid(count=10)), scale),
        "cold inner start": (partial(gn, warm=False), scale),
        "global cosine": (partial(gn, schedule=whole), scale),
        "global x inner cosine": (partial(gn, schedule=whole, inner_schedule=inner), scale),
        "inner cosine": (partial(gn, inner_schedule=inner), scale),
    }
    for factor in (4, 1 / 4):
        other = replace(scale, count=int(n / factor), inner=int(scale.inner * factor))
        made[f"N = {other.count}"] = gn, other
    return made | {f"EMA {decay:g}": (partial(gn, average=decay), scale) for decay in DECAYS}


def inside(backend: str, size: Size) -> Entry:
    """Gauss-Newton with AdamW in Muon's place."""
    rule = _optimisers(backend, size)["AdamW inside"]
    return Entry("AdamW inside", lambda rate: lg.InnerGaussNewton(rule, rate), sweep={"rate": RATES["AdamW inside"]})


# data


def _sequences(symbols: NDArray, length: int) -> NDArray:
    """Rows of ``length`` + 1 characters."""
    return symbols[: len(symbols) // (length + 1) * (length + 1)].reshape(-1, length + 1)


def _pair(rows: NDArray) -> tuple[NDArray, NDArray]:
    """Inputs, and the characters that come next."""
    return rows[:, :-1].astype(np.int32), rows[:, 1:].astype(np.int32)


class _Order:
    """The text in the order of a seed, read once: minibatches of the warm-up, then of all methods alike."""

    def __init__(self, text: Text, scale: Scale, seed: int) -> None:
        self.rows, self.scale = _sequences(text.train, scale.length), scale
        self.order = np.random.default_rng([seed, 2]).permutation(len(self.rows))
        self.begin = scale.warm * WARM

    def of(self, array: Any, place: int, count: int) -> list[tuple[Any, Any]]:
        """``count`` minibatches from that place of the order."""
        size = self.scale.inner
        stop = place + size * count
        if stop > len(self.order):
            raise ValueError(f"the text has {len(self.order)} sequences, and each is read once: give a longer one.")
        chosen = (self.rows[self.order[i : i + size]] for i in range(place, stop, size))
        return [(array(x), array(y)) for x, y in map(_pair, chosen)]

    def feed(self, kind: str, array: Any, seed: int, steps: int) -> Iterator[Any]:
        """The data of each step: ``"searched"``, ``"whole"`` or ``"small"``."""
        n, size = self.scale.count, self.scale.inner
        if kind == "small":
            return (self.of(array, self.begin + size * i, 1) for i in range(steps))
        if kind == "whole":
            return (self.of(array, self.begin + size * n * i, n) for i in range(steps))
        both = (self.of(array, self.begin + size * 2 * n * i, 2 * n) for i in range(steps))
        return (lg.StepData(batch[:n], acceptance=batch[n:]) for batch in both)


def _measured(text: Text, scale: Scale, order: _Order) -> Data:
    """What is measured on: sequences of the warm-up, and held-out ones."""
    held = _sequences(text.test, scale.length)
    held = held[np.random.default_rng(0).permutation(len(held))[: scale.measured]]
    return Data(_pair(order.rows[order.order[: scale.measured // 2]]), _pair(held), text.source)


@lru_cache(maxsize=4)
def _checkpoint(backend: str, folder: Path | None, size: Size, length: int, warm: int, seed: int) -> dict[str, Any]:
    """Parameters after so many steps of AdamW, NumPy arrays; nothing else goes on from there."""
    ops, scale = lg.load(backend), Scale(size, length, inner=WARM, warm=warm)
    array, order = array_maker(ops, "float32"), _Order(characters(folder), scale, seed)
    method = lg.FirstOrder(o.Clip(o.Adam(0.9, 0.95)), 3e-3, schedule=lg.controls.WarmUp(warm / 10))
    start, batches = tree_of(array, drawn(size, seed)), (order.of(array, WARM * i, 1) for i in range(warm))
    objective = lg.Objective(decoder(size), lg.losses.CrossEntropy(), order.of(array, 0, 1))
    run = lg.minimize(objective, start, method, batches=batches)

    def host(tree: Any) -> Any:
        return {k: host(v) if isinstance(v, Mapping) else ops.to_numpy(v) for k, v in tree.items()}

    made: dict[str, Any] = host(run.params)
    return made


# runs


@dataclass(frozen=True)
class Case:
    """A case on the data of a form."""

    name: str
    scale: Scale
    form: Form

    def text(self) -> Text:
        """What is read."""
        return characters(self.form.data)

    def task(self, kind: str, seed: int) -> Task:
        """The task of a run whose steps have data of that kind."""
        text, scale = self.text(), self.scale
        order = _Order(text, scale, seed)
        start = _checkpoint(self.form.backend, self.form.data, scale.size, scale.length, scale.warm, seed)
        return Task(
            decoder(scale.size),
            lg.losses.CrossEntropy(),
            start,
            _measured(text, scale, order),
            scale.minibatch,
            dtype="float32",
            feed=partial(order.feed, kind),
        )

    def train(
        self, of: str, method: Any, small: bool, seed: int, steps: int, every: int, tell: Tell, **more: Any
    ) -> dict[str, Any]:
        """A run of that many outer steps."""
        scale, searched = self.scale, isinstance(method, lg.Linearised) and method.search is not None
        kind = "small" if small else "searched" if searched else "whole"
        each = scale.count if small else 1  # steps of the method in an outer one
        solved = scale.minibatch * (1 if small else scale.count)

        def counted(step: int, row: Mapping[str, Any]) -> dict[str, Any]:
            told: dict[str, Any] = {"tokens": step * solved * (2 if searched else 1), "solve_tokens": step * solved}
            told |= {n: float(row[n]) for n in ("length", "damping", "ratio") if np.isfinite(row.get(n, np.nan))}
            if isinstance(method, lg.Linearised):  # blocks go side by side: a linearisation and a product deep
                told["sequential"] = int(2 * row.get("inner_steps", 0) + row.get("evaluations", 0))
            return told

        made = train(
            self.task(kind, seed),
            method,
            self.form.backend,
            seed=seed,
            steps=steps * each,
            every=every * each,
            tell=tell,
            counted=counted,
        )
        for part in (made["curves"], made["history"]):
            part.pop("epoch", None)
        made["curves"]["step"] = [step / each for step in made["curves"]["step"]]
        made["figures"] |= {"step": made["curves"]["step"][-1], "lengths": made["history"].get("length", [])[1:]}
        made["data"] = self.text().told
        return {"of": of, "common": scale.common, "count": scale.count, **more, **made}

    def settings(self, steps: int, **more: Any) -> dict[str, Any]:
        """What a result depends on."""
        return {"steps": steps, "data": self.text().source, **self.scale.told, **more}
