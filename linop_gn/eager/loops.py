"""Scalars and loops where Python itself does the work.

Eager backends (NumPy, torch, CuPy, any array-API library) keep scalars as
Python floats, read from the device once for each inner product, or as NumPy
arrays ``(k,)`` on the host for ``k`` columns. Twelve array operations and two
reads make a CG step this way; scalars on the device, with every branch
masked, would take thirty-one.
"""

from __future__ import annotations

import itertools
import operator
import sys
from collections.abc import Callable, Hashable, Iterable
from functools import cache
from typing import Any, TypeVar

import numpy as np
import optree

from ..protocols import Array, Carry, Iteration, Vector, leave_with
from ..records import Partial
from ..run.status import Code

__all__ = ["EagerLoops"]

_NUMBERS = frozenset({float, int, bool})

R = TypeVar("R")
T = TypeVar("T")


def _is_running(state: Any) -> bool:
    status = state.status
    # the code of running is 0
    return not status if isinstance(status, int) else np.count_nonzero(status) < status.size


def _write(rows: list[Any], step: Any, row: Any) -> None:
    """The row of that step, over one that was written of it before."""
    index = step if isinstance(step, int) else int(step.max())
    if index < len(rows):
        del rows[index:]
    rows.append(row)


def _stride_of(method: Iteration) -> Any:
    """How the method takes several steps; None where it does not say."""
    return getattr(method, "stride", None) if _strides(type(method)) else None


@cache
def _strides(kind: type) -> bool:
    """Whether methods of this type say what several steps are: a subclass with a step, or rows, of its own does not."""
    for base in kind.__mro__:
        if not {"stride", "step", "observe"}.isdisjoint(vars(base)):
            return "stride" in vars(base)
    return False


def _quiet() -> Any:
    """No warnings of NumPy about what the status tells, once."""
    return np.errstate(over="ignore", invalid="ignore")


def _elements(stacked: Any) -> Iterable[Any]:
    """The numbers of a range, or the slices of a tree of arrays along the leading axis."""
    if isinstance(stacked, range):
        return stacked
    leaves, structure = optree.tree_flatten(stacked)
    return [optree.tree_unflatten(structure, [x[i, ...] for x in leaves]) for i in range(leaves[0].shape[0])]


def _summed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, None]:
    """A function of parts to sum, as one of parts and pieces (None)."""
    return function(*arguments), None


