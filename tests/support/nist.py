"""NIST's nonlinear regressions: data, starts, certified values, and the models, written once for every framework."""

import functools
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

import linop_gn as lg

FOLDER = Path(__file__).parents[1] / "data" / "nist_strd"


class Problem(NamedTuple):
    """One data set; ``starts``, ``certified`` and ``deviations`` of its parameters."""

    name: str
    model: object
    x: np.ndarray
    y: np.ndarray
    starts: tuple
    certified: np.ndarray
    deviations: np.ndarray
    sum_of_squares: float


def gauss(xp, b, x):
    peaks = b[2] * xp.exp(-((x - b[3]) ** 2) / b[4] ** 2) + b[5] * xp.exp(-((x - b[6]) ** 2) / b[7] ** 2)
    return b[0] * xp.exp(-b[1] * x) + peaks


def lanczos(xp, b, x):
    return b[0] * xp.exp(-b[1] * x) + b[2] * xp.exp(-b[3] * x) + b[4] * xp.exp(-b[5] * x)


def chwirut(xp, b, x):
    return xp.exp(-b[0] * x) / (b[1] + b[2] * x)


def cubics(xp, b, x):
    return (b[0] + b[1] * x + b[2] * x**2 + b[3] * x**3) / (1 + b[4] * x + b[5] * x**2 + b[6] * x**3)


def enso(xp, b, x):
    def wave(period, one, two):
        return one * xp.cos(2 * np.pi * x / period) + two * xp.sin(2 * np.pi * x / period)

    return b[0] + wave(12, b[1], b[2]) + wave(b[3], b[4], b[5]) + wave(b[6], b[7], b[8])


MODELS = {
    "Bennett5": lambda xp, b, x: b[0] * (b[1] + x) ** (-1 / b[2]),
    "BoxBOD": lambda xp, b, x: b[0] * (1 - xp.exp(-b[1] * x)),
    "Chwirut1": chwirut,
    "Chwirut2": chwirut,
    "DanWood": lambda xp, b, x: b[0] * x ** b[1],
    "ENSO": enso,
    "Eckerle4": lambda xp, b, x: b[0] / b[1] * xp.exp(-0.5 * ((x - b[2]) / b[1]) ** 2),
    "Gauss1": gauss,
    "Gauss2": gauss,
    "Gauss3": gauss,
    "Hahn1": cubics,
    "Kirby2": lambda xp, b, x: (b[0] + b[1] * x + b[2] * x**2) / (1 + b[3] * x + b[4] * x**2),
    "Lanczos1": lanczos,
    "Lanczos2": lanczos,
    "Lanczos3": lanczos,
    "MGH09": lambda xp, b, x: b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3]),
    "MGH10": lambda xp, b, x: b[0] * xp.exp(b[1] / (x + b[2])),
    "MGH17": lambda xp, b, x: b[0] + b[1] * xp.exp(-x * b[3]) + b[2] * xp.exp(-x * b[4]),
    "Misra1a": lambda xp, b, x: b[0] * (1 - xp.exp(-b[1] * x)),
    "Misra1b": lambda xp, b, x: b[0] * (1 - (1 + b[1] * x / 2) ** (-2)),
    "Misra1c": lambda xp, b, x: b[0] * (1 - (1 + 2 * b[1] * x) ** (-0.5)),
    "Misra1d": lambda xp, b, x: b[0] * b[1] * x / (1 + b[1] * x),
    "Nelson": lambda xp, b, x: b[0] - b[1] * x[0] * xp.exp(-b[2] * x[1]),  # of log y, as NIST does
    "Rat42": lambda xp, b, x: b[0] / (1 + xp.exp(b[1] - b[2] * x)),
    "Rat43": lambda xp, b, x: b[0] / (1 + xp.exp(b[1] - b[2] * x)) ** (1 / b[3]),
    "Roszman1": lambda xp, b, x: b[0] - b[1] * x - xp.atan(b[2] / (x - b[3])) / np.pi,
    "Thurber": cubics,
}


@functools.cache
def problem(name):
    """The data set of this name."""
    lines = (FOLDER / f"{name}.dat").read_text().splitlines()
    table = [re.match(r"\s*b\d+\s*=\s*(\S+)\s+(\S+)\s+(\S+)\s+(\S+)", line) for line in lines]
    one, two, certified, deviations = np.array([[float(v) for v in row.groups()] for row in table if row]).T
    total = next(float(line.split(":")[1]) for line in lines if line.startswith("Residual Sum of Squares"))
    first = int(re.search(r"Data\s+\(lines\s+(\d+)", "\n".join(lines[:12])).group(1)) - 1
    data = np.array([[float(v) for v in line.split()] for line in lines[first:] if line.strip()])
    y, x = data[:, 0], data[:, 1] if data.shape[1] == 2 else data[:, 1:].T
    y = np.log(y) if name == "Nelson" else y
    return Problem(name, MODELS[name], x, y, (one, two), certified, deviations, total)


def jacobian(made):
    """The Jacobian of the model by complex steps: exact to rounding."""

    def of(b):
        columns = np.eye(len(b)) * 1e-200j + np.asarray(b, float)[:, None]
        return np.stack([made.model(np, c, made.x).imag / 1e-200 for c in columns.T], axis=1)

    return of


def fit(ops, made, start, dtype="float64", **options):
    """``lg.least_squares`` on a data set, on NumPy with the Jacobian by complex steps."""
    x, y = ops.asarray(made.x, dtype), ops.asarray(made.y, dtype)
    xp, jac, slope = ops.namespace(), None, jacobian(made)
    if ops.calculus is None:
        jac = lambda b, *data: slope(b).astype(dtype)  # noqa: E731
    with np.errstate(all="ignore"):
        return lg.least_squares(
            lambda b, x, y: made.model(xp, b, x) - y, ops.asarray(start, dtype), jac, args=(x, y), **options
        )


def sum_at(made, b):
    """The sum of squares at parameters, in float64."""
    with np.errstate(all="ignore"):
        r = made.model(np, np.asarray(b, float), made.x) - made.y
    return float(r @ r)


def is_exact(made):
    """Whether the certified sum of squares is rounding."""
    return made.sum_of_squares < 1e-20


def is_false(made, found):
    """Whether a fit calls itself a success above the certified sum of squares."""
    least = max(made.sum_of_squares * (1 + 1e-4), 1e-20 if found.fun.dtype == np.float64 else 1e-12)
    return bool(found.success) and not sum_at(made, found.space.backend.to_numpy(found.x)) <= least
