"""A stateful test of the driver's loop: begin, advance, look, stop and re-enter in any order, beside NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ...protocols import Carry
from ...run.status import Code
from .base import QUIET, agree
from .loops import CAPACITY, Loops, case

__all__ = ["Stateful"]


class Driver(RuleBasedStateMachine):
    """A run on the backend of ``kit``, and what NumPy says of it."""

    kit: Loops

    @initialize(seed=st.integers(0, 99), columns=st.booleans(), slow=st.booleans())
    def begin(self, seed: int, columns: bool, slow: bool) -> None:
        """Start a run."""
        self.at = case(self.kit, seed, columns=columns, slow=slow)
        self.carry = self.kit.ops.begin(self.at.method, self.at.problem, CAPACITY)
        self.ticks, self.stopped = 0, False
        self.looks: list[tuple[Any, Any]] = []

    @rule(ticks=st.integers(0, 4))
    def advance(self, ticks: int) -> None:
        """Advance; a run that was stopped stays where it is."""
        self.carry = self.kit.ops.advance(self.at.method, self.at.problem, self.carry, ticks)
        self.ticks += 0 if self.stopped else ticks

    @rule(start=st.integers(0, 5))
    def look(self, start: int) -> None:
        """Read the state and some rows, and keep them."""
        seen = self.kit.ops.read(self.carry.state)
        self.looks.append((seen.x, np.array(seen.x)))
        expected = self.at.expected(self.ticks).rows
        start = min(start, len(expected) - 1)
        rows = self.kit.ops.rows(self.carry, start, len(expected))
        agree(rows, expected[start:], 1e-5 * (1 + abs(expected[start:])), f"rows from {start}")

    def _with_status(self, old: int, new: int) -> None:
        status = self.carry.state.status
        replaced = self.kit.ops.where(status == old, new, status)
        self.carry = Carry(self.carry.state._replace(status=replaced), self.carry.rows)

    @precondition(lambda self: not self.stopped)
    @rule()
    def stop(self) -> None:
        """Set the status of whatever runs, as a watcher does."""
        self._with_status(Code.RUNNING, Code.STOPPED)
        self.stopped = True

    @precondition(lambda self: self.stopped)
    @rule()
    def re_enter(self) -> None:
        """Let what was stopped go on."""
        self._with_status(Code.STOPPED, Code.RUNNING)
        self.stopped = False

    @invariant()
    def is_what_numpy_says(self) -> None:
        """The state is the expected one, and what was read before has not changed."""
        expected = self.at.expected(self.ticks)
        if self.stopped:
            held = np.where(expected.status == Code.RUNNING, Code.STOPPED, expected.status)
            expected = expected._replace(status=held)
        self.kit.state_is(self.carry.state, expected, f"after {self.ticks} ticks")
        self.kit.rows_are(self.carry, expected, f"after {self.ticks} ticks")


class Stateful(Loops):
    """The machine as a law."""

    def test_any_order_of_calls(self) -> None:
        """However advance, look, stop and re-enter follow each other, state, status and history are those of NumPy."""
        bound = type("Driver", (Driver,), {"kit": self})
        run_state_machine_as_test(bound, settings=settings(QUIET, max_examples=15, stateful_step_count=12))
