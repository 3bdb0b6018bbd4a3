"""The linear system that a solver is given."""

from __future__ import annotations

from typing import Any

from ..operators.base import LinearOperator
from ..protocols import Vector
from ..records import record

__all__ = ["LinearProblem"]


@record
class LinearProblem:
    """Find x with A x = b, starting at ``x0`` (None: zero, which costs no product).

    ``preconditioner`` applies an approximation of A^-1 (None: the identity).
    """

    operator: LinearOperator
    rhs: Vector
    x0: Vector | None = None
    preconditioner: LinearOperator | None = None

    @property
    def like(self) -> Vector:
        """A vector of the problem: its dtype is that of the scalars."""
        return self.rhs

    @property
    def host(self) -> bool:
        """Whether a product draws data from the host."""
        inner = self.preconditioner
        return self.operator.host or (inner is not None and inner.host)

    def prepare(self) -> LinearProblem:
        """The problem with its operators' per-point work done."""
        inner = self.preconditioner
        ready = inner.prepare() if isinstance(inner, LinearOperator) else inner
        return LinearProblem(self.operator.prepare(), self.rhs, self.x0, ready)

    def precondition(self, r: Vector) -> Any:
        """M r, or r itself without a preconditioner (then not to be consumed)."""
        return r if self.preconditioner is None else self.preconditioner.apply(r)
