"""Loops: begin, advance, run, iterate and rows, against the same iteration in NumPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from ...protocols import Carry
from ...run.status import Code
from .base import EPS, Draws, Kit, NDArray, agree, claim, drawn
from .methods import Expected, Richardson, System, by_numpy

__all__ = ["Case", "Loops", "case"]

CAPACITY = 8


class Case(NamedTuple):
    """A method with its problem, on the backend and in NumPy."""

    method: Richardson
    problem: System
    matrix: NDArray
    rhs: NDArray
    limit: Any
    slow: bool

    def expected(self, ticks: int) -> Expected:
        """The state and the rows after so many ticks."""
        return by_numpy(self.matrix, self.rhs, 0.5, self.limit, self.slow, ticks)

    @property
    def ticks(self) -> int:
        """How many ticks a whole run takes."""
        return int(np.max(self.limit)) * (2 if self.slow else 1)


def case(kit: Kit, seed: int, columns: bool = False, slow: bool = False, host: bool = False) -> Case:
    """A well-conditioned system of four unknowns; its columns have limits of their own."""
    rng = np.random.default_rng(seed)
    half = rng.standard_normal((4, 4)) / 4
    matrix, rhs = half @ half.T + np.eye(4), rng.standard_normal((4, 3) if columns else 4)
    matrix, rhs = (m.astype(kit.wide).astype(np.float64) for m in (matrix, rhs))
    limit = np.array([2, 5, 3]) if columns else 5
    problem = System(kit.array(matrix, kit.wide), kit.array(rhs, kit.wide), host)
    return Case(Richardson(0.5, limit, slow), problem, matrix, rhs, limit, slow)


class Loops(Kit):
    """What the one driver asks of a backend."""

    def _case(self, data: Draws) -> Case:
        flags = st.booleans()
        return case(self, data.draw(st.integers(0, 99)), columns=data.draw(flags), slow=data.draw(flags))

    def state_is(self, state: Any, expected: Expected, what: str) -> None:
        """Fail unless the state is the expected one."""
        size = 200 * EPS[self.wide] * max(1.0, float(abs(expected.rows).max()))
        agree(self.number(state.status), expected.status, 0.0, f"{what}: status")
        agree(self.number(state.steps), expected.steps, 0.0, f"{what}: steps")
        agree(self.host(state.x), expected.x, size, f"{what}: x")
        agree(self.number(state.norm), expected.norm, size, f"{what}: norm")

    def rows_are(self, carry: Carry, expected: Expected, what: str) -> None:
        """Fail unless the history is the expected one, row for row."""
        rows = self.ops.rows(carry, 0, len(expected.rows))
        agree(rows, expected.rows, 1e-5 * (1 + abs(expected.rows)), f"{what}: rows")

    def same_state(self, one: Any, two: Any, what: str) -> None:
        """Fail unless two states hold the same numbers."""
        for name, a, b in zip(type(one)._fields, self.ops.read(one), self.ops.read(two), strict=True):
            agree(a, b, 0.0, f"{what}: {name}")

    @drawn(6)
    def test_begin(self, data: Draws) -> None:
        """begin gives the initial state and its row, row 0."""
        at = self._case(data)
        carry = self.ops.begin(at.method, at.problem, CAPACITY)
        self.same_kind(carry.state.x, at.problem.rhs, "begin")
        self.state_is(carry.state, at.expected(0), "after begin")
        self.rows_are(carry, at.expected(0), "after begin")

    @drawn(15)
    def test_advance(self, data: Draws) -> None:
        """advance(n) is n times advance(1), in state and rows, bit for bit; and each is what NumPy makes of it."""
        at, chunks = self._case(data), data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
        ops = self.ops
        at_once, one_by_one = (ops.begin(at.method, at.problem, CAPACITY) for _ in range(2))
        for chunk in chunks:
            at_once = ops.advance(at.method, at.problem, at_once, chunk)
            for _ in range(chunk):
                one_by_one = ops.advance(at.method, at.problem, one_by_one, 1)
        expected = at.expected(sum(chunks))
        what = f"after advance by {chunks}"
        self.state_is(at_once.state, expected, what)
        self.rows_are(at_once, expected, what)
        self.same_state(at_once.state, one_by_one.state, what)
        last = len(expected.rows)
        agree(ops.rows(at_once, 0, last), ops.rows(one_by_one, 0, last), 0.0, f"{what}, one by one: rows")

    @drawn(6)
    def test_advance_past_the_end(self, data: Draws) -> None:
        """Once a status is set, to advance changes nothing: not x, not the status, not the rows."""
        at, ops = self._case(data), self.ops
        carry = ops.advance(at.method, at.problem, ops.begin(at.method, at.problem, CAPACITY), 40)
        expected = at.expected(40)
        self.state_is(carry.state, expected, "at the end")
        final, rows = ops.read(carry.state), np.array(ops.rows(carry, 0, len(expected.rows)))
        for more in (1, 3):
            carry = ops.advance(at.method, at.problem, carry, more)
            self.same_state(carry.state, final, f"{more} ticks after the end")
            agree(ops.rows(carry, 0, len(rows)), rows, 0.0, f"{more} ticks after the end: rows")

    @drawn(6)
    def test_run(self, data: Draws) -> None:
        """run goes to the end, however many ticks that takes, and keeps rows 0 .. steps."""
        at = self._case(data)
        carry = self.ops.run(at.method, at.problem, int(np.max(at.limit)))
        self.state_is(carry.state, at.expected(at.ticks), "after run")
        self.rows_are(carry, at.expected(at.ticks), "after run")

    @drawn(6)
    def test_iterate(self, data: Draws) -> None:
        """iterate ends in the state that run ends in."""
        at = self._case(data)
        self.state_is(self.ops.iterate(at.method, at.problem), at.expected(at.ticks), "after iterate")

    @drawn(6)
    def test_data_from_the_host(self, data: Draws) -> None:
        """A problem that draws data from the host runs in Python, with the same result."""
        at = case(self, data.draw(st.integers(0, 99)), columns=data.draw(st.booleans()), host=True)
        carry = self.ops.run(at.method, at.problem, CAPACITY)
        self.state_is(carry.state, at.expected(at.ticks), "after run")
        self.rows_are(carry, at.expected(at.ticks), "after run")
        self.state_is(self.ops.iterate(at.method, at.problem), at.expected(at.ticks), "after iterate")

    def test_rows(self) -> None:
        """Rows can be read in any slice."""
        at = case(self, 0)
        carry, expected = self.ops.run(at.method, at.problem, 5), at.expected(5).rows
        claim(len(expected) == 6, "there are six rows")
        for start in range(6):
            for stop in range(start + 1, 7):
                rows = self.ops.rows(carry, start, stop)
                agree(rows, expected[start:stop], 1e-5 * (1 + expected[start:stop]), f"rows {start} .. {stop}")

    @drawn(6)
    def test_stop_and_re_enter(self, data: Draws) -> None:
        """A status that is set from outside stops a run; taken back, the run goes on as if nothing had been."""
        at, ops = self._case(data), self.ops
        before, after = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 6))
        carry = ops.advance(at.method, at.problem, ops.begin(at.method, at.problem, CAPACITY), before)
        status, at_stop = carry.state.status, at.expected(before)
        stopped = ops.where(status == Code.RUNNING, Code.STOPPED, status)
        carry = ops.advance(at.method, at.problem, Carry(carry.state._replace(status=stopped), carry.rows), 3)
        held = np.where(at_stop.status == Code.RUNNING, Code.STOPPED, at_stop.status)
        self.state_is(carry.state, at_stop._replace(status=held), "stopped, and then advanced,")
        status = carry.state.status
        again = ops.where(status == Code.STOPPED, Code.RUNNING, status)
        carry = ops.advance(at.method, at.problem, Carry(carry.state._replace(status=again), carry.rows), after)
        self.state_is(carry.state, at.expected(before + after), "gone on after a stop")
        self.rows_are(carry, at.expected(before + after), "gone on after a stop")
