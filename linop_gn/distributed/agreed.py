"""What processes must find alike before they go on together."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..dispatch import backend_of
from ..protocols import Backend, Vector
from .reduction import Reduction, mark_of

__all__ = ["Agreed"]


class Agreed(NamedTuple):
    """The processes of a reduction, asked in arrays like a vector."""

    reduction: Reduction
    like: Vector

    @property
    def _ops(self) -> Backend:
        return backend_of(self.like)

    def require_same(self, found: Any, what: str) -> None:
        """Raise on all of them, saying ``what``, unless all found the same."""
        self.reduction.require_same(self._ops, self.like, mark_of(found), what)

    def wait(self) -> None:
        """Until all of them have come here."""
        self.reduction.any(self._ops, self.like, False)
