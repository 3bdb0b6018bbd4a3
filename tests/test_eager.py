"""Loops in Python: rows belong to steps, and n steps are n times one."""

from typing import NamedTuple

import numpy as np
import pytest

from linop_gn import Status, load


class State(NamedTuple):
    total: object
    checking: bool
    status: object
    steps: object


class Row(NamedTuple):
    total: object
    ticks: object


class Countdown:
    """Adds 1 a step; with ``verify``, every third tick is one that counts no step and adds 0.25."""

    def __init__(self, stop, columns=None, verify=False):
        self.stop, self.columns, self.verify = np.asarray(stop), columns, verify

    def init(self, ops, problem):
        zeros = 0 if self.columns is None else np.zeros(self.columns, dtype=int)
        return State(float(problem) + zeros * 1.0, False, int(Status.RUNNING) + zeros, zeros)

    def step(self, ops, problem, state):
        if state.checking:
            return state._replace(total=state.total + 0.25, checking=False)
        going = np.equal(state.status, int(Status.RUNNING))
        steps = state.steps + going
        status = np.where(going & (steps >= self.stop), int(Status.COMPLETED), state.status)
        total = state.total + 1.0 * going
        if self.columns is None:
            steps, status, total = int(steps), int(status), float(total)
        checking = self.verify and int(np.max(steps)) % 2 == 0 and bool(np.any(status == int(Status.RUNNING)))
        return State(total, checking, status, steps)

    def observe(self, state):
        return Row(state.total, 7.0)


ops = load("numpy")


def outcome(carry):
    return np.asarray(carry.state.total).tolist(), np.asarray(carry.state.steps).tolist()


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("columns", [None, 3])
def test_advancing_n_is_n_times_advancing_one(columns, verify):
    stop = 5 if columns is None else [2, 5, 3]
    for ticks in range(12):
        method = Countdown(stop, columns, verify)
        at_once = ops.advance(method, 10.0, ops.begin(method, 10.0, 20), ticks)
        one_by_one = ops.begin(method, 10.0, 20)
        for _ in range(ticks):
            one_by_one = ops.advance(method, 10.0, one_by_one, 1)
        assert outcome(at_once) == outcome(one_by_one)
        np.testing.assert_array_equal(ops.rows(at_once, 0, 20), ops.rows(one_by_one, 0, 20))


def test_rows_are_those_of_steps_0_to_the_last():
    method = Countdown(4)
    carry = ops.run(method, 10.0, 20)
    assert ops.rows(carry, 0, 5)[:, 0].tolist() == [10.0, 11.0, 12.0, 13.0, 14.0]
    assert ops.rows(carry, 2, 4)[:, 0].tolist() == [12.0, 13.0]


def test_a_tick_without_a_step_writes_over_the_row_of_its_step():
    carry = ops.run(Countdown(4, verify=True), 10.0, 20)
    rows = ops.rows(carry, 0, 20)[:, 0]
    assert rows.tolist() == [10.0, 11.0, 12.25, 13.25, 14.25]


def test_rows_of_columns_hold_numbers_that_are_common_to_all():
    rows = ops.rows(ops.run(Countdown([1, 2, 3], columns=3), 0.0, 5), 0, 4)
    assert rows.shape == (4, 2, 3)
    assert (rows[:, 1] == 7.0).all()
    assert rows[-1, 0].tolist() == [1.0, 2.0, 3.0]


def test_run_goes_on_past_its_capacity_in_ticks_and_iterate_ends_where_run_does():
    method = Countdown(30, verify=True)
    carry = ops.run(method, 0.0, 30)
    assert carry.state.steps == 30
    assert carry.state == ops.iterate(method, 0.0)
