"""The Neumann series: an inverse from products alone, with one length for all steps.

For symmetric A with eigenvalues in (0, 2 / alpha),

    A^-1 b = alpha sum_j (I - alpha A)^j b,

and the sum of k terms is Richardson's iteration after k steps from zero::

    x <- x + alpha r        r <- b - A x = (I - alpha A) r

It needs more products than :class:`~linop_gn.CG`, about kappa for CG's sqrt(kappa) of a condition number kappa. But of
a fixed number of terms x is *linear* in b, by a symmetric positive definite matrix, (I - (I - alpha A)^k) A^-1: that is
what hypergradients take for A^-1 (Lorraine, Vicol and Duvenaud, *Optimizing millions of hyperparameters by implicit
differentiation*, 2020), and what can stand as an operator where CG's answer, which is not linear, cannot.

Where alpha is left out it is 1 over a bound of the largest eigenvalue, theta + ||A v - theta v|| for v after some power
iterations from a vector that does not depend on b, and theta = v.A v. For 14 spectra of up to 10^6 eigenvalues it was
.67 to 1.1 times the largest, the least where one eigenvalue is 1.5 times all others. Above 1/2 the series converges.

With alpha as it must be the residual never grows. So where it does, by more than rounding, that is a proof that alpha
is too large or A not definite, and the run ends. It is b - A x itself, a product a step.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from ..arguments import require_number
from ..draws import normal
from ..operators.base import LinearOperator
from ..protocols import Backend, Scalar, Vector
from ..records import record, static
from ..run.status import Code, verdict
from .base import Cost, Solver, bytes_each, each, short_recurrence
from .options import (
    at_limit,
    check_limits,
    check_tolerances,
    recomputed,
    scaled_rhs,
    scaled_start,
    threshold_of,
    unfit_status,
)
from .problem import LinearProblem, Row

__all__ = ["Neumann"]

_POWER = 16
"""Power iterations for the length of a step."""
_LIMIT = 1000
"""Steps at most, unless a number is given: unlike CG's they have nothing to do with that of the unknowns."""


class NeumannState(NamedTuple):
    """x, r and their numbers are in units of ``scale``."""

    x: Vector
    r: Vector
    seek: Any
    """The vector of the power iterations, of length one; None where alpha is given."""
    norm: Scalar
    model: Scalar
    least: Scalar
    """The smallest norm so far."""
    whole: Scalar
    """||b||."""
    threshold: Scalar
    alpha: Scalar
    before: Scalar
    """Products that are left before the first step: that with a start, then power iterations."""
    scale: Scalar
    status: Scalar
    steps: Scalar
    products: Scalar


