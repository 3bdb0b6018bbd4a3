"""Deep autoencoders by Hessian-free optimisation, each of its parts switched off in turn, beside Adam and SGD.

    loss       cross-entropy, summed over pixels, mean over images, + weight cost / 2 ||x||^2
    direction  (G + lambda I) d = -g by preconditioned CG, G = J^T H_L J on one of four chunks in turn, g on all
    search     back through CG's iterates, then Armijo's rule, on all
    lambda     x 3/2 below a gain ratio of 1/4, x 2/3 above 3/4, on the chunk

The work is told in *gradient equivalents*, of one gradient on all images. With a forward pass as one, the backward one
that follows it as two (Griewank and Walther, *Evaluating Derivatives*): a value is 1/3, a product with J^T alone 2/3. A
product with G is a tangent and a backward pass and counts as a gradient of as many images, as in Schraudolph (2002) and
Martens (2010); here it takes less time than that.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import linop_gn as lg

from .data import Data, digits, mnist
from .models import mlp, sparse
from .plan import NOT_REACHABLE, Entry, Form, Picture, Results, Run, Study, Tell, Verdict, joined, judged
from .training import Task, train

__all__ = ["Case", "PixelCrossEntropy", "cases", "entries", "equivalents", "hessian_free", "study"]

NDArray = np.ndarray[Any, Any]

CHUNKS, LAMBDA, WEIGHT_COST = 4, 45.0, 2e-5
VALUE, TRANSPOSED = 1 / 3, 2 / 3
"""What a forward pass, and one back, take of a gradient."""
MOMENTUM = 0.99
ERROR, LOSS = "train_squared_error", "train_loss"
"""What the papers tell, and what is minimised."""


@lg.record
class PixelCrossEntropy(lg.losses.BinaryCrossEntropy):
    """The cross-entropy of an image: summed over its pixels, so that the mean is over images."""

    example_axes = 1


def hessian_free(
    cg: int = 150, warm: float | None = 0.95, preconditioned: bool = True, back: bool = True, stopped: bool = True
) -> lg.SecondOrder:
    """Hessian-free optimisation with at most ``cg`` steps of CG in each of its own, with or without its parts."""
    solver = lg.CG(
        stop=lg.RelativeProgress() if stopped else None,
        steps=None if stopped else cg,
        max_steps=cg if stopped else None,
        keep=1.3 if back else None,
        preconditioner=lg.preconditioners.EmpiricalFisher() if preconditioned else None,
    )
    armijo = lg.searches.Armijo(c=1e-2, shrink=0.8, most=60)
    return lg.HessianFree(
        LAMBDA,
        descent=lg.descents.Solve(solver, warm=warm),
        search=lg.searches.Iterates(armijo) if back else armijo,
        stopping=None,
    )


def _adam(rate: float) -> lg.FirstOrder:
    return lg.FirstOrder(lg.optimisers.Adam(), rate)


def _nesterov(rate: float) -> lg.FirstOrder:
    return lg.FirstOrder(lg.optimisers.SGD(momentum=MOMENTUM, nesterov=True), rate)


HF, RIVALS = "Hessian-free", ("Adam", "Nesterov")
ALL, LM = f"{HF}, curvature of all", "Levenberg-Marquardt"
CHEAPER = "its 16 products with J^T are counted; the published code has the squares from the gradient's own pass"
PARTS: dict[str, dict[str, Any]] = {
    "warm start": {"warm": None},
    "preconditioner": {"preconditioned": False},
    "backtracking": {"back": False},
    "stop rule": {"stopped": False},
}


@dataclass(frozen=True)
class Case:
    """What is trained, how long, and beside what."""

    data: Data
    widths: tuple[int, ...]
    """Down to the code; the way back up mirrors them."""
    seeds: int
    updates: int
    cg: int
    batch: int
    """Of Adam and SGD."""
    budget: int
    """Their epochs: at least as many as Hessian-free optimisation has gradient equivalents."""
    seconds: tuple[float, float]
    """About what an update takes, and an epoch."""
    rates: tuple[Sequence[float], Sequence[float]]
    """That are tried, of Adam and of SGD."""

    @property
    def per_epoch(self) -> int:
        """Their steps in an epoch."""
        return -(-len(self.data.train[0]) // self.batch)


def cases(form: Form) -> dict[str, Case]:
    """Those of a form, by name."""
    small = _own_targets(digits())
    if form.quick:
        few = (3e-3, 1e-2)
        return {"digits": Case(small, (64, 30, 6), 1, 15, 50, 200, 150, (0.1, 0.01), (few, few))}
    rates = (3e-3, 1e-2, 3e-2), (3e-3, 1e-2, 3e-2)
    made = {"digits": Case(small, (64, 50, 25, 12, 6), 5, 100, 150, 200, 3000, (0.06, 0.01), rates)}
    images, wide = _own_targets(mnist(form.data)), (784, 400, 200, 100, 50, 25, 6)
    rates = (3e-4, 1e-3, 3e-3), (1e-3, 3e-3, 1e-2)
    if form.name == "gpu":
        return {**made, "MNIST": Case(images, wide, 3, 200, 250, 200, 5000, (1.0, 0.1), rates)}
    return {**made, "MNIST": Case(images, wide, 1, 60, 150, 200, 1000, (5.0, 0.4), rates)}


def _own_targets(data: Data) -> Data:
    """Images as their own targets, as many to train on as can be cut into chunks of one size."""
    x, held = data.train[0], data.test[0]
    x = x[: len(x) - len(x) % CHUNKS]
    return Data((x, x), (held, held), data.source)


def entries(cg: int, rates: tuple[Sequence[float], Sequence[float]]) -> list[Entry]:
    """Those of a form."""
    off = {f"{HF}, no {part}": settings for part, settings in PARTS.items()}
    return [
        *(Entry(name, partial(hessian_free, cg, **s), full_batch=True) for name, s in {HF: {}, **off}.items()),
        Entry(ALL, partial(hessian_free, cg), full_batch=True),
        Entry(LM, lambda: lg.LevenbergMarquardt(solver=lg.CG(rtol=1e-2, max_steps=cg), stopping=None), full_batch=True),
        Entry("Adam", _adam, sweep={"rate": rates[0]}),
        Entry("Nesterov", _nesterov, sweep={"rate": rates[1]}),
    ]


def plan(form: Form, more: Sequence[Entry] = ()) -> list[Run]:
    runs = []
    for name, case in cases(form).items():
        for entry in joined(entries(case.cg, case.rates), more):
            for label, numbers, method in entry.made():
                steps = entry.steps or (case.updates if entry.full_batch else case.budget * case.per_epoch)
                seconds = case.updates * case.seconds[0] if entry.full_batch else case.budget * case.seconds[1]
                seconds = 5 + seconds * (3 if entry.name == ALL else 1)
                for seed in range(min(case.seeds, entry.seeds or case.seeds)):
                    settings = {"numbers": numbers, "steps": steps, "data": case.data.told, "widths": case.widths}
                    settings |= {"cg": case.cg, "batch": case.batch}
                    work = partial(_train, case, entry, method, form.backend, seed, steps)
                    runs.append(Run(name, label, seed, work, settings, seconds))
    return runs


def _train(case: Case, entry: Entry, method: Any, backend: str, seed: int, steps: int, tell: Tell) -> dict[str, Any]:
    widths, whole = (*case.widths, *case.widths[-2::-1]), entry.full_batch
    chunks = CHUNKS if whole and "curvature" in method.supports and entry.name != ALL else None
    task = Task(
        mlp("sigmoid", linear=(len(case.widths) - 2,)),
        PixelCrossEntropy(),
        sparse(widths, seed),
        case.data,
        None if whole else case.batch,
        dtype="float32",
        accuracy=False,
        errors=_squared_error,
        l2=WEIGHT_COST,
        chunks=chunks,
    )
    every = 1 if whole else case.per_epoch * max(1, case.budget // 200)
    made = train(task, method, backend, seed=seed, steps=steps, every=every, tell=tell)
    curves = made["curves"]
    spent = zip(curves["step"], curves["products"], curves["evaluations"], strict=True)
    curves["gradients"] = [equivalents(method, *row, chunks) for row in spent] if whole else curves["epoch"]
    figures, history = {name: column[-1] for name, column in curves.items()}, made["history"]
    if "refused" in history:
        figures |= {"refused": history["refused"][-1], "solver_steps": sum(history["inner_steps"][1:])}
    if whole:
        curves |= {name: history[name] for name in ("damping", "ratio", "inner_steps") if name in history}
    return {**made, "figures": figures, "of": entry.name}


def _squared_error(outputs: NDArray, targets: NDArray) -> dict[str, float]:
    """|y - x|^2 of the images that the logits stand for, the mean over images."""
    with np.errstate(over="ignore"):
        made = 1.0 / (1.0 + np.exp(-outputs.astype(np.float64)))
    return {"squared_error": float(np.mean(np.sum((made - targets) ** 2, axis=1)))}


def equivalents(method: Any, step: int, products: int, evaluations: int, chunks: int | None) -> float:
    """What so many steps on all images have taken, in gradients of all images.

    A step takes the gradient; on the chunk a linearisation, the preconditioner's products and, for the gain ratio, two
    of the evaluations.

    >>> equivalents(hessian_free(preconditioned=False), 1, 20, 5, 4)
    7.25
    """
    share, recipe = 1.0 / (chunks or 1), getattr(getattr(method, "descent", None), "solver", None)
    probes = getattr(getattr(recipe, "preconditioner", None), "probes", None) or 0
    of_chunk = 2 * step if chunks else 0
    each = 1.0 + share * (VALUE + TRANSPOSED * probes)
    return step * each + share * (products + VALUE * of_chunk) + VALUE * (evaluations - of_chunk)


def claims(results: Results) -> list[Verdict]:
    found = []
    for case in results.cases():
        found += [_against(results, case, rival, x) for x in ("gradients", "seconds") for rival in RIVALS]
        for part in PARTS:
            why = CHEAPER if part == "preconditioner" else ""
            found.append(_pays(results, case, f"the {part}", f"{HF}, no {part}", "without it", why=why))
        found.append(_pays(results, case, "a quarter of the images for the curvature", ALL, "with all", "as published"))
        found.append(_pays(results, case, "control: all of it", LM, "by Levenberg-Marquardt, untuned,", "not run"))
    reason = "no package ships CURVES and FACES, and their networks on all of MNIST take days on two cores"
    paper = "errors on CURVES, MNIST and FACES"
    return [*found, Verdict("The figures of the papers on their own data", paper, "not run", NOT_REACHABLE, reason)]


def _against(results: Results, case: str, rival: str, x: str) -> Verdict:
    words = {"gradients": "gradient equivalents", "seconds": "seconds"}[x]
    paper = {
        "gradients": "lower (Martens, 2010); tuned momentum comes up to it (Sutskever et al., 2013)",
        "seconds": "no figure",
    }[x]
    claim = f"{case}: a lower training error than {rival}, tuned, at equal {words}"
    label = _best(results, case, rival, x)
    if label is None:
        return judged(claim, paper, "", None)
    pairs = _pairs(results, case, HF, label, x)
    ours, theirs = (_told(pairs, i) for i in (0, 1))
    at = np.mean([p[2] for p in pairs])
    held = _mean(pairs, 0, ERROR) < _mean(pairs, 1, ERROR)
    edge = results.edge(case, rival, label)
    return judged(claim, paper, f"{HF} {ours}; {label} {theirs}; after {at:.3g} {words}", held, edge)


def _pays(
    results: Results,
    case: str,
    what: str,
    other: str,
    otherwise: str,
    paper: str = "said to help, no figure",
    why: str = "",
) -> Verdict:
    """Whether the published composition is better than another one."""
    claim = f"{case}: {what} pays: {otherwise} the error is higher at equal gradient equivalents, by more than 1 %"
    pairs = _pairs(results, case, HF, other, "gradients")
    if not pairs:
        return judged(claim, paper, "", None)
    error, error_2, loss, loss_2 = (_mean(pairs, side, name) for name in (ERROR, LOSS) for side in (0, 1))
    wins, at = sum(a[ERROR] < b[ERROR] for a, b, _ in pairs), np.mean([p[2] for p in pairs])
    ends = (_end(results, case, name) for name in (HF, other))
    told = (
        f"{error:.3g} against {error_2:.3g} (cross-entropy {loss:.4g}, {loss_2:.4g}) after {at:.3g} gradients, lower "
        f"from {wins} of {len(pairs)} seeds; in the end {' against '.join(ends)}"
    )
    return judged(claim, paper, told, error_2 > 1.01 * error, why)


def _end(results: Results, case: str, name: str) -> str:
    error, steps, cg, refused = (results.mean(case, name, f) for f in (ERROR, "step", "solver_steps", "refused"))
    return f"{error:.3g} ({steps:.0f} updates, {refused:.3g} rejected, {cg:.0f} steps of CG)"


Pair = tuple[dict[str, float], dict[str, float], float]


def _pairs(results: Results, case: str, one: str, other: str, x: str) -> list[Pair]:
    """From each seed that both were run from: the lowest figures of each by an equal x, and this x.

    A run that broke off, in numbers that are not finite, does not shorten the other one.
    """
    found = []
    for a, b in itertools.product(results.of(case, one), results.of(case, other)):
        if a["seed"] == b["seed"]:
            whole = [r for r in (a, b) if r.get("status") != "NONFINITE"] or (a, b)
            at = min(r["curves"][x][-1] for r in whole)
            found.append((_lowest(a, x, at), _lowest(b, x, at), at))
    return found


def _lowest(run: dict[str, Any], x: str, at: float) -> dict[str, float]:
    """The lowest error and loss that were measured until ``at``, each by itself."""
    xs = np.array(run["curves"][x])
    made = {}
    for name in (ERROR, LOSS):
        ys = np.array([np.inf if y is None else y for y in run["curves"][name]])
        made[name] = float(min([*ys[xs <= at], np.interp(at, xs, ys)]))
    return made


def _mean(pairs: Iterable[Pair], side: int, name: str) -> float:
    return float(np.mean([pair[:2][side][name] for pair in pairs]))


def _told(pairs: Sequence[Pair], side: int) -> str:
    return f"{_mean(pairs, side, ERROR):.3g} (cross-entropy {_mean(pairs, side, LOSS):.4g})"


def _best(results: Results, case: str, rival: str, x: str = "gradients") -> str | None:
    """The learning rate with the lowest error at as much as Hessian-free optimisation took."""
    labels = dict.fromkeys(r["entry"] for r in results.of(case, rival))
    means = {n: _mean(pairs, 1, ERROR) for n in labels if (pairs := _pairs(results, case, HF, n, x))}
    return min(means, key=means.__getitem__) if means else None


def pictures(results: Results) -> list[Picture]:
    made = []
    for case in results.cases():
        parts = [HF, ALL, LM, *(f"{HF}, no {part}" for part in PARTS)]
        best = [n for n in (_best(results, case, rival) for rival in RIVALS) if n is not None]
        best += [r["entry"] for r in results.of(case) if r["of"] not in (*parts, *RIVALS)]  # of others
        xs = ("gradients", "products", "sequential", "seconds")
        made += [
            Picture(f"{case}: squared error, training", case, ERROR, xs, [HF, LM, *best]),
            Picture(f"{case}: squared error, held-out", case, "held_out_squared_error", xs, [HF, LM, *best]),
            Picture(f"{case}: cross-entropy, training", case, LOSS, xs, [HF, LM, *best]),
            Picture(f"{case}: without its parts", case, ERROR, ("step", "gradients", "seconds"), parts),
            Picture(f"{case}: damping", case, "damping", ("step",), parts),
            Picture(f"{case}: gain ratio", case, "ratio", ("step",), parts, log=False),
            Picture(f"{case}: steps of CG in an update", case, "inner_steps", ("step",), parts, log=False),
        ]
        made += [
            Picture(f"{case}: learning rates of {rival}", case, ERROR, ("epoch", "seconds"), [rival])
            for rival in RIVALS
        ]
    return made


study = Study(
    name="hessian-free",
    title="Deep autoencoders by Hessian-free optimisation",
    paper="Martens (ICML 2010); Martens and Sutskever (2012)",
    about=(
        "Autoencoders with logistic units and a linear code of 6: 784-400-200-100-50-25-6 and back up on MNIST, "
        "64-50-25-12-6 and back up on 8 x 8 digits; cross-entropy summed over pixels, weight cost 2e-5 on all "
        "parameters, 15 incoming weights N(0, 1) of each unit, float32. Curvature on one quarter of the images in "
        "turn, gradient and search on all of them. Adam and SGD with Nesterov's momentum of .99 take batches of 200, "
        "at several learning rates, of which the best one counts. Added: "
        "Levenberg-Marquardt on the same chunks. Told is the squared error, as in the papers, and "
        "the cross-entropy, each the lowest that was reached by then. Work is told in gradients of all images: a "
        "product with the curvature counts as one gradient of as many images, a value as a third. The preconditioner "
        "is of the chunk's examples, by 16 random signs (each counted as two thirds of a gradient of the chunk): in "
        "the published code it is of all examples, exactly."
    ),
    plan=plan,
    claims=claims,
    pictures=pictures,
)
