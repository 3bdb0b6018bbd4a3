"""Truncated conjugate gradients in a trust region: Steihaug (1983), Toint (1981).

Minimises 1/2 x.A x - b.x along the path of preconditioned conjugate gradients
from x = 0, and stops where that path leaves ||x|| <= radius, or turns to a
direction of negative curvature, which is then followed to the boundary. With a
preconditioner M, an approximation of A^-1, the norm is that of M^-1, in which
the path's length grows at every step (so that it leaves the region only once).
That norm is never computed with M^-1: with p the direction and z = M r,

    <p, p> <- r.z + beta^2 <p, p>            <x, p> <- beta (<x, p> + alpha <p, p>)
    <x, x> <- <x, x> + 2 alpha <x, p> + alpha^2 <p, p>

(Conn, Gould and Toint, *Trust-Region Methods*, 2000, section 7.5.1). Here they
are carried as shares of the radius, so that no square over- or underflows.

The step attains at least half of the decrease that is possible in the region,
where A is positive definite (Yuan, 2000); :class:`~linop_gn.GLTR` attains all
of it, for the memory of a basis. SciPy's ``trust-ncg`` has no preconditioner.
``CONVERGED`` is a fact, as in CG: one product recomputes the residual.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from ..operators.base import LinearOperator
from ..protocols import Backend, Scalar, Vector
from ..records import record, static
from ..run.status import Code, alike, verdict
from .base import Cost, Solver
from .cg import short_recurrence
from .options import at_limit, begun_status, check_region, made_from, scaled_rhs, threshold_of, unfit_status
from .problem import LinearProblem

__all__ = ["Steihaug", "SteihaugState"]


class SteihaugState(NamedTuple):
    """x, r, p and their norms are in units of ``scale``."""

    x: Vector
    r: Vector
    p: Vector
    rz: Scalar
    length: Scalar
    """||p||."""
    filled: Scalar
    """<x, x> / radius^2, from 0 to 1."""
    ahead: Scalar
    """<x, p> / radius."""
    norm: Scalar
    model: Scalar
    threshold: Scalar
    inverse_radius: Scalar
    scale: Scalar
    checking: Scalar
    """Whether the next product is spent on x, to recompute the residual."""
    status: Scalar
    steps: Scalar
    products: Scalar


class SteihaugRow(NamedTuple):
    """||b - A x||_2, 1/2 x.A x - b.x, and ||x|| as a share of the radius, at each step."""

    residual: Scalar
    model: Scalar
    share: Scalar


@record
class Steihaug(Solver):
    """Conjugate gradients, truncated at the boundary of a trust region (Steihaug and Toint).

    Parameters
    ----------
    radius
        Of the region ||x|| <= radius, in the norm of M^-1 with a preconditioner M and the 2-norm without.
    rtol, atol
        Converged inside the region when ||b - A x||_2 <= max(rtol ||b||_2, atol).
    max_steps
        Limit on steps; None means min(10 n, 10000).
    steps
        Run exactly so many steps, unless the boundary is reached before.
    preconditioner
        A symmetric positive definite operator applying an approximation of A^-1, or a function that makes one.

    b may have columns: each has its own path, all the same radius.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Diagonal(np.array([-1.0, 2.0]), psd=False)
    >>> step = lg.solve(A, np.array([1.0, 1.0]), lg.Steihaug(radius=2.0))
    >>> step.status.name, float(np.linalg.norm(step.x).round(12))
    ('BOUNDARY', 2.0)
    """

    radius: Scalar = 1.0
    rtol: Scalar = 1e-5
    atol: Scalar = 0.0
    max_steps: int | None = static(default=None)
    steps: int | None = static(default=None)
    preconditioner: Any = None

    symmetric: ClassVar[bool] = True
    supports: ClassVar[frozenset[str]] = frozenset({"columns", "report"})
    solves_system: ClassVar[bool] = False  # on the boundary

    def __post_init__(self) -> None:
        check_region(self)
        object.__setattr__(self, "preconditioner", made_from(self))

    def cost(self, operator: LinearOperator, steps: int) -> Cost:
        return short_recurrence(self, operator, self.planned(steps), self.steps is not None, 5, 12.0)

    def init(self, ops: Backend, problem: LinearProblem) -> SteihaugState:
        b = problem.rhs
        r, scale, _, _, finite = scaled_rhs(ops, b)
        rr = ops.dot(r, r)
        norm = ops.sqrt(rr)
        z = problem.precondition(r)
        rz, p = (rr, ops.copy(r)) if z is r else (ops.dot(r, z), z)
        zero, none = ops.scalar(0.0, b), ops.scalar(0, b)
        threshold = threshold_of(ops, self, norm, scale, b)
        threshold = ops.maximum(threshold, ops.eps(b) ** 2 * norm)  # what is smaller is no residual of x
        code = ops.where(norm <= threshold, Code.CONVERGED, Code.RUNNING)
        status = begun_status(ops, self, r, z, rz, code, self.limit(problem))
        return SteihaugState(
            x=ops.zeros_like(b),
            r=r,
            p=p,
            rz=rz,
            length=ops.sqrt(ops.where(rz > 0, rz, 0.0)),
            norm=norm,
            **alike("filled ahead model", zero),
            threshold=threshold,
            inverse_radius=ops.divide(scale, self.radius + zero),
            scale=scale,
            checking=ops.scalar(False, b),
            status=ops.where(finite & (self.radius > zero), status, Code.NONFINITE_INPUT),
            **alike("steps products", none),
        )

    def step(self, ops: Backend, problem: LinearProblem, s: SteihaugState) -> SteihaugState:
        running = s.status == Code.RUNNING
        checking = running & s.checking
        moving = running ^ checking
        product = problem.operator.apply(ops.select(checking, s.x, s.p))
        curvature = ops.dot(s.p, product)
        known, no = ops.isfinite(curvature), ops.logical_not
        positive = curvature > 0
        alpha = ops.where(positive, ops.divide(s.rz, curvature), 0.0)

        # In shares of the radius: the full step, and the part of it that ends on the boundary.
        share, along = alpha * s.length * s.inverse_radius, ops.divide(s.ahead, s.length)
        filled = s.filled + share * (2.0 * along + share)
        leaves = moving & known & no(positive & (filled < 1.0))
        room = ops.maximum(1.0 - s.filled, 0.0)
        reach = ops.divide(room, along + ops.sqrt(along * along + room))
        endless = s.inverse_radius <= 0
        tau = ops.where(endless, 0.0, ops.divide(reach, s.length * s.inverse_radius))
        inside = moving & known & no(leaves)
        length = ops.where(inside, alpha, ops.where(leaves, tau, 0.0))

        def recur(r: Vector, product: Vector) -> tuple[Vector, Scalar]:
            return ops.axpy(-length, product, r), 0.0 * s.rz

        def replace(r: Vector, product: Vector) -> tuple[Vector, Scalar]:
            true = ops.axpby(ops.divide(1.0, s.scale), problem.rhs, -1.0, product)
            return true, ops.max_abs(s.x)

        r, largest = ops.branch(checking, replace, recur, s.r, product)
        z = problem.precondition(r)
        rr = ops.dot(r, r)
        rz = rr if z is r else ops.dot(r, z)
        norm = ops.sqrt(rr)
        sound = ops.isfinite(rr + rz)
        x = ops.axpy(ops.where(sound, length, 0.0), s.p, s.x)
        met = norm <= s.threshold
        fresh = moving & known & sound
        steps = s.steps + fresh
        end = steps >= self.limit(problem)

        verify = inside & met & (self.steps is None)
        fits, unfit = unfit_status(ops, largest, s.scale, r)
        status = verdict(
            ops,
            s.status,
            (running & no(known & sound), Code.NONFINITE),
            (checking, ops.where(met, ops.where(fits, Code.CONVERGED, unfit), Code.STAGNATED)),
            (leaves, ops.where(endless, Code.NEGATIVE_CURVATURE, Code.BOUNDARY)),
            (verify, Code.RUNNING),
            (inside & met, Code.COMPLETED),
            (inside & no(rz > 0), Code.INDEFINITE_PRECONDITIONER),
            (moving & end, at_limit(self)),
        )

        beta = ops.where(inside, ops.divide(rz, s.rz), 0.0)
        change = length * s.rz - 0.5 * length * length * curvature
        p = ops.axpby(ops.where(inside & sound, 1.0, 0.0), ops.mask(sound, z), ops.where(inside, beta, 1.0), s.p)
        onward = ops.sqrt(ops.where(rz > 0, rz, 0.0))
        rz, ahead = ops.where(inside, rz, s.rz), ops.where(inside, beta * (s.ahead + share * s.length), s.ahead)
        length = ops.where(inside, onward * ops.sqrt(1.0 + ops.divide(beta * s.length, onward) ** 2), s.length)
        filled = ops.where(inside, filled, ops.where(leaves & no(endless), 1.0, s.filled))
        norm, model = ops.where(fresh | (checking & sound), norm, s.norm), ops.where(fresh, s.model - change, s.model)
        numbers, ends = (rz, length, filled, ahead, norm, model), (verify, status, steps, s.products + running)
        return SteihaugState(x, r, p, *numbers, s.threshold, s.inverse_radius, s.scale, *ends)

    def observe(self, state: SteihaugState) -> SteihaugRow:
        return SteihaugRow(state.norm * state.scale, state.model * state.scale * state.scale, abs(state.filled) ** 0.5)

    def answer(self, ops: Backend, problem: LinearProblem, state: SteihaugState) -> Vector:
        x = state.x
        if problem.preconditioner is None:  # else its norm is known from the recurrence alone, up to its rounding
            square = ops.dot(x, x)
            share = ops.sqrt(square) * state.inverse_radius
            beyond = (share > 1.0) & (share < 1.01) & (square > ops.eps(x) ** 4)  # by rounding, and no square is lost
            x = ops.scale(ops.where(beyond, ops.divide(1.0, share), 1.0), x)
        return ops.scale(state.scale, x)
