"""The command line: ``linop-gn doctor``, ``linop-gn validate``, ``linop-gn demo`` and ``linop-gn study``.

It reads arguments and calls the module of the same name; nothing is computed
here, and a command's module is imported only when that command is given. Files
that cannot be read or written, and Ctrl-C, end in a sentence and a status of
their own: 2, and 130.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version

from . import study
from .files import UnusableFileError

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
        help="print which backends are installed, what they can do, and what is missing for what",
        description="Print which backends are installed, their versions, devices and capabilities, "
        "where their derivatives come from, the command that installs each one that is missing, and which other "
        "libraries are missing for what.",
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

    checked = commands.add_parser(
        "validate",
        help="hold an operator or an objective of yours to its laws",
        description="Import a file and validate what a name in it is: an operator; an lg.Objective, at the file's "
        "params; (objective, params); or a function that returns one of these. The status is 0 if all checks passed, "
        "1 if one failed, 2 if there was nothing to validate.",
    )
    checked.add_argument("target", metavar="PATH.py[:NAME]", help="a file, and a name in it (objective)")
    checked.add_argument("--curvature", choices=("GGN", "Hessian"), help="of an objective, only this one")
    checked.add_argument("--seed", type=int, default=0, help="of the random vectors (%(default)s)")
    checked.add_argument("--tolerance", type=float, help="relative error allowed (by the dtype)")

    demo = commands.add_parser(
        "demo",
        help="validate and train a small network on real data with each backend, and write a report",
        description="On the handwritten digits that ship inside scikit-learn: compare curvature products with "
        "dense matrices, train with Levenberg-Marquardt beside SGD and Adam, and write a plot and an HTML report.",
    )
    demo.add_argument("--out", default="linop-gn-demo", metavar="DIR", help="folder for the report (%(default)s)")
    demo.add_argument("--backend", action="append", metavar="NAME", help="only this one (may be repeated)")
    demo.add_argument("--quick", action="store_true", help="a few steps on little data: a check that it runs")
    demo.add_argument(
        "--devices", type=int, metavar="N", help="instead, one run over N devices of this process beside one on one"
    )

    study.arguments(
        commands.add_parser(
            "study",
            help="re-run published experiments, and judge their claims",
            description="Re-run published experiments with second-order methods. Finished runs are kept, and not made "
            "again; a page with verdicts and pictures is written from them.",
        )
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the result is the exit status.

    >>> main(["doctor", "--json"])                                              # doctest: +ELLIPSIS
    {
      "linop_gn": ...
    0
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = import_module(f"linop_gn.app.{options.command}").command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on
        _let_go_of_output()
        return 1
    except KeyboardInterrupt:
        print(f"linop-gn {options.command}: interrupted.", file=sys.stderr)
        return 130
    except (OSError, UnusableFileError) as error:
        print(f"linop-gn {options.command}: {error}", file=sys.stderr)
        _let_go_of_output()
        return 2
    return status


def _let_go_of_output() -> None:
    """Discard what could not be written, so that the interpreter does not try it again at its end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
