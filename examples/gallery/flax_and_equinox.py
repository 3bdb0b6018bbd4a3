"""
Modules of flax and equinox
===========================

A model of ``flax.nnx`` and one of ``equinox``, trained by the same method. In both the parameters are a tree, and the
model is a function of them and of the inputs: what else the modules hold stays as it is.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

import linop_gn as lg

rng = np.random.default_rng(0)
x = jnp.asarray(rng.uniform(-2, 2, (200, 2)), dtype=jnp.float32)
y = jnp.sin(3 * x[:, :1]) * jnp.cos(2 * x[:, 1:])
steps = 40  # quick: 3
method = lg.LevenbergMarquardt()


class Net(nnx.Module):
    """Two layers, as flax has them."""

    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(2, 32, rngs=rngs), nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.tanh(self.first(x)))


# %%
# flax: ``split`` takes the module apart, ``merge`` puts it together.

graph, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
flax_model = lambda p, x: nnx.merge(graph, p, rest, copy=True)(x)
of_flax = lg.minimize(lg.Objective(flax_model, lg.losses.SquaredError(), (x, y)), params, method, max_steps=steps)
trained = nnx.merge(graph, of_flax.params, rest)
print("flax:", of_flax.status.name, float(jnp.mean((trained(x) - y) ** 2)))

# %%
# equinox: a module is a tree already; ``partition`` leaves out what is no array.

mlp = eqx.nn.MLP(2, 1, 32, 1, activation=jnp.tanh, key=jax.random.key(0))
arrays, static = eqx.partition(mlp, eqx.is_inexact_array)
equinox_model = lambda p, x: jax.vmap(eqx.combine(p, static))(x)
of_equinox = lg.minimize(lg.Objective(equinox_model, lg.losses.SquaredError(), (x, y)), arrays, method, max_steps=steps)
trained = eqx.combine(of_equinox.params, static)
print("equinox:", of_equinox.status.name, float(jnp.mean((jax.vmap(trained)(x) - y) ** 2)))

plt.figure(figsize=(6, 3.5), layout="constrained")
plt.semilogy(of_flax.history["value"], label="flax")
plt.semilogy(of_equinox.history["value"], label="equinox")
plt.legend(frameon=False)
plt.xlabel("step")
plt.ylabel("loss")
plt.show()
