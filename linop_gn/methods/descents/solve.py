"""Descent by a linear solve: (G + damping I) d = -g, with any solver.

Every trial solves anew; what the preconditioner's recipe prepared at the point is kept, and so are, from point to
point, the last solution (a warm start, as of Martens, 2010) and the forcing term (Eisenstat and Walker, 1996).
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from ...arguments import require_instance, require_number, whole
from ...operators.base import LinearOperator
from ...operators.damped import Damped
from ...preconditioners.empirical_fisher import SquaredGradient
from ...protocols import Backend, Scalar, Vector
from ...records import record, replace, static
from ...run.status import Code, is_one_of, verdict
from ...solvers.base import Solver
from ...solvers.cg import CG
from ...solvers.forcing import EisenstatWalker
from ...solvers.options import require_inner
from ...solvers.problem import LinearProblem, Recipe, finished, require_fit
from ...solvers.served import inner_run
from ...solvers.stopping import AnyOf, Progress, RelativeResidual, require_rule
from ..controls import Schedule, level_at
from .base import Descent, Model, Noise, Trial, idle, solved_as

__all__ = ["Forced", "Solve", "forced"]


class Forced(NamedTuple):
    """The forcing term, and the gradient norm that it was made for."""

    eta: Scalar
    norm: Scalar


def forced(ops: Backend, rule: Any, model: Model, before: Forced | None) -> Forced | None:
    """The forcing term at this point, from that of the last one; None without a rule."""
    if rule is None:
        return None
    norm = model.gradient_norm + 0.0
    if before is None:
        return Forced(0.0 * norm + rule.first, norm)
    eta = rule.update(ops, before.eta, norm=norm, before=before.norm)
    return Forced(ops.where(norm == before.norm, before.eta, eta), norm)  # of a point that is queried again, the same


def require_forcing(owner: str, rule: Any) -> None:
    """Raise unless ``rule`` is None or a forcing rule that needs gradient norms only."""
    if rule is None:
        return
    require_instance(owner, rule, EisenstatWalker, "forcing=lg.EisenstatWalker()", "None keeps the solver's rtol.")
    if rule.choice == 1:
        raise ValueError(f"{owner}: forcing needs lg.EisenstatWalker(choice=2), which compares gradient norms.")


@record
class AtMost:
    """A stopping rule: the limit has been reached after ``most`` steps, which is data."""

    most: Scalar

    def begin(self, ops: Backend, start: Progress, limit: int) -> Any:
        return None

    def look(self, ops: Backend, memory: Any, now: Progress) -> tuple[Scalar, Any]:
        return ops.where(now.step >= self.most, Code.MAX_STEPS, Code.RUNNING), memory


@record
class Rounded:
    """A stopping rule: after a step, the residual r is as small as the gradient's rounding, sum |r_j| u_j <= nothing.

    Of a singular curvature rounding is divided by rounding from there on: a step of any length.
    """

    units: Vector
    """u, the magnitudes of the parameters."""
    nothing: Scalar
    """What rounding changes in the value."""

    def begin(self, ops: Backend, start: Progress, limit: int) -> Any:
        return None

    def look(self, ops: Backend, memory: Any, now: Progress) -> tuple[Scalar, Any]:
        small = now.scale * ops.dot(abs(now.residual), self.units) <= self.nothing
        return ops.where(small & (now.step > 0), Code.SATISFIED, Code.RUNNING), memory


def _rounding(ops: Backend, model: Model, sizes: Vector, level: Scalar) -> tuple[Vector, Scalar]:
    """The magnitudes of the parameters, and what rounding changes in the value; negative with a damping, or at zero."""
    largest, xp = ops.max_abs(sizes), ops.namespace()
    least = ops.eps(sizes) ** 0.5 * largest + 0.0 * sizes  # one that is zero may be to move
    nothing = ops.where((level > 0) | (largest == 0), -1.0, Noise.of(ops, model).value)
    return xp.where(sizes > least, sizes, least), nothing


class Solved(NamedTuple):
    """Of a point."""

    prepared: Any
    """By the preconditioner's recipe."""
    start: Vector | None
    """The last solution, times the decay; None without warm starts."""
    forced: Forced | None
    age: Any
    """Points before this one that steps were made from; None where nobody asks."""
    asked: Any
    """Whether a step was made from this one."""
    sizes: Vector | None
    """The largest magnitudes of the parameters so far; None without a fallback."""


