"""Bundle adjustment, synthetic and seeded: time to 1.0001 of the minimum, beside SciPy's trf with lsmr; memory by size.

    python benchmarks/bench_bundle.py [--quick] [--repeat 5] [--memory]

50 cameras of 9 parameters (rotation vector, translation, focal length, two distortions), 10,000 points, each seen by 5
cameras: 100,000 residuals, 30,450 parameters, half a pixel of noise, a start that is off by 1 %. The Jacobian is a
scipy.sparse array, in closed form, for both. Runs are interleaved; the clock of each is read at its evaluations.
``--memory`` prints the peak of tracemalloc over the number of parameters, for chains of unknowns.
"""

from __future__ import annotations

import argparse
import os
import time
import tracemalloc
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is imported

import numpy as np
import scipy.optimize
import scipy.sparse

import linop_gn as lg


def crossing(w: Any) -> Any:
    """[w]x for rows w (n, 3)."""
    zero = np.zeros(len(w))
    x, y, z = w.T
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)


class Bundle:
    """Residuals in pixels and their sparse Jacobian."""

    def __init__(self, cameras: int = 50, points: int = 10_000, views: int = 5, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.cameras, self.points = cameras, points
        world = rng.uniform(-1.0, 1.0, (points, 3))
        seen = np.zeros((cameras, 9))
        seen[:, :3] = 0.3 * rng.standard_normal((cameras, 3))
        seen[:, 3:6] = [0.0, 0.0, -6.0] + 0.3 * rng.standard_normal((cameras, 3))
        seen[:, 6] = 500.0 * (1 + 0.05 * rng.standard_normal(cameras))
        seen[:, 7:] = [1e-2, 1e-3]
        self.point = np.repeat(np.arange(points), views)
        self.camera = np.concatenate([rng.choice(cameras, views, replace=False) for _ in range(points)])
        self.truth = np.concatenate([seen.ravel(), world.ravel()])
        self.data = np.zeros((len(self.point), 2))
        self.data = self.project(self.truth)[0] + 0.5 * rng.standard_normal(self.data.shape)
        self.start = self.truth * (1 + 0.01 * rng.standard_normal(self.truth.size))
        rows = np.arange(2 * len(self.point)).reshape(-1, 2, 1)
        columns = np.concatenate(
            [9 * self.camera[:, None] + np.arange(9), 9 * cameras + 3 * self.point[:, None] + np.arange(3)], axis=1
        )[:, None, :]
        self.pattern = tuple(np.broadcast_arrays(rows, columns))
        self.evaluations: list[tuple[float, float]] = []

    def project(self, x: Any) -> tuple[Any, ...]:
        """Pixels, and what their derivatives need."""
        c = x[: 9 * self.cameras].reshape(-1, 9)[self.camera]
        X = x[9 * self.cameras :].reshape(-1, 3)[self.point]
        w = c[:, :3]
        angle = np.sqrt((w * w).sum(1))[:, None, None]
        K, one = crossing(w), np.eye(3)
        K2 = K @ K
        R = one + np.sin(angle) / angle * K + (1 - np.cos(angle)) / angle**2 * K2
        P = (R @ X[:, :, None])[:, :, 0] + c[:, 3:6]
        p = -P[:, :2] / P[:, 2:]
        rr = (p * p).sum(1)
        bent = 1 + c[:, 7] * rr + c[:, 8] * rr**2
        return (c[:, 6] * bent)[:, None] * p, c, X, R, K, K2, angle, P, p, rr, bent

    def residuals(self, x: Any) -> Any:
        """Flat (2 observations,)."""
        r = (self.project(x)[0] - self.data).ravel()
        self.evaluations.append((time.perf_counter(), 0.5 * float(r @ r)))
        return r

    def jacobian(self, x: Any) -> Any:
        """As a csr_array."""
        _, c, X, R, K, K2, angle, P, p, rr, bent = self.project(x)
        f, k1, k2 = c[:, 6], c[:, 7], c[:, 8]
        inner = f[:, None, None] * (
            bent[:, None, None] * np.eye(2) + (2 * k1 + 4 * k2 * rr)[:, None, None] * p[:, :, None] * p[:, None, :]
        )
        z = P[:, 2:]
        lens = np.zeros((len(P), 2, 3))
        lens[:, 0, 0] = lens[:, 1, 1] = -1 / z[:, 0]
        lens[:, :, 2] = P[:, :2] / z**2
        by_place = inner @ lens
        right = np.eye(3) - (1 - np.cos(angle)) / angle**2 * K + (angle - np.sin(angle)) / angle**3 * K2
        by_turn = by_place @ (-R @ crossing(X) @ right)
        intrinsic = np.stack([bent[:, None] * p, (f * rr)[:, None] * p, (f * rr**2)[:, None] * p], axis=2)
        blocks = np.concatenate([by_turn, by_place, intrinsic, by_place @ R], axis=2)
        rows, columns = self.pattern
        return scipy.sparse.csr_array(
            (blocks.ravel(), (rows.ravel(), columns.ravel())), shape=(2 * len(P), self.truth.size)
        )


def ours(problem: Bundle, **options: Any) -> Any:
    """By ``lg.least_squares``, with defaults unless told otherwise."""
    return lg.least_squares(problem.residuals, problem.start, problem.jacobian, **options)


def scipys(problem: Bundle) -> Any:
    """As in SciPy's example of bundle adjustment, with the Jacobian given."""
    return scipy.optimize.least_squares(
        problem.residuals, problem.start, problem.jacobian, method="trf", tr_solver="lsmr", x_scale="jac"
    )


def timed(problem: Bundle, solve: Any, **options: Any) -> tuple[list[tuple[float, float]], float, Any]:
    """(seconds, cost) at each evaluation; seconds of the whole; the result."""
    problem.evaluations.clear()
    begin = time.perf_counter()
    found = solve(problem, **options)
    return [(t - begin, cost) for t, cost in problem.evaluations], time.perf_counter() - begin, found


def reached(trace: list[tuple[float, float]], level: float) -> float:
    """Seconds to the first evaluation at or below ``level``."""
    return next((t for t, cost in trace if cost <= level), float("inf"))


def chain(n: int) -> float:
    """Peak bytes over n of a fit of a chain of n unknowns."""
    data = 1.0 + 0.5 * np.sin(np.linspace(0.0, 20.0, n))

    def residuals(p: Any) -> Any:
        return np.concatenate([p + p**3 / 10 - data, p[:-1] * p[1:] - 1.0])

    def jacobian(p: Any) -> Any:
        own = scipy.sparse.diags_array([1 + 0.3 * p**2], offsets=[0], shape=(n, n))
        pairs = scipy.sparse.diags_array([p[1:], p[:-1]], offsets=[0, 1], shape=(n - 1, n))
        return scipy.sparse.vstack([own, pairs]).tocsr()

    tracemalloc.start()
    fit = lg.least_squares(residuals, np.ones(n), jacobian)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"n = {n:8d}: {peak / n:7.0f} bytes each, {fit.status.name} after {fit.steps} steps")
    return peak / n


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 cameras, 500 points, one run")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    if options.memory:
        for n in (1_000, 10_000, 100_000) if options.quick else (1_000, 10_000, 100_000, 1_000_000):
            chain(n)
        return
    problem = Bundle(10, 500) if options.quick else Bundle()
    runs: dict[str, list[Any]] = {"linop_gn": [], "SciPy": []}
    for _ in range(1 if options.quick else options.repeat):
        for name, solve in (("linop_gn", ours), ("SciPy", scipys)):
            runs[name].append(timed(problem, solve))
    best = min(cost for many in runs.values() for trace, _, _ in many for _, cost in trace)
    print(f"load {os.getloadavg()[0]:.2f}; minimum {best:.6f}; {problem.truth.size} parameters")
    for name, many in runs.items():
        to, whole = (
            np.median(list(map(float, v)))
            for v in zip(*((reached(t, best * 1.0001), w) for t, w, _ in many), strict=True)
        )
        found = many[-1][2]
        print(f"{name:9} to 1.0001: {to:7.2f} s; whole {whole:7.2f} s; cost {found.cost:.6f}; {found.message[:70]}")


if __name__ == "__main__":
    main()
