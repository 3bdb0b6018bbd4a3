"""Conjugate gradients for many dampings at once, without a basis: (A + sigma_j I) x_j = b.

The Krylov space of A + sigma I is that of A, and from x = 0 the residuals of
all the systems are multiples of one another, r_j = zeta_j r. So one run on the
*seed* system, that of the least damping, whose convergence is the slowest,
drives all: one product a step, and two vectors for each damping. Jegerlehner,
*Krylov space solvers for shifted linear systems* (1996); van der Vorst and
Melissen (1990); Frommer (2003). With alpha, beta of the seed and sigma relative
to its damping::

    1 / zeta' = (1 + sigma alpha) / zeta + (1 / zeta - 1 / zeta_before) alpha beta_before / alpha_before
    alpha_j = alpha zeta' / zeta        beta_j = beta (zeta' / zeta)^2

carried here as the ratio zeta' / zeta, which neither under- nor overflows. Since
alpha_j = ||r_j||^2 / p_j.(A + sigma_j I) p_j, each system knows by itself whether
its operator is positive definite, and goes on where the seed's is not.

The vectors x_j and p_j are combinations of the seed's residuals. These are kept
for some steps, and the coefficients beside them, so that what would be four passes
over all x_j and p_j at each step are two matrix products once in a while.

A system whose residual met the tolerance is left where it is. At the end each
is verified by a product of its own: ``CONVERGED`` is a fact. As in CG the
residual told is that of x, whatever the end: where rounding, 4 eps ||A|| ||x||,
may have taken the recurrence away from it, a product verifies it too; and a step
so long that the rounding of A x exceeds b is taken only if a product shows that
it meets the tolerance. Where ``krylov`` has room for its basis it takes no such
products, answers for dampings that were not known beforehand, and keeps its
accuracy by reorthogonalisation; this is for bases that don't fit. SciPy has
neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..arguments import require_plain
from ..operators.base import LinearOperator
from ..protocols import Array, Backend, Scalar, Vector, unchanged
from ..records import record, static
from ..run.status import Code, alike, verdict, where_new
from .base import Cost, Solver, bytes_of, each
from .options import at_limit, check_limits, check_tolerances, recomputed, scaled_rhs, threshold_of, unfit_status
from .problem import LinearProblem, Row

__all__ = ["MultiShiftCG", "MultiShiftState"]


class MultiShiftState(NamedTuple):
    """Vectors in units of ``scale``; scalars (m,) have an entry for each damping."""

    r: Vector
    """(n,): of the seed."""
    direction: Vector
    """(n,): of the seed."""
    block: Array
    """Rows: the residuals of the seed since x and p were made."""
    along: Array
    into: Array
    gone: Scalar
    left: Scalar
    count: Scalar
    """How many rows there are."""
    rr: Scalar
    alpha: Scalar
    beta: Scalar
    anorm: Scalar
    """||A|| of the seed, as far as it has shown."""
    zeta: Scalar
    """(m,)."""
    ratio: Scalar
    """(m,): of zeta to the one before."""
    residual: Scalar
    model: Scalar
    length: Scalar
    """(m,): ||p||."""
    path: Scalar
    """(m,): length of the path, at least ||x||."""
    steps: Scalar
    products: Scalar
    x: Vector
    """(n, m), and p: as they were when the block was last emptied; x_j and p_j are now::

        x + gone p + block^T along        left p + block^T into"""
    p: Vector
    held: Scalar
    """Whether the block was ever emptied: until then x and p stand for zeros."""
    size: Scalar
    """||b||."""
    trial: Scalar
    """(m,): length of a step that is to be verified before it is taken; 0 where there is none."""
    claim: Scalar
    """(m,): status that waits for a product that verifies it; ``RUNNING`` where the system's iterate still moves."""
    threshold: Scalar
    scale: Scalar
    phase: Scalar
    """The system to verify next, or -1 while steps are taken."""
    status: Scalar
    least: Scalar
    """The seed's damping."""
    shifts: Scalar
    """(m,): the dampings, from the seed's on."""


class _Seen(NamedTuple):
    """What a tick has computed when it turns out that it is not an ordinary one; what was not yet computed is None."""

    product: Vector
    curvature: Scalar
    r: Vector | None = None
    rr: Scalar = None


def _are_words(dampings: Any) -> bool:
    """Whether these are no numbers, of which NumPy would read some."""
    if isinstance(dampings, (np.ndarray, np.generic)):
        return dampings.dtype.kind not in "biuf"
    if isinstance(dampings, (int, float)):
        return False
    return not isinstance(dampings, Sequence) or any(isinstance(x, (str, bytes)) for x in (dampings, *dampings))


