"""Scalars and loops where Python itself does the work.

Eager backends (NumPy, torch, CuPy, any array-API library) keep scalars as
Python floats, read from the device once for each inner product, or as NumPy
arrays ``(k,)`` on the host for ``k`` columns. Twelve array operations and two
reads make a CG step this way; scalars kept on the device, with every branch
masked, would take thirty-one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np

from .protocols import Carry, Method, Scalar, Vector
from .status import Status

__all__ = ["EagerLoops", "EagerScalars"]

R = TypeVar("R")


_HostArray = np.ndarray
_RUNNING = int(Status.RUNNING)


def _is_running(state: Any) -> bool:
    status = state.status
    return status == _RUNNING if isinstance(status, int) else bool(np.any(np.equal(status, _RUNNING)))


def _quiet() -> Any:
    """No warnings of NumPy about what the status tells, once."""
    return np.errstate(over="ignore", invalid="ignore")


class EagerScalars:
    """Scalar arithmetic on Python numbers and host arrays ``(k,)``; never raises, never warns."""

    def scalar(self, value: Any, like: Vector) -> Scalar:
        columns = like.shape[1:]
        return np.full(columns, value) if columns else value

    def item(self, x: Any) -> Scalar:
        return float(x)

    def where(self, condition: Scalar, x: Scalar, y: Scalar) -> Scalar:
        if isinstance(condition, _HostArray):
            return np.where(condition, x, y)
        return x if condition else y

    def divide(self, x: Scalar, y: Scalar) -> Scalar:
        if isinstance(x, _HostArray) or isinstance(y, _HostArray):
            with np.errstate(all="ignore"):
                return np.where(np.equal(y, 0), 0.0, np.divide(x, np.where(np.equal(y, 0), 1.0, y)))
        return x / y if y != 0 else 0.0

    def sqrt(self, x: Scalar) -> Scalar:
        if isinstance(x, _HostArray):
            with np.errstate(all="ignore"):
                return np.sqrt(x)
        return math.sqrt(x) if x >= 0 else math.nan

    def minimum(self, x: Scalar, y: Scalar) -> Scalar:
        if isinstance(x, _HostArray) or isinstance(y, _HostArray):
            return np.minimum(x, y)
        return x if x <= y or x != x else y

    def maximum(self, x: Scalar, y: Scalar) -> Scalar:
        if isinstance(x, _HostArray) or isinstance(y, _HostArray):
            return np.maximum(x, y)
        return x if x >= y or x != x else y

    def isfinite(self, x: Scalar) -> Scalar:
        return np.isfinite(x) if isinstance(x, _HostArray) else math.isfinite(x)

    def logical_not(self, x: Scalar) -> Scalar:
        return np.logical_not(x) if isinstance(x, _HostArray) else not x

    def any(self, x: Scalar) -> Scalar:
        return bool(np.any(x))

    def power_of_two(self, x: Scalar, like: Vector) -> Scalar:
        limit = self._exponent_limit(like)
        if isinstance(x, _HostArray):
            _, exponent = np.frexp(x)
            usable = np.isfinite(x) & (x != 0)
            return np.where(usable, np.ldexp(1.0, np.clip(exponent - 1, -limit, limit)), 1.0)
        if x == 0 or not math.isfinite(x):
            return 1.0
        return math.ldexp(1.0, min(max(math.frexp(x)[1] - 1, -limit), limit))

    def _exponent_limit(self, like: Vector) -> int:
        """The largest e for which 2^e and 2^-e are both normal numbers of the dtype of ``like``."""
        raise NotImplementedError


class EagerLoops:
    """The loops of :class:`~linop_gn.protocols.Loops` as Python loops over a method's steps."""

    def call(self, function: Callable[..., R], *records: Any) -> R:
        return function(*records)

    def begin(self, method: Method, problem: Any, capacity: int) -> Carry:
        with _quiet():
            state = method.init(self, problem)  # type: ignore[arg-type]
        return Carry(state, [method.observe(state)])

    def advance(self, method: Method, problem: Any, carry: Carry, steps: int) -> Carry:
        state, rows = carry
        with _quiet():
            for _ in range(steps):
                if not _is_running(state):
                    break
                state = method.step(self, problem, state)  # type: ignore[arg-type]
                index = state.steps if isinstance(state.steps, int) else int(np.max(state.steps))
                if index < len(rows):
                    del rows[index:]
                rows.append(method.observe(state))
        return Carry(state, rows)

    def run(self, method: Method, problem: Any, capacity: int) -> Carry:
        carry = self.begin(method, problem, capacity)
        while _is_running(carry.state):
            carry = self.advance(method, problem, carry, capacity + 1)
        return carry

    def iterate(self, method: Method, problem: Any) -> Any:
        with _quiet():
            state = method.init(self, problem)  # type: ignore[arg-type]
            while _is_running(state):
                state = method.step(self, problem, state)  # type: ignore[arg-type]
        return state

    def implicit(
        self, run: Callable[[Any, Any], tuple[Vector, R]], method: Any, problem: Any, operator: Any
    ) -> tuple[Vector, R]:
        return run(method, problem)

    def rows(self, carry: Carry, start: int, stop: int) -> Any:
        wanted = carry.rows[start:stop]
        if wanted and all(isinstance(value, (float, int)) for value in wanted[0]):
            numbers = np.fromiter(itertools.chain.from_iterable(wanted), float)  # 10 times quicker than np.array
            return numbers.reshape(len(wanted), -1)
        return np.asarray([np.broadcast_arrays(*(np.asarray(value, dtype=float) for value in row)) for row in wanted])

    def over_columns(self, function: Callable[[Vector], Vector], columns: Vector) -> Vector:
        results = [function(columns[:, j]) for j in range(columns.shape[1])]
        return self.namespace().stack(results, axis=1)  # type: ignore[attr-defined]

    def sum_over(self, function: Callable[..., R], stacked: Any, *shared: Any) -> R:
        raise NotImplementedError("eager backends keep batches apart and sum over them in Python")

    def scan_over(self, function: Callable[..., tuple[Any, Any]], stacked: Any, *shared: Any) -> tuple[Any, Any]:
        raise NotImplementedError("eager backends keep batches apart and go over them in Python")

    def describe_of(self, function: Callable[..., Any], *records: Any) -> tuple[tuple[int, ...], str, Hashable]:
        return self.describe(function(*records))  # type: ignore[attr-defined, no-any-return]
