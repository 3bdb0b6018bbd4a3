"""One Krylov space for 20 dampings, beside one CG run of the same number of products.

    python benchmarks/bench_krylov.py [--steps 20] [--rounds 7] [--dtypes float64 float32] [--save]

The operator is a diagonal whose product is made to take ``--product``
milliseconds, on a million unknowns. Three spectra: ``flat`` (evenly spaced),
``decaying`` (evenly spaced logarithms over eight decades) and ``outliers`` (30
large eigenvalues over a decaying bulk, as curvature of networks has). The
reference is ``lg.CG(steps=k)`` for *one* damping. Each way of
reorthogonalisation is timed with its 20 solutions made, and so is the second
pass of a basis that is not kept. Rounds are interleaved; medians and quartiles
of the ratio within a round are shown.

``--check`` makes the exit status tell whether the default stays within 1.2 on
the spectra.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import interleaved, save

import linop_gn as lg

ALLOWED = 1.2
DAMPINGS = np.logspace(-4, 2, 20)
WAYS = ("selective", "none", "full")


def spectrum(kind: str, n: int) -> np.ndarray:
    """Eigenvalues of a diagonal operator."""
    if kind == "flat":
        return np.linspace(1e-3, 1.0, n)
    bulk = np.logspace(-6, -2, n) if kind == "outliers" else np.logspace(-6, 2, n)
    if kind == "outliers":
        bulk[-30:] = np.logspace(-1, 2, 30)
    return bulk


@lg.record
class Slow(lg.LinearOperator):
    """A diagonal whose product takes a given time."""

    values: Any
    seconds: float = 0.0

    @property
    def domain(self) -> lg.Space:
        return lg.Space.flat(self.values.shape[0], self.values)

    @property
    def psd(self) -> bool:
        return True

    def matvec(self, v: Any) -> Any:
        end = time.perf_counter() + self.seconds
        product = self.values * v
        while time.perf_counter() < end:
            pass
        return product


def cases(A: Slow, b: np.ndarray, steps: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    damped = lg.Damped(A, float(DAMPINGS[10]))

    def space(way: str) -> Callable[[], Any]:
        return lambda: lg.krylov(A, b, steps, reorthogonalise=way).solve(damping=DAMPINGS).x

    return {
        "CG, one damping": lambda: lg.solve(damped, b, lg.CG(steps=steps)).x,
        **{f"krylov {way}": space(way) for way in WAYS},
        "krylov none, space only": lambda: lg.krylov(A, b, steps, reorthogonalise="none"),
        "MultiShiftCG": lambda: lg.solve(A, b, lg.MultiShiftCG(dampings=DAMPINGS, steps=steps)).x,
    }


def measure(kind: str, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and ratios by name."""
    b = np.random.default_rng(0).standard_normal(options.size).astype(dtype)
    A = Slow(spectrum(kind, options.size).astype(dtype), options.product * 1e-3)
    todo = {name: case for name, case in cases(A, b, options.steps).items() if name not in options.without}
    timings = interleaved(todo, options.rounds)
    found: dict[str, Any] = {}
    for name in todo:
        ratio, low, high = timings.ratio(name, "CG, one damping")
        found[name] = {"seconds": timings.median(name), "ratio": ratio, "quartiles": [low, high]}
    for way in WAYS:
        state = lg.krylov(A, b, options.steps, reorthogonalise=way).state
        found[f"krylov {way}"]["reorthogonalised"] = int(state.reorthogonalised)
    return found


def rows(results: list[dict[str, Any]], options: argparse.Namespace) -> Table:
    """What was found, as a table."""
    table = Table(title=f"{options.steps} products of {options.product:g} ms, n = {options.size:,}, 20 dampings")
    for heading in ("spectrum", "dtype", "solver"):
        table.add_column(heading)
    for heading in ("median s", "ratio", "quartiles", "reorthogonalised"):
        table.add_column(heading, justify="right")
    for entry in results:
        head = [entry["spectrum"], entry["dtype"]]
        for name, found in entry["solvers"].items():
            low, high = found["quartiles"]
            many = str(found.get("reorthogonalised", ""))
            table.add_row(
                *head, name, f"{found['seconds']:.3f}", f"{found['ratio']:.2f}", f"{low:.2f} .. {high:.2f}", many
            )
            head = ["", ""]
        table.add_section()
    return table


def main() -> int:
    """Run, print, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--product", type=float, default=10.0, metavar="MS")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--spectra", nargs="+", default=["flat", "decaying", "outliers"])
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "float64"], default=["float64", "float32"])
    parser.add_argument("--without", nargs="+", default=[], metavar="SOLVER")
    parser.add_argument("--check", action="store_true", help=f"fail where the default takes more than {ALLOWED}")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/krylov.json")
    options = parser.parse_args()
    console, load, results = Console(width=None if sys.stdout.isatty() else 130), os.getloadavg(), []
    settings = [(kind, dtype) for kind in options.spectra for dtype in options.dtypes]
    for kind, dtype in track(settings, "measuring", console=Console(stderr=True)):
        results.append({"spectrum": kind, "dtype": dtype, "solvers": measure(kind, dtype, options)})
    console.print(rows(results, options))
    if options.save:
        about = {name: getattr(options, name) for name in ("size", "steps", "product", "rounds")}
        loads = {"threads": os.environ["OMP_NUM_THREADS"], "load_before": load, "load_after": os.getloadavg()}
        console.print(f"saved to {save('krylov', {**about, **loads, 'cases': results})}")
    slow = [entry for entry in results if entry["solvers"]["krylov selective"]["ratio"] > ALLOWED]
    return 1 if options.check and slow else 0


if __name__ == "__main__":
    sys.exit(main())
