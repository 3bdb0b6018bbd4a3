"""A module in float64, for whoever wants to know what its float32 results should have been."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from .modules import AdaptedModule, adapt, uncompiled

__all__ = ["as_double"]


def as_double(model: Any) -> Any:
    """A function like ``adapt(model)`` whose own parameters, buffers and constants are float64 copies.

    It draws the random numbers of the same seed. Callables that are no module are returned as they are.

    >>> import torch
    >>> single = torch.nn.Linear(2, 1)
    >>> as_double(single)({}, torch.ones(1, 2, dtype=torch.float64)).dtype, single.weight.dtype
    (torch.float64, torch.float32)
    """
    if isinstance(model, AdaptedModule):
        return AdaptedModule(_double(model.module), model.names, model.seed)
    return adapt(_double(uncompiled(model))) if isinstance(model, nn.Module) else model


def _double(module: nn.Module) -> nn.Module:
    # What classic weight norm writes beside the parameters is part of a graph, which cannot be copied.
    plain = [t for m in module.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf]
    twin = copy.deepcopy(module, {id(t): t.detach() for t in plain}).double()
    for part in twin.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, Tensor) and value.is_floating_point():
                vars(part)[name] = value.detach().double()
    return twin
