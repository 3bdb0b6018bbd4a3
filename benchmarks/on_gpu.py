"""What only a GPU can tell: the conformance kit and the demo on each backend that has one, and a record of the run.

    python benchmarks/on_gpu.py [--backends cupy torch jax] [--save]

The kit runs on arrays of the first accelerator; the demo (``--quick``) trains there and compares with dense matrices.
Then bench_accelerator.py times products, steps and solvers there. In all under eight minutes.
``--save`` writes ``results/gpu.json``, where the table in docs/backends.md gets its last row from
(``linop-gn doctor --update docs/backends.md``); a backend that failed keeps the record of its last good run.
The tests that are marked ``gpu`` are a third thing: ``JAX_PLATFORMS=cuda,cpu pytest -m gpu``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Hashable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu")
os.environ.setdefault("JAX_ENABLE_X64", "1")

import numpy as np
from bench_accelerator import measured
from rich.console import Console
from timing import save

import linop_gn as lg
from linop_gn.app.cli import main as command_line
from linop_gn.testing.conformance import check_backend

RESULTS = Path(__file__).parent / "results" / "gpu.json"
Found = tuple[Hashable, str]
"""A device as a backend names it, and as its maker does."""


def of_cupy() -> Found:
    import cupy

    (first, *_) = lg.load("cupy").devices()
    return first, cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()


def of_torch() -> Found:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no CUDA device")
    torch.set_default_device("cuda")  # where the demo makes its tensors
    return "cuda:0", torch.cuda.get_device_name(0)


def of_jax() -> Found:
    import jax

    found = [device for device in jax.devices() if device.platform != "cpu"]
    if not found:
        raise RuntimeError("JAX sees no accelerator")
    return found[0], found[0].device_kind


DEVICES: dict[str, Callable[[], Found]] = {"cupy": of_cupy, "torch": of_torch, "jax": of_jax}


def run(name: str, console: Console) -> dict[str, Any] | None:
    """The record of a run that passed; None for one that did not."""
    backend = lg.load(name)
    device, title = DEVICES[name]()
    console.rule(f"{name} {backend.version()} on {title}")
    report = check_backend(backend, array=lambda host, dtype: backend.asarray(np.asarray(host), dtype, device))
    console.print(str(report), markup=False)
    with tempfile.TemporaryDirectory() as folder:
        failed = command_line(["demo", "--quick", "--backend", name, "--out", folder])
    if report.failed or failed:
        return None
    laws = len(report) - len(report.skipped)
    return {"date": date.today().isoformat(), "device": title, "version": backend.version(), "laws": laws}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", choices=sorted(DEVICES), default=sorted(DEVICES))
    parser.add_argument("--save", action="store_true", help="record the runs that passed")
    options = parser.parse_args(arguments)
    console, records, good = Console(), {}, True
    for name in options.backends:
        try:
            record = run(name, console)
        except (ImportError, RuntimeError) as error:
            console.print(f"{name}: {error}", markup=False)
            continue
        good = good and record is not None
        if record is not None:
            records[name] = record
    timed = measured([name for name in options.backends if name in records], False, 7, console)
    if options.save and timed:
        save("accelerator", timed)
    if options.save and records:
        before = json.loads(RESULTS.read_text())["runs"] if RESULTS.is_file() else {}
        RESULTS.write_text(json.dumps({"runs": before | records}, indent=2) + "\n")
    if not records:
        console.print("nothing ran on an accelerator")
    return 0 if good and records else 1


if __name__ == "__main__":
    sys.exit(main())
