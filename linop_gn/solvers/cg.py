"""Conjugate gradients for symmetric positive definite operators.

Hestenes and Stiefel (1952); preconditioned form as in Saad, *Iterative Methods
for Sparse Linear Systems* (2003), algorithm 9.1. With r = b - A x, z = M r::

    alpha = r.z / p.Ap     x <- x + alpha p     r <- r - alpha Ap
    beta  = r.z / (r.z before)                  p <- z + beta p

What differs from ``scipy.sparse.linalg.cg``:

* ``CONVERGED`` is a fact: when the recurrence claims the tolerance, one product
  recomputes b - A x; if that misses it, the residual is replaced, the search
  direction is kept (a restart would lose the superlinear phase), and the run
  goes on until it does or rounding forbids it (``STAGNATED``).
* The system is solved for b over a power of two near max|b|, so that right-hand
  sides of 1e-30 in float32 neither underflow nor meet an absolute guard.
* p.Ap <= 0, an indefinite preconditioner, breakdown and non-finite values end
  the run with a status of their own and the last good iterate.
* ``steps=k`` runs k steps and calls that a success, as inner solvers need it.
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
from ..status import Status
from .problem import LinearProblem

__all__ = ["CG", "CGState"]


class CGState(NamedTuple):
    """Everything is in units of ``scale``: x, r, p, and their norms."""

    x: Vector
    r: Vector
    p: Vector
    rz: Scalar
    rp: Scalar
    norm: Scalar
    model: Scalar
    threshold: Scalar
    scale: Scalar
    verified: Scalar
    checking: Scalar
    fresh: Scalar
    status: Scalar
    steps: Scalar
    products: Scalar


class CGRow(NamedTuple):
    """2-norm of the residual, and the quadratic model, at each step."""

    residual: Scalar
    model: Scalar


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
    preconditioner
        An operator applying an approximation of A^-1, or a function that makes one
        from the (damped) operator being solved with.

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

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"CG: {name} must be a finite number >= 0, got {value}.")
        for name in ("max_steps", "steps"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ValueError(f"CG: {name} must be a whole number >= 0 or None, got {value!r}.")
        if self.steps is not None and self.max_steps is not None:
            raise ValueError("CG: give either steps (run exactly so many) or max_steps (at most), not both.")

    def check(self, operator: LinearOperator) -> None:
        """Raise unless the operator is square and known to be symmetric."""
        if not operator.domain.agrees(operator.codomain):
            raise ValueError(f"CG needs a square operator, got {operator!r}.")
        if not operator.symmetric:
            raise ValueError(
                f"CG needs a symmetric operator, and {operator!r} is not known to be. Declare it (symmetric=True) "
                "if it is; otherwise solve the normal equations with A.T @ A, whose symmetry is known."
            )

    def limit(self, problem: LinearProblem) -> int:
        """The number of steps that a run may take."""
        if self.steps is not None:
            return self.steps
        return self.max_steps if self.max_steps is not None else min(10 * problem.rhs.shape[0], 10_000)

    def init(self, ops: Backend, problem: LinearProblem) -> CGState:
        b = problem.rhs
        size = ops.max_abs(b)
        finite = ops.isfinite(size)
        scale = ops.power_of_two(size, b)
        r = ops.scale(ops.divide(ops.scalar(1.0, b), scale), ops.mask(finite, ops.copy(b)))
        warm = problem.x0 is not None
        z = problem.precondition(r)
        rr = ops.dot(r, r)
        rz = rr if z is r else ops.dot(r, z)
        norm = ops.sqrt(rr)
        zero = size == 0
        if warm:
            start = ops.max_abs(problem.x0)
            finite = finite & ops.isfinite(start)
            x = ops.mask(finite & ops.logical_not(zero), ops.copy(problem.x0))
            x = ops.scale(ops.divide(ops.scalar(1.0, b), scale), x)
            p = ops.zeros_like(b)
        else:
            x, p = ops.zeros_like(b), ops.copy(z)
        if self.steps is None:
            threshold = ops.maximum(self.rtol * norm, ops.divide(self.atol, scale))
        else:
            threshold = ops.eps(b) * norm
        done = zero if warm else norm <= threshold
        status = ops.scalar(int(Status.RUNNING), b)
        if self.limit(problem) == 0 and not warm:
            status = ops.scalar(int(Status.MAX_STEPS if self.steps is None else Status.COMPLETED), b)
        if z is not r:
            indefinite = ops.logical_not(ops.isfinite(rz) & (rz > 0))
            status = ops.where(indefinite, int(Status.INDEFINITE_PRECONDITIONER), status)
        status = ops.where(done, int(Status.CONVERGED), status)
        status = ops.where(finite, status, int(Status.NONFINITE_INPUT))
        no = ops.scalar(False, b)
        return CGState(
            x=x,
            r=r,
            p=p,
            rz=rz,
            rp=rz,
            norm=norm,
            model=ops.scalar(0.0, b),
            threshold=threshold,
            scale=scale,
            verified=ops.scalar(math.inf, b),
            checking=ops.logical_not(no) if warm else no,
            fresh=ops.logical_not(no) if warm else no,
            status=status,
            steps=ops.scalar(0, b),
            products=ops.scalar(0, b),
        )

    def step(self, ops: Backend, problem: LinearProblem, s: CGState) -> CGState:
        running = s.status == int(Status.RUNNING)
        checking = s.checking & running
        iterating = running & ops.logical_not(s.checking)

        product = problem.operator.apply(ops.select(checking, s.x, s.p))
        curvature = ops.dot(s.p, product)
        finite = ops.isfinite(curvature)
        alpha = ops.divide(s.rp, curvature)
        good = iterating & finite & (curvature > 0) & ops.isfinite(alpha)
        usable = good | (checking & finite)
        alpha = ops.where(good, alpha, 0.0)
        product = ops.mask(usable, product)

        x = ops.axpy(alpha, s.p, s.x)

        def replace(x: Vector, r: Vector, product: Vector) -> tuple[Vector, Scalar, Scalar]:
            inverse = ops.divide(ops.scalar(1.0, product), s.scale)
            true = ops.axpby(inverse, problem.rhs, -1.0, product)
            model = -0.5 * (ops.dot(x, problem.rhs) * inverse + ops.dot(x, true))
            return true, model, ops.dot(true, s.p)

        def recur(x: Vector, r: Vector, product: Vector) -> tuple[Vector, Scalar, Scalar]:
            return ops.axpy(-alpha, product, r), s.model - 0.5 * alpha * s.rp, ops.scalar(0.0, product)

        r, model, rp = ops.branch(checking & finite, replace, recur, x, s.r, product)
        z = problem.precondition(r)
        rr = ops.dot(r, r)
        rz = rr if z is r else ops.dot(r, z)
        norm = ops.sqrt(rr)
        sound = ops.isfinite(norm) & ops.isfinite(rz)

        # A replaced residual keeps the direction it interrupts, with the exact line search r.p / p.Ap along
        # it (r.p = r.z holds no longer, and using r.z there diverges); only the very first one starts from z.
        keeps = checking & ops.logical_not(s.fresh)
        beta = ops.where(good & sound, ops.divide(rz, s.rz), ops.where(keeps, 1.0, 0.0))
        p = ops.axpby(ops.where(keeps, 0.0, 1.0), ops.mask(sound, z), beta, s.p)

        steps = s.steps + ops.where(good, 1, 0)
        met = norm <= s.threshold
        end = steps >= self.limit(problem)
        status = s.status  # later lines overrule earlier ones
        if self.steps is not None:
            status = ops.where(running & (end | (good & met)), int(Status.COMPLETED), status)
        else:
            status = ops.where(running & end & ops.logical_not(good & met), int(Status.MAX_STEPS), status)
            status = ops.where(keeps & (norm > 0.5 * s.verified), int(Status.STAGNATED), status)
        if z is not r:
            indefinite = running & ops.logical_not(rz > 0) & (norm > 0)
            status = ops.where(indefinite, int(Status.INDEFINITE_PRECONDITIONER), status)
        status = ops.where(checking & met, int(Status.CONVERGED), status)
        lost = iterating & ops.logical_not(good)
        reason = ops.where(curvature > 0, int(Status.BREAKDOWN), int(Status.NEGATIVE_CURVATURE))
        status = ops.where(lost, reason, status)
        status = ops.where(running & ops.logical_not(finite & sound), int(Status.NONFINITE), status)
        return CGState(
            x=x,
            r=r,
            p=p,
            rz=rz,
            rp=ops.where(keeps, rp, rz),
            norm=norm,
            model=model,
            threshold=s.threshold,
            scale=s.scale,
            verified=ops.where(keeps, ops.minimum(s.verified, norm), s.verified),
            checking=good & met & (status == int(Status.RUNNING)),
            fresh=s.fresh & ops.logical_not(checking),
            status=status,
            steps=steps,
            products=s.products + ops.where(running, 1, 0),
        )

    def observe(self, state: CGState) -> CGRow:
        return CGRow(state.norm * state.scale, state.model * state.scale * state.scale)

    def answer(self, ops: Backend, problem: LinearProblem, state: CGState) -> Vector:
        return ops.scale(state.scale, state.x)
