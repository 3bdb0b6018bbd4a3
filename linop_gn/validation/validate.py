"""``lg.validate``: what users run to check an operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..curvature.supplied import MissingDerivativeError
from ..foreign import advised
from ..operators.base import LinearOperator, require_operator
from .measure import NotApplicableError
from .report import Check, Report

if TYPE_CHECKING:
    from .law import Law
    from .subject import Subject

__all__ = ["validate"]

DENSE_LIMIT = 5_000_000


@advised
def validate(
    operator: LinearOperator,
    *,
    against: LinearOperator | None = None,
    seed: int = 0,
    tolerance: float | None = None,
    dense_limit: int = DENSE_LIMIT,
    probes: int = 3,
) -> Report:
    """Check an operator against the laws of linear algebra and, if it is a curvature operator, against its definition.

    Every operator is checked for being linear, for its adjoint, for the symmetry and definiteness that it claims, for
    being the same each time and in each format, and for leaving alone what it is given. What was made from an
    objective (Hessian, Gauss-Newton, Jacobian; sums, multiples, products, damping and blocks of them) is moreover
    compared with a matrix that is assembled in float64 in another way, and with central differences.

    Parameters
    ----------
    operator
        What is to be checked. Its products are taken as they are, in its own dtype.
    against
        A curvature operator that ``operator`` ought to equal: for products of your own making.
    seed
        Of the random vectors; the same seed finds the same errors.
    tolerance
        Relative error allowed. By default 1e-12 for float64, 1e-5 for float32, 2e-2 for float16 and 1e-1 for bfloat16;
        below float64 ten times that against oracles (eigenvalues, the dense matrix, gradients, batches); at least 1e-8
        for differences, and ten times what they are uncertain of.
    dense_limit
        Largest number of entries of a matrix that is compared as a whole: 5 million are 2236 parameters. Larger
        ones are compared in columns at random coordinates.
    probes
        How many random vectors.

    Returns
    -------
    Report
        Prints as a table. ``report.passed``, ``report.failed`` (names), ``report["adjoint"].error``,
        ``report.raise_if_failed()``; true if nothing failed.

    Raises
    ------
    TypeError
        For something that is no operator, or inside a compiled function, where values are not known.
    MissingDerivativeError
        For a curvature operator whose products need derivatives that there are none of.

    Examples
    --------
    >>> import numpy as np, linop_gn as lg
    >>> space = lg.Space.flat(3, np.zeros(3))
    >>> shift = lg.FunctionOperator(lambda v: np.roll(v, 1), space, adjoint_function=lambda u: np.roll(u, 1))
    >>> report = lg.validate(shift)
    >>> report.passed, report.failed, report["linearity"].passed
    (False, ('adjoint',), True)
    """
    for what, given in (("operator", operator), ("against", operator if against is None else against)):
        require_operator("validate" if what == "operator" else "validate: against=", given)
        if not given.backend.is_concrete(given):
            raise TypeError("validate reads values, which a compiled function does not know: call it outside of jit.")
        for space in (given.domain, given.codomain):
            space.require_whole("validate", "compares no entries")
        if given.reduction is not None:
            raise ValueError(
                f"{what} is summed over processes, and the laws compare with what one process knows: validate that of "
                "one process's own objective (without reduce=), whose sum it is."
            )
    given = operator if against is None else against
    if not (operator.domain.agrees(given.domain) and operator.codomain.agrees(given.codomain)):
        raise ValueError(f"{operator!r} and {given!r} act on different vectors, so that they cannot be compared.")
    if probes < 1 or dense_limit < 0:
        raise ValueError(f"probes must be at least 1 and dense_limit at least 0, got {probes} and {dense_limit}.")
    from .laws import LAWS  # here, so that importing the package does not pay for the checks
    from .subject import Subject

    subject = Subject(operator, seed, probes, tolerance, dense_limit, against)
    _ = subject.data_before
    _ = subject.first  # what the very first product raises is the user's to see
    checks: list[Check] = []
    for law in LAWS:
        checks.append(_check(law, subject, {check.name for check in checks if check.failed}))
    return Report(repr(operator), tuple(checks))


def _check(law: Law, subject: Subject, failed: set[str]) -> Check:
    """One check. What it raises is a failure, unless there is no derivative to take products with at all."""
    because = [name for name in law.after if name in failed]
    if because:
        return Check(law.name, law.measures, "skipped", reason=f"means nothing while {because[0]} fails")
    try:
        found = law.check(subject)
        tolerance = law.allowed(subject, found.uncertainty)
    except NotApplicableError as reason:
        return Check(law.name, law.measures, "skipped", reason=str(reason))
    except MissingDerivativeError:
        raise
    except Exception as error:
        said = f"raised {type(error).__name__}: {error}"
        return Check(law.name, law.measures, "failed", float("inf"), subject.tolerance, said, law.advice)
    status = "passed" if found.error <= tolerance else "failed"
    advice = (found.advice or law.advice) if status == "failed" else ""
    return Check(law.name, law.measures, status, found.error, tolerance, found.note, advice)
