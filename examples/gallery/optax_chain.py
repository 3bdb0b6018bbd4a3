"""
Curvature in a chain of optax
=============================

``lg.to_optax`` makes a transformation of a curvature, a solver and a damping, which stands in ``optax.chain`` beside
optax's own: here the gradients are clipped before it, and the damping follows a schedule.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import linop_gn as lg

images, labels = load_digits(return_X_y=True)
x, y = jnp.float32(images / 16.0), jnp.asarray(labels)
rng = np.random.default_rng(0)
start = jax.tree.map(jnp.float32, {"A": rng.standard_normal((64, 32)) / 8, "B": rng.standard_normal((32, 10)) / 6})


def model(p, x):
    return jnp.tanh(x @ p["A"]) @ p["B"]


loss = optax.softmax_cross_entropy_with_integer_labels
objective = lg.Objective(model, loss, (x[:256], y[:256]))  # optax's losses are taken as they are

# %%
# A loop as one writes it for optax; only ``data=`` tells the transformation which batch it is.

epochs = 5  # quick: 1


def train(opt):
    @jax.jit
    def step(params, state, batch):
        value, grads = jax.value_and_grad(lambda p: loss(model(p, batch[0]), batch[1]).mean())(params)
        updates, state = opt.update(grads, state, params, data=batch)
        return optax.apply_updates(params, updates), state, value

    params, state, values = start, opt.init(start), []
    for _ in range(epochs):
        for i in range(0, 1792, 256):
            params, state, value = step(params, state, (x[i : i + 256], y[i : i + 256]))
            values.append(float(value))
    return values


damping = optax.exponential_decay(1.0, 10, 0.5)
ours = lg.to_optax(objective, curvature=lg.GGN, solver=lg.CG(rtol=1e-2, max_steps=20), damping=damping)
plt.figure(figsize=(6, 3.5), layout="constrained")
plt.semilogy(train(optax.chain(optax.clip_by_global_norm(1.0), ours)), label="Gauss-Newton")
plt.semilogy(train(optax.with_extra_args_support(optax.adam(1e-2))), label="Adam, 1e-2")
plt.legend(frameon=False)
plt.xlabel("step")
plt.ylabel("loss of the batch")
plt.show()
