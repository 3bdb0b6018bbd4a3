"""The least-squares problems of Moré, Garbow and Hillstrom (1981), written once for every framework.

Each has its standard start, from which 10 and 100 times as far are tried as well, and the sums of squares at its minima
(the global one first).
"""

import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np


def _angle(y, x):
    """atan2 of points a complex step apart."""
    return np.arctan2(y.real, x.real) + 1j * (x.real * y.imag - y.real * x.imag) / (x.real**2 + y.real**2)


_COMPLEX = SimpleNamespace(**(vars(np) | {"atan2": _angle}))


class Problem(NamedTuple):
    """Residuals ``fun(xp, x)`` of arrays of the namespace xp; ``minima`` are sums of squares."""

    name: str
    fun: Any
    start: np.ndarray
    minima: tuple

    def starts(self):
        """The factors, and the starts."""
        far = [self.start * k if self.start.any() else self.start + k / 10 for k in (10, 100)]
        return list(zip((1, 10, 100), (self.start, *far), strict=True))

    def jacobian(self, x):
        """By complex steps, in NumPy."""
        columns = (np.eye(len(x)) * 1e-200j + np.asarray(x, float)[:, None]).T
        return np.stack([self.fun(_COMPLEX, column).imag / 1e-200 for column in columns], axis=1)

    def is_solved(self, total):
        """Whether this is the sum of squares of a minimum."""
        return any(total <= 1e-12 if f == 0 else abs(total - f) <= 1e-4 * f for f in self.minima)


def _data(text):
    return np.array([float(word) for word in text.split()])


BARD = _data(".14 .18 .22 .25 .29 .32 .35 .39 .37 .58 .73 .96 1.34 2.10 4.39")
GAUSSIAN = _data(".0009 .0044 .0175 .0540 .1295 .2420 .3521 .3989 .3521 .2420 .1295 .0540 .0175 .0044 .0009")
MEYER = _data("34780 28610 23650 19630 16370 13720 11540 9744 8261 7030 6005 5147 4427 3820 3307 2872")
KOWALIK = _data(".1957 .1947 .1735 .1600 .0844 .0627 .0456 .0342 .0323 .0235 .0246")
OSBORNE1 = _data(
    ".844 .908 .932 .936 .925 .908 .881 .850 .818 .784 .751 .718 .685 .658 .628 .603 .580 .558 .538 .522 .506 "
    ".490 .478 .467 .457 .448 .438 .431 .424 .420 .414 .411 .406"
)
OSBORNE2 = _data(
    "1.366 1.191 1.112 1.013 .991 .885 .831 .847 .786 .725 .746 .679 .608 .655 .616 .606 .602 .626 .651 .724 "
    ".649 .649 .694 .644 .624 .661 .612 .558 .533 .495 .500 .423 .395 .375 .372 .391 .396 .405 .428 .429 .523 "
    ".562 .607 .653 .672 .708 .633 .668 .645 .632 .591 .559 .597 .625 .739 .710 .729 .720 .636 .581 .428 .292 "
    ".162 .098 .054"
)


