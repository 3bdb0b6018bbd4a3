"""``linop-gn study``: published experiments re-run, and what became of their claims.

Studies are entry points of the group ``linop_gn.studies``, each a ``Study`` as :mod:`linop_gn_studies` has them.
A finished run is a file of its own under ``--out``; those that are there are not made again. The page with verdicts
and pictures is made anew from the files each time.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..dispatch import available, load
from ..methods.base import Method
from .files import MissingDataError, UnusableFileError, require_folder, update_page, with_table, write_whole

__all__ = ["arguments", "command"]

GROUP = "linop_gn.studies"
BEGIN, END = "<!-- studies: begin -->", "<!-- studies: end -->"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("study", metavar="NAME", help="a study, 'all' of them, or 'list' to see which there are")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--quick", action="store_true", help="a small form, some three minutes on two idle cores")
    forms.add_argument("--gpu", action="store_true", help="the form for one accelerator")
    parser.add_argument("--backend", metavar="NAME", help="the framework to run on; a compiled one where there is one")
    parser.add_argument("--data", metavar="DIR", help="a folder with full data sets, for what no package ships")
    parser.add_argument("--out", default="linop-gn-studies", metavar="DIR", help="folder for results (%(default)s)")
    parser.add_argument("--only", metavar="PATTERN", help="only runs whose name fits, such as '*--hf-gn--*'")
    parser.add_argument(
        "--method", action="append", default=[], metavar="MODULE:NAME", help="an Entry of your own that joins"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the runs that are missing and about what they cost"
    )
    parser.add_argument("--report", action="store_true", help="make the page from what is stored, and run nothing")
    parser.add_argument("--update", metavar="PAGE", help="put the tables of verdicts into a Markdown page, too")


def command(options: argparse.Namespace) -> int:
    """Run the studies, print the verdicts and write the page."""
    try:
        return _run(options)
    except MissingDataError as error:
        print(f"linop-gn study: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("linop-gn study: interrupted; finished runs are kept, and the same command goes on.", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    console, entries = Console(), sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    found = {entry.name: entry for entry in entries}
    if options.study == "list":
        console.print(_listed(entries))
        return 0
    if options.study != "all" and options.study not in found:
        print(
            f"linop-gn study: there is no study called {options.study!r}; there are: {', '.join(found)}.",
            file=sys.stderr,
        )
        return 2
    from linop_gn_studies.plan import Form, preferred
    from linop_gn_studies.report import html, markdown, table
    from linop_gn_studies.running import cost, ordered, run
    from linop_gn_studies.store import Store

    name = "quick" if options.quick else "gpu" if options.gpu else "cpu"
    form = Form(name, _backend(options.backend or preferred()), _folder(options.data))
    more = [_entry(given) for given in options.method]
    names = list(found) if options.study == "all" else [options.study]
    if options.update:
        with_table(Path(options.update), "", BEGIN, END)  # before hours of runs
    told, failed, fitting = [], [], 0
    folder = Path(options.out) if options.report or options.dry_run else require_folder(options.out)
    for study in (_loaded(found[name]) for name in names):
        store = Store(folder, study.name, form)
        if options.report:
            results = store.results()
            told += [(study, results)] if len(results) else []
            if not len(results):
                console.print(f"{study.name}: no results in {store.folder}.", soft_wrap=True)
            continue
        planned = ordered(study.plan(form, more))
        chosen = [r for r in planned if fnmatch.fnmatchcase(r.name, options.only or "*")]
        needed = {r.name for r in ordered([r for r in chosen if store.before(r) is None])}
        runs = [r for r in ordered(chosen) if r in chosen or r.name in needed]
        fitting += len(runs)
        if options.dry_run:
            missing = [r for r in runs if not store.has(r)]
            console.print(f"{study.name}: {len(missing)} of {len(runs)} runs, about {cost(missing) / 60:.0f} minutes")
            for r in missing:
                console.print(f"  {r.name}  about {r.seconds:.0f} s", markup=False, highlight=False)
            continue
        made, broken = run(study, runs, store, console)
        failed += broken
        words = f", {len(broken)} failed" if broken else ""
        if runs:
            console.print(f"{study.name}: {made} runs made, {len(runs) - made - len(broken)} were there{words}.")
        if old := store.outdated(planned):
            console.print(f"{study.name}: {len(old)} stored results are of other settings or data, and are left out.")
        told += [(study, results)] if len(results := store.results(but=old)) else []
    if options.only and not options.report and not fitting:
        raise UnusableFileError(
            f"--only {options.only}: no run has such a name. A pattern is of whole names, such as '*--sgd*--0'; "
            "--dry-run prints them."
        )
    for study, results in told:
        console.print(table(study, results))
    if told:
        page = folder / f"{options.study}-{store.folder.name}.html"
        write_whole(page, html(told).encode())
        console.print(f"Verdicts and pictures: {page}")
    if told and options.update:
        update_page(Path(options.update), f"\n{markdown(told, _elsewhere(folder, told, form))}\n", BEGIN, END)
    if failed:
        print(
            f"linop-gn study: {len(failed)} runs failed, as told above; give the command again when that is mended: "
            "what is finished is not made anew.",
            file=sys.stderr,
        )
    return 1 if failed or (options.report and not told) else 0


def _elsewhere(folder: Path, told: Sequence[Any], form: Any) -> dict[str, dict[str, Any]]:
    """What is stored of these studies in the same form on other backends."""
    from linop_gn_studies.store import Store

    names = [name for name in available() if name != form.backend]
    stores = {s.name: {name: Store(folder, s.name, replace(form, backend=name)) for name in names} for s, _ in told}
    return {study: {name: store.results() for name, store in of.items()} for study, of in stores.items()}


def _listed(entries: Sequence[Any]) -> Table:
    table = Table(box=None)
    for head in ("study", "title", "paper"):
        table.add_column(head, overflow="fold")
    for entry in entries:
        try:
            study = _loaded(entry)
            table.add_row(*map(escape, (study.name, study.title, study.paper)))
        except UnusableFileError as error:
            table.add_row(escape(entry.name), escape(str(error)))
    return table


def _loaded(entry: Any) -> Any:
    """The study of an entry point."""
    try:
        return entry.load()
    except Exception as error:  # somebody's own module
        raise UnusableFileError(
            f"the study {entry.name} cannot be loaded from {entry.value}: {_told(error)}"
        ) from error


def _backend(name: str) -> str:
    """The name of a backend that is here."""
    try:
        return load(name).name
    except (LookupError, ImportError) as error:
        raise UnusableFileError(f"--backend {name}: {error}") from error


def _folder(given: str | None) -> Path | None:
    """The folder of data, if it holds any that studies know."""
    from linop_gn_studies.data import known

    if given is None:
        return None
    if not Path(given).is_dir():
        raise UnusableFileError(f"--data {given}: there is no such folder.")
    if not known(Path(given)):
        raise UnusableFileError(
            f"--data {given}: it has no data that a study knows: MNIST's IDX files (or those in mnist/), "
            "fashion-mnist/, california_housing.csv (or that in housing/), corpus.txt."
        )
    return Path(given)


def _entry(given: str) -> Any:
    """The entry that MODULE:NAME names, looked for in the current folder too; its method is made once, to see that."""
    from linop_gn_studies.plan import Entry

    module, _, name = given.partition(":")
    if not name:
        raise UnusableFileError(f"--method {given}: write MODULE:NAME, an Entry and the module that it stands in.")
    sys.path.insert(0, os.getcwd())
    try:
        entry = getattr(importlib.import_module(module), name)
        if not isinstance(entry, Entry):
            raise TypeError(f"an Entry of linop_gn_studies is wanted, {name} is {type(entry).__name__}")
        for label, _, method in entry.made():
            if not isinstance(method, Method):
                raise TypeError(f"{label} makes {type(method).__name__}, an lg.Method is wanted")
    except Exception as error:  # a module of anybody's
        raise UnusableFileError(f"--method {given}: {_told(error)}") from error
    finally:
        sys.path.pop(0)
    return entry


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
