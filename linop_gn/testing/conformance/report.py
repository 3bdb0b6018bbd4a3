"""What the kit found: a table to read, an object to assert on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...validation.report import Report

__all__ = ["ConformanceError", "ConformanceReport", "Finding"]


class ConformanceError(AssertionError):
    """A backend that breaks a law; the message is the report."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one law.

    Attributes
    ----------
    name
        That of the method without ``test_``.
    sentence
        What it says.
    status
        ``"passed"``, ``"failed"`` or ``"skipped"``.
    detail
        What went wrong, or why it was skipped.
    error
        The exception of a law that failed, with its traceback.
    """

    name: str
    sentence: str
    status: str
    detail: str = ""
    error: BaseException | None = None

    tolerance: ClassVar[None] = None  # a law has none of its own

    @property
    def advice(self) -> str:
        """What went wrong."""
        return self.detail

    def cells(self) -> tuple[str, str, str]:
        """The row of the table."""
        return self.name, self.status, self.sentence + f" ({self.detail})" * (self.status == "skipped")


class ConformanceReport(Report):
    """The laws that a backend, solver or method was held to, in order; true if none failed.

    >>> report = ConformanceReport("mine", (Finding("copy", "copy(x) is new.", "failed", "it is x"),))
    >>> report.failed, report.passed
    (('copy',), False)
    >>> print(report)
    mine: 1 law failed
    <BLANKLINE>
      law   status  what it says
      copy  FAILED  copy(x) is new.
    <BLANKLINE>
      copy: it is x
    """

    noun: ClassVar[str] = "law"
    error: ClassVar[type[AssertionError]] = ConformanceError
    headings: ClassVar[tuple[str, ...]] = ("law", "status", "what it says")