@record
class MultiShiftCG(Solver):
    """Conjugate gradients for several dampings together; the solutions are the columns (n, m).

    Parameters
    ----------
    dampings
        sigma_1 .. sigma_m, in any order.
    rtol, atol
        A system has converged when ||b - (A + sigma I) x|| <= max(rtol ||b||, atol).
    max_steps
        Limit on steps; None means min(10 n, 10000).
    steps
        Run exactly so many steps for all, whatever the tolerances.

    ``solution.status`` is a list, ``steps``, ``residual`` and ``model`` are arrays (m,); ``products`` is a total:
    one a step, and one for each system that is verified. Trees get a trailing axis of m.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Diagonal(np.array([1.0, 3.0]))
    >>> lg.solve(A, np.ones(2), lg.MultiShiftCG(dampings=[0.0, 1.0], rtol=1e-10)).x.round(9)
    array([[1.        , 0.5       ],
           [0.33333333, 0.25      ]])
    """

    dampings: Any = (0.0,)
    rtol: Scalar = 1e-5
    atol: Scalar = 0.0
    max_steps: int | None = static(default=None)
    steps: int | None = static(default=None)

    symmetric: ClassVar[bool] = True
    supports: ClassVar[frozenset[str]] = frozenset({"columns", "report"})  # columns of b are refused
    solves_system: ClassVar[bool] = False  # but one for each damping
    minimises_model: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_tolerances(self, "rtol", "atol")
        check_limits(self)
        require_plain(type(self.dampings))
        if not hasattr(self.dampings, "shape") or isinstance(self.dampings, (np.generic, np.ndarray)):
            try:
                given = np.atleast_1d(np.asarray(None if _are_words(self.dampings) else self.dampings, dtype=float))
            except (TypeError, ValueError):
                return  # traced numbers among them
            if given.ndim != 1 or given.size == 0 or not np.isfinite(given).all():
                raise ValueError(
                    f"MultiShiftCG: dampings must be one or several finite numbers, got {self.dampings!r}."
                )
            object.__setattr__(self, "dampings", given)

    def cost(self, operator: LinearOperator, steps: int) -> Cost:
        k, n, m = self.planned(steps), operator.domain.size, np.size(self.dampings)
        held = each(operator, 2 * m + 5, 4.5 * m + 2)
        memory, flops = bytes_of(operator, held + _room(m, k)), (10.0 + 6.0 * m) * n * k
        return Cost(self.title, k if self.steps is not None else k + m, memory, flops, f"{k} steps for {m} dampings")

    def defect(self, operator: LinearOperator, rhs: Vector, x: Vector) -> Vector:
        """b - (A + sigma_j I) x_j, the columns."""
        ops = operator.backend
        made: Vector = ops.axpy(ops.small(self.dampings, rhs), x, operator.apply(x))
        return ops.namespace().reshape(rhs, (-1, 1)) - made

    def _dampings(self, ops: Backend, like: Vector) -> Array:
        return ops.small_namespace().reshape(ops.small(self.dampings, like), (-1,))

    def init(self, ops: Backend, problem: LinearProblem) -> MultiShiftState:
        b = problem.rhs
        if len(b.shape) != 1:
            raise ValueError(
                "MultiShiftCG takes one right-hand side, a tree or flat (n,), whose solutions for the dampings are "
                "columns."
            )
        shifts = self._dampings(ops, b)
        least = ops.small_namespace().min(shifts)
        r, scale, _, _, finite = scaled_rhs(ops, b)
        rr = ops.dot(r, r)
        norm = ops.sqrt(rr)
        x, p = (ops.basis(b, shifts.shape[0]).T for _ in range(2))  # neither read nor written before
        one, room = ops.scalar(1.0, x), _room(shifts.shape[0], self.limit(problem))
        nothing = ops.table(room, one)
        threshold = threshold_of(ops, self, norm, scale, b)
        status = ops.scalar(Code.RUNNING if self.limit(problem) else at_limit(self), x)
        status = ops.where((norm <= threshold) & (one > 0), Code.CONVERGED, status)
        return MultiShiftState(
            x=x,
            p=p,
            held=ops.scalar(False, b),
            block=ops.store(ops.basis(b, room), 0, 1.0, r),
            count=ops.scalar(1, b),
            along=nothing,
            into=ops.write(ops.table(room, one), 0, one),
            r=r,
            direction=ops.copy(r),
            rr=rr,
            alpha=ops.scalar(1.0, b),
            beta=ops.scalar(0.0, b),
            **alike("zeta ratio", one),
            residual=norm * one,
            **alike("model path trial gone left", 0.0 * one),
            length=norm * one,
            size=norm,
            anorm=ops.scalar(0.0, b),
            threshold=threshold,
            scale=scale,
            phase=ops.scalar(-1, b),
            status=ops.where(finite & (one > 0), status, Code.NONFINITE_INPUT),
            **alike("claim steps", ops.scalar(0, x)),
            products=ops.scalar(0, b),
            least=ops.item(least),
            shifts=shifts - least,
        )

    def step(self, ops: Backend, problem: LinearProblem, s: MultiShiftState) -> MultiShiftState:
        if type(s.rr) is not float or s.phase >= 0 or s.products + 1 >= self.limit(problem):
            return self._tick(ops, problem, s)
        # An ordinary tick where scalars are Python's and NumPy's: what _tick does where there is nothing to judge.
        all_move = not (np.count_nonzero(s.status) or np.count_nonzero(s.claim))
        moving: Any = True if all_move else (s.status == Code.RUNNING) & (s.claim == Code.RUNNING)
        if not (all_move or moving.any()):
            return self._tick(ops, problem, s)
        direction = s.direction
        product = problem.operator.apply(direction)
        product = ops.axpy(s.least, direction, product) if s.least else product
        curvature = ops.dot(direction, product)
        alpha = ops.divide(s.rr, curvature)
        if not (alpha and s.rr > 0 and math.isfinite(curvature)):
            return self._tick(ops, problem, s, _Seen(product, curvature))
        r = ops.axpy(-alpha, product, s.r)
        rr = ops.dot(r, r)
        seen, beta = _Seen(product, curvature, r, rr), rr / s.rr
        below = 1.0 + alpha * s.shifts + (alpha * s.beta / s.alpha) * (1.0 - s.ratio)
        if not all_move:
            below = np.where(moving, below, 1.0)
        if not math.isfinite(rr) or np.count_nonzero(below) < below.size:
            return self._tick(ops, problem, s, seen)
        ratio = 1.0 / below
        stride = alpha * ratio
        zeta, far, anorm = s.zeta * ratio, stride * s.length, max(s.anorm, (1.0 + beta) / alpha)
        norm, wide = abs(zeta) * math.sqrt(rr), far > 1e3 * s.path
        usual = (stride > 0.0) & (norm > s.threshold)
        if np.count_nonzero(wide):
            usual &= ~(wide & (8.0 * ops.eps(r) * (anorm + s.shifts) * far > s.size))
        if np.count_nonzero(usual if all_move else usual | ~moving) < usual.size:
            return self._tick(ops, problem, s, seen)
        turn = beta * ratio * ratio
        length, model = np.hypot(norm, turn * s.length), s.model - 0.5 * s.rr * stride * s.zeta * s.zeta
        fresh = zeta
        if not all_move:
            stride, far, turn, fresh = moving * stride, moving * far, np.where(moving, turn, 1.0), moving * zeta
            pairs = (zeta, s.zeta), (ratio, s.ratio), (norm, s.residual), (model, s.model), (length, s.length)
            zeta, ratio, norm, model, length = (np.where(moving, new, old) for new, old in pairs)
        s.along[: s.count] += stride * s.into[: s.count]
        gone = s.gone + stride * s.left if s.held else s.gone
        if s.count >= s.block.shape[0]:
            s = _emptied(ops, s._replace(gone=gone), True)
            gone = s.gone
        count, left, into = s.count, s.left * turn if s.held else s.left, s.into
        into[:count] *= turn
        into[count] = fresh
        return MultiShiftState._make((
            r, ops.axpby(1.0, r, beta, direction), ops.store(s.block, count, 1.0, r), s.along, into, gone, left,
            count + 1, rr, alpha, beta, anorm, zeta, ratio, norm, model, length, s.path + far, s.steps + moving,
            s.products + 1, *s[20:],
        ))  # fmt: skip

    def _tick(
        self, ops: Backend, problem: LinearProblem, s: MultiShiftState, seen: _Seen | None = None
    ) -> MultiShiftState:
        """The next state, whatever there is to judge, from what was ``seen``."""
        small = ops.small_namespace()
        shifts, least = s.shifts, s.least
        index = small.arange(shifts.shape[0])
        running, no = ops.any(s.status == Code.RUNNING), ops.logical_not
        checking = running & (s.phase >= 0)
        here = checking & (index == s.phase)

        def its(values: Array) -> Scalar:
            return ops.item(small.sum(small.where(index == s.phase, values, 0.0)))

        def its_own(d: Vector) -> tuple[Vector]:
            return (ops.axpy(its(s.trial), s.p[:, s.phase], ops.copy(s.x[:, s.phase])),)

        (v,) = ops.branch(checking, its_own, lambda d: (d,), s.direction)
        if seen is None:
            product = ops.axpy(ops.where(checking, its(self._dampings(ops, s.r)), least), v, problem.operator.apply(v))
            seen = _Seen(product, ops.dot(v, product))
        product, curvature = seen.product, seen.curvature
        known = ops.isfinite(curvature)
        good = running & no(checking) & known & (curvature != 0)
        alpha = ops.where(good, ops.divide(s.rr, curvature), 0.0)

        def replace(product: Vector) -> tuple[Scalar, Scalar]:
            true = ops.axpby(ops.divide(1.0, s.scale), problem.rhs, -1.0, ops.copy(product))
            return ops.sqrt(ops.dot(true, true)), -0.5 * curvature - ops.dot(v, true)

        true, value = ops.branch(checking, replace, lambda product: (0.0 * alpha, 0.0 * alpha), product)
        r, rr = seen.r, seen.rr
        if r is None:
            (r,) = ops.either(
                checking, lambda r, product: (r,), lambda r, product: (ops.axpy(-alpha, product, r),), s.r, product
            )
            rr = ops.dot(r, r)
        sound = known & ops.isfinite(rr + true)
        good = good & sound
        beta = ops.where(good, ops.divide(rr, s.rr), 0.0)
        anorm = ops.maximum(s.anorm, ops.divide(1.0 + beta, alpha))  # |Ap|^2 / p.Ap, if that is positive
        rounding = 8.0 * ops.eps(r) * (anorm + shifts)

        moving = (s.status == Code.RUNNING) & (s.claim == Code.RUNNING)
        below = 1.0 + shifts * alpha + ops.divide(alpha * s.beta, s.alpha) * (1.0 - s.ratio)
        ratio = ops.where(moving & good, ops.divide(1.0, below), s.ratio)
        stride = ops.where(here, s.trial, alpha * ratio)
        far = stride * s.length
        fine = moving & good & (stride > 0)  # stride = ||r_j||^2 / p_j.(A + sigma_j I) p_j, whatever the seed's
        drowns = fine & (far > 1e3 * s.path) & (rounding * far > s.size)
        moved, tried = fine & no(drowns), here & (s.trial != 0)
        taken = here & sound & (no(tried) | (true <= s.threshold))
        ratio, zeta = ops.where(moved, ratio, s.ratio), ops.where(moved, s.zeta * ratio, s.zeta)
        went = moved | (tried & taken)
        turn, stretch = ops.where(moved, beta * ratio * ratio, 1.0), ops.where(went, stride, 0.0)
        newest = ops.mask(sound, r)
        direction = ops.axpby(1.0, newest, ops.where(good, beta, 0.0), s.direction)

        norm = abs(zeta) * ops.sqrt(rr)
        length = ops.where(moved, ops.sqrt(norm * norm + (turn * s.length) ** 2), s.length)
        path = s.path + ops.where(went, far, 0.0)
        lower = s.model - 0.5 * stride * s.zeta * s.zeta * s.rr
        residual = ops.where(taken, true, ops.where(moved, norm, s.residual))
        model = ops.where(taken, value, ops.where(moved, lower, s.model))
        steps = s.steps + went
        met = residual <= s.threshold
        end = steps >= self.limit(problem)

        def judge() -> tuple[Scalar, ...]:
            fits, unfit = unfit_status(ops, ops.max_abs(v), s.scale, v)  # v is x where here
            status = verdict(
                ops,
                s.status,
                (here & no(sound), Code.NONFINITE),
                (tried & no(taken), Code.NEGATIVE_CURVATURE),
                (here & (s.claim != Code.CONVERGED), s.claim),
                (here, ops.where(met, ops.where(fits, Code.CONVERGED, unfit), Code.STAGNATED)),
                (moving & no(fine | checking), ops.where(sound, Code.NEGATIVE_CURVATURE, Code.NONFINITE)),
                (drowns | (moved & met), Code.CONVERGED if self.steps is None else Code.COMPLETED),
                (moved & end, at_limit(self)),
            )
            unsure = drowns | (rounding * path > 2.0 * ops.eps(r) ** 0.5 * s.size) | (status == Code.CONVERGED)
            waits = moving & sound & (status != Code.RUNNING) & unsure
            trial = ops.where(drowns, stride, s.trial)
            return ops.where(waits, s.status, status), ops.where(waits, status, s.claim), trial

        ordinary = no(checking | ops.any(moving & (no(moved) | met | end)))
        status, claim, trial = ops.branch(ordinary, lambda: (s.status, s.claim, s.trial), judge)
        # What waits for a product that verifies it gets one once no system moves.
        waiting = (status == Code.RUNNING) & (claim != Code.RUNNING)
        first = small.min(small.where(waiting, index, shifts.shape[0]))
        ahead = ops.any((status == Code.RUNNING) & no(waiting))
        verifying = no(ahead) & (first < shifts.shape[0])
        phase = ops.where(verifying, first, -1)
        s = s._replace(**where_new(ops, good, s, rr=rr, alpha=alpha, beta=beta, anorm=anorm))
        s = s._replace(gone=s.gone + stretch * s.left, along=s.along + stretch * s.into)
        s = _emptied(ops, s, (ahead & (s.count >= s.block.shape[0])) | (verifying & (s.count > 0)))
        s = _prolonged(ops, s, newest, ops.where(moved, zeta, 0.0), turn, good & ahead)
        s = s._replace(r=r, direction=direction, zeta=zeta, ratio=ratio, residual=residual, model=model)
        s = s._replace(length=length, path=path, trial=trial)
        return s._replace(claim=claim, phase=phase, status=status, steps=steps, products=s.products + running)

    def observe(self, state: MultiShiftState) -> Row:
        """For each damping ||b - (A + sigma I) x||_2 and 1/2 x.(A + sigma I) x - b.x, at each step."""
        return Row(state.residual * state.scale, state.model * state.scale * state.scale)

    def answer(self, ops: Backend, problem: LinearProblem, state: MultiShiftState) -> Vector:
        return ops.scale(state.scale, _solutions(ops, state))

    def recomputed(self, ops: Any, problem: LinearProblem, x: Vector, row: Any) -> tuple[Any, int]:
        return recomputed(self, ops, problem, x, row)


