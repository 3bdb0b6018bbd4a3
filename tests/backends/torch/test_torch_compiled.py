"""Products by programs: the same numbers as eager ones, from one trace, and eager ones where no program can be."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from linop_gn_torch import programs
from systems import FULL, in_full
from torch import nn
from torch.utils.checkpoint import checkpoint

import linop_gn as lg

CE, SE = lg.losses.CrossEntropy(), lg.losses.SquaredError()


@pytest.fixture(autouse=True)
def without_inductor(monkeypatch, request):
    """Programs are run as they were traced: what inductor makes of them takes seconds."""
    torch.manual_seed(0)
    if "inductor" not in request.keywords:
        monkeypatch.setattr(programs, "COMPILER", "eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.mix, self.norm, self.out = (
            nn.Embedding(7, 6),
            nn.Linear(6, 18),
            nn.LayerNorm(6),
            nn.Linear(6, 3),
        )

    def forward(self, tokens):
        x = self.table(tokens)
        q, k, v = self.mix(self.norm(x)).chunk(3, dim=-1)
        return self.out(x + nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x):
        y = torch.zeros(len(x), 3)
        y[:, 0] = self.a(x)[:, 1].sin()
        y += self.a(x).mul_(2).relu_()
        return y.add_(1)


def dense(*middle):
    return nn.Sequential(nn.Linear(4, 5), *middle, nn.Linear(5, 3))


def conv():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3))


NETWORKS = {
    "dense": lambda: (dense(nn.Tanh()), torch.randn(6, 4)),
    "norms": lambda: (dense(nn.LayerNorm(5), nn.GELU(), nn.BatchNorm1d(5), nn.SiLU()), torch.randn(6, 4)),
    "conv": lambda: (conv(), torch.randn(6, 1, 6, 6)),
    "attention": lambda: (Attention(), torch.randint(7, (2, 5))),
    "tied": lambda: (Tied(), torch.randn(6, 4)),
    "in place": lambda: (InPlace(), torch.randn(6, 4)),
    "weight norm": lambda: (dense(torch.nn.utils.parametrizations.weight_norm(nn.Linear(5, 5))), torch.randn(6, 4)),
    "one leaf": lambda: (nn.Linear(4, 3, bias=False), torch.randn(6, 4)),
}


def pair(model, loss, data, **options):
    """The same objective twice, the second compiled."""
    return lg.Objective(model, loss, data, **options), lg.Objective(model, loss, data, compile=True, **options)


def calculus(objective):
    """What linearises for a compiled objective in torch."""
    return objective.programs.of(lg.namespace_backend) if False else objective.programs._made["torch"]


def require_same(make, eager, compiled, params, at=None, tol=1e-5):
    A, B = make(eager, params), make(compiled, params)
    v = A.domain.random(1)
    torch.testing.assert_close(B @ v, A @ v, rtol=tol, atol=tol * float((A @ v).abs().max()))
    u = A.codomain.random(2)
    torch.testing.assert_close(B.T @ u, A.T @ u, rtol=tol, atol=tol * float((A.T @ u).abs().max()))
    assert (B @ v).dtype == (A @ v).dtype


OPERATORS = [lg.GGN, lg.Hessian, lg.Jacobian, lambda o, p: lg.BlockGGN(o, p), lg.Gram]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_those_of_the_eager_objective(name, dtype):
    if dtype is torch.float64 and name not in ("norms", "in place") and not FULL:
        pytest.skip("one network of each kind")
    model, x = NETWORKS[name]()
    model = model.to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    if name == "in place":
        model.forward = type(model).forward.__get__(model)
    with torch.no_grad():
        z = model(x)
    y = torch.randint(z.shape[-1], z.shape[:-1])
    params = {k: p.detach() + 0.1 for k, p in model.named_parameters()}
    eager, compiled = pair(model, CE, (x, y))
    for make in OPERATORS:
        require_same(make, eager, compiled, params, tol=1e-4 if dtype is torch.float32 else 1e-10)
    torch.testing.assert_close(compiled.value_and_gradient(params), eager.value_and_gradient(params))
    assert calculus(compiled).traced == 2
