"""The minimisation problem that a method is given, and the data of one of its steps."""

from __future__ import annotations

from typing import Any

from ..curvature.point import Point
from ..curvature.term import Term, outputs_of
from ..curvature.terms import Terms
from ..protocols import Backend, Scalar, Vector
from ..records import record, static
from ..spaces import Space

__all__ = ["MinimizeProblem", "StepData"]


@record
class StepData:
    """Data of one step with other data for the curvature, or for the acceptance: an item of ``batches=``.

    Each is what ``objective.with_data`` takes, of the objective whose part it is. What is left out has no data of its
    own for this step: the curvature is then that of ``gradient``, or of the objective given as ``curvature=``.

    >>> import linop_gn as lg
    >>> lg.StepData([1.0, 2.0, 3.0, 4.0], curvature=[1.0, 2.0])
    StepData(gradient=[1.0, 2.0, 3.0, 4.0], curvature=[1.0, 2.0])
    """

    gradient: Any
    curvature: Any = None
    acceptance: Any = None


@record
class MinimizeProblem:
    """Minimise ``objective`` from the flat vector ``start`` of ``space`` in at most ``max_steps`` steps.

    The operator may be of other data, ``curvature``, and trial values of others yet, ``acceptance``: a method asks

        point = problem.at(x)                    value and gradient
        problem.for_curvature(point)             what it makes its operator of
        problem.for_acceptance(point)            whose value it compares with that of a trial

    and declares which of them it asks for in :attr:`Method.supports`. Without data of their own both are ``point``.
    """

    objective: Terms
    start: Vector
    space: Space = static()
    max_steps: Scalar = 100
    """Data: a run of more steps is the same program."""
    once: bool = static(default=False)
    """Whether these data are for one step: what is linearised at its end, the next batch throws away."""
    curvature: Terms | None = None
    """What the operator is made of; None: ``objective``, at no cost."""
    acceptance: Terms | None = None
    """What the value of a trial is of; None: ``objective``."""

    @property
    def backend(self) -> Backend:
        """The framework."""
        return self.space.backend

    @property
    def like(self) -> Vector:
        """A vector of the problem: its dtype is that of the scalars."""
        return self.start

    @property
    def host(self) -> bool:
        """Whether data are streamed from the host."""
        return any(terms.host for terms in self.terms if terms is not None)

    @property
    def terms(self) -> tuple[Terms | None, ...]:
        """Of the gradient, of the curvature, of the acceptance."""
        return self.objective, self.curvature, self.acceptance

    @property
    def evaluated(self) -> list[tuple[Any, ...]]:
        """What a program evaluates, as functions with arguments: of each batch the outputs at the start, or the value.

        The value, where the loss is a function of the user's.
        """
        if self.host or self.objective.is_bridged(self.space):
            return []
        terms = self.objective.in_memory(self.space)
        alone = [term for term in terms if not term.batch.stacked]
        return [(Term.evaluate if t.loss is not None and t.loss.autodiff else outputs_of, t, self.start) for t in alone]

    def at(self, x: Vector) -> Point:
        """The objective at a copy of x, linearised when first asked: value and gradient from one pass.

        Each call makes a new point. What a method needs again, such as ``curvature(point).prepare()``, goes into its
        state: x itself is a buffer that the next ``axpy`` may write over.
        """
        return Point(self.objective, self.backend.copy(x), self.space)

    def for_curvature(self, point: Point) -> Point:
        """The point to make the operator of: ``point``, or one at the same x on the data of the curvature."""
        return point if self.curvature is None else Point(self.curvature, point.x, self.space)

    def for_acceptance(self, point: Point) -> Point:
        """The point whose value is compared: ``point``, or one at the same x on the data of the acceptance."""
        return point if self.acceptance is None else Point(self.acceptance, point.x, self.space)

    def value_at(self, x: Vector) -> Scalar:
        """The value that is compared, at x."""
        return self.backend.item(self.for_acceptance(self.at(x)).value)
