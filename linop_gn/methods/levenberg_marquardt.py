"""Levenberg-Marquardt with any curvature operator and an iterative inner solver.

At parameters x with gradient g and curvature G, the step s solves

    (G + lambda I) s = -g

approximately (CG), and is judged by the gain ratio

    rho = (L(x) - L(x + s)) / (predicted decrease of the quadratic model)

The predicted decrease is -(g.s + 1/2 s.G s) with ``model="undamped"``, or that of
the damped model, which has 1/2 lambda ||s||^2 less, with ``model="damped"``; neither
needs a product, since CG knows its model's value. It is minus infinity unless the
predicted decrease is positive and the trial finite. lambda follows a rule from
:mod:`linop_gn.methods.damping`, to which a refused step's ratio is minus infinity:
no refusal lowers lambda.

What ends a run is a fact about the point, free of scale: the decrease that the
undamped model promises, against the value, and the step, against the parameters.
Neither says anything where lambda is what makes them small, that is where
lambda ||s||^2 > s.G s, where the inner solve left too much, or where the same model
promises more along D^2 g, D the magnitudes of the parameters: one product, at the
end, that sees what the choice of units hides. A row of refusals ends it
where the promise at the first one was rounding already (``AT_PRECISION``), and is
a fault to be told otherwise (``NO_DECREASE``).

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
from ..run.status import Code, succeeded, verdict
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
    first: Scalar
    """The gradient's norm at the start."""
    unit: Scalar
    """Of the bounds on the damping: the largest s.G s / s.s."""
    doubt: Scalar
    """The largest predicted decrease that was refused since a step was taken."""
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
    rtol
        ``REDUCED`` when the gradient's 2-norm is at most rtol times its norm at the start.
    atol
        ``GRADIENT_SMALL`` when the gradient's 2-norm is at most atol.
    ftol
        ``DECREASE_SMALL`` when the undamped model promises at most ftol |value|; None: 4 round-offs.
    xtol
        ``STEP_SMALL`` when each entry of the undamped step is at most xtol times that of the parameters, or of
        the start where that is larger; None: 4 round-offs.
    least, most
        Bounds on lambda, in units of the largest s.G s / s.s that there was (at first: of the initial lambda).
    """

    curvature: Callable[..., Any] = static(default=GGN)
    solver: Solver = CG(rtol=1e-2, max_steps=50)
    damping: Scalar = 1.0
    rule: Any = Nielsen()
    model: str = static(default="undamped")
    accept: Scalar = 1e-4
    rtol: Scalar = 0.0
    atol: Scalar = 0.0
    ftol: Scalar | None = None
    xtol: Scalar | None = None
    least: Scalar = 1e-30
    most: Scalar = 1e12

    def __post_init__(self) -> None:
        if self.model not in ("undamped", "damped"):
            raise ValueError(f"LevenbergMarquardt: model must be 'undamped' or 'damped', got {self.model!r}.")
        require_inner(self, self.solver)
        for name in ("damping", "accept", "rtol", "atol", "ftol", "xtol", "least", "most"):
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
        status = verdict(
            ops,
            count + Code.RUNNING,
            (ops.logical_not(ops.isfinite(value) & ops.isfinite(norm)), Code.NONFINITE_INPUT),
            (norm <= self.atol, Code.GRADIENT_SMALL),
        )
        return LMState(
            **here,
            value=value,
            first=norm + 0.0,
            unit=zero + self.damping,
            doubt=zero,
            damping=zero + self.damping,
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
        delta, code, inner_steps, inner_products, inner_model, left = inner_solve(ops, self.solver, linear)
        square, norms = ops.dot(delta, delta), s.gradient_norm * ops.sqrt(ops.dot(s.x, s.x))
        damped = s.damping * square
        bent = -2.0 * (ops.dot(s.gradient, delta) - inner_model) - damped  # s.G s
        predicted = -inner_model + 0.5 * damped
        unit = ops.maximum(s.unit, ops.where(running, ops.divide(bent, square), 0.0))
        size, eps = ops.maximum(s.value, -s.value), ops.eps(s.x)
        few = (4.0 * eps if self.ftol is None else self.ftol) * size
        blurred = eps * ops.dot(abs(s.gradient), abs(s.x))  # what rounding x changes in the value
        rounding = ops.maximum(4.0 * eps * size, blurred)
        promised = ops.maximum(math.sqrt(eps) * size, 16.0 * eps * norms)
        # What the inner solve left of its residual may hide a decrease of |left|^2 / (2 lambda).
        solved = (left <= 1e3 * eps * s.gradient_norm) | (left * left <= 2.0 * s.damping * few)
        failed = ops.any(ops.logical_not(succeeded(code) | (code == Code.STAGNATED)))
        whole = running & solved & ops.logical_not(failed) & (damped <= bent)  # no damping makes this step small

        xp = ops.namespace()
        units = xp.where(abs(problem.start) > abs(s.x), abs(problem.start), abs(s.x))
        short = ops.max_abs(delta / xp.where(units > 0, units, 1e-30))

        def along_gradient(units: Vector) -> tuple[Scalar, Scalar]:
            """What the undamped model promises along the gradient in units of the parameters, for one product."""
            v = xp.where(units > 0, units, xp.max(units) + 0.0 * units) ** 2 * s.gradient
            slope, curve = ops.dot(s.gradient, v), ops.dot(v, s.operator.apply(v))
            return slope * ops.where(curve > 0, 0.5 * ops.divide(slope, curve), math.inf), 1

        near = running & (predicted <= ops.maximum(few, rounding))
        hidden, asked = ops.branch(near, along_gradient, lambda units: (0.0 * square, 0), units)
        whole = whole & (hidden <= ops.maximum(few, rounding))
        trial = ops.axpy(1.0, s.x, delta)
        value = ops.item(problem.at(trial).value)
        actual = s.value - value
        finite = ops.isfinite(actual) & (predicted > 0)
        divisor = predicted - 0.5 * damped if self.model == "damped" else predicted
        ratio = ops.where(finite, ops.divide(actual, divisor), -math.inf)
        equal = finite & (predicted <= rounding) & (actual <= rounding) & (s.doubt <= promised)
        equal = equal & ((actual >= 0) | (actual >= -rounding) & (hidden > promised))
        ratio = ops.where(equal, 1.0, ratio)  # as far as rounding can tell
        taken = running & (ratio > self.accept) & (actual >= 0)

        def move(trial: Vector) -> tuple[Scalar, dict[str, Any]]:
            if problem.once:
                return True, stay(trial)[1] | {"x": trial}
            there = self._linearized(ops, problem.at(trial))
            return ops.branch(ops.isfinite(there["gradient_norm"]), lambda trial: (True, there), stay, trial)

        def stay(trial: Vector) -> tuple[Scalar, dict[str, Any]]:
            return False, {name: getattr(s, name) for name in _LINEARIZED}

        moved, here = ops.branch(taken, move, stay, trial)
        refused = running & ops.logical_not(moved | equal & ops.logical_not(taken))
        finite, ratio = finite & (moved | ops.logical_not(taken)), ops.where(taken & refused, -math.inf, ratio)
        damping, growth = self.rule.update(ops, s.damping, s.growth, ops.where(refused, -math.inf, ratio))
        doubt = ops.where(refused, ops.maximum(s.doubt, ops.where(finite, predicted, math.inf)), 0.0)
        hopeless = refused & (finite & (predicted <= rounding) | (s.damping >= self.most * unit))
        small = whole & (predicted <= few)
        there = ops.sqrt(ops.dot(here["x"], here["x"]))
        start = ops.sqrt(ops.dot(problem.start, problem.start))
        return s._replace(
            **here,
            value=ops.where(moved, value, s.value),
            unit=unit,
            doubt=ops.where(running, doubt, s.doubt),
            damping=ops.where(running, clip(ops, damping, self.least * unit, self.most * unit), s.damping),
            growth=ops.where(running, growth, s.growth),
            ratio=ops.where(running, ratio, s.ratio),
            inner_steps=ops.where(running, inner_steps, s.inner_steps),
            status=verdict(
                ops,
                s.status,
                (running & (here["gradient_norm"] <= self.atol), Code.GRADIENT_SMALL),
                (running & (here["gradient_norm"] <= self.rtol * s.first), Code.REDUCED),
                (small & (ops.sqrt(square) > 0.01 * there) & (there > 10.0 * start), Code.DIVERGING),
                (small, Code.DECREASE_SMALL),
                (whole & (short <= (4.0 * eps if self.xtol is None else self.xtol)), Code.STEP_SMALL),
                (whole & (predicted <= blurred), Code.AT_PRECISION),
                (hopeless & (doubt <= promised) & (hidden <= promised), Code.AT_PRECISION),
                (hopeless, Code.NO_DECREASE),
            ),
            products=s.products + inner_products + asked,
        )

    def _linearized(self, ops: Backend, point: Point) -> dict[str, Any]:
        """What the state holds of a point, from one linearisation."""
        curvature = self.curvature(point)
        operator, gradient, given = curvature.prepare(), point.gradient, self.solver.preconditioner
        prepared = given.prepare(curvature) if isinstance(given, Recipe) else None
        norm = ops.sqrt(ops.dot(gradient, gradient))
        return dict(zip(_LINEARIZED, (point.x, gradient, norm, operator, prepared), strict=True))
