"""The same quantities at the same point on every backend, brought to NumPy to be compared.

A direction is drawn once, as weights, and every backend is given it in its own
form; what comes back is put into one order, so that names, transposes and the
sorting of dictionaries don't matter.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import linop_gn as lg

from .participants import Participant
from .problem import Problem, Weights

__all__ = ["difference", "sample"]

NDArray = np.ndarray[Any, Any]


def sample(participant: Participant, problem: Problem) -> dict[str, NDArray]:
    """Loss, gradient, products and a CG solution at the starting point, on the examples of the validation."""
    backend = participant.backend
    objective = participant.objective(problem.check, problem.start)
    params = participant.params(problem.start)
    direction = participant.params(_direction(problem.start))

    def gather(tree: Any) -> NDArray:
        return flat(participant.weights(tree))

    gradient = objective.gradient(params)
    found = {"loss": np.asarray(backend.to_numpy(objective.value(params))), "gradient": gather(gradient)}
    if backend.calculus is not None:
        found["Hessian product"] = gather(lg.Hessian(objective, params) @ direction)
    ggn = lg.GGN(objective, params)
    found["GGN product"] = gather(ggn @ direction)
    found["block GGN product"] = gather(lg.BlockGGN(objective, params) @ direction)
    found["10 CG steps, damping 1"] = gather(lg.solve(lg.Damped(ggn, 1.0), gradient, lg.CG(steps=10)).x)
    return found


def _direction(start: Weights) -> Weights:
    rng = np.random.default_rng(7)
    return {
        name: {leaf: np.asarray(rng.standard_normal(value.shape)) for leaf, value in layer.items()}
        for name, layer in start.items()
    }


def flat(weights: Weights) -> NDArray:
    """All entries in one order.

    >>> flat({"b": {"x": np.ones(1)}, "a": {"y": np.zeros(2), "x": np.full(1, 3.0)}})
    array([3., 0., 0., 1.])
    """
    return np.concatenate([weights[name][leaf].ravel() for name in sorted(weights) for leaf in sorted(weights[name])])


def difference(value: NDArray, reference: NDArray) -> float:
    """The 2-norm of the difference over that of the reference.

    >>> difference(np.array([1.0, 1.0]), np.array([1.0, 1.0]))
    0.0
    """
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))
