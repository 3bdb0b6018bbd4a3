"""What validation, or a kit, found: a table to read, an object to assert on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from .. import html
from ..arguments import needed

__all__ = ["Check", "Report", "ValidationError"]

_WIDTH = 120
_LEAST = 1e-18
"""Where a picture shows an error of zero."""


class ValidationError(AssertionError):
    """An operator that failed a check; the message is the report."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes
    ----------
    name
        What it is found by in a :class:`Report`.
    measures
        What was compared, in words.
    status
        ``"passed"``, ``"failed"`` or ``"skipped"``.
    error, tolerance
        Relative error and what is allowed of it; None where nothing was measured. For the checks that
        count (entries that are not finite, arrays written to) they are a number and 0.
    reason
        Why it was skipped, or what was noticed on the way.
    advice
        What to do about a failure.
    """

    name: str
    measures: str
    status: str
    error: float | None = None
    tolerance: float | None = None
    reason: str = ""
    advice: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.status == "passed"

    @property
    def failed(self) -> bool:
        """Whether the error exceeds the tolerance, or the check raised."""
        return self.status == "failed"

    @property
    def skipped(self) -> bool:
        """Whether there was nothing to check; ``reason`` says why."""
        return self.status == "skipped"

    def cells(self) -> tuple[str, str, str, str, str]:
        """The row of the table."""
        what = self.reason if self.skipped else ": ".join(filter(None, [self.measures, self.reason]))
        return self.name, self.status, _number(self.error), _number(self.tolerance), what


@dataclass(frozen=True)
class Report:
    """The checks of one subject, by name and in order; true if none failed.

    >>> report = Report("Dense(2 x 2)", (Check("adjoint", "<u, A v> and <A^T u, v>", "passed", 1e-17, 1e-12),))
    >>> report.passed, report.failed, report["adjoint"].error
    (True, (), 1e-17)
    >>> print(report)
    Dense(2 x 2): 1 check passed
    <BLANKLINE>
      check    status  error    tolerance  what was compared
      adjoint  passed  1.0e-17  1.0e-12    <u, A v> and <A^T u, v>
    """

    subject: str
    checks: tuple[Any, ...]

    noun: ClassVar[str] = "check"
    error: ClassVar[type[AssertionError]] = ValidationError
    headings: ClassVar[tuple[str, ...]] = ("check", "status", "error", "tolerance", "what was compared")

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    def _named(self, status: str) -> tuple[str, ...]:
        return tuple(check.name for check in self.checks if check.status == status)

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return self._named("failed")

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of the checks that had nothing to check."""
        return self._named("skipped")

    @property
    def largest_error(self) -> float:
        """The largest relative error of a check that measured one against a tolerance."""
        return max((check.error or 0.0 for check in self.checks if check.tolerance), default=0.0)

    def raise_if_failed(self) -> Self:
        """The report itself.

        Raises
        ------
        AssertionError
            If a check failed: :class:`ValidationError`, whose message is the report.
        """
        if self.failed:
            raise self.error(f"failed in {', '.join(self.failed)}\n\n{self}")
        return self

    def __getitem__(self, name: str) -> Any:
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"there is no {self.noun} {name!r}; there are {[check.name for check in self.checks]}")

    def __iter__(self) -> Iterator[Any]:
        return iter(self.checks)

    def __len__(self) -> int:
        return len(self.checks)

    def __bool__(self) -> bool:
        return self.passed

    def plot(self, figure: Any = None) -> Any:
        """A picture: the error of each check that has a tolerance, beside it; a matplotlib figure.

        Raises
        ------
        ImportError
            Without matplotlib.
        """
        Figure = needed("matplotlib.figure", "plots are drawn by matplotlib", "plots").Figure
        shown = [check for check in self.checks if check.tolerance and check.error is not None][::-1]
        figure = Figure(figsize=(6.4, 1.2 + 0.3 * len(shown)), layout="constrained") if figure is None else figure
        axes, rows = figure.subplots(), range(len(shown))
        axes.plot([check.tolerance for check in shown], rows, "k|", markersize=12, label="tolerance")
        for status, colour in (("passed", "tab:green"), ("failed", "tab:red")):
            dots = [(max(check.error, _LEAST), y) for y, check in enumerate(shown) if check.status == status]
            axes.plot([x for x, _ in dots], [y for _, y in dots], "o", color=colour, label=status if dots else "_")
        axes.set(xscale="log", yticks=rows, yticklabels=[check.name for check in shown])
        axes.set(title=self.headline(), xlabel=f"relative error (none: {_LEAST:g})")
        axes.legend(frameon=False)
        return figure

    def _repr_html_(self) -> str:
        cells = [check.cells() for check in self.checks]
        rows = [(name, "FAILED" if status == "failed" else status, *rest) for name, status, *rest in cells]
        advice = "\n".join(f"{name}: {self[name].advice}" for name in self.failed if self[name].advice)
        return html.page(self.headline(), html.table(rows, self.headings), html.page(advice) * bool(advice))

    def headline(self) -> str:
        """One line: the subject and how many checks passed, failed and were skipped."""
        counts = [(len(self._named(status)), status) for status in ("passed", "failed", "skipped")]
        said = [f"{number} {status}" for number, status in counts if number]
        said[:1] = [one.replace(" ", f" {self.noun}{'s' * (one[:2] != '1 ')} ", 1) for one in said[:1]]
        return f"{self.subject}: {', '.join(said)}"

    def __str__(self) -> str:
        from rich.console import Console

        page = Console(width=_WIDTH, color_system=None, force_jupyter=False)
        with page.capture() as captured:
            page.print(self)
        return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())

    __repr__ = __str__

    def __rich__(self) -> Any:
        """The table with colours, for a rich console."""
        from rich.console import Group
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        colour = {"passed": "green", "failed": "bold red", "skipped": "dim"}
        table = Table(*self.headings, box=None, padding=(0, 2, 0, 0), header_style="")
        for column in table.columns[:-1]:
            column.no_wrap = True
        for check in self.checks:
            name, status, *numbers, what = check.cells()
            status = Text("FAILED" if status == "failed" else status, colour[status])
            table.add_row(name, status, *numbers, Text(what))
        said = [Text(f"{name}: {self[name].advice}", "red") for name in self.failed if self[name].advice]
        advice = [Padding(text, (1, 0, 0, 2)) for text in said]
        return Group(Text(self.headline(), "bold"), Padding(table, (1, 0, 0, 2)), *advice)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    whole = not math.isfinite(value) or value == 0 or (value >= 1 and value == round(value))
    return f"{value:g}" if whole else f"{value:.1e}"
