"""The linear system that a solver is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..operators.base import LinearOperator
from ..protocols import Vector
from ..records import record, static

__all__ = ["LinearProblem", "MadeFrom"]


@record
class MadeFrom:
    """A preconditioner yet to be made, from the operator that is being solved with.

    The function is part of the program; what it makes is data.
    """

    make: Callable[[LinearOperator], Any] = static()

    def __call__(self, operator: LinearOperator) -> LinearOperator:
        """The preconditioner for ``operator``.

        Raises
        ------
        TypeError, ValueError
            If the function makes something else than an operator that maps residuals to steps.
        """
        made: Any = self.make(operator)
        if not isinstance(made, LinearOperator):
            name = getattr(self.make, "__qualname__", repr(self.make))
            raise TypeError(
                f"the preconditioner's function {name} made a {type(made).__qualname__} from {operator!r}; it must "
                "return a linear operator that applies an approximation of the inverse."
            )
        return made


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
