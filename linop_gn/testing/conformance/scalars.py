"""Scalars: functions that never raise, of one number and of a number for each column."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st

from .base import EPS, Draws, Kit, NDArray, agree, claim, drawn

__all__ = ["Scalars"]

AWKWARD = {
    "float64": np.array([0.0, -0.0, 1.0, -3.0, 1e-300, -1e300, math.inf, -math.inf, math.nan]),
    "float32": np.array([0.0, -0.0, 1.0, -3.0, 2.0**-50, -(2.0**50), math.inf, -math.inf, math.nan]),
}
_QUIET = ("divide", "sqrt", "minimum", "maximum", "isfinite", "where", "logical_not", "any")


def _quotient(x: NDArray, y: NDArray) -> NDArray:
    quotient: NDArray = np.where(np.equal(y, 0), 0.0, np.divide(x, np.where(np.equal(y, 0), 1.0, y)))
    return quotient


class Scalars(Kit):
    """The scalars' half of :class:`linop_gn.protocols.Arithmetic`."""

    def _pairs(self) -> Iterator[tuple[Any, Any, Any, Any]]:
        """Every pair of awkward numbers: in NumPy, and as scalars of a vector and of columns."""
        x = AWKWARD[self.wide]
        one, many = self.array(np.zeros(1), self.wide), self.array(np.zeros((1, len(x))), self.wide)
        for shift in range(len(x)):
            y = np.roll(x, shift)
            yield x, y, self.scalar(x, many), self.scalar(y, many)
            for a, b in zip(x, y, strict=True):
                yield a, b, self.scalar(a, one), self.scalar(b, one)

    def _agrees(self, name: str, ours: Callable[..., Any], means: Callable[..., Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error" if name in _QUIET else "ignore")
            for x, y, X, Y in self._pairs():
                with np.errstate(all="ignore"):
                    expected = np.asarray(means(x, y), dtype=float)
                got = self.number(ours(X, Y))
                size = np.where(np.isfinite(expected), abs(expected), 0.0)
                agree(got, expected, 4 * EPS[self.wide] * size, f"{name} of {x} and {y}")

    def test_divide(self) -> None:
        """divide(x, y) is x / y, and 0 where y is 0; it never raises and never warns."""
        self._agrees("divide", self.ops.divide, _quotient)

    def test_sqrt(self) -> None:
        """sqrt(x) is the square root, NaN for negative numbers; it never raises and never warns."""
        self._agrees("sqrt", lambda x, y: self.ops.sqrt(x), lambda x, y: np.sqrt(x))

    def test_minimum_and_maximum(self) -> None:
        """minimum and maximum pass NaN on, from either side."""
        self._agrees("minimum", self.ops.minimum, np.minimum)
        self._agrees("maximum", self.ops.maximum, np.maximum)

    def test_isfinite(self) -> None:
        """isfinite(x) is false for infinities and NaN alone."""
        self._agrees("isfinite", lambda x, y: self.ops.isfinite(x), lambda x, y: np.isfinite(x))

    def test_where(self) -> None:
        """where(condition, x, y) is x or y, a column at a time, whatever the other holds."""
        self._agrees("where", lambda x, y: self.ops.where(x > y, x, y), lambda x, y: np.where(x > y, x, y))

    def test_plain_numbers_among_scalars(self) -> None:
        """Plain numbers mix with scalars, one or one for each column, on either side."""
        ops = self.ops
        for shape in ((2,), (2, 3)):
            like = self.array(np.zeros(shape), self.wide)
            values = np.array([4.0, -0.5, 0.0])[: math.prod(shape[1:])].reshape(shape[1:])
            s = self.scalar(values, like)
            for what, got, expected in (
                ("divide(1, s)", ops.divide(1.0, s), _quotient(np.ones(shape[1:]), values)),
                ("divide(s, 4)", ops.divide(s, 4.0), values / 4),
                ("minimum(s, 1)", ops.minimum(s, 1.0), np.minimum(values, 1)),
                ("maximum(0.25, s)", ops.maximum(0.25, s), np.maximum(0.25, values)),
                ("where(s > 0, s, -1)", ops.where(s > 0, s, -1.0), np.where(values > 0, values, -1)),
                ("where(s > 0, 2, s)", ops.where(s > 0, 2.0, s), np.where(values > 0, 2, values)),
            ):
                agree(self.number(got), expected, EPS[self.wide], f"{what}, s = {values}")

    def test_where_of_codes(self) -> None:
        """where among whole numbers gives whole numbers: that is how a status is carried."""
        for shape in ((2,), (2, 3)):
            like = self.array(np.zeros(shape), self.wide)
            code = self.ops.scalar(0, like)
            for new in (5, self.ops.scalar(5, like)):
                for holds in (True, False):
                    made = self.ops.where(self.truth(np.full(shape[1:], holds), like), new, code)
                    read = np.asarray(self.ops.read(made))
                    agree(read, np.full(shape[1:], 5 * holds), 0.0, "where of whole numbers")
                    claim(read.dtype.kind in "iu", f"where made {read.dtype} of whole numbers")

    def test_logic(self) -> None:
        """Comparisons combine with & | ^ and logical_not; any tells whether one column's holds."""
        ops = self.ops
        self._agrees("logical_not", lambda x, y: ops.logical_not(x > y), lambda x, y: np.logical_not(x > y))
        self._agrees("|", lambda x, y: (x > y) | (x < y), lambda x, y: (x > y) | (x < y))
        self._agrees("&", lambda x, y: (x >= y) & (x <= y), lambda x, y: (x >= y) & (x <= y))
        self._agrees("^", lambda x, y: (x > y) ^ (x == x), lambda x, y: (x > y) ^ (x == x))
        self._agrees("any", lambda x, y: ops.any(x > y), lambda x, y: np.any(x > y))

    def test_arithmetic(self) -> None:
        """Scalars add, subtract, multiply and negate as numbers do."""
        self._agrees("-x + 2 y - 1", lambda x, y: -x + 2 * y - 1, lambda x, y: -x + 2 * y - 1)

    def test_scalar(self) -> None:
        """scalar(value, like) is that number, whole or true as it was, repeated for each column of ``like``."""
        for shape in ((3,), (3, 1), (3, 2)):
            like = self.array(np.zeros(shape), self.wide)
            for value in (0.25, 3, True, math.inf):
                made = self.ops.scalar(value, like)
                agree(self.number(made), np.full(shape[1:], float(value)), 0.0, f"scalar({value!r}, {shape})")
                kind = np.asarray(self.ops.read(made)).dtype.kind
                claim(kind == np.asarray(value).dtype.kind, f"scalar({value!r}, ...) became of dtype kind {kind!r}")

    def test_a_scalar_keeps_its_digits(self) -> None:
        """Scalars of float64 vectors are float64: a third stays a third to 16 digits."""
        like = self.array(np.full(1, 1 / 3), self.wide)
        third = float(np.asarray(1 / 3, self.wide))
        one = self.ops.scalar(1.0, like)
        agree(self.number(self.ops.scalar(1 / 3, like)), third, EPS[self.wide], "scalar")
        agree(self.number(self.ops.divide(one, 3.0 * one)), third, EPS[self.wide], "divide")
        agree(self.number(self.ops.max_abs(like)), third, 0.0, "max_abs")

    def test_item(self) -> None:
        """item(x) is a 0-d array as a scalar of the backend, to all its digits."""
        for dtype in self.dtypes:
            value = float(np.asarray(1 / 3, dtype))
            made = self.ops.item(self.array(value, dtype))
            agree(self.number(made), value, 0.0, f"item of a {dtype} array")
            combined = self.ops.where(made > 0, made, self.ops.scalar(0.0, self.array(np.zeros(1), dtype)))
            agree(self.number(combined), value, 0.0, "where of an item")
            if not self.compiled:
                claim(isinstance(made, float), f"item returned a {type(made).__qualname__}; eager scalars are floats")

    @drawn(40)
    def test_power_of_two(self, data: Draws) -> None:
        """power_of_two(x, like) is the power of two at or below |x|, exactly."""
        like = self.array(np.zeros(1), "float32")
        exponent, mantissa = data.draw(st.integers(-120, 120)), data.draw(st.sampled_from([1.0, 1.25, 1.5, 1.999]))
        sign = data.draw(st.sampled_from([-1.0, 1.0]))
        found = self.number(self.ops.power_of_two(self.scalar(sign * mantissa * 2.0**exponent, like), like))
        claim(float(found) == 2.0**exponent, f"of {sign * mantissa} * 2**{exponent}: got {float(found)!r}")

    def test_power_of_two_of_columns(self) -> None:
        """Each column has its own power of two; it is 1 for zero and whatever is not finite."""
        values = np.array([5.0, 0.0, -0.3, math.nan, math.inf, -math.inf, 1.0])
        like = self.array(np.zeros((1, len(values))), self.wide)
        found = self.number(self.ops.power_of_two(self.scalar(values, like), like))
        agree(found, [4.0, 1.0, 0.25, 1.0, 1.0, 1.0, 1.0], 0.0, f"power_of_two of {values}")
        one = self.array(np.zeros(1), self.wide)
        for value, power in zip(values, found, strict=True):
            alone = self.number(self.ops.power_of_two(self.scalar(value, one), one))
            agree(alone, power, 0.0, f"power_of_two of {value}")

    def test_power_of_two_has_an_inverse(self) -> None:
        """A power of two and its inverse are normal numbers of the vectors' dtype: scaling there and back is exact."""
        for dtype in self.dtypes:
            like = self.array(np.full(1, 0.75), dtype)
            for value in (1e-300, 1e300, 5e-324, 3e-39, 3e38, 1e-3):
                with np.errstate(over="ignore", under="ignore"):
                    power = self.ops.power_of_two(self.scalar(value, like), like)
                    inverse = self.ops.divide(self.ops.scalar(1.0, like), power)
                there = self.ops.scale(power, self.ops.copy(like))
                agree(self.host(self.ops.scale(inverse, there)), [0.75], 0.0, f"{dtype}, scaled for {value} and back,")
                claim(math.frexp(float(self.number(power)))[0] == 0.5, f"{power!r} is no power of two")
