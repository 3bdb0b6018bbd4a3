"""What the stored results of the study ``llm`` say to the claims: steps, and all else, to a common loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .language import BASELINES, CONTROL, LM
from .plan import NOT_REACHABLE, Results, Verdict, judged

__all__ = ["METHODS", "claims", "crossing"]

METHODS = ("GN", "layerwise", "prox", "layerwise prox", CONTROL, LM, "SOAP", "Muon", "AdamW")


def crossing(curves: Mapping[str, Any], target: float, column: str = "step") -> float:
    """Where the held-out loss first comes down to ``target``, interpolated in ``column``; infinite if it never does.

    >>> crossing({"step": [0, 1, 2], "held_out_loss": [3.0, 2.0, 1.0]}, 1.75)
    1.25
    """
    losses = [np.inf if loss is None else loss for loss in curves["held_out_loss"]]
    i = next((i for i, loss in enumerate(losses) if loss <= target), None)
    if i is None:
        return float("inf")
    x = curves[column]
    if i == 0 or not np.isfinite(losses[i - 1]):
        return float(x[i])
    share = (losses[i - 1] - target) / (losses[i - 1] - losses[i])
    return float(x[i - 1] + share * (x[i] - x[i - 1]))


class _Reached:
    """What each method has spent at the common loss of a case, seed by seed."""

    def __init__(self, results: Results, case: str) -> None:
        self.results, self.case = results, case
        self.targets = {r["seed"]: _at(r["curves"], "step", r["common"]) for r in results.of(case, "SOAP")}

    def each(self, name: str, column: str = "step", case: str | None = None) -> dict[int, float]:
        """By seed."""
        runs = [r for r in self.results.of(case or self.case, name) if self.targets.get(r["seed"])]
        return {r["seed"]: crossing(r["curves"], self.targets[r["seed"]] or -np.inf, column) for r in runs}

    def mean(self, name: str, column: str = "step", case: str | None = None) -> float:
        """Over seeds; NaN without runs, infinite where one has not come there."""
        found = list(self.each(name, column, case).values())
        return float(np.mean(found)) if found else float("nan")

    def ratio(self, a: str, b: str) -> tuple[float, float, float]:
        """Of the mean steps of a to those of b, with the ends of a bootstrap interval (95 %) over seeds."""
        mine, theirs = self.each(a), self.each(b)
        seeds = sorted(set(mine) & set(theirs))
        if not seeds:
            return (float("nan"),) * 3
        pairs = np.array([(mine[s], theirs[s]) for s in seeds])
        if not np.isfinite(pairs).all() or not pairs[:, 1].all():
            mine_come, theirs_come = np.isfinite(pairs).all(axis=0)
            value = np.inf if theirs_come and pairs[:, 1].all() else 0.0 if mine_come and not theirs_come else np.nan
            return float(value), float(value), float(value)
        drawn = np.random.default_rng(0).integers(len(seeds), size=(2000, len(seeds)))
        means = pairs[drawn].mean(axis=1)
        low, high = np.percentile(means[:, 0] / means[:, 1], [2.5, 97.5])
        return float(pairs[:, 0].mean() / pairs[:, 1].mean()), float(low), float(high)

    def edge(self, name: str) -> str:
        """The rate that a method was run at, if it is the least or the largest of those tried."""
        case, label = f"{self.case}: rates", self.results.best(f"{self.case}: rates", name, "held_out_loss")
        return str(label).rpartition("=")[2] if self.results.edge(case, name, label) else ""

    def told(self, *names: str, column: str = "step", case: str | None = None) -> str:
        """In words."""
        found = ((n, self.mean(n, column, case)) for n in names)
        return ", ".join(f"{n} {_number(v)}" for n, v in found if not np.isnan(v))


def _at(curves: Mapping[str, Any], column: str, place: float) -> float | None:
    """The held-out loss where ``column`` is at that place, interpolated; None where it does not come there."""
    x, y = curves[column], [np.nan if v is None else v for v in curves["held_out_loss"]]
    if x[-1] < place:
        return None
    found = float(np.interp(place, x, y))
    return found if np.isfinite(found) else None


def _number(v: float) -> str:
    """As tables have it.

    >>> _number(13.52), _number(123456.0), _number(float("inf"))
    ('13.5', '1.23e+05', 'never')
    """
    return f"{v:.3g}" if np.isfinite(v) else "never"


def _known(*values: float) -> bool:
    return not any(np.isnan(v) for v in values)


def claims(results: Results) -> list[Verdict]:
    found: list[Verdict] = []
    whole = [case for case in results.cases() if ":" not in case and results.of(case, "SOAP")]
    for case in whole:
        reached = _Reached(results, case)
        found += _order(reached)
        if results.of(case, "prox"):
            found += _ratios(reached)
        found += _honest(reached)
        found += _ablations(reached) + _batch_sweep(results, case)
    return found + ([] if not whole else _beyond(results))


def _order(reached: _Reached) -> list[Verdict]:
    names = ("GN", "layerwise", "SOAP", "Muon", "AdamW")
    found = [reached.each(n) for n in names]
    seeds = set.intersection(*map(set, found))
    means = [float(np.mean([each[s] for s in seeds])) if seeds else float("nan") for each in found]
    gn, layer, soap, muon, adamw = means
    words = (f"{name}'s rate {n} is at the edge" for name in names if (n := reached.edge(name)))
    return [
        judged(
            f"{reached.case}: outer steps to the common loss: GN < layerwise < SOAP, Muon < AdamW",
            "GN 54, layerwise 78, SOAP 292, Muon about 864, AdamW more (150M, loss 3.25)",
            ", ".join(f"{n} {_number(v)}" for n, v in zip(names, means, strict=True))
            if seeds
            else reached.told(*names),
            gn < layer < min(soap, muon) and max(soap, muon) < adamw if _known(*means) else None,
            "; ".join(words),
        )
    ]


def _ratios(reached: _Reached) -> list[Verdict]:
    small = "batches are of millions of tokens there, of some thousand here"

    def verdict(claim: str, a: str, b: str, paper: str, least: float, most: float, why: str = "") -> Verdict:
        value, low, high = reached.ratio(a, b)
        told = f"{_number(value)} ({_number(low)} to {_number(high)})" if _known(value) else "not reached"
        held = least <= value <= most if _known(value) else None
        return judged(f"{reached.case}: {claim}", paper, told, held, "" if held else why)

    return [
        verdict("layerwise takes at most 1.5 times the steps of GN", "layerwise", "GN", "1.4", 0.0, 1.5),
        verdict("prox-linear takes the steps of GN within 10 %", "prox", "GN", "about equal", 0.9, 1.1),
        verdict(
            "layerwise prox-linear takes the steps of layerwise GN within 10 %",
            "layerwise prox",
            "layerwise",
            "not run",
            0.9,
            1.1,
        ),
        verdict("SOAP takes 3.7 times the steps of layerwise, or more", "SOAP", "layerwise", "3.7", 3.7, np.inf, small),
        verdict("SOAP takes 5.4 times the steps of GN, or more", "SOAP", "GN", "5.4", 5.4, np.inf, small),
        verdict("Muon takes 16 times the steps of GN, or more", "Muon", "GN", "16", 16.0, np.inf, small),
    ]


def _honest(reached: _Reached) -> list[Verdict]:
    """What the common loss has cost in all that may count, the control beside the others."""
    words = {
        "sequential": ("sequential steps", "a step is N inner steps one after the other, and a search"),
        "products": ("products", "GN takes one for each inner step, the baselines none"),
        "tokens": ("tokens, those of the search counted", ""),
        "solve_tokens": ("tokens, those of the search not counted", ""),
        "seconds": ("seconds", ""),
    }
    made = []
    found = (r["entry"] for r in reached.results.of(reached.case))
    names = list(dict.fromkeys([*METHODS, *found]))  # methods of others join
    for column, (name, why) in words.items():
        gn, soap = reached.mean("GN", column), reached.mean("SOAP", column)
        held = gn < soap if _known(gn, soap) else None
        told = reached.told(*names, column=column)
        claim = f"{reached.case}: at the common loss GN has spent fewer {name} than SOAP"
        made.append(judged(claim, "not shown", told, held, "" if held else why))
    gn, control = reached.mean("GN"), reached.mean(CONTROL)
    if _known(gn, control):
        made.append(
            judged(
                f"{reached.case}: GN takes fewer steps than N inner steps on the true loss",
                "not run",
                reached.told("GN", "prox", "layerwise", CONTROL),
                gn < control,
                "" if gn < control else "to linearise is then no help: the inner optimiser does as much by itself",
            )
        )
    deep, flat = reached.mean("GN", "sequential"), reached.mean(LM, "sequential")
    if _known(deep, flat):
        made.append(
            judged(
                f"{reached.case}: GGN-CG-LM on the whole batch, nothing tuned, takes fewer sequential steps than GN",
                "not run",
                f"{reached.told('GN', LM, column='sequential')}; outer steps {reached.told('GN', LM)}",
                flat < deep,
                "" if flat < deep else "its gain ratio is of the batch that made the step, which steps overfit",
            )
        )
    return made


def _ablations(reached: _Reached) -> list[Verdict]:
    results, title = reached.results, f"{reached.case}: changed"
    if not results.of(title):
        return []
    gn = reached.mean("GN")

    def steps(name: str) -> float:
        return reached.mean(name, case=title)

    def last(name: str, figure: str = "held_out_loss") -> float:
        return results.mean(title, name, figure)

    def slower(claim: str, name: str, paper: str, why: str = "") -> Verdict:
        told = f"GN {_number(gn)}, {name} {_number(steps(name))}"
        return judged(f"{title}: {claim}", paper, told, gn < steps(name) if _known(gn, steps(name)) else None, why)

    best = results.best(title, "AdamW inside", "held_out_loss") or "AdamW inside"
    raw = results.mean(reached.case, "GN", "held_out_loss")
    averages = {name: last(name, "averaged_held_out_loss") for name in ("EMA 0.5", "EMA 0.8", "EMA 0.9")}
    schedules = {name: last(name) for name in ("inner cosine", "global cosine", "global x inner cosine")}
    counts = [r["entry"] for r in results.of(title) if r["entry"].startswith("N = ") and r["seed"] == 0]
    n = next((r["count"] for r in results.of(reached.case, "GN")), 0)
    by_count = {n: gn} | {int(name[4:]): steps(name) for name in counts}
    rising = [by_count[k] for k in sorted(by_count)]
    shares = {5: _shortest(results, reached.case, "GN", 5), 10: _shortest(results, title, "10 lengths", 10)}
    ten = steps("10 lengths")

    def told(values: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {v:.4f}" for name, v in values.items())

    return [
        slower("the line search matters", "no line search", "it does"),
        slower("the warm start of the inner run matters", "cold inner start", "it does"),
        slower("Muon inside is better than AdamW inside", best, "it is", results.edge(title, "AdamW inside", best)),
        judged(
            f"{title}: five lengths are enough: ten are no better, and the shortest wins in under a tenth of the steps",
            "5 or 10",
            f"steps {_number(gn)} and {_number(ten)}; the shortest won {shares[5]:.0%} and {shares[10]:.0%}",
            ten > 0.95 * gn and shares[5] < 0.1 if _known(gn, ten, shares[5]) else None,
        ),
        judged(
            f"{title}: a schedule inside of the outer steps makes the last loss lower than a constant rate",
            "helps with large batches",
            told({"constant": raw, **schedules}),
            min(schedules["inner cosine"], schedules["global x inner cosine"]) < raw
            if _known(raw, *schedules.values())
            else None,
        ),
        judged(
            f"{title}: of one batch, more and smaller minibatches take fewer outer steps",
            "N = 122",
            ", ".join(f"N = {k}: {_number(by_count[k])}" for k in sorted(by_count)),
            rising == sorted(rising, reverse=True) if _known(*rising) and len(rising) > 1 else None,
        ),
        judged(
            f"{title}: an average over outer steps has a lower loss at the end",
            "decay .999, which here would be the checkpoint",
            told({"none": raw, **averages}),
            min(averages.values()) < raw if _known(raw, *averages.values()) else None,
        ),
    ]


def _shortest(results: Results, case: str, name: str, count: int) -> float:
    """In what share of the steps the shortest length won."""
    lengths = [v for found in results.figure(case, name, "lengths") for v in found if v is not None]
    return float(np.mean(np.array(lengths) < 1.01 * 0.5 ** ((count - 1) / 2))) if lengths else float("nan")


def _batch_sweep(results: Results, case: str) -> list[Verdict]:
    cases = [c for c in results.cases() if c.startswith(f"{case}: batches of ")]
    cases.sort(key=lambda c: float(c.rsplit(" ", 1)[1].rstrip("k")))
    if not cases:
        return []
    names = ("GN", *BASELINES)
    whole = [r for c in cases for r in results.of(c) if r.get("status") != "NONFINITE"]
    budget = min((r["curves"]["tokens"][-1] for r in whole), default=np.nan)
    made = []
    gaps: dict[str, list[float]] = {}
    table: dict[str, dict[str, dict[str, float]]] = {}
    for column, tokens in (("tokens", budget), ("solve_tokens", budget / 2)):
        table[column], edges = {}, list[str]()
        for c in cases:
            found: dict[str, float] = {}
            for name in names:
                losses = [(_at(r["curves"], column, tokens), r["entry"]) for r in results.of(c, name)]
                known = [(v, label) for v, label in losses if v is not None]
                found[name], label = min(known, default=(float("nan"), None))
                edges += [f"{c.rsplit(' ', 1)[1]} {label}"] if results.edge(c, name, label) else []
            table[column][c] = found
        gaps[column] = [t["SOAP"] - t["GN"] for t in table[column].values()]
        told = "; ".join(
            f"{c.rsplit(' ', 1)[1]}: {', '.join(f'{n} {v:.3f}' for n, v in t.items())}"
            for c, t in table[column].items()
        )
        words = "the search's counted" if column == "tokens" else "the search's not counted"
        made.append(
            judged(
                f"{case}: at {tokens / 1024:.0f}k tokens, {words}, GN's gain on SOAP grows with the batch",
                "critical batch: AdamW 4M, SOAP and Muon 12M, GN beyond 40M",
                told,
                gaps[column] == sorted(gaps[column]) if _known(*gaps[column]) and len(cases) > 1 else None,
                f"best at the edge of what was tried: {', '.join(edges)}" if edges else "",
            )
        )
    small, large = table["tokens"][cases[0]], table["tokens"][cases[-1]]
    return [
        *made,
        judged(
            f"{case}: with the smallest batch SOAP is about as good as GN at equal tokens",
            "so at 4M or less",
            f"SOAP {small['SOAP']:.3f}, GN {small['GN']:.3f}",
            small["SOAP"] < small["GN"] + 0.02 if _known(small["SOAP"], small["GN"]) else None,
        ),
        judged(
            f"{case}: with the largest batch GN is the best at equal tokens",
            "3B tokens, batches of 120M: GN 3.45 in 20 steps, AdamW above 4.4",
            ", ".join(f"{n} {v:.3f}" for n, v in large.items()),
            large["GN"] == min(large.values()) if _known(*large.values()) else None,
        ),
    ]


def _beyond(results: Results) -> list[Verdict]:
    source = next((r["data"]["source"] for r in results if r["data"]), "")
    return [
        Verdict(
            "150M parameters on C4: loss 3.25 after 54 steps of GN, 292 of SOAP; batches of 4M to 120M tokens",
            "54, 78, 292, 864",
            f"run on {source}",
            NOT_REACHABLE,
            "billions of tokens, and days of an accelerator",
        )
    ]
