"""Methods and solvers as optax's transformations, against optax's own and against the doors they come from."""

import functools

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.curvature.losses import as_loss

jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
jnp = jax.numpy


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def line(p, x):
    return jnp.tanh(x @ p["w"]) + p["b"]


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.standard_normal((12, 3))), jnp.asarray(rng.standard_normal(12))
    return lg.Objective(line, optax.l2_loss, (x, y)), {"w": jnp.asarray([0.1, 0.1, 0.1]), "b": jnp.zeros(())}


def trained(objective, opt, params, batches):
    """As users of optax write it; the number of programs is told, too."""

    @jax.jit
    def step(params, state, batch):
        grads = jax.grad(lambda p: optax.l2_loss(line(p, batch[0]), batch[1]).mean())(params)
        updates, state = opt.update(grads, state, params, data=batch, value=0.0)
        return optax.apply_updates(params, updates), state

    state = opt.init(params)
    for batch in batches:
        params, state = step(params, state, batch)
    return params, state, step._cache_size()


def batches_of(objective, many):
    x, y = objective.batches[0].inputs, objective.batches[0].targets
    return [(x + 0.01 * i, y) for i in range(many)]


def test_ten_steps_of_a_method_are_one_program_and_those_of_advance(problem):
    (objective, params), method = problem, lg.LevenbergMarquardt(damping=1.0)
    batches = batches_of(objective, 10)
    ours, state, programs = trained(objective, lg.to_optax(objective, method), params, batches)
    assert programs == 1
    assert int(state.steps) == 10
    assert state.status is lg.Status.RUNNING
    run = lg.start(method, objective, params)
    for batch in batches:
        run = lg.advance(method, objective.with_data(batch), run, fresh=True)
    np.testing.assert_allclose(state.value, run.value, rtol=1e-6)
    for name in params:
        np.testing.assert_allclose(ours[name], run.params[name], rtol=1e-6)


def test_in_a_chain_the_step_is_from_the_parameters_that_the_chain_made(problem):
    objective, params = problem
    method = lg.FirstOrder(lg.optimisers.SGD(), rate=0.2)
    opt, theirs = optax.chain(lg.to_optax(objective, method), optax.scale(0.5)), optax.sgd(0.1)
    ours, _, programs = trained(objective, opt, params, batches_of(objective, 3))
    same, _, _ = trained(objective, optax.with_extra_args_support(theirs), params, batches_of(objective, 3))
    assert programs == 1
    for name in params:
        np.testing.assert_allclose(ours[name], same[name], rtol=1e-12)


def test_parts_solve_with_what_comes_in(problem):
    objective, params = problem
    parts = {"curvature": lg.GGN, "solver": lg.CG(rtol=1e-12)}
    opt = optax.chain(
        optax.clip_by_global_norm(1e-3),
        lg.to_optax(objective, **parts, damping=optax.linear_schedule(0.1, 0.2, 2)),
        optax.scale(0.5),
    )
    space, grads = lg.Space.of(params), objective.gradient(params)
    state, G, g = opt.init(params), lg.GGN(objective, params).to_dense(), space.pack(grads)
    for damping in (0.1, 0.15):
        updates, state = opt.update(grads, state, params)
        wanted = -0.5 * jnp.linalg.solve(G + damping * jnp.eye(4), 1e-3 * g / jnp.linalg.norm(g))
        np.testing.assert_allclose(space.pack(updates), wanted, rtol=1e-7)  # a schedule is in single
    assert state[1].status is lg.Status.CONVERGED
    assert int(state[1].steps) == 2
    _, _, programs = trained(objective, opt, params, batches_of(objective, 3))
    assert programs == 1


def test_identity_curvature_is_gradient_descent(problem):
    objective, params = problem
    opt = lg.to_optax(objective, curvature=lambda point: lg.Identity(point.space), damping=9.0)
    ours, _, _ = trained(objective, opt, params, batches_of(objective, 3))
    sgd, _, _ = trained(objective, optax.with_extra_args_support(optax.sgd(0.1)), params, batches_of(objective, 3))
    for name in params:
        np.testing.assert_allclose(ours[name], sgd[name], rtol=1e-12)


