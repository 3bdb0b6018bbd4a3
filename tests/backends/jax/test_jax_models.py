"""Modules of the ecosystem as plain functions of parameters and inputs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linop_gn_jax import backend

import linop_gn as lg

adapt = backend.calculus.adapt


def model(params, x):
    return x @ params


def test_functions_stay_themselves():
    assert adapt(model) is model


def test_a_linen_module_is_applied():
    nn = pytest.importorskip("flax.linen")
    module = nn.Sequential([nn.Dense(4), nn.tanh, nn.Dense(2)])
    x = jnp.ones((3, 5))
    variables = module.init(jax.random.key(0), x)
    adapted = adapt(module)
    assert adapt(module) is adapted
    np.testing.assert_array_equal(adapted(variables, x), module.apply(variables, x))
    np.testing.assert_array_equal(adapted(variables["params"], x), module.apply(variables, x))
    linear = backend.calculus.linearize(
        lambda leaves: adapted(jax.tree.unflatten(jax.tree.structure(variables), leaves), x),
        jax.tree.leaves(variables),
        jnp.ones_like,
    )
    assert len(linear.gradient) == 4


def test_a_linen_module_takes_a_tuple_as_several_inputs():
    nn = pytest.importorskip("flax.linen")

    class Bilinear(nn.Module):
        sizes: list  # makes the module unhashable

        @nn.compact
        def __call__(self, x, y):
            return nn.Dense(self.sizes[0])(x) * y

    module = Bilinear([2])
    x, y = jnp.ones((3, 4)), jnp.full((3, 2), 2.0)
    variables = module.init(jax.random.key(0), x, y)
    assert adapt(module) is adapt(module)
    np.testing.assert_array_equal(adapt(module)(variables, (x, y)), module.apply(variables, x, y))


def test_statistics_of_a_linen_module_are_not_trained():
    nn = pytest.importorskip("flax.linen")
    module, x = nn.BatchNorm(use_running_average=True), jnp.ones((3, 5))
    variables = dict(module.init(jax.random.key(0), x))
    with pytest.raises(TypeError, match=r"BatchNorm, hold batch_stats beside what is trained.*variables\.pop"):
        adapt(module)(variables, x)
    params = variables.pop("params")  # the advice
    adapt(lambda params, x: module.apply({"params": params, **variables}, x))(params, x)


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: partial(f, mutable=False), jax.jit, jax.checkpoint])
def test_nor_by_the_method_of_a_linen_module(wrap):
    nn = pytest.importorskip("flax.linen")
    module, x = nn.Sequential([nn.Dense(1), nn.BatchNorm(use_running_average=True)]), jnp.ones((3, 5))
    variables, apply = dict(module.init(jax.random.key(0), x)), wrap(module.apply)
    fit = lg.Objective(apply, lg.losses.SquaredError(), (x, jnp.zeros((3, 1))))
    for ask in (fit.gradient, fit.value, lambda v: lg.minimize(fit, v, max_steps=1)):
        with pytest.raises(TypeError, match=r"Sequential, hold batch_stats beside what is trained.*variables\.pop"):
            ask(variables)
    assert adapt(apply) is adapt(apply)
    assert adapt(module.apply) is adapt(module.apply)  # or compiled code is not found again
    dense = nn.Dense(1)
    variables = dense.init(jax.random.key(0), x)
    np.testing.assert_array_equal(adapt(wrap(dense.apply))(variables, x), dense.apply(variables, x))


def test_modules_that_hold_their_parameters_are_refused_with_advice():
    nnx = pytest.importorskip("flax.nnx")
    with pytest.raises(TypeError, match=r"Linear is a flax nnx module.*nnx\.split"):
        adapt(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    equinox = pytest.importorskip("equinox")
    with pytest.raises(TypeError, match=r"MLP is an equinox module.*equinox\.partition"):
        adapt(equinox.nn.MLP(2, 1, 4, 1, key=jax.random.key(0)))


@pytest.mark.parametrize("layer", ["BatchNorm", "Dropout"])
def test_linen_by_its_advice_in_train_mode(layer):
    linen = pytest.importorskip("flax.linen")

    class Network(linen.Module):
        @linen.compact
        def __call__(self, x):
            options = {"BatchNorm": {"use_running_average": False}, "Dropout": {"rate": 0.5, "deterministic": False}}
            return linen.Dense(1)(getattr(linen, layer)(**options[layer])(x))

    module, x, key = Network(), jnp.linspace(-1.0, 1.0, 12).reshape(6, 2), jax.random.key(0)
    variables = dict(module.init({"params": key, "dropout": key}, x))
    for given in (dict(variables), params := variables.pop("params")):
        with pytest.raises(Exception, match=r"immutable|PRNG|empty") as raised:
            lg.Objective(module, lg.losses.SquaredError(), (x, None)).gradient(given)
        assert "module.apply({'params': params, **variables}, x, mutable" in " ".join(raised.value.__notes__)

    def model(params, x):
        return module.apply({"params": params, **variables}, x, mutable=list(variables), rngs={"dropout": key})[0]

    fit = lg.Objective(model, lg.losses.SquaredError(), (x, None))
    assert np.isfinite(fit.value(params))


def test_nnx_by_its_advice_in_train_mode():
    nnx = pytest.importorskip("flax.nnx")

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first, self.norm = nnx.Linear(2, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
            self.drop, self.last = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)

        def __call__(self, x):
            return self.last(self.drop(jnp.tanh(self.norm(self.first(x)))))

    module, x = Network(nnx.Rngs(0)), jnp.linspace(-1.0, 1.0, 12).reshape(6, 2)
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    data = x, jnp.zeros((6, 1))
    fit = lg.Objective(lambda p, x: nnx.merge(graph, p, rest, copy=True)(x), lg.losses.SquaredError(), data)
    gradient = fit.gradient(params)
    for operator in (lg.GGN, lg.Hessian):
        assert jax.tree.structure(operator(fit, params) @ gradient) == jax.tree.structure(params)
    assert float(fit.value(params)) == float(fit.with_data(data).value(params))  # the same draws, no statistics kept
    for given in (module, nnx.state(module)):
        with pytest.raises(TypeError, match=r"BatchStat, RngCount, RngKey beside what is trained.*copy=True"):
            fit.gradient(given)
    outside = lg.Objective(lambda p, x: nnx.merge(graph, p, rest)(x), lg.losses.SquaredError(), data)
    with pytest.raises(Exception, match="Cannot mutate") as told:
        outside.gradient(params)
    assert any("copy=True" in note for note in told.value.__notes__)


def test_equinox_modules_are_parameters():
    equinox = pytest.importorskip("equinox")
    network, x = equinox.nn.MLP(2, 1, 4, 1, key=jax.random.key(0)), jnp.ones((4, 2))
    params, static = equinox.partition(network, equinox.is_inexact_array)
    data = x, jnp.zeros((4, 1))
    whole = lg.Objective(lambda net, x: jax.vmap(net)(x), lg.losses.SquaredError(), data)
    apart = lg.Objective(lambda p, x: jax.vmap(equinox.combine(p, static))(x), lg.losses.SquaredError(), data)
    found, right = whole.gradient(network), apart.gradient(params)
    assert found.activation is network.activation
    assert equinox.tree_equal(equinox.filter(found, equinox.is_inexact_array), right)
    assert equinox.tree_equal(whole.gradient(network), lg.GGN(whole, network).domain.unpack(whole.at(network).gradient))
    result = lg.minimize(whole, network, max_steps=2)
    assert jax.vmap(result.params)(x).shape == (4, 1)
    with pytest.raises(TypeError, match=r"equinox\.partition\(module, equinox\.is_inexact_array\)"):
        whole.gradient(equinox.tree_at(lambda net: net.layers[0].bias, network, jnp.arange(4)))


def _stand_in():
    """A module as equinox registers its: a tree of fields, arrays and functions alike."""

    class Module:
        def __init__(self, *fields):
            self.weight, self.activation, self.rate = fields

        def __call__(self, x):
            return self.activation(self.rate * (x @ self.weight))

    Module.__module__ = "equinox._module"
    keys = tuple(map(jax.tree_util.GetAttrKey, ("weight", "activation", "rate")))

    def fields(module):
        return tuple(zip(keys, (module.weight, module.activation, module.rate), strict=True)), None

    jax.tree_util.register_pytree_with_keys(Module, fields, lambda _, made: Module(*made))
    return Module


def test_functions_and_flags_of_a_module_are_structure():
    Module = _stand_in()
    module, x = Module(jnp.array([[1.0], [2.0]]), jnp.tanh, 0.5), jnp.array([[1.0, 0.0], [0.5, 1.0]])
    data = x, jnp.zeros((2, 1))
    fit = lg.Objective(lambda net, x: net["a"](x), lg.losses.SquaredError(), data)
    plain = lg.Objective(lambda w, x: jnp.tanh(0.5 * (x @ w)), lg.losses.SquaredError(), data)
    found, right = fit.gradient({"a": module}), plain.gradient(module.weight)
    np.testing.assert_allclose(found["a"].weight, right, rtol=1e-6)
    assert (found["a"].activation, found["a"].rate) == (jnp.tanh, 0.5)
    G = lg.GGN(fit, {"a": module})
    assert G.domain.names == ("a.weight",)
    np.testing.assert_allclose((G @ found)["a"].weight, lg.GGN(plain, module.weight) @ right, rtol=1e-5)
    with pytest.raises(TypeError, match=r"leaf 'weight' of the parameters.*is no floating-point array"):
        fit.value({"a": Module(jnp.arange(2), jnp.tanh, 0.5)})
    with pytest.raises(TypeError, match=r"Module is an equinox module.*lambda module, x: jax\.vmap\(module\)\(x\)"):
        lg.Objective(module, lg.losses.SquaredError(), data).gradient(module)
    with pytest.raises(TypeError, match="leaf 'rate' of the parameters is a float"):
        fit.value({"a": module.weight, "rate": 0.5})


def _line(Module, **to_optax):
    module, x = Module(jnp.array([[1.0], [2.0]]), jnp.tanh, 0.5), jnp.array([[1.0, 0.0], [0.5, 1.0]])
    objective = lg.Objective(lambda net, x: net(x), lg.losses.SquaredError(), (x, jnp.zeros((2, 1))))
    return module, objective, lg.to_optax(objective, **to_optax)


@pytest.mark.parametrize("way", [{"method": lg.SGN(damping=0.1)}, {"curvature": lg.GGN, "damping": 0.1}], ids=str)
def test_updates_of_a_module_are_what_filtered_gradients_are(way):
    pytest.importorskip("optax")
    module, objective, opt = _line(_stand_in(), **way)
    gradient = objective.gradient(module)
    gradient.activation = gradient.rate = None  # as equinox.filter_grad has it
    updates, _ = opt.update(gradient, opt.init(module), module, objective=objective)
    assert (updates.activation, updates.rate) == (None, None)
    step = lg.solve(lg.Damped(lg.GGN(objective, module), 0.1), objective.gradient(module), lg.CG(rtol=1e-6)).x.weight
    np.testing.assert_allclose(updates.weight, -step, rtol=0.05)  # each by a tolerance of its own


def test_the_arrays_of_a_module_without_the_rest_are_advised_about():
    pytest.importorskip("optax")
    module, objective, opt = _line(_stand_in(), method=lg.SGN())
    filtered = type(module)(module.weight, None, None)  # as equinox.filter has it
    for ask in (opt.init, objective.value, objective.gradient, lambda p: lg.Hessian(objective, p) @ p):
        with pytest.raises(TypeError, match=r"None in an equinox module.*equinox\.combine.*to_optax's init"):
            ask(filtered)


def test_what_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match="the model is a dict, which cannot be called"):
        adapt({"weight": 1})