@record
class Neumann(Solver):
    """The Neumann series, alpha sum_j (I - alpha A)^j b for A^-1 b: Richardson's iteration. A is to be definite.

    Parameters
    ----------
    rtol, atol
        Converged when ||b - A x||_2 <= max(rtol ||b||_2, atol), recomputed from x at every step.
    max_steps
        Limit on steps; None means 1000.
    steps
        Terms: exactly so many, ignoring the tolerances, unless the residual is down to rounding. x is then linear in b.
        The status is ``COMPLETED``.
    scale
        alpha, below 2 over the largest eigenvalue. None: 1 over a bound of that, by 16 products before the first step.

    Notes
    -----
    Where the residual grows, the run ends as ``RESIDUAL_GROWS``, which is no success, also with ``steps=``.

    >>> import numpy as np, linop_gn as lg
    >>> A, b = lg.Diagonal(np.array([1.0, 2.0, 3.0])), np.ones(3)
    >>> lg.solve(A, b, lg.Neumann(rtol=1e-8))
    Neumann: converged after 45 steps, 61 products; residual ...
    The tolerance was met.
    >>> inverse = lg.inverse(A, lg.Neumann(steps=4, scale=0.4))
    >>> inverse @ b, (1 - (1 - 0.4 * A.values) ** 4) / A.values
    (array([0.8704, 0.4992, 0.3328]), array([0.8704, 0.4992, 0.3328]))
    >>> lg.solve(A, b, lg.Neumann(scale=1.0)).status.name
    'RESIDUAL_GROWS'
    """

    rtol: Scalar = 1e-5
    atol: Scalar = 0.0
    max_steps: int | None = static(default=None)
    steps: int | None = static(default=None)
    scale: Scalar | None = None

    symmetric: ClassVar[bool] = True
    supports: ClassVar[frozenset[str]] = frozenset({"x0", "columns", "blocks", "report"})

    def __post_init__(self) -> None:
        check_tolerances(self, "rtol", "atol")
        check_tolerances(self, "scale", optional=True)
        require_number("Neumann", "scale", self.scale, positive=True, optional=True)
        check_limits(self)

    def limit(self, problem: LinearProblem) -> int:
        """The steps that a run may take."""
        return min(self.planned(_LIMIT), 2**31 - 1)

    def cost(self, operator: LinearOperator, steps: int) -> Cost:
        seeking = _POWER if self.scale is None else 0
        drawn = 5 + 40 / bytes_each(operator)  # of 32 bits are the numbers that become the first vector
        held = each(operator, drawn, 8) if seeking else each(operator, 4, 6)
        made = short_recurrence(self, operator, self.planned(steps), True, held, 10.0)
        return made._replace(products=made.products + seeking)

    def init(self, ops: Backend, problem: LinearProblem) -> NeumannState:
        b, seek = problem.rhs, None
        r, scale, inverse, largest, finite = scaled_rhs(ops, b)
        whole, x, before = ops.sqrt(ops.dot(r, r)), ops.zeros_like(b), int(problem.x0 is not None)
        if problem.x0 is not None:
            x, finite = scaled_start(ops, problem.x0, inverse, largest, finite)
        if self.scale is None and self.limit(problem):
            seek, before = _first(ops, problem), before + _POWER
        threshold = threshold_of(ops, self, whole, scale, b)
        done = Code.CONVERGED if self.steps is None else Code.COMPLETED
        none = ops.scalar(0, b)
        status = verdict(
            ops,
            ops.scalar(Code.RUNNING if self.limit(problem) or before else at_limit(self), b),
            (ops.logical_not(finite), Code.NONFINITE_INPUT),
            (largest == 0, Code.CONVERGED),
            ((whole <= threshold) & (problem.x0 is None), done),
        )
        return NeumannState(
            x=x,
            r=r,
            seek=seek,
            norm=whole,
            model=ops.scalar(0.0, b),
            least=whole,
            whole=whole,
            threshold=threshold,
            alpha=ops.scalar(0.0, b) + (0.0 if self.scale is None else self.scale),
            before=none + before,
            scale=scale,
            status=status,
            steps=none,
            products=none,
        )

    def step(self, ops: Backend, problem: LinearProblem, s: NeumannState) -> NeumannState:
        no, running, warm = ops.logical_not, s.status == Code.RUNNING, problem.x0 is not None
        first = warm + (0 if s.seek is None else _POWER)
        starting = running & warm & (s.before == first)
        seeking, moving = running & (s.before > 0) & no(starting), running & (s.before <= 0)
        x = ops.axpy(ops.where(moving, s.alpha, 0.0), s.r, s.x)
        v = x if s.seek is None else ops.select(seeking, s.seek, x)
        product = problem.operator.apply(v)
        energy = ops.dot(v, product)

        seek, alpha, fault = s.seek, s.alpha, 0 * s.status
        if s.seek is not None:
            seek, alpha, fault = ops.branch(
                seeking,
                lambda v, product: _longer(ops, energy, ops.copy(product)),
                lambda v, product: (v, s.alpha, 0 * s.status),
                s.seek,
                product,
            )
        fault = ops.where(seeking, fault, Code.RUNNING)
        r = ops.axpby(ops.divide(1.0, s.scale), problem.rhs, -1.0, product)
        norm, model = ops.sqrt(ops.dot(r, r)), -0.5 * energy - ops.dot(x, r)
        sound = ops.isfinite(norm + model)
        moved = moving & sound
        good = moved
        if warm:  # a start that is worse than zero, or has no product, is given up
            good = moved | (starting & sound & (norm <= s.whole))
            x = ops.mask(no(starting & no(good)), x)
        r = ops.select(good, r, s.r)
        norm, model = ops.where(good, norm, s.norm), ops.where(good, model, s.model)
        steps, least = s.steps + moved, ops.minimum(s.least, norm)

        def go_on(x: Vector) -> tuple[Any, ...]:
            return x, norm, model, s.status

        def judge(x: Vector) -> tuple[Any, ...]:
            x = ops.axpy(ops.where(moving & no(sound), -s.alpha, 0.0), r, x)  # r is what it was
            end = steps >= self.limit(problem)
            floor = 8.0 * ops.eps(x) * ops.divide(ops.sqrt(ops.dot(x, x)), s.alpha)  # rounding in A x
            fits, unfit = unfit_status(ops, ops.max_abs(x), s.scale, x)
            met, drowned = good & (norm <= s.threshold), norm <= floor
            grown = moved & no(drowned) & (norm > ops.where(end, 1.01, 2.0) * s.least)
            status = verdict(
                ops,
                s.status,
                (moving & no(sound), Code.NONFINITE),
                (fault != Code.RUNNING, fault),
                (met & no(fits), unfit),
                (met, Code.CONVERGED if self.steps is None else Code.COMPLETED),
                (grown, Code.RESIDUAL_GROWS),
                (moved & drowned & no(norm < s.norm), Code.STAGNATED if self.steps is None else Code.COMPLETED),
                ((moved | starting) & end, at_limit(self)),
            )
            lost = grown & (norm > s.whole)
            told = ops.where(lost, s.whole, norm), ops.where(lost, 0.0, model)
            return ops.mask(no(lost), x), *told, status

        quiet = (s.status == Code.RUNNING) & (steps < self.limit(problem)) & (norm > s.threshold)
        quiet = quiet & ops.where(moving, moved & (norm < s.norm), fault == Code.RUNNING)
        x, norm, model, status = ops.branch(quiet, go_on, judge, x)
        before = ops.maximum(s.before - running, 0)
        found, known_of_b = (x, r, seek, norm, model, least), (s.whole, s.threshold)
        return NeumannState(*found, *known_of_b, alpha, before, s.scale, status, steps, s.products + running)

    def observe(self, state: NeumannState) -> Row:
        return Row(state.norm * state.scale, state.model * state.scale * state.scale)

    def answer(self, ops: Backend, problem: LinearProblem, state: NeumannState) -> Vector:
        return ops.scale(state.scale, state.x)

    def recomputed(self, ops: Any, problem: LinearProblem, x: Vector, row: Any) -> tuple[Any, int]:
        return recomputed(self, ops, problem, x, row)


