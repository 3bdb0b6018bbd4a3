"""Several columns in one pass: ``torch.vmap`` over the backward passes that products are made of.

For a net of 2,000 parameters and 320 outputs the rows of J take 68 ms one by one, and 16 ms so, which is what
``torch.func.vmap(vjp)`` takes. Graphs that no batching rule knows (custom Functions, compiled kernels) are gone
through column by column, and so are products that hold NaN, whose operation is then named.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from .shards import is_sharded
from .tracking import tracking

__all__ = ["TorchColumns", "in_columns"]

in_columns: ContextVar[bool] = ContextVar("in_columns", default=False)
"""Whether tensors may stand for several, whose values cannot be looked at."""


class TorchColumns:
    """The part of the backend's loops that multiplies columns; before :class:`linop_gn.backend.EagerLoops`."""

    def over_columns(self, function: Callable[[Tensor], Tensor], columns: Tensor, together: int = 1) -> Tensor:
        """See :meth:`linop_gn.protocols.Loops.over_columns`."""
        made = None
        if together > 1 and columns.shape[1] > 1 and not (tracking.get() or is_sharded(columns)):
            made = _at_once(function, columns, together)
        if made is None or (made.sum().isnan() and made.isnan().any()):
            made = super().over_columns(function, columns)  # type: ignore[misc]
        return made


def _at_once(function: Callable[[Tensor], Tensor], columns: Tensor, together: int) -> Any:
    """``function`` of the columns, or None if it cannot be batched."""
    token = in_columns.set(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of what vmap itself does one by one
            size = together if together < columns.shape[1] else None  # a chunk would be copied
            return torch.vmap(function, 1, 1, chunk_size=size)(columns)
    except Exception:  # whatever the graph's backward does with tensors of that kind: one by one it says what is wrong
        return None
    finally:
        in_columns.reset(token)
