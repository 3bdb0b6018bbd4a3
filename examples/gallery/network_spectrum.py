"""
The spectrum of a network
=========================

Where the eigenvalues of a network's Hessian lie, before and after training, from some hundred products. Most are near
zero, a few stand out, and training moves them.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import linop_gn as lg

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16.0), torch.tensor(labels)
net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10)).double()
objective = lg.Objective(net, lg.losses.CrossEntropy(), (x, y), l2=1e-3)

# %%
# Train it by Levenberg-Marquardt. The result says what is so at its end.

steps = 20  # quick: 3
start = dict(net.named_parameters())
result = lg.minimize(objective, start, lg.LevenbergMarquardt(), max_steps=steps)
print(result)

# %%
# The densities, with a band of the scatter of the probes, and the eigenvalues that every probe has found.

probes = 6  # quick: 2
densities = {
    "at the start": lg.spectral_density(lg.Hessian(objective, start), probes=probes, steps=60),
    "after training": lg.spectral_density(lg.Hessian(objective, result.params), probes=probes, steps=60),
}
figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
for axes, (when, density) in zip(panels, densities.items(), strict=True):
    share, error = density.below(0.0)
    print(
        f"{when}: {100 * share:.0f} +- {100 * error:.0f} % at or below zero, outliers {density.outliers()[:4].round(3)}"
    )
    curve = density.smooth()
    axes.semilogy(curve.x, curve.mean)
    axes.fill_between(curve.x, curve.mean - curve.standard_error, curve.mean + curve.standard_error, alpha=0.3)
    axes.set(title=f"Hessian {when}", xlabel="eigenvalue", ylim=(1e-4, None))
panels[0].set_ylabel("density")
plt.show()

# %%
# The few largest, each with a bound on its error.

print(lg.eigsh(lg.Hessian(objective, result.params), k=5))
