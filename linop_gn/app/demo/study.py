"""One backend's part: operators validated against dense matrices, then the training runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import linop_gn as lg

from ...validation import Report
from .agreement import sample
from .participants import Participant, Tell, precision
from .problem import Problem
from .race import Entry, first_order, levenberg_marquardt, plans

__all__ = ["Checked", "Outcome", "count", "study"]


@dataclass(frozen=True)
class Checked:
    """An operator and what ``lg.validate`` found."""

    operator: str
    report: Report


@dataclass(frozen=True)
class Outcome:
    """All that one backend did."""

    backend: str
    packages: Sequence[str]
    checks: Sequence[Checked]
    sample: Mapping[str, np.ndarray[Any, Any]]
    """Quantities at the starting point, by name, to compare with other backends."""
    entries: Sequence[Entry]

    @property
    def passed(self) -> bool:
        """Whether every operator passed every check."""
        return all(checked.report.passed for checked in self.checks)


def _operators(participant: Participant) -> dict[str, Callable[..., lg.LinearOperator]]:
    """What is validated; products that a model supplies are first-order, so that there is no Hessian."""
    found: dict[str, Callable[..., lg.LinearOperator]] = {"GGN": lg.GGN, "block GGN": lg.BlockGGN}
    return found if participant.backend.calculus is None else {"Hessian": lg.Hessian, **found}


def count(participant: Participant, problem: Problem, budget: int, quick: bool) -> int:
    """How many pieces of work :func:`study` has for this participant."""
    tuned = sum(len(list(plans(name, problem, budget, quick))) for name in participant.optimizers)
    return len(_operators(participant)) + 2 + tuned


def study(participant: Participant, problem: Problem, budget: int, quick: bool, tell: Tell) -> Outcome:
    """Validate and train; ``tell`` is called with a sentence at the start of each piece of work."""
    with precision(participant):
        return Outcome(
            backend=participant.backend.name,
            packages=participant.packages,
            checks=_validate(participant, problem, tell),
            sample=_sample(participant, problem, tell),
            entries=[
                levenberg_marquardt(participant, problem, budget, tell),
                *(first_order(participant, name, problem, budget, quick, tell) for name in participant.optimizers),
            ],
        )


def _sample(participant: Participant, problem: Problem, tell: Tell) -> dict[str, np.ndarray[Any, Any]]:
    tell("products for comparison")
    return sample(participant, problem)


def _validate(participant: Participant, problem: Problem, tell: Tell) -> list[Checked]:
    objective = participant.objective(problem.check, problem.start)
    params = participant.params(problem.start)
    checked = []
    for name, operator in _operators(participant).items():
        tell(f"validating the {name} operator")
        checked.append(Checked(name, lg.validate(operator(objective, params))))
    return checked
