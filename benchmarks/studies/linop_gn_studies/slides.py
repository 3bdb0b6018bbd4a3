"""Second-order optimisation made practical: Newton, Hessian-free and Gauss-Newton on a small network.

    damped Newton            x <- x - eta (H + lambda I)^-1 g, dense               lambda = 32, eta = 1/2
    Hessian-free Newton      the same by conjugate gradients                       lambda = 32
    Hessian-free GN          x <- x - eta (G + lambda I)^-1 g, G = J^T H_L J       lambda = 4
    Newton                   the pseudo-inverse, lambda = 0

Batches of 64, 7 epochs, float64. The training loss of an epoch is the mean of its batches' losses before their steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

import linop_gn as lg

from .data import Data, digits, mnist, standardised
from .models import mlp, scaled_normal
from .plan import NOT_REACHABLE, Entry, Form, Picture, Results, Run, Study, Tell, Verdict, joined, judged
from .training import Task, array_maker, epoch_means, precise, train, tree_of

__all__ = ["ENTRIES", "study"]

ETA, BATCH, EPOCHS = 0.5, 64, 7
PAPER = {
    "SGD": (0.2121, 0.9138),
    "Newton": (2.305, 0.1028),
    "damped Newton": (0.2837, 0.9003),
    "HF-Newton": (0.2614, 0.9099),
    "HF-GN": (0.2049, 0.9239),
}
DAMPINGS = (4.0, 1.0, 0.1, 0.01, 1e-3, 1e-4)
FULL_STEPS = 40


def _sgd(rate: float) -> Any:
    return lg.FirstOrder(lg.optimisers.SGD(), rate)


def _free(curvature: Any, damping: float) -> Any:
    return lg.SecondOrder(
        curvature=curvature,
        descent=lg.descents.Solve(lg.CG(rtol=1e-5)),
        control=lg.ConstantDamping(),
        search=lg.searches.FixedLength(ETA),
        level=damping,
        stopping=None,
    )


def _newton(damping: float) -> Any:
    """By its matrix: at damping 0 the pseudo-inverse, else LU, which takes a tenth of an eigendecomposition's time."""
    parts: dict[str, Any] = {"descent": lg.descents.Solve(lg.LU())} if damping else {}
    return lg.Newton(damping=damping, length=ETA, stopping=None, **parts)


ENTRIES = [
    Entry("SGD", _sgd, {"rate": 0.1}),
    Entry("HF-GN", partial(_free, lg.GGN), {"damping": 4.0}),
    Entry("HF-Newton", partial(_free, lg.Hessian), {"damping": 32.0}),
    Entry("damped Newton", _newton, {"damping": 32.0}),
    Entry("Newton", _newton, {"damping": 0.0}),
    Entry("SGD at eta / lambda of HF-Newton", _sgd, {"rate": ETA / 32}),
    Entry("SGD at eta / lambda of HF-GN", _sgd, {"rate": ETA / 4}),
    Entry("LM", lambda: lg.LevenbergMarquardt(stopping=None)),
    Entry("GLTR", lambda: lg.TrustRegion(stopping=None)),
    Entry("HF-GN, fixed", partial(_free, lg.GGN), sweep={"damping": DAMPINGS}, full_batch=True, seeds=1),
    Entry("LM, full batch", lambda: lg.LevenbergMarquardt(stopping=None), full_batch=True, seeds=1),
    Entry("GLTR, full batch", lambda: lg.TrustRegion(stopping=None), full_batch=True, seeds=1),
]
DENSE = ("damped Newton", "Newton")


def _cases(form: Form) -> dict[str, tuple[Data, tuple[int, ...], int]]:
    """Data, widths and seeds of each case."""
    if form.quick:
        return {"digits": (_digits(), (64, 10, 10), 1)}
    images = mnist(form.data).mapped(standardised(0.1307, 0.3081))
    return {"digits": (_digits(), (64, 10, 10), 5), "MNIST": (images, (784, 10, 10), 3)}


def _digits() -> Data:
    data = digits()
    x = data.train[0]
    return data.mapped(standardised(float(x.mean()), float(x.std())))