def problems(constant=lambda a: a):
    """All of them; ``constant`` makes an array of the framework of NumPy data."""
    c = constant
    u = np.arange(1.0, 16.0)
    i10, t20 = c(np.arange(1.0, 11.0)), np.arange(1.0, 21.0) / 5
    tb = np.arange(1.0, 11.0) / 10
    u_k, y_k = c(_data("4 2 1 .5 .25 .167 .125 .1 .0833 .0714 .0625")), c(KOWALIK)

    def helical(xp, x):
        turn = xp.atan2(x[1], x[0]) / (2 * math.pi)
        turn = xp.where((x[0] < 0) & (turn < -0.25), turn + 1, turn)
        return xp.stack([10 * (x[2] - 10 * turn), 10 * (xp.sqrt(x[0] ** 2 + x[1] ** 2) - 1), x[2]])

    def watson(n):
        t = np.arange(1.0, 30.0) / 29
        slopes = c(np.stack([j * t ** max(j - 1, 0) for j in range(n)], axis=1))
        values = c(np.stack([t**j for j in range(n)], axis=1))

        def fun(xp, x):
            tail = xp.stack([x[0], x[1] - x[0] ** 2 - 1])
            return xp.concat([slopes @ x - (values @ x) ** 2 - 1, tail])

        return fun

    def chebyquad(xp, x):
        before, now, rows = 0 * x + 1, 2 * x - 1, []
        for i in range(1, x.shape[0] + 1):
            rows.append(xp.mean(now) + (0.0 if i % 2 else 1 / (i * i - 1)))
            before, now = now, 2 * (2 * x - 1) * now - before
        return xp.stack(rows)

    def brown_almost_linear(xp, x):
        n = x.shape[0]
        return xp.concat([x[:-1] + xp.sum(x) - (n + 1), xp.reshape(xp.prod(x) - 1, (1,))])

    def linear_full(xp, x):
        mean = 2 * xp.sum(x) / 10
        return xp.concat([x - mean - 1, -mean - 1 + 0 * x])

    def osborne2(xp, x):
        t = c(np.arange(65.0) / 10)
        peaks = sum(x[k] * xp.exp(-((t - x[k + 7]) ** 2) * x[k + 4]) for k in (1, 2, 3))
        return c(OSBORNE2) - x[0] * xp.exp(-t * x[4]) - peaks

    def osborne1(xp, x):
        t = c(10 * np.arange(33.0))
        return c(OSBORNE1) - (x[0] + x[1] * xp.exp(-t * x[3]) + x[2] * xp.exp(-t * x[4]))

    def freudenstein(xp, x):
        one = -13 + x[0] + ((5 - x[1]) * x[1] - 2) * x[1]
        return xp.stack([one, -29 + x[0] + ((x[1] + 1) * x[1] - 14) * x[1]])

    def powell_badly_scaled(xp, x):
        return xp.stack([1e4 * x[0] * x[1] - 1, xp.exp(-x[0]) + xp.exp(-x[1]) - 1.0001])

    def jennrich(xp, x):
        return 2 + 2 * i10 - xp.exp(i10 * x[0]) - xp.exp(i10 * x[1])

    def wood(xp, x):
        one = [10 * (x[1] - x[0] ** 2), 1 - x[0], 90**0.5 * (x[3] - x[2] ** 2), 1 - x[2]]
        return xp.stack([*one, 10**0.5 * (x[1] + x[3] - 2), (x[1] - x[3]) / 10**0.5])

    def powell_singular(xp, x):
        one = [x[0] + 10 * x[1], 5**0.5 * (x[2] - x[3])]
        return xp.stack([*one, (x[1] - 2 * x[2]) ** 2, 10**0.5 * (x[0] - x[3]) ** 2])

    def brown_dennis(xp, x):
        t = c(t20)
        return (x[0] + t * x[1] - c(np.exp(t20))) ** 2 + (x[2] + x[3] * c(np.sin(t20)) - c(np.cos(t20))) ** 2

    def box(xp, x):
        gap = c(np.exp(-tb) - np.exp(-10 * tb))
        return xp.exp(-c(tb) * x[0]) - xp.exp(-c(tb) * x[1]) - x[2] * gap

    def bard(xp, x):
        return c(BARD) - (x[0] + c(u) / (c(16 - u) * x[1] + c(np.minimum(u, 16 - u)) * x[2]))

    def kowalik(xp, x):
        return y_k - x[0] * (u_k**2 + u_k * x[1]) / (u_k**2 + u_k * x[2] + x[3])

    def gaussian(xp, x):
        return x[0] * xp.exp(-x[1] * (c((8 - u) / 2) - x[2]) ** 2 / 2) - c(GAUSSIAN)

    def meyer(xp, x):
        return x[0] * xp.exp(x[1] / (c(45 + 5 * np.arange(1.0, 17.0)) + x[2])) - c(MEYER)

    def rank_one(xp, x):
        return i10 * xp.sum(c(np.arange(1.0, 6.0)) * x) - 1

    listed = [
        ("Rosenbrock", lambda xp, x: xp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]]), [-1.2, 1], [0]),
        ("Freudenstein-Roth", freudenstein, [0.5, -2], [0, 48.98425]),
        ("Powell badly scaled", powell_badly_scaled, [0, 1], [0]),
        ("Brown badly scaled", lambda xp, x: xp.stack([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2]), [1, 1], [0]),
        (
            "Beale",
            lambda xp, x: xp.stack([y - x[0] * (1 - x[1] ** k) for k, y in ((1, 1.5), (2, 2.25), (3, 2.625))]),
            [1, 1],
            [0, 0.4520],
        ),
        (
            "Jennrich-Sampson",
            lambda xp, x: 2 + 2 * i10 - xp.exp(i10 * x[0]) - xp.exp(i10 * x[1]),
            [0.3, 0.4],
            [124.362182],
        ),
        ("helical valley", helical, [-1, 0, 0], [0]),
        ("Bard", bard, [1, 1, 1], [8.214877e-3, 17.42869]),
        ("Gaussian", gaussian, [0.4, 1, 0], [1.12793e-8]),
        ("Meyer", meyer, [0.02, 4000, 250], [87.94586]),
        ("Box three-dimensional", box, [0, 10, 20], [0, 7.55885e-2]),
        ("Powell singular", powell_singular, [3, -1, 0, 1], [0]),
        ("Wood", wood, [-3, -1, -3, -1], [0, 7.87697]),
        ("Kowalik-Osborne", kowalik, [0.25, 0.39, 0.415, 0.39], [3.07505e-4, 1.02734e-3]),
        ("Brown-Dennis", brown_dennis, [25, 5, -5, -1], [85822.2016]),
        ("Osborne 1", osborne1, [0.5, 1.5, -1, 0.01, 0.02], [5.46489e-5]),
        ("Osborne 2", osborne2, [1.3, 0.65, 0.65, 0.7, 0.6, 3, 5, 7, 2, 4.5, 5.5], [4.01377e-2, 1.78981]),
        ("Watson 6", watson(6), np.zeros(6), [2.28767e-3]),
        ("Watson 9", watson(9), np.zeros(9), [1.39976e-6]),
        ("Watson 12", watson(12), np.zeros(12), [4.72238e-10]),
        ("Chebyquad 8", chebyquad, np.arange(1, 9) / 9, [3.51687e-3]),
        ("Chebyquad 10", chebyquad, np.arange(1, 11) / 11, [4.772713e-3, 6.50395e-3]),
        ("Brown almost linear", brown_almost_linear, np.full(10, 0.5), [0, 1]),
        ("linear, full rank", linear_full, np.ones(5), [5]),
        ("linear, rank 1", rank_one, np.ones(5), [10 * 9 / (2 * 21)]),
    ]

    return [Problem(name, fun, np.asarray(start, float), tuple(minima)) for name, fun, start, minima in listed]
