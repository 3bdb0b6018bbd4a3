"""Minimal residuals for symmetric operators, indefinite and singular ones included.

Paige and Saunders (1975); the names are those of Choi's thesis (2006, section
2.3). Lanczos vectors v_k of A, started from r_0, make a tridiagonal T_k, which
plane rotations (c_k, s_k) turn into an upper triangle as it grows::

    beta_(k+1) p_(k+1) = A v_k - alpha_k p_k - beta_k p_(k-1)         v = M p
    delta_k = c_(k-1) dbar_k + s_(k-1) alpha_k      gbar_k = s_(k-1) dbar_k - c_(k-1) alpha_k
    gamma_k = ||(gbar_k, beta_(k+1))||              c_k = gbar_k / gamma_k,  s_k = beta_(k+1) / gamma_k
    w_k = (v_k - delta_k w_(k-1) - epsilon_k w_(k-2)) / gamma_k
    phi_k = c_k phibar_(k-1)                        phibar_k = s_k phibar_(k-1)
    x_k = x_(k-1) + phi_k w_k         r_k = s_k^2 r_(k-1) - phi_k / gamma_k beta_(k+1) p_(k+1)

||r_k|| = phibar_k is the smallest over the Krylov space: it never grows. Before
step k is taken ||A r_(k-1)|| = phibar_(k-1) ||(gbar_k, c_(k-1) beta_(k+1))|| is
known. With a preconditioner M these are norms in M.

What differs from ``scipy.sparse.linalg.minres``:

* ``CONVERGED`` is ||b - A x|| <= max(rtol ||b||, atol) for a residual that was
  recomputed from x, as CG has it. SciPy stops on estimates, relative to
  ||A|| ||x||, and where A r is small beside ||A|| ||r||, which happens on the
  way to the solution of an ill-conditioned system.
* If the recomputed residual misses the tolerance, the iteration starts again
  from it. This is iterative refinement: it removes the error of the recurrence
  for w, of the order of cond(A)^2 round-offs. No progress is ``STAGNATED``.
* ``INCONSISTENT`` is A r = 0 to rounding, whatever the tolerance: for a recomputed
  r, |r.A r| <= 10 eps ||A|| ||r||^2 and ||A r|| <= 100 eps ||A|| ||r||. The latter
  may be sqrt(eps) where two attempts at a smaller r from there came to nothing.
  SciPy stops at the tolerance, where regular operators are ill-conditioned too.
* Where ||A r|| <= sqrt(eps) ||A|| ||r||, steps divide by what may be noise. x is
  looked at before, after a step that reduces the residual, and is given up for the
  best point where it has grown by more than that reduction is worth.
* Every end without success is at the best point whose residual was recomputed.
  After ``steps=k`` this is left out where cond(T)^2 round-offs are known to be small.
* A run starts from ``x0`` as it is. Only CG takes the best multiple of it, so that
  no run ends worse than zero.
* No absolute constants: the recurrence runs on b and A over powers of two.
* The model 1/2 x^T A x - b^T x comes with every step; k columns are solved at once.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ..operators.base import LinearOperator
from ..protocols import Backend, Scalar, Vector
from ..records import record
from ..run.status import Code, alike, verdict
from .base import Cost, each, short_recurrence
from .options import ResidualSolver, begun_status, scale_of, scaled_rhs, scaled_start, threshold_of, unfit_status
from .problem import LinearProblem

__all__ = ["MINRES", "MINRESState"]

# phase    product  what it is for
# _STEP    A v      a step
# _FIRST   A v      a step from a point whose residual was recomputed
# _CHECK   A x      the residual of an x that starts or ends the run or this recurrence; another begins there
# _PROVE   A x      the residual of an x that may be wrong; if it is right, the recurrence goes on
# _RETURN  A x      the residual of the best point, which x is again; a recurrence begins there
_STEP, _FIRST, _CHECK, _PROVE, _RETURN = range(5)

# Relative error of a residual, as cond(T)^2 round-offs bound it, from which on x is looked at after a number of steps.
_DRIFT = 1e-3


class Recurrence(NamedTuple):
    """What step k starts from."""

    v: Vector
    p: Vector | None
    """M^-1 v; None without a preconditioner, where it is v."""
    p_old: Vector
    w: Vector
    w_old: Vector
    beta: Scalar
    cs: Scalar
    sn: Scalar
    dbar: Scalar
    epsilon: Scalar
    phibar: Scalar


class MINRESState(NamedTuple):
    """x and r are in units of ``scale``, the recurrence in units of ``ascale``: near ||A||, or 1 where that will do."""

    x: Vector
    r: Vector
    recurrence: Recurrence
    best: Vector
    """The point of the smallest recomputed residual (or the start)."""
    best_norm: Scalar
    best_model: Scalar
    risky: Scalar
    """Whether A r has nearly vanished since the recurrence began, so that a step may divide by noise."""
    idle: Scalar
    """How many recurrences in a row did not halve the residual."""
    anorm: Scalar
    """Largest norm of a column of T: a lower bound of ||A||."""
    inverses: Scalar
    """With ``steps``: sum of ||w||^2 since a residual was recomputed, the square of a norm of T's pseudo-inverse."""
    ascale: Scalar
    norm: Scalar
    model: Scalar
    threshold: Scalar
    scale: Scalar
    phase: Scalar
    status: Scalar
    steps: Scalar
    products: Scalar


