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
from ..run.status import Code, verdict
from ..solvers.base import Solver
from ..solvers.cg import CG
from ..solvers.options import require_inner
from ..solvers.problem import LinearProblem, Recipe, require_fit
from ..solvers.served import inner_solve
from .base import Method
from .damping import Nielsen, clip
from .problem import MinimizeProblem

__all__ = ["LevenbergMarquardt"]


_LINEARIZED = ("x", "gradient", "gradient_norm", "operator", "prepared")


class LMState(NamedTuple):
    """The current point, what was linearised there, and the damping for the next step."""

    x: Vector
    gradient: Vector
    gradient_norm: Scalar
    operator: LinearOperator
    """The curvature at x, undamped and linearised; where data are streamed it holds the point alone."""
    prepared: Any
    """What the preconditioner's recipe prepared at x; another damping needs nothing more."""
    value: Scalar
    threshold: Scalar
    damping: Scalar
    growth: Scalar
    ratio: Scalar
    inner_steps: Scalar
    status: Scalar
    steps: Scalar
    products: Scalar


@record
class LevenbergMarquardt(Method):
    """Levenberg-Marquardt.

    Parameters
    ----------
    curvature
        ``lg.GGN``, ``lg.Hessian``, ``lg.BlockGGN``, or any function from a point to an operator: data, whose own
        functions, if it holds any, are the same objects at each call.
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
    solver: Solver = CG(rtol=1e-2, max_steps=50)
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
        require_inner(self, self.solver)
        for name in ("damping", "accept", "rtol", "atol", "ftol", "least", "most"):
            require_number("LevenbergMarquardt", name, getattr(self, name))

    columns = ("value", "gradient_norm", "damping", "ratio", "inner_steps", "products")

    def init(self, ops: Backend, problem: MinimizeProblem) -> LMState:
        point = problem.at(problem.start)
        A = Damped(self.curvature(point), self.damping)
        self.solver.check(A)
        given = self.solver.preconditioner
        if isinstance(given, LinearOperator):
            require_fit(given, A)
        here = self._linearized(ops, point)
        value, norm = ops.item(point.value), here["gradient_norm"]
        zero, count = ops.scalar(0.0, point.x), ops.scalar(0, point.x)
        threshold = ops.maximum(self.rtol * norm, self.atol)
        status = verdict(
            ops,
            count + Code.RUNNING,
            (ops.logical_not(ops.isfinite(value) & ops.isfinite(norm)), Code.NONFINITE_INPUT),
            (norm <= threshold, Code.CONVERGED),
        )
        return LMState(
            **here,
            value=value,
            threshold=threshold,
            damping=clip(ops, zero + self.damping, self.least, self.most),
            growth=zero + 2.0,
            ratio=zero + math.nan,
            inner_steps=count,
            status=status,
            steps=count,
            products=count,
        )

    def step(self, ops: Backend, problem: MinimizeProblem, s: LMState) -> LMState:
        running = s.status == Code.RUNNING
        A = Damped(s.operator, s.damping)
        # A zero right-hand side takes no product: that is how a finished run stays where it is.
        rhs = ops.scale(-1.0, ops.mask(running, ops.copy(s.gradient)))
        given = self.solver.preconditioner
        linear = LinearProblem(A, rhs, None, given.finish(s.prepared, A) if isinstance(given, Recipe) else given)
        delta, _, inner_steps, inner_products, inner_model = inner_solve(ops, self.solver, linear)
        predicted = -inner_model
        if self.model == "undamped":
            predicted = predicted + 0.5 * s.damping * ops.dot(delta, delta)

        trial = ops.axpy(1.0, s.x, delta)
        value = ops.item(problem.at(trial).value)
        actual = s.value - value
        ratio = ops.where(ops.isfinite(actual), ops.divide(actual, predicted), -math.inf)
        small = (4.0 * ops.eps(s.x) if self.ftol is None else self.ftol) * ops.maximum(s.value, -s.value)
        flat = running & (predicted > 0) & (predicted <= small) & (actual <= small) & (actual >= -small)
        taken = running & ops.isfinite(value) & (predicted > 0) & (ratio > self.accept) | flat & (actual > 0)

        def move(trial: Vector) -> tuple[Scalar, dict[str, Any]]:
            there = self._linearized(ops, problem.at(trial))
            return ops.branch(ops.isfinite(there["gradient_norm"]), lambda trial: (True, there), stay, trial)

        def stay(trial: Vector) -> tuple[Scalar, dict[str, Any]]:
            return False, {name: getattr(s, name) for name in _LINEARIZED}

        moved, here = ops.branch(taken, move, stay, trial)
        ratio = ops.where(taken & ops.logical_not(moved), -math.inf, ratio)  # there the gradient is not finite
        damping, growth = self.rule.update(ops, s.damping, s.growth, ratio)
        return s._replace(
            **here,
            value=ops.where(moved, value, s.value),
            damping=ops.where(running, clip(ops, damping, self.least, self.most), s.damping),
            growth=ops.where(running, growth, s.growth),
            ratio=ops.where(running, ratio, s.ratio),
            inner_steps=ops.where(running, inner_steps, s.inner_steps),
            status=verdict(
                ops,
                s.status,
                (running & (here["gradient_norm"] <= s.threshold) | flat, Code.CONVERGED),
                (running & ops.logical_not(moved) & (s.damping >= self.most), Code.NO_DECREASE),
            ),
            products=s.products + inner_products,
        )

    def _linearized(self, ops: Backend, point: Point) -> dict[str, Any]:
        """What the state holds of a point, from one linearisation."""
        curvature = self.curvature(point)
        operator, gradient, given = curvature.prepare(), point.gradient, self.solver.preconditioner
        prepared = given.prepare(curvature) if isinstance(given, Recipe) else None
        norm = ops.sqrt(ops.dot(gradient, gradient))
        return dict(zip(_LINEARIZED, (point.x, gradient, norm, operator, prepared), strict=True))
