"""What the kit found: a table to read, an object to assert on."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["ConformanceError", "ConformanceReport", "Finding"]

_WIDTH = 118


class ConformanceError(AssertionError):
    """A backend that breaks a law; the message is the report."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one law.

    Attributes
    ----------
    law
        Its name: that of the method without ``test_``.
    sentence
        What it says.
    status
        ``"passed"``, ``"failed"`` or ``"skipped"``.
    detail
        What went wrong, or why it was skipped.
    error
        The exception of a law that failed, with its traceback.
    """

    law: str
    sentence: str
    status: str
    detail: str = ""
    error: BaseException | None = None


@dataclass(frozen=True)
class ConformanceReport:
    """The laws that a backend was held to, in order; true if none failed.

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

    backend: str
    findings: tuple[Finding, ...]

    def _named(self, status: str) -> tuple[str, ...]:
        return tuple(finding.law for finding in self.findings if finding.status == status)

    @property
    def passed(self) -> bool:
        """Whether no law failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the laws that failed."""
        return self._named("failed")

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of the laws that did not apply."""
        return self._named("skipped")

    def raise_if_failed(self) -> ConformanceReport:
        """The report itself.

        Raises
        ------
        ConformanceError
            If a law failed (an AssertionError, whose message is the report).
        """
        if self.failed:
            raise ConformanceError(f"{self.backend} breaks {', '.join(self.failed)}\n\n{self}")
        return self

    def __getitem__(self, law: str) -> Finding:
        for finding in self.findings:
            if finding.law == law:
                return finding
        raise KeyError(f"there is no law {law!r}; there are {[finding.law for finding in self.findings]}")

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __bool__(self) -> bool:
        return self.passed

    def headline(self) -> str:
        """One line: the backend and how many laws passed, failed and were skipped."""
        counts = [(len(self._named(status)), status) for status in ("passed", "failed", "skipped")]
        said = [f"{number} {status}" for number, status in counts if number]
        said[:1] = [said[0].replace(" ", " law " if said[0].startswith("1 ") else " laws ", 1)] if said else []
        return f"{self.backend}: {', '.join(said)}"

    def __str__(self) -> str:
        rows = [("law", "status", "what it says"), *(self._cells(finding) for finding in self.findings)]
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        indent = 2 + sum(widths) + 2 * 2
        lines = [self.headline(), ""]
        for row in rows:
            head = "  " + "".join(cell.ljust(width + 2) for cell, width in zip(row[:2], widths, strict=True))
            wide = max(_WIDTH, indent + 40)
            lines += textwrap.wrap(row[2], wide, initial_indent=head, subsequent_indent=" " * indent)
        for finding in self.findings:
            if finding.status == "failed":
                told = f"{finding.law}: {finding.detail}"
                lines += ["", *textwrap.wrap(told, _WIDTH, initial_indent="  ", subsequent_indent="    ")]
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__

    @staticmethod
    def _cells(finding: Finding) -> tuple[str, str, str]:
        skipped = f"({finding.detail})" if finding.status == "skipped" else ""
        status = "FAILED" if finding.status == "failed" else finding.status
        return finding.law, status, " ".join(filter(None, [finding.sentence, skipped]))
