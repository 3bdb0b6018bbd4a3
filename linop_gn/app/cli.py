"""The command line: ``linop-gn doctor`` and ``linop-gn demo``.

It reads arguments and calls the module of the same name; nothing is computed
here, and a command's module is imported only when that command is given.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="linop-gn",
        description="Linear operators for the curvature of a model, and the solvers that take them.",
    )
    parser.add_argument("--version", action="version", version=f"linop-gn {version('linop-gn')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    doctor = commands.add_parser(
        "doctor",
        help="print which backends are installed, what they can do, and how to get the others",
        description="Print which backends are installed, their versions, devices and capabilities, "
        "where their derivatives come from, and the command that installs each one that is missing.",
    )
    forms = doctor.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="print one JSON object rather than tables")
    forms.add_argument(
        "--markdown", action="store_true", help="print what every backend declares, installed or not, as Markdown"
    )
    forms.add_argument("--update", metavar="PAGE", help="put that table, of this distribution's own, into a page")
    doctor.add_argument(
        "--runs",
        default="benchmarks/results/gpu.json",
        metavar="FILE",
        help="where the last runs on accelerators are recorded (%(default)s)",
    )

    demo = commands.add_parser(
        "demo",
        help="validate and train a small network on real data with each backend, and write a report",
        description="On the handwritten digits that ship inside scikit-learn: compare curvature products with "
        "dense matrices, train with Levenberg-Marquardt beside SGD and Adam, and write a plot and an HTML report.",
    )
    demo.add_argument("--out", default="linop-gn-demo", metavar="DIR", help="folder for the report (%(default)s)")
    demo.add_argument("--backend", action="append", metavar="NAME", help="only this one (may be repeated)")
    demo.add_argument("--quick", action="store_true", help="a few steps on little data: a check that it runs")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the result is the exit status.

    >>> main(["doctor", "--json"])                                              # doctest: +ELLIPSIS
    {
      "linop_gn": ...
    0
    """
    options = _parser().parse_args(arguments)
    status: int = import_module(f"linop_gn.app.{options.command}").command(options)
    return status
