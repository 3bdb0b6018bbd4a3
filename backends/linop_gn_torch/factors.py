"""Factorisations by ``torch.linalg``, in the forms that report rather than raise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .shards import is_sharded, qr_over_shards

__all__ = ["TorchFactors"]


def _columns(b: Tensor) -> Tensor:
    return b.unsqueeze(1) if b.ndim == 1 else b


class TorchFactors:
    """The operations of :class:`linop_gn.protocols.Factors`."""

    def qr(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        if is_sharded(columns):
            return qr_over_shards(columns)
        Q, R = torch.linalg.qr(columns.detach())
        return Q, R

    def cholesky(self, matrix: Tensor) -> tuple[Any, bool]:
        factor, info = torch.linalg.cholesky_ex(matrix.detach())
        return factor, info.item() == 0 and bool(factor.diagonal().isfinite().all())

    def cholesky_solve(self, factor: Any, b: Tensor) -> Tensor:
        return torch.cholesky_solve(_columns(b.detach()), factor).reshape(b.shape)

    def lu(self, matrix: Tensor) -> tuple[Any, bool]:
        factor, pivots, info = torch.linalg.lu_factor_ex(matrix.detach())
        return (factor, pivots), info.item() == 0 and bool(factor.diagonal().isfinite().all())

    def lu_solve(self, factor: Any, b: Tensor) -> Tensor:
        return torch.linalg.lu_solve(*factor, _columns(b.detach())).reshape(b.shape)

    def upper_solve(self, R: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(R.detach(), _columns(b.detach()), upper=True).reshape(b.shape)

    def eigh(self, matrix: Tensor) -> tuple[Tensor, Tensor, bool]:
        try:
            values, vectors = torch.linalg.eigh(matrix.detach())
        except torch.linalg.LinAlgError:
            return matrix[:, 0], matrix, False
        return values, vectors.contiguous(), bool(vectors.isfinite().all())  # laid out as a file gives them back
