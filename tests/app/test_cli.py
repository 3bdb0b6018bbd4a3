"""The command line: what it prints, and that it works whatever is installed."""

import json
import re
import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest

from linop_gn import dispatch
from linop_gn.app import demo, doctor, files
from linop_gn.app.cli import main
from linop_gn.app.doctor import BEGIN, END

TARGETS = {entry.value for entry in entry_points(group=dispatch.GROUP)}


class Blocker:
    """Put first on ``sys.meta_path``, makes some packages impossible to import."""

    SOURCE = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
from linop_gn.app.cli import main
raise SystemExit(main({arguments!r}))
"""

    @classmethod
    def run(cls, blocked, arguments):
        code = cls.SOURCE.format(blocked=set(blocked), arguments=arguments)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_doctor_as_json_tells_of_every_registered_backend(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["linop_gn"] == version("linop-gn")
    assert len(report["backends"]) + len(report["missing"]) == len(TARGETS)
    for found in report["backends"]:
        backend = dispatch.load(found["name"])
        assert found["version"] == backend.version()
        assert set(found["capabilities"]) == backend.capabilities
        assert found["devices"]
        assert (found["derivatives"] == doctor.SUPPLIED) == (backend.calculus is None)


def test_doctor_prints_a_table_for_people(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "Backends found" in out
    assert "numpy" in out


def test_doctor_works_with_only_numpy_and_says_how_to_get_the_rest():
    done = Blocker.run({"torch", "jax", "jaxlib", "cupy", "autograd"}, ["doctor", "--json"])
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [found["name"] for found in report["backends"]] == ["numpy"]
    installs = {entry["name"]: entry["install"] for entry in report["missing"]}
    assert installs == {name: f"pip install 'linop-gn[{name}]'" for name in ("autograd", "jax", "torch")} | {
        "cupy": "pip install 'linop-gn[cupy12]' or pip install 'linop-gn[cupy13]'"
    }
    assert all("is not installed" in entry["reason"] for entry in report["missing"])


def test_doctor_shows_the_extra_in_the_table(capsys):
    report = doctor.diagnose()
    report["missing"] = [{"name": "x", "reason": "x is not installed", "install": "pip install 'y[x]'"}]
    doctor.show(report, doctor.Console(width=100))
    assert "pip install 'y[x]'" in capsys.readouterr().out


def test_doctor_tells_a_broken_framework_from_a_missing_one(monkeypatch):
    def broken(name):
        raise OSError("libsomething.so: cannot open shared object file")

    monkeypatch.setattr(doctor, "load", broken)
    report = doctor.diagnose()
    assert report["backends"] == []
    assert all("libsomething.so" in entry["reason"] for entry in report["missing"])
    assert not any(entry["install"].startswith("pip install") for entry in report["missing"])


def test_doctor_says_why_a_framework_that_is_there_has_nothing_to_run_on(monkeypatch):
    def nothing():
        raise RuntimeError("no device: plug one in")

    monkeypatch.setattr(dispatch.load("numpy"), "devices", nothing, raising=False)
    report = doctor.diagnose()
    (entry,) = (entry for entry in report["missing"] if entry["name"] == "numpy")
    assert entry["reason"] == "RuntimeError: no device: plug one in"
    assert "numpy" not in [found["name"] for found in report["backends"]]


def test_doctor_prints_what_is_declared_as_markdown(capsys, tmp_path):
    runs = tmp_path / "gpu.json"
    runs.write_text(json.dumps({"runs": {"torch": {"date": "2030-01-02", "device": "Abacus 3000"}}}))
    assert main(["doctor", "--markdown", "--runs", str(runs)]) == 0
    printed = capsys.readouterr().out
    assert "| derivatives |" in printed
    assert "2030-01-02, Abacus 3000" in printed


def test_doctor_brings_a_page_up_to_date_and_leaves_the_rest_of_it_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nSTALE\n{END}\nafter\n")
    assert main(["doctor", "--update", str(page), "--runs", str(tmp_path / "none.json")]) == 0
    written = page.read_text()
    assert written.startswith(f"before\n{BEGIN}\n|")
    assert written.endswith(f"{END}\nafter\n")
    assert "STALE" not in written
    assert "not run on one yet" in written


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["doctor", "--nonsense"]])
def test_wrong_arguments_exit_with_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: linop-gn" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == f"linop-gn {version('linop-gn')}"


def test_python_dash_m():
    done = subprocess.run([sys.executable, "-m", "linop_gn", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "doctor" in done.stdout
    assert "demo" in done.stdout


# files and interrupts


@pytest.mark.parametrize("held", ["{bad", "[]", '{"runs": {"numpy": 3}}'])
def test_a_file_of_something_else_ends_in_a_sentence(held, tmp_path, capsys):
    (tmp_path / "file").write_text(held)
    for arguments in (["--markdown", "--runs"], ["--update"]):
        assert main(["doctor", *arguments, str(tmp_path / "file")]) == 2
        told = capsys.readouterr().err
        assert re.fullmatch(r"linop-gn doctor: .*file.*\n", told)
    assert (tmp_path / "file").read_text() == held


def test_where_no_report_can_be_is_known_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "run", None)
    (tmp_path / "file").write_text("kept")
    for out in ("", str(tmp_path / "file"), str(tmp_path / "file" / "x"), "/dev/null", "/proc/none"):
        assert main(["demo", "--out", out]) == 2
        assert capsys.readouterr().err.startswith("linop-gn demo: ")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_full_disk_leaves_the_report_that_was_there(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    files.write_whole(tmp_path / "report", b"before")
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_whole(tmp_path / "report", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert (tmp_path / "report").read_bytes() == b"before"


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left"), 2)])
def test_interrupts_and_lost_output_end_in_a_sentence(error, status, monkeypatch, capsys):
    def command(options):
        raise error

    monkeypatch.setattr(doctor, "command", command)
    assert main(["doctor"]) == status
    assert capsys.readouterr().err.startswith("linop-gn doctor: ")


def test_doctor_says_what_is_missing_for_what(monkeypatch, capsys):
    there = doctor.find_spec
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name in ("matplotlib", "optax") else there(name))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    report = doctor.diagnose()
    told = {entry["library"]: entry for entry in report["libraries"]}
    assert told["matplotlib"]["version"] is None
    assert told["matplotlib"]["install"] == "pip install 'linop-gn[plots]'"
    assert "lg.to_optax" in told["optax"]["for"]  # in the words of the backend that has it
    assert told["optax"]["version"] is None
    assert told["a C++ compiler"]["version"] is None
    doctor.show(report, doctor.Console(width=200))
    assert "MISSING: pip install 'linop-gn[plots]'" in capsys.readouterr().out


# validate

FILE = """
import numpy as np
import linop_gn as lg

