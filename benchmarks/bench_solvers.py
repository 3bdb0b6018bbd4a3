"""Krylov solvers beside their peers: time of an iteration, products to a tolerance, compile time, peak memory.

    python benchmarks/bench_solvers.py [--sections iteration products compile memory] [--backends numpy torch jax]
                                       [--sizes 10000 1000000] [--dtypes float64 float32] [--rounds 7] [--save]

iteration
    Everybody runs the same number of steps; rounds are interleaved, ratios are
    taken round by round to the first peer. Products are counted in a run that
    is not timed, and shown: some take more than the steps need.
products
    What each takes to a relative tolerance of 1e-4, what residual that leaves
    (computed in float64 from x), and whether it claims success. SciPy's
    ``minres`` and the least-squares solvers measure with norms of their own:
    the residual tells. Of eigenvalues, the six largest to 1e-6: ``eigsh``
    restarts with 20 vectors, ours extends its basis until its bounds say so.
compile
    JAX: from a Python function to an executable, for a Gauss-Newton product of
    a network of eight layers; the smallest of ``--rounds`` compilations.
memory
    Growth of the resident set's peak while solving (Linux), after everything
    is loaded, made and compiled, in vectors of length n = 1e6; a process for each.

A short run: ``--sizes 10000 --rounds 3 --dtypes float64``. Peers that are not installed, and CuPy
where there is no GPU, are left out with the reason printed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is imported

import numpy as np
from peers import PEERS, Peer, Run, absent
from rich.console import Console
from rich.progress import track
from rich.table import Table
from solver_systems import OURS, SPECTRA, largest, network_system, ours, system
from timing import interleaved, save

from peer_cases import Case, error, multiply, multiply_adjoint  # isort: skip  (found through peers)

FAMILIES = ("definite", "symmetric", "rectangular", "spectrum")
LIBRARY = {"scipy": "numpy", "jax": "jax", "lineax": "jax", "matfree": "jax", "cupy": "cupy"}
EIGSH = ("SciPy eigsh", "CuPy eigsh")
APART = ("jax.scipy gmres", "lineax GMRES", *EIGSH)
"""Other algorithms than ours: their iterations are not to be compared."""
RTOL, LIMIT = 1e-4, 1000
LARGE = 100_000
"""Above this, to a tolerance only on spectra that need few steps."""


def participants(family: str, backend: str) -> dict[str, Callable[[Case], Run]]:
    """Ours and the peers that can run here, by name; the first peer is the reference."""

    def run(name: str) -> Callable[[Case], Run]:
        return lambda case: ours(case, name, backend)

    found = {f"linop_gn {name}": run(name) for name in OURS[family]}
    for peer in PEERS:
        if family in peer.families and backend_of(peer) == backend and peer.name not in APART and not absent(peer):
            found[peer.name] = peer.prepare
    return found


def backend_of(peer: Peer) -> str:
    return LIBRARY.get(peer.package, "torch")


def reference(names: Any) -> str | None:
    return next((name for name in names if not name.startswith("linop_gn")), None)


def settings(options: argparse.Namespace, spectra: tuple[str, ...]) -> Iterator[tuple[str, str, str, int, str]]:
    for backend in options.backends:
        for family in options.families:
            for spectrum in spectra:
                for n in options.sizes:
                    for dtype in options.dtypes:
                        yield backend, family, spectrum, n, dtype


# products


class Counted:
    """A system whose products are counted when they are computed, in compiled loops too."""

    def __init__(self, case: Case, backend: str) -> None:
        self.calls = 0
        product, adjoint = case.product or multiply, case.adjoint or case.product or multiply_adjoint
        tell = self._tell
        if backend == "jax":
            import jax

            def tell() -> None:
                jax.debug.callback(self._tell)

        def counting(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(v: Any, *data: Any) -> Any:
                tell()
                return function(v, *data)

            return call

        self.case = case._replace(product=counting(product), adjoint=counting(adjoint))

    def _tell(self) -> None:
        self.calls += 1


def products(prepare: Callable[[Case], Run], case: Case, backend: str) -> tuple[Any, int]:
    """(answer, products), in JAX by what the answer says if it does: linearised or transposed products tell nothing."""
    if backend == "jax":
        run = prepare(case)
        answer = run.read(run.call())
        if answer.products is not None:
            return answer, answer.products
    counted = Counted(case, backend)
    run = prepare(counted.case)
    answer = run.read(run.call())
    if backend == "jax":
        import jax

        jax.effects_barrier()
    return answer, counted.calls


def to_tolerance(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The section "products"."""
    results = []
    todo = [s for s in settings(options, (*SPECTRA, "outliers")) if (s[1] == "spectrum") == (s[2] == "outliers")]
    todo = [s for s in todo if s[3] <= LARGE or s[2] in ("well conditioned", "clustered")]
    for backend, family, spectrum, n, dtype in track(todo, "products", console=Console(stderr=True)):
        tolerance = 1e-6 if family == "spectrum" else RTOL
        case, found = system(family, spectrum, n, dtype, rtol=tolerance, max_steps=LIMIT), {}
        if family == "spectrum":
            runs = {"linop_gn krylov": lambda case, backend=backend: largest(case, backend)}
            runs |= {p.name: p.prepare for p in PEERS if p.name in EIGSH and backend_of(p) == backend and not absent(p)}
        else:
            runs = participants(family, backend)
        for name, prepare in runs.items():
            answer, taken = products(prepare, case, backend)
            found[name] = {
                "products": taken,
                "steps": answer.steps,
                "error": error(case, answer.x),
                "claim": answer.claim,
                "says": answer.says,
            }
        results.append(_entry(backend, family, spectrum, n, dtype, found))
    return results


