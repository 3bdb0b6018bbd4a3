"""Modules of the ecosystem as plain functions of parameters and inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linop_gn_jax import backend

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


def test_modules_that_hold_their_parameters_are_refused_with_advice():
    nnx = pytest.importorskip("flax.nnx")
    with pytest.raises(TypeError, match=r"Linear is a flax nnx module.*nnx\.split"):
        adapt(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    equinox = pytest.importorskip("equinox")
    with pytest.raises(TypeError, match=r"MLP is an equinox module.*equinox\.partition"):
        adapt(equinox.nn.MLP(2, 1, 4, 1, key=jax.random.key(0)))


def test_the_advice_works():
    nnx = pytest.importorskip("flax.nnx")
    module, x = nnx.Linear(2, 3, rngs=nnx.Rngs(0)), jnp.ones((4, 2))
    graph, params = nnx.split(module)
    split = adapt(lambda params, x: nnx.merge(graph, params)(x))
    names, leaves, structure = backend.flatten(params)
    assert sorted(name.split(".")[0] for name in names) == ["bias", "kernel"]
    linear = backend.calculus.linearize(lambda p: split(backend.unflatten(structure, p), x), leaves, jnp.ones_like)
    np.testing.assert_allclose(linear.outputs, module(x), rtol=1e-6)

    equinox = pytest.importorskip("equinox")
    network = equinox.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    params, static = equinox.partition(network, equinox.is_inexact_array)
    combined = adapt(lambda params, x: jax.vmap(equinox.combine(params, static))(x))
    np.testing.assert_allclose(combined(params, x), jax.vmap(network)(x), rtol=1e-6)


def test_what_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match="the model is a dict, which cannot be called"):
        adapt({"weight": 1})
