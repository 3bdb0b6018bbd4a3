"""The minimisation problem that a method is given."""

from __future__ import annotations

from ..curvature.point import Point
from ..curvature.terms import Terms
from ..protocols import Backend, Vector
from ..records import record, static
from ..spaces import Space

__all__ = ["MinimizeProblem"]

_KEPT_POINTS = 2


@record
class MinimizeProblem:
    """Minimise ``objective`` from the flat vector ``start`` of ``space`` in at most ``max_steps`` steps."""

    objective: Terms
    start: Vector
    space: Space = static()
    max_steps: int = static(default=100)

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

    def point(self, x: Vector) -> Point:
        """The objective at x.

        Where values are known the current and the trial point are remembered, so that
        what was linearised for the gradient serves the products of the next step,
        and a rejected step costs no new linearisation.
        """
        kept: list[Point] = self.__dict__.setdefault("_points", [])
        point = next((point for point in kept if point.x is x), None) or Point(self.objective, x, self.space)
        if self.backend.is_concrete(x):
            others = [other for other in kept if other is not point]
            kept[:] = [*others[-(_KEPT_POINTS - 1) :], point]  # least recently asked for goes first
        return point
