"""Timing that can be compared: interleaved rounds in one process, medians, and ratios round by round.

These are timings on whatever machine they run on. Only ratios taken in one run
mean something; their spread over the rounds is printed with them.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "Timings", "interleaved", "machine", "save", "tell"]

RESULTS = Path(os.environ.get("LINOP_GN_RESULTS") or Path(__file__).parent / "results")
PACKAGES = ("linop-gn", "numpy", "scipy", "torch", "jax", "jaxlib", "lineax", "matfree", "curvlinops-for-pytorch")


class Timings(dict[str, list[float]]):
    """Seconds by name, one for each round."""

    def median(self, name: str) -> float:
        """Median seconds."""
        return statistics.median(self[name])

    def ratio(self, name: str, reference: str) -> tuple[float, float, float]:
        """Median, lower and upper quartile of the ratio to ``reference`` in the same round."""
        ratios = sorted(a / b for a, b in zip(self[name], self[reference], strict=True))
        quarter = len(ratios) // 4
        return statistics.median(ratios), ratios[quarter], ratios[-1 - quarter]


def interleaved(cases: Mapping[str, Callable[[], Any]], rounds: int = 15, least: float = 0.02) -> Timings:
    """Time each case once a round, in turn, repeating short ones until ``least`` seconds have passed."""
    repeats = {}
    for name, case in cases.items():
        case()  # compile, fill caches
        start = time.perf_counter()
        case()
        repeats[name] = max(1, round(least / max(time.perf_counter() - start, 1e-7)))
    timings = Timings({name: [] for name in cases})
    enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, case in cases.items():
                start = time.perf_counter()
                for _ in range(repeats[name]):
                    case()
                timings[name].append((time.perf_counter() - start) / repeats[name])
            gc.collect()
    finally:
        if enabled:
            gc.enable()
    return timings


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {"date": date.today().isoformat(), "cpu": cpu, "python": platform.python_version(), "versions": versions}


def save(name: str, results: Any, folder: Path = RESULTS) -> Path:
    """Write results with the machine they came from; returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "results": results}, indent=2) + "\n")
    return path


def tell(name: str, results: Mapping[str, Any], kept: bool) -> None:
    """Print results, a line each, and save them where asked."""
    for what, value in results.items():
        print(f"{what}: {value}")
    if kept:
        print(save(name, results))
