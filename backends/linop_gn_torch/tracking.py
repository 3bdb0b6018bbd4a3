"""Whether a product is being recorded so that it can be differentiated in the operator's data.

Everywhere else this backend sees through ``requires_grad``: solvers work in
place on plain numbers, and linearisations end at snapshots. The derivative of a
solution needs one product that autograd follows, from parameters, data and
dampings to the vector. Inside :func:`tracked` the vector operations make new
tensors where one is recorded, and nothing is detached.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

__all__ = ["constant", "is_tracked", "tracked", "tracking"]

tracking: ContextVar[bool] = ContextVar("tracking", default=False)


@contextmanager
def tracked() -> Iterator[None]:
    """Inside, products are recorded."""
    token = tracking.set(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        tracking.reset(token)


def constant(x: Any) -> Any:
    """``x`` cut from its graph, unless products are being recorded."""
    return x.detach() if isinstance(x, Tensor) and x.requires_grad and not tracking.get() else x


def is_tracked(*values: Any) -> bool:
    """Whether products are being recorded and one of these has a graph."""
    return tracking.get() and any(isinstance(value, Tensor) and value.requires_grad for value in values)