def _room(m: int, limit: int) -> int:
    """Rows of the block for m systems."""
    return max(1, min(limit, max(m, 8)))


def _solutions(ops: Backend, s: MultiShiftState) -> Vector:
    """x_j now; consumes s.x."""

    def onto(x: Vector) -> tuple[Vector]:
        return (ops.deflate(s.block, -s.along, ops.axpy(s.gone, s.p, x), s.count),)

    return ops.branch(s.held, onto, lambda x: (ops.combine(s.block, s.along, s.count),), s.x)[0]


def _emptied(ops: Backend, s: MultiShiftState, full: Scalar) -> MultiShiftState:
    """The state, with an empty block where it is ``full``.

    Where the other side is ``unchanged``, no compiler copies x and p at every step.
    """

    def empty(x: Vector, p: Vector, *_: Any) -> tuple[Any, ...]:
        x = _solutions(ops, s._replace(x=x, p=p))
        (p,) = ops.branch(
            s.held,
            lambda p: (ops.deflate(s.block, -s.into, ops.scale(s.left, p), s.count),),
            lambda p: (ops.combine(s.block, s.into, s.count),),
            p,
        )
        return x, p, 0.0 * s.along, 0.0 * s.into, 0.0 * s.gone, 0.0 * s.left + 1.0, 0 * s.count

    now = s.x, s.p, s.along, s.into, s.gone, s.left, s.count
    x, p, along, into, gone, left, count = ops.branch(full, empty, unchanged, *now)
    return s._replace(x=x, p=p, held=s.held | full, along=along, into=into, gone=gone, left=left, count=count)


def _prolonged(
    ops: Backend, s: MultiShiftState, r: Vector, zeta: Scalar, turn: Scalar, wanted: Scalar
) -> MultiShiftState:
    """The state with p_j <- zeta_j r + turn_j p_j, where wanted."""
    place = ops.minimum(s.count, s.block.shape[0] - 1)
    turn = ops.where(wanted, turn, 1.0)
    into = ops.write(turn * s.into, place, ops.where(wanted, zeta, ops.lookup(s.into, place)))
    block = ops.store(s.block, place, 1.0, ops.select(wanted, r, ops.row(s.block, place)))
    return s._replace(block=block, into=into, left=turn * s.left, count=s.count + wanted)
