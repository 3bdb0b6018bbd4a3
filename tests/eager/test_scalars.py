"""What an ordinary step asks of eager scalars: the questions of rare ticks are left to the ticks that need them."""

import math

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.eager.scalars import EagerScalars

OPERATIONS = "where", "divide", "sqrt", "minimum", "maximum", "isfinite", "logical_not", "any", "power_of_two"
MOST = {lg.CG: 12, lg.MINRES: 30, lg.LSMR: 55, lg.LSQR: 40}
ops = lg.load("numpy")


@pytest.mark.parametrize("kind", MOST, ids=lambda kind: kind.__name__)
def test_operations_of_an_ordinary_step(monkeypatch, kind):
    calls = []
    for name in OPERATIONS:
        plain = getattr(EagerScalars, name)
        monkeypatch.setattr(EagerScalars, name, lambda *args, plain=plain: calls.append(plain) or plain(*args))
    values = np.logspace(-8, 0, 200)
    A, b = lg.Diagonal(values), values * np.random.default_rng(0).standard_normal(200)

    def taken(steps):
        calls.clear()
        assert lg.solve(A, b, kind(steps=steps)).steps == steps
        return len(calls)

    assert taken(30) - taken(20) <= 10 * MOST[kind]


@pytest.mark.parametrize("kind", [float, np.float64, lambda x: np.array([x, x])], ids=["Python", "NumPy", "columns"])
def test_numbers_of_every_kind_answer_alike(kind):
    one, two, zero, nan = map(kind, (1.0, 2.0, 0.0, math.nan))
    for found, expected in (
        (ops.divide(one, two), 0.5),
        (ops.divide(one, zero), 0.0),
        (ops.sqrt(-one), math.nan),
        (ops.sqrt(two * two), 2.0),
        (ops.minimum(one, two), 1.0),
        (ops.maximum(one, two), 2.0),
        (ops.minimum(nan, one), math.nan),
        (ops.where(one < two, one, two), 1.0),
        (ops.where(one > two, one, two), 2.0),
        (ops.isfinite(nan), False),
        (ops.isfinite(one), True),
        (ops.logical_not(one < two), False),
        (ops.any(one > two), False),
    ):
        np.testing.assert_equal(np.unique(found), [expected])
