"""``linop-gn validate path.py:name``: an operator or an objective of a user's file held to its laws, from the shell.

The file is imported as any module, with its folder on the path. What has the name is one of

* an operator;
* an ``lg.Objective``, at the parameters that the file calls ``params``;
* a pair ``(objective, params)``;
* a function without arguments that returns one of these.

Of an objective the Gauss-Newton operator and the Hessian are validated, or the one that ``--curvature`` names.
"""

from __future__ import annotations

import sys
import traceback
from argparse import Namespace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import GGN, Hessian, LinearOperator, MissingDerivativeError, Objective, validate
from .files import UnusableFileError

__all__ = ["command", "found"]

CURVATURES: dict[str, Any] = {"GGN": GGN, "Hessian": Hessian}


def command(options: Namespace) -> int:
    """Print a report for each operator: 0 if all passed, 1 if a check failed, 2 if there is nothing to validate."""
    operators = _operators(found(options.target), options.target, options.curvature)
    reports, lacking = [], []
    for A in operators:
        try:
            reports.append(validate(A, seed=options.seed, tolerance=options.tolerance))
        except MissingDerivativeError as error:
            lacking.append(f"{A!r}: not validated. {error}")
    if not reports:
        raise UnusableFileError("\n".join(lacking))
    for told in (*reports, *lacking):
        Console().print(told, markup=False, emoji=False)  # an operator's name may have brackets
    return 0 if all(reports) else 1


def found(target: str) -> Any:
    """What ``path.py:name`` names; where it is an objective, with the file's ``params``.

    Raises
    ------
    UnusableFileError
        For a file that is none or cannot be run, and a name that is not in it.
    """
    path, _, name = target.partition(".py:")
    file, name = (Path(f"{path}.py"), name) if name else (Path(target), "objective")
    if file.suffix != ".py" or not file.is_file():
        raise UnusableFileError(f"there is no file {file}: give a Python file and a name in it, path.py:objective.")
    module = _imported(file)
    if not hasattr(module, name):
        has = [other for other, thing in vars(module).items() if isinstance(thing, (Objective, LinearOperator))]
        there = f"; it has {', '.join(has)}" if has else ""
        raise UnusableFileError(f"{file} has no {name!r}{there}: give one as {file}:NAME.")
    made = getattr(module, name)
    if callable(made) and not isinstance(made, (Objective, LinearOperator)):
        made = _run(file, made)
    if isinstance(made, Objective):
        if not hasattr(module, "params"):
            raise UnusableFileError(
                f"{file}:{name} is an objective, and the file has no params to validate it at: write params = ..., or "
                "a function that returns (objective, params)."
            )
        return made, module.params
    return made


def _imported(file: Path) -> Any:
    name = (
        f"validated_{file.stem}"  # no file of a user takes the place of a module that is imported: copy.py, random.py
    )
    spec = spec_from_file_location(name, file)
    assert spec is not None  # of a .py there is one
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.parent.resolve()))
    _run(file, lambda: spec.loader.exec_module(module))
    return module


def _run(file: Path, function: Any) -> Any:
    """What a user's code returns; where it raises, its traceback, and a sentence."""
    try:
        return function()
    except Exception as error:
        traceback.print_exc()
        raise UnusableFileError(f"{file} raised {type(error).__name__}: {error}") from error


def _operators(made: Any, target: str, curvature: str | None) -> list[LinearOperator]:
    if isinstance(made, LinearOperator):
        return [made]
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Objective)):
        raise UnusableFileError(
            f"{target} is a {type(made).__qualname__}, not an operator, an lg.Objective or a pair (objective, params)."
        )
    objective, params = made
    if curvature is not None:
        return [CURVATURES[curvature](objective, params)]
    names = ["Hessian"] if objective.loss is None else list(CURVATURES)  # of a scalar function there is no GGN
    return [CURVATURES[name](objective, params) for name in names]
