"""Conjugate gradients for symmetric positive definite operators.

Hestenes and Stiefel (1952); preconditioned form as in Saad, *Iterative Methods
for Sparse Linear Systems* (2003), algorithm 9.1. With r = b - A x, z = M r::

    alpha = r.z / p.Ap     x <- x + alpha p     r <- r - alpha Ap
    beta  = r.z / (r.z before)                  p <- z + beta p

What differs from ``scipy.sparse.linalg.cg``:

* ``CONVERGED`` is a fact: when the recurrence claims the tolerance, one product
  recomputes b - A x; if that misses it, the residual is replaced, the search
  direction is kept (a restart would lose the superlinear phase), and the run
  goes on until it does or rounding forbids it (``STAGNATED``). Replacing it every
  20, 50 or 200 steps besides was tried in float32, at condition numbers 1e2 to
  1e6: it costs its products, and the runs are no shorter.
* The system is solved for b over a power of two near max|b|, so that right-hand
  sides of 1e-30 in float32 neither underflow nor meet an absolute guard.
* p.Ap <= 0, an indefinite preconditioner, breakdown and non-finite values end
  the run with a status of their own and the last good iterate; so does a residual
  that only a singular operator can have made grow.
* ``steps=k`` runs k steps and calls that a success, as inner solvers need it;
  other rules for stopping are records (:mod:`linop_gn.solvers.stopping`).
* ``x0`` is a step from zero along x0: by the whole of it, unless the model there
  is above that at zero, and then by the best multiple. No run ends up worse than
  zero, and its first product is the only one that a start costs.
* The model 1/2 x^T A x - b^T x comes with every step, without a product.
* k columns are solved at once, each with its own scalars and status.

The tick that verifies and the tick that iterates share one product, so the
operator stands once in a compiled program, with or without ``x0``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ..operators.base import LinearOperator
from ..protocols import Backend, Scalar, Vector
from ..records import record, static
from ..run.status import (
    BREAKDOWN,
    COMPLETED,
    CONVERGED,
    INDEFINITE_PRECONDITIONER,
    MAX_STEPS,
    NEGATIVE_CURVATURE,
    NONFINITE,
    NONFINITE_INPUT,
    RUNNING,
    STAGNATED,
)
from .iterates import Iterates, as_schedule, collect, plan
from .options import check_limits, check_tolerances, limit_of, made_from, require_symmetric, scaled_rhs, unfit_status
from .problem import LinearProblem
from .stopping import FixedSteps, Progress, RelativeResidual, require_rule

__all__ = ["CG", "CGRow", "CGState", "along_start"]


class CGState(NamedTuple):
    """Everything is in units of ``scale``: x, r, p, and their norms."""

    x: Vector
    r: Vector
    p: Vector
    rz: Scalar
    rp: Scalar
    """r.p: equal to r.z, except after the residual was replaced."""
    most: Scalar
    """The largest residual norm that a positive definite operator could have led to."""
    norm: Scalar
    model: Scalar
    memory: Any
    """What the stopping rule remembers."""
    scale: Scalar
    verified: Scalar
    """Smallest norm of a residual that was recomputed after the recurrence had claimed the tolerance."""
    checking: Scalar
    """Whether the next product is spent on x, to recompute the residual, rather than on p."""
    status: Scalar
    steps: Scalar
    products: Scalar
    kept: Any
    """Iterates kept for the caller; None if none were asked for."""


class CGRow(NamedTuple):
    """2-norm of the residual, and the quadratic model, at each step."""

    residual: Scalar
    model: Scalar


def along_start(ops: Backend, rp: Scalar, energy: Scalar) -> Scalar:
    """The multiple t of x0 to start from: 1 unless the model at x0 is above that at zero, then the best one."""
    return ops.where(0.5 * energy <= rp, 1.0, ops.where(energy > 0, ops.divide(rp, energy), 0.0))


@record
class CG:
    """Conjugate gradients.

    Parameters
    ----------
    rtol, atol
        Converged when ||b - A x||_2 <= max(rtol ||b||_2, atol), as in SciPy.
    max_steps
        Limit on steps; None means min(10 n, 10000). A size of the program, not data.
    steps
        Run exactly this many steps, ignoring the tolerances; stops earlier only when
        the residual is down to rounding. The status is ``COMPLETED``.
    stop
        A rule in place of ``rtol`` and ``atol``: ``lg.MaxResidual()``, ``lg.RelativeProgress()``,
        ``lg.AnyOf(...)``, or one of your own (:mod:`linop_gn.solvers.stopping`).
    keep
        Iterates to keep, for ``solution.iterates``: ``"every"``, a ratio such as 1.3 (those at
        ceil(1.3^j), Martens' schedule), or the steps themselves. Needs ``max_steps`` or ``steps``
        to be set, since that decides the memory that is reserved in compiled programs.
    preconditioner
        An operator applying an approximation of A^-1; a recipe from
        :mod:`linop_gn.preconditioners`, or a function, that makes one from the
        (damped) operator being solved with.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Dense(np.array([[2.0, 1.0], [1.0, 3.0]]), symmetric=True)
    >>> lg.solve(A, np.array([1.0, 2.0]), lg.CG(rtol=1e-10))
    CG: converged after 2 steps, 3 products; residual ...
    The tolerance was met.
    """

    rtol: Scalar = 1e-5
    atol: Scalar = 0.0
    max_steps: int | None = static(default=None)
    steps: int | None = static(default=None)
    preconditioner: Any = None
    stop: Any = None
    keep: Any = static(default=None)

    def __post_init__(self) -> None:
        check_tolerances(self, "rtol", "atol")
        check_limits(self)
        if self.stop is not None:
            require_rule(self.stop, "CG")
            told = [value for value in (self.rtol, self.atol) if isinstance(value, (int, float))]
            if self.steps is not None or told != [1e-5, 0.0]:
                raise ValueError(
                    "CG: stop= takes the place of rtol, atol and steps. For several conditions give "
                    "stop=lg.AnyOf(lg.RelativeResidual(rtol, atol), ...), and max_steps for a limit."
                )
        if self.keep is not None and self.steps is self.max_steps is None:
            raise ValueError("CG: keep= needs max_steps= or steps= beside it: they decide how many iterates there are.")
        object.__setattr__(self, "keep", as_schedule(self.keep, "CG"))
        object.__setattr__(self, "preconditioner", made_from(self))

    def check(self, operator: LinearOperator) -> None:
        """Raise unless the operator is square and known to be symmetric."""
        require_symmetric(self, operator)

    def limit(self, problem: LinearProblem) -> int:
        """The number of steps that a run may take."""
        return limit_of(self, problem)

    def init(self, ops: Backend, problem: LinearProblem) -> CGState:
        b, warm = problem.rhs, problem.x0 is not None
        rule = FixedSteps() if self.steps is not None else self.stop or RelativeResidual(self.rtol, self.atol)
        r, scale, inverse, size, finite = scaled_rhs(ops, b)
        zero = size == 0
        rr = ops.dot(r, r)
        if warm:  # a step along x0, from zero
            z, p = r, ops.scale(inverse, ops.copy(problem.x0))
            largest = ops.max_abs(p)
            fits, _ = unfit_status(ops, largest, scale, b)
            finite = finite & ops.isfinite(largest)
            p = ops.mask(finite & ops.logical_not(zero) & fits, p)
            rz = ops.dot(r, p)
        else:
            z = problem.precondition(r)
            rz, p = (rr, ops.copy(r)) if z is r else (ops.dot(r, z), z)
        start = Progress(ops.scalar(0, b), ops.sqrt(rr), ops.scalar(0.0, b), r, scale)
        memory = rule.begin(ops, start, self.limit(problem))

        status = ops.scalar(RUNNING, b)  # later lines overrule earlier ones
        if not warm:
            if self.limit(problem) == 0:
                status = ops.scalar(self._at_limit, b)
            if z is not r:
                status = ops.where(ops.logical_not(rz > 0), INDEFINITE_PRECONDITIONER, status)
                status = ops.where(ops.isfinite(rz), status, NONFINITE)
            code, memory = rule.look(ops, memory, start)
            status = ops.where(code == RUNNING, status, code)
        status = ops.where(zero, CONVERGED, status)
        status = ops.where(finite, status, NONFINITE_INPUT)
        return CGState(
            x=ops.zeros_like(b),
            r=r,
            p=p,
            rz=rz,
            rp=rz,
            norm=start.norm,
            model=start.model,
            # ||r|| cannot exceed sqrt(cond(A)) ||b||: beyond 1/eps of it, cond(A) is beyond 1/eps^2, and b has a part
            # that no x reaches. With a preconditioner nothing is concluded: A may be scaled as badly as that.
            most=start.norm * (1.0 / ops.eps(b) if problem.preconditioner is None else math.inf),
            memory=memory,
            scale=scale,
            verified=ops.scalar(math.inf, b),
            checking=ops.scalar(False, b),
            status=status,
            steps=start.step,
            products=ops.scalar(0, b),
            kept=None if self.keep is None else ops.shelf(plan(self.keep, self.limit(problem)).capacity, b),
        )

    @property
    def _at_limit(self) -> int:
        return MAX_STEPS if self.steps is None else COMPLETED

    def step(self, ops: Backend, problem: LinearProblem, s: CGState) -> CGState:
        running = s.status == RUNNING
        checking = running & s.checking
        starting = running & (s.products == 0) if problem.x0 is not None else None
        product = problem.operator.apply(ops.select(checking, s.x, s.p))
        curvature = ops.dot(s.p, product)  # of no use while checking, but not finite if the product is not
        good = (running ^ checking) & (curvature > 0)
        if starting is not None:
            good = good & ops.logical_not(starting)
        alpha = ops.where(good, ops.divide(s.rp, curvature), 0.0)
        gain = 0.5 * alpha * s.rp
        if starting is not None:
            alpha = ops.where(starting, along_start(ops, s.rp, curvature), alpha)
            change = ops.where(alpha != 0, alpha * (s.rp - 0.5 * alpha * curvature), 0.0)
            gain = ops.where(starting, change, gain)

        def recur(r: Vector, product: Vector) -> tuple[Vector, Scalar, Scalar, Scalar]:
            return ops.axpy(-alpha, product, r), s.model - gain, s.rp, s.rp

        def replace(r: Vector, product: Vector) -> tuple[Vector, Scalar, Scalar, Scalar]:
            energy = ops.dot(s.x, product)
            true = ops.axpby(ops.divide(1.0, s.scale), problem.rhs, -1.0, product)
            return true, -0.5 * energy - ops.dot(s.x, true), ops.dot(s.p, true), ops.max_abs(s.x)

        r, model, rp, largest = ops.branch(checking, replace, recur, s.r, product)
        z = problem.precondition(r)
        rr = ops.dot(r, r)
        rz = rr if z is r else ops.dot(r, z)
        norm = ops.sqrt(rr)
        sound = ops.isfinite(curvature + rr + rz)
        good = good & ((norm <= s.most) | ops.logical_not(sound))
        moved = good & sound
        steps, limit = s.steps + moved, self.limit(problem)
        if self.stop is None:  # what the rules of init would say, without the calls: they cost a scalar operation each
            met, memory = norm <= s.memory, s.memory
            code = CONVERGED if self.steps is None else COMPLETED
        else:
            code, memory = self.stop.look(ops, s.memory, Progress(steps, norm, model, r, s.scale))
            met = code != RUNNING
        end = steps >= limit

        def go_on() -> tuple[Scalar, ...]:
            return alpha, 1.0, ops.divide(rz, s.rz), rz, norm, model, s.verified, s.checking, s.status

        def judge() -> tuple[Scalar, ...]:
            began = moved if starting is None else moved | (starting & sound)
            known = began | (checking & sound)
            # A replaced residual keeps the direction it interrupts, with the exact line search r.p / p.Ap along it
            # (r.p = r.z holds no longer, and using r.z there diverges), unless the recurrence had brought r down to
            # zero, and its direction with it.
            keeps = checking & (s.rz != 0)
            claims = met & (code == CONVERGED)
            status = s.status  # later lines overrule earlier ones
            status = ops.where(running & end & ops.logical_not(began & claims), self._at_limit, status)
            status = ops.where(checking & (norm > 0.5 * s.verified), STAGNATED, status)
            status = ops.where(known & met & ops.logical_not(claims), code, status)
            if z is not r:
                indefinite = running & ops.logical_not(met | (rz > 0))
                status = ops.where(indefinite, INDEFINITE_PRECONDITIONER, status)
            fits, unfit = unfit_status(ops, largest, s.scale, s.x)
            status = ops.where(checking & claims, ops.where(fits, CONVERGED, unfit), status)
            going = good | checking
            if starting is not None:  # the residual of x0 itself was computed, not updated
                status = ops.where(starting & claims & (alpha == 1), CONVERGED, status)
                going = going | starting
            status = ops.where(running & ops.logical_not(going), NEGATIVE_CURVATURE, status)
            status = ops.where(running & ops.logical_not(sound), NONFINITE, status)
            status = ops.where(good & ops.isfinite(curvature) & ops.logical_not(ops.isfinite(rr)), BREAKDOWN, status)
            return (
                ops.where(began, alpha, 0.0),
                ops.where(keeps, 0.0, 1.0),
                ops.where(moved, ops.divide(rz, s.rz), ops.where(keeps, 1.0, 0.0)),
                ops.where(keeps, rp, rz),
                ops.where(known, norm, s.norm),
                ops.where(known, model, s.model),
                ops.where(checking, ops.minimum(s.verified, norm), s.verified),
                began & claims & (status == RUNNING),
                status,
            )

        # An eager scalar operation takes a tenth of a microsecond, so that most are left to the ticks that need them.
        ordinary = moved & (rz > 0) & ops.logical_not(met | end)
        length, fresh, beta, rp, norm, model, verified, checking, status = ops.branch(ordinary, go_on, judge)
        x = ops.axpy(length, s.p, s.x)
        p = ops.axpby(fresh, ops.mask(sound, z), beta, s.p)
        kept, products = s.kept, s.products + running
        if self.keep is not None:
            planned = plan(self.keep, limit)
            kept = ops.put(kept, ops.lookup(planned.places, steps), x, ops.lookup(planned.wanted, steps))
        counts = status, steps, products
        return CGState(x, r, p, rz, rp, s.most, norm, model, memory, s.scale, verified, checking, *counts, kept)

    def observe(self, state: CGState) -> CGRow:
        return CGRow(state.norm * state.scale, state.model * state.scale * state.scale)

    def answer(self, ops: Backend, problem: LinearProblem, state: CGState) -> Vector:
        return ops.scale(state.scale, state.x)

    def iterates(self, ops: Backend, problem: LinearProblem, state: CGState, x: Vector) -> Iterates | None:
        """The iterates that were asked for, the last of them being the answer ``x``; consumes what the state kept."""
        if self.keep is None:
            return None
        return collect(ops, plan(self.keep, self.limit(problem)), state.kept, x, state.steps, state.scale)
