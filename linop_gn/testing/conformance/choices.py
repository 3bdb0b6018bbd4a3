"""Choices: select, mask, branch and either, for the whole vector and column by column."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...protocols import unchanged
from .base import Draws, Kit, agree, claim, drawn

__all__ = ["Choices"]

PATTERNS: list[Any] = [True, False, [True, True], [False, False], [True, False], [False, True]]


class Choices(Kit):
    """What a solver writes instead of ``if``."""

    def _pattern(self, data: Draws) -> tuple[Any, tuple[int, ...]]:
        pattern = np.asarray(data.draw(st.sampled_from(PATTERNS)))
        return pattern, (4, *pattern.shape)

    @drawn(12)
    def test_select(self, data: Draws) -> None:
        """select(condition, x, y) is x where it holds and y elsewhere, whatever the rejected holds; neither changes."""
        (pattern, shape), dtype = self._pattern(data), data.draw(st.sampled_from(self.dtypes))
        x = self.normal(data, *shape, dtype=dtype)
        for bad in (math.nan, math.inf):
            X, Y = self.array(x, dtype), self.array(np.full(shape, bad), dtype)
            condition = self.truth(pattern, X)
            with self.untouched("select", X, Y):
                for first, second, expected in ((X, Y, np.where(pattern, x, bad)), (Y, X, np.where(pattern, bad, x))):
                    chosen = self.ops.select(condition, first, second)
                    self.same_kind(chosen, X, "select")
                    agree(self.host(chosen), expected, 0.0, f"select by {pattern}")

    @drawn(12)
    def test_mask(self, data: Draws) -> None:
        """mask(condition, x) is x where it holds and exact zeros elsewhere, whatever x holds; x does not change."""
        (pattern, shape), dtype = self._pattern(data), data.draw(st.sampled_from(self.dtypes))
        x = self.normal(data, *shape, dtype=dtype)
        x[1] = data.draw(st.sampled_from([math.nan, math.inf, 1.0]))
        X = self.array(x, dtype)
        with self.untouched("mask", X):
            masked = self.ops.mask(self.truth(pattern, X), X)
            self.same_kind(masked, X, "mask")
            agree(self.host(masked), np.where(pattern, x, 0.0), 0.0, f"mask by {pattern}")

    @drawn(12)
    def test_branch(self, data: Draws) -> None:
        """branch and either take a side for each column, though both sides may consume their operands."""
        pattern, shape = self._pattern(data)
        x, y = self.normal(data, *shape), self.normal(data, *shape)
        s = self.normal(data, *shape[1:])
        X, Y = self.array(x, self.wide), self.array(y, self.wide)
        ops = self.ops

        def then(v: Any, w: Any, t: Any) -> tuple[Any, Any]:
            return ops.axpy(1.0, w, ops.scale(2.0, v)), t + 1.0

        def otherwise(v: Any, w: Any, t: Any) -> tuple[Any, Any]:
            return ops.subtract(v, w), t - 1.0

        condition, number = self.truth(pattern, X), self.scalar(s, X)
        for choose in (ops.branch, ops.either):
            vector, scalar = choose(condition, then, otherwise, ops.copy(X), ops.copy(Y), number)
            self.same_kind(vector, X, "branch")
            agree(self.host(vector), np.where(pattern, 2 * x + y, x - y), 1e-5 * (2 + abs(x) + abs(y)), f"by {pattern}")
            agree(self.number(scalar), np.where(pattern, s + 1, s - 1), 1e-5 * (2 + abs(s)), f"scalars by {pattern}")

    @drawn(12)
    def test_branch_or_unchanged(self, data: Draws) -> None:
        """branch returns the operands where the other side is ``unchanged``, though the first may consume them."""
        pattern, shape = self._pattern(data)
        x, s = self.normal(data, *shape), self.normal(data, *shape[1:])
        X, ops = self.array(x, self.wide), self.ops

        def then(v: Any, t: Any) -> tuple[Any, Any]:
            return ops.scale(2.0, v), t + 1.0

        vector, scalar = ops.branch(self.truth(pattern, X), then, unchanged, ops.copy(X), self.scalar(s, X))
        self.same_kind(vector, X, "branch")
        agree(self.host(vector), np.where(pattern, 2 * x, x), 1e-5 * abs(x), f"by {pattern}, or unchanged")
        agree(self.number(scalar), np.where(pattern, s + 1, s), 1e-5 * (2 + abs(s)), f"scalars by {pattern}")

    def test_branch_runs_one_side(self) -> None:
        """Only the side that is taken is run, where the condition is one scalar."""
        X, ran = self.array(np.ones(3), self.wide), list[str]()

        def side(name: str) -> Any:
            def run(v: Any) -> tuple[Any]:
                ran.append(name)
                return (v,)

            return run

        for taken, name in ((True, "then"), (False, "otherwise")):
            ran.clear()
            self.ops.branch(self.truth(taken, X), side("then"), side("otherwise"), X)
            claim(ran == [name], f"the condition is {taken}, and the sides that ran are {ran}")
