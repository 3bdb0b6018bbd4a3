"""What a bridged product costs beside the native one: NumPy arrays, with a model in torch or JAX.

    python benchmarks/bench_bridge.py [--rounds 40] [--save]

One Gauss-Newton product of about 10 ms, natively (arrays of the framework that differentiates) and bridged (parameters,
data and vector in NumPy), turn by turn on one thread. Both wait for their result.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")

import numpy as np
from rich.console import Console
from rich.table import Table
from timing import interleaved, save

import linop_gn as lg

SHAPES = {"width 128": (128, 700), "width 512": (512, 100), "width 1024": (1024, 32)}


def model(params: Any, x: Any) -> Any:
    """Two hidden layers of one width."""
    xp = lg.namespace(x)
    return xp.tanh(xp.tanh(x @ params["a"]) @ params["b"]) @ params["c"]


def product(backend: Any, derivatives: str | None, width: int, batch: int, dtype: str) -> Callable[[], Any]:
    """A function that computes one product and waits for it."""
    rng = np.random.default_rng(0)

    def place(x: np.ndarray) -> Any:
        return backend.asarray(x, dtype if x.dtype.kind == "f" else "int64")

    shapes = {"a": (width, width), "b": (width, width), "c": (width, 10)}
    params = {key: place(rng.standard_normal(shape) / shape[0] ** 0.5) for key, shape in shapes.items()}
    data = place(rng.standard_normal((batch, width))), place(rng.integers(0, 10, batch))
    G = lg.GGN(lg.Objective(model, lg.losses.CrossEntropy(), data, derivatives=derivatives), params)
    v = G.domain.random(1)
    return lambda: backend.wait(G @ v)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--save", action="store_true", help="write results/bridge.json")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    table = Table(title="Gauss-Newton products, NumPy arrays bridged against native ones")
    for heading in ("framework", "network", "dtype", "n", "native, ms", "bridged, ms", "ratio", "quartiles"):
        table.add_column(heading, justify="right")
    results = []
    for guest in ("torch", "jax"):
        for label, (width, batch) in SHAPES.items():
            for dtype in ("float32", "float64"):
                cases = {
                    "native": product(lg.load(guest), None, width, batch, dtype),
                    "bridged": product(lg.load("numpy"), guest, width, batch, dtype),
                }
                timings = interleaved(cases, options.rounds)
                ratio, low, high = timings.ratio("bridged", "native")
                native, bridged = (1e3 * timings.median(name) for name in ("native", "bridged"))
                n = 2 * width * width + 10 * width
                table.add_row(
                    guest,
                    label,
                    dtype,
                    str(n),
                    f"{native:.2f}",
                    f"{bridged:.2f}",
                    f"{ratio:.3f}",
                    f"{low:.2f}-{high:.2f}",
                )
                results.append(
                    {"framework": guest, "network": label, "dtype": dtype, "n": n, "native_ms": native,
                     "bridged_ms": bridged, "ratio": ratio, "quartiles": [low, high]}
                )  # fmt: skip
    Console(width=120).print(table)
    if options.save:
        print(save("bridge", results))


if __name__ == "__main__":
    main()
