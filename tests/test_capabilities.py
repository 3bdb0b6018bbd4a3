"""What backends declare: it is what they do, and what the page says."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import linop_gn as lg
from linop_gn.app import doctor
from linop_gn.app.doctor import BEGIN, END, last_runs, markdown
from linop_gn.app.files import replaced
from linop_gn.backend import CAPABILITIES, CONTRACT, Declaration, declared

ROOT = Path(__file__).parent.parent
OURS = [entry for entry in entry_points(group="linop_gn.backends") if entry.dist.metadata["Name"] == "linop-gn"]


@pytest.mark.parametrize("module", sorted({entry.module for entry in OURS}))
def test_every_backend_declares_what_it_can_do(module):
    found = declared(module)
    assert found.title
    assert {"float64", "trees"} <= found.capabilities <= CAPABILITIES
    for name, backend in lg.available().items():
        if not isinstance(backend, ImportError) and type(backend).__module__ == module:
            assert backend.capabilities == found.capabilities, name
            assert backend.contract == CONTRACT
            assert ("derivatives" in found.capabilities) == (backend.calculus is not None)


def test_the_table_is_made_without_any_framework():
    code = """
import sys
from importlib.metadata import entry_points
from pathlib import Path
from linop_gn.app.doctor import last_runs, markdown
table = markdown(entry_points(group="linop_gn.backends"), last_runs(Path("nowhere")))
assert "CuPy" in table and "JAX" in table, table
loaded = [name for name in ("torch", "jax", "cupy", "autograd") if name in sys.modules]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not (ROOT / "benchmarks" / "results").is_dir(), reason="runs from the sources")
def test_the_page_is_up_to_date():
    page = (ROOT / "docs" / "backends.md").read_text()
    runs = last_runs(ROOT / "benchmarks" / "results" / "gpu.json")
    assert page == replaced(page, markdown(OURS, runs), BEGIN, END), "run: linop-gn doctor --update docs/backends.md"


def test_the_table_says_where_a_backend_last_ran_and_where_it_has_not():
    table = markdown(OURS, {"cupy": {"date": "2030-01-02", "device": "Abacus 3000"}})
    (row,) = (line for line in table.splitlines() if line.startswith("| last run"))
    cells = row.strip("| ").split(" | ")
    head = table.splitlines()[0].strip("| ").split(" | ")
    found = dict(zip(head, cells[1:], strict=True))
    assert found["CuPy"] == "2030-01-02, Abacus 3000"
    assert found["PyTorch"] == found["JAX"] == "not run on one yet"
    assert found["NumPy"] == "needs none"


def test_a_backend_that_declares_nothing_is_left_out(tmp_path, monkeypatch):
    (entry,) = entry_points(group="linop_gn.backends", name="numpy")
    monkeypatch.setattr(doctor, "declared", lambda package: (_ for _ in ()).throw(LookupError(package)))
    assert markdown([entry], {}).splitlines()[0].count("|") == 2


def test_cells_say_what_the_declaration_says_or_yes_or_no():
    plain = Declaration("X", frozenset({"views"}), {}, {})
    assert (plain.cell("views"), plain.cell("trees")) == ("yes", "no")
    assert plain.cell("bridge") == "is differentiated by others"
    assert Declaration("X", frozenset({"derivatives"}), {}, {}).cell("bridge") == "differentiates for others"
    assert Declaration("X", frozenset(), {"trees": "small ones"}, {}).cell("trees") == "small ones"


@pytest.mark.parametrize(
    ("text", "word"),
    [('capabilities = ["flying"]', "flying"), ('[says]\nweight = "light"', "weight"), ("colour = 3", "colour")],
)
def test_words_that_mean_nothing_are_refused(text, word, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=f"'{word}', which means nothing here. Capabilities are compiled,"):
        declared(package(tmp_path, monkeypatch, f"mistaken_{word}", text))


def test_gaps_are_told_in_sentences(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="the gap 'attention' is told by 'slow'; write a sentence"):
        declared(package(tmp_path, monkeypatch, "wordy", '[unsupported]\nattention = "slow"'))


def package(folder, monkeypatch, name, text):
    """An import package with that declaration, which nobody is to import."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("raise RuntimeError('not to be imported')")
    (folder / name / "capabilities.toml").write_text(text)
    monkeypatch.syspath_prepend(folder)
    return name


def test_a_package_without_a_declaration_is_told_where_it_goes():
    for package in ("json", "no_such_package"):
        with pytest.raises(LookupError, match=r"has no file capabilities\.toml"):
            declared(package)


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="between which the table goes"):
        replaced(f"{BEGIN} but no end", "table", BEGIN, END)
    assert replaced(f"a\n{BEGIN}\nb\n{END}\nc", "t\n", BEGIN, END) == f"a\n{BEGIN}\nt\n{END}\nc"
