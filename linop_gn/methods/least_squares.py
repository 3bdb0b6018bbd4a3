r"""Levenberg-Marquardt by orthogonal factorisation, or by products, with scaling and geodesic acceleration.

With W = S^T J the root of the Gauss-Newton operator, G = W^T W (:mod:`linop_gn.curvature.gram`), q the gradient on
its side, g = W^T q, and a diagonal D, a step solves

    min_s |W s + q|^2 + lambda |D s|^2

for residuals r: W = J and q = r. Once for each point W D^-1 = Q R is factored; each trial then factors
[R; sqrt(lambda) I], which takes no product and is small. The normal equations, which lose half the digits, are never
formed. For many parameters W is not formed at all: :mod:`linop_gn.methods.linear_model`.

* D is one over the magnitudes of the start: then units change nothing but rounding. (Marquardt, 1963, and MINPACK
  take the norms of the columns.) Where a parameter has lost all effect on the residuals, or no step is taken any more,
  the run is made once more with D = I, and the better end is kept.
* lambda starts relative to the largest squared column of W D^-1 and follows a rule of :mod:`linop_gn.methods.damping`.
* A second-order correction a, solved with the same factors, bends the step to s + a / 2 where 2 |D a| <= 3/4 |D s|:
  the second derivative along s costs one evaluation (Transtrum and Sethna, 2012).
* Bounds: a parameter that lies at one with the gradient pointing out is held for the step, and the trial is projected
  onto the box; what the model predicts is that of the projected step.

What ends a run are facts about the point x, not about the step that led there. With the undamped step s (lambda as
small as rounding allows) and what it promises, m = 1/2 |q|^2 - 1/2 |W s + q|^2,

=================== ===========================================================================================
``GRADIENT_SMALL``   each column's cosine with q is at most gtol (MINPACK's test); without a gtol m is small as well
``DECREASE_SMALL``   m <= ftol value: m / value is the relative offset of Bates and Watts (1981), squared
``STEP_SMALL``       each entry of s is at most xtol of that of x, or of the start; without an xtol m, or the value,
                    must be small too, and a run by products does not end so
``AT_PRECISION``     a trial was refused, and m is less than what rounding x changes in the value; or none is taken
                    any more, and all of the second derivative, or the cosine, says that this is the bottom; of
                    a W that looks singular, after the undamped step was tried
``STAGNATED``        the same, but what rounding hides is above the fifth digit, or leaves a parameter open
``DIVERGING``        the promise is small, and a parameter that had an effect on q has lost it; or the value stays at
                    97 and 103 % of the part of x that W is flat along, and not without it: a plateau
``NO_DECREASE``      every trial was refused although m is large
=================== ===========================================================================================

``scipy.optimize.least_squares`` (trf) compares *damped* steps and decreases with its tolerances, 1e-8 each; here what
is compared is undamped, and the tolerances are rounding unless given.
"""

from __future__ import annotations

import math
from typing import Any

from ..arguments import require_number
from ..curvature.gram import require_root
from ..protocols import Backend, Scalar, Vector
from ..records import record, static
from ..run.returned import require_level
from ..run.status import Code, is_one_of, succeeded, verdict
from ..solvers.base import Solver, require_solver
from ..solvers.cg import CG
from .base import Method
from .damping import Nielsen, clip
from .fit_state import Here, LeastSquaresState
from .linear_model import Triangle, few, linear_at, root_at, slack
from .problem import MinimizeProblem
from .stopping import LOST, along, and_lost

__all__ = ["LeastSquares"]

_BEND = 0.3
"""The part of a step over which its second derivative is taken."""
_INNER = CG(rtol=0.01, max_steps=1000)
"""By products, where no solver is given."""
_RULE, _QUICK = Nielsen(), Nielsen(least=0.1)
"""Of lambda: for few parameters, and for many, where each trial is dear."""