def plan(form: Form, more: Sequence[Entry] = ()) -> list[Run]:
    runs = []
    for case, (data, widths, seeds) in _cases(form).items():
        per_epoch = -(-len(data.train[0]) // BATCH)
        for entry in joined(ENTRIES, more):
            dense = entry.name in DENSE and widths[0] > 64
            for name, numbers, method in entry.made():
                steps = FULL_STEPS if entry.full_batch else (2 if form.quick else EPOCHS) * per_epoch
                steps = entry.steps or (steps if not dense else 40 if numbers["damping"] else 10)
                for seed in range(min(seeds, entry.seeds or seeds) if not dense else 1):
                    settings = {"numbers": numbers, "steps": steps, "data": data.told, "widths": widths}
                    work = partial(_train, data, widths, entry, method, form.backend, seed, steps, per_epoch)
                    each = 8.0 if numbers.get("damping") else 45.0  # of a dense step
                    seconds = steps * (each if dense else 0.02 if widths[0] > 64 else 0.01) + 8
                    runs.append(Run(case, name, seed, _of(entry, work), settings, seconds))
        runs.append(Run(case, "side by side", 0, partial(_side_by_side, data, widths, form), seconds=90))
    return runs


def _of(entry: Entry, work: Any) -> Any:
    """The work, whose result names the entry that its run is one of."""
    return lambda tell: {"of": entry.name, **work(tell)}


def _train(
    data: Data,
    widths: Sequence[int],
    entry: Entry,
    method: Any,
    backend: str,
    seed: int,
    steps: int,
    per_epoch: int,
    tell: Tell,
) -> dict[str, Any]:
    batch = None if entry.full_batch else BATCH
    task = Task(mlp("relu"), lg.losses.CrossEntropy(), scaled_normal(widths, seed), data, batch)
    before = batch is not None
    every = 1 if entry.full_batch else per_epoch
    made = train(task, method, backend, seed=seed, steps=steps, every=every, tell=tell, before=before)
    if before:
        losses = epoch_means(made["figures"].pop("batch_losses"), per_epoch)
        made["figures"]["epoch_loss"] = losses[-1]
        made["curves"]["epoch_loss"] = [losses[0], *losses][: len(made["curves"]["step"])]
    seconds, taken = made["figures"]["seconds"], made["figures"]["step"]
    made["figures"]["seconds_per_step"] = seconds / max(1, taken)
    return made


def _side_by_side(data: Data, widths: Sequence[int], form: Form, tell: Tell) -> dict[str, Any]:
    """Dense and by products at one damping from one start on the same batches: how far apart, and what a step takes."""
    ops, steps = lg.load(form.backend), 5 if widths[0] > 64 else 20
    methods = {
        "dense": _newton(32.0),
        "products": _free(lg.Hessian, 32.0),
        "Gauss-Newton": _free(lg.GGN, 4.0),
        "SGD": _sgd(0.1),
    }
    with precise(ops, "float64"):
        array = array_maker(ops, "float64")
        start, (x, y) = tree_of(array, scaled_normal(widths, 0)), data.train
        rows = [np.random.default_rng(i).permutation(len(y))[:BATCH] for i in range(steps + 1)]
        batches = [(array(x[r]), array(y[r])) for r in rows]
        whole = lg.Objective(mlp("relu"), lg.losses.CrossEntropy(), batches[0])
        states = {name: lg.start(method, whole, start) for name, method in methods.items()}
        paths: dict[str, list[Any]] = {name: [] for name in methods}
        clocks: dict[str, list[float]] = {name: [] for name in methods}
        for i, batch in enumerate(batches):
            for name, method in methods.items():  # side by side, so that a busy machine is busy for all
                tell(f"step {i}, {name}")
                begun = time.perf_counter()
                states[name] = ops.wait(lg.advance(method, whole.with_data(batch), states[name]))
                clocks[name].append(time.perf_counter() - begun)
                paths[name].append(ops.to_numpy(states[name].own.x))
        seconds = {name: float(np.median(clock[1:])) for name, clock in clocks.items()}  # the first one was compiled
        loader = [time.perf_counter()]
        for r in rows:
            ops.wait((array(x[r]), array(y[r])))
            loader.append(time.perf_counter())
    far = [
        float(np.linalg.norm(a - b) / np.linalg.norm(a - paths["dense"][0] + 1e-300))
        for a, b in zip(paths["dense"][1:], paths["products"][1:], strict=True)
    ]
    figures = {
        "apart": max(far),
        "loader": float(np.median(np.diff(loader))),
        **{f"seconds, {k}": v for k, v in seconds.items()},
    }
    return {"figures": figures, "curves": {}, "data": data.told}


def claims(results: Results) -> list[Verdict]:
    found = []
    for case in results.cases():
        found += _ranking(results, case)
        found += _routes(results, case)
        found += _full_batch(results, case)
    return found


def _ranking(results: Results, case: str) -> list[Verdict]:
    loss = {e.name: results.mean(case, e.name, "epoch_loss") for e in ENTRIES if not e.full_batch}
    right = {e.name: results.mean(case, e.name, "held_out_accuracy") for e in ENTRIES if not e.full_batch}

    def told(*names: str) -> str:
        return ", ".join(f"{n} {loss[n]:.4g} / {100 * right[n]:.1f} %" for n in names)

    def paper(*names: str) -> str:
        return ", ".join(f"{n} {PAPER[n][0]:.4f} / {100 * PAPER[n][1]:.1f} %" for n in names)

    def known(*names: str) -> bool:
        return not any(np.isnan(loss[n]) for n in names)

    order, even, failed = ("HF-GN", "SGD", "HF-Newton"), ("HF-Newton", "damped Newton"), ("Newton",)
    short = next((r["data"]["train"] % BATCH for r in results.of(case, "SGD")), 0)
    began = np.mean([r["curves"]["train_loss"][0] for r in results.of(case, "Newton")] or [np.nan])
    ended, steps = (results.mean(case, "Newton", name) for name in ("train_loss", "step"))
    apart = abs(loss[even[0]] - loss[even[1]]) / loss[even[0]]
    whole = case != "MNIST"
    return [
        judged(
            f"{case}: HF-GN has a lower loss than SGD, SGD than HF-Newton (train loss / held-out accuracy)",
            paper(*order),
            told(*order),
            loss["HF-GN"] < loss["SGD"] < loss["HF-Newton"] if known(*order) else None,
            f"accuracies are measured after a batch of {short}, the last of an epoch, which moves SGD most"
            if 0 < short < 16
            else "",
        ),
        judged(
            f"{case}: HF-Newton is damped Newton, by products",
            paper(*even),
            told(*even) if whole else "",
            apart < 0.01 if whole and known(*even) else None,
            "one formula, damping and length: the gap in the paper is not one of the methods"
            if whole
            else "dense for 40 steps only here: see the trajectories",
        ),
        judged(
            f"{case}: Newton without damping fails",
            paper(*failed),
            f"{told(*failed)}; on all data {began:.4g} at the start, {ended:.4g} after {steps:.0f} steps",
            ended >= began if known(*failed) else None,
        ),
        judged(
            f"{case}: control: SGD at HF-Newton's eta / lambda = 1/64 comes as far as HF-Newton",
            "not run",
            told("HF-Newton", "SGD at eta / lambda of HF-Newton"),
            abs(loss["SGD at eta / lambda of HF-Newton"] - loss["HF-Newton"]) < 0.05 * loss["HF-Newton"]
            if known("HF-Newton", "SGD at eta / lambda of HF-Newton")
            else None,
            "most of a large damping's effect is a learning rate",
        ),
        judged(
            f"{case}: control: HF-GN is better than SGD at its eta / lambda = 1/8",
            "not run",
            told("HF-GN", "SGD at eta / lambda of HF-GN"),
            loss["HF-GN"] < loss["SGD at eta / lambda of HF-GN"]
            if known("HF-GN", "SGD at eta / lambda of HF-GN")
            else None,
        ),
    ]


def _routes(results: Results, case: str) -> list[Verdict]:
    found = results.of(case, "side by side")
    if not found:
        return []
    f = found[0]["figures"]
    ratio = f["seconds, dense"] / f["seconds, products"]
    step, loaded = ((f["seconds, Gauss-Newton"] + extra) / (f["seconds, SGD"] + extra) for extra in (0.0, f["loader"]))
    small = "760 parameters: the claim is made for 7960" if case != "MNIST" else ""
    return [
        judged(
            f"{case}: dense and conjugate gradients follow one path, step by step",
            "not shown",
            f"relative distance {f['apart']:.1e} at most",
            f["apart"] < 1e-4,
        ),
        judged(
            f"{case}: products are at least 100 times as fast as dense matrices",
            "34933 s against 244 s (143 times)",
            f"{f['seconds, dense']:.3g} s against {f['seconds, products']:.3g} s a step ({ratio:.0f} times)",
            ratio >= 100 if case == "MNIST" else None,
            small,
        ),
        Verdict(
            f"{case}: Hessian-free Gauss-Newton is on par with SGD in time",
            "246 s against 222 s, 1.11 times, of which most is loading data",
            f"a step alone {step:.1f} times, with its batch made on the way {loaded:.1f} times",
            "held" if step <= 1.2 else "not held",
            "at 34 ms a step theirs timed the loader",
        ),
    ]


def _full_batch(results: Results, case: str) -> list[Verdict]:
    best = results.best(case, "HF-GN, fixed", "train_loss")
    made = []
    for name in ("LM", "GLTR"):
        whole, noisy = results.mean(case, f"{name}, full batch", "train_loss"), results.mean(case, name, "epoch_loss")
        fixed = float("nan") if best is None else results.mean(case, best, "train_loss")
        known = not np.isnan(whole) and best is not None
        made.append(
            judged(
                f"{case}: {name} on all data, nothing tuned, reaches the best fixed damping's loss in as many steps",
                "future work",
                f"{name} {whole:.2e}, {best} {fixed:.2e} after {FULL_STEPS} steps",
                np.isfinite(whole) and whole <= fixed if known else None,
                results.edge(case, "HF-GN, fixed", best),
            )
        )
        fixed = results.mean(case, "HF-GN", "epoch_loss")
        made.append(
            judged(
                f"{case}: {name} at batch {BATCH} is at least as good as the fixed damping",
                "future work",
                f"{name} {noisy:.3f}, HF-GN {fixed:.3f}",
                np.isfinite(noisy) and noisy <= fixed if not np.isnan(noisy) and not np.isnan(fixed) else None,
                "the gain ratio of a batch of 64 is noise, and the damping follows it" if noisy > fixed else "",
            )
        )
    if case != "MNIST":
        return made
    source = next((r["data"]["source"] for r in results.of(case)), "")
    if "60000" not in source:
        made.append(
            Verdict(
                "MNIST: accuracies of the paper on all 60000 images",
                ".9138 SGD, .9239 HF-GN",
                f"run on {source}",
                NOT_REACHABLE,
                "give the full set: --data DIR",
            )
        )
    return made


def pictures(results: Results) -> list[Picture]:
    made = []
    own = {e.name for e in ENTRIES}
    for case in results.cases():
        others = list(dict.fromkeys(r["of"] for r in results.of(case) if r.get("of", "HF-GN") not in own))
        small = [*(e.name for e in ENTRIES if not e.full_batch and "eta" not in e.name), *others]
        whole = [*(e.name for e in ENTRIES if e.full_batch), *others]
        noisy, axes = f"{case}, batches of {BATCH}", ("epoch", "sequential", "products", "seconds")
        every, steps = f"{case}, all data in each step", ("step", "sequential", "products", "seconds")
        made += [
            Picture(f"{noisy}: training loss", case, "train_loss", axes, small),
            Picture(f"{noisy}: held-out loss", case, "held_out_loss", axes, small),
            Picture(f"{noisy}: training accuracy", case, "train_accuracy", ("epoch", "seconds"), small, log=False),
            Picture(f"{noisy}: held-out accuracy", case, "held_out_accuracy", ("epoch", "seconds"), small, log=False),
            Picture(f"{every}: training loss", case, "train_loss", steps, whole),
            Picture(f"{every}: held-out loss", case, "held_out_loss", steps, whole),
        ]
        for title, names in ((noisy, ["LM", "GLTR"]), (every, ["LM, full batch", "GLTR, full batch"])):
            made += [
                Picture(f"{title}: damping of LM", case, "damping", ("step",), names[:1]),
                Picture(f"{title}: radius of GLTR", case, "radius", ("step",), names[1:]),
                Picture(f"{title}: gain ratio", case, "ratio", ("step",), names, log=False),
            ]
    return made


study = Study(
    name="slides",
    title="Second-order optimisation made practical",
    paper="Wang and Huang, slides with code",
    about=(
        "A 784-10-10 ReLU network on MNIST (64-10-10 on 8 x 8 digits), batches of 64, 7 epochs, float64. The training "
        "loss is the mean over the last epoch of the batch losses before each step, as theirs is. Added: SGD at the "
        "learning rates eta / lambda that a large damping amounts to, and Levenberg-Marquardt and a Newton-Lanczos "
        "trust region, which the slides leave to future work."
    ),
    plan=plan,
    claims=claims,
    pictures=pictures,
)