@record
class Solve(Descent):
    """d of (G + damping I) d = -g by ``solver``, exact or truncated.

    Parameters
    ----------
    solver
        Any solver for square systems that minimises the model. Its preconditioner, if it is a recipe, is prepared once
        for each point, and finished at the live damping. Iterates that it keeps are handed to the search.
    forcing
        ``lg.EisenstatWalker()`` to choose the solver's ``rtol`` at each point; None keeps it.
    warm
        The last solution times ``warm`` is the solver's start; None: zero.
    every
        The recipe prepares at the first of so many points, and at the others what it made there is used again.
    most
        A schedule, such as ``lg.controls.Stages(10, 9, then=5)``, of the most steps that the solver takes, by the
        number of points before this one. The solver is one with ``stop=``, whose ``max_steps`` is the largest of them.
    fallback
        Whether the direction is -g where the solver finds none that lowers the model: for a search, which asks for
        nothing but descent (Nocedal and Wright, 2006, algorithm 7.1). Otherwise the trial is refused.

    >>> import linop_gn as lg
    >>> lg.descents.Solve(lg.CG(max_steps=10), warm=0.95).level
    'damping'
    """

    solver: Solver = CG(rtol=1e-2, max_steps=50)
    forcing: Any = None
    warm: Scalar | None = None
    every: int = static(default=1)
    fallback: bool = static(default=False)
    most: Schedule | None = None

    kept_by: ClassVar[tuple[str, ...]] = ("solver.preconditioner", "forcing", "warm", "every", "most", "fallback")

    def __post_init__(self) -> None:
        require_inner(self, self.solver)
        if self.most is not None:
            advice = "None keeps the solver's own limit."
            require_instance("Solve: most", self.most, Schedule, "lg.controls.Stages(10, 9, then=5)", advice)
            require_rule(getattr(self.solver, "stop", None), "Solve with most=")
        require_forcing("Solve", self.forcing)
        require_number("Solve", "warm", self.warm, optional=True)
        object.__setattr__(self, "every", whole("Solve", "every", self.every, 1))
        if self.warm is not None and "x0" not in self.solver.supports and not self.solver.solves_system:
            raise ValueError(f"Solve: {self.solver.title} takes no start; leave warm= out.")

    def check(self, operator: LinearOperator, level: Scalar) -> None:
        """Raise unless solver and preconditioner take the damped curvature."""
        A = Damped(operator, level)
        self.solver.check(A)
        if isinstance(given := self.solver.preconditioner, LinearOperator):
            require_fit(given, A)

    def prepared(self, operator: LinearOperator) -> LinearOperator:
        """As the solver wants it."""
        return self.solver.prepared(operator)

    def query(self, ops: Backend, model: Model, before: Solved | None) -> tuple[Solved, Scalar]:
        """What the recipe prepares; the start and the forcing term."""
        start, eta = None, forced(ops, self.forcing, model, None if before is None else before.forced)
        if self.warm is not None:
            start = ops.zeros_like(model.x) if before is None else before.start
        age = asked = None
        if self.every > 1 or self.most is not None:
            asked = ops.scalar(0, model.x)
            age = asked + 0 if before is None else before.age + before.asked
        sizes = None
        if self.fallback:
            xp, sizes = ops.namespace(), abs(model.x)
            if before is not None:
                sizes = xp.where(sizes > before.sizes, sizes, before.sizes)
        return Solved(self._prepared(ops, model, before, age), start, eta, age, asked, sizes), 0

    def _prepared(self, ops: Backend, model: Model, before: Solved | None, age: Scalar) -> Any:
        given = self.solver.preconditioner
        if not isinstance(given, Recipe):
            return None

        def prepare(gradient: Vector) -> tuple[Any]:
            # That of the gradient is known already, or an average of it.
            if isinstance(given, SquaredGradient):
                return (gradient * gradient,)
            return (given.prepare(model.operator) if before is None else given.renew(before.prepared, model.operator),)

        if self.every == 1 or before is None:
            return prepare(model.gradient)[0]
        return ops.branch(age % self.every == 0, prepare, lambda x: (before.prepared,), model.gradient)[0]

    def step(self, ops: Backend, model: Model, kept: Solved, level: Scalar) -> Trial:
        """The solution at this damping."""
        A, given = Damped(model.operator, level), self.solver.preconditioner
        solver: Any = self.solver if kept.forced is None else replace(self.solver, rtol=kept.forced.eta)
        if self.most is not None:
            limit = level_at(self.most, ops, kept.age, 0.0 * level + solver.max_steps)
            solver = replace(solver, stop=AnyOf(solver.stop, AtMost(limit)))
        elif self.fallback and isinstance(solver, CG) and solver.stop is solver.steps is None:
            rounded = Rounded(*_rounding(ops, model, kept.sizes, level))
            rule = AnyOf(RelativeResidual(solver.rtol, solver.atol), rounded)
            solver = replace(solver, rtol=1e-5, atol=0.0, stop=rule)
        if kept.age is not None:
            kept = kept._replace(asked=0 * kept.asked + 1)
        M = finished(given, kept.prepared, A) if isinstance(given, Recipe) else given
        rhs = ops.scale(-1.0, ops.copy(model.gradient))
        found, iterates = inner_run(ops, solver, LinearProblem(A, rhs, kept.start, M))
        damping_term = 0.5 * level * ops.dot(found.x, found.x)
        predicted = damping_term - found.model
        bent = -2.0 * (predicted + ops.dot(model.gradient, found.x))
        failed = ops.any(ops.logical_not(is_one_of(found.status, _SOLVED)))
        if self.warm is not None:
            kept = kept._replace(start=ops.scale(self.warm, ops.copy(found.x)))
        none = ops.logical_not(failed) & idle(model, found)
        lost = ops.any(found.status == Code.NONFINITE)
        claims = (lost, Code.NONFINITE), (failed, Code.MAX_STEPS), (none, Code.INNER_TOLERANCE)
        status = verdict(ops, solved_as(model), *claims)
        free = ops.logical_not(failed) & (2.0 * damping_term <= bent)
        d = found.x
        if self.fallback:
            square = model.gradient_norm * model.gradient_norm
            useful = ops.isfinite(predicted) & ((predicted > 0) | none)
            if model.operator.psd:  # or such a direction is of rounding
                useful = useful & ops.logical_not(failed & (found.residual > model.gradient_norm))
            (d,) = ops.branch(useful, lambda d: (d,), lambda d: (ops.scale(-1.0, ops.copy(model.gradient)),), d)
            predicted, free = ops.where(useful, predicted, square), free & (useful | (square == 0))
        spent = {"left": found.residual, "steps": found.steps}
        return Trial(d, predicted, status, kept, found.products, damping_term, free, **spent, iterates=iterates)


_SOLVED = [Code.CONVERGED, Code.COMPLETED, Code.STAGNATED, Code.SATISFIED, Code.LEVELLED_OFF, Code.LEAST_SQUARES]
_SOLVED += [Code.INVARIANT, Code.UNEXPLORED]