# time


def iteration(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The section "iteration", on a spectrum that nobody is done with early."""
    results = []
    todo = list(settings(options, ("spread to 1e8",)))
    for backend, family, spectrum, n, dtype in track(todo, "iterations", console=Console(stderr=True)):
        case, runs, found = system(family, spectrum, n, dtype, max_steps=options.steps, fixed=True), {}, {}
        for name, prepare in participants(family, backend).items():
            answer, taken = products(prepare, case, backend)
            if answer.steps is not None and answer.steps != options.steps:
                found[name] = {"stopped": f"after {answer.steps} steps: {answer.says}"}
                continue
            runs[name], found[name] = prepare(case).call, {"products": taken}
        timings, first = interleaved(runs, options.rounds), reference(runs)
        for name in runs:
            found[name] |= {"microseconds": 1e6 * timings.median(name) / options.steps}
            found[name] |= {"best": 1e6 * min(timings[name]) / options.steps}
            if first is not None:
                ratio, low, high = timings.ratio(name, first)
                found[name] |= {"ratio": ratio, "quartiles": [low, high], "reference": first}
        results.append(_entry(backend, family, spectrum, n, dtype, found))
    return results


def compilation(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The section "compile"; JAX only, whatever the backends."""
    results = []
    for family in track([f for f in options.families if f != "spectrum"], "compiling", console=Console(stderr=True)):
        case, found = network_system(family), {}
        for name, prepare in participants(family, "jax").items():
            seconds = []
            for _ in range(options.rounds):
                run = prepare(case)  # a new function each time: nothing is cached
                start = time.perf_counter()
                compiled = run.program.lower(*run.arguments).compile()
                seconds.append(time.perf_counter() - start)
            found[name] = {"seconds": min(seconds), "instructions": compiled.as_text().count(" = ")}
        results.append(_entry("jax", family, "network", len(case.data[0]), case.dtype, found))
    return results


# memory


def peak_growth(run: Run) -> int:
    """Bytes by which the resident set's peak grows while ``run`` runs."""
    if run.program is not None:
        compiled = run.program.lower(*run.arguments).compile()
        call: Callable[[], Any] = lambda: __import__("jax").block_until_ready(compiled(*run.arguments))  # noqa: E731
    else:
        call = run.call
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(field))


