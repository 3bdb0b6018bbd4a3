"""What ends a run is a fact about the point, free of scale.

The undamped model's promise m = -(g.d + 1/2 d.G d) is compared with the value, and d with the parameters, where
neither damping nor radius is what makes d small and the inner solve succeeded. Where the curvature is not known to be
positive semi-definite, and the descent did not look at all of it, the success is ``UNEXPLORED``. A row of refused
trials ends a run as low as this precision allows where all that was promised in them is rounding; otherwise it is a
fault to be told.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ..arguments import require_number
from ..protocols import Backend, Scalar
from ..records import record
from ..run.status import Code
from .descents.base import Model, Trial

__all__ = ["Facts", "Judged", "rounding"]


class Judged(NamedTuple):
    """A step, once it is judged."""

    model: Model
    """At the point that it was made from."""
    trial: Trial
    running: Scalar
    refused: Scalar
    doubt: Scalar
    """The largest decrease that was promised by a refused trial since a step was taken."""
    stuck: Scalar
    """Whether the next trial would be this one again."""
    first: Scalar
    """The gradient norm at the start."""
    gradient_norm: Scalar
    """Now."""
    origin: Scalar
    """||x|| at the start."""


def rounding(ops: Backend, model: Model) -> tuple[Scalar, Scalar]:
    """What rounding changes in the value, and how much more may be promised in a trial that fails because of it."""
    eps, size = ops.eps(model.x), ops.maximum(model.value, -model.value)
    reach = ops.sqrt(ops.dot(model.x, model.x))
    return 4.0 * eps * size, ops.maximum(math.sqrt(eps) * size, 16.0 * eps * model.gradient_norm * reach)


@record
class Facts:
    """The tests of a run whose data stay the same.

    Parameters
    ----------
    rtol, atol
        The gradient's 2-norm is at most rtol times its norm at the start, or atol.
    ftol
        The undamped model promises at most ftol |value|; None: 4 round-offs.
    xtol
        ||d|| is at most xtol ||x||; None: 4 round-offs.
    """

    rtol: Scalar = 0.0
    atol: Scalar = 0.0
    ftol: Scalar | None = None
    xtol: Scalar | None = None

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "ftol", "xtol"):
            require_number("Facts", name, getattr(self, name))

    def claims(self, ops: Backend, judged: Judged) -> tuple[tuple[Scalar, Any], ...]:
        """Conditions and codes, the first that holds to be believed."""
        model, trial, running = judged.model, judged.trial, judged.running
        eps, size = ops.eps(model.x), ops.maximum(model.value, -model.value)
        noise, promised = rounding(ops, model)
        few = noise if self.ftol is None else self.ftol * size
        reach = ops.sqrt(ops.dot(model.x, model.x))
        short = (4.0 * eps if self.xtol is None else self.xtol) * reach
        length = ops.sqrt(ops.dot(trial.direction, trial.direction))
        free, lower = running & trial.free, trial.predicted >= 0
        # Where x is far from the start, and d long, a small promise is that of a minimum at infinity.
        settled = (length <= 0.01 * reach) | (reach <= 10.0 * judged.origin)
        small = free & lower & (trial.predicted <= few)
        unexplored, bent = trial.status == Code.UNEXPLORED, trial.status == Code.NEGATIVE_CURVATURE
        # A direction of zero is one that was not found, unless the gradient is zero.
        found = (length > 0) | (model.gradient_norm == 0)
        hopeless = (length <= eps * reach) | (lower & (trial.predicted <= noise))
        hopeless = judged.refused & (judged.stuck | (found & hopeless))
        still = Code.GRADIENT_SMALL if model.operator.psd else Code.UNEXPLORED
        low = lower & (judged.doubt <= promised) & ops.logical_not(bent)
        return (
            (running & (self.atol > 0) & (judged.gradient_norm <= self.atol), Code.GRADIENT_SMALL),
            (running & (self.rtol > 0) & (judged.gradient_norm <= self.rtol * judged.first), Code.REDUCED),
            (small & ops.logical_not(settled), Code.DIVERGING),
            (small & unexplored, Code.UNEXPLORED),
            (small, Code.DECREASE_SMALL),
            (free & (length <= short), ops.where(unexplored, Code.UNEXPLORED, Code.STEP_SMALL)),
            (running & (length == 0) & (model.gradient_norm == 0), ops.where(bent, trial.status, still)),
            (hopeless & low, Code.AT_PRECISION),
            (hopeless, Code.NO_DECREASE),
        )
