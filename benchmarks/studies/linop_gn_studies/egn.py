"""EGN: exact Gauss-Newton directions by way of the outputs, on tables of numbers.

    d = -J^T S (S^T J J^T S + b lambda I)^-1 q,  S S^T = H_L, S q = dL/dz,  which is  -(G + lambda I)^-1 g

A batch of b examples has b outputs here, and the network thousands of parameters: a Cholesky factor of b x b numbers
takes the place of CG. The loss is the mean of r^2 / 2, lambda = 1, batches of 64; all methods have a grid of rates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

import linop_gn as lg

from .data import Data, california, diabetes, diamonds, digits
from .models import mlp, scaled_normal
from .plan import NOT_REACHABLE, NOT_RUN, Entry, Form, Picture, Results, Run, Study, Tell, Verdict, joined, judged
from .training import Task, array_maker, precise, train, tree_of

__all__ = ["study"]

BATCH, HIDDEN, SEEDS, STEPS = 64, (32, 64, 32), 5, 5000
DTYPE = "float32"
RMSE = "held_out_rmse"
DUAL = "dual and primal"
TOGETHER = 20
"""Steps side by side."""


def _egn(length: float, **parts: Any) -> Any:
    return lg.EGN(damping=1.0, length=length, stopping=None, **parts)


def _adaptive(length: float) -> Any:
    return _egn(length, control=lg.Marquardt(increase=1.01, decrease=0.99))


def _searched(length: float) -> Any:
    return _egn(length, search=lg.searches.Armijo(c=0.1, shrink=0.8, first=length, most=15, grow=1.5))


def _truncated(length: float) -> Any:
    """SGN as it is compared with there: lambda and the length stay."""
    search = lg.searches.FixedLength(length)
    return lg.SGN(10, damping=1.0, control=lg.ConstantDamping(), search=search, stopping=None)


def _first(optimiser: Any, rate: float) -> Any:
    return lg.FirstOrder(optimiser, rate)


def _entries(quick: bool, ablations: bool) -> list[Entry]:
    sgd, adam = partial(_first, lg.optimisers.SGD()), partial(_first, lg.optimisers.Adam())
    lengths = (0.2, 0.5) if quick else (0.1, 0.2, 0.5, 1.0)
    made = [
        Entry("EGN", _egn, sweep={"length": lengths}),
        Entry("SGD", sgd, sweep={"rate": (0.1, 0.3) if quick else (0.01, 0.03, 0.1, 0.2, 0.3, 0.5)}),
        Entry("Adam", adam, sweep={"rate": (0.003, 0.01) if quick else (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)}),
        Entry("SGN(10), .1", _truncated, {"length": 0.1}),
    ]
    if ablations:
        made.append(Entry("EGN, adaptive lambda", _adaptive, sweep={"length": lengths[1:]}))
    if ablations and not quick:
        made.append(Entry("EGN, momentum .9", partial(_egn, momentum=0.9), sweep={"length": lengths[1:]}))
        made.append(Entry("EGN, Armijo", _searched, {"length": 1.0}))
    return made


def _cases(form: Form) -> dict[str, Data]:
    """Those of the folder and of packages; quick: the first of them."""
    found = {"California housing": california(form.data)}
    if not form.quick or found["California housing"] is None:
        found["diamonds"] = diamonds()
    made = {name: data for name, data in found.items() if data is not None}
    return made or {"diabetes": diabetes()}


def _widths(data: Data) -> tuple[int, ...]:
    return data.train[0].shape[1], *HIDDEN, 1


def plan(form: Form, more: Sequence[Entry] = ()) -> list[Run]:
    runs, steps, seeds = [], 300 if form.quick else STEPS, 2 if form.quick else SEEDS
    cases = _cases(form)
    for case, data in cases.items():
        for entry in joined(_entries(form.quick, ablations=case == next(iter(cases))), more):
            for name, numbers, method in entry.made():
                for seed in range(min(seeds, entry.seeds or seeds)):
                    limit = entry.steps or steps
                    settings = {
                        "numbers": numbers,
                        "steps": limit,
                        "data": data.told,
                        "widths": _widths(data),
                        "dtype": DTYPE,
                    }
                    batch = None if entry.full_batch else BATCH
                    work = partial(_train, data, entry.name, method, form.backend, seed, limit, batch)
                    seconds = 3 + limit * (
                        0.001 if entry.name in ("SGD", "Adam") else 0.0025 if entry.name.startswith("SGN") else 0.005
                    )
                    runs.append(Run(case, name, seed, work, settings, seconds))
    dual = (Run(DUAL, name, 0, partial(_dual, name, form.backend), {"steps": TOGETHER}, 20) for name in DUALS)
    return [*runs, *dual]


def _train(
    data: Data, entry: str, method: Any, backend: str, seed: int, steps: int, batch: int | None, tell: Tell
) -> dict[str, Any]:
    start = scaled_normal(_widths(data), seed)
    task = Task(mlp("relu"), lg.losses.SquaredError(), start, data, batch, dtype=DTYPE, accuracy=False, short=False)
    made = train(task, method, backend, seed=seed, steps=steps, every=max(25, steps // 25), tell=tell)
    losses = made["curves"]["held_out_loss"]
    made["curves"][RMSE] = [None if loss is None else (2.0 * loss) ** 0.5 for loss in losses]
    made["figures"][RMSE] = made["curves"][RMSE][-1]
    made["figures"]["seconds_per_step"] = made["figures"]["seconds"] / max(1, made["figures"]["step"])
    if seed:
        del made["history"]  # one of each is enough to look at
    return {"of": entry, **made}


DUALS = {"squared error": (10, 24, 24, 1), "cross-entropy": (64, 10, 10)}
"""Widths of small networks, for which the primal system can be factored."""


def _dual(name: str, backend: str, tell: Tell) -> dict[str, Any]:
    """How far apart the dual and the primal direction are, and their paths over some steps on the same batches."""
    ops, data = lg.load(backend), diabetes() if name == "squared error" else digits()
    loss = lg.losses.SquaredError() if name == "squared error" else lg.losses.CrossEntropy()
    exact = lg.descents.Solve(lg.CG(rtol=1e-12, max_steps=1000))
    methods = {"dual": _egn(0.5), "primal": _egn(0.5, descent=exact)}
    with precise(ops, "float64"):
        array = array_maker(ops, "float64")
        start = tree_of(array, scaled_normal(DUALS[name], 0))
        batches = [(array(x), array(y)) for x, y in _drawn(data)]
        whole = lg.Objective(mlp("relu"), loss, batches[0])
        tell("one system")
        system, b = lg.Damped(lg.GGN(whole, start), 1.0), lg.tree.scale(-1.0, whole.gradient(start))
        solvers = lg.GramSolve(), lg.Cholesky()
        one, other = (_flat(ops, lg.solve(system, b, solver).x) for solver in solvers)
        states = {key: lg.start(method, whole, start) for key, method in methods.items()}
        begun, apart = ops.to_numpy(states["dual"].own.x), []
        for i, batch in enumerate(batches):
            tell(f"step {i + 1} of {TOGETHER}")
            for key, method in methods.items():
                states[key] = lg.advance(method, whole.with_data(batch), states[key])
            x, z = (ops.to_numpy(states[key].own.x) for key in methods)
            apart.append(float(np.linalg.norm(x - z) / np.linalg.norm(z - begun)))
    figures = {"direction": float(np.linalg.norm(one - other) / np.linalg.norm(other)), "path": max(apart)}
    return {"figures": figures, "curves": {}, "data": data.told}


def _drawn(data: Data) -> Iterator[tuple[Any, Any]]:
    x, y = data.train
    for i in range(TOGETHER):
        rows = np.random.default_rng([i, 4]).permutation(len(y))[:32]
        yield x[rows], y[rows]


def _flat(ops: Any, params: Any) -> Any:
    return np.concatenate([ops.to_numpy(leaf).reshape(-1) for layer in params.values() for leaf in layer.values()])


def claims(results: Results) -> list[Verdict]:
    made = [*_exact(results)]
    cases = [case for case in results.cases() if case != DUAL]
    for case in cases:
        made += _table(results, case)
    if cases and "California housing" not in cases:
        why = f"give its file: --data DIR with california_housing.csv; run on {' and '.join(cases)}"
        claim = "California housing: EGN is at least as good as tuned Adam and SGD"
        made.append(Verdict(claim, "the best of all methods", "no file", NOT_REACHABLE, why))
    why = "these studies have no environments"
    made.append(Verdict("EGN on reinforcement learning", "at least as good as the others", "-", NOT_RUN, why))
    why = "neither is a composition of what is here"
    return [*made, Verdict("EGN against the baselines SQN and GAF", "EGN is better", "-", NOT_RUN, why)]


def _exact(results: Results) -> list[Verdict]:
    made = []
    for run in results.of(DUAL):
        figures, name = run["figures"], run["entry"]
        told = f"relative distance {figures['direction']:.1e}"
        made.append(
            judged(
                f"{name}: the dual direction is the primal one to rounding",
                "an identity",
                told,
                figures["direction"] < 1e-10,
                "against a Cholesky factor of G + lambda I; float64",
            )
        )
        claim = f"{name}: EGN and Gauss-Newton by exact CG follow one path"
        told = f"relative distance {figures['path']:.1e} at most in {TOGETHER} steps"
        made.append(judged(claim, "not shown", told, figures["path"] < 1e-6))
    return made


def _spread(results: Results, case: str, entry: str | None) -> tuple[float, float]:
    """The mean over seeds of the held-out RMSE, and its standard error."""
    found = [] if entry is None else [np.inf if v is None else v for v in results.figure(case, entry, RMSE)]
    if not found:
        return float("nan"), float("nan")
    error = float(np.std(found, ddof=1) / len(found) ** 0.5) if len(found) > 1 and np.isfinite(found).all() else np.nan
    return float(np.mean(found)), error


def _table(results: Results, case: str) -> list[Verdict]:
    names = ("EGN", "SGD", "Adam", "EGN, adaptive lambda", "EGN, momentum .9")
    best = {name: results.best(case, name, RMSE) for name in names}
    best |= {name: name for name in ("SGN(10), .1", "EGN, Armijo")}
    known = {name: _spread(results, case, entry) for name, entry in best.items()}

    def told(*names: str) -> str:
        parts = (f"{best[n]} {known[n][0]:.4f} +- {known[n][1]:.4f}" for n in names if not np.isnan(known[n][0]))
        return ", ".join(parts)

    def no_worse(one: str, other: str) -> bool | None:
        """Within one standard error of the difference, which two seeds and more tell; what is infinite is worse."""
        (a, e), (b, f) = known[one], known[other]
        if np.isinf([a, b]).any() and not np.isnan([a, b]).any():
            return bool(a < b)
        return None if np.isnan([a, b, e, f]).any() else a <= b + float(np.hypot(e, f))

    rivals = [no_worse("EGN", name) for name in ("SGD", "Adam")]
    seconds = {n: results.mean(case, str(best[n]), "seconds_per_step") for n in ("EGN", "SGD", "Adam", "SGN(10), .1")}
    spent = ", ".join(f"{n} {1e3 * s:.2g}" for n, s in seconds.items() if not np.isnan(s))
    edges = [words for name in ("EGN", "SGD", "Adam") if (words := results.edge(case, name, best[name]))]
    paper, steps = "at least as good as both", results.mean(case, str(best["EGN"]), "step")
    damping = results.mean(case, str(best["EGN, adaptive lambda"]), "damping")
    made = [
        judged(
            f"{case}: EGN is within one standard error of tuned SGD and Adam, or better (held-out RMSE)",
            paper,
            told("EGN", "SGD", "Adam"),
            None if None in rivals else all(rivals),
            "; ".join([f"after {steps:.0f} steps each", f"milliseconds a step: {spent}", *edges]),
        ),
        judged(
            f"{case}: EGN is at least as good as SGN(10) at lr .1 and lambda 1",
            "better",
            told("EGN", "SGN(10), .1"),
            no_worse("EGN", "SGN(10), .1"),
            "SGN has one length, EGN the best of its grid",
        ),
        judged(
            f"{case}: ablation: an adaptive lambda is no better than lambda = 1",
            "in the abstract; off in the released code",
            told("EGN", "EGN, adaptive lambda"),
            no_worse("EGN", "EGN, adaptive lambda"),
            "" if np.isnan(damping) else f"lambda ends at {damping:.1e}",
        ),
    ]
    for name, words in (("EGN, momentum .9", "momentum"), ("EGN, Armijo", "the line search, nothing tuned,")):
        if not np.isnan(known[name][0]):
            held = no_worse(name, "EGN")
            why = "it never shortened a step" if name.endswith("Armijo") and _never_shortened(results, case) else ""
            made.append(judged(f"{case}: ablation: {words} does no harm", "optional", told("EGN", name), held, why))
    return made


def _never_shortened(results: Results, case: str) -> bool:
    """Whether the runs with a search are those of whole steps, number by number."""
    searched, whole = ([r["curves"] for r in results.of(case, name)] for name in ("EGN, Armijo", "EGN length=1"))
    return bool(whole) and [c.get("train_loss") for c in searched] == [c.get("train_loss") for c in whole]


def pictures(results: Results) -> list[Picture]:
    made = []
    for case in results.cases():
        if case == DUAL:
            continue
        names = ("EGN", "SGD", "Adam", "EGN, adaptive lambda", "EGN, momentum .9")
        best = [name for name in (results.best(case, n, RMSE) for n in names) if name is not None]
        own = (*names, "SGN(10), .1", "EGN, Armijo")
        best += [*own[-2:], *dict.fromkeys(r["entry"] for r in results.of(case) if r.get("of") not in own)]
        axes = ("step", "sequential", "epoch", "seconds")
        made += [
            Picture(f"{case}: held-out RMSE, each at its best rate", case, RMSE, axes, best),
            Picture(f"{case}: training loss, each at its best rate", case, "train_loss", axes, best),
            Picture(f"{case}: an adaptive lambda", case, "damping", ("step",), ["EGN, adaptive lambda"]),
        ]
    return made


study = Study(
    name="egn",
    title="EGN: exact Gauss-Newton by way of the outputs",
    paper="Korbit, Adeoye, Bemporad and Zanon, 2024, arXiv 2405.14402",
    about=(
        "Gauss-Newton directions from the b x b system of a batch's outputs, lambda = 1, against SGD and Adam, each "
        "over a grid of rates, and SGN(10), on tables of numbers: California housing with --data, prices of diamonds, "
        "or diabetes. A ReLU network 32-64-32, batches of 64, 5000 steps, a tenth held out, the same for all seeds, "
        "which draw weights and order. Each method counts at the rate with the best mean held-out RMSE; there is no "
        "third set to choose it by, for anybody. Reinforcement learning and the baselines SQN and GAF are not run."
    ),
    plan=plan,
    claims=claims,
    pictures=pictures,
)
