"""What the stored results say, as figures that can stand beside each other: ours, the peers', the floor.

A figure is a ratio taken in one run: to a gradient, or to a peer who did the same work. The floor is what the
arithmetic alone would take. With F the forward pass and F1 its first layer, whose inputs need no derivative, a gradient
is 3 F - F1; J v and J^T u on what was kept are 2 F - F1 each; and a Hessian product is 6 F - 4 F1 (none of the first
layer's inputs has a tangent).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["SECTIONS", "Figure", "Section", "figures", "stored"]

Results = Any


class Figure(NamedTuple):
    """One kind of work: what it takes in multiples of a reference."""

    work: str
    ours: float
    low: float | None = None
    """The lower quartile over the rounds; None where the work was counted, not timed."""
    high: float | None = None
    peers: tuple[tuple[str, float], ...] = ()
    floor: float | None = None


class Section(NamedTuple):
    """Figures of one result file."""

    name: str
    """The file is ``results/NAME.json``, the script ``bench_NAME.py`` unless there is another :attr:`command`."""
    title: str
    unit: str
    read: Callable[[Results], Iterator[Figure]]
    quick: tuple[str, ...] = ("--rounds", "3")
    """Arguments of a run in a minute or two, whose spread is wide."""
    command: tuple[str, ...] = ()
    """The script, without ``bench_`` and ``.py``, and the arguments of every run."""

    @property
    def script(self) -> tuple[str, ...]:
        """The file among the benchmarks, and the arguments of every run."""
        script, *arguments = self.command or (self.name,)
        return f"bench_{script}.py", *arguments


SHARES = {"MLP": 784 * 512 / (784 * 512 + 512 * 512 + 5120), "CNN": 230400 / 1116416, "transformer": 0.0}
"""F1 / F of the networks of the two curvature benchmarks; a look-up in an embedding takes no arithmetic."""


def floors(network: str) -> dict[str, float]:
    """The floor of each product, in gradients."""
    first = SHARES[network.split()[0].rstrip(",")]
    gradient = 3 - first
    product = (4 - 2 * first) / gradient
    return {
        "GGN product": product,
        "Hessian product": (6 - 4 * first) / gradient,
        "Gauss-Newton step": 1 + 20 * product,
    }


def _torch_curvature(results: Results) -> Iterator[Figure]:
    for network, cases in results.items():
        known = floors(network)
        for case, found in cases.items():
            if case in ("gradient", "linearise and gradient") or "curvlinops" in case:
                continue
            plain = case.removesuffix(", compiled")
            theirs = {
                "curvlinops": f"{plain}, curvlinops",
                "curvlinops, compiled": f"{plain}, curvlinops compiled",
            }
            peers = tuple((name, cases[key]["gradients"]) for name, key in theirs.items() if key in cases)
            yield Figure(f"{network}: {case}", found["gradients"], *found["quartiles"], peers, known.get(plain))


def _jax_curvature(results: Results) -> Iterator[Figure]:
    for network, cases in results.items():
        theirs = [name for name in cases if name not in ("gradient", OURS_IN_JIT, OURS_FROM_PYTHON)]
        peers = tuple((name, cases[name]["gradients"]) for name in theirs if "gradients" in cases[name])
        for name in (OURS_IN_JIT, OURS_FROM_PYTHON):
            if "gradients" in cases.get(name, ()):
                reference = cases["jax.scipy cg"]["gradients"]
                spread = [reference * part for part in cases[name]["quartiles"]]
                work = f"{network}: gradient and 20 CG steps{name.removeprefix('linop_gn')}"
                yield Figure(work, cases[name]["gradients"], *spread, peers, floors(network)["Gauss-Newton step"])


def _few(results: Results) -> Iterator[Figure]:
    """What few outputs allow: a peer is the same work by hand, or done another way."""
    beside = {
        "Gram step": ("Gram step by hand", "20 steps of CG"),
        "block product by layers": ("block product on the graph",),
        "GGN product": ("GGN product, by hand",),
        "Hessian product": ("Hessian product, by hand",),
    }
    for problem, cases in results.items():
        for case, others in beside.items():
            peers = tuple((name, cases[name]["gradients"]) for name in others if name in cases)
            if peers:
                yield Figure(f"{problem}: {case}", cases[case]["gradients"], *cases[case]["quartiles"], peers)


def _cross_entropy(results: Results) -> Iterator[Figure]:
    """What is held at the peak, in copies of the logits, and times in those of differentiating twice."""
    peak, twice = "a product, with what is kept", "double backward"
    for work, name in (("GGN", ""), ("Hessian", ", Hessian")):
        ours, theirs = results[f"linop_gn{name}"], results[f"{twice}{name}"]
        yield Figure(f"{work} product: copies", ours[peak], peers=((twice, theirs[peak]),))
        ratio = ours["seconds of a product"] / theirs["seconds of a product"]
        yield Figure(f"{work} product: time", ratio, peers=((twice, 1.0),))
    for work in ("H v", "H v from nothing"):
        yield Figure(f"{work} at outputs: time", results[f"{work}, of {twice}'s time"], peers=((twice, 1.0),))


def _cross_entropy_jax(results: Results) -> Iterator[Figure]:
    """As :func:`_cross_entropy`."""
    peak, twice = "a product, with what is kept", "differentiated twice"
    for work in ("GGN", "Hessian"):
        theirs = results[f"{work}, {twice}"][peak]
        yield Figure(f"{work} product: copies", results[work][peak], peers=((twice, theirs),))
    for name, work in (("product", "GGN product"), ("H v", "H v at outputs")):
        yield Figure(f"{work}: time", results[f"{name}, of the time twice"], peers=((twice, 1.0),))


OURS_IN_JIT, OURS_FROM_PYTHON = "linop_gn, in one jit", "linop_gn, from Python"


def _beside(cases: dict[str, Any], ours: str, work: str, also: tuple[str, ...] = ()) -> Iterator[Figure]:
    """Ours among solvers that have ratios to a reference, with the others as peers."""
    found = cases.get(ours)
    if not isinstance(found, dict) or "ratio" not in found:
        return
    named = {name: case for name, case in cases.items() if isinstance(case, dict) and "ratio" in case}
    peers = tuple((name, case["ratio"]) for name, case in named.items() if not name.startswith("linop_gn"))
    yield Figure(work, found["ratio"], *found["quartiles"], peers)


def _cg(results: Results) -> Iterator[Figure]:
    for case in results["cases"]:
        if case["operator"] == "diagonal":
            work = f"{case['backend']}, n = {case['n']:,}, {case['dtype']}"
            yield from _beside(case["solvers"], "linop_gn", work)


def _solvers(results: Results) -> Iterator[Figure]:
    for case in results["iteration"]:
        for name in [name for name in case["solvers"] if name.startswith("linop_gn") and "CG" not in name]:
            work = f"{name.removeprefix('linop_gn ')}: {case['backend']}, n = {case['n']:,}, {case['dtype']}"
            if case["spectrum"] == "spread to 1e8":
                yield from _beside(case["solvers"], name, work)


def _krylov(results: Results) -> Iterator[Figure]:
    for case in results["cases"]:
        for name in ("krylov selective", "MultiShiftCG"):
            if name in case["solvers"]:
                found = case["solvers"][name]
                work = f"20 dampings by {name.split()[0]}, {case['spectrum']} spectrum, {case['dtype']}"
                yield Figure(work, found["ratio"], *found["quartiles"], (("CG, one damping", 1.0),))


def _kfac(results: Results) -> Iterator[Figure]:
    for network, cases in results.items():
        if isinstance(cases, dict):
            for case, seconds in cases.items():
                if f"{case}, curvlinops" in cases:
                    yield Figure(
                        f"{network}: {case}", seconds / cases[f"{case}, curvlinops"], peers=(("curvlinops", 1.0),)
                    )


def _methods(results: Results) -> Iterator[Figure]:
    for work, cases in results.items():
        if isinstance(cases, dict):
            (peer,) = [name for name in cases if not name.startswith("lg.")]
            for name in [name for name in cases if name.startswith("lg.")]:
                found = cases[name]
                yield Figure(f"{work}: {name}", found["ratio"], *found["quartiles"], ((peer, 1.0),))


def _eigsh(results: Results) -> Iterator[Figure]:
    for spectrum, found in results["ratios"].items():
        if spectrum == "all" or not spectrum.startswith("outliers"):
            work = f"products of {found['searches']} searches, {spectrum} spectr{'a' if spectrum == 'all' else 'um'}"
            yield Figure(work, found["mean"], peers=(("SciPy eigsh", 1.0),))


def _bridge(results: Results) -> Iterator[Figure]:
    for case in results:
        work = f"{case['framework']} from NumPy, {case['network']}, {case['dtype']}"
        yield Figure(work, case["ratio"], *case["quartiles"], (("native", 1.0),))


SECTIONS = (
    Section("torch_curvature", "Products and steps on PyTorch", "gradients on the same batch", _torch_curvature),
    Section("jax_curvature", "A Gauss-Newton solve on JAX", "gradients on the same batch", _jax_curvature),
    Section(
        "torch_curvature_few",
        "Few outputs, many blocks, a small model on PyTorch",
        "gradients on the same batch",
        _few,
        command=("torch_curvature", "--few"),
    ),
    Section(
        "jax_curvature_few",
        "Few outputs and many blocks on JAX",
        "gradients on the same batch",
        _few,
        command=("jax_curvature", "--few"),
    ),
    Section(
        "cross_entropy",
        "Cross-entropy over 50304 classes, 2048 tokens, on PyTorch",
        "the logits (copies held at the peak), or of the time of differentiating twice",
        _cross_entropy,
        ("--tokens", "1024", "--vocabulary", "16384"),
        ("cross_entropy", "torch"),
    ),
    Section(
        "cross_entropy_jax",
        "Cross-entropy over 50304 classes, 2048 tokens, on JAX",
        "the logits (copies held at the peak), or of the time of differentiating twice",
        _cross_entropy_jax,
        ("--tokens", "1024", "--vocabulary", "16384"),
        ("cross_entropy", "jax"),
    ),
    Section(
        "cg",
        "An iteration of CG",
        "the time of SciPy, a loop by hand, jax.scipy",
        _cg,
        ("--rounds", "5", "--sizes", "10000", "--operators", "diagonal"),
    ),
    Section(
        "solvers",
        "An iteration of the other solvers",
        "the time of the first peer",
        _solvers,
        ("--sections", "iteration", "--sizes", "10000", "--rounds", "3", "--dtypes", "float64"),
    ),
    Section(
        "krylov",
        "Many dampings from one Krylov space",
        "the time of CG for one damping, of as many products",
        _krylov,
        ("--rounds", "3", "--size", "100000", "--product", "1"),
    ),
    Section("kfac", "Kronecker factors on PyTorch", "the time of curvlinops", _kfac),
    Section("methods", "A step of training", "the time of a loop by hand, or optax", _methods, ("--quick",)),
    Section("eigsh", "Eigenvalues", "the products of SciPy's eigsh", _eigsh, ()),
    Section("bridge", "Products across frameworks", "the time of the framework's own", _bridge, ("--rounds", "9")),
)


def stored(name: str, folder: Path) -> dict[str, Any] | None:
    """The file that a benchmark saved: what machine, and results; None where it has not run."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def figures(section: Section, folder: Path) -> list[Figure]:
    """The figures of a section that was run."""
    found = stored(section.name, folder)
    return [] if found is None else list(section.read(found["results"]))
