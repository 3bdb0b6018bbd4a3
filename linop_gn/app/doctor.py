"""``linop-gn doctor``: which backends there are, what they can do, how to get the others, and what is missing for what.

Everything is read from what backends declare and from packaging metadata: an
entry point whose framework is missing is installed by the extra of the same
name (digits after it aside) of the distribution that registered it; anything
else that it misses, by what that distribution says it requires.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import shutil
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..backend import ROWS, Declaration, declared
from ..dispatch import GROUP, load
from ..protocols import Backend
from .files import UnusableFileError, update_page

__all__ = ["command", "diagnose", "last_runs", "markdown"]

OWN = "its own"
SUPPLIED = "yours: jvp= and vjp=, or a Jacobian; or another framework's: derivatives="
DISTRIBUTION = "linop-gn"
LIBRARIES = (
    ("pictures: .plot(), lg.plot_runs", "matplotlib", "'linop-gn[plots]'"),
    ("tables: history.to_pandas()", "pandas", "'linop-gn[notebook]'"),
    ("progress bars in notebooks (otherwise text)", "ipywidgets", "'linop-gn[notebook]'"),
    ("lg.LMRegressor, lg.NewtonClassifier, the data of the demo", "sklearn", "scikit-learn"),
    ("checkpoints in safetensors (otherwise npz)", "safetensors", "safetensors"),
    ("starts and bounds of fits as lmfit.Parameters", "lmfit", "lmfit"),
    ("operators of PyLops", "pylops", "pylops"),
)
"""For what, by which module, from where: beside what backends say themselves."""
COMPILERS = ("c++", "g++", "clang++", "cl")
BEGIN, END = "<!-- begin: linop-gn doctor --update -->", "<!-- end -->"


def diagnose() -> dict[str, Any]:
    """What is installed, as plain data.

    >>> report = diagnose()
    >>> [found["devices"] for found in report["backends"] if found["name"] == "numpy"]
    [['cpu']]
    """
    by_target: dict[str, list[EntryPoint]] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        by_target.setdefault(entry.value, []).append(entry)
    found, missing = [], []
    for entries in by_target.values():
        try:
            found.append(_describe(load(entries[0].name), entries[0].module))
        except Exception as error:  # a framework that is broken, or has nothing to run on, fails in its own ways
            missing.append(_explain(entries, error))
    return {
        "linop_gn": version(DISTRIBUTION),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "backends": found,
        "missing": missing,
        "libraries": _libraries([entries[0].module for entries in by_target.values()]),
    }


def _libraries(packages: Iterable[str]) -> list[dict[str, str | None]]:
    """What more is done with, each with its version, or None and the command that brings it."""
    wanted = [(purpose, module, f"pip install {source}") for purpose, module, source in LIBRARIES]
    for package in packages:  # a backend that serves a library has a module with_<library>
        place = find_spec(package.partition(".")[0])
        for file in sorted(Path(place.origin).parent.glob("with_*.py")) if place and place.origin else ():
            told = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            library = file.stem.removeprefix("with_")
            wanted.append((told.partition("\n")[0].rstrip("."), library, f"pip install {library}"))
    rows: list[dict[str, str | None]] = [
        {"for": purpose, "library": module, "version": _version(module), "install": install}
        for purpose, module, install in wanted
    ]
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), *COMPILERS)))), None)
    way = "install g++ or clang++, or name one in CXX"
    return [*rows, {"for": "compile=True on the CPU", "library": "a C++ compiler", "version": compiler, "install": way}]


def _version(module: str) -> str | None:
    if find_spec(module) is None:
        return None
    try:
        return version("scikit-learn" if module == "sklearn" else module)
    except PackageNotFoundError:
        return "installed"


def _describe(backend: Backend, package: str) -> dict[str, Any]:
    try:
        unsupported = dict(declared(package).unsupported)
    except LookupError:
        unsupported = {}
    return {
        "name": backend.name,
        "version": backend.version(),
        "devices": backend.devices(),
        "capabilities": sorted(backend.capabilities),
        "derivatives": SUPPLIED if backend.calculus is None else OWN,
        "unsupported": unsupported,
    }


def _explain(entries: Sequence[EntryPoint], error: Exception) -> dict[str, Any]:
    """Why a backend cannot be loaded, and the command that changes it."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        reason, install = f"{error.name} is not installed", _install(entries, error.name.partition(".")[0])
    else:
        told = "" if isinstance(error, ImportError) and error.__cause__ else f"{type(error).__name__}: "
        reason, install = f"{told}{error}", "see the reason"
    return {"name": entries[0].name, "reason": reason, "install": install}


