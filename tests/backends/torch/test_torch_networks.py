"""Drawn networks: GGN and Hessian products against dense oracles, over architectures, subsets of leaves, precisions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from linop_gn_torch import backend
from torch import Tensor, nn

calculus = backend.calculus
WIDTH = 4


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Attention(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.mix = nn.MultiheadAttention(WIDTH, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x, x, x)[0]


class Across(nn.Module):
    """A convolution over the positions: (batch, positions, width) has the width as channels."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.mT).mT


class Repeated(nn.Module):
    """One module applied twice, so that its weights are tied."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first = inner
        self.second = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


activations = st.sampled_from([nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.Identity]).map(lambda kind: kind())
plain_layers = st.one_of(
    st.booleans().map(lambda bias: nn.Linear(WIDTH, WIDTH, bias=bias)),
    st.sampled_from([1, 2]).map(Attention),
    st.sampled_from([{}, {"groups": 2}, {"bias": False}]).map(lambda options: Across(**options)),
    st.sampled_from([nn.LayerNorm, nn.RMSNorm]).map(lambda norm: norm(WIDTH)),
    st.just(0.3).map(nn.Dropout),
    activations,
)
layers = st.recursive(plain_layers, lambda inner: st.one_of(inner.map(Residual), inner.map(Repeated)), max_leaves=1)


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, Tensor, list[Tensor]]:
    """A model, inputs (batch, positions, width), and a value for each trainable parameter; all in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(draw(st.integers(0, 2**16)))
        body = [layer for part in draw(st.lists(layers, max_size=3)) for layer in (part, draw(activations))]
        model = nn.Sequential(nn.Linear(3, WIDTH), *body, nn.Linear(WIDTH, 2)).double()
        for name, p in model.named_parameters():
            p.requires_grad_(name == "0.weight" or draw(st.booleans()))
        leaves = [p.detach() + 0.2 * torch.randn_like(p) for p in model.parameters() if p.requires_grad]
        return model, torch.randn(2, 3, 3, dtype=torch.float64), leaves


def function_of(model: nn.Module, x: Tensor) -> Any:
    adapted, names = calculus.adapt(model), list(backend.normalize(model))
    return lambda p: adapted(dict(zip(names, p, strict=True)), x)


@given(network=networks(), data=st.data())
def test_gauss_newton_blocks(network, data, oracle):
    model, x, leaves = network
    J = oracle.jacobian(model, oracle.flat(leaves), x)
    indices = data.draw(st.lists(st.sampled_from(range(len(leaves))), min_size=1, unique=True), label="only")
    only = data.draw(st.sampled_from([None, tuple(indices)]), label="restricted")
    chosen = range(len(leaves)) if only is None else only
    columns = torch.cat([torch.arange(J.shape[1]).split([p.numel() for p in leaves])[i] for i in chosen])
    v = torch.randn(len(columns), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    at = calculus.linearize(function_of(model, x), leaves, torch.sin)
    # J^T H_L J of the loss sum(cos(z)): H_L is a diagonal of any sign.
    product = at.vjp(-at.outputs.cos() * at.jvp(oracle.split(v, [leaves[i] for i in chosen]), only), only)
    expected = J[:, columns].T @ (-at.outputs.cos().reshape(-1) * (J[:, columns] @ v))
    scale = (J[:, columns].norm() ** 2 * v.norm()).item() + 1e-30
    assert (oracle.flat(product) - expected).norm().item() < 1e-12 * scale


@given(network=networks())
def test_hessians(network, oracle):
    model, x, leaves = network
    flat = oracle.flat(leaves)
    v = torch.randn(len(flat), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    function = function_of(model, x)
    at = calculus.linearize_gradient(lambda p: oracle.loss(function(p)), leaves)
    product = oracle.flat(at.hvp(oracle.split(v, leaves)))
    expected = oracle.hessian_product(model, flat, x, oracle.loss, v)
    scale = max(product.norm().item(), oracle.flat(at.gradient).norm().item(), 1.0)
    assert (product - expected).norm().item() < 1e-7 * scale
    w = torch.randn(len(flat), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    other = oracle.flat(at.hvp(oracle.split(w, leaves)))
    assert float(w @ product) == pytest.approx(float(v @ other), rel=1e-10, abs=1e-10 * scale * len(flat))


@given(network=networks())
def test_single_precision_follows_double(network, oracle):
    model, x, leaves = network
    v = [torch.randn(p.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) for p in leaves]
    products = []
    for dtype in (torch.float64, torch.float32):
        model.eval().to(dtype)  # what dropout draws depends on the precision
        at = calculus.linearize(function_of(model, x.to(dtype)), [p.to(dtype) for p in leaves], torch.sin)
        products.append(at.vjp(at.jvp([t.to(dtype) for t in v])))
    assert {p.dtype for p in products[1]} == {torch.float32}
    double, single = (oracle.flat(p).double() for p in products)
    assert (double - single).norm().item() <= 1e-4 * max(double.norm().item(), 1e-3)
