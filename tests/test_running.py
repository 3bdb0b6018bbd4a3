"""Runs that go on: in one call, a step at a time, from a state, from a file, over batches, after an interrupt."""

import functools
import io
import json
import os
import random
import subprocess
import sys

import curves
import killed
import numpy as np
import pytest
from systems import FULL, in_full, spare

import linop_gn as lg
from linop_gn.methods.checkpoint import _newest

IN_CI_ON_JAX = (
    "test_a_step_for_each_batch",
    "test_a_checkpoint_is_gone_on_from",
    "test_the_place_in_the_batches_is_kept",
    "test_half_precision_in_a_file",
)

METHOD = lg.LevenbergMarquardt(damping=1e-3)


@pytest.fixture(params=["numpy", "torch", "jax"])
def ops(request):
    pytest.importorskip(request.param)
    return lg.load(request.param)


def valley(ops):
    """A long one: 25 steps."""
    return curves.rosenbrock(ops), ops.asarray(np.array([-1.2, 1.0]), "float64")


@functools.cache  # compiled once for all tests
def batches(ops, count=6):
    """A fit of tanh(x.p), its batches, and a start."""
    rng, xp = np.random.default_rng(0), ops.namespace()
    X, p = rng.standard_normal((8 * count, 3)), rng.standard_normal(3)
    pairs = [(X[i : i + 8], np.tanh(X[i : i + 8] @ p)[:, None]) for i in range(0, 8 * count, 8)]
    pairs = [tuple(ops.asarray(part, "float64") for part in pair) for pair in pairs]

    def jacobian(p, x):
        return ((1 - np.tanh(x @ p) ** 2)[:, None] * x)[:, None, :]

    supplied = jacobian if ops.calculus is None else None
    fit = lg.Objective(lambda p, x: xp.tanh(x @ p)[:, None], lg.losses.SquaredError(), None, jacobian=supplied)
    return fit, pairs, ops.asarray(np.zeros(3), "float64")


def same(one, two):
    return np.array_equal(np.asarray(one.params), np.asarray(two.params))


def test_seventeen_steps_are_seventeen_steps_however_they_are_taken(ops):
    objective, start = valley(ops)
    whole = lg.minimize(objective, start, METHOD, max_steps=17)
    state = lg.start(METHOD, objective, start)
    for _ in range(17):
        state = lg.advance(METHOD, objective, state)
    looks = []
    in_pieces = lg.minimize(objective, start, METHOD, max_steps=5, watch=[looks.append])
    in_pieces = lg.minimize(objective, None, METHOD, max_steps=12, state=in_pieces.state, watch=[looks.append], every=5)
    assert same(whole, state)
    assert same(whole, in_pieces)
    assert int(in_pieces.steps) == int(state.steps) == 17
    assert (in_pieces.status, state.status) == (lg.Status.MAX_STEPS, lg.Status.RUNNING)
    np.testing.assert_array_equal(in_pieces.history["damping"], whole.history["damping"][5:])
    assert [look.step for look in looks] == [0, 1, 2, 3, 4, 5, 5, 10, 15, 17]
    assert [look.first for look in looks[6:]] == [5, 6, 11, 16]
    on = [lg.minimize(objective, None, METHOD, state=s, max_steps=100) for s in (whole.state, state)]
    assert same(*on)
    assert on[0].succeeded
    assert repr(lg.result(state)).startswith("LevenbergMarquardt: running after 17 steps")


def test_the_same_program_for_all_steps_and_batches():
    pytest.importorskip("jax")
    from linop_gn_jax import compilations

    fit, pairs, start = batches(lg.load("jax"))
    state = lg.start(METHOD, fit.with_data(pairs[0]), start)
    for i, pair in enumerate(pairs):
        state = lg.advance(METHOD, fit.with_data(pair), state)
        if i == 1:
            before = compilations()
    assert compilations() == before
    lg.minimize(fit, start, METHOD, batches=pairs, max_steps=11)
    assert compilations()["run LevenbergMarquardt"] == before["run LevenbergMarquardt"]


