"""The PyTorch backend of ``linop_gn``: eager, in place, with derivatives by double backward on a kept graph."""

from __future__ import annotations

from typing import Any

import array_api_compat.torch
import torch

from linop_gn.backend import ArrayApiBackend, Calculus, declared

from .arithmetic import ShardedArithmetic
from .arrays import TorchArrays
from .bases import ShardedBases
from .calculus import TorchCalculus
from .columns import TorchColumns
from .deferred import TorchAhead
from .distributed import TorchProcesses
from .factors import TorchFactors
from .implicit import TorchImplicit
from .losses import translated
from .modules import load_into
from .trees import NAMESPACE

__all__ = ["TorchBackend", "backend"]


class TorchBackend(
    TorchArrays,
    ShardedArithmetic,
    TorchFactors,
    ShardedBases,
    TorchColumns,
    TorchAhead,
    TorchImplicit,
    TorchProcesses,
    ArrayApiBackend,
):
    """See :mod:`linop_gn.protocols`. There is one instance, :data:`backend`."""

    contract = 1
    capabilities = declared(__name__).capabilities
    tree_namespace = NAMESPACE

    def __init__(self) -> None:
        super().__init__("torch", array_api_compat.torch, (torch.Tensor,))
        self.calculus: Calculus | None = TorchCalculus()

    def loss_of(self, obj: Any) -> Any:
        """A loss module in closed form: see :mod:`linop_gn_torch.losses`."""
        return translated(obj)

    def load_into(self, holder: Any, params: Any) -> Any:
        """Write into a module: see :func:`linop_gn_torch.modules.load_into`."""
        return load_into(holder, params)


backend = TorchBackend()
