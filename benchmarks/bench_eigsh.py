"""Products of ``lg.eigsh`` beside SciPy's, with as many vectors, the same start and the same tolerance.

    python benchmarks/bench_eigsh.py [--single] [--save]

Both count products until all k pairs meet 1e-8: relative to the eigenvalue in SciPy, to the norm of the operator here.
Eleven spectra, k of 1 to 10, all ends; where SciPy refuses (both ends, k = 1) or the end is one cluster at zero, none.

``--single`` draws single-precision spectra whose two largest eigenvalues are close, and counts how often the second is
told to be the largest.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is imported

import numpy as np
import scipy.sparse.linalg
from rich.console import Console
from rich.table import Table
from timing import save

import linop_gn as lg

RTOL = 1e-8


def spectra() -> dict[str, np.ndarray[Any, Any]]:
    """Eigenvalues by name."""
    G = np.random.default_rng(1).standard_normal((400, 400))
    outliers = np.arange(6.0, 11.0)
    return {
        "equidistant": np.arange(1.0, 501.0),
        "geometric": 0.9 ** np.arange(500),
        "indefinite": np.linspace(-1.0, 2.0, 700),
        "powers": 1.0 / np.arange(1.0, 1001.0) ** 2,
        "semicircle": np.linalg.eigvalsh((G + G.T) / 40),
        **{f"outliers {i}": np.concatenate([outliers, np.random.default_rng(i).random(800)]) for i in range(6)},
    }


def searches() -> Iterator[tuple[str, np.ndarray[Any, Any], int, str]]:
    for name, d in spectra().items():
        for k in (1, 3, 6, 10):
            for which in ("LA", "SA", "LM", "BE"):
                if not (k == 1 and which == "BE") and not (name in ("geometric", "powers") and which in ("SA", "BE")):
                    yield name, d, k, which


def scipys(
    d: np.ndarray[Any, Any], k: int, which: str, start: np.ndarray[Any, Any], tol: float = RTOL
) -> tuple[float, int]:
    """The largest eigenvalue that SciPy tells, and the products that it takes."""
    count = 0

    def product(v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        nonlocal count
        count += 1
        made: np.ndarray[Any, Any] = d * v.ravel()
        return made

    A = scipy.sparse.linalg.LinearOperator((len(d),) * 2, matvec=product, dtype=d.dtype)
    options = {"tol": tol, "ncv": max(2 * k + 1, 20), "v0": start, "maxiter": 5000}
    values = scipy.sparse.linalg.eigsh(A, k, which=which, return_eigenvectors=False, **options)
    return float(values.max()), count


DRAWN = 400
RESTS: list[Callable[[np.random.Generator, int], np.ndarray[Any, Any]]] = [
    lambda rng, n: rng.uniform(-1, 1, n),
    lambda rng, n: rng.uniform(0, 0.5, n),
    lambda rng, n: rng.standard_normal(n),
    lambda rng, n: np.exp(-rng.uniform(0, 8, n)),
]
ENDINGS = {"ours": None, "ours, rtol 3e-4": 3e-4, "SciPy": 0.0, "SciPy, tol 3e-4": 3e-4, "SciPy, tol 1e-5": 1e-5}


def close_pairs(gap: float) -> Iterator[np.ndarray[Any, Any]]:
    """Single-precision spectra of norm 1 whose two largest are ``gap`` apart; the next is at most .99."""
    for i in range(DRAWN):
        rng = np.random.default_rng([11, i])
        n = int(rng.integers(50, 1500))
        rest = RESTS[i % 4](rng, n)
        rest = np.sort(0.99 * rest / (abs(rest).max() if i % 4 != 1 else 1.0))
        rest[-2:] = [1.0 - gap, 1.0]
        yield rest.astype(np.float32)


def single(name: str, gap: float) -> dict[str, float]:
    """How often the second is told, the error of the other answers and the geometric mean of the products."""
    told, errors, products = 0, [], []
    for seed, d in enumerate(close_pairs(gap)):
        tolerance = ENDINGS[name]
        if name.startswith("ours"):
            found = lg.eigsh(lg.Diagonal(d, psd=False), 1, rtol=tolerance, seed=seed)
            value, count = float(found.values[0]), int(found.products)
        else:
            start = np.random.default_rng(seed).standard_normal(len(d)).astype(np.float32)
            value, count = scipys(d, 1, "LA", start, tolerance)
        wrong = abs(value - 1.0) > gap / 2
        told += wrong
        errors += [] if wrong else [abs(value - 1.0)]
        products.append(count)
    return {"misnamed": told, "error": float(np.max(errors)), "products": float(np.exp(np.log(products).mean()))}


def show_single(save_it: bool) -> None:
    rows = {(gap, name): single(name, gap) for gap in (1e-3, 1e-4) for name in ENDINGS}
    table = Table("gap", "search", "misnamed", "largest error of others", "products", title=f"of {DRAWN} spectra each")
    for (gap, name), row in rows.items():
        table.add_row(f"{gap:g}", name, str(row["misnamed"]), f"{row['error']:.0e}", f"{row['products']:.1f}")
    Console().print(table)
    if save_it:
        save("eigsh_single", [{"gap": gap, "search": name, **row} for (gap, name), row in rows.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write results/eigsh.json, or eigsh_single.json")
    parser.add_argument("--single", action="store_true", help="single-precision spectra with two close eigenvalues")
    given = parser.parse_args()
    save_it = given.save
    if given.single:
        show_single(save_it)
        return
    found = []
    for name, d, k, which in searches():
        start = np.random.default_rng(3).standard_normal(len(d))
        ours = lg.eigsh(lg.Diagonal(d, psd=False), k, which, rtol=RTOL, start=start)
        found.append((name, k, which, int(ours.products), scipys(d, k, which, start)[1], ours.status.name.lower()))
    table = Table("spectrum", "searches", "geometric mean", "largest", "over 1.2", title="products, ours : SciPy's")
    rows: dict[str, Any] = {}
    for name in [*spectra(), "all"]:
        ratios = np.array([a / b for n, _, _, a, b, _ in found if name in (n, "all")])
        mean, most, over = float(np.exp(np.log(ratios).mean())), float(ratios.max()), int((ratios > 1.2).sum())
        table.add_row(name, str(len(ratios)), f"{mean:.2f}", f"{most:.2f}", str(over))
        rows[name] = {"searches": len(ratios), "mean": mean, "largest": most, "over": over}
    Console().print(table)
    Console().print(f"not converged: {[row for row in found if row[-1] != 'converged']}")
    if save_it:
        save("eigsh", {"ratios": rows, "products": found})


if __name__ == "__main__":
    main()
