"""Steps are total: after the end a further one changes nothing that counts, whatever rules and blocks there are."""

import numpy as np
import pytest
from systems import benign, gaussian, host, operator

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import array

METHODS = {
    "progress": lg.CG(stop=lg.RelativeProgress(0.1, least=1), max_steps=9, keep="every"),
    "largest": lg.CG(stop=lg.MaxResidual(1e-3), max_steps=9, keep=1.3),
    "any": lg.CG(stop=lg.AnyOf(lg.MaxResidual(1e-9), lg.RelativeProgress(0.01, least=2)), max_steps=9),
    "steps": lg.CG(steps=2, keep=(1,)),
}
SIZES = (3, 4)


def problem_of(backend, kind, warm):
    blocks = lg.BlockDiagonal(tuple(operator(backend, benign(s, size)) for s, size in enumerate(SIZES)))
    shape = (sum(SIZES), 2) if kind == "columns" else (sum(SIZES),)
    start = array(backend, gaussian(5, *shape)) if warm else None
    return lg.LinearProblem(blocks, array(backend, gaussian(0, *shape)), start)


@pytest.mark.parametrize("kind", ["one", "columns", "blocks"])
@pytest.mark.parametrize("name", METHODS)
def test_steps_after_the_end_change_nothing(backend, kind, name):
    if backend.name == "jax" and (kind, name) not in (("columns", "progress"), ("blocks", "any"), ("one", "largest")):
        pytest.skip("each is a program of its own; these three have all of it")
    for warm in (False, True) if backend.name != "jax" else (True,):
        problem = problem_of(backend, kind, warm)
        method = lg.Blockwise(METHODS[name]) if kind == "blocks" else METHODS[name]
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