@record
class LeastSquares(Method):
    """Levenberg-Marquardt with the root of the Gauss-Newton operator, factored or by products.

    For objectives with a convex loss in closed form (``lg.Objective.from_residuals``, ``lg.losses``). For few
    parameters an array (m, n) of outputs by parameters is held twice, for streamed data one for each batch in turn.

    Parameters
    ----------
    damping
        Initial lambda, relative to the largest squared column of W D^-1.
    rule
        How lambda follows the gain ratio.
    accept
        A step is taken when its gain ratio is above this.
    ftol, xtol, gtol
        See :mod:`linop_gn.methods.least_squares`; None: 4 round-offs (ftol: at most 1e-12), 4, and 50.
    scale
        1 / D: an array (n,); None: the start's magnitudes.
    lower, upper
        Bounds: arrays (n,), or None.
    max_nfev
        Limit on evaluations of the residuals; None: none.
    column_norms
        Whether D is the largest column norms that there were; None: for more than 1000 parameters.
    solver
        ``lg.CG(...)`` or ``lg.LSMR(...)``, by products; None: see :func:`linop_gn.least_squares`.
    acceleration
        Whether steps are bent, for data of one batch; None: for at most 1000 parameters.
    again
        Whether a run in which a parameter has lost its effect, or that is stuck, is made once more with D = I.

    >>> import numpy as np, linop_gn as lg
    >>> t = np.array([0.0, 1.0, 2.0, 3.0])
    >>> decay = lg.Objective.from_residuals(
    ...     lambda p: p[0] * np.exp(p[1] * t) - 2.0 * np.exp(-0.5 * t),
    ...     jacobian=lambda p: np.stack([np.exp(p[1] * t), p[0] * t * np.exp(p[1] * t)], axis=1))
    >>> lg.minimize(decay, np.array([1.0, 0.0]), lg.methods.LeastSquares()).params.round(6)
    array([ 2. , -0.5])

    Raises
    ------
    ValueError
        For a loss without a root in closed form.
    """

    damping: Scalar | None = None
    rule: Any = None
    accept: Scalar = 1e-4
    ftol: Scalar | None = None
    xtol: Scalar | None = None
    gtol: Scalar | None = None
    scale: Any = None
    lower: Any = None
    upper: Any = None
    max_nfev: Scalar | None = None
    column_norms: bool | None = static(default=None)
    solver: Any = None
    acceleration: bool | None = static(default=None)
    again: bool = static(default=True)

    def __post_init__(self) -> None:
        for name in ("damping", "accept", "ftol", "xtol", "gtol", "max_nfev"):
            require_number("LeastSquares", name, getattr(self, name), optional=name != "accept")
        if self.solver is not None:
            require_solver("LeastSquares", self.solver, "a solver such as lg.CG() or lg.LSMR()")

    of_data = ("here", "first")

    columns = ("value", "gradient_norm", "optimality", "damping", "ratio", "evaluations", "linearisations", "refused")

    def init(self, ops: Backend, problem: MinimizeProblem) -> LeastSquaresState:
        require_root(problem.objective.loss, "LeastSquares", problem.objective)
        problem.space.require_together("LeastSquares")
        if problem.space.dtype in ("float16", "bfloat16"):
            raise TypeError(f"LeastSquares: {problem.space.dtype} cannot be factored; use float32 or float64.")
        x = self._inside(ops, ops.copy(problem.start))
        here = self._at(ops, problem, x, False, None)
        zero, count, unit = ops.scalar(0.0, x), ops.scalar(0, x), self._unit(ops, here)
        sound = ops.isfinite(here.value) & ops.isfinite(here.gradient_norm)
        size = 0.0 if here.q is None else ops.max_abs(here.q)
        vanished = (size > 0) & (here.value * ops.eps(x) == 0)  # digits of the value are lost
        free = self.free(ops, here.x, here.gradient)
        flat = (size > 0) & (ops.max_abs(here.squares if free is None else here.squares * free) == 0)
        flat = flat if free is None else flat & (ops.max_abs(free) > 0)
        status = verdict(
            ops,
            count + Code.RUNNING,
            (ops.logical_not(sound), Code.NONFINITE_INPUT),
            (vanished, Code.BREAKDOWN),
            (flat, Code.DIVERGING),
            *self._claims(ops, here, True),
        )
        return LeastSquaresState(
            **here.shown(ops),
            unit=unit,
            damping=self._first(here) * unit,
            growth=zero + 2.0,
            ratio=zero + math.nan,
            newton=zero - 1.0,
            first=here,
            going=count,
            run=count if self.again else count + 2,
            verdict=count,
            status=status,
            steps=count,
            evaluations=count + 1,
            linearisations=count + 1,
            products=count,
            refused=count,
        )

    def step(self, ops: Backend, problem: MinimizeProblem, s: LeastSquaresState) -> LeastSquaresState:
        xp, here, running = ops.namespace(), s.here, s.status == Code.RUNNING
        going, eps = running & (s.going == 1), ops.eps(s.x)
        solver, free = self._solver, self.free(ops, here.x, here.gradient)
        solve = here.linear.solving(ops, free, s.damping, solver)
        offset = here.linear.offset
        y, products = solve(offset)
        delta, v = self._projected(ops, here, y)
        predicted = ops.dot(offset, v) - 0.5 * ops.dot(v, v)
        here, spent = self._judged(ops, here, predicted, delta, s)
        products = products + spent
        going_on = running & self._open(ops, here)
        bent, newton = self._bends(problem), -1.0
        if bent:
            there = problem.at(ops.axpy(_BEND, delta, ops.copy(here.x))).outputs
            root = root_at(problem, here.outputs)
            change = here.weight * root.transposed(xp, xp.reshape(there, here.outputs.shape) - here.outputs)
            curve = (2.0 / _BEND) * (xp.reshape(change, (-1,)) / _BEND - here.linear.outward(v))
            sound = ops.isfinite(ops.max_abs(curve))
            curve = ops.mask(sound, curve)
            bend = ops.dot(v, v) + ops.dot(here.q, curve)  # all of the second derivative of the value along delta
            length, slope = ops.max_abs(delta / here.sizes), ops.dot(offset, v)
            sound, steep = sound & (length <= 1), bend >= 1e-3 * length * length * here.value
            newton = ops.where(steep, 0.5 * slope * ops.divide(slope, bend), math.inf)
            newton = ops.where(sound, newton, -1.0)
            a, spent = solve(ops.scale(-1.0, here.linear.inward(curve)))
            products = products + spent
            small = 2.0 * ops.sqrt(ops.dot(a, a)) <= 0.75 * ops.sqrt(ops.dot(y, y))
            y = y + ops.mask(small, 0.5 * a)
            delta, _ = self._projected(ops, here, y)
        trial = ops.select(going, self._inside(ops, problem.start), ops.axpy(1.0, delta, ops.copy(here.x)))
        value = ops.item(problem.at(trial).value)
        actual = s.value - value
        ratio = ops.where(ops.isfinite(actual) & (predicted > 0), ops.divide(actual, predicted), -math.inf)
        # Under this damping less is promised than rounding of the value, without it much more: let the damping fall.
        noise = 4.0 * eps * s.value
        even = (predicted > 0) & (predicted <= noise) & (abs(actual) <= noise) & (s.growth == 2.0)
        ratio = ops.where(even & (here.promise > math.sqrt(eps) * s.value), 1.0, ratio)
        # The least damping there is holds back what is promised.
        held = running & (s.damping <= eps * eps * s.unit) & (predicted <= 1e-3 * here.promise)
        taken = going_on & (ratio > self.accept) | going

        def move(trial: Vector) -> tuple[Scalar, Here]:
            found = self._at(ops, problem, trial, s.run == 1, here)
            sound = ops.isfinite(found.gradient_norm) & ops.isfinite(found.value)
            return ops.branch(sound, lambda trial: (True, found), stay, trial)

        def stay(trial: Vector) -> tuple[Scalar, Here]:
            return False, here

        moved, here = ops.branch(taken, move, stay, trial)
        refused = running & ops.logical_not(moved)
        ratio = ops.where(taken & refused, -math.inf, ratio)  # there the gradient is not finite
        unit = ops.where(going, self._unit(ops, here), s.unit)
        rule = self.rule or (_RULE if few(s.x) else _QUICK)
        told = rule.update(ops, s.damping, s.growth, ops.where(refused, -math.inf, ratio))
        damping, growth = require_level(rule, "update", told)
        damping = ops.where(going, self._first(here) * unit, clip(ops, damping, eps * eps * unit, unit / (eps * eps)))
        evaluations = s.evaluations + ops.where(running, 1 + bent, 0)
        size = here.value
        hopeless = refused & ((predicted <= 4.0 * eps * size) & (predicted > 0) | (s.damping >= unit / (eps * eps)))
        newton = ops.where(refused, ops.where(s.newton >= 0, s.newton, newton), -1.0)
        settled, slight = here.reach <= 0.01, (here.cosine <= 1e-6) | (here.effect < LOST)
        precise = here.known & settled & (here.promise <= ops.minimum(here.rounding, 1e-5 * size)) | here.exact
        # W is singular, as far as can be told so near a minimum; a truncated solve does not tell
        singular = isinstance(here.linear, Triangle) and here.reach >= 0.01 / math.sqrt(eps)
        bottom = slight & singular & (newton >= 0) & (newton <= math.sqrt(eps) * size) & here.known
        level = (settled | slight) & (here.promise <= min(math.sqrt(eps), 1e-5) * size)
        # What is promised there is a guess, for which the undamped step is tried: of a linear model it is true.
        least = eps * eps * unit
        bare = s.damping <= 2.0 * least
        last = hopeless & bottom & ops.logical_not(bare | level)
        hopeless = hopeless & ops.logical_not(last)
        damping = ops.where(last, least, damping)
        doubtful = here.promise <= ops.maximum(here.rounding, math.sqrt(eps) * size)
        spent = False if self.max_nfev is None else running & (evaluations >= self.max_nfev)
        status = verdict(
            ops,
            s.status,
            *self._claims(ops, here, running, s.first.value),
            (refused & precise & (here.effect < LOST), Code.DIVERGING),
            (refused & (precise | bare & bottom) | hopeless & level & here.known, Code.AT_PRECISION),
            (hopeless & doubtful, Code.STAGNATED),
            (hopeless | held & (here.promise < math.inf) & (s.going == 0), Code.NO_DECREASE),
            (spent, Code.MAX_STEPS),
        )
        flat, looked = self._on_plateau(ops, problem, here, running & succeeded(status))
        status, evaluations = ops.where(flat, Code.DIVERGING, status), evaluations + looked
        new = s._replace(
            **here.shown(ops),
            unit=unit,
            damping=ops.where(running, damping, s.damping),
            growth=ops.where(running, ops.where(going, 2.0, growth), s.growth),
            ratio=ops.where(running, ratio, s.ratio),
            newton=ops.where(running, newton, s.newton),
            going=s.going * 0,
            status=status,
            evaluations=evaluations,
            linearisations=s.linearisations + ops.where(taken, 1, 0),
            products=s.products + ops.where(running, products, 0),
            refused=s.refused + ops.where(refused, 1, 0),
        )
        ended = running & (s.steps + 1 >= problem.max_steps) | spent
        return self._sent(ops, new, running, ended) if self.again else new

    def renew(self, ops: Backend, problem: MinimizeProblem, state: LeastSquaresState) -> LeastSquaresState:
        """The state at the same x for the problem's data; what was reached on others is no end for these."""
        here = self._at(ops, problem, state.x, state.run == 1, state.here._replace(D=state.D))
        same = (here.value == state.value) & (here.gradient_norm == state.gradient_norm)
        (first,) = ops.branch(same, lambda now, first: (first,), lambda now, first: (now,), here, state.first)
        newton = ops.where(same, state.newton, -1.0)
        told = {"value": here.value, "gradient_norm": here.gradient_norm, "optimality": here.cosine}
        return state._replace(here=here, first=first, newton=newton, **told)

    def _sent(self, ops: Backend, s: LeastSquaresState, running: Scalar, last: Scalar) -> LeastSquaresState:
        """The state; where a run ends: sent back to the start if it was the first and failed, else the better end."""
        ended = running & ((s.status != Code.RUNNING) | last)
        stuck = is_one_of(s.status, [Code.NO_DECREASE, Code.DIVERGING]) | (s.here.effect < LOST)
        again = ended & (s.run == 0) & stuck & ops.logical_not(last)
        worse = ended & (s.run == 1) & (s.first.value < s.here.value)
        (here,) = ops.branch(worse, lambda now, first: (first,), lambda now, first: (now,), s.here, s.first)
        (first,) = ops.branch(again, lambda now, first: (now,), lambda now, first: (first,), s.here, s.first)
        return s._replace(
            **here.shown(ops),
            first=first,
            going=ops.where(again, 1, s.going),
            run=ops.where(again, 1, ops.where(ended & (s.run == 1), 2, s.run)),
            verdict=ops.where(again, s.status, s.verdict),
            status=verdict(ops, s.status, (again, Code.RUNNING), (worse, s.verdict)),
        )

    # parts

    def _first(self, here: Here) -> Scalar:
        """lambda of the first trial, in multiples of the unit."""
        own = 1e-2 if few(here.x) else 1e-3
        return own if self.damping is None else self.damping

    @property
    def _solver(self) -> Solver:
        return _INNER if self.solver is None else self.solver

    def _bends(self, problem: MinimizeProblem) -> bool:
        batches, wanted = problem.objective.batches, self.acceleration
        wanted = few(problem.start) if wanted is None else wanted
        return wanted and not problem.host and len(batches) == 1 and not batches[0].stacked

    def _inside(self, ops: Backend, x: Vector) -> Vector:
        """The nearest point within the bounds."""
        xp = ops.namespace()
        x = x if self.lower is None else xp.where(x < self.lower, self.lower, x)
        return x if self.upper is None else xp.where(x > self.upper, self.upper, x)

    def free(self, ops: Backend, x: Vector, gradient: Vector) -> Vector | None:
        """1 for parameters that may move, 0 for those that a bound holds."""
        if self.lower is None:
            return None
        xp = ops.namespace()
        held = ((x <= self.lower) & (gradient >= 0)) | ((x >= self.upper) & (gradient <= 0))
        return xp.where(held, xp.zeros_like(x), xp.ones_like(x))

    def _open(self, ops: Backend, here: Here) -> Scalar:
        """Whether nothing is known yet of a point that ends the run there: only products may have to be taken first."""
        if isinstance(here.linear, Triangle):
            return True
        return verdict(ops, Code.RUNNING, *self._claims(ops, here, True)) == Code.RUNNING

    def _on_plateau(self, ops: Backend, problem: MinimizeProblem, here: Here, ended: Scalar) -> tuple[Scalar, Scalar]:
        """Whether the value depends on what W does not see of x, and not on how much of it there is; evaluations."""
        if not isinstance(here.linear, Triangle):
            return False, 0
        linear, level = here.linear, ops.maximum(here.rounding, 1e-10 * here.value)

        def look(x: Vector) -> tuple[Scalar, Scalar]:
            units = self._units(ops, x, here.sizes)
            flat = linear.unseen(ops, self.free(ops, x, here.gradient), here.D * x) / here.D
            effects = ops.namespace().sqrt(here.squares) * here.D * units
            flat = and_lost(ops, flat, x, effects, here.value)
            some = ops.max_abs(flat / units) > 1e-3
            found = along(ops, here, flat, some, level, lambda z: problem.value_at(self._inside(ops, z)))
            return found[0], found[2]

        return ops.branch(ended, look, lambda x: (False, 0), here.x)

    def _judged(
        self, ops: Backend, here: Here, predicted: Scalar, delta: Vector, s: LeastSquaresState
    ) -> tuple[Here, Scalar]:
        """With promise and reach of the undamped step, where those of the damped one do not rule out an end."""
        if isinstance(here.linear, Triangle):
            return here, 0
        eps, units = ops.eps(here.x), self._units(ops, here.x, here.sizes)
        ftol, xtol = self._tolerances(ops, here)[:2]
        end = predicted <= ops.maximum(ftol * here.value, here.rounding)
        end = end | (s.damping >= s.unit / (eps * eps)) | (ops.max_abs(delta / units) <= xtol)
        due = (s.status == Code.RUNNING) & (s.going == 0) & (here.promise == math.inf) & end

        def judge(x: Vector) -> tuple[Scalar, Scalar, Scalar]:
            free, target = self.free(ops, x, here.gradient), 0.5 * ops.maximum(ftol, slack(ops, x)) * here.value
            promise, y, products = here.linear.promise(ops, free, s.unit, target, self._solver)
            far = ops.max_abs(y / here.D / units)
            return promise, ops.where(promise <= 1e-5 * here.value, far, math.inf), products

        known = lambda x: (here.promise, here.reach, ops.scalar(0, x))  # noqa: E731
        promise, reach, products = ops.branch(due, judge, known, here.x)
        return here._replace(promise=promise, reach=reach), products

    def _units(self, ops: Backend, x: Vector, sizes: Vector) -> Vector:
        return ops.namespace().where(abs(x) > sizes, abs(x), sizes)

    def _tolerances(self, ops: Backend, here: Here) -> tuple[Scalar, Scalar, Scalar]:
        """ftol, xtol, gtol."""
        eps = ops.eps(here.x)
        least = 4.0 * eps if isinstance(here.linear, Triangle) else math.inf
        given = (self.ftol, min(least, 1e-12)), (self.xtol, 4.0 * eps), (self.gtol, 50.0 * eps)
        return tuple(own if value is None else value for value, own in given)  # type: ignore[return-value]

    def _projected(self, ops: Backend, here: Here, y: Vector) -> tuple[Vector, Vector]:
        """The step y / D within the bounds, and R D times it."""
        delta = y / here.D
        if self.lower is not None:
            delta = self._inside(ops, here.x + delta) - here.x
            y = here.D * delta
        return delta, here.linear.push(ops, y)

    def _unit(self, ops: Backend, here: Here) -> Scalar:
        """The largest squared column of W D^-1."""
        largest = ops.item(ops.namespace().max(here.squares))
        return ops.where(largest > 0, largest, 1.0)

    def _claims(self, ops: Backend, here: Here, running: Scalar, first: Scalar = 0.0) -> list[tuple[Scalar, Scalar]]:
        """What can be said of a point; ``first`` is the value at the start."""
        (ftol, xtol, gtol), eps = self._tolerances(ops, here), ops.eps(here.x)
        is_factored = isinstance(here.linear, Triangle)
        # A step that is small beside a far start may still change the value, unless that is small beside the first.
        little, gone = (here.promise <= 1e-5 * here.value) | here.exact, here.value <= eps * eps * first
        slight = little | gone if self.xtol is None else True
        # Of columns that are nearly dependent, all may be nearly orthogonal to q and q be far from its least.
        even = little if self.gtol is None and is_factored else True
        coarse = self.xtol is None and not is_factored  # a truncated solve knows no step so well
        return [
            (running & (here.effect < LOST) & (here.promise <= ftol * here.value), Code.DIVERGING),
            (running & (here.cosine <= gtol) & even, Code.GRADIENT_SMALL),
            (running & (here.promise <= ftol * here.value), Code.DECREASE_SMALL),
            (running & (here.reach <= (0.0 if coarse else xtol)) & (here.known | gone) & slight, Code.STEP_SMALL),
        ]

    def _at(self, ops: Backend, problem: MinimizeProblem, x: Vector, equal: Scalar, before: Here | None) -> Here:
        """What is known of a point, from one linearisation."""
        xp, start = ops.namespace(), problem.start
        point = problem.at(x)
        gradient = point.gradient
        linear, q, weight, size = linear_at(ops, problem, point, self.solver)
        bends, norms = self._bends(problem), xp.sqrt(linear.squares_of(ops))
        one = xp.ones_like(x)
        felt = xp.where(norms > 0, norms, one)
        by_norms = self.scale is None and not few(x)
        by_norms = by_norms if self.column_norms is None else self.column_norms
        if before is not None:
            sizes = before.sizes
        elif self.scale is not None:
            sizes = one * self.scale
        else:
            sizes = xp.where(start != 0, abs(start), ops.where(size > 0, size, 1.0) / felt)
        D = one / sizes
        if by_norms:
            D = felt if before is None else xp.where(felt > before.D, felt, before.D)
        D = ops.select(equal, one, D)
        value, eps = ops.item(point.value), ops.eps(x)
        columns = norms / D  # whose squares may overflow where norms do not: that parameter would be left out
        sound = ops.isfinite(value) & ops.isfinite(ops.max_abs(columns * columns)) & ops.isfinite(size)
        linear = linear.over(ops, D, sound)
        free = self.free(ops, point.x, gradient)
        free = one if free is None else free
        here = Here(
            x=point.x,
            gradient=gradient,
            linear=linear,
            squares=linear.squares_of(ops),
            D=D,
            q=q,
            sizes=ops.copy(sizes),
            outputs=ops.copy(point.summary().pieces[0].outputs) if bends else None,
            weight=weight + 0.0 * size if bends else None,
            value=value,
            gradient_norm=ops.where(sound, ops.max_abs(gradient * free), math.nan),
            cosine=value,
            promise=value,
            reach=value,
            rounding=value,
            exact=sound,
            known=sound,
            effect=value,
            idle=ops.copy(xp.where(norms > 0, xp.zeros_like(x), one) if before is None else before.idle),
        )
        units = self._units(ops, point.x, sizes)
        promise = far = 0.0 * value + math.inf  # not known: see _judged
        if isinstance(linear, Triangle):  # on the face of the box: at most this can be gained
            promise, y, _ = linear.promise(ops, self.free(ops, here.x, gradient), self._unit(ops, here), 0.0, None)
            far = ops.max_abs(y / D / units)
        along = xp.where(norms > 0, abs(gradient) / xp.where(norms > 0, norms, one), xp.zeros_like(norms))
        # What the best column gains alone, which the least damping may hide: unless all columns are orthogonal to q.
        alone = ops.max_abs(along * free)
        promise = ops.maximum(promise, 0.5 * alone * alone)
        blurred = eps * ops.dot(norms, abs(point.x))
        effects, hidden = norms * units, 4.0 * eps if isinstance(linear, Triangle) else slack(ops, x)
        return here._replace(
            cosine=ops.divide(alone, size),
            promise=promise,
            reach=far,
            rounding=ops.maximum(hidden * value, size * blurred + 0.5 * blurred * blurred),
            exact=size <= blurred,
            known=(size <= blurred) | (blurred * blurred <= 2e-5 * size * size),
            effect=ops.divide(ops.item(xp.min(xp.where(here.idle > 0, effects + size, effects))), size)
            + ops.where(size > 0, 0.0, 1.0),
        )