def test_inside_the_users_own_scan():
    jax = pytest.importorskip("jax")
    objective, start = valley(lg.load("jax"))

    def run(state):
        return jax.lax.scan(lambda s, _: (lg.advance(METHOD, objective, s, fresh=False), s.value), state, length=17)

    with pytest.raises(TypeError, match=r"goes on by lg\.advance"):
        jax.jit(lambda s: lg.minimize(objective, None, METHOD, state=s).params)(lg.start(METHOD, objective, start))
    with pytest.raises(ValueError, match="descent was Solve, is Eigen"):
        jax.jit(lambda s: lg.advance(lg.Newton(curvature=lg.GGN), objective, s))(lg.start(METHOD, objective, start))
    state, values = jax.jit(run)(lg.start(METHOD, objective, start))
    whole = lg.minimize(objective, start, METHOD, max_steps=17)
    np.testing.assert_allclose(state.params, whole.params, rtol=1e-9)
    np.testing.assert_allclose(values, whole.history["value"][:-1], rtol=1e-7)
    fit, pairs, start = batches(lg.load("jax"))
    stacked = jax.tree.map(lambda *parts: jax.numpy.stack(parts), *pairs)
    state = lg.start(METHOD, fit.with_data(pairs[0]), start)
    state = jax.jit(lambda s, d: jax.lax.scan(lambda s, b: (lg.advance(METHOD, fit.with_data(b), s), None), s, d)[0])(
        state, stacked
    )
    by_minimize = lg.minimize(fit, start, METHOD, batches=pairs)
    np.testing.assert_allclose(state.params, by_minimize.params, rtol=1e-9)


LM, SO, D, JACOBI = lg.LevenbergMarquardt, lg.SecondOrder, lg.descents, lg.preconditioners.Jacobi()


@pytest.mark.parametrize(
    ("had", "has", "words"),
    [
        (LM(), lg.Newton(curvature=lg.GGN), "descent was Solve, is Eigen"),
        (LM(), LM(solver=lg.CG(preconditioner=JACOBI)), "descent.solver.preconditioner was None, is Jacobi"),
        (
            lg.TrustRegion(descent=D.Krylov(3)),
            lg.TrustRegion(descent=D.Krylov(4), curvature=lg.GGN),
            "descent.k was 3, is 4",
        ),
        (LM(), LM(curvature=lg.Hessian), "curvature was GGN, is Hessian"),
        (LM(), LM(x_scale="start"), "x_scale was None, is FromStart"),
        (LM(), LM(average=0.9), "average was None, is given"),
        (lg.EGN(), lg.EGN(momentum=0.9), "descent was Solve, is Momentum"),
        (lg.Newton(every=2), lg.Newton(curvature=lg.GGN), "descent.every was 2, is 1"),
        (LM(), LM(forcing=lg.EisenstatWalker()), "descent.forcing was None, is EisenstatWalker"),
        (lg.FirstOrder(), lg.FirstOrder(lg.optimisers.SGD()), "optimiser was Adam, is SGD"),
    ],
)
def test_a_state_of_other_parts_is_refused_by_name(had, has, words):
    objective, start = valley(lg.load("numpy"))
    begun = lg.replace(had, curvature=lg.GGN) if isinstance(had, lg.SecondOrder) else had
    state = lg.start(begun, objective, start)
    for go_on in (lambda: lg.advance(has, objective, state), lambda: lg.minimize(objective, None, has, state=state)):
        with pytest.raises(ValueError, match=rf"the state is of other parts: {words}\. Numbers may differ") as error:
            go_on()
        assert "begin at state.params" in str(error.value)


def test_a_state_goes_on_with_other_numbers_and_parts_that_keep_nothing():
    objective, start = valley(lg.load("numpy"))
    state = lg.minimize(objective, start, METHOD, max_steps=3).state
    other = LM(solver=lg.CG(rtol=1e-8, max_steps=7), damping=1.0, rule=lg.Marquardt(), search=lg.searches.Armijo())
    assert lg.advance(other, objective, state).steps == 4


def test_a_step_for_each_batch(ops):
    fit, pairs, start = batches(ops)
    looks = []
    run = lg.minimize(fit, start, METHOD, batches=pairs, passes=3, watch=[looks.append])
    assert (run.status, int(run.steps)) == (lg.Status.COMPLETED, 18)
    assert [look.step for look in looks] == [*range(19), 18]
    assert {look.limit for look in looks} == {18}
    state = lg.start(METHOD, fit.with_data(pairs[0]), start)
    for pair in 3 * pairs:
        state = lg.advance(METHOD, fit.with_data(pair), state, fresh=True)
    assert same(run, state)
    once = lg.minimize(fit, start, METHOD, batches=iter(pairs))
    assert (once.status, int(once.steps)) == (lg.Status.COMPLETED, 6)
    some = lg.minimize(fit, start, METHOD, batches=pairs, max_steps=8)
    assert (some.status, int(some.steps)) == (lg.Status.MAX_STEPS, 8)
    on = lg.minimize(fit, None, METHOD, batches=pairs[2:] + pairs, max_steps=10, state=some.state)
    np.testing.assert_allclose(np.asarray(on.params), np.asarray(run.params), rtol=1e-9)


