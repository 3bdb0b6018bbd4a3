"""Calling functions: directly or compiled, over columns, and over stacked data."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...records import record, static
from .base import Draws, Kit, agree, claim, drawn

__all__ = ["Programs"]


@record
class Line:
    """Data and program together: factor * x + shift."""

    factor: Any
    shift: float = static(default=0.0)


def _value(line: Line, x: Any) -> Any:
    return line.factor * x + line.shift


def _twice_all_but_the_first(v: Any) -> Any:
    return 2.0 * v[1:]


def _two_of_a_row(v: Any) -> list[Any]:
    return [2.0 * v[1:], v[None, 3:]]


def _product(pair: Any, factor: Any) -> Any:
    return {"sum": factor * (pair["a"] @ pair["b"])}


def _part_and_piece(pair: Any, factor: Any) -> tuple[Any, Any]:
    return _product(pair, factor), pair["a"] - factor


def _row_by_row(x: Any, data: tuple[Any, None]) -> Any:
    return x * data[0][:, None]


def _numbered(index: Any, a: Any) -> Any:
    return index * a


class Programs(Kit):
    """The functions that a backend runs for the toolkit."""

    @drawn(6)
    def test_call(self, data: Draws) -> None:
        """call(function, ...) is function(...), of records and arrays, with the data of this call, not of another."""
        x, a = self.normal(data, 3), float(self.normal(data))
        X, A = self.array(x, self.wide), self.array(a, self.wide)
        with self.untouched("call", X, A):
            for shift in (0.0, 1.0):
                got = self.ops.call(_value, Line(A, shift), X)
                self.same_kind(got, X, "call")
                agree(self.host(got), a * x + shift, 1e-5 * (1 + abs(a * x)), f"call with shift {shift}")

    @drawn(6)
    def test_over_columns(self, data: Draws) -> None:
        """over_columns puts the function's values of each column side by side."""
        x = self.normal(data, 4, 3)
        X = self.array(x, self.wide)
        with self.untouched("over_columns", X):
            result = self.ops.over_columns(_twice_all_but_the_first, X)
        claim(self.ops.describe(result) == self.ops.describe(self.array(x[1:], self.wide)), "over_columns: kind")
        agree(self.host(result), 2.0 * x[1:], 0.0, "over_columns")

    @drawn(3)
    def test_over_rows(self, data: Draws) -> None:
        """over_rows stacks each array that the function makes of a row along a new leading axis."""
        x = self.normal(data, 3, 4)
        X = self.array(x, self.wide)
        for together in (1, 2, 4):
            with self.untouched("over_rows", X):
                twice, last = self.ops.over_rows(_two_of_a_row, X, together)
            self.same_kind(twice, self.array(x[:, 1:], self.wide), "over_rows")
            agree(self.host(twice), 2.0 * x[:, 1:], 0.0, "over_rows")
            agree(self.host(last), x[:, None, 3:], 0.0, "over_rows")

    def test_by_parts(self) -> None:
        """by_parts is the function of all rows, where one row says nothing of another."""
        x, a = np.arange(12.0).reshape(6, 2), np.arange(6.0)
        X, A = self.array(x, self.wide), self.array(a, self.wide)
        for size in (1, 3, 4, 6, 7):
            got = self.ops.by_parts(_row_by_row, size, X, (A, None))
            self.same_kind(got, X, "by_parts")
            agree(self.host(got), x * a[:, None], 0.0, f"by_parts of {size}")
        agree(self.host(X), x, 0.0, "what by_parts was given")

    def test_describe_of(self) -> None:
        """describe_of tells shape and dtype of a function's value."""
        X = self.array(np.ones(4), self.wide)
        got = self.ops.describe_of(_twice_all_but_the_first, X)
        claim(got[:2] == ((3,), self.wide), f"describe_of says {got[:2]}, expected {((3,), self.wide)}")

    def test_afresh(self) -> None:
        """afresh gives both back."""
        x = np.arange(4.0)
        X, (V, none) = self.ops.afresh(self.array(x, self.wide), (self.array(2 * x, self.wide), None))
        claim(none is None, "afresh made something of None")
        agree(self.host(X) + self.host(V), 3 * x, 0.0, "afresh")

    @drawn(6)
    def test_sum_over_and_scan_over(self, data: Draws) -> None:
        """sum_over and scan_over add up parts over stacked data, in order, and stack the pieces."""
        a, b = self.normal(data, 5, 3), self.normal(data, 5, 3)
        stacked = {"a": self.array(a, self.wide), "b": self.array(b, self.wide)}
        factor = self.array(2.0, self.wide)
        expected, size = 2 * np.sum(a * b), 1e-5 * (1 + 2 * np.sum(abs(a * b)))
        agree(self.host(self.ops.sum_over(_product, stacked, factor)["sum"]), expected, size, "sum_over")
        total, pieces = self.ops.scan_over(_part_and_piece, stacked, factor)
        agree(self.host(total["sum"]), expected, size, "the sum of scan_over")
        agree(self.host(pieces), a - 2.0, 1e-5 * (2 + abs(a)), "the pieces of scan_over")
        numbered = self.ops.sum_over(_numbered, range(4), stacked["a"])
        agree(self.host(numbered), 6 * a, 1e-5 * (1 + 6 * abs(a)), "sum_over a range")
