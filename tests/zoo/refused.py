"""What cannot be differentiated twice, or at all, in torch: each is refused in a sentence that says what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .cases import Case

F = nn.functional


class Reentrant(nn.Module):
    """Activations that are computed again, in the old way."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(checkpoint(lambda x: self.one(x).tanh(), x.requires_grad_(), use_reentrant=True))


class Clipped(nn.Linear):
    """A critic that clips its weights as it runs, as WGAN's does between steps."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.clamp_(-0.1, 0.1)
        return super().forward(x)


class ByNumPy(nn.Linear):
    """A weight that NumPy makes positive."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, torch.as_tensor(np.exp(self.weight)), self.bias)


class Several(nn.Linear):
    """Two answers in a dict, none of them called logits."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"class": super().forward(x), "box": x}


def ctc(z: Tensor, y: Tensor) -> Tensor:
    """Connectionist temporal classification."""
    N, T, _ = z.shape
    lengths = torch.full((N,), T), torch.full((N,), y.shape[1])
    return F.ctc_loss(z.log_softmax(-1).transpose(0, 1), y, *lengths, reduction="none")


def rows(model: nn.Module, refused: str, dtype: Any = None) -> Case:
    return Case(model, torch.randn(5, 3, dtype=dtype), torch.randn(5, 2, dtype=dtype), "squares", refused=refused)


def speech() -> Case:
    tokens = torch.randint(1, 4, (2, 2))
    return Case(nn.Linear(3, 4), torch.randn(2, 6, 3), tokens, ctc, refused="an operation whose backward")


def looked_up() -> Case:
    table = nn.Embedding(5, 2, max_norm=1.0)
    return Case(table, torch.arange(5), torch.randn(5, 2), "squares", refused="set its max_norm to None")


CASES = {
    "CTC loss": speech,
    "Reentrant checkpointing": lambda: rows(Reentrant(), "use_reentrant=False"),
    "Embedding with max_norm": looked_up,
    "Weights clipped in the forward": lambda: rows(Clipped(3, 2), "writes to parameter"),
    "A function of NumPy": lambda: rows(ByNumPy(3, 2), "calls a function of NumPy"),
    "Complex weights": lambda: rows(nn.Linear(3, 2, dtype=torch.complex128), "as_real", torch.complex128),
    "A dict of outputs": lambda: rows(Several(3, 2), "Wrap it in a module"),
}