def test_batches_that_cannot_be():
    fit, pairs, start = batches(lg.load("numpy"))
    with pytest.raises(ValueError, match="one-shot list_iterator"):
        lg.minimize(fit, start, METHOD, batches=iter(pairs), passes=2)
    with pytest.raises(ValueError, match="gave none on this pass"):
        lg.minimize(fit, start, METHOD, batches=[])
    with pytest.raises(ValueError, match="how often to go through batches="):
        lg.minimize(fit.with_data(pairs[0]), start, METHOD, passes=2)


@pytest.mark.parametrize("every", [None, 1, 2, 3])
@pytest.mark.parametrize("rate", [0.1, 1e60, 1e200])
def test_watched_runs_over_batches_end_in_one_closing_look(every, rate):
    """Also where a step that broke down leaves their number as it was shown last."""
    fit, pairs, start = batches(lg.load("numpy"))
    fit = lg.Objective(lambda w, x: (x @ w)[:, None], fit.loss, None, jacobian=lambda w, x: x[:, None, :])
    method, seen = lg.FirstOrder(lg.optimisers.SGD(), rate), []
    with np.errstate(all="ignore"):
        run = lg.minimize(fit, start, method, batches=pairs * 3, watch=[seen.append], every=every)
    assert run.status == (lg.Status.COMPLETED if rate < 1 else lg.Status.NONFINITE)
    assert [look.running for look in seen] == [True] * (len(seen) - 1) + [False]
    assert (seen[-1].step, seen[-1].status) == (run.steps, run.status)


# other data for curvature and acceptance


def by_hand(pairs, start, judged_on, steps):
    """Damped Gauss-Newton with Marquardt's rule by dense algebra; data of gradient, curvature, acceptance in turn."""
    p, damping, values = start, 0.1, []

    def at(p, data):
        x, y = (np.asarray(part) for part in data)
        f, J = np.tanh(x @ p), (1 - np.tanh(x @ p) ** 2)[:, None] * x
        r = f - y[:, 0]
        return 0.5 * r @ r / len(r), J.T @ r / len(r), J.T @ J / len(r)

    for i in range(steps):
        ours, bent, judge = pairs[3 * i], pairs[3 * i + 1], pairs[3 * i + 2]
        g, G = at(p, ours)[1], at(p, bent)[2]
        d = -np.linalg.solve(G + damping * np.eye(3), g)
        promised = -(g @ d + 0.5 * d @ G @ d)
        data = bent if judged_on == "curvature" else judge
        ratio = (at(p, data)[0] - at(p + d, data)[0]) / promised
        values.append(at(p, judge)[0])
        p = p + d if at(p + d, judge)[0] < at(p, judge)[0] else p
        values[-1] = min(values[-1], at(p, judge)[0])
        damping *= 1.5 if ratio < 0.25 else 2 / 3 if ratio > 0.75 else 1.0
    return p, damping, values


@lg.record
class IfLower(lg.searches.Search):
    """The whole step, if the value falls."""

    def search(self, ops, line):
        value = line.value(ops, 1.0)
        return lg.searches.Found(line, line.one, value, value < line.start, line.count + 1, value)


def apart(judged_on="acceptance"):
    parts = {"descent": lg.descents.Solve(lg.Cholesky()), "control": lg.Marquardt(), "search": IfLower()}
    return lg.SecondOrder(**parts, stopping=None, level=0.1, judged_on=judged_on)


