"""One backend's part: operators validated against dense matrices, quantities to compare, and the training runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import linop_gn as lg

from ...validation import Report
from .participants import Participant, Tell, precision
from .problem import Problem, Weights
from .race import Entry, first_order, levenberg_marquardt, plans

__all__ = ["Outcome", "pieces", "study"]

NDArray = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Outcome:
    """All that one backend did."""

    packages: Sequence[str]
    reports: Mapping[str, Report]
    """What ``lg.validate`` found, by operator."""
    sample: Mapping[str, NDArray]
    """Quantities at the starting point, by name, to compare with other backends."""
    entries: Sequence[Entry]
    """Levenberg-Marquardt first."""

    @property
    def passed(self) -> bool:
        """Whether every operator passed every check."""
        return all(self.reports.values())


def _kinds(participant: Participant) -> dict[str, Any]:
    """The operators by name; products that a model supplies are first-order, so that there is no Hessian."""
    kinds: dict[str, Any] = {"GGN": lg.GGN, "block GGN": lg.BlockGGN}
    return kinds if participant.backend.calculus is None else {"Hessian": lg.Hessian, **kinds}


def pieces(participant: Participant, problem: Problem, budget: int, quick: bool) -> int:
    """How many pieces of work :func:`study` tells of."""
    tuned = sum(len(list(plans(name, problem, budget, quick))) for name in participant.optimizers)
    return len(_kinds(participant)) + 2 + tuned


def study(participant: Participant, problem: Problem, budget: int, quick: bool, tell: Tell) -> Outcome:
    """Validate and train; ``tell`` is called with a sentence at the start of each piece of work."""
    with precision(participant):
        objective, params = participant.objective(problem.check, problem.start), participant.params(problem.start)
        operators = {name: kind(objective, params) for name, kind in _kinds(participant).items()}
        reports = {}
        for name, operator in operators.items():
            tell(f"validating the {name} operator")
            reports[name] = lg.validate(operator)
        tell("products for comparison")
        return Outcome(
            participant.packages,
            reports,
            _sample(participant, objective, problem.start, operators),
            entries=[
                levenberg_marquardt(participant, problem, budget, tell),
                *(first_order(participant, name, problem, budget, quick, tell) for name in participant.optimizers),
            ],
        )


def _sample(
    participant: Participant, objective: lg.Objective, start: Weights, operators: Mapping[str, lg.LinearOperator]
) -> dict[str, NDArray]:
    """Loss, gradient, products and a CG solution at the starting point.

    The direction is drawn once, as weights, and every backend is given it in its own form; what comes back is
    put into one order, so that names, transposes and the sorting of dictionaries don't matter.
    """
    rng = np.random.default_rng(7)
    drawn = {
        n: {leaf: np.asarray(rng.standard_normal(w.shape)) for leaf, w in layer.items()} for n, layer in start.items()
    }
    params, direction = participant.params(start), participant.params(drawn)
    gradient = objective.gradient(params)
    trees = {"gradient": gradient}
    trees |= {f"{name} product": operator @ direction for name, operator in operators.items()}
    trees["10 CG steps, damping 1"] = lg.solve(lg.Damped(operators["GGN"], 1.0), gradient, lg.CG(steps=10)).x
    loss = np.asarray(participant.backend.to_numpy(objective.value(params)))
    return {"loss": loss, **{name: _flat(participant.weights(tree)) for name, tree in trees.items()}}


def _flat(weights: Weights) -> NDArray:
    return np.concatenate([weights[name][leaf].ravel() for name in sorted(weights) for leaf in sorted(weights[name])])
