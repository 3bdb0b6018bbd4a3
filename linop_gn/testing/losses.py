"""Losses taken one example at a time in plain Python numbers: the oracle for those in ``linop_gn.losses``.

Every derivative is written as a sum of terms of one sign, so that it is
accurate where textbook formulas cancel: 1 - p is the sum of the other
probabilities. Nothing here is shared with what it tests, and nothing is fast.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..curvature.losses import BinaryCrossEntropy, CrossEntropy, Loss, Poisson, SquaredError

__all__ = ["LOSSES", "Expected", "draw", "everything", "expected"]

NDArray = np.ndarray[Any, Any]

LOSSES: dict[str, Loss] = {
    "squared": SquaredError(scale=0.7),
    "softmax": CrossEntropy(),
    "softmax smoothed": CrossEntropy(label_smoothing=0.2),
    "softmax of probabilities": CrossEntropy(),
    "binary": BinaryCrossEntropy(),
    "poisson": Poisson(),
}
"""The losses that :func:`expected` knows, by name."""


class Expected(NamedTuple):
    """What a loss should give, and the size of the terms at which rounding is seen."""

    total: float
    total_size: float
    gradient: NDArray
    gradient_size: NDArray
    blocks: NDArray
    """The diagonal blocks of the Hessian in the outputs: (blocks, m, m), m = 1 for elementwise losses."""

    def dense(self) -> NDArray:
        """The whole Hessian, (outputs, outputs)."""
        n, m, _ = self.blocks.shape
        H = np.zeros((n, m, n, m))
        H[np.arange(n), :, np.arange(n), :] = self.blocks
        return H.reshape(n * m, n * m)


def everything(loss: Loss, xp: Any, z: Any, y: Any, w: Any, v: Any) -> dict[str, Any]:
    """What each method of a loss with closed forms returns."""
    return {
        "total": loss.total(xp, z, y, w),
        "gradient": loss.gradient(xp, z, y, w),
        "hessian_product": loss.hessian_product(xp, z, y, w, v),
        "root": loss.hessian(xp, z, y, w).root(xp).product(xp, v),
        "root transposed": loss.hessian(xp, z, y, w).root(xp).transposed(xp, v),
        "weight_sum": loss.weight_sum(xp, z, y, w),
    }


def draw(name: str, seed: int, shape: tuple[int, ...], scale: float, dtype: str) -> tuple[NDArray, NDArray, NDArray]:
    """Outputs of this shape and size, targets that fit, and weights of which some are zero."""
    rng = np.random.default_rng(seed)
    z = (scale * rng.standard_normal(shape)).astype(dtype)
    examples = shape[:1] if name == "squared" else shape[:-1] if name.startswith("softmax") else shape
    if name == "softmax of probabilities":
        y = rng.dirichlet(np.full(shape[-1], 0.5), size=examples).astype(dtype)
    elif name.startswith("softmax"):
        y = rng.integers(0, shape[-1], size=examples)
    elif name == "binary":
        y = rng.choice([0.0, 1.0, 0.3], size=shape).astype(dtype)
    elif name == "poisson":
        z, y = np.clip(z, -60, 60), rng.poisson(2.0, size=shape)
    else:
        y = (scale * rng.standard_normal(shape)).astype(dtype)
    return z, y, np.asarray(rng.choice([0.0, 1.0, 0.25, 3.0], size=examples)).astype(dtype)


def expected(name: str, z: NDArray, y: NDArray, w: NDArray) -> Expected:
    """Value, gradient and Hessian of the named loss; ``w`` has the full shape of the examples."""
    z, total, total_size = z.astype(float), 0.0, 0.0
    gradient, size = np.zeros_like(z), np.zeros_like(z)
    if name.startswith("softmax"):
        C = z.shape[-1]
        blocks = np.zeros((*z.shape, C))
        for i in np.ndindex(z.shape[:-1]):
            value, g, H = _softmax([float(a) for a in z[i]], _distribution(name, y[i], C))
            gradient[i], blocks[i] = w[i] * np.array(g), w[i] * np.array(H)
            # A target that is no class is itself rounded, and so is its distance from p.
            size[i] = np.abs(gradient[i]).max() if name == "softmax" else w[i]
            total += float(w[i]) * value
        return Expected(total, total, gradient, size, blocks.reshape(-1, C, C))
    diagonal = np.zeros_like(z)
    for i in np.ndindex(z.shape):
        weight = float(w[i[: w.ndim]])
        values, slopes, curvature = _element(name, float(z[i]), float(y[i]))
        total, total_size = total + weight * sum(values), total_size + weight * sum(map(abs, values))
        gradient[i], size[i] = weight * sum(slopes), weight * sum(map(abs, slopes))
        diagonal[i] = weight * curvature
    return Expected(total, total_size, gradient, size, diagonal.reshape(-1, 1, 1))


def _element(name: str, z: float, y: float) -> tuple[list[float], list[float], float]:
    """The terms of value and slope of one element, and its curvature."""
    if name == "squared":
        return [0.7 * (z - y) ** 2], [1.4 * (z - y)], 1.4
    if name == "poisson":
        # e^z carries the rounding of z in its relative error.
        return [math.exp(z), -y * z], [math.exp(z), -y], math.exp(z)
    p, q = _sigmoid(z), _sigmoid(-z)
    return [(1 - y) * _softplus(z), y * _softplus(-z)], [(1 - y) * p, -y * q], p * q


def _softplus(z: float) -> float:
    return z + math.log1p(math.exp(-z)) if z > 0 else math.log1p(math.exp(z))


def _sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z > 0 else math.exp(z) / (1 + math.exp(z))


def _softmax(z: list[float], y: list[float]) -> tuple[float, list[float], list[list[float]]]:
    """Value, gradient and Hessian for the logits of one example and a distribution over its classes."""
    C, m = len(z), max(z)
    S = math.fsum(math.exp(a - m) for a in z)
    p = [math.exp(a - m) / S for a in z]
    value = 0.0
    for j in range(C):
        if z[j] == m:
            value += y[j] * math.log1p(math.fsum(math.exp(z[i] - m) for i in range(C) if i != j))
        else:
            value += y[j] * (m - z[j] + math.log(S))
    not_p = [math.fsum(p[:i] + p[i + 1 :]) for i in range(C)]
    not_y = [math.fsum(y[:i] + y[i + 1 :]) for i in range(C)]
    gradient = [p[i] * not_y[i] - y[i] * not_p[i] for i in range(C)]
    hessian = [[sum(y) * p[i] * (not_p[i] if i == j else -p[j]) for j in range(C)] for i in range(C)]
    return value, gradient, hessian


def _distribution(name: str, target: Any, C: int) -> list[float]:
    if name == "softmax of probabilities":
        return [float(t) for t in target]
    e = 0.2 if name == "softmax smoothed" else 0.0
    return [(1 - e) * (j == int(target)) + e / C for j in range(C)]
