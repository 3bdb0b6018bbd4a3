"""Minimal residuals for symmetric operators, indefinite and singular ones included.

Paige and Saunders (1975); the names are those of Choi's thesis (2006, section
2.3). Lanczos vectors v_k of A, started from r_0, make a tridiagonal T_k, which
plane rotations (c_k, s_k) turn into an upper triangle as it grows::

    beta_(k+1) v_(k+1) = A v_k - alpha_k v_k - beta_k v_(k-1)
    w_k = (v_k - delta_k w_(k-1) - epsilon_k w_(k-2)) / gamma_k
    x_k = x_(k-1) + phi_k w_k         r_k = s_k^2 r_(k-1) - phi_k / gamma_k beta_(k+1) v_(k+1)

||r_k||, smallest over the Krylov space, never grows, and ||A r_(k-1)|| is known
before step k is taken. With a preconditioner M it is ||r||_M that never grows.

What differs from ``scipy.sparse.linalg.minres``:

* ``CONVERGED`` is ||b - A x|| <= max(rtol ||b||, atol) for a residual that was
  recomputed from x, as CG has it. SciPy stops on estimates, relative to
  ||A|| ||x||, and where A r is small beside ||A|| ||r||, which happens on the
  way to the solution of an ill-conditioned system.
* If that recomputed residual misses the tolerance, the iteration starts again
  from it: iterative refinement, which removes the error that the recurrence for
  w makes, of the order of cond(A)^2 round-offs. No progress is ``STAGNATED``.
* Where a run ends otherwise, x is looked at as well: the answer is the best point
  whose residual was recomputed. After ``steps=k`` that is left out where cond(T)^2
  round-offs are known to be small.
* A singular system without a solution ends as ``INCONSISTENT``, at the point of
  the smallest ||A r||: where A r nearly vanishes, further steps divide by what
  may be noise, so that a residual that they claim to have reduced is recomputed.
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
from ..records import record, static
from ..run.status import (
    COMPLETED,
    CONVERGED,
    INCONSISTENT,
    INDEFINITE_PRECONDITIONER,
    MAX_STEPS,
    NONFINITE,
    NONFINITE_INPUT,
    RUNNING,
    STAGNATED,
    Status,
)
from .minres_recurrence import Recurrence, begin, direction, follow, rotate
from .options import (
    check_limits,
    check_tolerances,
    limit_of,
    made_from,
    require_symmetric,
    scaled_rhs,
    unfit_status,
    unit_of,
)
from .problem import LinearProblem

__all__ = ["MINRES", "MINRESRow", "MINRESState"]


# What the next product is spent on: a step; x, whose residual has come to the tolerance (or that is the start); x,
# about which the recurrence may be wrong; the best point, gone back to; A r there.
_STEP, _CHECK, _PROVE, _RETURN, _TEST = range(5)

# Relative error of a residual, as cond(T)^2 round-offs bound it, from which on x is looked at after a number of steps.
_DRIFT = 1e-3


class MINRESState(NamedTuple):
    """x and r are in units of ``scale``, the recurrence in units of ``unit``: near ||A||, or 1 where that will do."""

    x: Vector
    r: Vector
    recurrence: Recurrence
    best: Vector
    """The last point whose residual was recomputed (or the start), or a later one with a smaller ||A r||."""
    best_norm: Scalar
    best_model: Scalar
    root: Scalar
    """||A r|| / ||r|| where it was last seen to be small."""
    risky: Scalar
    """Whether A r nearly vanishes at ``best``, and no step since is known to have reduced r."""
    anorm: Scalar
    """Largest norm of a column of T: a lower bound of ||A||."""
    inverses: Scalar
    """With ``steps``: sum of ||w||^2 since a residual was recomputed, the square of a norm of T's pseudo-inverse."""
    unit: Scalar
    norm: Scalar
    model: Scalar
    threshold: Scalar
    scale: Scalar
    phase: Scalar
    status: Scalar
    steps: Scalar
    products: Scalar


