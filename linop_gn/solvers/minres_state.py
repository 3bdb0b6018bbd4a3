"""What MINRES carries from step to step, and the row it leaves in the history."""

from __future__ import annotations

from typing import NamedTuple

from ..protocols import Scalar, Vector
from .minres_recurrence import Recurrence

__all__ = ["MINRESRow", "MINRESState"]


class MINRESState(NamedTuple):
    """x and r are in units of ``scale``, the recurrence in units of ``unit``: near ||A||, or 1 where that will do."""

    x: Vector
    r: Vector
    recurrence: Recurrence
    best: Vector
    """The last point whose residual was recomputed (or the start), or a later one with a smaller ||A r||."""
    best_norm: Scalar
    best_model: Scalar
    root: Scalar
    """||A r|| / ||r|| where it was last seen to be small."""
    risky: Scalar
    """Whether A r nearly vanishes at ``best``, and no step since is known to have reduced r."""
    anorm: Scalar
    """Largest norm of a column of T: a lower bound of ||A||."""
    inverses: Scalar
    """With ``steps``: sum of ||w||^2 since a residual was recomputed, the square of a norm of T's pseudo-inverse."""
    unit: Scalar
    norm: Scalar
    model: Scalar
    threshold: Scalar
    scale: Scalar
    phase: Scalar
    status: Scalar
    steps: Scalar
    products: Scalar


class MINRESRow(NamedTuple):
    """2-norm of the residual, and the quadratic model, at each step."""

    residual: Scalar
    model: Scalar