@pytest.mark.parametrize("judged_on", ["acceptance", "curvature"])
def test_other_data_for_the_curvature_and_the_acceptance(ops, judged_on):
    spare(ops, judged_on == "acceptance")
    fit, pairs, start = batches(ops, 18)
    method = apart(judged_on)
    p, damping, values = by_hand(pairs, np.zeros(3), judged_on, 6)
    steps = [lg.StepData(*pairs[i : i + 3]) for i in range(0, 18, 3)]
    run = lg.minimize(fit, start, method, batches=steps)
    np.testing.assert_allclose(np.asarray(run.params), p, rtol=1e-9)
    np.testing.assert_allclose(run.history["value"][1:], values, rtol=1e-9)
    np.testing.assert_allclose(float(run.damping), damping, rtol=1e-12)
    assert 0 < run.history["refused"][-1] < 6  # other data do refuse

    def others(data):
        return {"curvature": fit.with_data(data.curvature), "acceptance": fit.with_data(data.acceptance)}

    state = lg.start(method, fit.with_data(steps[0].gradient), start, **others(steps[0]))
    for data in steps:
        state = lg.advance(method, fit.with_data(data.gradient), state, **others(data), fresh=True)
    assert same(run, state)
    if ops.name == "jax":
        from linop_gn_jax import compilations

        before = compilations()
        lg.advance(method, fit.with_data(steps[1].gradient), state, **others(steps[1]))
        assert compilations() == before


def test_several_minibatches_a_step(ops):
    fit, pairs, start = batches(ops)
    xp = ops.namespace()
    join = xp.cat if ops.name == "torch" else xp.concatenate
    joined = [tuple(join(parts) for parts in zip(*pairs[i : i + 3], strict=True)) for i in (0, 3)]
    whole = lg.minimize(fit, start, METHOD, batches=joined)
    run = lg.minimize(fit, start, METHOD, batches=[pairs[:3], pairs[3:]])
    assert int(run.steps) == 2
    np.testing.assert_allclose(np.asarray(run.params), np.asarray(whole.params), rtol=1e-9)
    if ops.name != "jax":  # another program
        data = [lg.StepData(pairs[:3], pairs[:2], pairs[3:])]
        assert int(lg.minimize(fit, start, apart(), batches=data, passes=2).steps) == 2
    with pytest.raises(TypeError, match="one-shot generator"):
        lg.minimize(fit, start, METHOD, batches=[(pair for pair in pairs)])


def test_other_data_all_along(tmp_path):
    fit, pairs, start = batches(lg.load("numpy"))
    ours, bent, judge = (fit.with_data(pair) for pair in pairs[:3])
    calls = []

    def counted(p, x):
        calls.append(1)
        return fit.model(p, x)

    judge = lg.Objective(counted, fit.loss, pairs[2], jacobian=fit.supplied.jacobian)
    whole = lg.minimize(ours, start, apart(), max_steps=6, curvature=bent, acceptance=judge)
    p, _, values = by_hand(6 * pairs[:3], np.zeros(3), "acceptance", 6)
    np.testing.assert_allclose(whole.params, p, rtol=1e-9)
    np.testing.assert_allclose(whole.history["value"][1:], values, rtol=1e-9)
    assert len(calls) == 7  # what is known at x is not asked again
    state = lg.start(apart(), ours, start, curvature=bent, acceptance=judge)
    for _ in range(3):
        state = lg.advance(apart(), ours, state, curvature=bent, acceptance=judge)
    assert len(calls) == 7 + 4
    lg.save_state(tmp_path / "state", state)
    state = lg.load_state(tmp_path / "state", apart(), ours, start, curvature=bent, acceptance=judge)
    assert same(lg.minimize(ours, None, apart(), state=state, max_steps=3, curvature=bent, acceptance=judge), whole)
    mixed = lg.minimize(fit, start, apart(), batches=[pairs[0]] * 6, curvature=bent, acceptance=judge)
    np.testing.assert_allclose(mixed.params, p, rtol=1e-9)


def test_a_method_that_has_one_objective_refuses_others():
    fit, pairs, start = batches(lg.load("numpy"))
    data = lg.StepData(pairs[0], acceptance=pairs[1])
    with pytest.raises(TypeError, match=r"no data of its own for the acceptance: leave lg\.StepData"):
        lg.minimize(fit, start, lg.methods.LeastSquares(), batches=[data])
    with pytest.raises(TypeError, match=r"start: LeastSquares takes no data of its own for the curvature: leave curv"):
        lg.start(lg.methods.LeastSquares(), fit.with_data(pairs[0]), start, curvature=fit.with_data(pairs[1]))
    with pytest.raises(TypeError, match=r"needs an lg\.Objective, got tuple"):
        lg.minimize(fit.with_data(pairs[0]), start, apart(), curvature=pairs[1])
    with pytest.raises(ValueError, match="judged_on must be"):
        apart("gradient")


