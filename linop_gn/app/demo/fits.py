"""Two fits in which curvature decides: three decays that overlap, and a network that solves a differential equation.

Both are residuals r(p) with their Jacobian J(p) written by hand, for NumPy, so that they take seconds and no other
framework. The network is u(t) = sum_i v_i tanh(w_i t + b_i), whose residuals are u'' - f at points of [0, 1] and u at
both ends (a physics-informed network); with s = tanh(w t + b), u'' = sum_i -2 v_i w_i^2 s (1 - s^2). Adam, tuned over
RATES, takes sixty times as many steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ...least_squares import least_squares
from ...run.loop import Look
from .runs import Run, diverged

__all__ = ["FITS", "Fit", "fit", "fits"]

NDArray = np.ndarray[Any, Any]
RATES = (1e-3, 1e-2, 1e-1, 1.0)
ADAM_STEPS, QUICK_STEPS, MOST_STEPS = 5_000, 500, 80


class Fit(NamedTuple):
    """A problem: residuals (m,) and their Jacobian (m, n) at parameters (n,), and where to begin."""

    residuals: Callable[[NDArray], NDArray]
    jacobian: Callable[[NDArray], NDArray]
    start: NDArray


def decays() -> Fit:
    """Counts of three decays over ten minutes, whose rates differ by factors of two and three, with noise of .1.

    >>> r, J, p = decays()
    >>> r(p).shape, J(p).shape
    ((120,), (120, 6))
    """
    t = np.linspace(0.0, 600.0, 120)

    def model(p: NDArray) -> NDArray:
        return np.asarray(np.exp(-np.outer(t, p[3:])) @ p[:3])

    y = model(np.array([100.0, 200.0, 150.0, 0.003, 0.007, 0.02])) + 0.1 * np.random.default_rng(0).standard_normal(120)

    def jacobian(p: NDArray) -> NDArray:
        waves = np.exp(-np.outer(t, p[3:]))
        return np.concatenate([waves, -t[:, None] * waves * p[:3]], axis=1)

    return Fit(lambda p: model(p) - y, jacobian, np.array([100.0, 100.0, 100.0, 0.001, 0.01, 0.03]))


def heat() -> Fit:
    """u'' = f with u = 0 at 0 and 1, whose solution is sin(3 pi t) + sin(pi t), by a network of 24 units.

    >>> r, J, p = heat()
    >>> move = 1e-6 * np.sin(np.arange(72.0))
    >>> bool(np.allclose((r(p + move) - r(p - move)) / 2, J(p) @ move, atol=1e-9))
    True
    """
    units, rng = 24, np.random.default_rng(1)
    t, ends = np.linspace(0.0, 1.0, 80), np.array([0.0, 1.0])
    f = -(np.pi**2) * (9 * np.sin(3 * np.pi * t) + np.sin(np.pi * t))
    inside, outside = 1 / np.sqrt(len(t)), 10.0

    def parts(p: NDArray, at: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        v, w, b = p.reshape(3, units)
        return v, w, np.tanh(np.outer(at, w) + b)

    def residuals(p: NDArray) -> NDArray:
        v, w, s = parts(p, t)
        second = (-2 * s * (1 - s**2)) @ (v * w**2)
        return np.concatenate([inside * (second - f), outside * (parts(p, ends)[2] @ v)])

    def jacobian(p: NDArray) -> NDArray:
        v, w, s = parts(p, t)
        bend, slope = -2 * s * (1 - s**2), (1 - s**2) * (6 * s**2 - 2)  # tanh'' and tanh'''
        by_b = slope * v * w**2
        of_t = np.concatenate([bend * w**2, bend * 2 * v * w + t[:, None] * by_b, by_b], axis=1)
        _, _, e = parts(p, ends)
        first = (1 - e**2) * v
        at_ends = np.concatenate([e, ends[:, None] * first, first], axis=1)
        return np.concatenate([inside * of_t, outside * at_ends])

    v, w, centres = rng.standard_normal(units) / 5, 6 * rng.standard_normal(units), rng.uniform(0, 1, units)
    return Fit(residuals, jacobian, np.concatenate([v, w, -w * centres]))


FITS: Mapping[str, Callable[[], Fit]] = {"three decays": decays, "heat equation, by a network": heat}


def fits(quick: bool) -> dict[str, list[Run]]:
    """All of FITS, run."""
    return {name: fit(make(), QUICK_STEPS if quick else ADAM_STEPS) for name, make in FITS.items()}


def fit(problem: Fit, steps: int) -> list[Run]:
    """The run of Gauss-Newton, then the best that Adam came to in ``steps`` steps."""
    with np.errstate(over="ignore", invalid="ignore"):  # rates that are too high
        tuned = [_adam(problem, rate, steps) for rate in RATES]
    return [_gauss_newton(problem), min(tuned, key=lambda run: run.final)]


def _gauss_newton(problem: Fit) -> Run:
    begin, seconds = time.perf_counter(), []

    def clock(look: Look) -> None:
        seconds.append(time.perf_counter() - begin)

    options: Any = {"x_scale": "jac", "max_steps": MOST_STEPS, "watch": [clock]}
    found = least_squares(problem.residuals, problem.start, problem.jacobian, **options)
    losses = found.history["value"].tolist()
    passes = [float(i) for i in range(len(losses))]
    return Run("Gauss-Newton", found.status.name, losses, passes, seconds, len(losses) - 1, found.x)


def _adam(problem: Fit, rate: float, steps: int) -> Run:
    """Adam (Kingma and Ba, 2015) with its published constants, whose steps get shorter by a cosine."""
    p, first, second = problem.start.copy(), np.zeros_like(problem.start), np.zeros_like(problem.start)
    losses, seconds, begin = [], [], time.perf_counter()
    for i in range(1, steps + 2):
        r = problem.residuals(p)
        losses.append(float(r @ r / 2))
        seconds.append(time.perf_counter() - begin)
        if diverged(losses):
            break
        g = problem.jacobian(p).T @ r
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        length = rate * (1 + np.cos(np.pi * i / (steps + 1))) / 2
        p -= length * (first / (1 - 0.9**i)) / (np.sqrt(second / (1 - 0.999**i)) + 1e-8)
    passes = [float(i) for i in range(len(losses))]
    return Run("Adam", f"rate {rate:g}, cosine", losses, passes, seconds, len(losses) - 1, p)
