"""Steps are total for blocks too: after the end a further one changes nothing that counts (the kit has the rest)."""

import numpy as np
import pytest
from systems import benign, gaussian, host, operator

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import array

METHODS = {
    "progress": lg.CG(stop=lg.RelativeProgress(0.1, least=1), max_steps=9, keep="every"),
    "any": lg.CG(stop=lg.AnyOf(lg.MaxResidual(1e-9), lg.RelativeProgress(0.01, least=2)), max_steps=9),
    "steps": lg.CG(steps=2, keep=(1,)),
}
SIZES = (3, 4)


@pytest.mark.parametrize("name", METHODS)
def test_steps_after_the_end_change_nothing(backend, name):
    if backend.name == "jax" and name != "any":
        pytest.skip("each is a program of its own; this one has all of it")
    blocks = lg.BlockDiagonal(tuple(operator(backend, benign(s, size)) for s, size in enumerate(SIZES)))
    problem = lg.LinearProblem(blocks, array(backend, gaussian(0, sum(SIZES))), array(backend, gaussian(5, sum(SIZES))))
    method = lg.Blockwise(METHODS[name])
    state = backend.iterate(method, problem)
    before = told(backend, method, problem, state)
    assert not np.any(np.equal(before[0], int(Status.RUNNING)))
    for _ in range(3):
        state = method.step(backend, problem, state)
    for one, other in zip(before, told(backend, method, problem, state), strict=True):
        np.testing.assert_array_equal(one, other)


def told(backend, method, problem, state):
    kept = []
    if state.kept is not None:
        x = backend.copy(state.x)
        found = method.iterates(backend, problem, state._replace(kept=copied(backend, state.kept)), x)
        kept = [np.asarray(found.steps), *(host(backend, x) for x in found.x)]
    counts = [np.array(backend.read(v)) for v in (state.status, state.steps, state.products, *method.observe(state))]
    return [*counts, host(backend, state.x), *kept]


def copied(backend, shelf):
    if isinstance(shelf, (list, tuple)):
        return type(shelf)(copied(backend, part) for part in shelf)
    return shelf if shelf is None else backend.copy(shelf)