def _first(ops: Backend, problem: LinearProblem) -> Vector:
    """A random vector of length one, the same for every b; a copy for each column."""
    b, space = problem.rhs, problem.operator.domain
    v = normal(space, 0, 1)[:, 0]
    if len(b.shape) > 1:
        v = ops.namespace().broadcast_to(v[:, None], tuple(b.shape))
    v = ops.copy(v)
    return ops.scale(ops.divide(1.0, ops.sqrt(ops.dot(v, v))), v)


def _longer(ops: Backend, theta: Scalar, w: Vector) -> tuple[Vector, Scalar, Scalar]:
    """(w / ||w||, 1 over the bound, a fault or RUNNING), of w = A v and theta = v.A v for ||v|| = 1. Consumes w."""
    unit = ops.power_of_two(ops.max_abs(w), w)
    w = ops.scale(ops.divide(1.0, unit), w)
    square, theta = ops.dot(w, w), ops.divide(theta, unit)
    length = ops.sqrt(square)
    rest = ops.sqrt(ops.maximum(square - theta * theta, 0.0))
    fault = verdict(
        ops,
        0 * ops.scalar(Code.RUNNING, w),
        (ops.logical_not(ops.isfinite(square + theta)), Code.NONFINITE),
        (length == 0, Code.SINGULAR),
        (theta < -8.0 * ops.eps(w) * length, Code.NEGATIVE_CURVATURE),
    )
    alpha = ops.divide(ops.divide(1.0, theta + rest), unit)
    return ops.scale(ops.divide(1.0, length), ops.mask(fault != Code.NONFINITE, w)), alpha, fault
