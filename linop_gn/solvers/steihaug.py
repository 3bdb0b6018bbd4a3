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

As in CG, ``CONVERGED`` is a fact, and the residual told is that of x: one more
product recomputes it where the tolerance is claimed, or where rounding may have
taken the recurrence away (seen in the norms of M: all of it if M is diagonal).
A step so long that the rounding of A x exceeds b is tried before it is taken:
unless a product shows that it halves the residual, or leads to a boundary where
the model is lower, the run ends before it with ``NEGATIVE_CURVATURE``. A boundary
at which a product finds the model above that at zero is ``STAGNATED``, no success.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

from ..operators.base import LinearOperator
from ..protocols import Backend, Scalar, Vector
from ..records import record, static
from ..run.status import Code, alike, verdict
from .base import Cost, Solver, each, short_recurrence
from .options import (
    at_limit,
    begun_status,
    check_region,
    made_from,
    recomputed,
    scaled_rhs,
    threshold_of,
    unfit_status,
)
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
    size: Scalar
    """||b||, in the norm of M."""
    path: Scalar
    """Length of the path, at least ||x||, in the norm of M^-1."""
    room: Scalar
    """||b|| / (8 eps ||A||), for the largest ||A|| that has shown: the rounding of A x may exceed b if x is longer."""
    trial: Scalar
    """Length of a step along p that is to be verified before it is taken; 0 where there is none."""
    claim: Scalar
    """Status that waits for the residual to be recomputed at x + trial p; the next product is spent on it."""
    threshold: Scalar
    inverse_radius: Scalar
    scale: Scalar
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
        vectors = each(operator, 5 if self.steps is None else 4, 9)
        return short_recurrence(self, operator, self.planned(steps), self.steps is not None, vectors, 12.0)

    def init(self, ops: Backend, problem: LinearProblem) -> SteihaugState:
        b = problem.rhs
        r, scale, _, _, finite = scaled_rhs(ops, b)
        rr = ops.dot(r, r)
        norm = ops.sqrt(rr)
        z = problem.precondition(r)
        rz, p = (rr, ops.copy(r)) if z is r else (ops.dot(r, z), z)
        zero, none, radius = ops.scalar(0.0, b), ops.scalar(0, b), ops.scalar(ops.item(self.radius), b)
        threshold = threshold_of(ops, self, norm, scale, b)
        threshold = ops.maximum(threshold, ops.eps(b) ** 2 * norm)  # what is smaller is no residual of x
        code = ops.where(norm <= threshold, Code.CONVERGED, Code.RUNNING)
        status = begun_status(ops, self, r, z, rz, code, self.limit(problem))
        return SteihaugState(
            x=ops.zeros_like(b),
            r=r,
            p=p,
            rz=rz,
            **alike("length size", ops.sqrt(ops.where(rz > 0, rz, 0.0))),
            norm=norm,
            room=ops.scalar(math.inf, b),
            **alike("filled ahead model path trial", zero),
            threshold=threshold,
            inverse_radius=ops.divide(scale, radius + zero),
            scale=scale,
            status=ops.where(finite & (radius > zero), status, Code.NONFINITE_INPUT),
            **alike("claim steps products", none),
        )

    def step(self, ops: Backend, problem: LinearProblem, s: SteihaugState) -> SteihaugState:
        running, no = s.status == Code.RUNNING, ops.logical_not
        checking = running & (s.claim != Code.RUNNING)
        tried = checking & (s.trial != 0)
        (v,) = ops.branch(checking, lambda x, p: (ops.axpy(s.trial, p, ops.copy(x)),), lambda x, p: (p,), s.x, s.p)
        product = problem.operator.apply(v)
        curvature = ops.dot(s.p, product)
        known = ops.isfinite(curvature)
        moving, positive = (running ^ checking) & known, curvature > 0
        alpha = ops.where(tried, s.trial, ops.where(positive, ops.divide(s.rz, curvature), 0.0))

        # In shares of the radius: the full step, and the part of it that ends on the boundary.
        share, along = alpha * s.length * s.inverse_radius, ops.divide(s.ahead, s.length)
        filled = s.filled + share * (2.0 * along + share)
        leaves = moving & no(positive & (filled < 1.0))
        endless, outward = s.inverse_radius <= 0, s.claim == Code.BOUNDARY

        def edge() -> tuple[Scalar, Scalar]:
            """<x, x> / radius^2, and the step along p to the boundary; measured at x if the norm is the 2-norm."""
            before, ahead, length = s.filled, along, s.length
            if problem.preconditioner is None:
                y, length = ops.scale(s.inverse_radius, ops.copy(s.x)), ops.sqrt(ops.dot(s.p, s.p))
                before, ahead = ops.dot(y, y), ops.divide(ops.dot(y, s.p), length)
            rest = ops.maximum(1.0 - before, 0.0)
            reach = ops.divide(rest, ahead + ops.sqrt(ahead * ahead + rest))
            return before, ops.where(endless, 0.0, ops.divide(reach, length * s.inverse_radius))

        before, tau = ops.branch(leaves, edge, lambda: (s.filled, 0.0 * s.rz))
        over = leaves & (before > 1.0)
        inside = moving & no(leaves)
        stride = ops.where(inside | tried, alpha, ops.where(leaves, tau, 0.0))
        lower = s.model - stride * (s.rz - 0.5 * stride * curvature)
        far = stride * s.length
        drowns = moving & (far > s.room) & (far > 1e3 * s.path)

        def recur(r: Vector, product: Vector) -> tuple[Vector, Scalar, Scalar, Scalar]:
            return ops.axpy(-stride, product, r), lower, 0.0 * s.rz, moving & no(drowns)

        def replace(r: Vector, product: Vector) -> tuple[Vector, Scalar, Scalar, Scalar]:
            energy = ops.dot(v, product)
            true = ops.axpby(ops.divide(1.0, s.scale), problem.rhs, -1.0, product)
            gap, model = ops.subtract(true, r), -0.5 * energy - ops.dot(v, true)
            halved = ops.sqrt(ops.dot(true, true)) <= 0.5 * s.norm
            falls = ops.divide(s.model - model, far) > ops.divide(far * s.size, s.room)  # by more than its rounding
            taken = ops.where(outward, falls, halved & (ops.sqrt(ops.dot(gap, gap)) <= 1e-3 * s.norm))
            return true, model, ops.max_abs(v), tried & taken

        r, model, largest, taken = ops.branch(checking, replace, recur, s.r, product)
        z = problem.precondition(r)
        rr = ops.dot(r, r)
        rz = rr if z is r else ops.dot(r, z)
        norm = ops.sqrt(rr)
        sound, met = known & ops.isfinite(rr + rz), norm <= s.threshold
        moved = sound & taken
        within = inside | (tried & no(outward))
        onward = within & moved
        stride = ops.where(moved, stride, 0.0)
        (x,) = ops.branch(over, lambda x: (ops.scale(ops.divide(1.0, ops.sqrt(before)), x),), lambda x: (x,), s.x)
        x = ops.axpy(stride, s.p, x)
        steps = s.steps + moved
        end, code = steps >= self.limit(problem), Code.CONVERGED if self.steps is None else Code.COMPLETED

        beta = ops.where(onward, ops.divide(rz, s.rz), 0.0)
        root = ops.sqrt(ops.where(rz > 0, rz, 0.0))
        path = s.path + ops.where(moved, far, 0.0)
        most = s.size / (8.0 * ops.eps(r)) * ops.divide(alpha, 1.0 + beta)  # (1 + beta) / alpha <= ||A||
        room = ops.where(onward, ops.minimum(s.room, most), s.room)

        def judge() -> tuple[Scalar, ...]:
            fits, unfit = unfit_status(ops, largest, s.scale, r)
            status = verdict(
                ops,
                s.status,
                (running & no(sound), Code.NONFINITE),
                (tried & no(taken), Code.NEGATIVE_CURVATURE),
                (checking & (s.claim == Code.BOUNDARY) & no(model < 0), Code.STAGNATED),
                (checking & no(within | (s.claim == Code.CONVERGED)), s.claim),
                (checking & met, ops.where(fits, code, unfit)),
                (checking & no(within), Code.STAGNATED),
                (leaves, ops.where(endless, Code.NEGATIVE_CURVATURE, Code.BOUNDARY)),
                (within & (met | drowns), code),
                (within & no(rz > 0), Code.INDEFINITE_PRECONDITIONER),
                ((moving | within) & end, at_limit(self)),
            )
            unsure = drowns | over | (path > 2.0 * ops.eps(r) ** 0.5 * room) | (status == Code.CONVERGED)
            waiting = moving & sound & (status != Code.RUNNING) & unsure
            trial = ops.where(drowns, ops.where(inside, alpha, tau), 0.0)
            return ops.where(waiting, s.status, status), ops.where(waiting, status, 0 * s.status), trial

        ordinary = inside & moved & (rz > 0) & no(met | end)
        status, claim, trial = ops.branch(ordinary, lambda: (s.status, s.claim, s.trial), judge)
        p = ops.axpby(ops.where(onward, 1.0, 0.0), ops.mask(sound, z), ops.where(onward, beta, 1.0), s.p)
        ahead = ops.where(onward, beta * (s.ahead + share * s.length), s.ahead)
        length = ops.where(onward, root * ops.sqrt(1.0 + ops.divide(beta * s.length, root) ** 2), s.length)
        filled = ops.where(onward, filled, ops.where(moved & no(endless), 1.0, s.filled))
        told = moved | (checking & sound & no(tried))
        norm, model = ops.where(told, norm, s.norm), ops.where(told, model, s.model)
        numbers = (ops.where(onward, rz, s.rz), length, filled, ahead, norm, model)
        bounds, units = (s.size, path, room, trial, claim), (s.threshold, s.inverse_radius, s.scale)
        return SteihaugState(x, r, p, *numbers, *bounds, *units, status, steps, s.products + running)

    def observe(self, state: SteihaugState) -> SteihaugRow:
        return SteihaugRow(state.norm * state.scale, state.model * state.scale * state.scale, abs(state.filled) ** 0.5)

    def answer(self, ops: Backend, problem: LinearProblem, state: SteihaugState) -> Vector:
        return ops.scale(state.scale, state.x)

    def recomputed(self, ops: Any, problem: LinearProblem, x: Vector, row: Any) -> tuple[Any, int]:
        return recomputed(self, ops, problem, x, row)