class EagerLoops:
    """The loops of :class:`~linop_gn.protocols.Loops` as Python loops over a method's steps."""

    def call(self, function: Callable[..., R], *records: Any) -> R:
        return function(*records)

    def begin(self, method: Iteration, problem: Any, capacity: int) -> Carry:
        with _quiet():
            return self._begun(method, problem)

    def _begun(self, method: Iteration, problem: Any) -> Carry:
        state = method.init(self, problem)  # type: ignore[arg-type]
        return Carry(state, [method.observe(state)])

    def advance(self, method: Iteration, problem: Any, carry: Carry, steps: int) -> Carry:
        with _quiet():
            return self._advanced(method, problem, carry, steps)

    def _advanced(self, method: Iteration, problem: Any, carry: Carry, steps: int) -> Carry:
        state, rows = carry
        del carry  # what the first state holds goes with its successor
        step, observe = method.step, method.observe
        stride = _stride_of(method) if steps == sys.maxsize else None
        try:
            for _ in range(steps):
                status = state.status
                if status != Code.RUNNING if type(status) is int else not _is_running(state):
                    break
                state = stride(self, problem, state, rows) if stride else step(self, problem, state)  # type: ignore[arg-type]
                if type(state.steps) is int and state.steps == len(rows):
                    rows.append(observe(state))
                else:
                    _write(rows, state.steps, observe(state))
        except BaseException as error:
            leave_with(error, Carry(state, rows))
            raise
        return Carry(state, rows)

    def run(self, method: Iteration, problem: Any, capacity: int) -> Carry:
        with _quiet():  # once: to enter it takes as long as some operations
            return self._advanced(
                method, problem, self._ahead(method, problem, self._begun(method, problem)), sys.maxsize
            )

    def _ahead(self, method: Iteration, problem: Any, carry: Carry) -> Carry:
        """The carry once a method has gone as far as it does by itself."""
        ahead = self.states_ahead(method, problem, carry.state)
        if ahead == ():
            return carry
        latest, rows = carry
        try:
            for state in ahead:
                latest = state
                _write(rows, state.steps, method.observe(state))
        except BaseException as error:
            leave_with(error, Carry(latest, rows))
            raise
        return Carry(latest, rows)

    def states_ahead(self, method: Any, problem: Any, state: Any) -> Iterable[Any]:
        """The states a method reaches by itself (:meth:`linop_gn.Solver.ahead`), where reading one is dear."""
        return ()

    def iterate(self, method: Iteration, problem: Any) -> Any:
        with _quiet():
            state = method.init(self, problem)  # type: ignore[arg-type]
            for after in self.states_ahead(method, problem, state):
                state = after
            stride = _stride_of(method)
            while _is_running(state):
                state = stride(self, problem, state, None) if stride else method.step(self, problem, state)  # type: ignore[arg-type]
        return state

    def implicit(
        self, run: Callable[[Any, Any], tuple[Vector, R]], method: Any, problem: Any, operator: Any
    ) -> tuple[Vector, R]:
        return run(method, problem)

    def constant(self, tree: T, advice: str) -> T:
        return tree

    def rows(self, carry: Carry, start: int, stop: int) -> Any:
        wanted = carry.rows[start:stop]
        if wanted and (
            _NUMBERS.issuperset(map(type, wanted[0])) or all(isinstance(x, (float, int)) for x in wanted[0])
        ):
            numbers = np.fromiter(itertools.chain.from_iterable(wanted), float)  # 10 times quicker than np.array
            return numbers.reshape(len(wanted), -1)
        return np.asarray([np.broadcast_arrays(*(np.asarray(value, dtype=float) for value in row)) for row in wanted])

    def over_columns(self, function: Callable[[Vector], Vector], columns: Vector, together: int = 1) -> Vector:
        results = [function(columns[:, j]) for j in range(columns.shape[1])]
        return self.namespace().stack(results, axis=1)  # type: ignore[attr-defined]

    def over_rows(self, function: Callable[[Vector], list[Array]], rows: Array, together: int = 1) -> list[Array]:
        results = [function(rows[i, ...]) for i in range(rows.shape[0])]
        return [self.namespace().stack(parts) for parts in zip(*results, strict=True)]  # type: ignore[attr-defined]

    def sum_over(self, function: Callable[..., R], stacked: Any, *shared: Any) -> R:
        return self.scan_over(Partial(_summed, function), stacked, *shared)[0]  # type: ignore[no-any-return]

    def scan_over(self, function: Callable[..., tuple[Any, Any]], stacked: Any, *shared: Any) -> tuple[Any, Any]:
        total, pieces = None, []
        for element in _elements(stacked):
            part, piece = function(element, *shared)
            total = part if total is None else optree.tree_map(operator.add, total, part)
            pieces.append(piece)
        return total, optree.tree_map(lambda *rows: self.namespace().stack(rows), *pieces)  # type: ignore[attr-defined]

    def by_parts(self, function: Callable[..., Any], size: int, x: Any, *data: Any) -> Any:
        given: Any = (x, *data)
        rows = x.shape[0]
        parts = [
            function(*optree.tree_map(lambda leaf, i=i: leaf[i : min(i + size, rows), ...], given))
            for i in range(0, rows, size)
        ]
        return self.namespace().concat(parts, axis=0)  # type: ignore[attr-defined]

    def afresh(self, x: T, arguments: R) -> tuple[T, R]:
        return x, arguments

    def describe_of(self, function: Callable[..., Any], *records: Any) -> tuple[tuple[int, ...], str, Hashable]:
        return self.describe(function(*records))  # type: ignore[attr-defined, no-any-return]
