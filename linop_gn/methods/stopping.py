"""What ends a run is a fact about the point, free of scale.

The undamped model's promise m = -(g.d + 1/2 d.G d) is compared with the value, and each entry of d with that of the
parameters. Neither says anything where damping or radius is what makes d small (damping d.d > d.G d); where the inner
solve failed or left too much; or where the same model promises more along D^2 g, D the magnitudes of the parameters:
one product, at the end, that sees what the choice of units hides.

Where the curvature is not known to be positive semi-definite, and the descent did not look at all of it, the success is
``UNEXPLORED``. A row of refused trials ends a run as low as this precision allows where all that was promised in them
is rounding; otherwise it is a fault to be told.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ..arguments import require_number
from ..protocols import Backend, Scalar, Vector
from ..records import record
from ..run.status import Code, is_one_of
from .descents.base import Model, Trial

__all__ = ["Facts", "Judged", "Noise"]


class Noise(NamedTuple):
    """What rounding does at a point."""

    blurred: Scalar
    """What rounding x changes in the value: eps |g|.|x|."""
    value: Scalar
    """What rounding changes in it in all."""
    promised: Scalar
    """How much may be promised in a trial that fails because of it."""

    @staticmethod
    def of(ops: Backend, model: Model) -> Noise:
        """That of the model's point."""
        eps, size = ops.eps(model.x), ops.maximum(model.value, -model.value)
        blurred = eps * ops.dot(abs(model.gradient), abs(model.x))
        reach = model.gradient_norm * ops.sqrt(ops.dot(model.x, model.x))
        promised = ops.maximum(math.sqrt(eps) * size, 16.0 * eps * reach)
        return Noise(blurred, ops.maximum(4.0 * eps * size, blurred), promised)


class Judged(NamedTuple):
    """A step, once it is judged."""

    model: Model
    """At the point that it was made from."""
    trial: Trial
    start: Vector
    """Where the run began."""
    noise: Noise
    hidden: Scalar
    """What the model promises where nobody has looked; see :meth:`Facts.hidden`."""
    square: Scalar
    """d.d."""
    bent: Scalar
    """d.G d."""
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
        Each entry of d is at most xtol times that of x, or of the start where that is larger; None: 4 round-offs.
    """

    rtol: Scalar = 0.0
    atol: Scalar = 0.0
    ftol: Scalar | None = None
    xtol: Scalar | None = None

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "ftol", "xtol"):
            require_number("Facts", name, getattr(self, name))

    def begun(self, ops: Backend, model: Model) -> tuple[tuple[Scalar, Any], ...]:
        """Conditions and codes at the start."""
        return ((model.gradient_norm <= self.atol, Code.GRADIENT_SMALL),) if model.operator.psd else ()

    def hidden(self, ops: Backend, model: Model, start: Vector, near: Scalar, noise: Noise) -> tuple[Scalar, Scalar]:
        """What the model promises along the gradient in units of the parameters, and the products taken.

        Asked where what the trial promises is ``near`` nothing.
        """

        def along_gradient(units: Vector) -> tuple[Scalar, Scalar]:
            xp = ops.namespace()
            v = xp.where(units > 0, units, xp.max(units) + 0.0 * units) ** 2 * model.gradient
            slope, curve = ops.dot(model.gradient, v), ops.dot(v, model.operator.apply(v))
            return slope * ops.where(curve > 0, 0.5 * ops.divide(slope, curve), math.inf), 1

        return ops.branch(near, along_gradient, lambda units: (0.0 * noise.value, 0), _units(ops, model, start))

    def few(self, ops: Backend, model: Model) -> Scalar:
        """What is too little to go on for."""
        return (4.0 * ops.eps(model.x) if self.ftol is None else self.ftol) * ops.maximum(model.value, -model.value)

    def claims(self, ops: Backend, judged: Judged) -> tuple[tuple[Scalar, Any], ...]:
        """Conditions and codes, the first that holds to be believed."""
        model, trial, noise, running = judged.model, judged.trial, judged.noise, judged.running
        few, eps, square, psd = self.few(ops, model), ops.eps(model.x), judged.square, model.operator.psd
        units, left, predicted = _units(ops, model, judged.start), trial.left, trial.predicted
        largest = ops.max_abs(trial.direction / ops.namespace().where(units > 0, units, 1e-30))
        short = largest <= (4.0 * eps if self.xtol is None else self.xtol)
        # What the inner solve left of its residual may hide a decrease of |left|^2 / (2 lambda); without a damping the
        # curvature along d takes the place of lambda.
        damped = 2.0 * trial.damping_term
        stiff = ops.where(damped > 0, damped, judged.bent)
        below = ops.maximum(few, noise.value)
        solved = (left <= 1e3 * eps * model.gradient_norm) | (left * left * square <= 2.0 * stiff * below)
        lower = predicted >= 0
        whole = running & trial.free & solved & lower & (judged.hidden <= ops.maximum(few, noise.value))
        small = whole & (predicted <= few)
        # Where x is far from the start, and d long, a small promise is that of a minimum at infinity.
        length, reach = ops.sqrt(square), ops.sqrt(ops.dot(model.x, model.x))
        settled = (length <= 0.01 * reach) | (reach <= 10.0 * ops.sqrt(ops.dot(judged.start, judged.start)))
        unexplored, bent = trial.status == Code.UNEXPLORED, trial.status == Code.NEGATIVE_CURVATURE
        # A direction of zero is one that was not found, unless the gradient is zero.
        still = model.gradient_norm == 0
        hopeless = (length > 0) | still
        hopeless = hopeless & ((largest <= eps) | (lower & (predicted <= noise.value)))
        hopeless = judged.refused & (judged.stuck | hopeless)
        low = lower & (judged.doubt <= noise.promised) & (judged.hidden <= noise.promised) & ops.logical_not(bent)
        told = (small, Code.DECREASE_SMALL), (whole & short, Code.STEP_SMALL)
        precise = whole & (predicted <= noise.blurred)
        explored = psd | is_one_of(trial.status, [Code.CONVERGED, Code.INVARIANT])
        ended = ops.where(explored, Code.GRADIENT_SMALL, Code.UNEXPLORED)
        return (
            (running & (judged.gradient_norm <= self.atol) & (psd | (self.atol > 0)), Code.GRADIENT_SMALL),
            (running & (self.rtol > 0) & (judged.gradient_norm <= self.rtol * judged.first), Code.REDUCED),
            (small & ops.logical_not(settled), Code.DIVERGING),
            ((small | (whole & short) | precise) & unexplored, Code.UNEXPLORED),
            *told,
            (running & (length == 0) & still, ops.where(bent, trial.status, ended)),
            (precise | (hopeless & low), Code.AT_PRECISION),
            (hopeless, Code.NO_DECREASE),
        )


def _units(ops: Backend, model: Model, start: Vector) -> Vector:
    """The magnitudes of the parameters: those of x, or of the start where they are larger."""
    return ops.namespace().where(abs(start) > abs(model.x), abs(start), abs(model.x))
