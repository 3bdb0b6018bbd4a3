"""Trust-region methods on the problems of Moré, Garbow and Hillstrom as scalar functions, beside SciPy's.

    python benchmarks/bench_trust_region.py [--only "Meyer" ...] [--methods GLTR trust-krylov ...] [--all] [--save]

Each of the 25 is f = 1/2 |r|^2 from its standard start, with gradient and Hessian by JAX handed to everybody as NumPy
functions. Ours run with defaults; SciPy with a gtol of 1e-10, which stops nobody early, and trust-krylov once more with
its own gtol. Solved is within 1e-4 of a listed minimum, or 1e-12 of zero; told, solved and called a success; false, a
success from which MINPACK or trf lower the sum of squares by 1e-4 of it. Products are Hessian-vector products: until
the value first is that of a minimum, and in the whole run; medians over what both solve, ours : trust-krylov's with the
one gtol, and with the other. ``trust-exact`` takes whole Hessians, and counts none. ``Dogleg`` is for curvature that is
positive definite, which these Hessians are not everywhere.
"""

from __future__ import annotations

import argparse
import os
import sys
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

from bench_least_squares import lowered
from timing import save

import mgh  # isort: skip

LIMIT = 2000
DESCENTS = {
    "GLTR": lg.TrustRegion(),
    "Steihaug": lg.TrustRegion(descent=lg.descents.Steihaug()),
    "Krylov": lg.TrustRegion(descent=lg.descents.Krylov()),
    "Dogleg": lg.TrustRegion(descent=lg.descents.Dogleg()),
}
OWN = "trust-krylov, its gtol"
SCIPY = ("trust-exact", "trust-krylov", OWN)


class Scalar:
    """A problem as a scalar function, compiled by JAX; the latest points are remembered."""

    def __init__(self, problem: mgh.Problem, recorded: mgh.Problem) -> None:
        import jax

        xp = lg.load("jax").namespace()
        self.problem, self.known = problem, {}
        value = lambda x: 0.5 * xp.sum(recorded.fun(xp, x) ** 2)  # noqa: E731
        self.all = jax.jit(lambda x: (value(x), jax.grad(value)(x), jax.hessian(value)(x)))
        self.residuals = jax.jit(lambda x: recorded.fun(xp, x))
        self.slope = jax.jit(jax.jacfwd(self.residuals))

    def __call__(self, x: Any) -> tuple[float, np.ndarray, np.ndarray]:
        key = x.tobytes()
        if key not in self.known:
            self.known = dict(list(self.known.items())[-8:])
            self.known[key] = tuple(np.array(part) for part in self.all(x))
        return self.known[key]

    def objective(self) -> lg.Objective:
        """Ours."""
        return lg.Objective.from_function(
            lambda x: self(x)[0], gradient=lambda x: self(x)[1].copy(), hvp=lambda x, v: self(x)[2] @ v
        )

    def is_solved(self, value: float) -> bool:
        """Whether this is the value of a minimum."""
        return self.problem.is_solved(2.0 * value)

    def is_lowered(self, x: Any) -> bool:
        """Whether the sum of squares can be lowered from x by 1e-4 of it."""
        fun, slope = (lambda x, f=f: np.array(f(x)) for f in (self.residuals, self.slope))
        r = fun(x)
        return lowered(fun, slope, x, float(r @ r))


def ours(case: Scalar, method: Any) -> dict[str, Any]:
    """A run of ours."""
    fit = lg.minimize(case.objective(), case.problem.start, method, max_steps=LIMIT)
    values, products = fit.history["value"], fit.history["products"]
    first = next((int(p) for f, p in zip(values, products, strict=True) if case.is_solved(f)), None)
    return judged(case, fit.params, fit.succeeded, int(fit.steps), int(fit.products), first, fit.status.name)


