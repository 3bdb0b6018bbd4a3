"""What ``lg.cost`` tells of memory beside what solves take: ``python benchmarks/memory.py numpy`` (or torch, jax)."""

import importlib
import sys
from pathlib import Path

import numpy as np

import linop_gn as lg

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.support.peaks import compiled_peak, peak


def main(name: str = "numpy") -> None:
    if name != "numpy":
        importlib.import_module(name)
    if name == "jax":
        importlib.import_module("jax").config.update("jax_enable_x64", True)
    ops, n = lg.load(name), 100_000

    def put(x):
        return ops.asarray(np.asarray(x), "float64", None)

    Q = np.random.default_rng(0).standard_normal((300, 300))
    long = lg.Damped(lg.Diagonal(put(np.linspace(1, 50, n))), 0.1), put(np.ones(n))
    dense = lg.Damped(lg.Dense(put(Q @ Q.T), psd=True), 1.0), put(np.ones(300))
    regions = [lg.Steihaug(radius=1e9, steps=8), lg.GLTR(radius=1e9, steps=8), lg.MultiShiftCG(np.ones(4), steps=8)]
    routes = [lg.CG(steps=8), lg.CG(max_steps=60), lg.MINRES(steps=8), lg.MINRES(max_steps=60), *regions]
    routes += [lg.LSMR(steps=8), lg.LSQR(steps=8), lg.Cholesky(), lg.LU(), lg.Eigh()]
    for method in routes:
        A, b = dense if isinstance(method, (lg.Cholesky, lg.LU, lg.Eigh)) else long
        told = lg.cost(A, method)[0].memory
        if name == "jax":
            got = compiled_peak(lambda A, b, m=method: lg.solve(A, b, m).x, A, b)
        else:
            got = peak(name, lambda A=A, b=b, m=method: lg.solve(A, b, m))
        size = A.domain.size * 8
        print(f"{method.title:14} told {told / size:8.2f} vectors, measured {got / size:8.2f}: {told / got:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
