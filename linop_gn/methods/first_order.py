r"""First-order methods: one gradient for a step, and an optimiser that makes the step of it.

    g = grad f(x),    x <- x + d,    d, kept = optimiser(g, kept, x, rate of the step)

On the same data the gradient at the new x comes with the value there, and is the next step's. On a stream of batches
value and gradient are those of the batch at x, then the step is taken, and there is nothing more to evaluate: the
value told is that *before* the step, as training curves have it, since the value after it would cost another pass.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from ..arguments import require_instance, require_number
from ..curvature.unpacked import own
from ..protocols import Backend, Scalar, Vector
from ..records import record
from ..run.status import Code
from .averaging import Average, begin_average, go_on_average
from .base import Method
from .controls import Schedule, level_at
from .optimisers import Adam, Optimiser, require_optimiser, updated
from .problem import MinimizeProblem

__all__ = ["FirstOrder", "FirstOrderState", "require_schedule"]


class FirstOrderState(NamedTuple):
    """x with value and gradient, and what the optimiser keeps."""

    x: Vector
    gradient: Vector
    gradient_norm: Scalar
    value: Scalar
    kept: Any
    average: Average | None
    rate: Scalar
    """That of the latest step."""
    status: Scalar
    steps: Scalar


@record
class FirstOrder(Method):
    """``optimiser`` at a rate, which may follow a schedule.

    Parameters
    ----------
    optimiser
        Of ``lg.optimisers``, one of optax or of torch by its adapter, or of your own.
    rate
        The learning rate: data, so that another one is the same compiled program.
    schedule
        ``lg.controls.Linear``, ``Cosine`` or ``WarmUp``: how the rate goes on from ``rate`` with the steps; None: it
        stays.
    average
        beta of an average of the parameters over the steps, which :func:`linop_gn.averaged` tells; None: none.

    It ends where ``max_steps`` or the batches do, and claims no success; ``lg.stop_when`` stops it. On a stream of
    batches ``value`` is that before the step. A step takes one gradient. The history has ``value``,
    ``gradient_norm`` and ``rate``.

    >>> import numpy as np, linop_gn as lg
    >>> bowl = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.eye(2))
    >>> run = lg.minimize(bowl, np.zeros(2), lg.FirstOrder(lg.optimisers.SGD(momentum=0.5), 0.4), max_steps=30)
    >>> run.params.round(3)
    array([3., 3.])

    Raises
    ------
    TypeError, ValueError
        When made, for an optimiser or a schedule that is none, or a rate below 0.
    """

    optimiser: Optimiser = Adam()
    rate: Scalar = 1e-3
    schedule: Schedule | None = None
    average: Scalar | None = None

    columns = ("value", "gradient_norm", "rate")
    kept_by = ("optimiser", "average")
    told_before = True

    def __post_init__(self) -> None:
        require_optimiser("FirstOrder", self.optimiser)
        require_number("FirstOrder", "rate", self.rate)
        require_number("FirstOrder", "average", self.average, below=1.0, optional=True)
        require_schedule("FirstOrder", self.schedule)

    @property
    def title(self) -> str:
        return f"FirstOrder({type(self.optimiser).__name__})"

    def init(self, ops: Backend, problem: MinimizeProblem) -> FirstOrderState:
        x, gradient, norm, value = self._at(ops, problem, problem.start)
        kept, zero, count = self.optimiser.init(ops, problem.space, x), ops.scalar(0.0, x), ops.scalar(0, x)
        sound = ops.isfinite(value) & ops.isfinite(norm)
        status = ops.where(sound, Code.RUNNING, Code.NONFINITE_INPUT) + count
        average = begin_average(ops, self.average, x)
        return FirstOrderState(x, gradient, norm, value, kept, average, zero + self.rate, status, count)

    def step(self, ops: Backend, problem: MinimizeProblem, s: FirstOrderState) -> FirstOrderState:
        running = s.status == Code.RUNNING
        made: FirstOrderState = ops.branch(running, partial(self._stepped, ops, problem), lambda s: s, s)
        return made

    def renew(self, ops: Backend, problem: MinimizeProblem, state: FirstOrderState) -> FirstOrderState:
        """The state at the same x, with value and gradient on the problem's data."""
        _, gradient, norm, value = self._at(ops, problem, state.x)
        return state._replace(gradient=gradient, gradient_norm=norm, value=value)

    def _stepped(self, ops: Backend, problem: MinimizeProblem, s: FirstOrderState) -> FirstOrderState:
        rate = self.rate + 0.0 * s.rate
        rate = rate if self.schedule is None else level_at(self.schedule, ops, s.steps, rate)
        d, kept = updated(self.optimiser, ops, problem.space, s.gradient, s.kept, s.x, rate)
        target = ops.axpy(1.0, d, ops.copy(s.x))
        if problem.once:
            there = s
            sound = ops.isfinite(s.gradient_norm) & ops.isfinite(ops.max_abs(target))
        else:
            _, gradient, norm, value = self._at(ops, problem, target)
            there = s._replace(gradient=gradient, gradient_norm=norm, value=value)
            sound = ops.isfinite(value) & ops.isfinite(norm)
        x = ops.select(sound, target, s.x)
        return FirstOrderState(
            x,
            ops.select(sound, there.gradient, s.gradient),
            ops.where(sound, there.gradient_norm, s.gradient_norm),
            ops.where(sound, there.value, s.value),
            kept,
            go_on_average(ops, self.average, s.average, x),
            rate,
            ops.where(sound, s.status, Code.NONFINITE),
            s.steps,
        )

    def _at(self, ops: Backend, problem: MinimizeProblem, x: Vector) -> tuple[Vector, Vector, Scalar, Scalar]:
        """A copy of x; gradient, its norm and value there."""
        point = problem.at(x)
        made = point.slope()
        gradient = own(ops, made.gradient)
        return point.x, gradient, ops.sqrt(ops.dot(gradient, gradient)), ops.item(made.value)


def require_schedule(owner: str, given: Any) -> None:
    """Raise unless ``given`` is a schedule or None."""
    if given is not None:
        advice = "A number is the rate itself: rate=1e-3."
        require_instance(owner, given, Schedule, "a schedule such as lg.controls.Cosine(steps=1000)", advice)
