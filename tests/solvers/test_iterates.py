"""Iterates that a run keeps: those of the schedule, in the user's format, at bounded memory."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import FULL, N, benign, counted, finished, gaussian, host, operator, section, spare, tridiagonal, unit

import linop_gn as lg
from linop_gn.solvers.iterates import plan
from linop_gn.testing.strategies import array, seeds

T = tridiagonal(np.linspace(1, 3, N), np.full(N - 1, 0.7))
"""From e_1, CG's k-th iterate is known: section(T, k)."""


def scheduled(keep, last):
    if keep == "every":
        return list(range(last + 1))
    if isinstance(keep, float):
        return sorted({s for j in range(200) if (s := math.ceil(keep**j)) <= last})
    return [s for s in keep if s <= last]


@pytest.mark.parametrize("keep", ["every", 1.3, (0, 2, 3, 99), ()])
def test_the_iterates_of_the_schedule_and_the_last_one(backend, keep):
    spare(backend, FULL or keep == 1.3)
    A, counter = counted(backend, T)
    b = array(backend, unit())
    for limits in ({"max_steps": 12}, {"steps": 5}):
        solution = lg.solve(A, b, lg.CG(**({"rtol": 1e-10} if "max_steps" in limits else {}), **limits, keep=keep))
        last = int(solution.steps)
        expected = [s for s in scheduled(keep, last) if s < last] + [last]
        kept = solution.iterates
        assert np.asarray(kept.steps).tolist() == expected
        assert len(kept) == len(kept.x) == len(expected)
        for (step, x), y in zip(kept, kept.x, strict=True):
            np.testing.assert_allclose(host(backend, x), section(T, int(step)), rtol=0, atol=1e-9)
            np.testing.assert_array_equal(host(backend, x), host(backend, y))
        np.testing.assert_array_equal(host(backend, kept[-1]), host(backend, solution.x))
        assert [int(step) for step, _ in reversed(kept)] == expected[::-1]
        finished(backend)
        assert counter.calls == int(solution.products), "no product is spent on them"
        counter.calls = 0
        assert f"Kept: {len(expected)} iterates, of steps {expected[0]}" in repr(solution)


def test_keeping_changes_nothing_else(backend):
    A, b, x0 = operator(backend, benign(0)), array(backend, gaussian(0)), array(backend, gaussian(1))
    for start in (None, x0):
        plain = lg.solve(A, b, lg.CG(rtol=1e-8, max_steps=20), x0=start)
        keeping = lg.solve(A, b, lg.CG(rtol=1e-8, max_steps=20, keep=1.3), x0=start)
        np.testing.assert_array_equal(host(backend, plain.x), host(backend, keeping.x))
        assert int(plain.products) == int(keeping.products)
        assert plain.iterates is None
        assert "Kept" not in repr(plain)


def test_they_come_in_the_users_format(backend):
    xp = backend.namespace()
    b = array(backend, gaussian(0))
    tree = {"bias": b[:1], "layers": [xp.reshape(b[1:], (2, 3))]}
    A = lg.Dense(array(backend, benign(0)), symmetric=True, domain=lg.Space.of(tree))
    flat = lg.solve(A, b, lg.CG(steps=4, keep="every"))
    trees = lg.solve(A, tree, lg.CG(steps=4, keep="every"))
    assert len(trees.iterates) == len(flat.iterates) == 5
    for one, other in zip(trees.iterates.x, flat.iterates.x, strict=True):
        assert tuple(one["layers"][0].shape) == (2, 3)
        np.testing.assert_array_equal(host(backend, A.domain.pack(one)), host(backend, other))


@given(seed=seeds(), warm=st.booleans())
def test_each_iterate_has_the_model_that_history_tells(backend, seed, warm):
    matrix, b = benign(seed), gaussian(seed)
    start = array(backend, gaussian(seed + 1)) if warm else None
    solution = lg.solve(
        operator(backend, matrix), array(backend, b), lg.CG(rtol=1e-9, max_steps=20, keep="every"), x0=start
    )
    assert len(solution.iterates) == len(solution.history["model"])
    for x, model in zip(solution.iterates.x, solution.history["model"], strict=True):
        x = host(backend, x)
        assert model == pytest.approx(0.5 * x @ matrix @ x - b @ x, rel=1e-9, abs=1e-12)


