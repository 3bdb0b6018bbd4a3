"""Conjugate gradients: what an iteration costs beside SciPy, a hand-written torch loop, jax.scipy and lineax.

    python benchmarks/bench_cg.py [--backends numpy torch jax] [--sizes 10000 1000000] [--rounds 15] [--save]

The operators are cheap on purpose (a diagonal; the stencil of a tridiagonal
matrix), so that what is timed is the solver. Everybody runs the same fixed
number of iterations on the same data, and everything that a call of a solver
does is in its time: checks of the arguments, set-up, status and history.
Peers get the product as their users write it: SciPy a ``LinearOperator``, torch
a function in a loop of two inner products read back an iteration, JAX a closure
inside one ``jax.jit``.

``--check`` makes the exit status tell whether ours stays within 15 % of the
reference (SciPy, the loop, jax.scipy) in the median of the rounds.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import interleaved, save

import linop_gn as lg

ALLOWED = 1.15
OURS = "linop_gn"
Cases = dict[str, Callable[[], Any]]


def spectrum(n: int, dtype: str) -> np.ndarray:
    """Diagonal entries: so ill-conditioned that nobody is done early."""
    return np.linspace(3.0, 1e4, n).astype(dtype)


def diagonal_product(v: Any, d: Any) -> Any:
    """D v."""
    return d * v


def tridiagonal_product(v: Any, d: Any) -> Any:
    """(D - S - S^T) v with the shift S, in place where arrays allow it."""
    if hasattr(v, "at"):  # arrays of JAX are not written to
        return (d * v).at[1:].add(-v[:-1]).at[:-1].add(-v[1:])
    y = d * v
    y[1:] -= v[:-1]
    y[:-1] -= v[1:]
    return y


PRODUCTS = {"diagonal": diagonal_product, "tridiagonal": tridiagonal_product}


@lg.record
class Stencil(lg.LinearOperator):
    """The tridiagonal matrix as a user writes an operator of their own."""

    entries: Any
    space: lg.Space = lg.static()

    @property
    def domain(self) -> lg.Space:
        return self.space

    @property
    def psd(self) -> bool:
        return True

    def matvec(self, v: Any) -> Any:
        return tridiagonal_product(v, self.entries)


def operator(kind: str, d: Any) -> lg.LinearOperator:
    """Ours."""
    return lg.Diagonal(d, psd=True) if kind == "diagonal" else Stencil(d, lg.Space.flat(d.shape[0], d))


def numpy_cases(kind: str, d: np.ndarray, b: np.ndarray, steps: int) -> tuple[str, Cases]:
    from scipy.sparse.linalg import LinearOperator, cg

    product, A, method = PRODUCTS[kind], operator(kind, d), lg.CG(steps=steps)
    theirs = LinearOperator((len(b), len(b)), matvec=lambda v: product(v, d), dtype=b.dtype)
    return "scipy cg", {
        OURS: lambda: lg.solve(A, b, method).x,
        "scipy cg": lambda: cg(theirs, b, rtol=0.0, maxiter=steps)[0],
    }


def torch_cases(kind: str, d: np.ndarray, b: np.ndarray, steps: int) -> tuple[str, Cases]:
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    product, D, B = PRODUCTS[kind], torch.tensor(d), torch.tensor(b)
    A, method = operator(kind, D), lg.CG(steps=steps)

    def by_hand() -> torch.Tensor:
        x, r, p = torch.zeros_like(B), B.clone(), B.clone()
        rr = torch.dot(r, r).item()
        bound, residuals = 1e-30 * math.sqrt(rr), [math.sqrt(rr)]
        for _ in range(steps):
            q = product(p, D)
            curvature = torch.dot(p, q).item()
            if not curvature > 0:
                break
            alpha = rr / curvature
            x.add_(p, alpha=alpha)
            r.add_(q, alpha=-alpha)
            new = torch.dot(r, r).item()
            residuals.append(math.sqrt(new))
            if residuals[-1] <= bound:
                break
            p.mul_(new / rr).add_(r)
            rr = new
        return x

    return "loop by hand", {OURS: lambda: lg.solve(A, B, method).x, "loop by hand": by_hand}


def jax_cases(kind: str, d: np.ndarray, b: np.ndarray, steps: int) -> tuple[str, Cases]:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    product, D, B, method = PRODUCTS[kind], jnp.asarray(d), jnp.asarray(b), lg.CG(steps=steps)
    A = operator(kind, D)

    def scipy_cg(d: Any, b: Any) -> Any:
        return jax.scipy.sparse.linalg.cg(lambda v: product(v, d), b, tol=0.0, atol=0.0, maxiter=steps)[0]

    def lineax_cg(d: Any, b: Any) -> Any:
        import lineax as lx

        theirs = lx.FunctionLinearOperator(
            lambda v: product(v, d), jax.eval_shape(lambda: b), lx.positive_semidefinite_tag
        )
        solver = lx.CG(rtol=1e-12, atol=1e-30, max_steps=steps, stabilise_every=None)
        return lx.linear_solve(theirs, b, solver, throw=False).value

    def ours(d: Any, b: Any) -> Any:
        return lg.solve(operator(kind, d), b, method).x

    def ready(program: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(program(*arguments))

    cases = {OURS: ready(jax.jit(ours), D, B), "jax.scipy cg": ready(jax.jit(scipy_cg), D, B)}
    try:
        import lineax  # noqa: F401

        cases["lineax CG"] = ready(jax.jit(lineax_cg), D, B)
    except ImportError:
        pass
    cases[f"{OURS}, from Python"] = ready(lambda: lg.solve(A, B, method).x)
    return "jax.scipy cg", cases


BACKENDS = {"numpy": numpy_cases, "torch": torch_cases, "jax": jax_cases}


def settings(options: argparse.Namespace) -> Iterator[tuple[str, str, int, str]]:
    for backend in options.backends:
        for kind in options.operators:
            for n in options.sizes:
                for dtype in options.dtypes:
                    yield backend, kind, n, dtype


def measure(backend: str, kind: str, n: int, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds an iteration and ratios to the reference, by name, after everybody's answers were compared."""
    d, b = spectrum(n, dtype), np.random.default_rng(0).standard_normal(n).astype(dtype)
    reference, cases = BACKENDS[backend](kind, d, b, options.steps)
    expected = np.asarray(cases[reference](), dtype=float)
    found: dict[str, Any] = {"reference": reference}
    for name, case in list(cases.items()):
        error = float(np.abs(np.asarray(case(), dtype=float) - expected).max() / np.abs(expected).max())
        if not error <= (1e-9 if dtype == "float64" else 1e-3):  # or they didn't do the same work
            del cases[name]
            found[name] = {"error": error}
    timings = interleaved(cases, options.rounds)
    for name in cases:
        ratio, low, high = timings.ratio(name, reference)
        found[name] = {
            "microseconds": 1e6 * timings.median(name) / options.steps,
            "best": 1e6 * min(timings[name]) / options.steps,
            "ratio": ratio,
            "quartiles": [low, high],
            "ratio_of_best": min(timings[name]) / min(timings[reference]),
        }
    return found


