"""Arithmetic whose scalars stay on the device, as 0-d tensors: nothing waits for the device until they are read.

On an accelerator to read a scalar takes as long as some operations do, and what comes next cannot be queued before. A
solver that knows how many steps it has to take (:meth:`linop_gn.Solver.leap`) takes them so, and reads the scalars of
all of them together. On the CPU there is nothing to wait for, and 0-d tensors are slower than Python's numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from linop_gn.solvers.base import Solver

from .arithmetic import plain

__all__ = ["Deferred", "TorchLeaps"]


class Deferred:
    """The few operations that ordinary steps are made of; vectors (n,) of single or double precision."""

    def dot(self, x: Tensor, y: Tensor) -> Tensor:
        return plain(x).dot(plain(y))

    def axpy(self, a: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return y.addcmul_(plain(x), a)

    def axpby(self, a: float, x: Tensor, b: Tensor, y: Tensor) -> Tensor:
        return torch.addcmul(plain(x) if a == 1.0 else a * plain(x), y, b, out=y)

    def copy(self, x: Tensor) -> Tensor:
        return plain(x).clone()

    def eps(self, x: Tensor) -> float:
        return torch.finfo(x.dtype).eps

    def read(self, rows: Sequence[Sequence[Tensor]]) -> list[list[float]]:
        """The numbers, in one transfer."""
        return torch.stack([x for row in rows for x in row]).view(len(rows), -1).tolist()  # type: ignore[no-any-return]


def _is_dear(like: Tensor) -> bool:
    """Whether to read a scalar is to wait for the device that vectors like this one are on."""
    return like.device.type != "cpu"


class TorchLeaps:
    """The part of the backend's loops that lets solvers take steps without reading scalars."""

    def leaps(self, method: Any, problem: Any, state: Any) -> Iterable[Any]:
        """See :meth:`linop_gn.backend.EagerLoops.leaps`."""
        if not isinstance(method, Solver):
            return ()
        like = problem.like
        alone = type(like) is Tensor and like.ndim == 1 and like.dtype in (torch.float32, torch.float64)
        return method.leap(Deferred(), problem, state) if alone and _is_dear(like) else ()
