"""Least squares on the sets of NIST and of Moré, Garbow and Hillstrom, from all starts, with defaults, beside SciPy.

    python benchmarks/bench_least_squares.py [--backend numpy torch jax] [--set NIST MGH] [--inner cg] [--save]

NIST: solved is the certified sum of squares to six digits and each parameter to four (in float32: parameters to two),
of 54. Moré-Garbow-Hillstrom: within 1e-4 of a listed minimum, or 1e-12 of zero, of 75. False is a success that is not:
above the certified sum by 1e-4 of it, or where MINPACK or trf lower the sum by that much from there. ``--all`` prints
each run, ``--inner`` takes products with the Jacobian instead of factoring it, ``--no-peers`` leaves SciPy out. JAX
compiles a program for each problem, which takes most of its time. The problems are in tests/support.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is imported

import numpy as np
import scipy.optimize
from rich.console import Console
from rich.table import Table

import linop_gn as lg

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from timing import save

import mgh  # isort: skip
import nist  # isort: skip

LIMIT = 500
INNER = {"qr": None, "cg": lg.CG(), "lsmr": lg.LSMR()}


def nist_of_ours(framework: str, dtype: str, inner: str, told: Any) -> dict[str, Any]:
    """Our fits of NIST's sets."""
    ops, rows = lg.load(framework), []
    loose = dtype == "float32"
    for name in nist.MODELS:
        made = nist.problem(name)
        for i, start in enumerate(made.starts):
            fit = nist.fit(ops, made, start, dtype, max_steps=LIMIT, solver=INNER[inner])
            b = np.asarray(ops.to_numpy(fit.x), float)
            total = nist.sum_at(made, b)
            close = total < 1e-20 if nist.is_exact(made) else abs(total / made.sum_of_squares - 1) < 1e-6
            right = bool(close or loose) and bool((abs(b / made.certified - 1) < (1e-2 if loose else 1e-4)).all())
            rows.append((f"{name} {i + 1}", right, nist.is_false(made, fit), int(fit.steps), fit.status.name))
            told(rows[-1])
    return summary(rows)


def nist_of_scipy(method: str, told: Any) -> dict[str, Any]:
    """SciPy's, with the Jacobian by complex steps."""
    rows = []
    for name in nist.MODELS:
        made = nist.problem(name)
        for i, start in enumerate(made.starts):
            with np.errstate(all="ignore"):
                b, steps, success = scipy_on(
                    lambda b, p=made: p.model(np, b, p.x) - p.y, nist.jacobian(made), start, method
                )
            total = nist.sum_at(made, b)
            close = total < 1e-20 if nist.is_exact(made) else abs(total / made.sum_of_squares - 1) < 1e-6
            right = bool(close) and bool((abs(b / made.certified - 1) < 1e-4).all())
            false = success and not total <= max(made.sum_of_squares * (1 + 1e-4), 1e-20)
            rows.append((f"{name} {i + 1}", right, bool(false), steps, ""))
            told(rows[-1])
    return summary(rows)


def scipy_on(fun: Any, slope: Any, start: Any, method: str) -> tuple[Any, int, bool]:
    """The parameters, evaluations, and whether SciPy calls it a success."""
    try:
        found = scipy.optimize.least_squares(fun, start, slope, method=method, max_nfev=LIMIT)
    except Exception:  # NaN in the SVD, a start without a value
        return np.full(len(start), np.nan), 0, False
    return found.x, found.nfev, bool(found.success)


def lowered(fun: Any, slope: Any, x: Any, total: float) -> bool:
    """Whether SciPy lowers the sum of squares from x by 1e-4 of it."""
    for method in ("lm", "trf"):
        try:
            found = scipy.optimize.least_squares(
                fun, x, slope, method=method, xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=5000
            )
        except Exception:
            continue
        if 2 * found.cost < total * (1 - 1e-4) and total > 1e-12:
            return True
    return False


def on_host(problem: Any) -> tuple[Any, Any]:
    """Residuals and Jacobian of NumPy arrays, by torch."""
    import torch

    xp = lg.load("torch").namespace()
    recorded = {p.name: p for p in mgh.problems(lambda a: torch.tensor(np.asarray(a, float)))}[problem.name]

    def fun(x: Any) -> Any:
        return recorded.fun(xp, torch.tensor(np.asarray(x, float))).numpy()

    def slope(x: Any) -> Any:
        return torch.func.jacrev(lambda x: recorded.fun(xp, x))(torch.tensor(np.asarray(x, float))).numpy()

    return fun, slope


