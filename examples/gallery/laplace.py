"""
How sure a network is
=====================

Laplace's approximation: around the parameters of a fit the posterior is normal, with the covariance (G + prior)^-1 of
the Gauss-Newton operator G. It tells how sure a prediction is, and needs nothing but products, or the Kronecker
factors of the layers.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

import linop_gn as lg

torch.manual_seed(1)
noise, prior = 0.1, 0.1  # the standard deviation of the noise, the precision of the prior
x = torch.cat([torch.linspace(-3, -1, 30), torch.linspace(1, 3, 30)]).double()[:, None]  # nothing is known in between
y = torch.sin(2 * x) + noise * torch.randn_like(x)
sizes = torch.nn.Linear(1, 12), torch.nn.Tanh(), torch.nn.Linear(12, 12), torch.nn.Tanh(), torch.nn.Linear(12, 1)
net = torch.nn.Sequential(*sizes).double()
likelihood = lg.losses.SquaredError(scale=0.5 / noise**2, reduction="sum")
objective = lg.Objective(net, likelihood, (x, y), l2=prior)
steps = 150  # quick: 20
fit = lg.minimize(objective, net, lg.LevenbergMarquardt(solver=lg.Cholesky()), max_steps=steps)
print(fit)

# %%
# The variance of predictions is the diagonal of J (G + prior)^-1 J^T, an operator of operators.

grid = torch.linspace(-4, 4, 81).double()[:, None]
J = lg.Jacobian(lg.Objective(net, likelihood, (grid, torch.zeros_like(grid))), fit.params)
inverses = {
    "all of the curvature": lg.inverse(lg.GGN(objective, fit.params), lg.Cholesky()),
    "Kronecker factors": lg.EKFAC(objective, fit.params).inverse(),
}
mean = torch.func.functional_call(net, fit.params, grid)[:, 0].detach().numpy()
figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
for axes, (name, inverse) in zip(panels, inverses.items(), strict=True):
    deviation = lg.diagonal(J @ inverse @ J.T, "exact").value.sqrt().numpy()
    print(f"{name}: {deviation[40]:.2f} in the gap, {deviation[20]:.2f} among the data")
    axes.fill_between(grid[:, 0], mean - 2 * deviation, mean + 2 * deviation, alpha=0.3, linewidth=0)
    axes.plot(grid[:, 0], mean)
    axes.plot(x[:, 0], y[:, 0], "k.", markersize=3)
    axes.set(title=name, ylim=(-4, 4))

# %%
# Draws from the posterior, by the root of the inverse.

root = inverses["Kronecker factors"].root()
for _ in range(8):
    drawn = lg.tree.add(fit.params, root @ {name: torch.randn_like(p) for name, p in fit.params.items()})
    panels[1].plot(grid[:, 0], torch.func.functional_call(net, drawn, grid)[:, 0].detach(), color="0.5", linewidth=0.6)
assert np.isfinite(mean).all()
plt.show()
