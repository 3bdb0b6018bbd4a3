"""Factorisations by ``torch.linalg``, in the forms that report rather than raise, and a product that is symmetric.

torch has no syrk: x x^T takes it as long as any product. Of blocks of rows those left of the diagonal and on it are
made, and the others are their transposes: 0.56 of the flops with eight blocks. On one thread, for float32:

==========  =========  ======
x           x @ x.T    blocks
==========  =========  ======
320 x 512    930 us    670 us
320 x 4096  7740 us   4850 us
1280 x 512   15.1 ms    9.2 ms
==========  =========  ======
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .shards import is_sharded, qr_over_shards
from .tracking import tracking

__all__ = ["TorchFactors"]


_LEAST, _BLOCKS = 64, 8
"""Rows of a block at least, and blocks at most."""
_SMALL = 1 << 23
"""Entries of x times its rows up to which one product takes less time than its blocks."""


def _columns(b: Tensor) -> Tensor:
    return b.unsqueeze(1) if b.ndim == 1 else b


class TorchFactors:
    """The operations of :class:`linop_gn.protocols.Factors`."""

    def qr(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        if is_sharded(columns):
            return qr_over_shards(columns)
        Q, R = torch.linalg.qr(columns.detach())
        return Q, R

    def syrk(self, x: Tensor) -> Tensor:
        m, k = x.shape
        if type(x) is not Tensor or x.device.type != "cpu" or m * m * k < _SMALL or tracking.get():
            return x @ x.T
        x, step = x.detach(), max(_LEAST, -(-m // _BLOCKS))
        made, turned = x.new_empty(m, m), x.T
        for first in range(0, m, step):
            last = first + step
            torch.mm(x[first:last], turned[:, :last], out=made[first:last, :last])
            made[:first, first:last] = made[first:last, :first].T
        return made

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
