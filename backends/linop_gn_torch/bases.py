"""Bases of tensors: written and multiplied in place, and cut from any graph that is being recorded.

Of vectors that lie over processes each has its columns of the basis, and what is projected is summed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .shards import is_sharded, local, require_basis, rows_like, summed, vector_like

__all__ = ["ShardedBases", "TorchBases"]


class TorchBases:
    """The vectors' part of :class:`linop_gn.protocols.Bases`; small problems come from the base class."""

    def store(self, basis: Tensor, index: Any, a: Any, x: Tensor) -> Tensor:
        torch.mul(x.detach(), float(a), out=basis[index])
        return basis

    def projected(self, rows: Tensor, x: Tensor) -> Any:
        return super().projected(rows, x.detach())  # type: ignore[misc]

    def deflate(self, basis: Tensor, coefficients: Any, x: Tensor, count: Any) -> Tensor:
        x = x.detach()
        if not count:
            return x
        factors = torch.tensor(coefficients[:count], dtype=x.dtype, device=x.device)
        if x.ndim == 2:
            return x.T.addmm_(factors.T, basis[:count], alpha=-1.0).T
        return x.addmv_(basis[:count].T, factors, alpha=-1.0)


class ShardedBases(TorchBases):
    """The same of vectors of which each process has a part."""

    def basis(self, like: Tensor, capacity: int) -> Tensor:
        made: Tensor = super().basis(local(like), capacity)  # type: ignore[misc]
        return rows_like(like, made) if is_sharded(like) else made

    def grow(self, basis: Tensor, capacity: int, count: Any) -> Tensor:
        made: Tensor = super().grow(local(basis), capacity, count)  # type: ignore[misc]
        return rows_like(basis, made) if is_sharded(basis) else made

    def row(self, basis: Tensor, index: Any) -> Tensor:
        made: Tensor = super().row(local(basis), index)  # type: ignore[misc]
        return vector_like(basis, made) if is_sharded(basis) else made

    def store(self, basis: Tensor, index: Any, a: Any, x: Tensor) -> Tensor:
        if is_sharded(x):
            require_basis(basis, x)
        super().store(local(basis), index, a, local(x))
        return basis

    def project(self, basis: Tensor, x: Tensor, count: Any) -> Any:
        if is_sharded(x):
            require_basis(basis, x)
        found = super().project(local(basis), local(x), count)  # type: ignore[misc]
        return summed(found, x) if is_sharded(x) else found

    def deflate(self, basis: Tensor, coefficients: Any, x: Tensor, count: Any) -> Tensor:
        if is_sharded(x):
            require_basis(basis, x)
        made = super().deflate(local(basis), coefficients, local(x), count)
        return x if is_sharded(x) else made

    def combine(self, basis: Tensor, coefficients: Any, count: Any) -> Tensor:
        made: Tensor = super().combine(local(basis), coefficients, count)  # type: ignore[misc]
        return vector_like(basis, made) if is_sharded(basis) else made