def rows(results: list[dict[str, Any]]) -> Table:
    table = Table(title=f"CG, microseconds an iteration (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)")
    for heading in ("backend", "operator", "n", "dtype", "solver"):
        table.add_column(heading)
    for heading in ("median", "best", "ratio", "quartiles", "of best"):
        table.add_column(heading, justify="right")
    for entry in results:
        head = [entry["backend"], entry["operator"], f"{entry['n']:,}", entry["dtype"]]
        for name, found in entry["solvers"].items():
            if name == "reference":
                continue
            if "error" in found:
                table.add_row(*head, name, f"[red]answer is off by {found['error']:.1e}: not timed[/red]")
            else:
                low, high = found["quartiles"]
                colour = "red" if name == OURS and found["ratio"] > ALLOWED else "default"
                table.add_row(
                    *head,
                    name,
                    f"{found['microseconds']:.1f}",
                    f"{found['best']:.1f}",
                    f"[{colour}]{found['ratio']:.2f}[/{colour}]",
                    f"{low:.2f} .. {high:.2f}",
                    f"{found['ratio_of_best']:.2f}",
                )
            head = [""] * 4
        table.add_section()
    return table


def main() -> int:
    """Run, print, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", choices=sorted(BACKENDS), default=["numpy", "torch", "jax"])
    parser.add_argument("--operators", nargs="+", choices=sorted(PRODUCTS), default=["diagonal", "tridiagonal"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[10_000, 1_000_000], metavar="N")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "float64"], default=["float64", "float32"])
    parser.add_argument("--steps", type=int, default=50, help="iterations of each solve (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help=f"fail where ours takes more than {ALLOWED} of the time")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/cg.json")
    options = parser.parse_args()
    console, results = Console(width=None if sys.stdout.isatty() else 130), []
    load = os.getloadavg()
    for setting in track(list(settings(options)), "measuring", console=Console(stderr=True)):
        backend, kind, n, dtype = setting
        solvers = measure(*setting, options)
        results.append({"backend": backend, "operator": kind, "n": n, "dtype": dtype, "solvers": solvers})
    console.print(rows(results))
    if options.save:
        about = {"steps": options.steps, "rounds": options.rounds, "threads": os.environ["OMP_NUM_THREADS"]}
        loads = {"load_before": load, "load_after": os.getloadavg()}
        console.print(f"saved to {save('cg', {**about, **loads, 'cases': results})}")
    slow = [entry for entry in results if entry["solvers"].get(OURS, {}).get("ratio", math.inf) > ALLOWED]
    return 1 if options.check and slow else 0


if __name__ == "__main__":
    sys.exit(main())
