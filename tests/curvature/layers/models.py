"""Modules whose parameters enter layers in many ways, one with a parameter that does not, and two that mix examples."""

from typing import Any

import torch
from torch import nn

import linop_gn as lg


class Each(nn.Module):
    """Layers one after the other, and a parameter that enters none."""

    def __init__(self, layers: nn.Module, scale: bool) -> None:
        super().__init__()
        self.layers = layers
        self.scale = nn.Parameter(torch.randn(2)) if scale else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.layers(x)
        return z if self.scale is None else z * torch.exp(self.scale)


class Centred(nn.Module):
    """What a batch norm does, by hand."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(0)) / (x.var(0) + 1e-3).sqrt()


class Last(nn.Module):
    """The result of a recurrent layer at the last position."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(3, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cell(x)[0][:, -1]


def drawn(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A module in double precision and inputs for it."""
    torch.manual_seed(0)
    flat, images, tokens = torch.randn(6, 3), torch.randn(6, 2, 4), torch.randint(5, (6, 3))
    made, x = {
        "deep": (nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(3, 3), nn.Tanh())), nn.Linear(3, 2)), flat),
        "norm": (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2, bias=False)), flat),
        "convolutional": (
            nn.Sequential(nn.Conv1d(2, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)), images,
        ),
        "recurrent": (nn.Sequential(nn.Embedding(5, 3), Last()), tokens),
        "batch norm, evaluating": (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4).eval(), nn.Linear(4, 2)), flat),
        "batch norm": (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), flat),
        "batch norm by hand": (nn.Sequential(nn.Linear(3, 4), Centred(), nn.Linear(4, 2)), flat),
        "in part": (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), flat),
    }[name]  # fmt: skip
    return Each(made, name == "in part").double(), x if x.dtype == torch.int64 else x.double()


BY_LAYERS = ("deep", "norm", "convolutional", "recurrent", "batch norm, evaluating")
MIXED = ("batch norm", "batch norm by hand")


def objective(name: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """Cross-entropy of the module on six examples, and its parameters."""
    net, x = drawn(name)
    return lg.Objective(net, lg.losses.CrossEntropy(), (x, torch.arange(6) % 2)), dict(net.named_parameters())
