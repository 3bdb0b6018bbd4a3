"""
A backward that is wrong, found
===============================

A function with a derivative written by hand, as kernels have it, and a mistake in it. Training goes on, only worse.
``lg.validate`` holds the operator to the laws that it ought to follow, and to a dense matrix made in another way.
"""

import matplotlib.pyplot as plt
import torch

import linop_gn as lg


class Swish(torch.autograd.Function):
    """x sigmoid(x), whose backward forgets a term."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * (s + x * s)  # should be s + x * s * (1 - s)


torch.manual_seed(0)
x, y = torch.randn(40, 3).double(), torch.randn(40, 2).double()
params = {"A": 0.5 * torch.randn(3, 8).double(), "B": 0.5 * torch.randn(8, 2).double()}
wrong = lg.Objective(lambda p, x: Swish.apply(x @ p["A"]) @ p["B"], lg.losses.SquaredError(), (x, y))
right = lg.Objective(lambda p, x: torch.nn.functional.silu(x @ p["A"]) @ p["B"], lg.losses.SquaredError(), (x, y))

# %%
# The report of the operator whose backward is wrong. Every product is symmetric and linear: only a look from outside
# tells.

report = lg.validate(lg.GGN(wrong, params))
print(report)
assert not report.passed

# %%
# And of the right one.

print(lg.validate(lg.GGN(right, params)))
assert lg.validate(lg.GGN(right, params)).passed

# %%
# Where the two matrices differ.

G, W = (lg.GGN(objective, params).to_dense() for objective in (right, wrong))
figure, panels = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
for axes, matrix, title in zip(panels, (G, W, W - G), ("right", "wrong", "difference"), strict=True):
    shown = axes.imshow(matrix, cmap="RdBu_r", vmin=-float(G.abs().max()), vmax=float(G.abs().max()))
    axes.set(title=title, xticks=[], yticks=[])
figure.colorbar(shown, ax=panels)
plt.show()