def test_under_flax(problem):
    nnx = pytest.importorskip("flax.nnx")
    objective, _ = problem
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def outputs(params, x):
        return nnx.merge(graph, params, rest, copy=True)(x)[:, 0]

    (x, y), fit = batches_of(objective, 1)[0], lg.Objective(outputs, optax.l2_loss, objective.batches[0])
    for method in ({"method": lg.LevenbergMarquardt(damping=1e-3)}, {"curvature": lg.GGN, "damping": 1e-6}):
        model = nnx.merge(graph, params, rest, copy=True)
        optimizer = nnx.Optimizer(model, lg.to_optax(fit, **method), wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer, x, y):
            grads = nnx.grad(lambda m: optax.l2_loss(m(x)[:, 0], y).mean())(model)
            optimizer.update(model, grads, data=(x, y))

        for _ in range(3):
            step(model, optimizer, x, y)
        wanted = np.linalg.lstsq(np.c_[x, np.ones(12)], y, rcond=None)[0]
        found = np.append(model.kernel[...], model.bias[...])
        np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_what_cannot_be_used_is_refused(problem):
    objective, params = problem
    opt = lg.to_optax(objective, lg.SGN())
    with pytest.raises(ValueError, match="needs the parameters as its third argument"):
        opt.update(params, opt.init(params))
    with pytest.raises(TypeError, match=r"objective= is an lg\.Objective, got str"):
        opt.update(params, opt.init(params), params, objective="no")
    with pytest.raises(TypeError, match="a method has parts of its own"):
        lg.to_optax(objective, lg.SGN(), damping=1.0)
    with pytest.raises(TypeError, match="A solver with a curvature is"):
        lg.to_optax(objective, lg.CG())
    with pytest.raises(TypeError, match=r"an lg\.Objective"):
        lg.to_optax(line, lg.SGN())
    with pytest.raises(TypeError, match="a function of a point"):
        lg.to_optax(objective, curvature=lg.GGN(objective, params))
    with pytest.raises(TypeError, match="needs the gradient as its first argument, got None"):
        lg.to_optax(objective).update(None, lg.to_optax(objective).init(params), params)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"w": np.ones(2), "b": np.zeros(())}, "vectors of 3 float64, those that init was given of 4 float64"),
        ({"w": np.ones(3, jnp.bfloat16), "b": np.zeros((), jnp.bfloat16)}, "of 4 bfloat16, those that init was given"),
    ],
)
def test_parameters_that_init_did_not_see_are_refused(problem, other, told):
    objective, params = problem
    opt = lg.to_optax(objective, lg.SGN())
    with pytest.raises(ValueError, match=told):
        opt.update(params, opt.init(params), jax.tree.map(jnp.asarray, other))


@pytest.mark.parametrize("parts", [{"method": lg.SGN()}, {"curvature": lg.GGN}])
def test_a_state_that_a_checkpoint_gave_back_in_arrays_of_numpy_goes_on_bit_for_bit(problem, parts):
    objective, params = problem
    opt = lg.to_optax(objective, **parts)
    _, state = opt.update(params, opt.init(params), params)
    went, came = (opt.update(params, held, params) for held in (state, jax.tree.map(np.asarray, state)))
    assert jax.tree.structure(went) == jax.tree.structure(came)
    for a, b in zip(jax.tree.leaves(went), jax.tree.leaves(came), strict=True):
        assert isinstance(b, jax.Array)
        np.testing.assert_array_equal(a, b)


def test_a_state_of_our_own_in_arrays_of_numpy_is_advised_about(problem):
    objective, params = problem
    state = jax.tree.map(np.asarray, lg.start(lg.SGN(), objective, params))
    with pytest.raises(TypeError, match=r"the state holds arrays of numpy.*load_state.*jax\.numpy\.asarray"):
        lg.advance(lg.SGN(), objective, state)
    with pytest.raises(TypeError, match=r"state\.params: the state holds arrays of numpy.*jax\.numpy\.asarray"):
        _ = state.params
    method = lg.FirstOrder(lg.optimisers.SGD(), 0.5, average=0.5)
    with pytest.raises(TypeError, match=r"averaged: the state holds arrays of numpy"):
        lg.averaged(jax.tree.map(np.asarray, lg.start(method, objective, params)))
    back = jax.tree.map(jnp.asarray, state).params  # the advice
    assert jax.tree.all(jax.tree.map(np.array_equal, back, params))


