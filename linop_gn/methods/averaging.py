"""The average of the parameters over the steps, divided by what its weights sum to.

m <- beta m + (1 - beta) x,    w <- beta w + (1 - beta),    x^ = m / w

A run is not changed by it: x^ is looked at beside x, with :func:`averaged`.
"""

from __future__ import annotations

from typing import NamedTuple

from ..protocols import Backend, Scalar, Tree, Vector
from .state import State

__all__ = ["Average", "average_of", "averaged", "begin_average", "go_on_average"]


class Average(NamedTuple):
    """m and w."""

    mean: Vector
    weight: Scalar


def begin_average(ops: Backend, beta: Scalar | None, x: Vector) -> Average | None:
    """The average of nothing; None where there is none to be kept."""
    return None if beta is None else Average(ops.zeros_like(x), ops.scalar(0.0, x))


def go_on_average(ops: Backend, beta: Scalar | None, kept: Average | None, x: Vector) -> Average | None:
    """The average with x in it; consumes ``kept``."""
    if beta is None or kept is None:
        return None
    mean = ops.axpby(1.0 - beta, x, beta, kept.mean)
    return Average(mean, beta * kept.weight + (1.0 - beta))


def average_of(ops: Backend, kept: Average | None, x: Vector) -> Vector:
    """m / w, a new vector; a copy of x where nothing has been averaged."""
    if kept is None:
        return ops.copy(x)
    return ops.select(kept.weight > 0, ops.scale(ops.divide(1.0, kept.weight), ops.copy(kept.mean)), ops.copy(x))


def averaged(state: State) -> Tree:
    """The average of the parameters over the steps of a run, in the format that the run was started with.

    >>> import numpy as np, linop_gn as lg
    >>> bowl = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.eye(2))
    >>> run = lg.minimize(bowl, np.zeros(2), lg.FirstOrder(lg.optimisers.SGD(), 0.5, average=0.5), max_steps=2)
    >>> run.params, lg.averaged(run.state)
    (array([2.25, 2.25]), array([2., 2.]))

    Raises
    ------
    ValueError
        For a state of a method that keeps none.
    """
    kept = getattr(state.own, "average", None)
    if kept is None:
        name = type(state.method).__name__
        raise ValueError(f"averaged: this run of {name} keeps no average; make the method with average=0.9, if it can.")
    state.require_own_arrays("averaged")
    return state.space.unpack(average_of(state.space.backend, kept, state.own.x))
