"""What parameters are multiplied with: gradients are put together again from the uses, and compared with autograd's."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from custom_functions import Mm
from linop_gn_torch import backend
from linop_gn_torch.tracking import tracked
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from linop_gn.backend import View

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

calculus = backend.calculus
Function = Callable[[list[Tensor]], Tensor]


def add_at(gradients: list[np.ndarray], view: View, part: np.ndarray) -> None:
    """Entry by entry, since the same one may be in a view several times."""
    where = np.full(view.shape, view.offset)
    for axis, (size, stride) in enumerate(zip(view.shape, view.strides, strict=True)):
        where += (np.arange(size) * stride).reshape([-1 if i == axis else 1 for i in range(len(view.shape))])
    np.add.at(gradients[view.leaf].reshape(-1), where, part.reshape(view.shape))


def rebuilt(at: Any, cotangents: list[Tensor], params: list[Tensor]) -> list[np.ndarray]:
    """The gradients that the uses stand for: sums over rows of g a^T, where the views say."""
    gradients = [np.zeros(p.shape) for p in params]
    for use, a, g in zip(at.uses, at.inputs, cotangents, strict=True):
        shape, k = use.weight.shape, use.outputs
        groups, outputs, inputs = shape[0], int(np.prod(shape[1 : 1 + k])), int(np.prod(shape[1 + k :]))
        assert tuple(g.shape) == (groups, *use.rows, outputs)
        g = g.double().numpy().reshape(groups, -1, outputs)
        if use.kind == "lookup":
            assert tuple(a.shape) == use.rows
            assert not a.is_floating_point()
            chosen = a.numpy().reshape(-1)
            assert not g[:, chosen < 0].any()
            a = np.eye(inputs)[None, np.maximum(chosen, 0)]
        elif a is not None:
            assert tuple(a.shape) == (groups, *use.rows, inputs if use.kind == "linear" else outputs)
            a = a.double().numpy().reshape(groups, g.shape[1], -1)
        if use.kind in ("linear", "lookup"):
            add_at(gradients, use.weight, np.einsum("gro,gri->goi", g, a))
        else:
            assert (groups, inputs) == (1, 1)
            assert (use.kind == "shift") == (a is None)
            add_at(gradients, use.weight, (g if a is None else g * a).sum(1))
        if use.bias is not None:
            assert use.bias.shape == (groups, *shape[1 : 1 + k])
            add_at(gradients, use.bias, g.sum(1))
    return gradients


def check(function: Function, params: list[Tensor], tolerance: float = 1e-11) -> Any:
    """Compare with autograd; what is in ``otherwise`` is not put together from uses."""
    at = calculus.uses(function, params)
    leaves = [p.detach().requires_grad_() for p in params]
    outputs = function(leaves) + 0 * sum(p.sum() for p in leaves)
    assert not at.outputs.requires_grad
    torch.testing.assert_close(at.outputs, outputs.detach())
    for _ in range(2):
        u = torch.randn_like(outputs)
        expected = torch.autograd.grad(outputs, leaves, u, retain_graph=True)
        cotangents, gradients = at.pull(u, tuple(range(len(params))))
        assert not any(x.requires_grad for x in (*cotangents, *gradients))
        found = rebuilt(at, cotangents, params)
        for i, (g, e, f) in enumerate(zip(gradients, expected, found, strict=True)):
            scale = max(1.0, float(e.abs().max()))
            assert float((g - e).abs().max()) <= tolerance * scale
            assert i in at.otherwise or float(np.abs(f - e.double().numpy()).max()) <= tolerance * scale, i
    return at


def of_module(model: nn.Module, inputs: Any, dtype: torch.dtype = torch.float64) -> tuple[Function, list[Tensor]]:
    model = model.to(dtype)
    params = [p.detach() for p in model.parameters()]
    with torch.no_grad():  # away from ones and zeros
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    return (lambda leaves: backend.calculus.adapt(model)(leaves, inputs)), params


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


class Picked(nn.Module):
    """The first entry of what a module returns."""

    def __init__(self, module: nn.Module, times: int = 1) -> None:
        super().__init__()
        self.module, self.times = module, times

    def forward(self, x: Tensor) -> Tensor:
        return self.module(*[x] * self.times)[0]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.hidden = nn.Embedding(7, 4, padding_idx=2), nn.Linear(4, 4)

    def forward(self, i: Tensor) -> Tensor:
        return self.hidden(self.table(i)).tanh() @ self.table.weight.T


class Cell(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state[0] if isinstance(state, tuple) else state


def net(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


X, X3, IMAGE = (5, 4), (3, 5, 4), (2, 4, 7, 6)
ATTENTION = {"embed_dim": 4, "num_heads": 2, "batch_first": True}

MODULES: dict[str, Any] = {
    "linear": (lambda: net(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), X, "linear linear"),
    "linear without bias": (lambda: net(nn.Linear(4, 3, bias=False), nn.Tanh(), nn.Linear(3, 2)), X, "linear linear"),
    "linear on sequences": (lambda: net(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2, bias=False)), X3, "linear linear"),
    "linear on one example": (lambda: nn.Linear(4, 3), (4,), "linear"),
    "in place after linear": (
        lambda: net(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2)),
        X3,
        "linear linear",
    ),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (2, 4, 9), "linear"),
    "conv2d": (
        lambda: net(nn.Conv2d(4, 3, (3, 2), stride=(1, 2)), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 2)),
        IMAGE,
        "linear linear",
    ),
    "conv2d same": (lambda: nn.Conv2d(4, 3, (2, 3), padding="same", dilation=(1, 2), bias=False), IMAGE, "linear"),
    "conv2d reflect": (lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"), IMAGE, "linear"),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), IMAGE, "linear"),
    "conv2d unbatched": (lambda: nn.Conv2d(4, 2, 3), IMAGE[1:], "linear"),
    "conv3d": (lambda: nn.Conv3d(2, 3, (2, 3, 1), stride=(1, 2, 1), padding=(1, 0, 0)), (2, 2, 3, 5, 2), "linear"),
    "conv transposed 1d": (
        lambda: nn.ConvTranspose1d(4, 6, 3, stride=3, output_padding=2, groups=2),
        (2, 4, 5),
        "linear",
    ),
    "conv transposed 2d": (
        lambda: nn.ConvTranspose2d(4, 3, (3, 2), stride=2, padding=(3, 0), dilation=(1, 3)),
        IMAGE,
        "linear",
    ),
    "embedding": (lambda: net(nn.Embedding(7, 4, padding_idx=2), nn.Linear(4, 2)), 7, "lookup linear"),
    "embedding, last padded": (lambda: nn.Embedding(7, 4, padding_idx=-1), 7, "lookup"),
    "embedding bag": (lambda: nn.EmbeddingBag(7, 4, mode="sum"), 7, "lookup"),
    "tied": (Tied, 7, "lookup linear linear"),
    "layer norm": (lambda: net(nn.LayerNorm(4), nn.Linear(4, 2)), X3, "scale shift linear"),
    "layer norm of two axes": (lambda: nn.LayerNorm((5, 4)), X3, "scale shift"),
    "layer norm of one example": (lambda: nn.LayerNorm(4), (4,), "scale shift"),
    "layer norm without bias": (lambda: nn.LayerNorm(4, bias=False), X3, "scale"),
    "group norm": (lambda: nn.GroupNorm(2, 4), IMAGE, "scale shift"),
    "instance norm": (lambda: nn.InstanceNorm2d(4, affine=True), IMAGE, "scale shift"),
    "batch norm": (lambda: net(nn.Conv2d(4, 3, 2, bias=False), nn.BatchNorm2d(3)), IMAGE, "linear scale shift"),
    "batch norm, evaluated": (
        lambda: net(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).eval(),
        X,
        "linear scale shift linear",
    ),
    "RMS norm": (lambda: nn.RMSNorm(4), X3, "scale"),
    "RMS norm of what has a graph": (lambda: net(nn.Linear(4, 4), nn.RMSNorm(4)), X3, "linear scale"),
    "RNN": (lambda: Picked(nn.RNN(4, 3, batch_first=True)), X3, None),
    "LSTM": (lambda: Picked(nn.LSTM(4, 3, num_layers=2, bidirectional=True)), X3, None),
    "GRU": (lambda: Picked(nn.GRU(4, 3, batch_first=True)), X3, None),
    "RNN cell": (lambda: Cell(nn.RNNCell(4, 3)), X3, None),
    "LSTM cell": (lambda: Cell(nn.LSTMCell(4, 3)), X3, None),
    "GRU cell": (lambda: Cell(nn.GRUCell(4, 3, bias=False)), X3, None),
    "attention": (lambda: Picked(nn.MultiheadAttention(**ATTENTION), 3), X3, "linear linear"),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True),
        X3,
        "linear linear scale shift linear linear scale shift",
    ),
    "encoder layer, evaluated": (lambda: nn.TransformerEncoderLayer(4, 2, 6, norm_first=True).eval(), X3, None),
    "decoder layer": (lambda: Decoder(), X3, None),
}


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(4, 2, 6, 0.0, batch_first=True)
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, self.first(x)[:, :3])


def inputs_of(shape: Any) -> Tensor:
    return torch.randint(0, shape, (3, 5)) if isinstance(shape, int) else randn(*shape)


@pytest.mark.parametrize("name", MODULES)
def test_layers(name):
    make, shape, kinds = MODULES[name]
    at = check(*of_module(make(), inputs_of(shape)))
    assert not at.otherwise
    assert kinds is None or [use.kind for use in at.uses] == kinds.split()


x, x3, x4 = randn(*X), randn(*X3), randn(3, 2, 5, 4)
i3 = torch.tensor([[0, 2, -1], [2, 1, 1]])

FUNCTIONS: dict[str, tuple[Function, list[tuple[int, ...]], str]] = {
    "x @ W.T": (lambda p: x @ p[0].T + p[1], [(3, 4), (3,)], "linear"),
    "x @ W": (lambda p: x3 @ p[0] + p[1], [(4, 3), (3,)], "linear"),
    "x @ W + b, with a row of its own": (lambda p: x @ p[0] + p[1], [(4, 3), (1, 3)], "linear"),
    "W @ x": (lambda p: p[0] @ x.T, [(3, 4)], "linear"),
    "W @ x, batched": (lambda p: p[0] @ x3.mT, [(3, 4)], "linear"),
    "W @ one": (lambda p: p[0] @ x[0] + p[1], [(3, 4), (3,)], "linear"),
    "x @ w": (lambda p: x @ p[0], [(4,)], "linear"),
    "x3 @ w": (lambda p: x3 @ p[0], [(4,)], "linear"),
    "w @ one": (lambda p: p[0] @ x[0], [(4,)], "linear"),
    "addmv": (lambda p: torch.addmv(p[1], x, p[0]), [(4,), (1,)], "linear shift"),
    "addmm's bias": (lambda p: torch.addmm(p[0], x, x.T), [(5,)], "shift"),
    "addmm, weighted": (lambda p: torch.addmm(p[1], x, p[0], alpha=2), [(4, 3), (3,)], "shift"),
    "addmm": (lambda p: torch.addmm(p[1], x, p[0]), [(4, 3), (3,)], "linear"),
    "addmm with another bias": (lambda p: torch.addmm(p[1], x, p[0]), [(4, 3), (5, 1)], "linear shift"),
    "W for each": (lambda p: x4 @ p[0], [(2, 4, 3)], "linear"),
    "W for each, with bias": (lambda p: torch.bmm(x3, p[0]) + p[1], [(3, 4, 2), (3, 1, 2)], "linear"),
    "W for each, on the left": (lambda p: torch.bmm(p[0], x3.mT), [(3, 2, 4)], "linear"),
    "baddbmm": (lambda p: torch.baddbmm(p[1], x3, p[0].expand(3, 4, 2)), [(4, 2), (2,)], "linear"),
    "slices": (
        lambda p: torch.softmax((x3 @ p[0][:4].T) @ (x3 @ p[0][4:8].T).mT, -1) @ (x3 @ p[0][8:].T),
        [(12, 4)],
        "linear linear linear",
    ),
    "chunks": (lambda p: (x3 @ p[0].chunk(3, -1)[0]) * (x3 @ p[0].chunk(3, -1)[2]), [(4, 9)], "linear linear"),
    "views": (
        lambda p: (
            (x3[..., :2] @ p[0].reshape(2, 12)[1].view(3, 4).unsqueeze(0).squeeze().T[:2, ::2])
            * (x3 @ p[0].permute(2, 0, 1)[..., -1])
        ),
        [(2, 3, 4)],
        "linear linear",
    ),
    "selected": (
        lambda p: (x @ p[0].select(-1, -1).mT) * (x @ p[0].unbind(1)[0]) * (x @ p[0].split([1, 3])[1][0]),
        [(4, 4, 4)],
        "linear linear linear",
    ),
    "diagonal": (lambda p: x.tanh() * p[0].diagonal() + p[0].diagonal(1)[:1], [(4, 4)], "scale shift"),
    "einsum": (lambda p: torch.einsum("bti,oi->bto", x3, p[0]).tanh(), [(3, 4)], "linear"),
    "einsum with heads": (lambda p: torch.einsum("bti,hid->bhtd", x3, p[0]), [(2, 4, 3)], "linear"),
    "einsum of each head": (lambda p: torch.einsum("bhti,hid->bthd", x4, p[0]), [(2, 4, 3)], "linear"),
    "groups of two axes": (lambda p: torch.einsum("abti,abio->tabo", x4, p[0]), [(3, 2, 4, 3)], "linear"),
    "groups of two axes, apart": (lambda p: torch.einsum("abti,baio->tabo", x4, p[0]), [(2, 3, 4, 3)], ""),
    "views of the result": (lambda p: (x3 @ p[0]).unflatten(-1, (2, 3)).transpose(1, 2), [(4, 6)], "linear"),
    "linear, in place": (lambda p: functional.linear(x3, p[0], p[1]).mul_(2).relu_(), [(3, 4), (3,)], "linear"),
    "scale by entry": (lambda p: x3 * p[0], [(4,)], "scale"),
    "scale by channel": (lambda p: x4 * p[0], [(2, 1, 1)], "scale"),
    "scale in the middle": (lambda p: x4 * p[0][:, None], [(5,)], "scale"),
    "scale by a number": (lambda p: p[0] * x3, [()], "scale"),
    "scale two axes": (lambda p: x3.mul(p[0]).mul(p[0]), [(5, 4)], "scale scale"),
    "scale, expanded": (lambda p: x3 * p[0].expand(5, 4), [(4,)], "scale"),
    "outer": (lambda p: x[:, :1] * p[0], [(4,)], "scale"),
    "shift by entry": (lambda p: (x3 + p[0]).tanh(), [(4,)], "shift"),
    "shift by channel": (lambda p: x4.tanh().add_(p[0]), [(2, 1, 1)], "shift"),
    "positions": (lambda p: (x3 + p[0][:, :5]).tanh() - x3, [(1, 7, 4)], "shift"),
    "shift from the left": (lambda p: p[0] - x3.tanh(), [(4,)], "shift"),
    "affine": (lambda p: x3.sin() * p[0] + p[1], [(4,), (4,)], "scale shift"),
    "bias of two": (lambda p: x @ p[0] + p[2] + (x @ p[1] + p[2]), [(4, 3), (4, 3), (3,)], "linear linear"),
    "product taken twice": (lambda p: (z := x @ p[0]) * (z + p[1]), [(4, 3), (3,)], "linear shift"),
    "index": (lambda p: p[0][i3], [(3, 4)], "lookup"),
    "index a vector": (lambda p: p[0][i3], [(3,)], "lookup"),
    "index_select": (lambda p: p[0].T.index_select(0, i3[1]), [(4, 3)], "lookup"),
    "a copy": (lambda p: x @ p[0].clone().T.contiguous(), [(3, 4)], "linear"),
    "sparse inputs": (lambda p: x.relu().to_sparse() @ p[0], [(4, 3)], "linear"),
    "bias in other ways": (
        lambda p: torch.add(p[1], x @ p[0], alpha=2) + torch.add(x @ p[0], p[1], alpha=1),
        [(4, 3), (3,)],
        "linear shift linear",
    ),
    "a matrix added to each": (lambda p: x3 @ p[0] + p[1], [(4, 2), (3, 5, 2)], "linear"),
    "written over in part": (lambda p: functional.linear(x3, p[0])[:, :2].mul_(p[1]), [(2, 4), (2,)], "linear"),
    "convolution's bias": (lambda p: functional.conv2d(x4, x4[:, :, :2, :2], p[0]), [(3,)], "shift"),
    "nothing": (lambda p: x3 + 0, [(4,)], ""),
    "the second alone": (lambda p: x3 * p[1], [(3,), (4,)], "scale"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    function, shapes, kinds = FUNCTIONS[name]
    at = check(function, [randn(*shape) for shape in shapes])
    assert [use.kind for use in at.uses] == kinds.split()
    others = {
        "groups of two axes, apart": (0,),
        "addmm, weighted": (0,),
        "a matrix added to each": (1,),
        "written over in part": (1,),
    }
    assert at.otherwise == others.get(name, ())


OTHERWISE: dict[str, tuple[Function, list[tuple[int, ...]], tuple[int, ...]]] = {
    "custom": (lambda p: Mm.apply(x, p[0]) @ p[1], [(4, 3), (3, 2)], (0,)),
    "as well": (lambda p: x @ p[0] * p[0].square().mean(), [(4, 3)], (0,)),
    "twice in one": (lambda p: x @ (p[0] * p[0]), [(4, 3)], (0,)),
    "softmax": (lambda p: (x @ p[0].softmax(-1)) @ p[1], [(4, 3), (3, 2)], (0,)),
    "two factors": (lambda p: x @ (p[0] + p[1] @ p[2]), [(4, 3), (4, 2), (2, 3)], (0, 1, 2)),
    "twice": (lambda p: x @ (2 * p[0]), [(1, 4)][:0] or [(4, 1)], (0,)),
    "less": (lambda p: (x - p[0]) @ p[1], [(4,), (4, 3)], (0,)),
    "written into": (lambda p: x @ p[0].clone().mul_(x[0, 0]), [(4, 3)], (0,)),
    "masked": (lambda p: x @ (p[0] * (p[0] > 0)), [(4, 3)], (0,)),
    "penalty": (lambda p: x @ p[0] + 0.1 * p[0].square().sum(), [(4, 3)], (0,)),
    "itself": (lambda p: p[0], [(4, 3)], (0,)),
    "both factors": (lambda p: p[0] @ p[1], [(4, 3), (3, 2)], (0, 1)),
    "divided by counts": (
        lambda p: functional.embedding(i3.clamp(0), p[0]) / p[1],
        [(3, 4), (4,)],
        (1,),
    ),
    "cut off": (lambda p: x @ p[0].detach() @ p[1], [(4, 3), (3, 2)], ()),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_else_a_parameter_enters_is_told(name):
    function, shapes, otherwise = OTHERWISE[name]
    assert check(function, [randn(*shape) for shape in shapes]).otherwise == otherwise


@pytest.mark.parametrize(
    ("make", "otherwise"),
    [
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), 2),
        (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), 1),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.PReLU(3, dtype=torch.float64)), 1),
    ],
    ids=["weight_norm", "spectral_norm", "PReLU"],
)
def test_layers_that_make_something_of_their_weights(make, otherwise):
    assert len(check(*of_module(make(), x)).otherwise) == otherwise


def rows(function: Function, *shapes: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [use.rows for use in check(function, [randn(*shape) for shape in shapes]).uses]


def test_rows_are_examples_first_where_the_model_has_kept_them():
    three, conv = x3, randn(2, 4, 7, 6)
    assert rows(lambda p: (three @ p[0]).tanh().transpose(0, 1) @ p[1], (4, 3), (3, 2)) == [(3, 5), (3, 5)]
    assert rows(lambda p: functional.linear(three, p[0]).mul_(2).relu_().sum(1), (2, 4)) == [(3, 5)]
    assert rows(lambda p: functional.conv2d(conv, p[0], stride=2), (3, 4, 2, 2)) == [(2, 9)]
    assert rows(lambda p: three[:1] @ p[0], (4, 3)) == [(1, 5)]
    assert rows(lambda p: functional.embedding_bag(i3.clamp(0), p[0]), (3, 4)) == [(2, 3)]
    assert rows(lambda p: torch.func.vmap(lambda a: p[0] @ a.tanh())(x), (3, 4)) == [(5,)]
    function, params = of_module(
        nn.Sequential(nn.Linear(4, 4), nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)), x3
    )
    assert {use.rows for use in calculus.uses(function, params).uses} == {(3, 5)}


def test_calls_of_one_module_have_equal_views():
    function, params = of_module(Cell(nn.RNNCell(4, 3)), x3)
    uses = calculus.uses(function, params).uses
    assert len(uses) == 2 * 5
    assert len({(use.kind, use.weight, use.bias) for use in uses}) == 2


def test_views_are_where_the_entries_are():
    (use,) = calculus.uses(lambda p: functional.linear(x3, p[0], p[1]), [randn(3, 4), randn(3)]).uses
    assert (use.weight, use.bias) == (View(0, 0, (1, 3, 4), (use.weight.strides[0], 4, 1)), View(1, 0, (1, 3), (3, 1)))
    (use,) = calculus.uses(lambda p: x3 @ p[0][:, 2:5], [randn(4, 6)]).uses
    assert use.weight == View(0, 2, (1, 3, 4), (use.weight.strides[0], 1, 6))
    (use,) = calculus.uses(lambda p: functional.conv1d(x3, p[0], groups=5), [randn(10, 1, 2)]).uses
    assert use.weight == View(0, 0, (5, 2, 1, 2), (4, 2, 2, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    def model():
        return net(nn.Conv1d(5, 4, 2), nn.GroupNorm(2, 4), nn.ReLU(), nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))

    tolerance = 1e-5 if dtype is torch.float32 else 0.1
    at = check(*of_module(model(), x3.to(dtype), dtype), tolerance)
    assert not at.otherwise
    assert {a.dtype for a in at.inputs if a is not None} == {dtype}


def test_autocast():
    function, params = of_module(net(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), x3.float(), torch.float32)

    def cast(leaves):
        with torch.autocast("cpu", torch.bfloat16):
            return function(leaves).float()

    at = check(cast, params, 0.1)
    assert [use.rows for use in at.uses] == [(3, 5), (3, 5)]
    assert at.inputs[0].dtype is torch.bfloat16


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    calls = []

    def block(w: Tensor, b: Tensor, z: Tensor) -> Tensor:
        calls.append(1)
        return functional.linear(z, w, b).relu_()

    def function(p):
        return checkpoint(block, p[0], p[1], x3, use_reentrant=reentrant) @ p[2]

    params = [randn(3, 4), randn(3), randn(3, 2)]
    if reentrant:
        with pytest.raises(NotImplementedError, match="use_reentrant=False"):
            calculus.uses(function, params)
        return
    at = check(function, params)
    assert not at.otherwise
    assert [use.rows for use in at.uses] == [(3, 5), (3, 5)]
    before = len(calls)
    assert at.inputs[1].shape == (1, 3, 5, 3)
    assert len(calls) <= before + 1


def test_nothing_is_computed_for_the_parameters(monkeypatch):
    at = calculus.uses(lambda p: (x @ p[0]).tanh() @ p[1], [randn(4, 3), randn(3, 2)])
    asked = []
    grad = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda z, inputs, *a, **k: asked.append(inputs) or grad(z, inputs, *a, **k)
    )
    with FlopCounterMode(display=False) as counter:
        at.pull(randn(5, 2))
    assert counter.get_total_flops() == 2 * 5 * 2 * 3  # the second product's input alone
    assert len(asked) == 1


def test_a_graph_lives_as_long_as_its_uses():
    seen = []

    def function(p):
        z = (x @ p[0]).tanh()
        seen.append(weakref.ref(z))
        return z @ p[1]

    at = calculus.uses(function, [randn(4, 3), randn(3, 2)])
    at.pull(randn(5, 2), (0, 1))
    assert seen[0]() is not None
    del at
    assert seen[0]() is None


def test_uses_can_be_differentiated_themselves():
    with tracked():
        w = randn(4, 3).requires_grad_()
        at = calculus.uses(lambda p: (x @ p[0]).tanh() @ p[1], [2 * w, randn(3, 2)])
        (first, _), _ = at.pull(torch.ones(5, 2, dtype=torch.float64))
        assert at.inputs[1].requires_grad
        (g,) = torch.autograd.grad(first.sum(), w)
    assert g.any()


def test_data_changed_in_place_are_told():
    data = x.clone()
    at = calculus.uses(lambda p: data @ p[0], [randn(4, 3)])
    data += 1
    with pytest.raises(RuntimeError, match="in place"):
        at.inputs[0]


def test_leaves_are_read_in_c_order():
    w, k = randn(3, 4).T, randn(3, 4, 2, 2).to(memory_format=torch.channels_last)
    assert [use.kind for use in check(lambda p: x @ p[0], [w]).uses] == ["linear"]
    assert [use.kind for use in check(lambda p: functional.conv2d(randn(2, 4, 3, 3).fill_(2), p[0]), [k]).uses] == [
        "linear"
    ]
    at = check(lambda p: x @ p[0].reshape(3, 4).T, [w])
    assert at.uses[0].weight == View(0, 0, (1, 3, 4), (at.uses[0].weight.strides[0], 4, 1))