def _install(entries: Sequence[EntryPoint], module: str) -> str:
    """The pip command that brings ``module`` to the backend of these names, or those to choose from."""
    entry, source = entries[0], entries[0].dist
    if source is None:
        return f"pip install {module}"
    name = source.metadata["Name"]
    if module in {found.name for found in entries}:
        extras = source.metadata.get_all("Provides-Extra") or []
        fitting = [extra for extra in extras if extra.rstrip("0123456789") == entry.name]
        return " or ".join(f"pip install '{name}[{extra}]'" for extra in fitting) or f"pip install {module}"
    if module == entry.module.partition(".")[0]:
        return f"pip install --force-reinstall {name}"
    for required in source.requires or ():
        needed, _, when = required.partition(";")
        if _plain(re.split(r"[^\w.-]", needed.strip())[0]) == _plain(module):
            extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", when)
            return f"pip install '{name}[{extra[1]}]'" if extra else f"pip install {name}"
    return f"pip install {module} (imported by {name}, which does not say that it requires it)"


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def command(options: Namespace) -> int:
    """Print the report: tables for a person, JSON for a program, Markdown for a page; or bring a page up to date."""
    if options.markdown or options.update:
        return _document(options)
    report = diagnose()
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        show(report, Console())
    return 0


def _document(options: Namespace) -> int:
    entries, runs = entry_points(group=GROUP), last_runs(Path(options.runs))
    if options.markdown:
        print(markdown(entries, runs), end="")
        return 0
    ours = [entry for entry in entries if entry.dist is not None and entry.dist.metadata["Name"] == DISTRIBUTION]
    update_page(Path(options.update), markdown(ours, runs), BEGIN, END)
    return 0


def show(report: dict[str, Any], console: Console) -> None:
    """The report as tables, the second with the command that installs each backend that could not be loaded."""
    console.print(f"linop-gn {report['linop_gn']}, Python {report['python']} on {report['platform']}")
    headings: Sequence[str] = ("backend", "version", "devices", "derivatives", "capabilities")
    rows: list[Sequence[str]] = [
        (f["name"], f["version"], ", ".join(f["devices"]), f["derivatives"], ", ".join(f["capabilities"]))
        for f in report["backends"]
    ]
    console.print(_table("Backends found", headings, rows, show_lines=True))
    for found in report["backends"]:
        for name, sentence in found["unsupported"].items():
            console.print(f"[bold]{found['name']}[/bold], {escape(name)}: {escape(sentence)}", highlight=False)
    if report["missing"]:
        headings = ("backend", "why it is missing", "how to get it")
        rows = [(entry["name"], entry["reason"], entry["install"]) for entry in report["missing"]]
        console.print(_table("Backends that could be added", headings, rows))
    headings = ("for", "library", "version, or how to get it")
    rows = [(one["for"], one["library"], one["version"] or f"MISSING: {one['install']}") for one in report["libraries"]]
    console.print(_table("What more is done with", headings, rows))


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], **style: Any) -> Table:
    made = Table(title=title, title_justify="left", title_style="bold", **style)
    for heading in headings:
        made.add_column(heading, overflow="fold")
    for row in rows:
        made.add_row(*map(escape, row))
    return made


def last_runs(file: Path) -> Mapping[str, Mapping[str, str]]:
    """The last run on an accelerator by backend, each with ``date`` and ``device``, from a file that may not exist."""
    if not file.is_file():
        return {}
    try:
        runs: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["runs"]
        if not all({"date", "device"} <= run.keys() for run in runs.values()):
            raise KeyError("date and device")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnusableFileError(
            f"{file} does not hold the last runs, {{'runs': {{name: {{'date', 'device'}}}}}} as JSON: {error}. Give "
            "another with --runs, or delete it."
        ) from error
    return runs


def markdown(entries: Iterable[EntryPoint], runs: Mapping[str, Mapping[str, str]]) -> str:
    """The table of all backends that declare something, and their known gaps, as Markdown."""
    columns: dict[str, Declaration] = {}
    names: dict[str, str] = {}
    for entry in sorted(entries, key=lambda entry: entry.name):
        try:
            names.setdefault(entry.module, entry.name)
            columns[entry.module] = declared(entry.module)
        except LookupError:
            continue
    head = ["", *(found.title for found in columns.values())]
    rows = [[row.replace("_", " "), *(found.cell(row) for found in columns.values())] for row in ROWS]
    rows.append(["last run on an accelerator", *(_ran(found, runs.get(names[m])) for m, found in columns.items())])
    lines = [_line(head), _line(["---"] * len(head)), *map(_line, rows)]
    gaps = [
        f"* {found.title}, {name}: {sentence}"
        for found in columns.values()
        for name, sentence in found.unsupported.items()
    ]
    return "\n".join([*lines, *(["", "Known gaps:", "", *gaps] if gaps else [])]) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ran(found: Declaration, run: Mapping[str, str] | None) -> str:
    if "devices" not in found.capabilities:
        return "needs none"
    return f"{run['date']}, {run['device']}" if run else "not run on one yet"