def test_on_one_batch_no_gradient_is_taken_that_the_next_throws_away():
    fit, pairs, start = batches(lg.load("numpy"))
    calls = []
    jacobian = fit.supplied.jacobian if hasattr(fit.supplied, "jacobian") else None
    assert jacobian is not None
    counted = lg.Objective(fit.model, fit.loss, None, jacobian=lambda p, x: calls.append(1) or jacobian(p, x))
    run = lg.minimize(counted, start, METHOD, batches=pairs, passes=2)
    assert len(calls) == int(run.steps) == 12


@pytest.mark.parametrize("error", [KeyboardInterrupt, FloatingPointError])
def test_what_breaks_a_run_off_carries_its_state(ops, error):
    spare(ops, error is KeyboardInterrupt)
    objective, start = valley(ops)

    def break_off(look):
        if look.step == 7:
            raise error

    with pytest.raises(error) as caught:
        lg.minimize(objective, start, METHOD, watch=[break_off])
    assert "state=error.state" in caught.value.__notes__[0]
    assert int(caught.value.state.steps) == 7
    assert len(caught.value.result.history["value"]) == 8
    on = lg.minimize(objective, None, METHOD, state=caught.value.state)
    assert same(on, lg.minimize(objective, start, METHOD))


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_a_model_that_fails_in_the_middle_of_a_step(name):
    pytest.importorskip(name)
    ops, count = lg.load(name), [0]
    objective, start = valley(ops)
    whole = lg.minimize(objective, start, METHOD)

    def failing(*arguments):
        count[0] += 1
        if count[0] == 20:
            raise MemoryError
        return objective.model(*arguments)

    supplied = {} if objective.supplied is None else {"jacobian": objective.supplied.jacobian}
    with pytest.raises(MemoryError) as caught:
        lg.minimize(lg.Objective.from_residuals(failing, **supplied), start, METHOD)
    assert 0 < int(caught.value.state.steps) < int(whole.steps)
    assert same(lg.minimize(objective, None, METHOD, state=caught.value.state), whole)


def test_budgets():
    objective, start = valley(lg.load("numpy"))
    run = lg.minimize(objective, start, METHOD, watch=[lg.Budget(products=10)])
    assert run.status is lg.Status.STOPPED
    assert 10 <= run.products < 20
    assert lg.minimize(objective, start, METHOD, watch=[lg.Budget(seconds=0.0)]).steps == 0
    for limits in ({}, {"seconds": -1.0}, {"products": float("nan")}):
        with pytest.raises(ValueError, match="Budget: "):
            lg.Budget(**limits)
    with pytest.raises(TypeError, match=r"result: a state is what lg\.start, .* look\.whole gave, got ndarray"):
        lg.result(start)


def test_a_look_has_the_parameters_as_they_were_given():
    fit, pairs, start = batches(lg.load("numpy"))
    seen, ended = [], []

    def watch(look):
        seen.append((look.params, float(look.whole.value)))
        assert (lg.result(look.whole).steps, look.limit) == (look.step, 18)
        return look.step == 7

    run = lg.minimize(fit, start, METHOD, batches=pairs, passes=3, watch=[watch])
    assert (run.status, len(seen)) == (lg.Status.STOPPED, 8)
    assert np.array_equal(seen[0][0], start)  # in memory of its own
    assert np.array_equal(seen[-1][0], run.params)
    assert seen[-1][1] == run.value
    lg.minimize(fit, None, METHOD, batches=pairs, passes=1, state=run.state, watch=[ended.append])
    assert {look.limit for look in ended} == {ended[-1].step} == {13}
    lg.minimize(fit, start, METHOD, batches=iter(pairs), watch=[ended.append])
    assert ended[-1].limit is None
    lg.least_squares(lambda p: p["k"] - np.arange(3.0), {"k": 1.0}, watch=[ended.append])
    assert ended[-1].params.keys() == {"k"}
    with pytest.raises(AttributeError, match=r"lg\.minimize and lg\.least_squares"):
        lg.solve(lg.Diagonal(np.ones(2)), np.ones(2), watch=[lambda look: look.params])


# files


