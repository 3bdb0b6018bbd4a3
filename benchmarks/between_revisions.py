"""Two source trees against each other: solvers and torch products, by alternating subprocesses.

    git worktree add ../before REVISION
    python benchmarks/between_revisions.py ../before [--rounds 15] [--only cg] [--save]

Each round starts a process for the other tree and one for this one, in turn about; a process
times every case. The ratio (this over the other) is taken round by round: median and quartiles.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from timing import Timings, save

HERE = Path(__file__).resolve().parents[1]


def solver_cases() -> dict[str, Callable[[], Any]]:
    """Runs of fixed length, on a cheap operator."""
    import numpy as np

    import linop_gn as lg

    made = {}
    for n, steps in ((10_000, 200), (1_000_000, 10)):
        d, b = np.linspace(1.0, 10.0, n), np.random.default_rng(0).standard_normal(n)
        symmetric = lg.Diagonal(d * np.where(np.arange(n) % 2, 1.0, -1.0))
        for solver, A in ((lg.CG(steps=steps), lg.Diagonal(d)), (lg.MINRES(steps=steps), symmetric)):
            made[f"{type(solver).__name__}, NumPy, {n:.0e}"] = partial(lg.solve, A, b, solver)
        made[f"LSMR, NumPy, {n:.0e}"] = partial(lg.solve, lg.Diagonal(d), b, lg.LSMR(steps=steps))
    import torch

    d, b = torch.linspace(1.0, 10.0, 10_000, dtype=torch.float64), torch.randn(10_000, dtype=torch.float64)
    made["CG, torch, 1e+04"] = partial(lg.solve, lg.Diagonal(d), b, lg.CG(steps=200))
    return made


def product_cases() -> dict[str, Callable[[], Any]]:
    """A product with the Gauss-Newton operator and one with the Hessian of a perceptron, linearised before."""
    import torch
    from torch import nn

    import linop_gn as lg

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(128, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10))
    x, y = torch.randn(128, 128), torch.randint(10, (128,))
    objective, params = lg.Objective(net, lg.losses.CrossEntropy(), (x, y)), dict(net.named_parameters())
    v = torch.randn(sum(p.numel() for p in params.values()))
    made: dict[str, Callable[[], Any]] = {}
    for kind in (lg.GGN, lg.Hessian, lg.BlockGGN):
        A = kind(objective, params)
        A @ v
        made[f"{kind.__name__} product, torch"] = partial(A.__matmul__, v)
    made["gradient and linearisation, torch"] = lambda: objective.with_data((x, y)).gradient(params)
    return made


def measure(only: str) -> dict[str, float]:
    """Seconds of each case: the least of five, each long enough for the clock."""
    cases = {name: case for name, case in (solver_cases() | product_cases()).items() if only.lower() in name.lower()}
    seconds = {}
    for name, case in cases.items():
        case()
        start = time.perf_counter()
        case()
        repeats = max(1, round(0.03 / (time.perf_counter() - start)))
        found = []
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(repeats):
                case()
            found.append((time.perf_counter() - start) / repeats)
        seconds[name] = min(found)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", nargs="?", type=Path, help="the other tree")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    if options.before is None:  # a process of one round
        print(json.dumps(measure(options.only)))
        return
    timings = Timings()
    for _ in range(options.rounds):
        for name, tree in (("before", options.before.resolve()), ("now", HERE)):
            paths = os.pathsep.join([str(tree), str(tree / "backends"), str(Path(__file__).parent)])
            environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": paths}
            asked = [sys.executable, str(Path(__file__)), "--only", options.only]
            run = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True)
            for case, seconds in json.loads(run.stdout).items():
                timings.setdefault(f"{name}: {case}", []).append(seconds)
    table = Table("case", "before, ms", "now, ms", "ratio", "quartiles")
    results = {}
    for case in [name.removeprefix("now: ") for name in timings if name.startswith("now: ")]:
        before, now = f"before: {case}", f"now: {case}"
        ratio, low, high = timings.ratio(now, before)
        results[case] = {"ratio": ratio, "quartiles": [low, high], "milliseconds": 1e3 * timings.median(now)}
        numbers = 1e3 * timings.median(before), 1e3 * timings.median(now)
        table.add_row(case, *(f"{number:.3g}" for number in numbers), f"{ratio:.3f}", f"{low:.3f} - {high:.3f}")
    Console().print(table)
    if options.save:
        print(save("between_revisions", {"rounds": options.rounds, "ratios": results}))


if __name__ == "__main__":
    main()
