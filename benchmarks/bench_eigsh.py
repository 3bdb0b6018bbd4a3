"""Products of ``lg.eigsh`` beside SciPy's, with as many vectors, the same start and the same tolerance.

    python benchmarks/bench_eigsh.py [--save]

Both count products until all k pairs meet 1e-8: relative to the eigenvalue in SciPy, to the norm of the operator here.
Eleven spectra, k of 1 to 10, all ends; where SciPy refuses (both ends, k = 1) or the end is one cluster at zero, none.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
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


def scipys(d: np.ndarray[Any, Any], k: int, which: str, start: np.ndarray[Any, Any]) -> int:
    """Products that SciPy takes."""
    count = 0

    def product(v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        nonlocal count
        count += 1
        made: np.ndarray[Any, Any] = d * v.ravel()
        return made

    A = scipy.sparse.linalg.LinearOperator((len(d),) * 2, matvec=product, dtype=float)
    options = {"tol": RTOL, "ncv": max(2 * k + 1, 20), "v0": start, "maxiter": 5000}
    scipy.sparse.linalg.eigsh(A, k, which=which, return_eigenvectors=False, **options)
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write results/eigsh.json")
    save_it = parser.parse_args().save
    found = []
    for name, d, k, which in searches():
        start = np.random.default_rng(3).standard_normal(len(d))
        ours = lg.eigsh(lg.Diagonal(d, psd=False), k, which, rtol=RTOL, start=start)
        found.append((name, k, which, int(ours.products), scipys(d, k, which, start), ours.status.name.lower()))
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
