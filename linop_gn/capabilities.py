"""What a backend can do, declared beside its code and readable without its framework.

A backend's package may hold a file ``capabilities.toml``::

    title = "MyLib"
    capabilities = ["float64", "in_place", "trees"]     # the words of CAPABILITIES

    [says]                                              # a row of the table: what stands there instead of yes or no
    compiled = "each vector update"

    [unsupported]                                       # known gaps: name and sentence
    "sparse arrays" = "They have no derivative."

The backend takes its ``capabilities`` from there (:func:`declared`), so that what
is declared and what the toolkit acts upon are one thing; ``linop-gn doctor`` and
the table in the documentation (:func:`markdown`) read the same file, whatever is
installed. The conformance kit holds a backend to the words that it claims.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["CAPABILITIES", "Declaration", "declared", "last_runs", "markdown", "replaced"]

CAPABILITIES = frozenset({"compiled", "derivatives", "devices", "float64", "in_place", "trees", "views"})
"""The words that a backend may claim; :class:`linop_gn.protocols.Backend` says what the toolkit does with them."""

ROWS = ("derivatives", "compiled", "in_place", "float64", "devices", "views", "trees", "bridge", "sparse")
"""The rows of the table: the capabilities, and two that every backend has in some way."""

BEGIN, END = "<!-- begin: linop-gn doctor --update -->", "<!-- end -->"
NAME = "capabilities.toml"


@dataclass(frozen=True)
class Declaration:
    """What one package declares."""

    title: str
    capabilities: frozenset[str]
    says: Mapping[str, str]
    unsupported: Mapping[str, str]

    def cell(self, row: str) -> str:
        """What the table says in ``row``."""
        default = "yes" if row in self.capabilities else "no"
        if row == "bridge":
            default = (
                "differentiates for others" if "derivatives" in self.capabilities else "is differentiated by others"
            )
        if row == "sparse":
            default = "SciPy's, on the host"
        return self.says.get(row, default)


@cache
def declared(package: str) -> Declaration:
    """What the import package of that name declares; neither it nor its framework is imported.

    >>> "in_place" in declared("linop_gn_" + "numpy").capabilities
    True

    Raises
    ------
    LookupError
        Where there is no such package, or no declaration in it.
    ValueError
        For a declaration with words that nobody knows.
    """
    spec = find_spec(package)
    places = [Path(place) / NAME for place in (spec.submodule_search_locations or ())] if spec else []
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise LookupError(
            f"the package {package!r} has no file {NAME}: that is where a backend declares what it can do."
        )
    content = tomllib.loads(found.read_text(encoding="utf-8"))
    unknown = [*content.keys() - {"title", "capabilities", "says", "unsupported"}]
    unknown += [word for word in content.get("capabilities", ()) if word not in CAPABILITIES]
    unknown += [row for row in content.get("says", ()) if row not in ROWS]
    if unknown:
        raise ValueError(
            f"{found} has {', '.join(map(repr, unknown))}, which means nothing here. Capabilities are "
            f"{', '.join(sorted(CAPABILITIES))}; [says] takes these, bridge and sparse."
        )
    return Declaration(
        content.get("title", package),
        frozenset(content.get("capabilities", ())),
        content.get("says", {}),
        content.get("unsupported", {}),
    )


def last_runs(file: Path) -> Mapping[str, Mapping[str, str]]:
    """The last run on an accelerator by backend, each with ``date`` and ``device``, from a file that may not exist."""
    runs: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["runs"] if file.is_file() else {}
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


def replaced(page: str, table: str) -> str:
    """``page`` with what stands between its two markers replaced by ``table``.

    Raises
    ------
    ValueError
        For a page without the markers.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no lines {BEGIN} and {END}, between which the table goes.")
    return f"{before}{BEGIN}\n{table}{END}{after}"
