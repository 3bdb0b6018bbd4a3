"""
Damped Newton in a loop of your own
===================================

An operator, a solver and ten lines: the method that you have in mind, when none with a name is it. Here the Hessian
is damped by the norm of the gradient, which keeps the steps of a convex problem stable without any search along a
line.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import linop_gn as lg

jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)
x = jnp.asarray(rng.standard_normal((500, 40)) * 0.8 ** np.arange(40))  # badly scaled features
y = jnp.asarray(rng.random(500) < 1 / (1 + np.exp(-3 * x[:, 0] + 5 * x[:, 3]))).astype(float)
objective = lg.Objective(lambda w, x: x @ w, lg.losses.BinaryCrossEntropy(), (x, y), l2=1e-6)

# %%
# One step, compiled once: the parameters are data. ``at`` linearises the objective once for the gradient and all
# products.


@jax.jit
def step(w):
    point = objective.at(w)
    damping = 0.1 * jnp.linalg.norm(point.gradient)
    solution = lg.solve(lg.Damped(lg.Hessian(point), damping), point.gradient, lg.CG(rtol=1e-4, max_steps=100))
    return w - solution.x, point.value, jnp.linalg.norm(point.gradient), solution.code


steps = 20  # quick: 8
w, norms = jnp.zeros(40), []
for _ in range(steps):
    w, value, norm, code = step(w)
    norms.append(float(norm))
    assert lg.Status(int(code)).succeeded  # each inner solve met its tolerance
print(f"loss {float(value):.6f}, gradient norm {norms[-1]:.1e}")

# %%
# Beside gradient descent with the best fixed length, 1 / the largest eigenvalue at the start.

length = 1 / float(lg.eigsh(lg.Hessian(objective, jnp.zeros(40)), k=1).values[0])
v, slow = jnp.zeros(40), []
for _ in range(steps):
    gradient = objective.gradient(v)
    slow.append(float(jnp.linalg.norm(gradient)))
    v = v - length * gradient

plt.figure(figsize=(6, 3.5), layout="constrained")
plt.semilogy(norms, ".-", label="damped Newton")
plt.semilogy(slow, ".-", label="gradient descent")
plt.legend(frameon=False)
plt.xlabel("step")
plt.ylabel("norm of the gradient")
plt.show()
