"""Where the operations tell that no example enters another's outputs, no derivative of the Jacobian says otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from custom_functions import Mm
from linop_gn_torch import backend
from torch import Tensor, nn
from torch.nn import functional

N = 4


def uses(function: Any, params: list[Tensor]) -> Any:
    return backend.calculus.uses(function, params)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).double()


def of_module(net: nn.Module, x: Tensor) -> tuple[Any, list[Tensor]]:
    net = net.double()
    names = [name for name, _ in net.named_parameters()]

    def function(leaves: list[Tensor]) -> Tensor:
        return torch.func.functional_call(net, dict(zip(names, leaves, strict=True)), (x,))

    return function, [p.detach() for p in net.parameters()]


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * x + self.other(self.one(x).sigmoid()) * x - self.one(x) / 3 + 1.0


APART = {
    "dense": (nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), drawn(N, 3)),
    "positions": (nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.LayerNorm(5), nn.Linear(5, 2)), drawn(N, 2, 3)),
    "images": (
        nn.Sequential(nn.Conv2d(1, 4, 2), nn.GroupNorm(2, 4), nn.ELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 2)),
        drawn(N, 1, 4, 4),
    ),
    "evaluating": (nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5).eval(), nn.Softplus()), drawn(N, 3)),
    "skip": (Skip(), drawn(N, 3)),
}


@pytest.mark.parametrize("name", APART)
def test_known_operations_are_told_and_mix_nothing(name):
    function, params = of_module(*APART[name])
    made = uses(function, params)
    assert made.apart
    z = made.outputs
    for n in range(N):
        cotangent = torch.zeros_like(z)
        cotangent[n] = drawn(*z.shape[1:])
        for use, g in zip(made.uses, made.pull(cotangent)[0], strict=True):
            rows = g.reshape(g.shape[0], N, -1)
            assert use.rows[0] % N == 0
            assert rows[:, n].any()
            assert not rows[:, [i for i in range(N) if i != n]].any()


w, square, x = drawn(3, 3), drawn(N, N), drawn(N, 3)
MIXED = {
    "a mean": lambda p: x @ p[0] - (x @ p[0]).mean(0),
    "a softmax over examples": lambda p: (x @ p[0]).softmax(0),
    "rolled": lambda p: (x @ p[0]).roll(1, 0),
    "turned": lambda p: (square @ (x @ p[0])).tanh(),
    "transposed in between": lambda p: functional.layer_norm((x @ p[0]).T, (N,)).T,
    "turned as entries are": lambda p: (x[:3] @ p[0]).T.reshape(3, 3).tanh(),
    "in another order": lambda p: (x @ p[0]).reshape(3, N).T.reshape(N, 3),
    "a norm of all": lambda p: functional.layer_norm(x @ p[0], (N, 3)),
    "broadcast along examples": lambda p: (x[:1] @ p[0]) * x,
    "a parameter along examples": lambda p: (x[:3] @ x[:3].T).expand(3, 3) * p[0][:, :1] + x[:3] @ p[0],
    "examples that are channels": lambda p: functional.conv1d((x @ p[0])[None], drawn(N, N, 1))[0],
    "a batch norm": lambda p: functional.batch_norm(x @ p[0], None, None, training=True),
    "an instance norm": lambda p: functional.instance_norm((x @ p[0])[..., None].expand(N, 3, 2))[..., 0],
    "a custom function": lambda p: Mm.apply(x, p[0]).tanh(),
    "a parameter of a parameter": lambda p: x @ p[0].softmax(1),
}


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_or_is_not_known_is_not_told_to_be_apart(name):
    assert not uses(MIXED[name], [w]).apart


def test_hooks_may_mix():
    def function(p: list[Tensor]) -> Tensor:
        z = x @ p[0]
        if z.requires_grad:
            z.register_hook(lambda g: g - g.mean(0))
        return z.tanh()

    assert uses(lambda p: (x @ p[0]).tanh(), [w]).apart
    assert not uses(function, [w]).apart
