"""Room for what a method keeps of its past: scalars and vectors, at indices known only in the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from .types import Scalar, Vector

__all__ = ["Stores"]


class Stores(Protocol):
    """Tables of scalars and shelves of vectors, of a fixed capacity.

    Indices are scalars of the backend: an int, a traced integer, or (k,) of them where each column has its own.
    """

    def stack(self, scalars: Sequence[Scalar]) -> Scalar:
        """k scalars, each a single number, as one scalar (k,)."""

    def table(self, capacity: int, like: Scalar) -> Any:
        """Zeros for ``capacity`` scalars like this one."""

    def write(self, table: Any, index: Scalar, value: Scalar) -> Any:
        """The table with ``value`` at ``index``; consumes the table."""

    def lookup(self, table: Any, index: Scalar) -> Scalar:
        """What stands at ``index`` in a table, or in a NumPy array (capacity,) that is part of the program."""

    def shelf(self, capacity: int, like: Vector) -> Any:
        """Room for ``capacity`` vectors like this one: taken at once, or as vectors come, as the backend prefers."""

    def put(self, shelf: Any, index: Scalar, value: Vector, wanted: Scalar) -> Any:
        """The shelf with a copy of ``value`` at ``index`` where that is wanted, the same elsewhere; consumes the shelf.

        The index is below the capacity.
        """

    def get(self, shelf: Any, index: int) -> Vector:
        """The vector at an index known beforehand (zeros where none was put); not to be consumed."""