def test_a_checkpoint_is_gone_on_from(ops, tmp_path):
    objective, start = valley(ops)
    whole = lg.minimize(objective, start, METHOD)
    for limit in (3, 7, 8, 100):
        run = lg.minimize(objective, start, METHOD, max_steps=limit, checkpoint=tmp_path / "run", every=2)
    assert same(run, whole)
    assert int(run.steps) == int(whole.steps)
    again = lg.minimize(objective, start, METHOD, checkpoint=tmp_path / "run")
    assert same(again, whole)
    assert len(again.history["value"]) == 1
    state = lg.load_state(tmp_path / "run", METHOD, objective, start)
    assert same(state, whole)
    assert sorted(os.listdir(tmp_path)) == ["run", "run.before"]


def test_what_differs_is_named(tmp_path):
    objective, start = valley(lg.load("numpy"))
    path = tmp_path / "run"
    lg.minimize(objective, start, METHOD, max_steps=3, checkpoint=path)
    with pytest.raises(ValueError, match=r"method.level was 0.001, is 2.0"):
        lg.minimize(objective, start, lg.LevenbergMarquardt(damping=2.0), checkpoint=path)
    with pytest.raises(ValueError, match=r"method.descent.solver.rtol was 0.01, is 0.5"):
        lg.load_state(path, lg.LevenbergMarquardt(damping=1e-3, solver=lg.CG(rtol=0.5, max_steps=50)), objective, start)
    with pytest.raises(ValueError, match=r"parameter array was float64\[2\], is float32\[2\]"):
        lg.load_state(path, METHOD, objective, start.astype(np.float32))
    state = lg.start(METHOD, objective, start)
    with pytest.raises(ValueError, match="choose one"):
        lg.minimize(objective, None, METHOD, state=state, checkpoint=path)
    with pytest.raises(FileNotFoundError, match="no state in"):
        lg.load_state(tmp_path / "none", METHOD, objective, start)


def test_a_torn_file_gives_way_to_the_one_before(tmp_path):
    objective, start = valley(lg.load("numpy"))
    path = tmp_path / "run"
    lg.minimize(objective, start, METHOD, max_steps=6, checkpoint=path, every=1)
    path.write_bytes(path.read_bytes()[:200])
    assert lg.load_state(path, METHOD, objective, start).steps == 5
    path.unlink()  # killed between two renames
    assert lg.load_state(path, METHOD, objective, start).steps == 5
    (tmp_path / "run.before").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"nor run\.before beside it holds a whole state \(it is neither"):
        lg.load_state(path, METHOD, objective, start)


def test_where_no_checkpoint_can_be(tmp_path):
    objective, start = valley(lg.load("numpy"))
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere to write run to: make it first"):
        lg.minimize(objective, start, METHOD, checkpoint=tmp_path / "nowhere" / "run")
    with pytest.raises(IsADirectoryError, match="is a folder; give a file in it"):
        lg.save_state(tmp_path, lg.start(METHOD, objective, start))
    with pytest.raises(TypeError, match=r"result\.state, got a Result"):
        lg.save_state(tmp_path / "run", lg.minimize(objective, start, METHOD, max_steps=1))
    for held, why in (
        (b"", "it is empty"),
        (b"P", "neither an npz"),
        (8 * b"0" + b"{", "pip install|holds a"),
    ):
        (tmp_path / "run").write_bytes(held)
        with pytest.raises(ValueError, match=why):
            lg.minimize(objective, start, METHOD, checkpoint=tmp_path / "run")


def test_other_batches_than_those_of_the_checkpoint(tmp_path):
    fit, pairs, start = batches(lg.load("numpy"))
    options = {"passes": 3, "checkpoint": tmp_path / "run"}
    wrong = tuple(part[:, :2] for part in pairs[0])
    with pytest.raises(ValueError, match="matmul") as caught:
        lg.minimize(fit, start, METHOD, batches=[*pairs[:3], wrong, *pairs[4:]], **options)
    assert any("The latest batch was number 4 of pass 1." in note for note in caught.value.__notes__)
    single = [tuple(part.astype(np.float32) for part in pair) for pair in pairs]
    for given, why in (
        (pairs[:2], "there are fewer now"),
        (pairs[:4], "the number of batches in a pass was 6, is 4. Give the loader"),
        (single, r"the batch\[0\] was float64 with 2 axes, is float32 with 2 axes; the batch\[1\]"),
        ([(x, y[:, 0]) for x, y in pairs], r"the batch\[1\] was float64 with 2 axes, is float64 with 1 axes. Give"),
        (Loader(pairs), "had no state_dict"),
        (5, "got a int"),
    ):
        with pytest.raises((ValueError, TypeError), match=why):
            lg.minimize(fit, start, METHOD, batches=given, **options)
    with pytest.raises(ValueError, match="had batches=, and this one has none"):
        lg.minimize(fit.with_data(pairs[0]), start, METHOD, checkpoint=tmp_path / "run")
    whole = lg.minimize(fit, start, METHOD, batches=pairs, passes=3)
    assert same(lg.minimize(fit, start, METHOD, batches=pairs, **options), whole)  # nothing was lost


