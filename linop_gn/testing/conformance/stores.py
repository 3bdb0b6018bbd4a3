"""Stores: tables of scalars and shelves of vectors, written and read at any index."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from .base import Draws, Kit, agree, claim, drawn

__all__ = ["Stores"]

CAPACITY = 4


class Stores(Kit):
    """What a method keeps of its past."""

    def _index(self, values: Any, like: Any) -> Any:
        """An index of the backend, one or one for each column."""
        zero = self.ops.scalar(0, like)
        values = np.asarray(values)
        return zero + (values.astype("int32") if values.ndim else int(values))

    @drawn(8)
    def test_tables(self, data: Draws) -> None:
        """A table starts as zeros and gives back what was written last at an index, which may differ by column."""
        ops, columns = self.ops, data.draw(st.sampled_from([(), (3,)]))
        like = self.array(np.zeros((2, *columns)), self.wide)
        table, expected = ops.table(CAPACITY, ops.scalar(0.0, like)), np.zeros((CAPACITY, *columns))
        for _ in range(data.draw(st.integers(0, 5))):
            at = np.array([data.draw(st.integers(0, CAPACITY - 1)) for _ in range(3)])[: len(columns) * 3]
            index = at if columns else data.draw(st.integers(0, CAPACITY - 1))
            value = self.normal(data, *columns)
            table = ops.write(table, self._index(index, like), self.scalar(value, like))
            expected[(index, np.arange(3)) if columns else index] = value
        for place in range(CAPACITY):
            index = (place + np.arange(3)) % CAPACITY if columns else place
            found = self.number(ops.lookup(table, self._index(index, like)))
            agree(found, expected[(index, np.arange(3)) if columns else index], 0.0, f"lookup at {index}")

    def test_lookup_in_a_host_array(self) -> None:
        """Lookup takes NumPy arrays too, which are part of the program."""
        for shape, index in (((2,), 2), ((2, 3), np.array([3, 0, 2]))):
            like = self.array(np.zeros(shape), self.wide)
            found = self.number(self.ops.lookup(np.arange(10.0, 14.0), self._index(index, like)))
            agree(found, 10.0 + np.asarray(index), 0.0, f"lookup at {index} of 10 .. 13")

    def test_stack(self) -> None:
        """Several single scalars are stacked to one scalar with a number for each."""
        like = self.array(np.zeros(2), self.wide)
        made = self.ops.stack([self.scalar(value, like) for value in (3.0, -1.0, 0.5)])
        agree(self.number(made), [3.0, -1.0, 0.5], 0.0, "stack")
        agree(self.number(self.ops.where(made > 0, made, 0.0)), [3.0, 0.0, 0.5], 0.0, "where of what was stacked")

    @drawn(8)
    def test_shelves(self, data: Draws) -> None:
        """A shelf keeps copies of the vectors that were wanted, the rest as it was; nothing given is written to."""
        ops, columns = self.ops, data.draw(st.sampled_from([(), (3,)]))
        like = self.array(np.ones((4, *columns)), self.wide)
        shelf, expected = ops.shelf(CAPACITY, like), np.zeros((CAPACITY, 4, *columns))
        for _ in range(4):
            index = np.array([data.draw(st.integers(0, CAPACITY - 1)) for _ in range(3)])[: len(columns) * 3]
            index = index if columns else np.asarray(data.draw(st.integers(0, CAPACITY - 1)))
            wanted = np.array([data.draw(st.booleans()) for _ in range(3)])[: len(columns) * 3]
            wanted = wanted if columns else np.asarray(data.draw(st.booleans()))
            value = self.normal(data, 4, *columns)
            V = self.array(value, self.wide)
            with self.untouched("put", V, like):
                shelf = ops.put(shelf, self._index(index, like), V, self.truth(wanted, like))
            ops.scale(5.0, V)  # the shelf must hold a copy
            for j in np.ndindex(columns):
                place = int(index[j])
                if wanted[j]:
                    expected[(place, slice(None), *j)] = value[(slice(None), *j)]
        for place in range(CAPACITY):
            shelved = ops.get(shelf, place)
            self.same_kind(shelved, like, "get")
            for j in np.ndindex(columns):
                got = self.host(shelved)[(slice(None), *j)]
                agree(got, expected[(place, slice(None), *j)], 0.0, f"the vector at {place}")
        claim(bool(np.all(self.host(like) == 1.0)), "a shelf wrote to the vector that it was made like")