params = np.zeros(2)
wrong = np.eye(2)
objective = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.eye(2))
crooked = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.array([[1.0, 0.5], [0.0, 1.0]]))
operator = lg.Diagonal(np.ones(3))

def pair():
    return crooked, np.ones(2)

def broken():
    return 1 / 0
"""


@pytest.mark.parametrize(
    ("name", "status", "told"),
    [
        ("", 0, "GGN(2 x 2"),  # of a Hessian there are no derivatives: that is said, and is no failure
        (":operator", 0, "Diagonal(3 x 3"),
        (":pair", 1, "FAILED"),
        (":objective --curvature Hessian", 2, "not validated"),
        (":wrong", 2, "is a ndarray, not an operator"),
        (":other", 2, "has no 'other'; it has objective, crooked, operator"),
        (":broken", 2, "raised ZeroDivisionError"),
    ],
)
def test_validate_takes_what_a_file_has_and_its_status_says_how_it_went(name, status, told, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(FILE)
    assert main(["validate", *f"{tmp_path / 'mine.py'}{name}".split()]) == status
    printed = capsys.readouterr()
    assert told in " ".join((printed.out + printed.err).split())


def test_validate_names_a_file_that_is_not_there(capsys):
    assert main(["validate", "nowhere.py:objective"]) == 2
    assert "no file nowhere.py" in capsys.readouterr().err
