"""Vector arithmetic: updates and reductions, of one vector and of columns, against float64 NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import SkipTest

import numpy as np
from hypothesis import strategies as st

from .base import EPS, Draws, Kit, NDArray, agree, claim, drawn

__all__ = ["UPDATES", "Update", "Vectors"]

FACTORS = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-100, 100, width=32))
AWKWARD = (0.0, -0.0, 1.0, -3.0, 1e30, math.inf, -math.inf, math.nan)


class Update(NamedTuple):
    """A vector operation, and what it computes."""

    run: Callable[..., Any]
    """``(ops, a, x, b, y)``, consuming y."""
    means: Callable[..., Any]
    """``(a, x, b, y)`` in NumPy."""
    reads_x: bool = True


UPDATES = {
    "scale": Update(lambda ops, a, x, b, y: ops.scale(a, y), lambda a, x, b, y: a * y, reads_x=False),
    "axpy": Update(lambda ops, a, x, b, y: ops.axpy(a, x, y), lambda a, x, b, y: a * x + y),
    "axpby": Update(lambda ops, a, x, b, y: ops.axpby(a, x, b, y), lambda a, x, b, y: a * x + b * y),
    "subtract": Update(lambda ops, a, x, b, y: ops.subtract(x, y), lambda a, x, b, y: x - y),
}
"""The operations that consume their last argument."""


class Vectors(Kit):
    """Updates and reductions."""

    @drawn(8)
    def test_copy(self, data: Draws) -> None:
        """copy(x) is a new array: what is done to it leaves x alone."""
        dtype = data.draw(st.sampled_from(self.dtypes))
        x = self.normal(data, *self.shape(data), dtype=dtype)
        X = self.array(x, dtype)
        made = self.ops.copy(X)
        self.same_kind(made, X, "copy")
        agree(self.host(made), x, 0.0, "copy")
        self.ops.scale(5.0, made)
        agree(self.host(X), x, 0.0, "what was copied, after its copy was scaled,")

    @drawn(8)
    def test_zeros_like(self, data: Draws) -> None:
        """zeros_like(x) is a new array of zeros each time, of the kind of x."""
        dtype = data.draw(st.sampled_from(self.dtypes))
        x = self.normal(data, *self.shape(data), dtype=dtype)
        X = self.array(x, dtype)
        for _ in range(2):
            with self.untouched("zeros_like", X):
                made = self.ops.zeros_like(X)
                self.same_kind(made, X, "zeros_like")
                agree(self.host(made), np.zeros(x.shape), 0.0, "zeros_like")
                self.ops.axpy(1.0, X, made)

    def _update(self, data: Draws, name: str) -> None:
        update, ops = UPDATES[name], self.ops
        dtype, shape = data.draw(st.sampled_from(self.dtypes)), self.shape(data)
        x, y = self.normal(data, *shape, dtype=dtype), self.normal(data, *shape, dtype=dtype)
        a, b = (np.array([data.draw(FACTORS) for _ in range(math.prod(shape[1:]))]).reshape(shape[1:]) for _ in "ab")
        X, Y = self.array(x, dtype), self.array(y, dtype)
        A, B = self.scalar(a, X), self.scalar(b, X)
        size = abs(a) * abs(x) + np.maximum(1.0, abs(b)) * abs(y)
        with self.untouched(name, X, Y):
            result = update.run(ops, A, X, B, ops.copy(Y))
            self.same_kind(result, Y, name)
            agree(self.host(result), update.means(a, x, b, y), 8 * EPS[dtype] * size, name)
            again = update.run(ops, self.scalar(2.0 - a, X), X, B, ops.copy(Y))
            agree(self.host(result), update.means(a, x, b, y), 8 * EPS[dtype] * size, f"{name}, after another {name},")
            ops.scale(3.0, result)  # writes through whatever the result shares with x
            ops.scale(3.0, again)

    @drawn()
    def test_scale(self, data: Draws) -> None:
        """scale(a, x) is a x, in a vector that shares nothing with others, of the same kind as x."""
        self._update(data, "scale")

    @drawn()
    def test_axpy(self, data: Draws) -> None:
        """axpy(a, x, y) is a x + y, of the kind of y; x stays as it is and shares nothing with the result."""
        self._update(data, "axpy")

    @drawn()
    def test_axpby(self, data: Draws) -> None:
        """axpby(a, x, b, y) is a x + b y, of the kind of y; x stays as it is and shares nothing with the result."""
        self._update(data, "axpby")

    @drawn()
    def test_subtract(self, data: Draws) -> None:
        """subtract(x, y) is x - y, of the kind of y; x stays as it is and shares nothing with the result."""
        self._update(data, "subtract")

    def test_updates_share_nothing(self) -> None:
        """No update returns x itself, not even where it adds zeros to it or multiplies by 1."""
        for shape in ((3,), (3, 2)):
            one = np.arange(1.0, 1.0 + np.prod(shape)).reshape(shape)
            for x in (one, 0 * one):
                for y in (one, 0 * one):
                    for a in (0.0, 1.0, -1.0):
                        for name, update in UPDATES.items():
                            X, Y = self.array(x, self.wide), self.array(y, self.wide)
                            made = update.run(self.ops, self.scalar(a, X), X, self.scalar(1.0 - a, X), Y)
                            self.ops.axpy(1.0, self.array(one, self.wide), made)
                            agree(self.host(X), x, 0.0, f"x, after the result of {name} was written to,")

    @drawn(8)
    def test_plain_numbers_as_factors(self, data: Draws) -> None:
        """Factors may be Python and NumPy numbers and arrays of no axes; none of them changes a vector's dtype."""
        ops, dtype, shape = self.ops, data.draw(st.sampled_from(self.dtypes)), self.shape(data)
        x, y = self.normal(data, *shape, dtype=dtype), self.normal(data, *shape, dtype=dtype)
        X, Y = self.array(x, dtype), self.array(y, dtype)
        a = data.draw(st.sampled_from([0, 1, 1.0, -2, 0.5]))
        for factor in (a, np.float32(a), np.float64(a), self.array(float(a), dtype)):
            for name, update in UPDATES.items():
                result = update.run(ops, factor, X, factor, ops.copy(Y))
                self.same_kind(result, Y, f"{name} by a {type(factor).__qualname__}")
                agree(self.host(result), update.means(a, x, a, y), 16 * EPS[dtype] * (2 * abs(x) + 2 * abs(y)), name)
        b = np.arange(1.0, 1.0 + math.prod(shape[1:])).reshape(shape[1:])
        for first, second, expected in (
            (a, self.scalar(b, X), a * x + b * y),
            (self.scalar(b, X), a, b * x + a * y),
        ):
            result = ops.axpby(first, X, second, ops.copy(Y))
            agree(self.host(result), expected, 16 * EPS[dtype] * (3 * abs(x) + 3 * abs(y)), "axpby, one factor plain,")

    def test_updates_of_awkward_numbers(self) -> None:
        """Zeros, infinities and NaN go through updates as IEEE arithmetic says: a factor of zero hides no NaN."""
        ops, dtype = self.ops, self.wide
        x, y = (grid.reshape(-1) for grid in np.meshgrid(AWKWARD, AWKWARD))
        X, Y = self.array(x, dtype), self.array(y, dtype)
        for a in (0.0, 1.0, -0.5, math.inf, math.nan):
            for b in (0.0, 1.0, -0.5, math.nan):
                for name, update in UPDATES.items():
                    with np.errstate(all="ignore"):
                        expected = update.means(a, x, b, y)
                        result = update.run(ops, self.scalar(a, X), X, self.scalar(b, X), ops.copy(Y))
                    what = f"{name} with a = {a}, b = {b}"
                    agree(self.host(result), expected, 8 * EPS[dtype] * 1e30, what)

    @drawn()
    def test_dot(self, data: Draws) -> None:
        """dot(x, y) is the sum of products, a column at a time, to rounding in the vectors' precision."""
        dtype, shape = data.draw(st.sampled_from(self.dtypes)), self.shape(data)
        x, y = self.normal(data, *shape, dtype=dtype), self.normal(data, *shape, dtype=dtype)
        X, Y = self.array(x, dtype), self.array(y, dtype)
        with self.untouched("dot", X, Y):
            product, square = self.number(self.ops.dot(X, Y)), self.number(self.ops.dot(X, X))
        agree(product, (x * y).sum(axis=0), 8 * EPS[dtype] * abs(x * y).sum(axis=0), "dot(x, y)")
        agree(square, (x * x).sum(axis=0), 8 * EPS[dtype] * (x * x).sum(axis=0), "dot(x, x)")

    def test_dot_of_many_entries(self) -> None:
        """Sums of a million float32 products keep their digits: one chain of additions does not."""
        for shape in ((1_000_000,), (200_000, 2)):
            x = np.random.default_rng(0).uniform(0.5, 1.0, shape).astype("float32")
            exact = (x.astype(float) ** 2).sum(axis=0)
            X = self.array(x, "float32")
            agree(self.number(self.ops.dot(X, X)), exact, 2e-7 * exact, f"dot of vectors of shape {shape}")

    def test_dot_of_half_precision(self) -> None:
        """Products of float16 vectors are summed in at least float32: float16 ends at 65504."""
        try:
            x = self.array(np.full(100, 100.0), "float16")
        except (AttributeError, TypeError) as error:
            raise SkipTest(f"{self.ops.name} has no float16 ({error})") from None
        agree(self.number(self.ops.dot(x, x)), 1e6, 1.0, "dot")
        for number in self.ops.dots((x, x), (x, x)):
            agree(self.number(number), 1e6, 1.0, "dots")
        block = self.array(np.full((100, 2), 100.0), "float16")
        agree(self.number(self.ops.dot(block, block)), [1e6, 1e6], 1.0, "dot of columns")

    @drawn()
    def test_max_abs(self, data: Draws) -> None:
        """max_abs(x) is the largest absolute entry, a column at a time."""
        dtype, shape = data.draw(st.sampled_from(self.dtypes)), self.shape(data)
        x = self.normal(data, *shape, dtype=dtype)
        agree(self.number(self.ops.max_abs(self.array(x, dtype))), abs(x).max(axis=0), 0.0, "max_abs")

    def test_reductions_show_what_is_not_finite(self) -> None:
        """One NaN or infinity anywhere makes dot and max_abs non-finite, in its column only."""
        for bad in (math.nan, math.inf, -math.inf):
            for at in range(3):
                x: NDArray = np.array([1.0, -2.0, 0.5])
                x[at] = bad
                X, block = self.array(x, self.wide), self.array(np.stack([x, np.ones(3)], axis=1), self.wide)
                for name, reduce in (("max_abs", self.ops.max_abs), ("dot", lambda v: self.ops.dot(v, v))):
                    alone, columns = self.number(reduce(X)), self.number(reduce(block))
                    claim(not np.isfinite(alone), f"{name} of {x} is {alone}")
                    claim(np.isfinite(columns).tolist() == [False, True], f"{name} of columns {x}, ones is {columns}")

    def test_empty_vectors(self) -> None:
        """Vectors without entries have an inner product and a largest entry: zero."""
        empty = self.array(np.zeros(0), self.wide)
        agree(self.number(self.ops.dot(empty, empty)), 0.0, 0.0, "dot")
        agree(self.number(self.ops.max_abs(empty)), 0.0, 0.0, "max_abs")
        self.same_kind(self.ops.axpy(2.0, empty, self.ops.copy(empty)), empty, "axpy")

    def test_eps(self) -> None:
        """eps(x) is the spacing of numbers at 1 in the dtype of x, as a Python float."""
        for dtype in self.dtypes:
            eps = self.ops.eps(self.array(np.ones(2), dtype))
            claim(type(eps) is float and eps == EPS[dtype], f"eps of {dtype} is {eps!r}, expected {EPS[dtype]!r}")
