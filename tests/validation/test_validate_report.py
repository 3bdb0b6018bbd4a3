"""How a report reads, and what a test asserts on."""

import io
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

import linop_gn as lg
from linop_gn.validation.report import Check, Report

PASSED = Check("adjoint", "<u, A v> and <A^T u, v>", "passed", 2e-16, 1e-12)
SKIPPED = Check("psd", "v^T A v >= 0", "skipped", reason="it does not claim to be positive semi-definite")
FAILED = Check("dense", "products and the matrix", "failed", float("inf"), 1e-12, "raised [oops]", "Look at the loss.")
COUNTED = Check("finite", "products are finite", "failed", 3.0, 0.0, "3 of 12 are not", "Look for overflow.")


def test_a_report_reads_as_a_table():
    text = str(Report("Dense(2 x 2)", (PASSED, SKIPPED, FAILED, COUNTED)))
    lines = text.splitlines()
    assert lines[0] == "Dense(2 x 2): 1 check passed, 2 failed, 1 skipped"
    assert lines[2].split() == ["check", "status", "error", "tolerance", "what", "was", "compared"]
    columns = {
        line.index(word) for line, word in zip(lines[3:7], ("passed", "skipped", "FAILED", "FAILED"), strict=True)
    }
    assert len(columns) == 1
    assert "3        0" in lines[6]
    assert "  dense: Look at the loss." in lines
    assert "  finite: Look for overflow." in lines
    assert repr(Report("A", (PASSED,))) == str(Report("A", (PASSED,)))


def test_a_report_keeps_to_the_width_of_a_screen():
    torn = Check("dense", "products and the matrix", "failed", 0.5, 1e-12, "words " * 60, "advice " * 60)
    lines = str(Report("A", (torn,))).splitlines()
    assert max(map(len, lines)) <= 120
    assert sum(line.count("words") for line in lines) == 60
    assert sum(line.count("advice") for line in lines) == 60


def test_a_report_is_something_to_assert_on():
    report = Report("A", (PASSED, SKIPPED, COUNTED))
    assert not report
    assert not report.passed
    assert report.failed == ("finite",)
    assert report.skipped == ("psd",)
    assert report["adjoint"].error == 2e-16
    assert (report["adjoint"].passed, report["psd"].skipped, report["finite"].failed) == (True, True, True)
    assert [check.name for check in report] == ["adjoint", "psd", "finite"]
    assert len(report) == 3
    assert report.largest_error == 2e-16
    with pytest.raises(KeyError, match="there are \\['adjoint', 'psd', 'finite'\\]"):
        report["symetry"]


def test_what_failed_is_raised_with_the_table():
    report = Report("A", (PASSED, FAILED))
    with pytest.raises(AssertionError, match="failed in dense") as caught:
        report.raise_if_failed()
    assert isinstance(caught.value, lg.ValidationError)
    assert str(report) in str(caught.value)
    fine = Report("A", (PASSED, SKIPPED))
    assert fine.raise_if_failed() is fine
    assert fine


def test_a_rich_console_shows_the_same():
    shown = io.StringIO()
    Console(file=shown, width=120, force_terminal=True).print(Report("A", (PASSED, FAILED, SKIPPED)))
    text = shown.getvalue()
    for word in ("adjoint", "2.0e-16", "FAILED", "raised [oops]", "Look at the loss.", "positive semi-definite"):
        assert word in text
    assert "\x1b[" in text


def test_every_check_says_what_it_measures_and_what_to_do():
    report = lg.validate(lg.Dense(np.eye(3)))
    assert len({check.name for check in report}) == len(report)
    assert all(check.measures for check in report)
    assert all(check.reason for check in report if check.skipped)
    assert all(check.tolerance is not None and check.error is not None for check in report if check.passed)
    from linop_gn.validation.laws import LAWS

    names = [law.name for law in LAWS]
    assert all(law.advice.endswith(".") for law in LAWS)
    assert all(names.index(first) < names.index(law.name) for law in LAWS for first in law.after)


def test_a_report_is_a_table_in_notebooks_and_a_picture():
    report = Report("A", (PASSED, SKIPPED, FAILED, COUNTED))
    page = ElementTree.fromstring(report._repr_html_())
    rows = [[cell.text or "" for cell in row] for row in page.iter("tr")]
    assert rows[0] == list(Report.headings)
    assert [row[:2] for row in rows[1:]] == [
        ["adjoint", "passed"],
        ["psd", "skipped"],
        ["dense", "FAILED"],
        ["finite", "FAILED"],
    ]
    assert "dense: Look at the loss." in page.findall(".//pre")[-1].text
    pytest.importorskip("matplotlib")
    axes = report.plot().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dense", "adjoint"]
    tolerances, passed, _ = axes.get_lines()
    assert (list(passed.get_xdata()), list(passed.get_ydata())) == ([2e-16], [1])
    assert list(tolerances.get_xdata()) == [1e-12, 1e-12]


def test_an_operator_in_a_notebook_tells_its_vectors_and_parts():
    A = lg.Damped(lg.Diagonal({"b": np.ones(2), "w<": np.ones((2, 3))}), 0.5)
    page = ElementTree.fromstring(A._repr_html_())
    assert page.find("pre").text == repr(A)
    rows = [tuple(cell.text for cell in row) for row in page.iter("tr")]
    assert rows == [("vectors", "b (2,)"), ("vectors", "w< (2, 3)"), ("operator", repr(A.operator))]
