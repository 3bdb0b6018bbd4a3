"""One check after the other."""

from __future__ import annotations

from ..curvature.supplied import MissingDerivativeError
from ..operators.base import LinearOperator
from .law import Law
from .laws import LAWS
from .measure import NotApplicableError
from .report import Check, Report
from .subject import Subject

__all__ = ["run"]


def run(
    operator: LinearOperator,
    against: LinearOperator | None,
    seed: int,
    tolerance: float | None,
    dense_limit: int,
    probes: int,
) -> Report:
    """All checks of an operator."""
    subject = Subject(operator, seed, probes, tolerance, dense_limit, against)
    checks: list[Check] = []
    _ = subject.data_before
    _ = subject.first  # what the very first product raises is the user's to see
    for law in LAWS:
        checks.append(_run(law, subject, {check.name for check in checks if check.failed}))
    return Report(repr(operator), tuple(checks))


def _run(law: Law, subject: Subject, failed: set[str]) -> Check:
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