def measure_memory(setting: dict[str, Any]) -> float:
    """In the process of its own: vectors of length n."""

    def case(n: int) -> Case:
        return system(setting["family"], "spread to 1e8", n, setting["dtype"], max_steps=setting["steps"], fixed=True)

    prepare = participants(setting["family"], setting["backend"])[setting["name"]]
    if setting["backend"] != "jax":
        prepare(case(1000)).call()  # load what is loaded late
    run = prepare(case(setting["n"]))
    return peak_growth(run) / (setting["n"] * np.dtype(setting["dtype"]).itemsize)


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The section "memory", float64; smaller vectors share pages with everything else."""
    results, n = [], 1_000_000
    todo = [(backend, family) for backend in options.backends for family in options.families]
    for backend, family in track(todo, "memory", console=Console(stderr=True)):
        found = {}
        for name in participants(family, backend):
            setting = {"backend": backend, "family": family, "name": name, "n": n, "dtype": "float64"}
            setting["steps"] = options.steps
            command = [sys.executable, __file__, "--memory-of", json.dumps(setting)]
            # Every array is a mapping of its own: glibc would keep freed ones, and hand them out again unseen.
            environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode == 0:
                found[name] = {"vectors": float(done.stdout.split()[-1])}
            else:
                found[name] = {"failed": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no output"}
        results.append(_entry(backend, family, "spread to 1e8", n, "float64", found))
    return results


def _entry(backend: str, family: str, spectrum: str, n: int, dtype: str, found: dict[str, Any]) -> dict[str, Any]:
    return {"backend": backend, "family": family, "spectrum": spectrum, "n": n, "dtype": dtype, "solvers": found}


# tables

COLUMNS: dict[str, dict[str, Callable[[dict[str, Any]], str]]] = {
    "iteration": {
        "microseconds": lambda f: f"{f['microseconds']:.1f}",
        "best": lambda f: f"{f['best']:.1f}",
        "ratio": lambda f: f"{f['ratio']:.2f}",
        "quartiles": lambda f: f"{f['quartiles'][0]:.2f} .. {f['quartiles'][1]:.2f}",
        "products": lambda f: str(f["products"]),
    },
    "products": {
        "products": lambda f: str(f["products"]),
        "steps": lambda f: "" if f["steps"] is None else str(f["steps"]),
        "residual": lambda f: f"{f['error']:.1e}",
        "claims": lambda f: {True: "solved", False: "not solved", None: "nothing"}[f["claim"]],
    },
    "compile": {
        "seconds": lambda f: f"{f['seconds']:.2f}",
        "instructions": lambda f: str(f["instructions"]),
    },
    "memory": {"vectors": lambda f: f"{f['vectors']:.1f}"},
}
SECTIONS = {"iteration": iteration, "products": to_tolerance, "compile": compilation, "memory": memory}
TITLES = {
    "iteration": "Time of an iteration",
    "products": f"Products to a tolerance of {RTOL:g}, in at most {LIMIT} steps",
    "compile": "Seconds to compile a Gauss-Newton solve of a network in JAX",
    "memory": "Peak memory of a solve, in vectors of length n",
}


def rows(section: str, results: list[dict[str, Any]]) -> Table:
    """One section as a table."""
    table = Table(title=f"{TITLES[section]} (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)")
    for heading in ("backend", "family", "spectrum", "n", "dtype", "solver"):
        table.add_column(heading)
    for heading in COLUMNS[section]:
        table.add_column(heading, justify="right")
    for entry in results:
        if not entry["solvers"]:
            continue
        head = [entry["backend"], entry["family"], entry["spectrum"], f"{entry['n']:,}", entry["dtype"]]
        for name, found in entry["solvers"].items():
            cells = []
            for show in COLUMNS[section].values():
                try:
                    cells.append(show(found))
                except KeyError:  # without a peer there is no ratio; what failed has nothing but its reason
                    cells.append(str(found.get("stopped", found.get("failed", ""))) if not cells else "")
            table.add_row(*head, name, *cells)
            head = [""] * 5
        table.add_section()
    return table


def main() -> int:
    """Run, print, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=sorted(SECTIONS), default=list(SECTIONS))
    parser.add_argument(
        "--backends", nargs="+", choices=["numpy", "torch", "jax", "cupy"], default=["numpy", "torch", "jax"]
    )
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--sizes", nargs="+", type=int, default=[10_000, 1_000_000], metavar="N")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "float64"], default=["float64", "float32"])
    parser.add_argument("--steps", type=int, default=20, help="steps of the runs that are timed (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/solvers.json")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(measure_memory(json.loads(options.memory_of)))
        return 0
    console, load = Console(width=None if sys.stdout.isatty() else 150), os.getloadavg()
    missing = {peer.name: reason for peer in PEERS if (reason := absent(peer))}
    results = {}
    for section in options.sections:
        results[section] = SECTIONS[section](options)
        console.print(rows(section, results[section]))
    for reason in dict.fromkeys(missing.values()):
        console.print(f"left out: {', '.join(name for name in missing if missing[name] == reason)}; {reason}")
    if options.save:
        about = {"steps": options.steps, "rounds": options.rounds, "threads": os.environ["OMP_NUM_THREADS"]}
        loads = {"load_before": load, "load_after": os.getloadavg(), "missing": missing}
        console.print(f"saved to {save('solvers', {**about, **loads, **results})}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
