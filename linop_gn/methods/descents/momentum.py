"""Averages over the steps, of gradients or of directions, divided by what their weights sum to (Kingma and Ba, 2015).

m <- beta m + (1 - beta) v,    v^ = m / (1 - beta^t)
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ...arguments import require_instance, require_number
from ...operators.base import LinearOperator
from ...protocols import Backend, Scalar, Vector
from ...records import record, static
from .base import Descent, Model, Trial, queried, tried

__all__ = ["Momentum"]


class Averaged(NamedTuple):
    """The average m, and beta^t."""

    mean: Vector
    power: Scalar
    fresh: Scalar
    """Whether the gradient at the point is not in it yet."""
    inner: Any
    """What the descent itself keeps."""


@record
class Momentum(Descent):
    """``descent`` with the average of its directions, or for the average of the gradients.

    ``of="direction"`` takes a product for each trial, with which the model's promise along the average is known. The
    promise is always that of the true gradient.

    >>> import linop_gn as lg
    >>> lg.descents.Momentum(lg.descents.Solve(), beta=0.9).level
    'damping'
    """

    descent: Descent
    beta: Scalar = 0.9
    of: str = static(default="direction")

    def __post_init__(self) -> None:
        require_instance("Momentum", self.descent, Descent, "a descent such as lg.descents.Solve()", "See lg.descents.")
        require_number("Momentum", "beta", self.beta, below=1.0)
        if self.of not in ("direction", "gradient"):
            raise ValueError(f"Momentum: of must be 'direction' or 'gradient', got {self.of!r}.")

    @property
    def level(self) -> str:  # type: ignore[override]
        """That of the descent."""
        return self.descent.level

    def check(self, operator: LinearOperator, level: Scalar) -> None:
        """As the descent does."""
        self.descent.check(operator, level)

    def query(self, ops: Backend, model: Model, before: Averaged | None) -> tuple[Averaged, Scalar]:
        """What the descent keeps, and the averages."""
        if before is None:
            before = Averaged(ops.zeros_like(model.x), ops.scalar(1.0, model.x), ops.scalar(1.0, model.x), None)
        before = before._replace(fresh=0.0 * before.fresh + 1.0)
        if self.of == "gradient":
            model = self._averaging(ops, model, self._averaged(ops, before, model.gradient))
        inner, products = queried(self.descent, ops, model, before.inner)
        return before._replace(inner=inner), products

    def step(self, ops: Backend, model: Model, kept: Averaged, level: Scalar) -> Trial:
        """The average of the directions, or the direction for the average of the gradients."""
        seen = model
        if self.of == "gradient":  # in which a point counts once, however many trials are made from it
            kept = self._averaged(ops, kept, model.gradient, kept.fresh)._replace(fresh=0.0 * kept.fresh)
            seen = self._averaging(ops, model, kept)
        trial = tried(self.descent, ops, seen, kept.inner, level)
        kept = kept._replace(inner=trial.kept)
        if self.of == "gradient":
            d = trial.direction
            predicted = trial.predicted + ops.dot(seen.gradient, d) - ops.dot(model.gradient, d)
            return trial._replace(predicted=predicted, kept=kept, free=ops.isfinite(predicted) & False)
        kept = self._averaged(ops, kept, trial.direction)
        d = self._mean(ops, kept)
        bend = ops.dot(d, model.operator.apply(d))
        predicted, damping_term = -(ops.dot(model.gradient, d) + 0.5 * bend), 0.0
        if self.level == "damping":
            damping_term = 0.5 * level * ops.dot(d, d)
        free = ops.isfinite(predicted) & False  # it is short, or long, for what it was
        return Trial(d, predicted, trial.status, kept, trial.products + 1, damping_term, free, other=trial.other)

    def _averaged(self, ops: Backend, kept: Averaged, v: Vector, fresh: Scalar = 1.0) -> Averaged:
        share = fresh * (1.0 - self.beta)
        mean = ops.axpby(share, v, 1.0 - share, ops.copy(kept.mean))
        return kept._replace(mean=mean, power=kept.power * (1.0 - share))

    def _mean(self, ops: Backend, kept: Averaged) -> Vector:
        return ops.scale(ops.divide(1.0, 1.0 - kept.power), ops.copy(kept.mean))

    def _averaging(self, ops: Backend, model: Model, kept: Averaged) -> Model:
        mean = self._mean(ops, kept)
        return model._replace(gradient=mean, gradient_norm=ops.sqrt(ops.dot(mean, mean)))
