"""Conjugate gradients for symmetric positive definite operators.

Hestenes and Stiefel (1952); preconditioned form as in Saad, *Iterative Methods
for Sparse Linear Systems* (2003), algorithm 9.1. With r = b - A x, z = M r::

    alpha = r.z / p.Ap     x <- x + alpha p     r <- r - alpha Ap
    beta  = r.z / (r.z before)                  p <- z + beta p

What differs from ``scipy.sparse.linalg.cg``:

* ``CONVERGED`` is a fact: when the recurrence claims the tolerance, one product
  recomputes b - A x; if that misses it, the residual is replaced, the search
  direction is kept (a restart would lose the superlinear phase), and the run
  goes on, and is recomputed where the recurrence claims a tenth of it, until it meets
  the tolerance or no longer halves (``STAGNATED``); the best point that was
  recomputed is returned then, and at the limit on steps. Replacing it every
  20, 50 or 200 steps besides was tried in float32, at condition numbers 1e2 to
  1e6: it costs its products, and the runs are no shorter.
* The system is solved for b over a power of two near max|b|, so that right-hand
  sides of 1e-30 in float32 neither underflow nor meet an absolute guard.
* Whatever the end, the residual told is that of x: where rounding, 4 eps ||A|| ||x||,
  may have taken the recurrence away from it, one more product recomputes it.
* p.Ap <= 0, an indefinite preconditioner, breakdown and non-finite values end
  the run with a status of their own and the last good iterate.
* A step that makes x a thousand times longer, so long that the rounding of A x
  exceeds b, is tried before it is taken: unless a product shows that it halves the
  residual, p.Ap is zero to working precision, and the run ends as where p.Ap <= 0.
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
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..operators.base import LinearOperator
from ..protocols import Backend, Scalar, Vector
from ..records import record, replace, static
from ..run.status import Code, alike, verdict
from .base import Cost, Solver, bytes_of, each
from .iterates import MOST, Iterates, as_schedule, collect, plan
from .options import ResidualSolver, at_limit, begun_status, scaled_rhs, unfit_status
from .problem import LinearProblem
from .stopping import FixedSteps, Progress, RelativeResidual, look_of, require_rule

__all__ = ["CG", "CGState", "along_start", "short_recurrence"]


class CGState(NamedTuple):
    """Everything is in units of ``scale``: x, r, p, and their norms."""

    x: Vector
    r: Vector
    p: Vector
    rz: Scalar
    rp: Scalar
    """r.p: equal to r.z, except after the residual was replaced."""
    norm: Scalar
    model: Scalar
    steps: Scalar
    products: Scalar
    least: Scalar
    """1 / ||A||, as far as it has shown; 0 once a residual was replaced, for no more is learned then."""
    room: Scalar
    """||b||^2 / (16 eps ||A||): where the model is lower than -room the rounding of A x may exceed b, since ||x|| is at
    least 2 |model| / ||b||. With a preconditioner all norms here are in M's; from a start infinite, for then b's is not
    known."""
    verified: Scalar
    """Smallest norm of a residual that was recomputed after the recurrence had claimed the tolerance."""
    hope: Scalar
    """Where the recurrence claims so little it is recomputed: the tolerance, and no less than a tenth of the latest."""
    best: Any
    """x at the smallest of them, once there is one."""
    best_model: Scalar
    back: Scalar
    """Whether that one is the answer, whose norm and model are told."""
    trial: Scalar
    """Length of a step along p that is to be verified before it is taken; 0 where there is none."""
    claim: Scalar
    """Status that waits for the residual to be recomputed at x + trial p; the next product is spent on it."""
    status: Scalar
    whole: Scalar
    """||b||^2, in the norm of M."""
    memory: Any
    """What the stopping rule remembers."""
    scale: Scalar
    kept: Any
    """Iterates kept for the caller; None if none were asked for."""


_KEPT = CGState._fields.index("verified")
"""An ordinary tick changes what stands before."""
_LEAP = 32
"""Ticks between looks at scalars where a look is dear; so many are lost where one was not ordinary."""


class _Seen(NamedTuple):
    """What a tick has computed when it turns out that it is not an ordinary one; what was not yet computed is None."""

    product: Vector
    curvature: Scalar
    r: Vector | None = None
    z: Vector | None = None
    rr: Scalar = None
    rz: Scalar = None


def along_start(ops: Backend, rp: Scalar, energy: Scalar) -> Scalar:
    """The multiple t of x0 to start from: 1 unless the model at x0 is above that at zero, then the best one."""
    return ops.where(0.5 * energy <= rp, 1.0, ops.where(energy > 0, ops.divide(rp, energy), 0.0))


def short_recurrence(solver: Solver, A: LinearOperator, k: int, sure: bool, vectors: float, flops: float) -> Cost:
    """The cost of k steps with so many vectors, and flops an unknown and step; unless ``sure``, x is verified."""
    return Cost(solver.title, k if sure else k + 1, bytes_of(A, vectors), flops * A.domain.size * k, f"{k} steps")


def _direction(x: Vector, p: Vector) -> tuple[Vector]:
    return (p,)


@record
class CG(ResidualSolver):
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

    stop: Any = None
    keep: Any = static(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stop is not None:
            require_rule(self.stop, "CG")
            given = (self.rtol, 1e-5), (self.atol, 0.0)  # which may be traced
            if self.steps is not None or any(isinstance(a, (int, float)) and a != b for a, b in given):
                raise ValueError(
                    "CG: stop= takes the place of rtol, atol and steps. For several conditions give "
                    "stop=lg.AnyOf(lg.RelativeResidual(rtol, atol), ...), and max_steps for a limit."
                )
        if self.keep is not None and self.steps is self.max_steps is None:
            raise ValueError("CG: keep= needs max_steps= or steps= beside it: they decide how many iterates there are.")
        object.__setattr__(self, "keep", as_schedule(self.keep, "CG"))
        if self.keep is not None and self.planned(0) > MOST:
            raise ValueError(
                f"CG: keep= plans for each step that there may be, and {self.planned(0)} are too many: give max_steps= "
                f"or steps= of at most {MOST}."
            )

    def cost(self, operator: LinearOperator, steps: int) -> Cost:
        k, sure = self.planned(steps), self.steps is not None
        shelf = 0 if self.keep is None else plan(self.keep, k).capacity
        return short_recurrence(self, operator, k, sure, each(operator, 4 if sure else 6, 11) + shelf, 10.0)

    def tangent(self, operator: LinearOperator) -> tuple[LinearOperator, Solver]:
        return operator, replace(self, keep=None)

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
        none, nothing, infinite = ops.scalar(0, b), ops.scalar(0.0, b), ops.scalar(math.inf, b)
        start = Progress(none, ops.sqrt(rr), nothing, r, scale)
        memory = rule.begin(ops, start, self.limit(problem))

        status = ops.scalar(Code.RUNNING, b)
        if not warm:
            code, memory = look_of(rule, ops, memory, start)
            status = begun_status(ops, self, r, z, rz, code, self.limit(problem))
        status = verdict(ops, status, (ops.logical_not(finite), Code.NONFINITE_INPUT), (zero, Code.CONVERGED))
        return CGState(
            x=ops.zeros_like(b),
            r=r,
            p=p,
            rz=rz,
            rp=rz,
            norm=start.norm,
            least=nothing if warm and problem.preconditioner is not None else infinite,
            **alike("room verified", infinite),
            **alike("model trial best_model", nothing),
            hope=memory if self.stop is None else nothing,
            best=ops.shelf(1, b),
            back=ops.scalar(False, b),
            **alike("claim steps products", none),
            status=status,
            whole=rr if warm else rz,
            memory=memory,
            scale=scale,
            kept=None if self.keep is None else ops.shelf(plan(self.keep, self.limit(problem)).capacity, b),
        )

    def step(self, ops: Backend, problem: LinearProblem, s: CGState) -> CGState:
        plain = type(s.norm) is float and s.status == s.claim == Code.RUNNING and self.stop is self.keep is None
        if not plain or (s.products == 0 and problem.x0 is not None):
            return self._tick(ops, problem, s)
        # An ordinary tick where scalars are Python's: what _tick does where there is nothing to judge, in fewer calls.
        p, inner = s.p, problem.preconditioner
        product = problem.operator.apply(p)
        curvature = ops.dot(p, product)
        if not curvature > 0:
            return self._tick(ops, problem, s, _Seen(product, curvature))
        alpha = s.rp / curvature
        r = ops.axpy(-alpha, product, s.r)
        rr = rz = ops.dot(r, r)
        z = r
        if inner is not None:
            z = inner.apply(r)
            rz = ops.dot(r, z)
        scalars = self._ordinary(s, curvature, rr, rz, ops.eps(r), self.limit(problem))
        if scalars is None:
            return self._tick(ops, problem, s, _Seen(product, curvature, r, z, rr, rz))
        x, p = ops.axpy(alpha, p, s.x), ops.axpby(1.0, z, rz / s.rz, p)
        return CGState._make((x, r, p, *scalars, *s[_KEPT:]))

    def _ordinary(
        self, s: CGState, curvature: float, rr: float, rz: float, eps: float, limit: int
    ) -> tuple[Any, ...] | None:
        """What follows x, r, p and goes before ``verified`` in the next state; None where there is more to judge."""
        before, rp = s.rz, s.rp
        if not (curvature > 0 and before > 0 and rr > 0 and rz > 0 and curvature + rr + rz < math.inf):
            return None
        alpha, beta, norm, steps = rp / curvature, rz / before, math.sqrt(rr), s.steps + 1
        model = s.model - 0.5 * alpha * rp
        if not (norm > s.hope and steps < limit and (model >= -s.room or model >= 1e3 * s.model)):
            return None
        least, room = s.least, s.room
        if alpha < least * (1.0 + beta):
            least = 0.5 * alpha / (1.0 + beta)
            room = s.whole / (16.0 * eps) * least
        return rz, rz, norm, model, steps, s.products + 1, least, room

    def leap(self, ops: Backend, problem: LinearProblem, s: CGState) -> Iterator[CGState]:
        """The next states of a run of so many steps, by ordinary ticks whose scalars are looked at all together.

        Those of the last one and of what is no ordinary tick are left to :meth:`step`. Of the states that come together
        only the last one's vectors are its own. ``ops.dot`` returns numbers that stay where vectors are.
        """
        limit, inner, lost = self.limit(problem), problem.preconditioner, 0
        if self.steps is None or self.keep is not None or problem.x0 is not None or type(s.norm) is not float:
            return
        while not lost and s.status == Code.RUNNING and s.steps + 1 < limit:
            x, r, p, rz, rp, told = ops.copy(s.x), ops.copy(s.r), ops.copy(s.p), s.rz, s.rp, []
            for _ in range(min(_LEAP, limit - 1 - s.steps)):
                product = problem.operator.apply(p)
                curvature = ops.dot(p, product)
                alpha = rp / curvature
                r = ops.axpy(-alpha, product, r)
                z = problem.precondition(r)
                rr = ops.dot(r, r)
                rp = rr if inner is None else ops.dot(r, z)
                x, p, rz = ops.axpy(alpha, p, x), ops.axpby(1.0, z, rp / rz, p), rp
                told.append((curvature, rr, rp))
            made = [s]
            for curvature, rr, rz in ops.read(told):
                after = self._ordinary(made[-1], curvature, rr, rz, ops.eps(r), limit)
                if after is None:
                    lost = len(told)
                    break
                made.append(CGState._make((x, r, p, *after, *s[_KEPT:])))
            else:
                yield from made[1:]
                s = made[-1]
        if lost:
            yield s._replace(products=s.products + lost)

    def _tick(self, ops: Backend, problem: LinearProblem, s: CGState, seen: _Seen | None = None) -> CGState:
        """The next state, whatever there is to judge, from what was ``seen``."""
        running, no = s.status == Code.RUNNING, ops.logical_not
        checking = running & (s.claim != Code.RUNNING)
        starting = running & (s.products == 0) if problem.x0 is not None else None
        (v,) = ops.branch(checking, lambda x, p: (ops.axpy(s.trial, p, ops.copy(x)),), _direction, s.x, s.p)
        product = problem.operator.apply(v) if seen is None else seen.product
        # Of no use while checking, but not finite if the product is not.
        curvature = ops.dot(s.p, product) if seen is None else seen.curvature
        good = (running ^ checking) & (curvature > 0)
        if starting is not None:
            good = good & no(starting)
        alpha = ops.where(good, ops.divide(s.rp, curvature), 0.0)
        gain = 0.5 * alpha * s.rp
        if starting is not None:
            alpha = ops.where(starting, along_start(ops, s.rp, curvature), alpha)
            change = ops.where(alpha != 0, alpha * (s.rp - 0.5 * alpha * curvature), 0.0)
            gain = ops.where(starting, change, gain)

        def recur(r: Vector, product: Vector) -> tuple[Vector, Scalar, Scalar, Scalar, Scalar]:
            model = s.model - gain
            sane = (model >= -s.room) | (model >= 1e3 * s.model)
            done = None if seen is None else seen.r
            return ops.axpy(-alpha, product, r) if done is None else done, model, s.rp, s.status, good & sane

        def replace(r: Vector, product: Vector) -> tuple[Vector, Scalar, Scalar, Scalar, Scalar]:
            energy = ops.dot(v, product)
            true = ops.axpby(ops.divide(1.0, s.scale), problem.rhs, -1.0, product)
            # A step on trial is taken if its residual is what was expected of it, and half as large.
            gap = ops.subtract(true, r)
            taken = (s.trial != 0) & (ops.sqrt(ops.dot(true, true)) <= 0.5 * s.norm)
            taken = taken & (ops.sqrt(ops.dot(gap, gap)) <= 1e-3 * s.norm)
            fits, unfit = unfit_status(ops, ops.max_abs(v), s.scale, v)
            held = ops.where(fits, Code.CONVERGED, unfit) + 0 * s.status
            return true, -0.5 * energy - ops.dot(v, true), ops.dot(s.p, true), held, taken

        r, model, rp, held, moved = ops.branch(checking, replace, recur, s.r, product)
        if seen is not None and seen.r is r:
            z, rr, rz = seen.z, seen.rr, seen.rz
        else:
            z = problem.precondition(r)
            rr = ops.dot(r, r)
            rz = rr if z is r else ops.dot(r, z)
        norm = ops.sqrt(rr)
        sound = ops.isfinite(curvature + rr + rz)
        moved = moved & sound
        steps, limit = s.steps + moved, self.limit(problem)
        if self.stop is None:  # what the rules of init would say, without the calls: they cost a scalar operation each
            going, memory = norm > s.hope, s.memory
            code = Code.CONVERGED if self.steps is None else Code.COMPLETED
        else:
            code, memory = look_of(self.stop, ops, s.memory, Progress(steps, norm, model, r, s.scale))
            going = (code == Code.RUNNING) & (norm > s.hope)
        beta = ops.divide(rz, s.rz)

        def go_on() -> tuple[Scalar, ...]:
            return (
                alpha, 1.0, beta, rz, rz, checking, s.back, norm, model,
                s.least, s.room, s.verified, s.hope, s.best_model, s.trial, s.claim, s.status,
            )  # fmt: skip

        def judge() -> tuple[Scalar, ...]:
            met, end = no(norm > s.memory if self.stop is None else code == Code.RUNNING), steps >= limit
            drowning = good & sound & no(moved)
            tried = checking & (s.trial != 0)
            checked = checking & sound & (moved | no(tried))
            began = moved if starting is None else moved | (starting & sound)
            known = began | checked
            length = ops.where(tried, s.trial, alpha)
            # (1 + beta) / alpha = |Ap|^2 / p.Ap <= ||A||; twice that, so that there are few such ticks.
            larger = moved & (length > 0) & (length < s.least * (1.0 + beta))
            least = ops.where(larger, 0.5 * length / (1.0 + beta), s.least)
            room = ops.where(larger, s.whole / (16.0 * ops.eps(r)) * ops.where(larger, least, 0.0), s.room)

            def measure() -> tuple[Scalar]:
                """Whether rounding, up to 4 eps ||A|| ||x||, may have taken r away from b - A x."""
                if z is not r:  # in M's norms: ||x|| is at least 2 |model| / ||b||
                    return (-model > 2.0 * ops.eps(r) ** 0.5 * room,)
                reach = ops.sqrt(ops.dot(s.x, s.x)) + ops.where(moved, length, 0.0) * ops.sqrt(ops.dot(s.p, s.p))
                told = ops.maximum(ops.sqrt(s.whole), ops.where(moved, norm, s.norm))
                return (reach * ops.divide(0.25 * s.whole, room) > ops.eps(r) ** 0.5 * told,)

            claims = met & (code == Code.CONVERGED)
            goal = s.memory if self.stop is None else 0.0
            hoping = moved & no(checked | met | (norm > s.hope))
            failed = running & no(good | checked)
            unsure = began & no(checked)
            if starting is not None:  # the residual of x0 itself was computed, not updated
                failed = failed & no(starting)
                unsure = unsure & no(starting & (alpha == 1))
            indefinite = running & no(met | (rz > 0)) if z is not r else ops.scalar(False, r)
            outcome = verdict(
                ops,
                s.status,
                (good & ops.isfinite(curvature) & no(ops.isfinite(rr)), Code.BREAKDOWN),
                (running & no(sound), Code.NONFINITE),
                (failed, Code.NEGATIVE_CURVATURE),
                (known & claims, ops.where(checked, held, Code.CONVERGED)),
                (checked & no(tried) & (s.claim != Code.CONVERGED), s.claim),
                (indefinite, Code.INDEFINITE_PRECONDITIONER),
                (known & met & no(claims), code),
                (hoping, Code.CONVERGED),
                (checked & (norm > 0.5 * s.verified), Code.STAGNATED),
                (running & end & no(drowning), at_limit(self)),
            )
            ended = running & sound & (outcome != Code.RUNNING)
            claimed = ended & unsure & (claims | hoping)
            (drifted,) = ops.branch(ended & no(checked | claimed), measure, lambda: (ops.scalar(False, r),))
            waiting = claimed | (ended & drifted & no(checked))
            # A replaced residual keeps the direction it interrupts, with the exact line search r.p / p.Ap along it
            # (r.p = r.z holds no longer, and using r.z there diverges), unless the recurrence had brought r down to
            # zero, and its direction with it.
            better = checked & (norm < s.verified)
            behind = (outcome == Code.STAGNATED) | (outcome == Code.MAX_STEPS)
            back = ended & behind & no(waiting) & (ops.where(known, norm, s.norm) > s.verified)
            keeps = drowning | (checking & no(moved) & (s.rz != 0))
            return (
                ops.where(began, length, 0.0),
                ops.where(keeps, 0.0, 1.0),
                ops.where(moved, beta, ops.where(keeps, 1.0, 0.0)),
                ops.where(drowning, s.rz, rz),
                ops.where(keeps, rp, ops.where(tried, rz + beta * rp, rz)),
                better,
                back | s.back,
                ops.where(back, s.verified, ops.where(known, norm, s.norm)),
                ops.where(back, s.best_model, ops.where(known, model, s.model)),
                ops.where(checking, 0.0, least),
                room,
                ops.where(better, norm, s.verified),
                ops.where(checked & no(tried), ops.maximum(0.1 * norm, goal), s.hope),
                ops.where(better, model, s.best_model),
                ops.where(drowning, alpha, 0.0),
                ops.where(drowning, Code.NEGATIVE_CURVATURE, ops.where(waiting, outcome, 0 * s.status)),
                ops.where(waiting, s.status, outcome),
            )

        # An eager scalar operation takes a tenth of a microsecond, so that most are left to the ticks that need them.
        ordinary = moved & going & (steps < limit) & (rz > 0) & (alpha >= s.least * (1.0 + beta))
        (
            length, fresh, beta, rz, rp, better, back, norm, model,
            least, room, verified, hope, best_model, trial, claim, status,
        ) = ops.branch(ordinary, go_on, judge)  # fmt: skip
        x = ops.axpy(length, s.p, s.x)
        best = s.best if better is False else ops.put(s.best, 0 * steps, x, better)
        p = ops.axpby(fresh, ops.mask(sound, z), beta, s.p)
        kept = s.kept
        if self.keep is not None:
            planned = plan(self.keep, limit)
            kept = ops.put(kept, ops.lookup(planned.places, steps), x, ops.lookup(planned.wanted, steps))
        return CGState._make((
            x, r, p, rz, rp, norm, model, steps, s.products + running, least, room, verified, hope, best, best_model,
            back, trial, claim, status, s.whole, memory, s.scale, kept,
        ))  # fmt: skip

    def answer(self, ops: Backend, problem: LinearProblem, state: CGState) -> Vector:
        return ops.scale(state.scale, ops.select(state.back, ops.get(state.best, 0), state.x))

    def iterates(self, ops: Backend, problem: LinearProblem, state: CGState, x: Vector) -> Iterates | None:
        """The iterates that were asked for, the last of them being the answer ``x``; consumes what the state kept."""
        if self.keep is None:
            return None
        return collect(ops, plan(self.keep, self.limit(problem)), state.kept, x, state.steps, state.scale)
