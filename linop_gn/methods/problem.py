"""The minimisation problem that a method is given."""

from __future__ import annotations

from ..curvature.point import Point
from ..curvature.terms import Terms
from ..protocols import Backend, Vector
from ..records import record, static
from ..spaces import Space

__all__ = ["MinimizeProblem"]


@record
class MinimizeProblem:
    """Minimise ``objective`` from the flat vector ``start`` of ``space`` in at most ``max_steps`` steps."""

    objective: Terms
    start: Vector
    space: Space = static()
    max_steps: int = static(default=100)
    once: bool = static(default=False)
    """Whether these data are for one step: what is linearised at its end, the next batch throws away."""

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
        return self.objective.host

    def at(self, x: Vector) -> Point:
        """The objective at a copy of x, linearised when first asked: value and gradient from one pass.

        Each call makes a new point. What a method needs again, such as ``curvature(point).prepare()``, goes into its
        state: x itself is a buffer that the next ``axpy`` may write over.
        """
        return Point(self.objective, self.backend.copy(x), self.space)
