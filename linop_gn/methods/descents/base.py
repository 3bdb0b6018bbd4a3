"""What a descent is: a direction that makes the quadratic model small, at a damping or within a radius.

With gradient g and curvature G at the accepted point, the model of the decrease along d is

    m(d) = -(g.d + 1/2 d.G d)

``query`` is called once for each accepted point; what it returns is kept in the state of the method. ``step`` is called
for each trial, at another damping or radius: what query has factored, or built a basis of, is asked again, without a
linearisation and, if it can be, without a product.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

from ...operators.base import LinearOperator
from ...protocols import Backend, Scalar, Vector
from ...records import record
from ...run.returned import require_pair, require_scalar, require_vector
from ...run.status import Code

__all__ = ["Descent", "Gradient", "Model", "Noise", "Trial", "idle", "queried", "solved_as", "tried"]


class Model(NamedTuple):
    """The objective at the accepted point. Vectors are never to be consumed: copy them first."""

    x: Vector
    gradient: Vector
    gradient_norm: Scalar
    value: Scalar
    operator: Any
    """The curvature, linearised, undamped. In ``query`` it is what the curvature made, which knows its point."""


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


class Trial(NamedTuple):
    """A direction, and what is known of it."""

    direction: Vector
    predicted: Scalar
    """m(d) = -(g.d + 1/2 d.G d), without the damping."""
    status: Scalar
    """Why this is the direction: a code of ``lg.Status``."""
    kept: Any
    """What is kept for the next trial, or the next query: as query returned it, or with more in it."""
    products: Scalar = 0
    damping_term: Scalar = 0.0
    """1/2 damping d.d, by which the damped model promises less."""
    free: Scalar = False
    """Whether neither damping nor radius makes the direction shorter than the model's minimum by much."""
    left: Scalar = 0.0
    """||g + (G + damping I) d||, what a truncated solve left."""
    steps: Scalar = 0
    """Of the solver."""
    other: Scalar = False
    """Whether the next trial from this point is another direction, at the same level too."""
    iterates: Any = None
    """Earlier and shorter directions, with their steps, the last of them d; see :class:`~linop_gn.searches.Iterates`"""


@record
class Descent(ABC):
    """Base of descents: a subclass is a record with ``step``, and ``query`` if something is worth keeping.

    >>> import linop_gn as lg
    >>> @lg.record
    ... class Cauchy(lg.descents.Descent):
    ...     '''The minimum of the damped model along the gradient.'''
    ...     def query(self, ops, model, before):
    ...         g = model.gradient
    ...         return ops.dot(g, model.operator.apply(g)), 1
    ...     def step(self, ops, model, kept, level):
    ...         square = model.gradient_norm * model.gradient_norm
    ...         length = ops.divide(square, kept + level * square)
    ...         d = ops.scale(-length, ops.copy(model.gradient))
    ...         return lg.descents.Trial(d, length * square - 0.5 * length * length * kept, 1, kept)
    >>> Cauchy().level
    'damping'
    """

    level: ClassVar[str] = "damping"
    """What the second argument of ``step`` is: ``"damping"`` or ``"radius"``."""

    def check(self, operator: LinearOperator, level: Scalar) -> None:
        """Raise for a curvature that the descent does not take: by default one that is not symmetric."""
        if not operator.symmetric:
            raise ValueError(
                f"descents.{type(self).__name__} needs a symmetric curvature, and {operator!r} is not known to be. "
                "Declare it (symmetric=True) if it is."
            )

    def prepared(self, operator: LinearOperator) -> LinearOperator:
        """The curvature with the work done that all steps at the point share."""
        return operator.prepare()

    def query(self, ops: Backend, model: Model, before: Any) -> tuple[Any, Scalar]:
        """What is kept for the point, a tree of arrays, and the products taken.

        ``before`` is what was kept at the last point, None at the first one: a warm start, a forcing term.
        """
        return (), 0

    @abstractmethod
    def step(self, ops: Backend, model: Model, kept: Any, level: Scalar) -> Trial:
        """The direction at a damping or within a radius; consumes ``kept`` and returns it in the trial."""


def queried(descent: Descent, ops: Backend, model: Model, before: Any) -> tuple[Any, Scalar]:
    """What the descent's query returns, looked at."""
    made: tuple[Any, Scalar] = require_pair(
        descent, "query", descent.query(ops, model, before), "(kept, products): what is kept, and how many it took"
    )
    return made


def tried(descent: Descent, ops: Backend, model: Model, kept: Any, level: Scalar) -> Trial:
    """The descent's trial, looked at."""
    name, made = f"{type(descent).__qualname__}.step", descent.step(ops, model, kept, level)
    if not isinstance(made, Trial):
        raise TypeError(
            f"{name} must return an lg.descents.Trial(direction, predicted, status, kept), got {made!r:.200}."
        )
    require_vector(
        f"{name} must return a Trial with, for its direction,", ops, made.direction, tuple(model.x.shape), model.x
    )
    require_scalar(descent, "step", made.predicted, "a Trial with a number for predicted")
    return made


@record
class Gradient(Descent):
    """d = -g: the direction of steepest descent, for a search or a fixed length. The model is the line along it."""

    def step(self, ops: Backend, model: Model, kept: Any, level: Scalar) -> Trial:
        """-g, whatever the level."""
        square = model.gradient_norm * model.gradient_norm
        return Trial(ops.scale(-1.0, ops.copy(model.gradient)), square, ops.scalar(Code.COMPLETED, model.x), kept)


def idle(model: Model, found: Any) -> Any:
    """Whether a solver that met its tolerance did so with zero, which is no direction."""
    return (found.steps == 0) & (found.model == 0) & (model.gradient_norm > 0)


def solved_as(model: Model) -> int:
    """The status of an answer in a part of the space: whether the curvature in the rest of it is known."""
    code: int = Code.CONVERGED if model.operator.psd else Code.UNEXPLORED
    return code
