"""Levenberg-Marquardt with any curvature operator and an iterative inner solver.

At parameters x with gradient g and curvature G, the step s solves

    (G + lambda I) s = -g

approximately (CG), and is judged by the gain ratio

    rho = (L(x) - L(x + s)) / (predicted decrease of the quadratic model)

The predicted decrease is -(g.s + 1/2 s.G s) with ``model="undamped"``, or that of
the damped model, which has 1/2 lambda ||s||^2 less, with ``model="damped"``; neither
needs a product, since CG knows its model's value. lambda follows a rule from
:mod:`linop_gn.methods.damping`.

Levenberg (1944), Marquardt (1963); as a truncated Gauss-Newton method for
networks, Martens (2010). ``scipy.optimize.least_squares(method="lm")`` forms and
factors the Jacobian; this one needs products only, and takes losses other than
squares.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ..arguments import require_number
from ..curvature.at_point import GGN
from ..curvature.point import Point
from ..operators.base import LinearOperator
from ..operators.damped import Damped
from ..protocols import Backend, Scalar, Vector
from ..records import record, static
from ..run.status import CONVERGED, MAX_STEPS, NO_DECREASE, NONFINITE, NONFINITE_INPUT, RUNNING
from ..solvers.blockwise import overall
from ..solvers.cg import CG
from ..solvers.options import require_solver
from ..solvers.problem import LinearProblem, Recipe, require_fit
from .damping import Nielsen, clip
from .problem import MinimizeProblem

__all__ = ["LevenbergMarquardt"]


class LMState(NamedTuple):
    """The current point, its value and gradient, and the damping for the next step."""

    x: Vector
    gradient: Vector
    value: Scalar
    norm: Scalar
    threshold: Scalar
    damping: Scalar
    growth: Scalar
    ratio: Scalar
    inner: Scalar
    status: Scalar
    steps: Scalar
    products: Scalar
    kept: Any = None
    """What the preconditioner's recipe prepared at x; another damping needs nothing more."""


class LMRow(NamedTuple):
    """Objective, gradient norm and damping at each step; gain ratio and inner steps of the step that led there."""

    value: Scalar
    gradient_norm: Scalar
    damping: Scalar
    ratio: Scalar
    inner_steps: Scalar
    products: Scalar


