"""Steps are total: taken after the end, they change neither the answer nor what is counted (the kit has the rest)."""

import copy

import numpy as np
import pytest
from systems import N, benign, gaussian, host, operator, spare

import linop_gn as lg
from linop_gn.testing.strategies import array

METHODS = [
    lg.GLTR(radius=0.3),
    lg.GLTR(radius=1e5, steps=3),
    lg.Steihaug(radius=0.3),
    lg.Steihaug(radius=1e5, steps=2),
    lg.MultiShiftCG(dampings=[0.0, 1.0, 1e3]),
    lg.MultiShiftCG(dampings=[0.0, 1.0, 1e3], steps=2),
]
SYSTEMS = {
    "definite": (benign(0), gaussian(0)),
    "indefinite": (benign(0) - np.eye(N), gaussian(0)),
    "zero": (benign(0), np.zeros(N)),
    "not finite": (benign(0), np.full(N, np.nan)),
}


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{type(m).__name__}-{METHODS.index(m)}")
def test_steps_after_the_end_change_nothing(backend, method, system):
    spare(backend, False)
    matrix, b = SYSTEMS[system]
    problem = lg.LinearProblem(operator(backend, matrix), array(backend, b))
    state = backend.run(method, problem, method.limit(problem)).state

    def seen():
        x = host(backend, method.answer(backend, problem, copy.deepcopy(state)))
        return x, *(np.array(part) for part in (state.status, state.steps, state.products))

    before = seen()
    for _ in range(2):
        state = method.step(backend, problem, state)
    for one, two in zip(before, seen(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert np.isfinite(before[0]).all()