def scipys(case: Scalar, method: str) -> dict[str, Any]:
    """A run of SciPy's."""
    count, first = [0], []

    def product(x: Any, v: Any) -> Any:
        count[0] += 1
        return case(x)[2] @ v

    def look(intermediate_result: Any) -> None:
        if not first and case.is_solved(intermediate_result.fun):
            first.append(count[0])

    curvature = {"hess": lambda x: case(x)[2]} if method == "trust-exact" else {"hessp": product}
    options = {"maxiter": LIMIT} | ({} if method == OWN else {"gtol": 1e-10})
    start, value, slope = case.problem.start, lambda x: case(x)[0], lambda x: case(x)[1]
    try:
        fit = scipy.optimize.minimize(
            value, start, jac=slope, method=method.partition(",")[0], **curvature, options=options, callback=look
        )
    except Exception as error:  # NaN in a factorisation
        return judged(case, start, False, 0, count[0], None, type(error).__name__)
    return judged(case, fit.x, fit.success, fit.nit, count[0], first[0] if first else None, fit.message[:24])


def judged(
    case: Scalar, x: Any, success: bool, steps: int, products: int, first: int | None, status: str
) -> dict[str, Any]:
    """What came of a run."""
    solved = bool(case.is_solved(case(x)[0]))
    false = bool(success and not solved and case.is_lowered(x))
    until = first if solved else None
    facts = {"solved": solved, "told": bool(success and solved), "false": false, "steps": steps}
    facts |= {"until": until, "products": products}
    return {"problem": case.problem.name, "value": float(case(x)[0]), **facts, "status": status}


def told(row: dict[str, Any]) -> str:
    """A run in a line."""
    word = "FALSE" if row["false"] else "solved" if row["solved"] else "not solved"
    products = f"{row['until'] or '-'} of {row['products']} products"
    return f"{word}: {row['value']:.6g} after {row['steps']} steps, {products}; {row['status']}"


def main() -> None:
    """Run and print."""
    import jax

    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="of these problems")
    parser.add_argument("--methods", nargs="+", default=[*DESCENTS, *SCIPY], choices=[*DESCENTS, *SCIPY])
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/trust_region.json")
    parser.add_argument("--all", action="store_true", help="print each run")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    console, ops = Console(), lg.load("jax")
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in options.methods}
    for problem, recorded in zip(mgh.problems(), mgh.problems(lambda a: ops.asarray(a, "float64")), strict=True):
        if options.only and problem.name not in options.only:
            continue
        case = Scalar(problem, recorded)
        for name in options.methods:
            with np.errstate(all="ignore"):
                row = ours(case, DESCENTS[name]) if name in DESCENTS else scipys(case, name)
            rows[name].append(row)
            if options.all or row["false"]:
                console.print(f"{problem.name:22} {name:22} {told(row)}", highlight=False)
    table = Table("method", "solved", "told", "false", "steps", "products to a minimum", "products in all")
    peers = {name: rows[name] for name in ("trust-krylov", OWN) if name in rows}
    results = {name: summary(runs, peers) for name, runs in rows.items()}
    for name, found in results.items():
        table.add_row(name, *map(str, found.values()))
    console.print(table)
    if options.save:
        runs = {name: {row["problem"]: told(row) for row in made} for name, made in rows.items()}
        console.print(f"saved to {save('trust_region', {'methods': results, 'runs': runs})}")


def summary(runs: list[dict[str, Any]], peers: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Counts, and medians beside those of each peer."""
    made: dict[str, Any] = {what: sum(row[what] for row in runs) for what in ("solved", "told", "false")}
    made["steps"] = float(np.median([row["steps"] for row in runs]))
    for what in ("until", "products"):
        medians = []
        for peer in peers.values():
            both = [pair for pair in zip(runs, peer, strict=True) if all(row["solved"] for row in pair)]
            medians.append(" : ".join(f"{np.median([pair[k][what] for pair in both]):g}" for k in (0, 1)))
        made[what] = ", ".join(medians)
    return made


if __name__ == "__main__":
    main()