class MINRESRow(NamedTuple):
    """2-norm of the residual, and the quadratic model, at each step."""

    residual: Scalar
    model: Scalar


@record
class MINRES:
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

    rtol: Scalar = 1e-5
    atol: Scalar = 0.0
    max_steps: int | None = static(default=None)
    steps: int | None = static(default=None)
    preconditioner: Any = None

    def __post_init__(self) -> None:
        check_tolerances(self, "rtol", "atol")
        check_limits(self)
        object.__setattr__(self, "preconditioner", made_from(self))

    def check(self, operator: LinearOperator) -> None:
        """Raise unless the operator is square and known to be symmetric."""
        require_symmetric(self, operator)

    def limit(self, problem: LinearProblem) -> int:
        """The number of steps that a run may take."""
        return limit_of(self, problem)

    def init(self, ops: Backend, problem: LinearProblem) -> MINRESState:
        b, warm = problem.rhs, problem.x0 is not None
        r, scale, inverse, largest, finite = scaled_rhs(ops, b)
        zero = largest == 0
        size = ops.sqrt(ops.dot(r, r))
        x = ops.zeros_like(b)
        if warm:
            x = ops.scale(inverse, ops.copy(problem.x0))
            finite = finite & ops.isfinite(ops.max_abs(x))
            x = ops.mask(finite & ops.logical_not(zero), x)
        z = r if warm else problem.precondition(r)  # of a warm start nothing is known before its first product
        rz = size * size if z is r else ops.dot(r, z)
        sound = ops.isfinite(rz)
        if self.steps is None:
            threshold = ops.maximum(self.rtol * size, ops.divide(self.atol, scale))
        else:
            threshold = ops.eps(b) * size

        status = ops.scalar(RUNNING, b)  # later lines overrule earlier ones
        if self.limit(problem) == 0 and not warm:
            status = ops.scalar(int(Status.MAX_STEPS if self.steps is None else Status.COMPLETED), b)
        if z is not r:
            status = ops.where(ops.logical_not(rz > 0), INDEFINITE_PRECONDITIONER, status)
            status = ops.where(ops.isfinite(rz), status, NONFINITE)
        status = ops.where(zero if warm else size <= threshold, CONVERGED, status)
        status = ops.where(finite, status, NONFINITE_INPUT)
        nothing, never = ops.scalar(0.0, b), ops.scalar(False, b)
        # Arrays that are not written to come back from mask as new ones: only here can z be known to be r.
        recurrence = begin(ops, r, z if z is r else ops.mask(sound, z), ops.sqrt(ops.where(rz > 0, rz, 0.0)))
        if problem.preconditioner is not None and recurrence.p is None:
            recurrence = recurrence._replace(p=ops.copy(recurrence.v))
        return MINRESState(
            x=x,
            r=r,
            recurrence=recurrence,
            best=ops.copy(x),
            best_norm=ops.scalar(math.inf, b) if warm else size,
            best_model=nothing,
            root=nothing,
            risky=never,
            anorm=nothing,
            inverses=nothing,
            unit=nothing,
            norm=size,
            model=nothing,
            threshold=threshold,
            scale=scale,
            phase=ops.scalar(_CHECK if warm else _STEP, b),
            status=status,
            steps=ops.scalar(0, b),
            products=ops.scalar(0, b),
        )

    def step(self, ops: Backend, problem: LinearProblem, s: MINRESState) -> MINRESState:
        q, running = s.recurrence, s.status == RUNNING
        checking = running & (s.phase != _STEP) & (s.phase != _TEST)
        product = problem.operator.apply(ops.select(checking, s.x, q.v))

        def lanczos(product: Vector) -> tuple[Any, ...]:
            (unit,) = ops.branch(s.unit > 0, lambda y: (s.unit,), lambda y: (unit_of(ops, ops.max_abs(y), y),), product)
            y = ops.axpby(-q.beta, q.p_old, ops.divide(1.0, unit), product)
            alpha = ops.dot(q.v, y)
            return ops.axpy(-alpha, q.v if q.p is None else q.p, y), alpha, unit, s.model, s.norm

        def replace(product: Vector) -> tuple[Any, ...]:
            energy = ops.dot(s.x, product)
            true = ops.axpby(ops.divide(1.0, s.scale), problem.rhs, -1.0, product)
            return true, 0.0 * energy, s.unit, -0.5 * energy - ops.dot(s.x, true), ops.max_abs(s.x)

        y, alpha, unit, model, largest = ops.branch(checking, replace, lanczos, product)
        z = problem.precondition(y)
        yy = ops.dot(y, y)
        yz = yy if z is y else ops.dot(y, z)
        sound = ops.isfinite(alpha + yy + yz + model)
        indefinite = running & sound & (yz < 0)
        beta = ops.sqrt(ops.where(sound & (yz > 0), yz, 0.0))
        c = rotate(ops, q, alpha, beta)
        known = checking & sound  # this tick recomputes the residual ...
        stepping = running & sound & ops.logical_not(checking | indefinite)  # ... or may take a step
        anorm = ops.where(stepping, ops.maximum(s.anorm, c.length), s.anorm)
        # Where A r nearly vanishes the system may have no solution, and what a step divides by gamma may be noise.
        eps = ops.eps(s.x)
        small = stepping & (c.root <= math.sqrt(eps) * anorm)
        stuck = stepping & (c.root <= 10.0 * eps * anorm) & (s.risky | (self.steps is not None))
        stuck = stuck | (stepping & s.risky & (beta <= 100.0 * eps * anorm))  # the Krylov space ends here
        unsure = small & ops.logical_not(s.risky | stuck)
        tested = stepping & (s.phase == _TEST)
        moved = stepping & ops.logical_not(unsure | stuck | tested)

        norm = ops.where(known, ops.sqrt(yy), s.norm)
        proving = known & (s.phase == _PROVE)
        stay = proving & (norm <= 1.01 * s.norm)  # the recurrence is right: let it go on
        noise = eps * anorm * unit * largest  # of a product with x
        vain = (norm > 0.995 * s.best_norm) | (noise > 1e-3 * s.best_norm)
        vain = vain & proving & s.risky & (norm > s.threshold)
        improved = known & ops.logical_not(vain) & (norm < s.best_norm)
        level = (s.norm >= (1.0 - 1e-5) * s.best_norm) & (s.norm <= (1.0 + 1e-5) * s.best_norm)
        later = small & s.risky & (c.root < s.root) & level
        best, best_norm, best_model = ops.branch(
            improved | later,
            lambda best: (ops.copy(s.x), norm, ops.where(known, model, s.model)),
            lambda best: (best, s.best_norm, s.best_model),
            s.best,
        )

        plain = z is y
        y, z = ops.mask(sound, y), None if plain else ops.mask(sound, z)
        inverse = ops.where(moved, ops.divide(c.phi, c.gamma), 0.0)
        length = ops.where(moved, ops.divide(c.phi, unit), 0.0)
        hold = stay | unsure | stuck  # the recurrence waits where it is
        w = direction(ops, q, c, moved, hold)
        descent = ops.dot(w, s.r)
        r = ops.axpby(
            ops.where(known, 1.0, -inverse), y, ops.where(known, 0.0, ops.where(moved, c.sn * c.sn, 1.0)), s.r
        )
        model = ops.where(known, model, s.model - 0.5 * length * (descent + ops.dot(w, r)))
        x = ops.axpy(length, w, s.x)
        norm = ops.where(moved, c.sn * q.phibar if q.p is None else ops.sqrt(ops.dot(r, r)), norm)
        steps = s.steps + moved
        met, end = norm <= s.threshold, steps >= self.limit(problem)
        risky = ops.where(known, vain | (stay & ops.logical_not(s.risky)), s.risky)
        status, phase = s.status, ops.where(checking & (s.phase == _RETURN), _TEST, _STEP)
        fixed = self.steps is not None  # later lines overrule earlier ones
        reached = int(Status.COMPLETED if fixed else Status.CONVERGED)
        phase = ops.where(unsure | (moved & s.risky & (norm <= 0.99 * s.best_norm)), _PROVE, phase)
        inverses, right = s.inverses, ops.logical_not(running)
        if fixed:  # no product is spent on an x that the recurrence cannot have taken far from what it claims
            inverses = ops.where(known, 0.0, ops.where(moved, s.inverses + ops.dot(w, w), s.inverses))
            if q.p is None:  # else ||w|| is in units of M
                drift = eps * anorm * anorm * inverses * s.best_norm
                right = (drift <= _DRIFT * norm) & (norm >= math.sqrt(eps) * s.best_norm) & ops.logical_not(s.risky)
                status = ops.where((moved & (met | end) | stuck) & right, COMPLETED, status)
        phase = ops.where(vain | (stuck & (s.risky | ops.logical_not(right))), _RETURN, phase)
        phase = ops.where(moved & (met | (end & (phase == _STEP))), ops.where(met & s.risky, _PROVE, _CHECK), phase)
        status = ops.where(known & end & (phase == _STEP), MAX_STEPS, status)
        claimed = (s.norm <= s.threshold) | (s.phase == _PROVE)  # else x was looked at because it is the last one
        drifted = known & ops.logical_not(stay | vain) & (s.steps > 0) & (s.phase != _RETURN) & claimed
        tired = running & (s.products > 4 * self.limit(problem) + 16)  # no run looks at itself for ever
        status = ops.where((drifted & (norm > 0.5 * s.best_norm)) | tested | tired, STAGNATED, status)
        confirmed = tested & (c.root <= 2.0 * math.sqrt(eps) * anorm)
        status = ops.where(confirmed, INCONSISTENT, status)
        if fixed:
            status = ops.where(running & (status != RUNNING), COMPLETED, status)
        fits, unfit = unfit_status(ops, largest, s.scale, s.x)
        status = ops.where(known & met, ops.where(fits, reached, unfit), status)
        status = ops.where(indefinite, INDEFINITE_PRECONDITIONER, status)
        status = ops.where(running & ops.logical_not(sound), NONFINITE, status)
        # Attempts that came to nothing, and an end amid attempts, lead back to the best point.
        failed = running & (status != RUNNING) & (status != CONVERGED) & (known | risky)
        honest = known & (s.phase == _CHECK)
        if q.p is None:
            honest = honest & (norm <= 1.01 * s.norm) & (norm < s.best_norm)
        else:  # ||r||_M never grows
            honest = honest & (yz <= 1.02 * q.phibar * q.phibar)
        failed = (failed & ops.logical_not(honest)) | (known & (s.phase == _RETURN) & (norm > s.best_norm))
        back = (vain | (stuck & s.risky) | failed) & (best_norm < math.inf)
        x = ops.select(back, ops.copy(best), x)
        if problem.x0 is not None:  # a start with a product out of range is given up for zero
            x = ops.mask(ops.logical_not(running & ops.logical_not(sound) & (best_norm == math.inf)), x)
        return MINRESState(
            x=x,
            r=r,
            recurrence=follow(ops, q, c, w, y, y if plain else z, beta, moved, hold),
            best=best,
            best_norm=best_norm,
            best_model=best_model,
            root=ops.where(unsure | later, c.root, s.root),
            risky=risky,
            anorm=anorm,
            inverses=inverses,
            unit=ops.where(stepping, unit, s.unit),
            norm=ops.where(back, best_norm, norm),
            model=ops.where(back, best_model, model),
            threshold=s.threshold,
            scale=s.scale,
            phase=phase,
            status=status,
            steps=steps,
            products=s.products + running,
        )

    def observe(self, state: MINRESState) -> MINRESRow:
        return MINRESRow(state.norm * state.scale, state.model * state.scale * state.scale)

    def answer(self, ops: Backend, problem: LinearProblem, state: MINRESState) -> Vector:
        return ops.scale(state.scale, state.x)
