"""A transformer of 45 million parameters on an accelerator: products, steps and a solver's iterations beside peers.

    python benchmarks/bench_accelerator.py [--backends torch jax cupy] [--rounds 7] [--save]
    python benchmarks/bench_accelerator.py --small      # on the CPU, with a tiny model: that the script still runs

torch   products and Gauss-Newton steps in multiples of a gradient, eager and compiled, beside curvlinops
JAX     a gradient and 20 CG steps in one jit, beside jax.scipy and lineax
CuPy    20 steps of CG and MINRES on 45 million unknowns, beside cupyx.scipy; with --small NumPy and SciPy stand in

Everything is waited for before a clock is read. Three minutes on one GPU, compilations included.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")

import numpy as np
from rich.console import Console
from rich.table import Table
from timing import Timings, interleaved, save

import linop_gn as lg

Results = dict[str, dict[str, Any]]
LARGE = {"vocabulary": 8192, "width": 512, "blocks": 12}
SMALL = {"vocabulary": 64, "width": 32, "blocks": 1}
STEPS = 20


def of_torch(small: bool, rounds: int) -> tuple[str, Results]:
    """Products and steps in multiples of a gradient."""
    import torch
    from bench_torch_curvature import LanguageModel, cases

    if not small and not torch.cuda.is_available():
        raise RuntimeError("torch sees no CUDA device")
    device = "cpu" if small else "cuda"
    torch.manual_seed(0)
    size = SMALL if small else LARGE
    model = LanguageModel(**size, heads=size["width"] // 32).to(device)
    tokens = torch.randint(size["vocabulary"], (2, 9) if small else (8, 257), device=device)
    found = cases(model, tokens[:, :-1], tokens[:, 1:], _installed("curvlinops"), compiled=not small)

    def waited(case: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            case()
            if not small:
                torch.cuda.synchronize()

        return run

    timings = interleaved({name: waited(case) for name, case in found.items()}, rounds)
    title = "CPU" if small else torch.cuda.get_device_name(0)
    return title, _told(timings, "gradient")


def of_jax(small: bool, rounds: int) -> tuple[str, Results]:
    """A gradient and 20 CG steps in one program."""
    import jax
    from bench_jax_curvature import cross_entropy, language_model, lineax_solve, our_solve, scipy_solve

    device = next((device for device in jax.devices() if device.platform != "cpu"), None)
    if device is None and not small:
        raise RuntimeError("JAX sees no accelerator")
    size = {**SMALL, "batch": 2, "length": 8} if small else {**LARGE, "batch": 8, "length": 256}
    model, params, x, y = language_model(**size)
    gradient = jax.jit(jax.grad(lambda p, x, y: cross_entropy(model(p, x), y)))
    solvers = {"jax.scipy cg": scipy_solve, "linop_gn": our_solve}
    if _installed("lineax"):
        solvers["lineax CG"] = lineax_solve
    programs = {name: jax.jit(lambda p, x, y, solve=solve: solve(model, p, x, y)[0]) for name, solve in solvers.items()}
    programs["gradient"] = gradient

    def ready(program: Any) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(program(params, x, y))

    timings = interleaved({name: ready(program) for name, program in programs.items()}, rounds)
    return "CPU" if small or device is None else device.device_kind, _told(timings, "gradient")


def of_cupy(small: bool, rounds: int) -> tuple[str, Results]:
    """20 steps of CG and MINRES; without a GPU NumPy and SciPy stand in, so that the calls are tried."""
    if small:
        import scipy.sparse.linalg as peers

        xp: Any = np
        title, wait = "CPU, NumPy", lambda: None
    else:
        import cupy as xp
        import cupyx.scipy.sparse.linalg as peers

        title = xp.cuda.runtime.getDeviceProperties(0)["name"].decode()
        wait = xp.cuda.Device().synchronize
    n = 1000 if small else 45_000_000
    d, b = xp.linspace(3.0, 1e4, n, dtype=xp.float32), xp.ones(n, dtype=xp.float32)
    A = lg.Diagonal(d, psd=True)
    theirs = peers.LinearOperator((n, n), matvec=lambda v: d * v.reshape(-1), dtype=d.dtype)
    quiet = {"rtol": 0.0} if small else {"tol": 0.0}
    found = {
        "CG, library": lambda: peers.cg(theirs, b, maxiter=STEPS, **quiet),
        "CG": lambda: lg.solve(A, b, lg.CG(steps=STEPS)).x,
        "MINRES, library": lambda: peers.minres(theirs, b, maxiter=STEPS, **quiet),
        "MINRES": lambda: lg.solve(A, b, lg.MINRES(rtol=1e-30, max_steps=STEPS)).x,
    }

    def waited(case: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: (case(), wait())

    return title, _told(interleaved({name: waited(case) for name, case in found.items()}, rounds), "CG, library")


BACKENDS: dict[str, Callable[[bool, int], tuple[str, Results]]] = {"torch": of_torch, "jax": of_jax, "cupy": of_cupy}


def measured(backends: list[str], small: bool, rounds: int, console: Console) -> dict[str, Any]:
    """The figures of each backend that has what it needs; the others are named with the reason."""
    results: dict[str, Any] = {}
    for name in backends:
        try:
            title, found = BACKENDS[name](small, rounds)
        except (ImportError, RuntimeError) as error:
            console.print(f"{name}: {error}", markup=False)
            continue
        table = Table("", "ratio", "quartiles", "ms", title=f"{name} on {title}")
        for case, figure in found.items():
            low, high = figure["quartiles"]
            table.add_row(case, f"{figure['ratio']:.2f}", f"{low:.2f} .. {high:.2f}", f"{1e3 * figure['seconds']:.2f}")
        console.print(table)
        results[name] = {"device": title, "cases": found}
    return results


def _told(timings: Timings, reference: str) -> Results:
    told = {}
    for name in timings:
        ratio, low, high = timings.ratio(name, reference)
        told[name] = {"ratio": ratio, "quartiles": [low, high], "seconds": timings.median(name)}
    return told


def _installed(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", choices=sorted(BACKENDS), default=sorted(BACKENDS))
    parser.add_argument("--small", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/accelerator.json")
    options = parser.parse_args()
    console = Console()
    results = measured(options.backends, options.small, options.rounds, console)
    if options.save and results and not options.small:
        console.print(f"saved to {save('accelerator', results)}")
    return 0 if results else 1


if __name__ == "__main__":
    sys.exit(main())