class Loader:
    """One that knows where it is, with an array in what it tells."""

    def __init__(self, pairs):
        self.pairs, self.at, self.given = pairs, 0, []

    def __iter__(self):
        start, self.at = self.at, 0
        for i in range(start, len(self.pairs)):
            self.given.append(i)
            self.at = i + 1
            yield self.pairs[i]
        self.at = 0

    def state_dict(self):
        return {"at": self.at, "shuffle": [np.arange(3), {"name": "mine"}]}

    def load_state_dict(self, state):
        assert state["shuffle"][0].tolist() == [0, 1, 2]
        self.at = state["at"]


class InAnyOrder:
    """A loader that draws its order anew for each pass."""

    def __init__(self, pairs, rng):
        self.pairs, self.rng = pairs, rng

    def __iter__(self):
        return (self.pairs[i] for i in self.rng.permutation(len(self.pairs)))


def test_other_values_of_batches_than_those_of_the_checkpoint(ops, tmp_path):
    spare(ops, False)
    fit, pairs, start = batches(ops)

    def run(name, given, steps, **more):
        return lg.minimize(fit, start, METHOD, batches=given, checkpoint=tmp_path / name, max_steps=steps, **more)

    run("run", pairs, 4)
    other = [(x, 2.0 * y) if i == 0 else (x, y) for i, (x, y) in enumerate(pairs)]
    with pytest.warns(UserWarning, match="the first batch of the pass is another than when the run took it"):
        run("run", other, 5)
    rngs = [np.random.default_rng(3) for _ in range(2)]
    for steps, rng in zip((4, 8), rngs, strict=True):
        went = run("handed", InAnyOrder(pairs, rng), steps, generators=[rng])
    assert same(went, lg.minimize(fit, start, METHOD, batches=InAnyOrder(pairs, np.random.default_rng(3)), max_steps=8))
    run("kept", InAnyOrder(pairs, np.random.default_rng(3)), 4)
    with pytest.warns(UserWarning, match=r"generators=\[...\]"):
        run("kept", InAnyOrder(pairs, np.random.default_rng(4)), 5)


@pytest.mark.parametrize("make", [list, Loader])
def test_the_place_in_the_batches_is_kept(ops, make, tmp_path):
    spare(ops, make is Loader)
    fit, pairs, start = batches(ops)
    whole = lg.minimize(fit, start, METHOD, batches=pairs, passes=3)
    for limit in (4, 6, 11, None):
        given = make(pairs)
        run = lg.minimize(
            fit, start, METHOD, batches=given, passes=3, max_steps=limit, checkpoint=tmp_path / "run", every=1
        )
    assert same(run, whole)
    assert (int(run.steps), run.status) == (18, lg.Status.COMPLETED)
    if make is Loader:
        assert given.given == [5, *range(6)]
    over = lg.minimize(fit, start, METHOD, batches=make(pairs), passes=3, checkpoint=tmp_path / "run")
    assert same(over, whole)
    assert float(over.value) == float(whole.value)  # of the last batch, still
    with pytest.raises(ValueError, match="one-shot stream of batches cannot be resumed"):
        lg.minimize(fit, start, METHOD, batches=iter(pairs), checkpoint=tmp_path / "run")


