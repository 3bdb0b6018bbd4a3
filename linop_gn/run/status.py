"""Why a solver stopped: one code, one sentence each.

Codes are small integers, so that a compiled loop can carry them as an array
and a block of columns can hold one for each column.
"""

from __future__ import annotations

from enum import IntEnum
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..protocols import Backend, Scalar

__all__ = ["Code", "Status", "alike", "verdict", "where_new"]


class Status(IntEnum):
    """The state of a run; ``RUNNING`` until a reason to stop is found.

    >>> Status.CONVERGED.succeeded, Status.NEGATIVE_CURVATURE.succeeded
    (True, False)
    >>> print(Status.MAX_STEPS.sentence)
    The limit on steps was reached before the tolerance was met; raise max_steps or loosen the tolerance.
    """

    RUNNING = 0
    CONVERGED = 1
    COMPLETED = 2
    STOPPED = 3
    MAX_STEPS = 4
    STAGNATED = 5
    NEGATIVE_CURVATURE = 6
    INDEFINITE_PRECONDITIONER = 7
    BREAKDOWN = 8
    NONFINITE = 9
    BOUNDARY = 10
    NONFINITE_INPUT = 11
    NO_DECREASE = 12
    LEVELLED_OFF = 13
    SATISFIED = 14
    LEAST_SQUARES = 15
    INCONSISTENT = 16
    CONDITION_LIMIT = 17
    SINGULAR = 18
    INVARIANT = 19
    NOT_SYMMETRIC = 20

    @property
    def succeeded(self) -> bool:
        """Whether the run did what was asked of it."""
        return self in _SUCCESS

    @property
    def sentence(self) -> str:
        """What happened, and what to do about it."""
        return _SENTENCES[self]


_SUCCESS = frozenset(
    {
        Status.CONVERGED,
        Status.COMPLETED,
        Status.BOUNDARY,
        Status.LEVELLED_OFF,
        Status.SATISFIED,
        Status.LEAST_SQUARES,
        Status.INVARIANT,
    }
)

_SENTENCES = {
    Status.RUNNING: "Still running.",
    Status.CONVERGED: "The tolerance was met.",
    Status.COMPLETED: "The fixed number of steps asked for was done.",
    Status.STOPPED: "A watcher stopped the run; the latest iterate is returned.",
    Status.MAX_STEPS: "The limit on steps was reached before the tolerance was met; "
    "raise max_steps or loosen the tolerance.",
    Status.STAGNATED: "Rounding keeps the residual above the tolerance; the iterate is as accurate as this "
    "precision allows. Loosen the tolerance, precondition, or use float64.",
    Status.NEGATIVE_CURVATURE: "A direction with p^T A p <= 0, up to rounding, was met: the operator is not positive "
    "definite. Add damping, use the Gauss-Newton operator for the Hessian, or MINRES, which takes singular and "
    "indefinite operators.",
    Status.INDEFINITE_PRECONDITIONER: "The preconditioner gave r^T M r <= 0 for a nonzero residual: "
    "it is not positive definite.",
    Status.BREAKDOWN: "The recurrence broke down: a quantity that it divides by is zero to working precision.",
    Status.NONFINITE: "A product or an inner product was not finite; the last finite iterate is returned. "
    "Check the operator at this point, or scale the problem.",
    Status.BOUNDARY: "The step reached the trust-region boundary.",
    Status.NONFINITE_INPUT: "The right-hand side, the starting point or the objective there holds NaN or infinity, or "
    "a radius is not positive; nothing was computed.",
    Status.NO_DECREASE: "No step decreased the objective even at the largest damping: a stationary point to "
    "working precision, or a gradient that does not belong to the objective (lg.validate tells).",
    Status.LEVELLED_OFF: "The quadratic model has levelled off: over the last steps it decreased by less than was "
    "asked for. The residual was not held to a tolerance.",
    Status.SATISFIED: "The stopping rule was satisfied; the residual was not held to a tolerance.",
    Status.LEAST_SQUARES: "The least-squares solution was found: A^T r = 0 to the tolerance. Where the operator's "
    "condition number exceeds 1 / tolerance a smaller residual may exist: tighten it.",
    Status.INCONSISTENT: "The system has no solution: to working precision the operator is singular, and the "
    "right-hand side is not in its range. The residual is as small as it can be (A r = 0). Add damping, or project the "
    "right-hand side.",
    Status.CONDITION_LIMIT: "The estimated condition number exceeds its limit; going on would mostly amplify errors in "
    "the data. The iterate is a regularised solution. Add damping, scale the columns, or raise conlim.",
    Status.SINGULAR: "The matrix is singular to working precision. Use Eigh (a pseudo-inverse), LSMR, or damping.",
    Status.INVARIANT: "The Krylov space has become invariant under the operator: more steps would add nothing to it.",
    Status.NOT_SYMMETRIC: "The operator was declared symmetric, and its products say that it is not "
    "(lg.validate measures how far). What was computed before is returned; don't rely on it.",
}

Code = SimpleNamespace(**{status.name: int(status) for status in Status})
"""The codes as plain numbers: reading a member of an enumeration takes as long as an operation on scalars."""


def verdict(ops: Backend, otherwise: Scalar, *claims: tuple[Scalar, Scalar]) -> Scalar:
    """The code of the first claim (condition, code) whose condition holds; ``otherwise`` if none does.

    Conditions and codes are scalars of the backend, one for each column. A condition must be False for what has ended.

    >>> from linop_gn import load
    >>> claims = (False, Code.CONVERGED), (True, Code.MAX_STEPS), (True, Code.STAGNATED)
    >>> verdict(load("numpy"), Code.RUNNING, *claims) == Code.MAX_STEPS
    True
    """
    for condition, code in reversed(claims):
        otherwise = ops.where(condition, code, otherwise)
    return otherwise


def alike(names: str, value: Any) -> dict[str, Any]:
    """Fields of a new state that hold the same value.

    >>> alike("steps products", 0)
    {'steps': 0, 'products': 0}
    """
    return dict.fromkeys(names.split(), value)


def where_new(ops: Backend, condition: Scalar, state: Any, **values: Any) -> dict[str, Any]:
    """Fields of the next state: these values where the condition holds, those of ``state`` elsewhere."""
    return {name: ops.where(condition, value, getattr(state, name)) for name, value in values.items()}
