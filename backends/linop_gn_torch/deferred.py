"""Arithmetic whose scalars stay on the device, as 0-d tensors: nothing waits for the device until they are read.

On an accelerator to read a scalar takes as long as some operations do, and what comes next cannot be queued before. A
solver that knows how many steps it has to take (:meth:`linop_gn.Solver.ahead`) takes them so, and reads the scalars of
all of them together. On the CPU there is nothing to wait for, and 0-d tensors are slower than Python's numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from linop_gn.solvers.ahead import states_ahead
from linop_gn.solvers.base import Solver

from .arithmetic import plain

__all__ = ["Deferred", "TorchAhead"]

Number = float | Tensor
"""A number known here, or one that the device has yet to find."""


class Deferred:
    """The few operations that ordinary steps are made of; vectors (n,) of single or double precision."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self._told: list[Tensor] = []

    def dot(self, x: Tensor, y: Tensor) -> Tensor:
        made = plain(x).dot(plain(y))
        self._told.append(made)
        return made

    def sqrt(self, x: Tensor) -> Tensor:
        return x.double().sqrt()  # as Python's numbers are

    def scale(self, a: Number, x: Tensor) -> Tensor:
        return plain(x).mul_(a)

    def axpy(self, a: Number, x: Tensor, y: Tensor) -> Tensor:
        return y.addcmul_(plain(x), a) if isinstance(a, Tensor) else y.add_(plain(x), alpha=a)

    def axpby(self, a: Number, x: Tensor, b: Number, y: Tensor) -> Tensor:
        y = plain(y)
        if not isinstance(a, Tensor) and a == 1.0 and isinstance(b, Tensor):
            return torch.addcmul(plain(x), y, b, out=y)
        return self.axpy(a, x, y if not isinstance(b, Tensor) and b == 1.0 else y.mul_(b))

    def copy(self, x: Tensor) -> Tensor:
        return plain(x).clone()

    def row(self, basis: Tensor, index: int) -> Tensor:
        return basis[index]

    def store(self, basis: Tensor, index: int, a: Number, x: Tensor) -> Tensor:
        torch.mul(plain(x), a, out=basis[index])
        return basis

    def project(self, basis: Tensor, x: Tensor, count: int) -> Tensor:
        made: Tensor = self.backend.projected(basis[:count], plain(x))
        self._told.append(made.dot(made).to(x.dtype))
        return made

    def deflate(self, basis: Tensor, coefficients: Tensor, x: Tensor, count: int) -> Tensor:
        return x.addmv_(basis[:count].T, coefficients.to(x.dtype), alpha=-1.0)

    def read(self, steps: int) -> list[list[float]]:
        """The numbers that so many steps were told, in one transfer."""
        told, self._told = self._told, []
        return torch.stack(told).view(steps, -1).tolist()  # type: ignore[no-any-return]


def _is_dear(like: Tensor) -> bool:
    """Whether to read a scalar is to wait for the device that vectors like this one are on."""
    return not like.is_cpu


class TorchAhead:
    """The part of the backend's loops that lets solvers take steps without reading scalars."""

    def states_ahead(self, method: Any, problem: Any, state: Any) -> Iterable[Any]:
        """See :meth:`linop_gn.backend.EagerLoops.states_ahead`."""
        if Solver not in type(method).__mro__ or not _is_dear(like := problem.like):
            return ()
        alone = type(like) is Tensor and like.ndim == 1 and like.dtype in (torch.float32, torch.float64)
        return states_ahead(method, Deferred(self), problem, state) if alone else ()