class Shuffled:
    """A loader that draws its order and its noise from the process's generators and from its own."""

    def __init__(self, pairs, rng, drawn):
        self.pairs, self.rng, self.drawn = pairs, rng, drawn

    def __iter__(self):
        for i in np.random.permutation(len(self.pairs))[self.rng.permutation(len(self.pairs))]:  # noqa: NPY002
            x, y = self.pairs[i]
            yield x + 0.1 * (random.random() + self.rng.random() + self.drawn()), y


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_random_numbers_go_on_where_they_were(name, tmp_path):
    pytest.importorskip(name)
    ops = lg.load(name)
    fit, pairs, start = batches(ops, 3)

    def run(limit, path):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        rng = np.random.default_rng(0)
        drawn, given, dropped = np.random.rand, [rng], lambda x: x + 0.1 * rng.random()
        if name == "torch":
            torch = pytest.importorskip("torch")
            torch.manual_seed(0)
            drawn, dropped = (lambda: float(torch.rand(()))), torch.nn.functional.dropout
            given.append(torch.Generator().manual_seed(0))
        supplied = {} if fit.supplied is None else {"jacobian": fit.supplied.jacobian}
        noisy = lg.Objective(lambda p, x: fit.model(p, dropped(x)), fit.loss, None, **supplied)
        options = {"batches": Shuffled(pairs, rng, drawn), "passes": 3, "max_steps": limit, "generators": given}
        return lg.minimize(noisy, start, METHOD, checkpoint=tmp_path / path, every=1, **options)

    whole = run(None, "whole")
    for limit in (2, 3, 7, None):
        again = run(limit, "run")
    assert int(again.steps) == 9
    assert same(again, whole)
    with pytest.raises(ValueError, match=r"generators, and generators= has 0: give the same"):
        lg.minimize(fit, start, METHOD, batches=pairs, passes=3, checkpoint=tmp_path / "run")
    lg.save_state(tmp_path / "state", again.state)
    before = random.random()
    lg.load_state(tmp_path / "state", METHOD, fit.with_data(pairs[0]), start)
    assert random.random() == before


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_half_precision_in_a_file(name, tmp_path):
    pytest.importorskip(name)
    ops = lg.load(name)
    objective = lg.Objective.from_residuals(lambda p: p - 3.0)
    start = ops.asarray(np.array([1.0, 2.34375]), "bfloat16")
    state = lg.start(METHOD, objective, start)
    lg.save_state(tmp_path / "state", state)
    kept = _newest(tmp_path / "state")[1]
    assert "uint16" in {str(array.dtype) for array in kept.values()}
    back = lg.load_state(tmp_path / "state", METHOD, objective, start)
    assert ops.describe(back.params)[1] == "bfloat16"
    assert bool((back.params == start).all())


def test_an_open_file_stands_for_a_path(tmp_path):
    objective, start = valley(lg.load("numpy"))
    state, file = lg.start(METHOD, objective, start), io.BytesIO()
    random.seed(0)
    lg.save_state(file, state, generators=None)
    before = random.getstate()
    with io.BytesIO(file.getvalue()) as again:
        back = lg.load_state(again, METHOD, objective, start, generators=None)
    assert random.getstate() == before
    assert np.array_equal(back.own.x, state.own.x)
    with pytest.raises(ValueError, match="without random generators"):
        lg.load_state(io.BytesIO(file.getvalue()), METHOD, objective, start)
    lg.save_state(tmp_path / "state", state)
    with (tmp_path / "state").open("rb") as again:
        assert int(lg.load_state(again, METHOD, objective, start).steps) == 0


def test_parameters_of_a_module_are_loaded_into_it():
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(3, 1).double()
    x = torch.randn(8, 3, dtype=torch.float64)
    fit = lg.Objective(module, lg.losses.SquaredError(), (x, x.sum(1, keepdim=True)))
    run = lg.minimize(fit, module, max_steps=30)
    assert float(fit.value(module)) > 10 * float(run.value)
    assert run.load_into(module) is module
    np.testing.assert_allclose(float(fit.value(module)), float(run.value), rtol=1e-9)
    with pytest.raises(ValueError, match="no parameters called bias, weight"):
        run.load_into(torch.nn.Flatten())
    with pytest.raises(TypeError, match=r"result\.params"):
        lg.minimize(*valley(lg.load("numpy")), max_steps=1).load_into(module)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize(
    ("name", "kills", "events"),
    [
        ("numpy", 25 if FULL else 6, 5000),
        pytest.param("torch", 1, 0, marks=in_full),
        pytest.param("jax", 1, 0, marks=in_full),
    ],
)
def test_a_run_that_is_killed_goes_on_to_the_same_bits(name, kills, events, tmp_path):
    """NumPy's at a random one of the calls that a step and its file take; ``nox -s kills`` has a hundred of each."""
    pytest.importorskip(name)
    command = [sys.executable, killed.__file__, name, tmp_path, kills, 0, 60, events]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["same bits"]
    assert max(told["lost"]) <= 1
    assert told["kills"] == kills
