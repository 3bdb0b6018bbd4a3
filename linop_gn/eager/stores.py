"""Tables and shelves where work is eager: NumPy arrays on the host, and lists of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..protocols import Scalar, Vector

__all__ = ["EagerStores"]


class EagerStores:
    """See :class:`linop_gn.protocols.Stores`; a shelf takes memory as vectors come."""

    def stack(self, scalars: Sequence[Scalar]) -> Scalar:
        return np.asarray(scalars)

    def table(self, capacity: int, like: Scalar) -> Any:
        return np.zeros((capacity, *np.shape(like)))

    def write(self, table: Any, index: Scalar, value: Scalar) -> Any:
        table[_at(table, index)] = value
        return table

    def lookup(self, table: Any, index: Scalar) -> Scalar:
        found = table[_at(table, index)]
        return found if isinstance(found, np.ndarray) else found.item()

    def shelf(self, capacity: int, like: Vector) -> Any:
        return [like, *[None] * capacity]  # what stands for an empty place, then the places

    def put(self, shelf: Any, index: Scalar, value: Vector, wanted: Scalar) -> Any:
        if not isinstance(index, np.ndarray):
            if wanted:
                shelf[1 + index] = self.copy(value)  # type: ignore[attr-defined]
            return shelf
        for place in np.unique(index[np.broadcast_to(wanted, index.shape)]).tolist():
            held = self.get(shelf, place)
            shelf[1 + place] = self.copy(self.select(wanted & (index == place), value, held))  # type: ignore[attr-defined]
        return shelf

    def get(self, shelf: Any, index: int) -> Vector:
        held = shelf[1 + index]
        return self.zeros_like(shelf[0]) if held is None else held  # type: ignore[attr-defined]


def _at(table: Any, index: Scalar) -> Any:
    return (index, np.arange(table.shape[1])) if table.ndim == 2 else index