def test_a_state_prints_in_a_line(problem):
    objective, params = problem
    opt = lg.to_optax(objective, method=lg.SGN())
    seen = []

    def traced(state):
        seen.append(repr(state))
        return state.value

    state = opt.init(params)
    _, after = opt.update(params, state, params)
    jax.jit(traced)(state)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), after)
    seen += [repr(state), repr(after), repr(jax.tree.map(np.asarray, after)), repr(many)]
    assert seen[0] == "State of to_optax in a program that is being traced"
    assert seen[1].startswith("State of to_optax after 0 steps: running, value ")
    assert seen[2] == seen[3] == f"State of to_optax after 1 steps: running, value {float(after.value):.6g}"
    assert seen[4] == "2 states of to_optax"
    assert "ShapeDtypeStruct" in repr(jax.eval_shape(opt.init, params))  # whose shapes are all that it has


# losses

CLOSED = (
    "softmax_cross_entropy_with_integer_labels",
    "softmax_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "l2_loss",
    "squared_error",
)


@pytest.mark.parametrize("name", CLOSED)
def test_losses_are_recognised_with_the_mean_over_examples(name):
    rng, fn = np.random.default_rng(1), getattr(optax, name)
    z, v = 2 * rng.standard_normal((4, 3)), rng.standard_normal((4, 3))
    y = np.exp(rng.standard_normal((4, 3)))
    y = np.argmax(y, -1) if "integer" in name else y / y.sum(axis=-1, keepdims=True)
    loss = as_loss(fn)
    assert loss.convex
    assert not loss.autodiff

    def mean(z):
        return fn(z, y).mean()

    value, (gradient, product) = mean(z), jax.jvp(jax.grad(mean), (jnp.asarray(z),), (jnp.asarray(v),))
    many = loss.weight_sum(np, z, y, None)
    np.testing.assert_allclose(loss.total(np, z, y, None) / many, value, rtol=1e-12)
    np.testing.assert_allclose(loss.gradient(np, z, y, None) / many, gradient, atol=1e-12)
    np.testing.assert_allclose(loss.hessian_product(np, z, y, None, v) / many, product, atol=1e-12)


def test_a_function_around_a_known_loss_is_told(problem):
    objective, params = problem
    x, y = batches_of(objective, 1)[0]
    around = lg.Objective(line, lambda z, y: optax.l2_loss(z, y).mean(), (x, y))
    with pytest.raises(ValueError, match=r"has at trial outputs the values of lg\.losses\.SquaredError\(\)"):
        around.value(params)


def test_losses_without_a_closed_form_are_differentiated_and_some_known_to_be_convex():
    for fn in (optax.huber_loss, functools.partial(optax.huber_loss, delta=0.5), optax.losses.log_cosh):
        assert as_loss(fn).convex
        assert as_loss(fn).autodiff
    smoothed = as_loss(functools.partial(optax.softmax_cross_entropy, axis=0))
    assert smoothed.autodiff
    assert not smoothed.convex


@pytest.mark.parametrize("inner", [{"method": lg.SGN()}, {"damping": 0.1}], ids=["method", "solver"])
def test_hidden_parameters_are_advised_about(problem, inner):
    objective, params = problem
    opt = optax.partition({"own": lg.to_optax(objective, **inner), "other": optax.sgd(0.1)}, {"w": "own", "b": "other"})
    with pytest.raises(TypeError, match="hides parameters that the objective needs"):
        opt.update(params, opt.init(params), params)


def test_a_mistyped_batch_is_not_passed_over(problem):
    objective, params = problem
    (batch,) = batches_of(objective, 1)
    grads = jax.tree.map(jnp.ones_like, params)
    opt = optax.chain(optax.scale(1.0), lg.to_optax(objective))
    state = opt.init(params)
    with pytest.raises(TypeError, match=r"update was given date=, and neither data= nor objective="):
        opt.update(grads, state, params, date=batch, value=0.0)
    for given in ({"objective": objective}, {"data": batch}):  # the other keyword is for another in the chain
        jax.eval_shape(lambda g, given=given: opt.update(g, state, params, noise=0.1, **given)[0], grads)
