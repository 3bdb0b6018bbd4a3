"""Inner products of float32 vectors: how far they are from exact, in float32's unit roundoff, and how long they take.

    OMP_NUM_THREADS=1 python benchmarks/bench_dots.py [--size 1e8] [--save]

Told is |computed - exact| / sum_i |x_i y_i|, which no rearrangement of the data changes; a compensated sum, rounded to
float32 once, leaves at most half a unit of the result. x.x is what norms are made of, x.y cancels.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from timing import tell

import linop_gn as lg

UNIT = float(np.finfo(np.float32).eps) / 2
PART = 1 << 20


def exact(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> tuple[float, float]:
    """x.y and sum |x_i y_i| in double precision."""
    parts = [slice(i, i + PART) for i in range(0, len(x), PART)]
    products = (x[part].astype(np.float64) * y[part] for part in parts)
    sums = np.array([(p.sum(), abs(p).sum()) for p in products])
    return float(sums[:, 0].sum()), float(sums[:, 1].sum())


def measure(size: int, names: list[str]) -> dict[str, Any]:
    """For each backend and each pair of vectors."""
    x = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    told: dict[str, Any] = {}
    for what, y in (("x.x", x), ("x.y", x[::-1].copy())):
        want, magnitude = exact(x, y)
        for name in names:
            ops = lg.load(name)
            a, b = ops.asarray(x, "float32"), ops.asarray(y, "float32")
            float(ops.dot(a, b))  # compiled
            start = time.perf_counter()
            got = float(ops.dot(a, b))
            seconds = time.perf_counter() - start
            told[f"{name}, {what}"] = {"units": abs(got - want) / magnitude / UNIT, "seconds": seconds}
            del a, b
    return {"size": size} | told


def main() -> None:
    """Measure, print, and save where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=float, default=1e8)
    parser.add_argument("--backends", nargs="+", default=["numpy", "torch", "jax"])
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    tell("dots", measure(int(asked.size), asked.backends), asked.save)


if __name__ == "__main__":
    main()
