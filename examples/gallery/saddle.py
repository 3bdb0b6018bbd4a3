"""
A trust region leaves a saddle
==============================

A start at which the gradient points straight at a saddle. Gradient descent and Newton's method end there. The trust
region looks for negative curvature before it claims anything, and goes down.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

import linop_gn as lg


def landscape(p):
    """A saddle at (0, 0), minima at (0, 1) and (0, -1)."""
    return 0.5 * p[0] ** 2 + 0.25 * (p[1] ** 2 - 1) ** 2


objective = lg.Objective.from_function(landscape)
start = torch.tensor([1.5, 0.0]).double()  # on the ridge: the second gradient is zero there
gradient = objective.gradient(torch.zeros(2).double())
print("gradient at the saddle", gradient, "curvature", lg.Hessian(objective, torch.zeros(2).double()).to_dense())

# %%
# Every method, its end, and what it says of it. Only the trust region comes to a minimum, and no other calls the
# saddle one.

methods = {
    "Newton": lg.Newton(),
    "Newton-CG": lg.NewtonCG(),
    "trust region": lg.TrustRegion(radius=0.5),
}
paths = {}
for name, method in methods.items():
    state, path = lg.start(method, objective, start), [start.numpy()]
    for _ in range(12):
        state = lg.advance(method, objective, state)
        path.append(state.params.numpy())
    paths[name] = np.array(path)
    result = lg.minimize(objective, start, method)
    print(f"{name:13} {result.status.name:20} at {np.round(result.params.numpy(), 6)}, value {float(result.value):.4f}")

# %%
# The paths.

u, v = np.meshgrid(np.linspace(-0.5, 1.8, 120), np.linspace(-1.5, 1.5, 120))
plt.figure(figsize=(6, 4), layout="constrained")
plt.contour(u, v, 0.5 * u**2 + 0.25 * (v**2 - 1) ** 2, levels=25, cmap="Greys")
for (name, path), marker in zip(paths.items(), "os^", strict=True):
    plt.plot(*path.T, marker=marker, label=name, markersize=4)
plt.legend(loc="lower right")
plt.show()
