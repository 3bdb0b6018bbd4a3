"""
One script on eight devices
===========================

The examples are spread over eight devices, and the parameters too. Nothing else in the script knows of it. Here the
devices are made of one processor: run it with ``XLA_FLAGS=--xla_force_host_platform_device_count=8``, or on as many
devices as there are.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import linop_gn as lg

jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)
x = jnp.asarray(rng.standard_normal((512, 16)))
y = jnp.sin(x @ jnp.asarray(rng.standard_normal((16, 1)) / 4))
params = {
    "A": jnp.asarray(rng.standard_normal((16, 64)) / 4),
    "b": jnp.zeros(64),
    "C": jnp.asarray(rng.standard_normal((64, 1)) / 8),
}


def model(p, x):
    return jnp.tanh(x @ p["A"] + p["b"]) @ p["C"]


# %%
# Where things lie is said once: examples by rows, the hidden layer's parameters by columns.

mesh = jax.make_mesh((jax.device_count(),), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
on = lambda array, *axes: jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))
spread = {"A": on(params["A"], None, "devices"), "b": on(params["b"], "devices"), "C": on(params["C"], "devices", None)}
objectives = {
    "one device": (lg.Objective(model, lg.losses.SquaredError(), (x, y)), params),
    f"{jax.device_count()} devices": (
        lg.Objective(model, lg.losses.SquaredError(), (on(x, "devices"), on(y, "devices"))),
        spread,
    ),
}

# %%
# The same training, and the same numbers to rounding. What comes back lies as the parameters do.

method = lg.GaussNewton(damping=1e-3, solver=lg.CG(rtol=1e-10, max_steps=500))
steps = 15  # quick: 3
plt.figure(figsize=(6, 3.5), layout="constrained")
for (name, (objective, start)), style in zip(objectives.items(), ("-", "o"), strict=True):
    result = lg.minimize(objective, start, method, max_steps=steps)
    print(f"{name}: loss {float(result.value):.6e}, {result.params['A'].sharding}")
    plt.semilogy(result.history["value"], style, label=name, mfc="none")
plt.legend(frameon=False)
plt.xlabel("step")
plt.ylabel("loss")
plt.show()
