"""The kit itself: what it is given, what it skips, and how its report reads."""

import json
import subprocess
import sys

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.testing import device_of

conformance = pytest.importorskip("linop_gn.testing.conformance")
BackendConformance, check_backend, laws = (
    conformance.BackendConformance,
    conformance.check_backend,
    conformance.laws,
)
numpy = lg.load("numpy")


def test_importing_the_tools_needs_no_test_library():
    code = """
import sys, json, linop_gn.testing
before = [name in sys.modules for name in ("pytest", "hypothesis", "array_api_strict")]
linop_gn.testing.check_backend
print(json.dumps([before, "pytest" in sys.modules, "hypothesis" in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[False] * 3, False, True]


def test_every_law_says_what_it_holds():
    assert len(laws()) == len(set(laws())) > 80
    for name in laws():
        sentence = getattr(BackendConformance, f"test_{name}").__doc__
        assert sentence.strip().endswith("."), name


def test_laws_stand_before_those_that_are_built_on_them():
    names = laws()
    order = ["capabilities", "asarray", "pack_and_unpack", "copy", "axpy", "divide", "branch", "call", "advance"]
    order += ["any_order_of_calls", "products", "jvp", "hvp", "cg", "read_only_input"]
    assert [name for name in names if name in order] == order


def test_a_set_of_capabilities_must_be_the_declared_one():
    less, more = numpy.capabilities - {"views"}, numpy.capabilities | {"devices"}
    for capabilities, message in ((less, "declares ['views']"), (more, "told of ['devices']")):
        report = check_backend(numpy, capabilities=capabilities, only=["capabilities"])
        assert message in report["capabilities"].detail
    assert check_backend(numpy, capabilities=numpy.capabilities, only=["capabilities"])


def test_what_is_not_claimed_is_skipped_with_a_reason():
    report = check_backend(numpy, only=["jvp", "copy"])
    assert report.skipped == ("jvp",)
    assert report["jvp"].detail == "numpy does not claim 'derivatives'"
    assert report.passed


def test_the_authors_array_decides_the_device():
    strict = pytest.importorskip("linop_gn.testing.strict")
    seen = []

    class Kit(BackendConformance):
        def test_mine(self):
            """Arrays lie where the author puts them."""
            x = self.array(np.ones(2), "float64")
            seen.append((x.device, device_of(self.backend), lg.Space.flat(2, x).zeros().device))

    before = device_of(strict.strict_backend)
    for device in (strict.HOST, strict.DEVICE):
        report = check_backend(
            strict.strict_backend,
            array=lambda host, dtype, device=device: strict.strict_backend.asarray(host, dtype, device),
            only=["mine", "axpy", "pack_and_unpack"],
            kit=Kit,
        )
        assert report.passed, report
        assert seen.pop() == (device,) * 3
    assert device_of(strict.strict_backend) == before


def test_laws_of_ones_own_come_last_and_are_told_apart():
    class Kit(BackendConformance):
        def test_mine(self):
            """It is mine."""
            raise ZeroDivisionError("by zero")

    assert laws(Kit) == [*laws(), "mine"]
    report = check_backend(numpy, only=["eps", "mine"], kit=Kit)
    assert report.failed == ("mine",)
    assert report["mine"].detail.startswith("raised ZeroDivisionError (test_conformance_kit.py:")
    assert isinstance(report["mine"].error, ZeroDivisionError)


def test_a_kit_without_a_backend_says_so():
    with pytest.raises(TypeError, match="has no backend: give its class body a line"):
        BackendConformance().setup_method()


def test_a_law_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match=r"there are no laws called \['axpi'\]; there are \['capabilities'"):
        check_backend(numpy, only=["axpi"])


def test_the_first_law_that_fails_can_be_the_last_that_is_run():
    class Kit(BackendConformance):
        def test_eps(self):
            """It fails."""
            raise AssertionError("as it should")

    report = check_backend(numpy, only=["copy", "eps", "divide"], stop=True, kit=Kit)
    assert [finding.name for finding in report] == ["copy", "eps"]


def test_a_report_reads_as_a_table_and_is_something_to_assert_on():
    made = conformance.ConformanceReport(
        "mine",
        (
            conformance.Finding("copy", "copy(x) is new.", "passed"),
            conformance.Finding("jvp", "jvp is J v.", "skipped", "mine does not claim 'derivatives'"),
            conformance.Finding("dot", "dot is a sum. " * 20, "failed", "got 1.0, expected 2.0"),
        ),
    )
    lines = str(made).splitlines()
    assert lines[0] == "mine: 1 law passed, 1 failed, 1 skipped"
    assert "(mine does not claim 'derivatives')" in lines[4]
    assert "  dot: got 1.0, expected 2.0" in lines
    assert max(map(len, lines)) <= 120
    assert (made.passed, bool(made), len(made), made.failed) == (False, False, 3, ("dot",))
    with pytest.raises(AssertionError, match="failed in dot") as caught:
        made.raise_if_failed()
    assert isinstance(caught.value, conformance.ConformanceError)
    with pytest.raises(KeyError, match="there is no law 'dott'"):
        made["dott"]
    fine = conformance.ConformanceReport("mine", made.checks[:2])
    assert fine.raise_if_failed() is fine


def test_pytest_skips_and_fails_like_the_report(pytester_run):
    outcomes = pytester_run("""
import linop_gn as lg
from linop_gn.testing import BackendConformance

class TestMine(BackendConformance):
    backend = lg.load("numpy")

    def test_eps(self):
        raise AssertionError("as it should")
""")
    assert outcomes["failed"] == 1
    assert outcomes["skipped"] > 10
    assert outcomes["passed"] > 80


@pytest.fixture
def pytester_run(tmp_path):
    def run(text):
        (tmp_path / "test_mine.py").write_text(text)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
        done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False, cwd=tmp_path)
        counts = done.stdout.strip().splitlines()[-1].replace(",", "").split()
        return {word: int(number) for number, word in zip(counts[::2], counts[1::2], strict=False) if number.isdigit()}

    return run
