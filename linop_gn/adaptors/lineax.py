"""To lineax and from it."""

from __future__ import annotations

from typing import Any

from ..arguments import described
from ..operators.base import LinearOperator
from .found import serving

__all__ = ["from_lineax", "to_lineax"]


def from_lineax(operator: Any) -> LinearOperator:
    """A lineax operator as one of ours, on trees like its ``in_structure()``: data, as it is there.

    What its tags say is kept (symmetric, positive semidefinite); a matrix becomes ``lg.Dense``, a diagonal
    ``lg.Diagonal``, the identity ``lg.Identity``. A product is its ``mv``, one with the adjoint its transpose's.

    Raises
    ------
    TypeError
        For anything else, and for complex operators: :func:`linop_gn.as_real` makes real ones of these.
    ImportError
        Where lineax is not installed.
    """
    made: LinearOperator = serving("from_lineax").from_lineax(operator)
    return made


def to_lineax(operator: LinearOperator) -> Any:
    """An operator as a ``lineax.AbstractLinearOperator``, for ``lineax.linear_solve`` and its solvers.

    Its structures are those of the spaces, what is known of it (symmetric, positive semidefinite, diagonal) answers
    lineax's questions, and it is a pytree: a new point or damping is the same compiled program. What is linearised at a
    point is so now, once.

    Raises
    ------
    TypeError
        For an operator of another framework, or one whose products are computed on the host.
    ImportError
        Where lineax is not installed.
    """
    if not isinstance(operator, LinearOperator):
        raise TypeError(f"to_lineax takes an lg.LinearOperator, this is {described(operator, 'linop_gn')}.")
    return serving("to_lineax").to_lineax(operator)
