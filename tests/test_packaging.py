"""Promises about the distribution: what an import costs, what may be imported where, and what a wheel holds."""

import ast
import importlib
import json
import os
import subprocess
import sys
import zipfile
from importlib.metadata import distribution, entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest

import linop_gn

FRAMEWORKS = ("torch", "jax", "jaxlib", "cupy", "cupyx", "flax", "equinox", "optax", "autograd", "tensorflow")
PACKAGES = ("linop_gn", "linop_gn_numpy", "linop_gn_torch", "linop_gn_jax", "linop_gn_autograd", "linop_gn_cupy")
PACKAGES += ("linop_gn_studies",)
FOLDER = Path(linop_gn.__file__).parent
SOURCES = sorted(FOLDER.rglob("*.py"))
ROOT = FOLDER.parent


def folder_of(package):
    """Where a package is, found without importing it."""
    (place,) = find_spec(package).submodule_search_locations
    return Path(place)


def run(code, **settings):
    environment = {name: value for name, value in (os.environ | settings).items() if value}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def relative(path):
    return str(path.relative_to(ROOT))


# what an import brings in


def test_importing_linop_gn_imports_no_framework():
    assert run(f"import sys, json, linop_gn; print(json.dumps([m for m in {FRAMEWORKS} if m in sys.modules]))") == []


def test_importing_every_module_of_linop_gn_imports_no_framework():
    code = f"""
import sys, json, pkgutil, importlib, linop_gn
names = [m.name for m in pkgutil.walk_packages(linop_gn.__path__, "linop_gn.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(json.dumps([len(names), [m for m in {FRAMEWORKS} if m in sys.modules]]))
"""
    count, frameworks = run(code)
    assert count > 5
    assert frameworks == []


def test_importing_linop_gn_brings_little_beside_numpy():
    """What an import takes goes by what it brings; plots, progress bars and SciPy come when they are asked for."""
    code = """
import sys, json, numpy
before = {name.partition(".")[0] for name in sys.modules} | set(sys.stdlib_module_names)
import linop_gn
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} - before)))
"""
    assert set(run(code)) <= {"array_api_compat", "linop_gn", "optree", "typing_extensions"}


# what the sources may say


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_module_of_linop_gn_imports_or_names_a_framework(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    backends = tuple(f"linop_gn_{name}" for name in (*FRAMEWORKS, "numpy"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""] if node.level == 0 else []
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            names = [node.value]
        else:
            continue
        for name in names:
            assert name.partition(".")[0] not in FRAMEWORKS + backends, f"line {node.lineno} names {name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_file_holds_one_idea(package):
    files = [p for p in folder_of(package).rglob("*.py") if "testing" not in p.parts]  # a kit lists its laws
    long = {p.name: n for p in files if (n := len(p.read_text(encoding="utf-8").splitlines())) > 500}
    assert not long, "does each still hold one idea?"


# what the distribution declares and holds


def test_entry_points_resolve_to_backends_named_after_the_root_of_their_array_type():
    entries = {entry.name: entry for entry in entry_points(group="linop_gn.backends") if entry.name != "cupy"}
    assert set(entries) >= {"numpy", "torch", "jax", "jaxlib"}
    for name, entry in entries.items():
        if find_spec(name) is None:
            continue
        backend = entry.load()
        root = type(backend.asarray(1.0, "float32")).__module__.partition(".")[0]
        assert root in entries
        assert entries[root].load() is backend or name == "autograd"  # its arrays are NumPy's
        assert entries[backend.name].load() is backend


@pytest.mark.parametrize("package", PACKAGES)
def test_types_are_shipped(package):
    assert (folder_of(package) / "py.typed").is_file()


def test_every_framework_is_an_extra():
    extras = set(distribution("linop-gn").metadata.get_all("Provides-Extra"))
    assert extras >= {"jax", "torch", "cupy12", "cupy13", "autograd", "cpu", "testing", "studies", "docs"}


def test_the_core_depends_on_no_framework():
    core = [line for line in distribution("linop-gn").requires if "extra ==" not in line]
    assert core
    assert not any(line.startswith(FRAMEWORKS) for line in core)


@pytest.mark.skipif("LINOP_GN_INSTALLED" not in os.environ, reason="only where the built wheel is tested")
def test_it_is_the_wheel_that_is_tested():
    for package in PACKAGES:
        assert folder_of(package).is_relative_to(os.environ["LINOP_GN_INSTALLED"]), package


def test_a_wheel_holds_the_packages_and_nothing_else(tmp_path, monkeypatch):
    if not (ROOT / "noxfile.py").exists():
        pytest.skip("runs from the sources")
    build = pytest.importorskip("hatchling.build")
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / build.build_wheel(str(tmp_path))) as wheel:
        names = wheel.namelist()
        entry_text = wheel.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert tops >= set(PACKAGES)
    assert all(top == "linop_gn" or top.startswith("linop_gn_") for top in tops)
    assert {f"{top}/py.typed" for top in tops} <= set(names)
    assert {f"linop_gn/{p.relative_to(FOLDER).as_posix()}" for p in SOURCES} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "linop-gn = linop_gn.app.cli:main" in entry_text


def test_the_script_is_the_command_line():
    (script,) = entry_points(group="console_scripts", name="linop-gn")
    assert script.load() is importlib.import_module("linop_gn.app.cli").main
