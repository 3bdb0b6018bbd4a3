"""Bases of tensors: written and multiplied in place, and cut from any graph that is being recorded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["TorchBases"]


class TorchBases:
    """The vectors' part of :class:`linop_gn.protocols.Bases`; small problems come from the base class."""

    def store(self, basis: Tensor, index: Any, a: Any, x: Tensor) -> Tensor:
        torch.mul(x.detach(), float(a), out=basis[index])
        return basis

    def _project(self, rows: Tensor, x: Tensor) -> Any:
        return super()._project(rows, x.detach())  # type: ignore[misc]

    def deflate(self, basis: Tensor, coefficients: Any, x: Tensor, count: Any) -> Tensor:
        x = x.detach()
        if not count:
            return x
        factors = torch.tensor(coefficients[:count], dtype=x.dtype, device=x.device)
        return x.addmv_(basis[:count].T, factors, alpha=-1.0)