@record
class LevenbergMarquardt:
    """Levenberg-Marquardt.

    Parameters
    ----------
    curvature
        ``lg.GGN``, ``lg.Hessian``, ``lg.BlockGGN``, or any function from a point to an operator.
    solver
        Inner solver; what it returns when it stops early (negative curvature, limit) is used. For a curvature
        with blocks ``lg.Blockwise(lg.CG(...))`` solves with each by itself.
    damping
        Initial lambda. Data: a new value is the same compiled program.
    rule
        How lambda follows the gain ratio: ``Nielsen()`` (default), ``Marquardt()``, ``ConstantDamping()``.
    model
        ``"undamped"`` or ``"damped"``: which predicted decrease the gain ratio divides by.
    accept
        A step is taken when its gain ratio is above this.
    rtol, atol
        Converged when the gradient's 2-norm is at most max(rtol * its norm at the start, atol).
    ftol
        Converged when predicted and actual decrease are both at most ftol * |value|; None: 4 round-offs.
    least, most
        Bounds on lambda. A step refused at the upper one ends the run as ``NO_DECREASE``.
    """

    curvature: Callable[..., Any] = static(default=GGN)
    solver: CG = CG(rtol=1e-2, max_steps=50)
    damping: Scalar = 1.0
    rule: Any = Nielsen()
    model: str = static(default="undamped")
    accept: Scalar = 1e-4
    rtol: Scalar = 1e-6
    atol: Scalar = 0.0
    ftol: Scalar | None = None
    least: Scalar = 1e-12
    most: Scalar = 1e12

    def __post_init__(self) -> None:
        if self.model not in ("undamped", "damped"):
            raise ValueError(f"LevenbergMarquardt: model must be 'undamped' or 'damped', got {self.model!r}.")
        require_solver(self, self.solver)
        for name in ("damping", "accept", "rtol", "atol", "ftol", "least", "most"):
            require_number("LevenbergMarquardt", name, getattr(self, name))

    def init(self, ops: Backend, problem: MinimizeProblem) -> LMState:
        x = ops.copy(problem.start)
        point = problem.point(x)
        self._check(Damped(self.curvature(point), self.damping))
        gradient = point.gradient
        value = ops.item(point.value)
        norm = ops.sqrt(ops.dot(gradient, gradient))
        zero = ops.scalar(0.0, x)
        threshold = ops.maximum(self.rtol * norm, self.atol)
        status = ops.where(norm <= threshold, CONVERGED, ops.scalar(RUNNING, x))
        if problem.max_steps == 0:
            status = ops.where(norm <= threshold, status, MAX_STEPS)
        sound = ops.isfinite(value) & ops.isfinite(norm)
        return LMState(
            x=x,
            gradient=gradient,
            value=value,
            norm=norm,
            threshold=threshold,
            damping=clip(ops, zero + self.damping, self.least, self.most),
            growth=zero + 2.0,
            ratio=zero + math.nan,
            inner=ops.scalar(0, x),
            status=ops.where(sound, status, NONFINITE_INPUT),
            steps=ops.scalar(0, x),
            products=ops.scalar(0, x),
            kept=self._prepared(point),
        )

    def step(self, ops: Backend, problem: MinimizeProblem, s: LMState) -> LMState:
        running = s.status == RUNNING
        A = Damped(self.curvature(problem.point(s.x)).prepare(), s.damping)
        # A zero right-hand side takes no product: that is how a finished run stays where it is.
        rhs = ops.scale(-1.0, ops.mask(running, ops.copy(s.gradient)))
        linear = LinearProblem(A, rhs, None, self._preconditioner(s.kept, A))
        inner = ops.iterate(self.solver, linear)
        delta = self.solver.answer(ops, linear, inner)
        inner_steps, inner_products, inner_model = overall(self.solver, inner)
        predicted = -inner_model
        squared = ops.dot(delta, delta)
        if self.model == "undamped":
            predicted = predicted + 0.5 * s.damping * squared

        x = ops.axpy(1.0, s.x, delta)
        trial = problem.point(x)
        value = ops.item(trial.value)
        actual = s.value - value
        ratio = ops.where(ops.isfinite(actual), ops.divide(actual, predicted), -math.inf)
        taken = running & ops.isfinite(value) & (predicted > 0) & (ratio > self.accept)

        small = (4.0 * ops.eps(s.x) if self.ftol is None else self.ftol) * ops.maximum(s.value, -s.value)
        flat = running & (predicted > 0) & (predicted <= small) & (actual <= small) & (actual >= -small)
        taken = taken | (flat & (actual > 0))

        def move(x: Vector, gradient: Vector, kept: Any) -> tuple[Vector, Vector, Any]:
            point = problem.point(x)
            return x, point.gradient, self._prepared(point)

        def stay(x: Vector, gradient: Vector, kept: Any) -> tuple[Vector, Vector, Any]:
            return s.x, gradient, kept

        x, gradient, kept = ops.branch(taken, move, stay, x, s.gradient, s.kept)
        norm = ops.sqrt(ops.dot(gradient, gradient))
        damping, growth = self.rule.update(ops, s.damping, s.growth, ratio)
        damping = clip(ops, damping, self.least, self.most)

        steps = s.steps + ops.where(running, 1, 0)
        stuck = running & ops.logical_not(taken) & (s.damping >= self.most)
        status = s.status  # later lines overrule earlier ones
        status = ops.where(running & (steps >= problem.max_steps), MAX_STEPS, status)
        status = ops.where(stuck, NO_DECREASE, status)
        status = ops.where(flat, CONVERGED, status)
        status = ops.where(running & (norm <= s.threshold), CONVERGED, status)
        status = ops.where(running & ops.logical_not(ops.isfinite(norm)), NONFINITE, status)
        return LMState(
            x=x,
            gradient=gradient,
            value=ops.where(taken, value, s.value),
            norm=norm,
            threshold=s.threshold,
            damping=ops.where(running, damping, s.damping),
            growth=ops.where(running, growth, s.growth),
            ratio=ops.where(running, ratio, s.ratio),
            inner=ops.where(running, inner_steps, s.inner),
            status=status,
            steps=steps,
            products=s.products + inner_products,
            kept=kept,
        )

    def _check(self, A: Damped) -> None:
        self.solver.check(A)
        given: Any = getattr(self.solver, "preconditioner", None)
        if isinstance(given, LinearOperator):
            require_fit(given, A)

    def _prepared(self, point: Point) -> Any:
        given = getattr(self.solver, "preconditioner", None)
        return given.prepare(self.curvature(point)) if isinstance(given, Recipe) else None

    def _preconditioner(self, kept: Any, A: Damped) -> LinearOperator | None:
        given: Any = getattr(self.solver, "preconditioner", None)
        return given.finish(kept, A) if isinstance(given, Recipe) else given

    def observe(self, state: LMState) -> LMRow:
        return LMRow(state.value, state.norm, state.damping, state.ratio, state.inner, state.products)

    def answer(self, ops: Backend, problem: MinimizeProblem, state: LMState) -> Vector:
        return state.x