def test_columns_keep_each_its_own(backend):
    vectors = np.linalg.eigh(benign(0))[1]
    b = np.stack([1e9 * vectors[:, 0], vectors[:, :3] @ np.ones(3), gaussian(0)], axis=1)
    A, method = operator(backend, benign(0)), lg.CG(rtol=1e-9, max_steps=20, keep=(1, 2, 5))
    together = lg.solve(A, array(backend, b), method)
    assert tuple(together.iterates.x[0].shape) == (N, 3)
    alone = [lg.solve(A, array(backend, b[:, j]), method) for j in range(3)]
    for j, single in enumerate(alone):
        steps = together.iterates.steps[:, j].tolist()
        own = np.asarray(single.iterates.steps).tolist()
        if own[-1] == steps[-1]:  # rounding may cost a column a step
            assert steps == own + own[-1:] * (len(steps) - len(own)), "one that ended stays at its last iterate"
        for i, step in enumerate(steps):
            if step in own:
                expected = host(backend, single.iterates.x[own.index(step)])
                np.testing.assert_allclose(
                    host(backend, together.iterates.x[i])[:, j], expected, rtol=0, atol=1e-7 * np.abs(b[:, j]).max()
                )
    assert together.iterates.steps[:, 0].tolist() == [1] * len(together.iterates)


def test_a_run_that_takes_no_step_keeps_its_start(backend):
    A = operator(backend, benign(0))
    for b in (np.zeros(N), np.full(N, np.nan)):
        kept = lg.solve(A, array(backend, b), lg.CG(max_steps=5, keep="every")).iterates
        assert np.asarray(kept.steps).tolist() == [0]
        assert not host(backend, kept[0]).any()


def test_backtracking_through_them_finds_the_best_of_another_function(backend):
    """Martens' use: back from the last iterate while the true objective falls."""
    matrix, b = benign(0), gaussian(0)
    solution = lg.solve(operator(backend, matrix), array(backend, b), lg.CG(steps=6, keep=1.3))

    def objective(x):  # the model, and a price on length that it does not know
        return 0.5 * x @ matrix @ x - b @ x + 0.3 * (x @ x)

    values = [objective(host(backend, x)) for _, x in reversed(solution.iterates)]
    best = 0
    while best + 1 < len(values) and values[best + 1] < values[best]:
        best += 1
    assert best > 0, "an earlier iterate is better"


def test_memory_is_bounded_by_the_schedule():
    assert len(plan(1.3, 250).steps) == 20
    assert plan("every", 4).steps == (0, 1, 2, 3, 4)
    assert plan((7, 9), 8).steps == (7,)


def test_inside_a_compiled_program_there_is_room_for_the_schedule(jax):
    ops = lg.load("jax")

    def program(matrix, b):
        solution = lg.solve(lg.Dense(matrix, symmetric=True), b, lg.CG(rtol=1e-10, max_steps=20, keep=1.3))
        assert repr(solution.iterates) == "at most 11 iterates"
        return solution

    solution = jax.jit(program)(array(ops, T), array(ops, unit()))
    last = int(solution.steps)
    known = [s for s in plan(1.3, 20).steps if s < last]
    assert solution.iterates.steps.tolist() == known + [last] * (11 - len(known))
    for step, x in solution.iterates:
        np.testing.assert_allclose(host(ops, x), section(T, int(step)), rtol=0, atol=1e-9)


def test_under_vmap_each_run_keeps_and_stops_by_itself(jax):
    ops, matrices, b = lg.load("jax"), [benign(0), np.eye(N)], gaussian(0)
    method = lg.CG(stop=lg.AnyOf(lg.RelativeProgress(1e-3, least=1), lg.MaxResidual(1e-12)), max_steps=9, keep=(1, 2))

    def program(matrix):
        return lg.solve(lg.Dense(matrix, symmetric=True), array(ops, b), method)

    together = jax.jit(jax.vmap(program))(array(ops, np.stack(matrices)))
    for i, matrix in enumerate(matrices):
        alone = lg.solve(lg.Dense(np.asarray(matrix), symmetric=True), b, method)
        assert together.status[i] is alone.status
        assert int(together.steps[i]) == alone.steps
        kept = dict(zip(together.iterates.steps[i].tolist(), together.iterates.x, strict=True))
        for step, x in alone.iterates:
            np.testing.assert_allclose(host(ops, kept[int(step)][i]), x, rtol=0, atol=1e-12)


def test_one_program_serves_all_data(jax):
    ops = lg.load("jax")

    def run(seed):
        method = lg.CG(rtol=10.0 ** -(3 + seed), max_steps=20, keep=1.3)
        return lg.solve(operator(ops, benign(seed)), array(ops, gaussian(seed)), method)

    run(0)
    before = ops.compilations()
    for seed in (1, 2):
        run(seed)
    assert ops.compilations() == before


@pytest.mark.parametrize("keep", ["all", 1.0, 0.5, True, 3, (1.5,), (-1,), float("inf")])
def test_schedules_that_make_no_sense_are_refused(keep):
    with pytest.raises(ValueError, match="keep must be"):
        lg.CG(max_steps=5, keep=keep)


def test_a_schedule_needs_a_limit():
    with pytest.raises(ValueError, match="needs max_steps"):
        lg.CG(keep=1.3)