@record
class MINRES(ResidualSolver):
    """Minimal residuals (MINRES), for symmetric operators of any inertia.

    Parameters
    ----------
    rtol, atol
        Converged when ||b - A x||_2 <= max(rtol ||b||_2, atol).
    max_steps
        Limit on steps; None means min(10 n, 10000). A size of the program, not data. One more
        product recomputes the residual there.
    steps
        Run exactly this many steps, ignoring the tolerances; stops earlier only when
        nothing is left to do. The status is ``COMPLETED``. It costs as many products, and
        more only where rounding may have spoiled x, or a preconditioner hides whether.
    preconditioner
        A symmetric positive definite operator applying an approximation of |A|^-1, or a
        function that makes one from the (damped) operator being solved with.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Dense(np.array([[1.0, 2.0], [2.0, 1.0]]), symmetric=True)  # eigenvalues 3 and -1
    >>> lg.solve(A, np.array([1.0, 0.0]), lg.MINRES(rtol=1e-10))
    MINRES: converged after 2 steps, 3 products; residual ...
    The tolerance was met.
    """

    def cost(self, operator: LinearOperator, steps: int) -> Cost:
        sure = self.steps is not None and self.preconditioner is None
        return short_recurrence(self, operator, self.planned(steps), sure, each(operator, 9 if sure else 11, 11), 19.0)

    def init(self, ops: Backend, problem: LinearProblem) -> MINRESState:
        b, warm = problem.rhs, problem.x0 is not None
        r, scale, inverse, largest, finite = scaled_rhs(ops, b)
        size = ops.sqrt(ops.dot(r, r))
        x = ops.zeros_like(b)
        if warm:
            x, finite = scaled_start(ops, problem.x0, inverse, largest, finite)
        z = r if warm else problem.precondition(r)  # of a warm start nothing is known before its first product
        rz = size * size if z is r else ops.dot(r, z)
        threshold = threshold_of(ops, self, size, scale, b)
        nothing, none = ops.scalar(0.0, b), ops.scalar(0, b)
        code = ops.where(largest == 0 if warm else size <= threshold, Code.CONVERGED, Code.RUNNING)
        status = begun_status(ops, self, r, z, rz, code, self.limit(problem) or warm)
        beta = ops.sqrt(ops.where(rz > 0, rz, 0.0))
        turn = ops.divide(1.0, beta)
        v = ops.scale(turn, ops.mask(ops.isfinite(rz), ops.copy(z)))
        p = None if problem.preconditioner is None else ops.scale(turn, ops.copy(r))
        vectors = v, p, ops.zeros_like(b), ops.zeros_like(b), ops.zeros_like(b)
        recurrence = Recurrence(*vectors, nothing, ops.scalar(-1.0, b), nothing, nothing, nothing, beta)
        return MINRESState(
            x=x,
            r=r,
            recurrence=recurrence,
            best=ops.copy(x),
            best_norm=ops.scalar(math.inf, b) if warm else size,
            risky=ops.scalar(False, b),
            norm=size,
            threshold=threshold,
            scale=scale,
            phase=ops.scalar(_CHECK if warm else _FIRST, b),
            status=ops.where(finite, status, Code.NONFINITE_INPUT),
            **alike("best_model anorm inverses ascale model", nothing),
            **alike("idle steps products", none),
        )

    def step(self, ops: Backend, problem: LinearProblem, s: MINRESState) -> MINRESState:
        q, running, fixed, no = s.recurrence, s.status == Code.RUNNING, self.steps is not None, ops.logical_not
        looking = running & (s.phase > _FIRST)
        product = problem.operator.apply(ops.select(looking, s.x, q.v))

        def lanczos(product: Vector) -> tuple[Any, ...]:
            (ascale,) = ops.branch(s.ascale > 0, lambda y: (s.ascale,), lambda y: (scale_of(ops, y),), product)
            y = ops.axpby(-q.beta, q.p_old, ops.divide(1.0, ascale), product)
            alpha = ops.dot(q.v, y)
            return ops.axpy(-alpha, q.v if q.p is None else q.p, y), alpha, ascale, s.model

        def residual(product: Vector) -> tuple[Any, ...]:
            energy = ops.dot(s.x, product)
            true = ops.axpby(ops.divide(1.0, s.scale), problem.rhs, -1.0, product)
            return true, 0.0 * energy, s.ascale, -0.5 * energy - ops.dot(s.x, true)

        y, alpha, ascale, model = ops.branch(looking, residual, lanczos, product)
        z = problem.precondition(y)
        z = ops.copy(y) if q.p is not None and z is y else z
        yy = ops.dot(y, y)
        yz = yy if z is y else ops.dot(y, z)
        sound = ops.isfinite(alpha + yy + yz + model)
        known = looking & sound  # the residual of x, recomputed
        indefinite = running & sound & (yz < 0)
        alpha = ops.where(sound, alpha, 0.0)
        beta = ops.sqrt(ops.where(sound & (yz > 0), yz, 0.0))

        # The next column of the triangle.
        gbar, dbar = q.sn * q.dbar - q.cs * alpha, -q.cs * beta
        gamma = ops.sqrt(gbar * gbar + beta * beta)
        inverse, turn = ops.divide(1.0, gamma), ops.divide(1.0, beta)
        cs, sn = ops.divide(gbar, gamma), ops.divide(beta, gamma)
        phi, phibar, delta = cs * q.phibar, sn * q.phibar, q.cs * q.dbar + q.sn * alpha
        column = ops.maximum(s.anorm, ops.sqrt(q.beta * q.beta + alpha * alpha + beta * beta))
        eps, limit = ops.eps(s.x), self.limit(problem)
        root = ops.sqrt(gbar * gbar + dbar * dbar)  # ||A r|| / ||r||
        tired = running & (s.products > min(4 * limit + 16, 2**31 - 1))  # no run looks at itself for ever

        def take() -> tuple[Scalar, ...]:
            factors = inverse, -q.epsilon * inverse, -delta * inverse, ops.divide(phi, ascale), -phi * inverse, sn * sn
            return running, *(looking,) * 7, ascale, column, s.norm, *factors, beta, cs, sn, dbar, q.sn * beta, phibar

        def look() -> tuple[Scalar, ...]:
            """What happens, and factors for x, r and w after the step, or as they are."""
            stepping = running & sound & no(looking | indefinite)
            anorm = ops.where(stepping, column, s.anorm)
            small = stepping & (root <= math.sqrt(eps) * anorm)
            tiny = small & (root <= 100.0 * eps * anorm)
            singular = small & (alpha * alpha <= (10.0 * eps * anorm) ** 2) & (s.norm > 100.0 * eps)
            sure = s.phase == _FIRST
            fresh = sure & (q.beta == 0)  # A r is that of a recomputed r, not of a recurrence
            over = stepping & fresh & ((tiny & singular) | (s.idle >= 2))
            stuck = tiny & no(fresh)
            unsure = small & no(tiny | sure | s.risky)
            moved = stepping & no(over | stuck | unsure)
            norm = ops.where(known, ops.sqrt(yy), s.norm)
            right = known & (s.phase == _PROVE) & (norm <= 1.01 * s.norm) & (q.beta > 0)
            hold = right | unsure | stuck  # w stays as well: the recurrence waits
            reach = ops.where(moved, inverse, 0.0)
            length = ops.where(moved, ops.divide(phi, ascale), 0.0)
            onto, fade = ops.where(known, 1.0, -phi * reach), ops.where(known, 0.0, ops.where(moved, sn * sn, 1.0))
            factors = reach, ops.where(hold, 1.0, -q.epsilon * reach), -delta * reach, length, onto, fade
            after, anew = (beta, cs, sn, dbar, q.sn * beta, phibar), (0.0, -1.0, 0.0, 0.0, 0.0, beta)
            scalars = [ops.where(moved, a, ops.where(hold, b, c)) for a, b, c in zip(after, q[5:], anew, strict=True)]
            cases = moved, hold, right, unsure, stuck, over, over & singular, moved & small
            return *cases, ops.where(stepping, ascale, s.ascale), anorm, norm, *factors, *scalars

        # Of an ordinary step most need not be asked: an eager scalar operation takes a tenth of a microsecond.
        usual = running & sound & (root > math.sqrt(eps) * column) & (s.idle < 2)
        usual = no(ops.any(no(usual & no(looking | indefinite | s.risky | tired))))
        (
            moved, hold, right, unsure, stuck, over, singular, small, ascale, anorm, norm,
            reach, second, first, length, onto, fade, *scalars,
        ) = ops.branch(usual, take, look)  # fmt: skip
        y, z = ops.mask(sound, y), None if z is y else ops.mask(sound, z)
        w = ops.axpby(reach, q.v, second, q.w_old)
        w = ops.axpy(first, q.w, w)
        descent = ops.dot(w, s.r)
        r = ops.axpby(onto, y, fade, s.r)
        lower = s.model - 0.5 * length * (descent + ops.dot(w, r))
        x = ops.axpy(length, w, s.x)
        claimed = phibar if q.p is None else ops.sqrt(ops.dot(r, r))
        summed = s.inverses + ops.dot(w, w) if fixed else s.inverses
        steps = s.steps + moved

        def go_on() -> tuple[Scalar, ...]:
            best = s.best_norm, s.best_model
            return looking, looking, claimed, lower, *best, s.risky, summed, s.idle, 0 * s.phase, s.status

        def judge() -> tuple[Scalar, ...]:
            told = ops.where(moved, claimed, norm)
            reached = ops.where(known, model, lower)
            # Where x has summed, is the residual less than at the best point by more than rounding in a product with x?
            risking = moved & s.risky
            largest, before = ops.branch(
                known | risking,
                lambda x, y: (ops.max_abs(x), ops.max_abs(y)),
                lambda x, y: (told, told),
                x,
                s.best,
            )
            noise, far = 10.0 * eps * anorm * ascale * largest, largest > 2.0 * before
            drowned = risking & far & (noise > math.sqrt(eps) * s.best_norm) & (noise > s.best_norm - told)
            slack = ops.where(far, -noise, ops.minimum(noise, 1e-6 * s.best_norm))  # of equals the later is better
            better = known & (told <= s.best_norm + slack)
            gain = better & (told <= 0.5 * s.best_norm)
            doubt = s.risky | (far & (noise > 1e-2 * s.best_norm))
            met, end = told <= s.threshold, steps >= limit
            vain = known & no(gain | right | met) & (s.phase != _RETURN) & (doubt | (s.norm <= s.threshold))
            best_norm, best_model = ops.where(better, told, s.best_norm), ops.where(better, reached, s.best_model)

            risky = ops.where(known, right, s.risky | unsure | stuck | small)
            inverses, trusted = s.inverses, running & fixed & (q.p is None)
            if fixed:  # no product is spent on an x that the recurrence cannot have taken far from what it claims
                inverses = ops.where(known, 0.0, ops.where(moved, summed, s.inverses))
                drift = eps * anorm * anorm * inverses * s.best_norm  # with a preconditioner ||w|| is in units of M
                trusted = trusted & (drift <= _DRIFT * told) & (told >= math.sqrt(eps) * s.best_norm)
                trusted = trusted & no(s.risky) & (stuck | (moved & (met | end)))
            fits, unfit = unfit_status(ops, largest, s.scale, s.x)
            status = verdict(
                ops,
                s.status,
                (running & no(sound), Code.NONFINITE),
                (indefinite, Code.INDEFINITE_PRECONDITIONER),
                (known & met & no(fits), unfit),
                (known & met, Code.COMPLETED if fixed else Code.CONVERGED),
                (singular, Code.COMPLETED if fixed else Code.INCONSISTENT),
                (over | (vain & no(doubt)) | tired, Code.COMPLETED if fixed else Code.STAGNATED),
                (known & end, Code.COMPLETED if fixed else Code.MAX_STEPS),
                (trusted, Code.COMPLETED),
            )
            lost = drowned | (vain & doubt & no(better))
            phase = verdict(
                ops,
                0 * s.phase,
                (lost, _RETURN),
                (known, _FIRST),
                (stuck | (moved & (met | end)), _CHECK),
                (unsure | (moved & risky & (told <= 0.99 * s.best_norm)), _PROVE),
            )

            # Attempts that came to nothing, and an end amid attempts, lead back to the best point.
            worse = told > s.best_norm
            if q.p is not None:  # ||r||_M never grows
                worse = worse & ((s.phase != _CHECK) | (yz > 1.02 * q.phibar * q.phibar))
            stopped = running & (status != Code.RUNNING) & ops.where(known, worse & no(met), looking | s.risky)
            back = (lost | stopped) & (best_norm < math.inf)
            idle = ops.where(gain, 0, s.idle + (drowned | (vain & doubt)))
            told, reached = ops.where(back, best_norm, told), ops.where(back, best_model, reached)
            return better, back, told, reached, best_norm, best_model, risky, inverses, idle, phase, status

        usual = no(ops.any(no(usual & (claimed > s.threshold) & (steps < limit))))
        better, back, norm, model, best_norm, best_model, *bounds, idle, phase, status = ops.branch(usual, go_on, judge)
        (best,) = ops.branch(better, lambda y: (ops.copy(x),), lambda y: (y,), s.best)
        (x,) = ops.branch(back, lambda x, best: (ops.copy(best),), lambda x, best: (x,), x, best)
        if problem.x0 is not None:  # a start with a product out of range is given up for zero
            x = ops.mask(no(running & no(sound) & (best_norm == math.inf)), x)
        previous = ops.mask(moved | hold, q.w)
        recurrence = Recurrence(
            ops.select(hold, q.v, ops.scale(turn, y if z is None else z)),
            None if q.p is None else ops.select(hold, q.p, ops.scale(turn, y)),
            ops.select(hold, q.p_old, ops.mask(moved, q.v if q.p is None else q.p)),
            ops.select(hold, previous, w),
            ops.select(hold, w, previous),
            *scalars,
        )
        risky, inverses = bounds
        return MINRESState(
            x, r, recurrence, best, best_norm, best_model, risky, idle, anorm, inverses,
            ascale, norm, model, s.threshold, s.scale, phase, status, steps, s.products + running,
        )  # in order: replacing fields by name takes three times as long  # fmt: skip

    def steps_ahead(self, problem: LinearProblem, s: MINRESState) -> int | None:
        if self.steps is None or type(s.norm) is not float:
            return None
        return self.limit(problem) - 1 - s.steps if s.phase == _STEP and not s.risky and s.idle < 2 else 0

    def ahead(self, ops: Any, problem: LinearProblem, s: MINRESState, steps: int) -> MINRESState:
        vectors, scalars = s.recurrence[:5], s.recurrence[5:]
        x, r, v, p, p_old, w, w_old = (None if y is None else ops.copy(y) for y in (s.x, s.r, *vectors))
        beta, cs, sn, dbar, epsilon, phibar = scalars
        for _ in range(steps):
            y = ops.axpby(-beta, p_old, 1.0 / s.ascale, problem.operator.apply(v))
            alpha = ops.dot(v, y)
            y = ops.axpy(-alpha, v if p is None else p, y)
            z, square = problem.precondition(y), ops.dot(y, y)
            z = ops.copy(y) if p is not None and z is y else z
            beta = ops.sqrt(square if p is None else ops.dot(y, z))
            gbar, delta, older = sn * dbar - cs * alpha, cs * dbar + sn * alpha, epsilon
            gamma, dbar = ops.sqrt(gbar * gbar + beta * beta), -cs * beta
            cs, sn, epsilon = gbar / gamma, beta / gamma, sn * beta
            phi, phibar = cs * phibar, sn * phibar
            w, w_old = ops.axpy(-delta / gamma, w, ops.axpby(1.0 / gamma, v, -older / gamma, w_old)), w
            ops.dot(w, r)
            r = ops.axpby(-phi / gamma, y, sn * sn, r)
            ops.dot(w, r)
            if p is not None:
                ops.dot(r, r)
            ops.dot(w, w)
            x, turn = ops.axpy(phi / s.ascale, w, x), 1.0 / beta
            if p is None:
                v, p_old = ops.scale(turn, y), v
            else:
                v, p, p_old = ops.scale(turn, z), ops.scale(turn, y), p
        return s._replace(x=x, r=r, recurrence=Recurrence(v, p, p_old, w, w_old, *scalars))
