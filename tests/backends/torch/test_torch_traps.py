"""Products where torch needs help: attention, recurrence, weight norm, randomness, checkpointing, custom Functions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import linop_gn as lg


class Net(nn.Module):
    """``function(parts, *inputs)``."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self.parts, *inputs)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(tokens)))


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class Checkpointed(nn.Module):
    """Attention and dropout inside, so that the recomputation meets kernels and generators too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.TransformerEncoderLayer(4, 2, 5, 0.3, batch_first=True)
        self.conv = nn.Conv1d(3, 3, 1)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(lambda y: self.conv(self.first(y)), x, use_reentrant=False))


def self_attention(parts, x):
    return parts["a"](x, x, x, need_weights=False)[0]


def cross_attention(parts, x, y):
    return parts["a"](x, y, y, attn_mask=torch.ones(x.shape[1], y.shape[1], dtype=torch.bool).tril())[0]


def fused(parts, x):
    q, k, v = parts["a"](x.unsqueeze(1)).chunk(3, -1)  # with an axis of heads, without which no fused kernel is chosen
    return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def stubborn(parts, x):
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return fused(parts, x)


def classic(layer: nn.Module, **options) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer, **options)


def hidden(layer: nn.Module, head: nn.Module, *between: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Tanh(), *between, head)


def rows(n: int = 3, d: int = 4) -> Tensor:
    return torch.randn(n, d)


def sequences(t: int = 3, d: int = 4) -> Tensor:
    return torch.randn(2, t, d)


def tokens() -> Tensor:
    return torch.randint(0, 7, (2, 3))


norm = nn.utils.parametrizations.weight_norm
spectral = nn.utils.parametrizations.spectral_norm
L = nn.Linear

CASES = {
    "embedding": lambda: (nn.Sequential(nn.Embedding(7, 4, padding_idx=0), nn.Tanh(), L(4, 2)), tokens()),
    "tied": lambda: (Tied(), tokens()),
    "attention": lambda: (Net(self_attention, a=nn.MultiheadAttention(4, 2, batch_first=True)), sequences()),
    "cross_attention": lambda: (
        Net(cross_attention, a=nn.MultiheadAttention(4, 2, kdim=3, vdim=3, batch_first=True)),
        (sequences(), sequences(5, 3)),
    ),
    "fused_attention": lambda: (Net(fused, a=L(4, 12)), sequences()),
    "checkpointed_attention": lambda: (
        Net(lambda p, x: p["b"](checkpoint(fused, p, p["b"](x), use_reentrant=False)), a=L(4, 12), b=L(4, 4)),
        sequences(),
    ),
    "stubborn_attention": lambda: (Net(stubborn, a=L(4, 12)), sequences()),
    "encoder": lambda: (nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True, norm_first=True), sequences()),
    "encoder_eval": lambda: (nn.TransformerEncoderLayer(4, 2, 6, batch_first=True).eval(), sequences()),
    "decoder": lambda: (nn.TransformerDecoderLayer(4, 2, 6, 0.0, batch_first=True), (sequences(), sequences(4))),
    "lstm": lambda: (
        Net(lambda p, x: p["r"](x)[0], r=nn.LSTM(4, 2, num_layers=2, batch_first=True, bidirectional=True)),
        sequences(),
    ),
    "gru": lambda: (Net(lambda p, x: p["r"](x)[0], r=nn.GRU(4, 2, batch_first=True)), sequences()),
    "rnn": lambda: (Net(lambda p, x: p["r"](x)[0], r=nn.RNN(4, 2, batch_first=True)), sequences()),
    "lstm_cell": lambda: (Net(lambda p, x: p["r"](x, p["r"](x))[0], r=nn.LSTMCell(4, 2)), rows()),
    "gru_cell": lambda: (Net(lambda p, x: p["r"](x, p["r"](x)), r=nn.GRUCell(4, 2)), rows()),
    "weight_norm": lambda: (hidden(norm(L(4, 5)), norm(L(5, 2), dim=1)), rows()),
    "weight_norm_conv": lambda: (
        hidden(norm(nn.Conv2d(2, 3, 3)), norm(L(12, 2), dim=None), nn.Flatten()),
        torch.randn(2, 2, 4, 4),
    ),
    "weight_norm_classic": lambda: (hidden(classic(L(4, 5)), classic(L(5, 2), dim=None)), rows()),
    "spectral_norm": lambda: (hidden(spectral(L(4, 5)), L(5, 2)).eval(), rows()),
    "orthogonal": lambda: (hidden(nn.utils.parametrizations.orthogonal(L(4, 4)), L(4, 2)), rows()),
    "rfft": lambda: (Net(lambda p, x: p["b"](torch.fft.rfft(p["a"](x)).abs()), a=L(4, 6), b=L(4, 2)), rows()),
    "custom_function": lambda: (Net(lambda p, x: Cube.apply(p["a"](x)), a=L(4, 2)), rows()),
    "solve": lambda: (
        Net(lambda p, x: torch.linalg.solve(torch.eye(3) + p["a"](x) @ p["a"](x).mT, p["a"](x)), a=L(4, 3)),
        rows(),
    ),
    "inner_gradient": lambda: (
        Net(
            lambda p, x: torch.autograd.grad(p["a"](x).sum(), x, create_graph=True)[0],
            a=nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Conv1d(3, 1, 1), nn.Tanh()),
        ),
        torch.randn(2, 2, 4, requires_grad=True),
    ),
}
RANDOM = {
    "dropout": lambda: (hidden(L(4, 6), L(6, 2), nn.Dropout(0.4)), rows()),
    "alpha_dropout": lambda: (hidden(L(4, 6), L(6, 2), nn.AlphaDropout(0.4)), rows()),
    "functional_dropout": lambda: (
        Net(lambda p, x: p["b"](nn.functional.dropout(torch.tanh(p["a"](x)), 0.4)), a=L(4, 6), b=L(6, 2)),
        rows(),
    ),
    "attention_dropout": lambda: (
        Net(self_attention, a=nn.MultiheadAttention(4, 2, 0.4, batch_first=True)),
        sequences(),
    ),
    "lstm_dropout": lambda: (
        Net(lambda p, x: p["r"](x)[0], r=nn.LSTM(4, 2, num_layers=2, batch_first=True, dropout=0.4)),
        sequences(),
    ),
    "rrelu": lambda: (nn.Sequential(L(4, 6), nn.RReLU(), L(6, 2)), rows()),
    "noise": lambda: (Net(lambda p, x: p["b"](p["a"](x).tanh() * torch.randn(6)), a=L(4, 6), b=L(6, 2)), rows()),
    "checkpoint": lambda: (Checkpointed(), sequences()),
}


@pytest.mark.parametrize("name", [*CASES, *RANDOM])
def test_linearised_products(name, check):
    check.linearisation((CASES | RANDOM)[name])


@pytest.mark.parametrize("name", [*CASES, *RANDOM])
def test_hessian_products(name, check):
    check.hessian((CASES | RANDOM)[name])


# Models that draw have other draws in single precision.
@pytest.mark.parametrize("name", CASES)
def test_single_precision(name, check):
    check.single_precision(CASES[name])


@pytest.mark.parametrize(
    "module",
    [nn.Linear(36, 2), nn.LayerNorm(36), nn.Sequential(nn.Unflatten(1, (1, 6, 6)), nn.Conv2d(1, 2, 3), nn.Flatten())],
    ids=["linear", "norm", "convolution"],
)
def test_data_from_numpy_and_parameters_of_torch_are_told_apart(module: nn.Module) -> None:
    x = torch.randn(4, 36, dtype=torch.float64)
    objective = lg.Objective(module, lg.losses.SquaredError(), (x, torch.zeros_like(module(x.float()))))
    for use in (objective.gradient, objective.value, lambda params: lg.GGN(objective, params).prepare()):
        with pytest.raises(RuntimeError, match=r"tensors of two dtypes .* inputs.float\(\)"):
            use(module)


def test_data_in_single_precision_beside_parameters_in_half_are_told_what_fits() -> None:
    objective = lg.Objective(
        nn.Linear(3, 2).bfloat16(), lg.losses.CrossEntropy(), (torch.randn(4, 3), torch.arange(4) % 2)
    )
    with pytest.raises(RuntimeError, match=r"inputs.bfloat16\(\)"):
        objective.gradient(objective.model)


@pytest.mark.parametrize(
    ("number", "meant"),
    [
        (math.exp, False),
        (float, False),
        (Tensor.item, False),
        (lambda x: x[None].tolist()[0], False),
        (Tensor.detach, True),
    ],
)
def test_numbers_that_are_taken_out_of_the_graph(number, meant):
    """They have no derivative: a warning says so where the model does not, and validate finds it."""
    x = torch.linspace(0.0, 1.0, 10, dtype=torch.float64)
    fit = lg.Objective(lambda p, x: number(p[0]) * x + p[1] * x**2, lg.losses.SquaredError(), (x, 2.0 * x))
    p = torch.tensor([0.3, 0.4], dtype=torch.float64)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit.gradient(p)
    said = [str(w.message) for w in told if __file__ == w.filename]
    assert all("takes a Python number out of a tensor that has a derivative" in text for text in said)
    assert bool(said) is not meant
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = lg.validate(lg.GGN(fit, p))
    assert report.failed == ("differences", "gradient")
    assert ".item()" in report["gradient"].advice


def test_numbers_without_a_derivative_are_taken_out_as_they_like():
    x = torch.ones(3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = lg.Objective(lambda p, x: x @ p * float(x[0, 0]) / x.sum().item(), lg.losses.SquaredError(), (x, x[:, 0]))
        lg.minimize(fit, torch.zeros(2), max_steps=2)
