"""
CG, preconditioned by Kronecker factors
=======================================

The true Gauss-Newton operator, with K-FAC for no more than the preconditioner: the step is the exact one, to the
tolerance, and the factors save products where the damping is small.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import linop_gn as lg

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16.0), torch.tensor(labels)
net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10)).double()
objective = lg.Objective(net, lg.losses.CrossEntropy(), (x, y))
adam = torch.optim.Adam(net.parameters(), lr=3e-3)
for _ in range(100):  # where a second-order method would be called in
    adam.zero_grad()
    torch.nn.functional.cross_entropy(net(x), y).backward()
    adam.step()
params = {name: p.detach() for name, p in net.named_parameters()}
G, gradient = lg.GGN(objective, params), objective.gradient(params)

# %%
# Three dampings, three preconditioners. Each solution is verified by one more product.

recipes = {
    "none": None,
    "Jacobi": lg.preconditioners.Jacobi(),
    "K-FAC": lg.preconditioners.KFAC(),
}
dampings = [1e-2, 1e-4, 1e-5]  # quick: [1e-2, 1e-3]
steps = 2000  # quick: 300
figure, panels = plt.subplots(1, len(dampings), figsize=(9, 3), layout="constrained", sharey=True)
for axes, damping in zip(panels, dampings, strict=True):
    for name, recipe in recipes.items():
        step = lg.solve(lg.Damped(G, damping), gradient, lg.CG(rtol=1e-3, max_steps=steps, preconditioner=recipe))
        print(f"damping {damping:7.0e}, {name:7} {step.products:4} products, {step.status.name}")
        residuals = step.history["residual"]
        axes.semilogy(residuals / residuals[0], label=name)
    axes.set(title=f"damping {damping:.0e}", xlabel="step")
panels[0].set_ylabel("residual")
panels[0].legend(frameon=False)
plt.show()
