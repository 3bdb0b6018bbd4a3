"""Work, counted: floating-point operations in units of one gradient (loss and backward on the same batch).

With F for the forward and F1 for its first layer, a gradient is 3F - F1, J v and J^T u are 2F - F1 each, a Hessian
product 6F - 4F1. Timings would say the same less reliably.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from linop_gn_torch import backend
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import linop_gn as lg

calculus = backend.calculus


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, activation="gelu") for _ in range(2)
        )
        self.head = nn.Linear(32, 50)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def mlp():
    layers = nn.Linear(784, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 10)
    return nn.Sequential(*layers), torch.randn(8, 784), torch.randint(0, 10, (8,))


def cnn():
    convolutions = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2), nn.Conv2d(16, 16, 3)]
    body = [layer for convolution in convolutions for layer in (convolution, nn.ReLU())]
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(400, 10))
    return model, torch.randn(8, 3, 16, 16), torch.randint(0, 10, (8,))


def transformer():
    return Transformer(), torch.randint(0, 50, (4, 16)), torch.randint(0, 50, (64,))


def count(function) -> tuple[int, object]:
    with FlopCounterMode(display=False) as counter:
        result = function()
    return counter.get_total_flops(), result


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs.flatten(0, -2), targets)


class Costs:
    """Everything that a case costs, in gradients."""

    def __init__(self, case) -> None:
        model, x, y = case()
        names, leaves, _ = backend.flatten(backend.normalize(model))
        adapted = calculus.adapt(model)
        v = [torch.randn_like(p) for p in leaves]

        def function(p):
            return adapted(dict(zip(names, p, strict=True)), x)

        gradient, _ = count(lambda: torch.autograd.grad(loss(model(x), y), list(model.parameters())))
        linearise, at = count(lambda: calculus.linearize(function, leaves, torch.cos))
        jvp, tangent = count(lambda: at.jvp(v))
        vjp, _ = count(lambda: at.vjp(tangent))
        record, curved = count(lambda: calculus.linearize_gradient(lambda p: loss(function(p), y), leaves))
        hvp, _ = count(lambda: curved.hvp(v))
        last = tuple(range(len(leaves))[-2:])
        block, _ = count(lambda: at.vjp(at.jvp(v[-2:], last), last))
        self.linearise, self.ggn, self.record, self.hessian, self.last_layer = (
            cost / gradient for cost in (linearise, jvp + vjp, record, hvp, block)
        )
        F, F1 = (count(lambda part=part: part(x))[0] for part in (model, next(model.children())))
        self.floors = {"ggn": (4 * F - 2 * F1) / (3 * F - F1), "hessian": (6 * F - 4 * F1) / (3 * F - F1)}


CASES = {case.__name__: case for case in (mlp, cnn, transformer)}


@pytest.fixture(scope="module")
def costs():
    with sdpa_kernel(SDPBackend.MATH):  # the counter doesn't know the fused kernel of the CPU
        return {name: Costs(case) for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_gradient_and_linearisation_together_cost_a_gradient(costs, name):
    assert costs[name].linearise <= 1.01
    assert costs[name].record <= 1.01


@pytest.mark.parametrize("name", CASES)
def test_products_cost_what_they_must(costs, name):
    assert costs[name].ggn == pytest.approx(costs[name].floors["ggn"], rel=0.01)
    assert costs[name].hessian == pytest.approx(costs[name].floors["hessian"], rel=0.01)


@pytest.mark.parametrize(
    ("name", "product", "gradients"),
    [("mlp", "ggn", 1.17), ("transformer", "ggn", 1.33), ("mlp", "hessian", 1.5), ("transformer", "hessian", 2.0)],
)
def test_products_in_gradients(costs, name, product, gradients):
    assert getattr(costs[name], product) == pytest.approx(gradients, rel=0.05)


def test_a_convolutional_product_does_no_extra_work(costs):
    """torch's own double backward of a convolution makes this 2.0."""
    assert costs["cnn"].ggn < 1.35


@pytest.mark.parametrize(("name", "limit"), [("mlp", 0.02), ("cnn", 0.05), ("transformer", 0.15)])
def test_the_product_of_the_last_layer_runs_nothing_below_it(costs, name, limit):
    assert 0 < costs[name].last_layer < limit


@pytest.mark.parametrize(("m", "most"), [(320, 0.6), (700, 0.57), (128, 0.76), (40, 1.0)])
def test_a_symmetric_product_takes_little_more_than_half_of_the_flops(m, most):
    x = torch.randn(m, 1000, generator=torch.Generator().manual_seed(0))
    flops, made = count(lambda: backend.syrk(x))
    assert flops <= most * 2 * m * m * 1000
    assert torch.equal(made, made.T)
    torch.testing.assert_close(made.double(), x.double() @ x.double().T, rtol=1e-5, atol=1e-3)


def test_a_gram_step_takes_no_flops_but_those_of_its_formulas():
    """One forward, a gradient, the rows of ten columns, half of K, W^T y, and one product that verifies."""
    N, C, sizes = 32, 10, [64, 128, 128, 10]
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    params, x, y = dict(net.named_parameters()), torch.randn(N, 64), torch.randint(0, C, (N,))

    def step() -> lg.Solution:
        fresh = lg.Objective(net, lg.losses.CrossEntropy(), (x, y))
        return lg.solve(lg.Damped(lg.GGN(fresh, params), 1e-2), fresh.gradient(params), lg.GramSolve())

    flops, solution = count(step)
    assert (solution.status.name, int(solution.steps)) == ("CONVERGED", 1)
    weights, first, m = sum(a * b for a, b in pairwise(sizes)), sizes[0] * sizes[1], N * C
    passes = 2 * N * (weights + (2 * weights - first))
    rows = 2 * m * (weights - first)
    K = 2 * m * m * sum(sizes[1:]) + 2 * N * N * sum(sizes[:-1])
    solve = 2 * m * sum(sizes[1:]) + 2 * N * weights
    verified = 2 * N * (2 * weights - first) * 2
    assert flops <= passes + rows + 0.66 * K + solve + verified
