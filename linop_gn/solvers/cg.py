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
* The system is solved for b over a power of two near its entries, so that right-hand
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
* ``reductions=1``: the inner products of a step need no other, so that devices that share a vector meet once a step,
  not twice. Saad (1985) told the next r.r by those with A p, and Meurant (1987) sums it too, a step later; see
  D'Azevedo, Eijkhout and Romine, *Conjugate gradient algorithms with reduced synchronization overhead* (1993).
  Chronopoulos and Gear (1989) have one sum as well, but A p by a recurrence, whose drift no later step mends; here it
  is a product.

The tick that verifies and the tick that iterates share one product, so the
operator stands once in a compiled program, with or without ``x0``.
"""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

from ..operators.base import LinearOperator
from ..protocols import Backend, Carry, Scalar, Vector, leave_with, unchanged
from ..records import record, replace, static
from ..run.status import Code, verdict
from .base import Cost, Solver, each, short_recurrence
from .cg_state import CGState
from .iterates import MOST, Iterates, as_schedule, collect, plan
from .options import ResidualSolver, at_limit, begun_status, scaled_rhs, threshold_of, unfit_status
from .problem import LinearProblem
from .stopping import Progress, look_of, require_rule

__all__ = ["CG", "CGState", "along_start"]


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
    reductions
        1 sums the inner products of a step at once, in place of 2 after each other, where vectors are sharded; without
        a preconditioner. A step along p is as long as in CG, and its residual as true; the next direction is right
        to half the digits and more, or they are summed once more.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Dense(np.array([[2.0, 1.0], [1.0, 3.0]]), symmetric=True)
    >>> lg.solve(A, np.array([1.0, 2.0]), lg.CG(rtol=1e-10))
    CG: converged after 2 steps, 3 products; residual ...
    The tolerance was met.
    """

    stop: Any = None
    keep: Any = static(default=None)
    reductions: int = static(default=2)

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
        if self.reductions not in (1, 2) or (self.reductions == 1 and self.preconditioner is not None):
            raise ValueError(
                f"CG: reductions must be 2, or 1 without a preconditioner, got {self.reductions!r}"
                f"{' with one' if self.preconditioner is not None else ''}: inner products with A p tell the next "
                "residual's, and not the one with what a preconditioner makes of it."
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
        k, sure, single = self.planned(steps), self.steps is not None, self.reductions == 1
        shelf = 0 if self.keep is None else plan(self.keep, k).capacity
        base = each(operator, 4 if sure else 5, 8 if single else 6)
        held = max(base + shelf, each(operator, 0, 2 + 2 * shelf))  # a program holds them once more, scaled
        return short_recurrence(self, operator, k, sure, held, 16.0 if single else 10.0)

    def tangent(self, operator: LinearOperator) -> tuple[LinearOperator, Solver]:
        return operator, replace(self, keep=None)

    def init(self, ops: Backend, problem: LinearProblem) -> CGState:
        b, warm, limit = problem.rhs, problem.x0 is not None, self.limit(problem)
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
        norm, status = ops.sqrt(rr), none
        if self.stop is not None:
            start = Progress(none, norm, nothing, r, scale)
            memory = self.stop.begin(ops, start, limit)
            code, memory = (none, memory) if warm else look_of(self.stop, ops, memory, start)
        else:
            memory = threshold_of(ops, self, norm, scale, b)
            if self.steps is None:
                # What is smaller is no residual of x: it is time to recompute it, before squares are out of range.
                memory = ops.maximum(memory, ops.eps(b) ** 2 * norm)
            code = ops.where(norm <= memory, Code.CONVERGED if self.steps is None else Code.COMPLETED, Code.RUNNING)
        if not warm:
            status = begun_status(ops, self, r, z, rz, code, limit)
        status = verdict(ops, status, (ops.logical_not(finite), Code.NONFINITE_INPUT), (zero, Code.CONVERGED))
        hope = memory if self.stop is None else nothing
        least = nothing if warm and problem.preconditioner is not None else infinite
        kept = None if self.keep is None else ops.shelf(plan(self.keep, limit).capacity, b)
        return CGState(
            ops.zeros_like(b), r, p, rz, rz, norm, nothing, none, none, least, infinite, infinite, hope,
            ops.shelf(1, b), nothing, ops.scalar(False, b), nothing, none, status, rr if warm else rz, memory, scale,
            kept,
        )  # in order: by name it takes as long again  # fmt: skip

    def step(self, ops: Backend, problem: LinearProblem, s: CGState) -> CGState:
        return self.stride(ops, problem, s, None, 1)

    def stride(
        self, ops: Backend, problem: LinearProblem, s: CGState, rows: list[Any] | None, most: int = sys.maxsize
    ) -> CGState:
        plain = type(s.norm) is float and s.status == Code.RUNNING and self.stop is self.keep is None
        if not (plain and self.reductions == 2) or (problem.x0 is not None and s.products == 0):
            return self._tick(ops, problem, s)
        if s.claim != Code.RUNNING:
            usual = s.claim == Code.CONVERGED and s.trial == 0
            return self._verified(ops, problem, s) if usual else self._tick(ops, problem, s)
        # Ordinary ticks where scalars are Python's: what _tick does where there is nothing to judge, in fewer calls.
        (x, r, p, before, rp, norm, model, steps, products, least, room), rest = s[:11], s[11:]
        apply, inner, last, limit = problem.operator.apply, problem.preconditioner, self.steps, self.limit(problem)
        dot, axpy, axpby, hope, scale, until = ops.dot, ops.axpy, ops.axpby, s.hope, s.scale, steps + most
        if rows is not None and len(rows) != steps + 1:
            until = steps + 1

        def reached() -> CGState:
            return tuple.__new__(CGState, (x, r, p, before, rp, norm, model, steps, products, least, room, *rest))

        try:
            while True:
                product = apply(p)
                curvature = dot(p, product)
                if not curvature > 0:
                    return self._tick(ops, problem, reached(), _Seen(product, curvature))
                alpha = rp / curvature
                z = r = axpy(-alpha, product, r)
                rr = rz = dot(r, r)
                if inner is not None:
                    z = inner.apply(r)
                    rz = dot(r, z)
                if not (before > 0 and rr > 0 and rz > 0 and curvature + rr + rz < math.inf):
                    return self._tick(ops, problem, reached(), _Seen(product, curvature, r, z, rr, rz))
                beta, told, lower = rz / before, math.sqrt(rr), model - 0.5 * alpha * rp
                going, goes = told > hope, lower >= -room or lower >= 1e3 * model
                if not goes or not (going if last is not None else not going or steps + 1 < limit):
                    return self._tick(ops, problem, reached(), _Seen(product, curvature, r, z, rr, rz))
                if alpha < least * (1.0 + beta):
                    least = 0.5 * alpha / (1.0 + beta)
                    room = s.whole / (16.0 * ops.eps(r)) * least
                x = axpy(alpha, p, x)
                before, rp, norm, model, steps, products = rz, rz, told, lower, steps + 1, products + 1
                if steps == last:  # there is no direction after this one
                    far = self._drifted(ops, s, x if inner is None else None, (norm, model), room)
                    return reached()._replace(**{"claim" if far else "status": Code.COMPLETED})
                p = axpby(1.0, z, beta, p)
                del product, z  # before the next ones are made
                if not going:
                    return reached()._replace(claim=Code.CONVERGED)
                if steps == until:
                    return reached()
                if rows is not None:
                    rows.append((norm * scale, model * scale * scale))
        except BaseException as error:
            if rows is not None:
                leave_with(error, Carry(reached(), rows))
            raise

    def _verified(self, ops: Backend, problem: LinearProblem, s: CGState) -> CGState:
        """The state once the residual of x is recomputed, where scalars are Python's; mostly it meets the tolerance."""
        x, product = s.x, problem.operator.apply(s.x)
        r = ops.axpby(1.0 / s.scale, problem.rhs, -1.0, ops.copy(product))
        square, size = ops.dot(r, r), s.scale * s.scale * ops.dot(x, x)
        norm = math.sqrt(square)
        if norm <= s.memory and 1e-24 < size < 1e24 and ops.eps(x) < 1e-6:  # x is in range
            model = -0.5 * (ops.dot(x, problem.rhs) / s.scale + ops.dot(x, r))
            known = {"verified": norm, "norm": norm, "model": model, "claim": Code.RUNNING, "status": Code.CONVERGED}
            return s._replace(r=r, products=s.products + 1, **known)
        return self._tick(ops, problem, s, _Seen(product, square))

    def steps_ahead(self, problem: LinearProblem, s: CGState) -> int | None:
        told_apart = self.keep is not None or problem.x0 is not None or self.reductions == 1
        if self.steps is None or told_apart or type(s.norm) is not float:
            return None
        return self.limit(problem) - 1 - s.steps if s.claim == Code.RUNNING else 0

    def ahead(self, ops: Any, problem: LinearProblem, s: CGState, steps: int) -> CGState:
        x, r, p, rz, rp = ops.copy(s.x), ops.copy(s.r), ops.copy(s.p), s.rz, s.rp
        for _ in range(steps):
            product = problem.operator.apply(p)
            alpha = rp / ops.dot(p, product)
            r = ops.axpy(-alpha, product, r)
            z, rp = problem.precondition(r), ops.dot(r, r)
            if problem.preconditioner is not None:
                rp = ops.dot(r, z)
            x, p, rz = ops.axpy(alpha, p, x), ops.axpby(1.0, z, rp / rz, p), rp
        return s._replace(x=x, r=r, p=p)

    def _drifted(
        self, ops: Backend, s: CGState, x: Vector | None, told: tuple[Scalar, Scalar], room: Scalar, more: Scalar = 0.0
    ) -> Scalar:
        """Whether rounding, up to 4 eps ||A|| ||x||, may have taken r away from b - A x, of such a norm and model.

        ||x|| is that of the vector and ``more``. In M's norms (None) it isn't known: it is at least 2 |model| / ||b||.
        """
        (norm, model), least = told, ops.eps(s.r) ** 0.5
        if x is None:
            return -model > 2.0 * least * room
        reach = ops.sqrt(ops.dot(x, x)) + more
        return reach * ops.divide(0.25 * s.whole, room) > least * ops.maximum(ops.sqrt(s.whole), norm)

    def _tick(self, ops: Backend, problem: LinearProblem, s: CGState, seen: _Seen | None = None) -> CGState:
        """The next state, whatever there is to judge, from what was ``seen``."""
        running, no = s.status == Code.RUNNING, ops.logical_not
        checking = running & (s.claim != Code.RUNNING)
        starting = running & (s.products == 0) if problem.x0 is not None else None
        single = self.reductions == 1 and problem.preconditioner is None

        def on_trial(x: Vector, p: Vector) -> tuple[Vector]:
            return (ops.axpy(s.trial, p, ops.copy(x)),)

        if seen is None:
            (v,) = ops.either(checking, on_trial, _direction, s.x, s.p)
            product = problem.operator.apply(v)
            del v  # nor is it read below: a program has no room for it beside the terms of inner products
            seen = _Seen(product, None if single else ops.dot(s.p, product))
        product, curvature = seen.product, seen.curvature
        rp, before = s.rp, s.rz
        if single:  # none of them needs another, so that programs sum them over devices at once
            p, r = s.p, s.r
            pairs = (p, product), (r, product), (product, product), (r, r), (p, r)
            curvature, across, square, whole, rp = ops.dots(*pairs)
            before = ops.where(checking, before, whole)
        # The curvature is of no use while checking, but not finite if the product is not.
        good = (running ^ checking) & (curvature > 0)
        if starting is not None:
            good = good & no(starting)
        alpha = ops.where(good, ops.divide(rp, curvature), 0.0)
        gain = 0.5 * alpha * rp
        if starting is not None:
            alpha = ops.where(starting, along_start(ops, rp, curvature), alpha)
            change = ops.where(alpha != 0, alpha * (rp - 0.5 * alpha * curvature), 0.0)
            gain = ops.where(starting, change, gain)
        model = s.model - gain
        moved = good & ((model >= -s.room) | (model >= 1e3 * s.model))
        r = ops.axpy(-alpha, product, s.r) if seen.r is None else seen.r

        def replace(r: Vector, model: Scalar, moved: Scalar) -> tuple[Vector, Scalar, Scalar]:
            """A step on trial is taken if its residual is what was expected of it, and half as large.

            One that is refused needs neither residual nor model, for the run ends. So each sum waits for the one
            before, and a program holds the terms of one at a time, and writes over r.
            """
            weight, plain = ops.divide(1.0, s.scale), s.trial == 0
            gap = ops.axpby(weight, problem.rhs, -1.0, ops.axpy(1.0, product, r))
            taken = plain | (ops.sqrt(ops.dot(gap, gap)) <= 1e-3 * s.norm)
            weight = ops.where(taken, weight, 0.0)
            true = ops.axpby(weight, problem.rhs, -1.0, product)
            taken = taken & (plain | (ops.sqrt(ops.dot(true, true)) <= 0.5 * s.norm))
            weight = ops.where(taken, weight, 0.0)

            def model_at(true: Vector, v: Vector) -> tuple[Scalar]:
                return (-0.5 * ops.dot(v, ops.axpby(weight, problem.rhs, 1.0, ops.copy(true))),)

            def at_step(true: Vector) -> tuple[Scalar]:
                return model_at(true, *on_trial(s.x, s.p))

            (model,) = ops.branch(plain, lambda true: model_at(true, s.x), at_step, true)
            return true, model, taken & no(plain)

        r, model, moved = ops.branch(checking, replace, unchanged, r, model, moved)
        if seen.r is not None:
            z, rr, rz = seen.z, seen.rr, seen.rz
        else:
            z = problem.precondition(r)
            if single:
                told = whole - alpha * (2.0 * across - alpha * square)
                # Half of its digits are right, or it is summed: where the norm falls below eps^(1/4) in one step.
                right = no(checking) & (told > ops.eps(r) ** 0.5 * whole) & (told < math.inf)
                (rr,) = ops.branch(right, lambda r: (told,), lambda r: (ops.dot(r, r),), r)
            else:
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
        beta = ops.divide(rz, before)

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

            def looked() -> tuple[Scalar, Scalar]:
                (v,) = on_trial(s.x, s.p)
                fits, unfit = unfit_status(ops, ops.max_abs(v), s.scale, v)
                return ops.dot(s.p, r), ops.where(fits, Code.CONVERGED, unfit) + 0 * s.status

            along, held = ops.branch(checking, looked, lambda: (rp, s.status))
            began = moved if starting is None else moved | (starting & sound)
            known = began | checked
            length = ops.where(tried, s.trial, alpha)
            # (1 + beta) / alpha = |Ap|^2 / p.Ap <= ||A||; twice that, so that there are few such ticks.
            larger = moved & (length > 0) & (length < s.least * (1.0 + beta))
            least = ops.where(larger, 0.5 * length / (1.0 + beta), s.least)
            room = ops.where(larger, s.whole / (16.0 * ops.eps(r)) * ops.where(larger, least, 0.0), s.room)

            def measure() -> tuple[Scalar]:
                told = ops.where(moved, norm, s.norm), model
                if z is not r:
                    return (self._drifted(ops, s, None, told, room),)
                more = ops.where(moved, length, 0.0) * ops.sqrt(ops.dot(s.p, s.p))
                return (self._drifted(ops, s, s.x, told, room, more),)

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
            keeps = drowning | (checking & no(moved) & (before != 0))
            return (
                ops.where(began, length, 0.0),
                ops.where(keeps, 0.0, 1.0),
                ops.where(moved, beta, ops.where(keeps, 1.0, 0.0)),
                ops.where(drowning, before, rz),
                ops.where(keeps, along, ops.where(tried, rz + beta * along, rz)),
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
        x = state.x if state.back is False else ops.select(state.back, ops.get(state.best, 0), state.x)
        return ops.scale(state.scale, x)

    def iterates(self, ops: Backend, problem: LinearProblem, state: CGState, x: Vector) -> Iterates | None:
        """The iterates that were asked for, the last of them being the answer ``x``; consumes what the state kept."""
        if self.keep is None:
            return None
        return collect(ops, plan(self.keep, self.limit(problem)), state.kept, x, state.steps, state.scale)
