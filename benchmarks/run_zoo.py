"""Architectures as their authors wrote them, each held against an oracle; ``tests/zoo`` has them.

    python benchmarks/run_zoo.py                          # all, or some families: --only recurrent linen_nets
    python benchmarks/run_zoo.py --save                   # stores what came of them, and writes docs/zoo.md
    python benchmarks/run_zoo.py --page                   # the page from what is stored

`nox -s zoo` runs this in an environment that has torchvision, transformers, flax and equinox.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
from zoo import cases, measured  # noqa: E402

from linop_gn.app.files import update_page, with_table  # noqa: E402

RESULTS = HERE / "results" / "zoo"
PAGE = HERE.parent / "docs" / "zoo.md"
BEGIN, END = "<!-- zoo -->", "<!-- /zoo -->"
COLUMNS = ("value", "gradient", "GGN", "blocks", "Hessian", "step")
HESSIAN = COLUMNS.index("Hessian")


def run(family: cases.Family, save: bool, missing: bool) -> list[str]:
    """Try the architectures of a family; a line for each that is not as it is declared."""
    about = {"date": date.today().isoformat(), "versions": {name: version(name) for name in (*family.needs, "numpy")}}
    path, wrong = RESULTS / f"{family.module}.json", []
    old = json.loads(path.read_text(encoding="utf-8")) if missing and path.exists() else {}
    found = old["architectures"] if old.get("versions") == about["versions"] else {}
    names = cases.names(family)
    for name in names:
        if name in found:
            continue
        begin, came = time.perf_counter(), {}
        try:
            with cases.made(family, name) as case:
                came, faults = (made := measured.measure(case)), measured.faults(case, made)
        except Exception as error:
            faults = [f"{type(error).__name__}: {error}"]
            traceback.print_exc(limit=-3)
        if not faults:
            found[name] = came
        if save:
            ordered = {name: found[name] for name in names if name in found}
            path.write_text(json.dumps({**about, "architectures": ordered}, indent=1) + "\n", encoding="utf-8")
        wrong += [f"{family.title}, {name}: {fault}" for fault in faults]
        errors = " ".join(f"{key} {value:.0e}" for key, value in came.get("errors", {}).items())
        size, seconds = came.get("parameters", 0), time.perf_counter() - begin
        print(f"{'WRONG' if faults else 'ok':6}{name:40}{size:8}{seconds:6.1f} s  {errors} {came.get('refused', '')}")
        print(*(f"      {fault}\n" for fault in faults), sep="", end="", flush=True)
    return wrong


def stored() -> dict[str, dict[str, Any]]:
    """The files of the families that were tried, by title."""
    paths = {family.title: RESULTS / f"{family.module}.json" for family in cases.FAMILIES}
    return {title: json.loads(path.read_text(encoding="utf-8")) for title, path in paths.items() if path.exists()}


def page() -> str:
    """The tables of the page, from what is stored."""
    files = stored()
    every = [(title, name, one) for title, file in files.items() for name, one in file["architectures"].items()]
    refused = [f"* **{name}** ({title}): {one['refused']}" for title, name, one in every if "refused" in one]
    dates = sorted({file["date"] for file in files.values()})
    versions = sorted({" ".join(pair) for file in files.values() for pair in file["versions"].items()})
    parts = [f"{len(every)} architectures: {len(every) - len(refused)} are right, {len(refused)} are refused. Taken on"]
    parts[0] += f" {' and '.join(dates)}, on the CPU, with {', '.join(versions)}."
    for title, file in files.items():
        parts += ["", f"## {title}", "", "| architecture | parameters | " + " | ".join(COLUMNS) + " |"]
        parts.append("| --- " * (2 + len(COLUMNS)) + "|")
        for name, one in file["architectures"].items():
            size = f"| {name}{' (float32)' * one['single']} | {one['parameters']:,} |"
            cells = [f"{one['errors'][column]:.0e}" for column in COLUMNS] if "errors" in one else []
            cells = ["surrogate" if one["surrogate"] and i == HESSIAN else cell for i, cell in enumerate(cells)]
            parts.append(" ".join([size, " | ".join(cells or ["refused", *[""] * (len(COLUMNS) - 1)]), "|"]))
    return "\n".join([*parts, "", "## What is refused, in its own words", "", *refused, ""])


def is_fresh() -> bool:
    """Whether the page says what is stored."""
    return PAGE.read_text(encoding="utf-8") == with_table(PAGE, page(), BEGIN, END)


def main() -> int:
    """Run, store, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[family.module for family in cases.FAMILIES], metavar="FAMILY")
    parser.add_argument("--save", action="store_true", help="store the results and write the page")
    parser.add_argument("--missing", action="store_true", help="those that are not stored, with these versions")
    parser.add_argument("--page", action="store_true", help="write the page from what is stored")
    options = parser.parse_args()
    wrong: list[str] = []
    for family in cases.FAMILIES:
        if not options.page and (options.only is None or family.module in options.only):
            wrong += run(family, options.save, options.missing)
    if options.save or options.page:
        update_page(PAGE, page(), BEGIN, END)
    print(*wrong, f"{len(wrong)} not as declared", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