def mgh_of(solver: str, inner: str, told: Any) -> dict[str, Any]:
    """The set of Moré, Garbow and Hillstrom, solved by us on a framework or by one of SciPy's methods."""
    ops = lg.load(solver if solver in ("numpy", "torch", "jax") else "numpy")
    xp, rows = ops.namespace(), []
    for problem in mgh.problems(lambda a: ops.asarray(a, "float64")):
        fun, slope = on_host(problem)
        for factor, start in problem.starts():
            with np.errstate(all="ignore"):
                if solver in ("lm", "trf"):
                    x, steps, success = scipy_on(fun, slope, start, solver if len(fun(start)) >= len(start) else "trf")
                    status = ""
                else:
                    jac = slope if ops.calculus is None else None
                    given = fun if jac is not None else lambda x, p=problem: p.fun(xp, x)
                    fit = lg.least_squares(
                        given, ops.asarray(start, "float64"), jac, max_steps=LIMIT, solver=INNER[inner]
                    )
                    x, steps, success, status = ops.to_numpy(fit.x), int(fit.steps), fit.success, fit.status.name
                r = fun(x)
                total = float(r @ r)
                solved = problem.is_solved(total)
                false = bool(success) and not solved and lowered(fun, slope, x, total)
            rows.append((f"{problem.name} x {factor}", solved, false, steps, status))
            told(rows[-1])
    return summary(rows)


def summary(rows: list[tuple[str, bool, bool, int, str]]) -> dict[str, Any]:
    """Solved, false successes, steps."""
    steps = [row[3] for row in rows]
    solved, false = (sum(row[k] for row in rows) for k in (1, 2))
    return {"solved": f"{solved} of {len(rows)}", "false": false, "median steps": np.median(steps), "most": max(steps)}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--backend", dest="framework", nargs="+", default=["numpy", "torch"], choices=["numpy", "torch", "jax"]
    )
    parser.add_argument("--dtype", default="float64", choices=["float64", "float32"])
    parser.add_argument("--inner", default="qr", choices=list(INNER), help="the solver of the damped linear problems")
    parser.add_argument("--set", nargs="+", default=["NIST", "MGH"], choices=["NIST", "MGH"])
    parser.add_argument("--no-peers", action="store_true", help="leave SciPy out")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/least_squares_*.json")
    parser.add_argument("--all", action="store_true", help="print each run")
    options = parser.parse_args()
    if "jax" in options.framework:
        import jax

        jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore")
    console = Console()

    def told(row: Any) -> None:
        if options.all or row[2] or not row[1]:
            name, solved, false, steps, status = row
            word = "FALSE" if false else "" if solved else "not solved"
            console.print(f"  {name:26} {steps:4d} steps  {status:15} {word}", highlight=False)

    runs = [
        (f"linop_gn, {f}", lambda f=f: nist_of_ours(f, options.dtype, options.inner, told), "NIST")
        for f in options.framework
    ]
    if options.dtype == "float64":
        runs += [(f"SciPy {m}", lambda m=m: nist_of_scipy(m, told), "NIST") for m in ("trf", "lm")]
        runs += [(f"linop_gn, {f}", lambda f=f: mgh_of(f, options.inner, told), "MGH") for f in options.framework]
        runs += [(f"SciPy {m}", lambda m=m: mgh_of(m, options.inner, told), "MGH") for m in ("trf", "lm")]
    table = Table("set", "solver", "solved", "false", "median steps", "most", "seconds")
    results = []
    for who, run, which in runs:
        if which not in options.set or (options.no_peers and "SciPy" in who):
            continue
        console.print(f"{which}: {who}")
        begin = time.perf_counter()
        found = run()
        table.add_row(which, who, *map(str, found.values()), f"{time.perf_counter() - begin:.1f}")
        results.append({"set": which, "solver": who, **{name: _plain(value) for name, value in found.items()}})
    console.print(table)
    if options.save:
        name = "_".join(["least_squares", *options.set, *options.framework]).lower()
        console.print(f"saved to {save(name, {'dtype': options.dtype, 'cases': results})}")


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int)) else float(value)


if __name__ == "__main__":
    main()
