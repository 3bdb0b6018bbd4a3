"""Random numbers that are the same at every evaluation, with the caller's generators left alone.

Whether something draws is found out by looking at the generators, rather than
by a list of layer types, which would miss ``F.dropout`` and one's own noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["cuda_devices", "fixed_draws", "undrawn"]


def cuda_devices(module: nn.Module) -> list[int]:
    """The indices of the CUDA devices that a module's parameters are on."""
    return sorted({p.device.index for p in module.parameters() if p.device.type == "cuda"})


@contextmanager
def fixed_draws(devices: list[int], seed: int) -> Iterator[None]:
    """Inside, the generators of the CPU and of these CUDA devices start from ``seed``; afterwards they are as before.

    >>> with fixed_draws([], 3):
    ...     first = torch.rand(2)
    >>> with fixed_draws([], 3):
    ...     bool((torch.rand(2) == first).all())
    True
    """
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield


def undrawn(devices: list[int], thunk: Callable[[], Any]) -> tuple[Any, bool]:
    """The result of ``thunk`` and True; or, if it drew random numbers, something and False, with nothing drawn."""
    before = _states(devices)
    drew = True
    try:
        result = thunk()
        drew = not all(map(torch.equal, before, _states(devices)))
    finally:
        if drew:
            torch.default_generator.set_state(before[0])
            for device, state in zip(devices, before[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
    return result, not drew


def _states(devices: list[int]) -> list[Tensor]:
    return [torch.default_generator.get_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
