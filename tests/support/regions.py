"""Spectra for Krylov methods, and dense solutions of trust-region problems in float64 and beyond."""

import numpy as np
import pytest

SPECTRA = {
    "well conditioned": lambda rng, n: rng.uniform(0.5, 2.0, n),
    "clustered": lambda rng, n: np.array([0.01, 1.0, 100.0])[np.arange(n) % 3] * (1 + 1e-6 * rng.uniform(size=n)),
    "spread": lambda rng, n: 10.0 ** np.linspace(-6, 6, n)[rng.permutation(n)],
    "singular": lambda rng, n: rng.uniform(0.5, 2.0, n) * (np.arange(n) % 3 > 0),
    "indefinite": lambda rng, n: rng.uniform(-2.0, 2.0, n),
    "few": lambda rng, n: np.array([-1.0, 1.0, 3.0])[np.arange(n) % 3],
}


def model(matrix, b, x):
    """1/2 x.A x - b.x."""
    return 0.5 * x @ matrix @ x - b @ x


def smallest_model(matrix, b, radius):
    """The least value of the model over the ball, and the multiplier, by bisection on dense eigenvalues.

    The unknown is the distance of the multiplier from where A + lambda I is singular, so that the hard case, and what
    is near to it, lose no digits.
    """
    values, vectors = np.linalg.eigh(matrix)
    c = vectors.T @ b
    c[np.abs(c) < 1e-15 * len(b) * np.linalg.norm(b)] = 0.0
    pole = max(0.0, -values[0])
    gaps = values + pole
    gaps[0] = max(gaps[0], 0.0)

    def y_at(distance):
        with np.errstate(divide="ignore", over="ignore"):
            return np.where(c == 0, 0.0, c / np.where(c == 0, 1.0, gaps + distance))

    low, high, y = 0.0, np.linalg.norm(c) / radius, y_at(0.0)
    if not np.linalg.norm(y) <= radius:
        while True:
            middle = 0.5 * (low + high)
            if not low < middle < high:
                break
            low, high = (middle, high) if np.linalg.norm(y_at(middle)) > radius else (low, middle)
        y = y_at(high)
    else:
        high = 0.0
        if values[0] < 0:  # the hard case: along the lowest eigenvector to the boundary
            y[0] += np.sqrt(radius**2 - y @ y)
    return 0.5 * y @ (values * y) - c @ y, pole + high


def precise_tridiagonal(alphas, betas, norm, radius):
    """h, multiplier and model of the problem with T and norm e_1, in 60 digits."""
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 60
    k = len(alphas)
    T = mpmath.zeros(k)
    for i in range(k):
        T[i, i] = mpmath.mpf(float(alphas[i]))
        if i + 1 < k:
            T[i, i + 1] = T[i + 1, i] = mpmath.mpf(float(betas[i]))
    values, vectors = mpmath.eigsy(T)
    c = [mpmath.mpf(norm) * vectors[0, i] for i in range(k)]
    lowest = min(values[i] for i in range(k))
    pole = max(mpmath.mpf(0), -lowest)

    def length(distance):
        return mpmath.sqrt(sum((c[i] / (values[i] + pole + distance)) ** 2 for i in range(k)))

    distance = mpmath.mpf(0)
    if lowest <= 0 or length(distance) > radius:
        low, high = mpmath.mpf(0), mpmath.mpf(norm) / mpmath.mpf(radius)
        for _ in range(300):
            middle = (low + high) / 2
            low, high = (middle, high) if length(middle) > radius else (low, middle)
        distance = high
    y = [c[i] / (values[i] + pole + distance) for i in range(k)]
    h = [sum(vectors[j, i] * y[i] for i in range(k)) for j in range(k)]
    value = sum(values[i] * y[i] ** 2 / 2 - c[i] * y[i] for i in range(k))
    return np.array([float(x) for x in h]), float(pole + distance), float(value)
