"""Why a solver stopped: one code, one sentence each.

Codes are small integers, so that a compiled loop can carry them as an array
and a block of columns can hold one for each column.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..protocols import Backend, Scalar

__all__ = ["Code", "Status", "alike", "is_one_of", "status_of", "succeeded", "verdict", "where_new"]


class Status(IntEnum):
    """The state of a run; ``RUNNING`` until a reason to stop is found.

    >>> Status.CONVERGED.succeeded, Status.NEGATIVE_CURVATURE.succeeded
    (True, False)
    >>> print(f"{Status.MAX_STEPS}: {Status.MAX_STEPS.sentence}")
    MAX_STEPS: The limit on steps was reached before the tolerance was met; raise max_steps or loosen the tolerance.
    """

    sentence: str
    """What happened, and what to do about it."""
    succeeded: bool
    """Whether the run did what was asked of it."""

    def __new__(cls, code: int, sentence: str = "", succeeded: bool = False) -> Status:
        made = int.__new__(cls, code)
        made._value_, made.sentence, made.succeeded = code, sentence, succeeded
        return made

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        return format(self.name, spec)

    RUNNING = 0, "Still running."
    CONVERGED = 1, "The tolerance was met.", True
    COMPLETED = 2, "The fixed number of steps asked for was done.", True
    STOPPED = 3, "A watcher stopped the run; the latest iterate is returned."
    MAX_STEPS = (
        4,
        "The limit on steps was reached before the tolerance was met; raise max_steps or loosen the tolerance.",
    )
    STAGNATED = (
        5,
        "The residual stays above the tolerance by rounding: the iterate is as accurate as this precision allows "
        "(loosen the tolerance, precondition, or use float64); or the products change from call to call (lg.validate "
        "tells).",
    )
    NEGATIVE_CURVATURE = (
        6,
        "A direction with p^T A p <= 0, up to rounding, was met: the operator is not positive definite. Add damping, "
        "use the Gauss-Newton operator for the Hessian, or MINRES, which takes singular and indefinite operators; to "
        "minimise, lg.TrustRegion(), which leaves saddles.",
    )
    INDEFINITE_PRECONDITIONER = (
        7,
        "The preconditioner gave r^T M r <= 0 for a nonzero residual: it is not positive definite.",
    )
    BREAKDOWN = (
        8,
        "The recurrence broke down: a quantity that it divides by is zero to working precision. Scale the problem, or "
        "use float64.",
    )
    NONFINITE = (
        9,
        "A product or an inner product was not finite; the last finite iterate is returned. Check the operator at this "
        "point, or scale the problem.",
    )
    BOUNDARY = 10, "The step reached the trust-region boundary.", True
    NONFINITE_INPUT = (
        11,
        "The right-hand side, the starting point or the objective there holds NaN or infinity, or a radius is not "
        "positive; nothing was computed.",
    )
    NO_DECREASE = (
        12,
        "No trial decreased the objective, at any damping or radius left to try, although more than rounding is "
        "promised: a gradient that does not belong to the objective (lg.validate tells), or values with noise above "
        "rounding.",
    )
    LEVELLED_OFF = (
        13,
        "The quadratic model has levelled off: over the last steps it decreased by less than was asked for. The "
        "residual was not held to a tolerance.",
        True,
    )
    SATISFIED = 14, "The stopping rule was satisfied; the residual was not held to a tolerance.", True
    LEAST_SQUARES = (
        15,
        "A^T r = 0 to the tolerance, as at the least-squares solution. Where the operator's condition number exceeds "
        "1 / tolerance a smaller residual may exist: tighten it.",
        True,
    )
    INCONSISTENT = (
        16,
        "The system has no solution: to working precision the operator is singular, and the right-hand side is not in "
        "its range. The residual is as small as it can be (A r = 0). Add damping, or project the right-hand side.",
    )
    CONDITION_LIMIT = (
        17,
        "The estimated condition number exceeds its limit; going on would mostly amplify errors in the data. The "
        "iterate is a regularised solution. Add damping, scale the columns, or raise conlim.",
    )
    SINGULAR = (
        18,
        "The matrix is singular to working precision. Use Eigh (a pseudo-inverse), LSMR, or damping; in lg.Newton(), "
        "whose pseudo-inverse leaves out all of the gradient, damping or lg.TrustRegion().",
    )
    INVARIANT = (
        19,
        "The Krylov space has become invariant under the operator: more steps would add nothing to it.",
        True,
    )
    NOT_SYMMETRIC = (
        20,
        "The operator was declared symmetric, and its products say that it is not (lg.validate measures how far). What "
        "was computed before is returned; don't rely on it.",
    )
    UNEXPLORED = (
        21,
        "The gradient is small, to the tolerance; not all of the curvature was explored. The operator is not known to "
        "be positive semi-definite, so that this may be a saddle: lg.TrustRegion() and lg.GLTR(explore=True) look; of "
        "an operator of your own that is, psd=True says so.",
        True,
    )
    GRADIENT_SMALL = (
        22,
        "The gradient is zero to the tolerance asked for; in least squares, the residuals are orthogonal to every "
        "column of the Jacobian.",
        True,
    )
    STEP_SMALL = 23, "The whole step to the model's minimum is small beside the parameters.", True
    DECREASE_SMALL = 24, "The decrease that the model promises, undamped, is small beside the value.", True
    AT_PRECISION = (
        25,
        "The value is as low as this precision allows: what could still be gained is rounding. For more digits use "
        "float64, or scale the problem.",
        True,
    )
    REDUCED = 26, "The gradient was reduced by the factor asked for; the value need not have converged.", True
    DIVERGING = (
        27,
        "The value has become stationary while the parameters still grow: a minimum at infinity, or a direction that "
        "the value does not depend on. Bound the parameters, fix one, or start elsewhere.",
    )
    INNER_TOLERANCE = (
        28,
        "The gradient is below the absolute tolerance of the method's inner solver, which takes no step then: how near "
        "a minimum is nobody has looked. Multiply the objective, or give a solver with rtol=; "
        "stopping=lg.methods.Facts(atol=...) calls so small a gradient a success.",
    )
    RESIDUAL_GROWS = (
        29,
        "The residual grows from step to step: the steps are too long for the operator's largest eigenvalue, or it has "
        "a negative one. Give a smaller scale=, or none, or use CG; MINRES takes indefinite operators.",
    )


class _Codes:
    def __init__(self) -> None:
        for status in Status:
            setattr(self, status.name, int(status))

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


Code = _Codes()
"""The codes as plain numbers: reading a member of an enumeration takes as long as an operation on scalars."""


def succeeded(code: Scalar) -> Any:
    """Whether a code, known or traced, is that of a success.

    >>> bool(succeeded(Code.CONVERGED)), bool(succeeded(Code.MAX_STEPS))
    (True, False)
    """
    return is_one_of(code, [int(status) for status in Status if status.succeeded])


def status_of(code: Any) -> Any:
    """The status of a code, or a list of them for many.

    >>> status_of(1), status_of([0, 4])
    (<Status.CONVERGED: 1>, [<Status.RUNNING: 0>, <Status.MAX_STEPS: 4>])

    Raises
    ------
    TypeError
        Inside a compiled program, where it is not known.
    """
    try:
        codes = np.asarray(code)
    except TypeError as error:
        raise TypeError(
            "the status is not known while a program is being traced; there, `code` is the number of a "
            "linop_gn.Status, and a result's `succeeded` tells whether it is a success."
        ) from error
    return Status(int(codes)) if codes.ndim == 0 else [Status(int(code)) for code in codes]


def is_one_of(code: Scalar, codes: Iterable[Any]) -> Any:
    """Whether a code, known or traced, is one of several."""
    return reduce(or_, [code == other for other in codes])


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
