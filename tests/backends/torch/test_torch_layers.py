"""Products through torch's layers, in float64 against independent oracles, and in float32 against float64.

Normalisation layers are here because other ways to a Hessian are silently wrong on them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import linop_gn as lg

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def dense(activation: nn.Module, narrowed: int = 5) -> Callable[[], tuple[nn.Module, Tensor]]:
    def case():
        return nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(narrowed, 2)), torch.randn(3, 4)

    return case


def normalised(norm: Callable[[], nn.Module], rows: int = 5, training: bool = True):
    def case():
        model = nn.Sequential(nn.Linear(4, 5), norm(), nn.Tanh(), nn.Linear(5, 2))
        return model.train(training), torch.randn(rows, 4)

    return case


def image(*layers: Callable[[], nn.Module], size: int = 6):
    """Two channels in; ``layers``, then a linear head on whatever comes out."""

    def case():
        x = torch.randn(2, 2, size, size)
        body = nn.Sequential(*[layer() for layer in layers], nn.Tanh(), nn.Flatten())
        return nn.Sequential(body, nn.Linear(body(x).shape[1], 2)), x

    return case


def conv(*args, **kwargs) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(*args, **kwargs)


class Bilinear(nn.Bilinear):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, y).tanh()


CASES = {
    **{
        kind.__name__: dense(kind(), 6)
        for kind in (nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.Mish, nn.ELU, nn.SELU, nn.Hardswish, nn.Hardsigmoid)
    },
    "GLU": dense(nn.GLU(), 3),
    "PReLU": dense(nn.PReLU(dtype=torch.float64), 6),
    "Softmax": dense(nn.Softmax(-1), 6),
    "LogSoftmax": dense(nn.LogSoftmax(-1), 6),
    "Bilinear": lambda: (Bilinear(3, 2, 4), (torch.randn(2, 3), torch.randn(2, 2))),
    "LayerNorm": normalised(lambda: nn.LayerNorm(5)),
    "RMSNorm": normalised(lambda: nn.RMSNorm(5)),
    "BatchNorm": normalised(lambda: nn.BatchNorm1d(5)),
    "BatchNorm_eval": normalised(lambda: nn.BatchNorm1d(5), training=False),
    "BatchNorm_cumulative": normalised(lambda: nn.BatchNorm1d(5, momentum=None)),
    "BatchNorm2d": image(conv(2, 3, 3), lambda: nn.BatchNorm2d(3)),
    "InstanceNorm": image(conv(2, 3, 3), lambda: nn.InstanceNorm2d(3, affine=True)),
    "InstanceNorm_tracking": image(conv(2, 3, 3), lambda: nn.InstanceNorm2d(3, track_running_stats=True)),
    "GroupNorm": image(conv(2, 4, 3), lambda: nn.GroupNorm(2, 4)),
    "LocalResponseNorm": image(conv(2, 4, 3), lambda: nn.LocalResponseNorm(2)),
    "MaxPool": image(conv(2, 3, 3), lambda: nn.MaxPool2d(2), conv(3, 2, 2)),
    "AvgPool": image(conv(2, 3, 3), lambda: nn.AvgPool2d(2), conv(3, 2, 2)),
    "AdaptiveMaxPool": image(conv(2, 3, 3), lambda: nn.AdaptiveMaxPool2d(2)),
    "Conv2d": image(conv(2, 4, 3, stride=2, padding=1, padding_mode="reflect"), nn.Tanh, conv(4, 3, 2)),
    "Conv2d_groups": image(conv(2, 4, 3), nn.Tanh, conv(4, 6, 2, groups=2, dilation=2, bias=False), nn.Sigmoid),
    "Conv2d_depthwise": image(conv(2, 4, 1), nn.Tanh, conv(4, 4, 3, groups=4, padding="same"), nn.Tanh, conv(4, 2, 1)),
    "Conv2d_two_layers": image(conv(2, 3, 3), nn.ReLU, conv(3, 3, 3, padding=(1, 0)), nn.ReLU),
    "ConvTranspose": image(
        lambda: nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=1),
        nn.Tanh,
        lambda: nn.ConvTranspose2d(4, 2, 2, groups=2, dilation=2, bias=False),
        size=3,
    ),
    "PixelShuffle": image(conv(2, 4, 3), lambda: nn.PixelShuffle(2)),
    "Upsample": image(conv(2, 2, 3), lambda: nn.Upsample(scale_factor=2, mode="bicubic")),
    "Conv1d": lambda: (
        nn.Sequential(nn.Conv1d(2, 3, 3, padding="same"), nn.Tanh(), nn.Conv1d(3, 2, 2, padding="same")),
        torch.randn(2, 2, 5),
    ),
    "Conv3d": lambda: (
        nn.Sequential(nn.Conv3d(1, 2, 2), nn.Tanh(), nn.Conv3d(2, 2, (1, 2, 1), padding=(0, 1, 0))),
        torch.randn(2, 1, 3, 3, 3),
    ),
    "Conv2d_unbatched": lambda: (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.ConvTranspose2d(3, 2, 2)),
        torch.randn(2, 5, 5),
    ),
}

# torch's own gradient of hardsigmoid multiplies by a 1/6 of single precision, whatever the dtype.
TOLERANCE = {"Hardsigmoid": 1e-7}


@pytest.mark.parametrize("name", CASES)
def test_linearised_products(name, check):
    check.linearisation(CASES[name], TOLERANCE.get(name, 1e-12))


@pytest.mark.parametrize("name", CASES)
def test_hessian_products(name, check):
    check.hessian(CASES[name], TOLERANCE.get(name, 1e-12))


@pytest.mark.parametrize("name", CASES)
def test_single_precision(name, check):
    check.single_precision(CASES[name])


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_embeddings_have_dense_derivatives(kind):
    torch.manual_seed(0)
    tokens, y = torch.randint(6, (5, 4)), torch.randn(5, 2, dtype=torch.float64)
    size = 12 if kind is nn.Embedding else 3
    model = nn.Sequential(kind(6, 3, sparse=True), nn.Flatten(), nn.Tanh(), nn.Linear(size, 2)).double()
    found = []
    for sparse in (True, False):
        model[0].sparse = sparse
        objective = lg.Objective(model, lg.losses.SquaredError(), (tokens, y))
        g = objective.gradient(model)
        found += [(g, lg.GGN(objective, model) @ g, lg.Hessian(objective, model) @ g)]
    for one, other in zip(*found, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)


class Bags(nn.Module):
    """Bags of several lengths, one of them empty, of which some entries are padding."""

    def __init__(self, mode: str, last: bool, weighted: bool) -> None:
        super().__init__()
        self.rows = nn.EmbeddingBag(6, 3, mode=mode, include_last_offset=last, padding_idx=-1)
        self.weights = nn.Parameter(torch.randn(9)) if weighted else None
        self.offsets = torch.tensor([0, 2, 2, 7, 9][: 5 if last else 4])

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.tanh(self.rows(tokens.reshape(-1), self.offsets, self.weights))


@pytest.mark.parametrize(("mode", "weighted"), [("sum", True), ("sum", False), ("mean", False)])
@pytest.mark.parametrize("last", [False, True])
def test_bags_of_embeddings(mode, weighted, last, check):
    def case():
        return Bags(mode, last, weighted), torch.tensor([[1, 5, 2], [2, 3, 5], [0, 4, 1]])

    check.linearisation(case)
    check.hessian(case)


@pytest.mark.parametrize("lookup", [nn.functional.embedding, nn.functional.embedding_bag])
def test_no_gradient_is_divided_by_counts(lookup):
    torch.manual_seed(0)
    tokens, p = torch.tensor([[0, 0], [0, 1]]), torch.randn(4, 2).double()
    named = {"mode": "sum"} if lookup is nn.functional.embedding_bag else {}
    options = {"scale_grad_by_freq": True, **named}
    module = (nn.EmbeddingBag if named else nn.Embedding)(4, 2, **options, _weight=p)
    loss = lg.losses.SquaredError()
    objective = lg.Objective(lambda p, x: lookup(x, p, **options), loss, (tokens, None))
    G = torch.diag(torch.tensor([3.0, 3.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]) / 2).double()
    if named:  # rows of the bags: 2 p_0 and p_0 + p_1
        G = torch.kron(torch.tensor([[5.0, 1.0], [1.0, 1.0]]), torch.eye(2)).double() / 2
        G = torch.nn.functional.pad(G, (0, 4, 0, 4))
    torch.testing.assert_close(lg.GGN(objective, p).to_dense(), G)
    assert lg.validate(lg.Hessian(objective, p))
    objective = lg.Objective(module, loss, (tokens, None))
    torch.testing.assert_close(lg.GGN(objective, module).to_dense(), G)
    slope = lg.Objective(module, loss, (tokens, None)).at(module).slope().gradient
    torch.testing.assert_close(slope, G @ p.reshape(-1))
    assert module.scale_grad_by_freq


@pytest.mark.parametrize("method", [None, lg.FirstOrder(lg.optimisers.SGD(), 0.1)])
def test_a_function_that_writes_to_its_parameters_is_refused(method):
    x, p = torch.tensor([0, 1]), torch.ones(3, 2)

    def clamped(p, x):
        with torch.no_grad():
            p.clamp_(max=2.0)
        return p[x]

    objective = lg.Objective(clamped, lg.losses.SquaredError(), (x, None))
    with pytest.raises(ValueError, match=r"writes to parameter 0 \(shape \(3, 2\)\)"):
        lg.minimize(objective, p, method, max_steps=2)
    renormed = lg.Objective(
        lambda p, x: nn.functional.embedding(x, p, max_norm=0.5), lg.losses.SquaredError(), (x, None)
    )
    with pytest.raises(ValueError, match=r"max_norm=|writes to parameter 0"):
        lg.minimize(renormed, p, method, max_steps=2)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_an_embedding_that_writes_to_its_weights_is_refused(kind):
    model = nn.Sequential(kind(6, 3, max_norm=1.0), nn.Flatten())
    with pytest.raises(ValueError, match=rf"0 is a {kind.__name__}\(max_norm=1.0\), which writes .* max_norm to None"):
        lg.Objective(model, lg.losses.SquaredError(), (torch.zeros(2, 2, dtype=int), torch.zeros(2, 6))).value(model)
