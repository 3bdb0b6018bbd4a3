"""What curvature of an earlier point would save, and what it costs: counts alone, in torch (docs/methods.md, Cadences).

    python benchmarks/cadence.py

In flops: a gradient with the GGN linearised, and a product, beside a gradient. In steps: runs on one batch to three
losses, with curvature made at every k-th point. And dense Gauss-Newton with a spectrum for every k-th point.
"""

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import linop_gn as lg


class Old:
    """The GGN of every k-th point that is asked: for eager runs that are made once."""

    def __init__(self, k):
        self.k, self.asked, self.made = k, 0, None

    def __call__(self, point):
        if self.asked % self.k == 0:
            self.made = lg.GGN(point)
        self.asked += 1
        return self.made


def flops(function):
    """Those of a call, and what it returned."""
    with FlopCounterMode(display=False) as counter:
        made = function()
    return counter.get_total_flops(), made


def linearised(objective, params):
    """The GGN and the gradient of one point."""
    point = objective.at(params)
    made = lg.GGN(point).prepare()
    return made, point.gradient


def main():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    layers = torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Linear(128, 128), torch.nn.Tanh()
    net = torch.nn.Sequential(*layers, torch.nn.Linear(128, 10))
    data = torch.randn(512, 64), torch.randint(0, 10, (512,))
    params = {name: leaf.detach().clone() for name, leaf in net.named_parameters()}
    objective = lg.Objective(lambda p, x: torch.func.functional_call(net, p, (x,)), lg.losses.CrossEntropy(), data)
    gradient, _ = flops(lambda: objective.at(params).slope())
    both, (G, _) = flops(lambda: linearised(objective, params))
    product, _ = flops(lambda: G.apply(torch.randn(G.shape[0])))
    print(f"flops: gradient 1, gradient and linearised GGN {both / gradient:.3f}, product {product / gradient:.3f}")
    print("steps and products to a loss of 1, .1, .01, with curvature of every k-th point")
    solver = lg.CG(rtol=1e-12, max_steps=10)
    for k in (1, 2, 5, 10):
        for method in (
            lg.SGN(10, 1e-2, curvature=Old(k), stopping=None),
            lg.LevenbergMarquardt(curvature=Old(k), solver=solver),
        ):
            h = lg.minimize(objective, params, method, max_steps=40).history
            reached = [int(np.argmax(h["value"] <= loss)) for loss in (1.0, 0.1, 0.01)]  # 0: not in 40 steps
            print(f"  k = {k:2}  {method.name:18}", reached, [int(h["products"][i]) for i in reached])
    rng = np.random.default_rng(0)
    X, w = rng.standard_normal((60, 12)), rng.standard_normal(12)
    y = np.tanh(X @ w) + 0.1 * rng.standard_normal(60)
    fit = lg.Objective.from_residuals(
        lambda p: np.tanh(X @ p) - y, jacobian=lambda p: (1 - np.tanh(X @ p) ** 2)[:, None] * X
    )
    print("dense Gauss-Newton, 12 unknowns, a spectrum for every k-th point")
    for k in (1, 2, 5, 100):
        run = lg.minimize(fit, 0.5 * w, lg.Newton(every=k, curvature=lg.GGN))
        print(f"  k = {k:3}  {run.status.name}, {run.steps} steps, {int(run.products)} products")


if __name__ == "__main__":
    main()
