"""
Bundle adjustment
=================

Points in space and the cameras that see them, from where the points are in the pictures: least squares with thousands
of parameters, whose Jacobian is never formed. JAX differentiates the projection, and each step is solved by products.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import linop_gn as lg

jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)
cameras, points = 12, 400  # quick: 6, 60
camera, point = np.nonzero(rng.random((cameras, points)) < 0.5)  # who sees what


def rotate(w, v):
    """The vectors v, turned by the angles |w| about the axes w (Rodrigues)."""
    angle = jnp.sqrt(jnp.sum(w**2, axis=-1, keepdims=True) + 1e-20)
    axis = w / angle
    along = jnp.sum(axis * v, axis=-1, keepdims=True) * axis
    return along + jnp.cos(angle) * (v - along) + jnp.sin(angle) * jnp.cross(axis, v)


def project(p):
    """Where the cameras see the points, in units of the focal length."""
    seen = rotate(p["turn"][camera], p["point"][point]) + p["shift"][camera]
    return seen[:, :2] / seen[:, 2:]


true = {
    "turn": jnp.asarray(0.2 * rng.standard_normal((cameras, 3))),
    "shift": jnp.asarray(np.array([0.0, 0.0, 6.0]) + 0.3 * rng.standard_normal((cameras, 3))),
    "point": jnp.asarray(rng.uniform(-1, 1, (points, 3))),
}
pictures = project(true) + 1e-3 * rng.standard_normal((len(camera), 2))
start = jax.tree.map(lambda p: p + 0.05 * rng.standard_normal(p.shape), true)

# %%
# The scene may be moved as a whole without changing a picture, so that the first camera is held: its bounds are
# equal.

bound = jax.tree.map(lambda p: jnp.full(p.shape, jnp.inf), start)
lower, upper = jax.tree.map(jnp.negative, bound), bound
for name in ("turn", "shift"):
    start[name], lower[name], upper[name] = (p[name].at[0].set(true[name][0]) for p in (start, lower, upper))
fit = lg.least_squares(lambda p: project(p) - pictures, start, bounds=(lower, upper), max_steps=40)
print(fit.message)
root = lambda p: float(jnp.sqrt(jnp.mean((project(p) - pictures) ** 2)))
print(f"{2 * len(camera)} residuals, {fit.products} products, rms {root(start):.1e} -> {root(fit.x):.1e}")
assert root(fit.x) < 1.1e-3  # the noise is 1e-3

plt.semilogy(fit.history["value"], ".-")
plt.xlabel("step")
plt.show()
