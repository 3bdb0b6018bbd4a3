"""What LSQR and LSMR share: the problem, the stopping rules, and how a run goes.

    minimise  ||A x - b||^2 + lambda ||x||^2

With r the residual of [A; sqrt(lambda) I] x = (b, 0), of norm
sqrt(||b - A x||^2 + lambda ||x||^2), Paige and Saunders' rules are::

    compatible       ||r|| <= btol ||b|| + atol ||A|| ||x||
    least squares    ||A^T (b - A x) - lambda x|| <= atol ||A|| ||r||
    ill-conditioned  cond(A) >= conlim, or 1 / eps

The second says that x is the least-squares solution of a system whose operator
differs from A by atol ||A||. Where cond(A) exceeds 1 / atol such an x may be far
from the solution, and leave much of a residual that could be zero.

||A|| is bounded from below by the largest norm of a column of the bidiagonal
matrix, damping included. (SciPy takes the Frobenius norm, which grows with every
step and loosens the rules.) The first two rules are held against norms that were
recomputed from x before they are reported, and hold for no x that is worse than
zero: SciPy's may, on the way from a start that is far out.

A run starts from ``x0`` as it is: one that is worse than zero may end so if it is
stopped early. Only CG takes the best multiple of its start.
"""

from __future__ import annotations

import math
from operator import truediv
from typing import Any, ClassVar, NamedTuple

from ..arguments import require_number
from ..operators.algebra import product
from ..operators.base import LinearOperator
from ..operators.damped import Damped
from ..protocols import Backend, Scalar, Vector, unchanged
from ..records import record, static
from ..run.status import Code, verdict
from .base import Cost, Solver, bytes_of, each
from .bidiagonal import Basis, tick
from .cg import CG
from .options import begun_status, check_limits, check_tolerances, scaled_rhs, scaled_start, unfit_status
from .problem import LinearProblem

__all__ = ["LeastSquares", "LeastSquaresState"]


class LeastSquaresState(NamedTuple):
    """x in units of ``scale`` over the basis' ascale (over 1 before there is one), residuals in units of ``scale``."""

    x: Vector
    basis: Basis
    rotation: Any
    """The method's own scalars."""
    directions: tuple[Vector, ...]
    norm: Scalar
    normal: Scalar
    model: Scalar
    anorm: Scalar
    cond: Scalar
    size: Scalar
    scale: Scalar
    verified: Scalar
    """||r|| at the best point whose residual was recomputed: by ||r||, or by ||A^T r|| where these are alike."""
    verified_normal: Scalar
    best: Any
    """That point, once there is one."""
    best_model: Scalar
    back: Scalar
    """Whether it is the answer, whose norms and model are told."""
    renew: Scalar
    """Whether the next tick recomputes the residual and starts anew from it."""
    status: Scalar
    steps: Scalar
    products: Scalar


class LeastSquaresRow(NamedTuple):
    """||r||, ||A^T (b - A x) - lambda x|| and (||r||^2 - ||b||^2) / 2 at each step."""

    residual: Scalar
    normal: Scalar
    model: Scalar


class _Numbers:
    """Arithmetic of Python's own scalars that asks nothing first: it raises where that of the eager backends is 0."""

    sqrt: ClassVar[Any] = math.sqrt
    divide: ClassVar[Any] = truediv
    minimum: ClassVar[Any] = min
    maximum: ClassVar[Any] = max


class _Seen(NamedTuple):
    """What a tick has computed when it turns out that it is not an ordinary one; what was not yet computed is None."""

    basis: Basis
    beta: Scalar
    sound: Scalar
    largest: Scalar
    turned: tuple[Any, ...] | None = None
    x: Vector | None = None
    directions: tuple[Vector, ...] = ()


@record
class LeastSquares(Solver):
    """The run of a method on a bidiagonalisation; subclasses give ``begin``, ``turn`` and ``move``."""

    damping: Scalar | None = None
    atol: Scalar = 1e-6
    btol: Scalar = 1e-6
    conlim: Scalar | None = 1e8
    max_steps: int | None = static(default=None)
    steps: int | None = static(default=None)

    minimises_model: ClassVar[bool] = False
    depth: ClassVar[int]
    """How many directions the recurrence needs."""
    square: ClassVar[bool] = False
    supports: ClassVar[frozenset[str]] = frozenset({"x0", "columns", "report"})

    def __post_init__(self) -> None:
        # data, with derivatives
        require_number(type(self).__name__, "damping", self.damping, optional=True)
        if isinstance(self.damping, (int, float)) and self.damping == 0:
            object.__setattr__(self, "damping", None)
        check_tolerances(self, "atol", "btol")
        check_tolerances(self, "conlim", optional=True)
        check_limits(self)

    def begin(self, ops: Backend, basis: Basis, beta: Scalar) -> Any:
        """The method's scalars at the start of a pass, from a residual of norm ``beta``."""
        raise NotImplementedError

    def turn(
        self, ops: Backend, numbers: Any, s: LeastSquaresState, basis: Basis, beta: Scalar, anorm: Scalar
    ) -> tuple[Any, ...]:
        """After a tick that extends the basis: rotation, factors, ||r||, ||A^T r||, decrease of ||r||^2, cond(A).

        ``numbers`` has the scalar arithmetic, and ``ops`` that of vectors. All of s is left as it is. The factors are
        those of ``move``; where all of them are zero x stays, and new directions start from the basis' v.
        """
        raise NotImplementedError

    def move(
        self, ops: Backend, x: Vector, directions: tuple[Vector, ...], basis: Basis, factors: Any
    ) -> tuple[Vector, tuple[Vector, ...]]:
        """x and directions after the step; consumes those before."""
        raise NotImplementedError

    def cost(self, operator: LinearOperator, steps: int) -> Cost:
        k, (m, n) = self.planned(steps), operator.shape
        of_n, of_m = bytes_of(operator, 1), bytes_of(operator, 1, operator.codomain)
        kept = (self.depth + 2 + (self.damping is not None) + int(each(operator, 0, 1))) * of_n + of_m
        more = each(operator, max(2 * of_m, of_m + 2 * of_n), max(2 * of_m + of_n, 3 * of_n))  # at a product
        memory = kept + int(more)
        return Cost(self.title, 2 * k + 1, memory, (4.0 * m + 8.0 * n) * k, f"{k} steps; J and J^T apart")

    def defect(self, operator: LinearOperator, rhs: Vector, x: Vector) -> Vector:
        """b - A x; with damping A^T (b - A x) - lambda x, which is zero at the answer."""
        r = super().defect(operator, rhs, x)
        return r if self.damping is None else operator.backend.axpy(-1.0 * self.damping, x, operator.T.apply(r))

    def tangent(self, operator: LinearOperator) -> tuple[LinearOperator, Solver]:
        """A and the solver itself; with damping A^T A + lambda I, which is regular for lambda > 0, and CG for it."""
        if self.damping is None:
            return operator, self
        ops, (m, n) = operator.backend, operator.shape
        normal: LinearOperator = product(operator.T, operator)
        if m < n and not ops.is_concrete(self.damping):  # singular should it turn out to be 0: no number then
            normal = ops.where(self.damping > 0, 1.0, math.nan) * normal
        elif m < n and not self.damping > 0:
            raise NotImplementedError(
                f"{self.title}: at a damping of 0, given as an array, a solution with more unknowns than equations has "
                "no derivative in the damping. Write damping=None for those of the solution of least norm."
            )
        rtol = ops.maximum(self.atol, 1e-14)
        return Damped(normal, self.damping), CG(rtol=rtol, max_steps=self.max_steps, steps=self.steps)

    def init(self, ops: Backend, problem: LinearProblem) -> LeastSquaresState:
        b, warm = problem.rhs, problem.x0 is not None
        u, scale, inverse, largest, finite = scaled_rhs(ops, b)
        size = ops.sqrt(ops.dot(u, u))
        space = problem.operator.domain
        x = ops.zeros(space.width, b) if space.layout is None else space.zeros(*b.shape[1:])
        if warm:
            x, finite = scaled_start(ops, problem.x0, inverse, largest, finite)
        elif problem.operator.domain.dtype != problem.operator.codomain.dtype:
            x = ops.cast(x, problem.operator.domain.dtype)
        code = ops.where(largest == 0, Code.CONVERGED, Code.RUNNING)
        status = begun_status(ops, self, u, u, size, code, self.limit(problem) or warm)
        nothing, none = ops.scalar(0.0, b), ops.scalar(0, b)
        t = None if self.damping is None else ops.zeros_like(x)
        basis = Basis(u, t, ops.zeros_like(x), nothing, nothing)
        directions, unknown = tuple([ops.zeros_like(x) for _ in range(self.depth)]), ops.scalar(math.inf, b)
        return LeastSquaresState(
            x, basis, self.begin(ops, basis, size), directions, size, ops.scalar(math.nan, b), nothing, nothing,
            nothing, size, scale, unknown, unknown, ops.shelf(1, x), nothing, ops.scalar(False, b),
            ops.scalar(True, b), ops.where(finite, status, Code.NONFINITE_INPUT), none, none,
        )  # fmt: skip

    def step(self, ops: Backend, problem: LinearProblem, s: LeastSquaresState) -> LeastSquaresState:
        if type(s.norm) is not float or s.status != Code.RUNNING or not (s.basis.ascale > 0 or problem.x0 is None):
            return self._tick(ops, problem, s)
        if s.renew is not False:
            return self._tick(ops, problem, s) if s.steps else self._began(ops, problem, s)
        # An ordinary tick where scalars are Python's: what _tick does where there is nothing to judge, in fewer calls.
        sigma = 0.0 if self.damping is None else self._sigma(ops, problem, s)
        seen = basis, beta, sound, _ = tick(ops, problem, s, sigma, False, False)
        anorm = max(s.anorm, math.sqrt(s.basis.alpha * s.basis.alpha + beta * beta))
        try:
            turned = self.turn(ops, _Numbers, s, basis, beta, anorm)
        except (ArithmeticError, ValueError):  # a zero, or a square that is out of range
            return self._tick(ops, problem, s, _Seen(*seen))
        rotation, factors, norm, normal, decrease, cond = turned
        if not (sound and norm + normal + cond < math.inf):
            return self._tick(ops, problem, s, _Seen(*seen))
        x, directions = self.move(ops, s.x, s.directions, basis, factors)
        eps, limit = ops.eps(x), self.limit(problem)
        if x.dtype is not problem.rhs.dtype:
            eps = max(eps, ops.eps(problem.rhs))
        atol, btol, most = self._bounds(ops, eps)
        image, steps, cond = anorm * math.sqrt(ops.dot(x, x)), s.steps + 1, max(s.cond, cond)
        usual = norm > btol * s.size + atol * image and normal > atol * anorm * norm and cond < most
        ends = steps == limit and self.steps is not None and not self._unsure(problem, s, norm, eps, image)
        if not (usual and (ends or steps < limit)):
            return self._tick(ops, problem, s, _Seen(*seen, turned, x, directions))
        return tuple.__new__(LeastSquaresState, (
            x, basis, rotation, directions, norm, normal, s.model - 0.5 * decrease, anorm, cond, *s[9:16], False,
            Code.COMPLETED if ends else s.status, steps, s.products + 2,
        ))  # fmt: skip

    def _began(self, ops: Backend, problem: LinearProblem, s: LeastSquaresState) -> LeastSquaresState:
        """The first tick from zero, where scalars are Python's: as _tick does it, on vectors known to be zero."""
        seen = _Seen(*tick(ops, problem, s, self._sigma(ops, problem, s), True, True))
        basis, beta, normal = seen.basis, seen.beta, seen.beta * seen.basis.alpha
        if not (seen.sound and normal > 0 and beta > self._bounds(ops, ops.eps(s.x))[1] * s.size):
            return self._tick(ops, problem, s, seen)
        first, *others = s.directions
        return s._replace(
            basis=basis, rotation=self.begin(ops, basis, beta), directions=(ops.axpy(1.0, basis.v, first), *others),
            norm=beta, normal=normal, verified=beta, verified_normal=normal, renew=False, products=s.products + 1,
        )  # fmt: skip

    def _unsure(self, problem: LinearProblem, s: LeastSquaresState, norm: Scalar, eps: float, image: Scalar) -> Scalar:
        """Whether ||r|| is recomputed at an end: fallen far below what was verified, or near rounding in A x."""
        return (norm < eps ** (0.5 if problem.x0 is None else 0.25) * s.verified) | (norm < 1e3 * eps * image)

    def _sigma(self, ops: Backend, problem: LinearProblem, s: LeastSquaresState) -> Scalar:
        """sqrt(lambda)."""
        if self.damping is None:
            return 0.0
        if type(self.damping) is type(s.scale) is float:
            return math.sqrt(self.damping)
        return ops.sqrt(ops.small(self.damping, problem.rhs) + 0.0 * s.scale)

    def _bounds(self, ops: Backend, eps: float) -> tuple[Scalar, Scalar, Scalar]:
        """atol, btol, and the condition number to stop at."""
        atol, btol = (eps, eps) if self.steps is not None else (self.atol, self.btol)
        if self.conlim is None or type(self.conlim) is float:
            return atol, btol, min(self.conlim or math.inf, 1.0 / eps)
        return atol, btol, ops.where(self.conlim > 0, ops.minimum(self.conlim, 1.0 / eps), 1.0 / eps)

    def _tick(
        self, ops: Backend, problem: LinearProblem, s: LeastSquaresState, seen: _Seen | None = None
    ) -> LeastSquaresState:
        """The next state, whatever there is to judge, from what was ``seen``."""
        running, fixed, no = s.status == Code.RUNNING, self.steps is not None, ops.logical_not
        renew = running & s.renew
        if seen is None:
            cold = ops.any(renew & (s.steps == 0)) if problem.x0 is None else False
            seen = _Seen(*tick(ops, problem, s, self._sigma(ops, problem, s), renew, cold))
        basis, beta, sound, largest = seen[:4]
        known = renew & sound
        moved = running & sound & no(s.renew)

        column = ops.sqrt(s.basis.alpha * s.basis.alpha + beta * beta)
        anorm = ops.where(moved, ops.maximum(s.anorm, column), s.anorm)
        x, directions, scaled = seen.x, seen.directions, s.basis.ascale > 0
        if moved is False:  # where work is eager: at a start, and after the end
            turned: tuple[Any, ...] = s.rotation, (), s.norm, s.normal, 0.0, s.cond
        else:
            turned = self.turn(ops, ops, s, basis, beta, anorm) if seen.turned is None else seen.turned
        after, factors, norm, normal, decrease, cond = turned
        if x is None:
            x = s.x
            if scaled is not True and problem.x0 is not None:  # else x is zero
                (x,) = ops.branch(no(scaled), lambda x: (ops.scale(basis.ascale, x),), unchanged, x)
            if moved is False:
                first, *others = s.directions  # written over: copies would be two vectors more
                directions = ops.axpby(1.0, basis.v, 0.0, first), *(ops.scale(0.0, other) for other in others)
            else:
                kept = [ops.where(moved, factor, 0.0) for factor in factors]
                x, directions = self.move(ops, x, s.directions, basis, kept)
        steps, products = s.steps + moved, s.products + 2 * running
        if problem.x0 is None:
            products = products - (renew & (s.steps == 0))
        cond, lower = ops.maximum(s.cond, cond), s.model - 0.5 * decrease

        eps, end = max(ops.eps(x), ops.eps(problem.rhs)), steps >= self.limit(problem)
        atol, btol, most = self._bounds(ops, eps)
        image = anorm * ops.sqrt(ops.dot(x, x))  # ||A|| ||x||

        best = s.verified, s.verified_normal, renew, s.best_model, s.back
        ordinary: tuple[Any, ...] = norm, normal, lower, cond, *best, renew, renew, s.status, *after

        def judge() -> tuple[Scalar, ...]:
            told = ops.where(known, beta, ops.where(moved, norm, s.norm))
            slope = ops.where(known, beta * basis.alpha, ops.where(moved, normal, s.normal))
            before = ops.where(s.steps > 0, s.norm, s.size)
            fell = ops.where(known, (before - told) * (before + told), ops.where(moved, decrease, 0.0))
            spread = ops.where(moved, cond, s.cond)
            useful = told <= (1.0 + math.sqrt(eps)) * s.size  # else x is worse than zero, and solves nothing
            compatible = useful & (told <= btol * s.size + atol * image)
            least = useful & (slope <= atol * anorm * told)
            met, ill = compatible | least, spread >= most
            # A start that solves A^T r = 0 exactly: there is nothing to compare with yet.
            found = known & (met | (useful & (slope == 0)))
            unsure = moved & (end | (met if fixed else ill)) & self._unsure(problem, s, told, eps, image)
            settled = (moved & no(unsure)) | (known & (s.steps > 0))
            over = (moved & end & no(unsure)) | (known & end)
            stuck = known & (s.steps > 0) & (told > 0.5 * s.verified) & (slope > 0.5 * s.verified_normal)
            if fixed:
                claims: Any = ((over | found | (settled & met), Code.COMPLETED),)
            else:
                ascale = ops.where(s.basis.ascale > 0, s.basis.ascale, 1.0)
                fits, unfit = unfit_status(ops, largest, ops.divide(s.scale, ascale), s.x)
                claims = (
                    (found & no(fits), unfit),
                    (found & compatible, Code.CONVERGED),
                    (found, Code.LEAST_SQUARES),
                    (stuck, Code.STAGNATED),
                    (settled & ill & no(met), Code.CONDITION_LIMIT),
                    (over & no(moved & met), Code.MAX_STEPS),
                )
            status = verdict(ops, s.status, (running & no(sound), Code.NONFINITE), *claims)
            # Zero is better than a start whose product is out of range, and than what was made of noise at A^T b = 0.
            lost = known & no(useful) if problem.x0 is None else running & no(sound) & (s.verified == math.inf)
            lost = lost & (status != Code.RUNNING)
            if moved is True or moved is False:
                rotation = after if moved else self.begin(ops, basis, beta)
            else:
                pairs = zip(after, self.begin(ops, basis, beta), strict=True)
                rotation = type(after)._make(ops.where(moved, new, first) for new, first in pairs)
            told, model = ops.where(lost, s.size, told), ops.where(lost, 0.0, s.model - 0.5 * fell)

            near = abs(told - s.verified) <= 0.1 * s.verified
            ahead = ops.where(near, slope - s.verified_normal, told - s.verified)  # of the best point
            better, behind = known & (ahead < 0), (status == Code.STAGNATED) | (status == Code.MAX_STEPS)
            back = running & behind & (ahead > 0)
            verified, verified_normal = ops.where(better, told, s.verified), ops.where(better, slope, s.verified_normal)
            best = verified, verified_normal, better, ops.where(better, model, s.best_model), back | s.back
            told, slope = ops.where(back, s.verified, told), ops.where(back, s.verified_normal, slope)
            model = ops.where(back, s.best_model, model)
            return told, slope, model, spread, *best, lost, moved & (met | unsure), status, *rotation

        # Of an ordinary step most need not be asked: an eager scalar operation takes a tenth of a microsecond.
        claimed = (norm <= btol * s.size + atol * image) | (normal <= atol * anorm * norm)
        usual = no(ops.any(no(moved & no(claimed | (cond >= most) | end))))
        (
            norm, normal, model, cond, verified, verified_normal, better, best_model, back, lost, again, status,
            *rotation,
        ) = ordinary if usual is True else ops.branch(usual, lambda: ordinary, judge)  # fmt: skip
        (x,) = ops.branch(lost, lambda x: (ops.zeros_like(x),), unchanged, x)
        kept = ops.put(s.best, 0 * steps, x, better)
        return LeastSquaresState(
            x, basis, type(after)._make(rotation), directions, norm, normal, model, anorm, cond, s.size, s.scale,
            verified, verified_normal, kept, best_model, back, again, status, steps, products,
        )  # fmt: skip

    def observe(self, state: LeastSquaresState) -> LeastSquaresRow:
        scale, ascale = state.scale, state.basis.ascale
        told = state.norm * scale, state.normal * scale * ascale, state.model * scale * scale
        return tuple.__new__(LeastSquaresRow, told)

    def answer(self, ops: Backend, problem: LinearProblem, state: LeastSquaresState) -> Vector:
        x = state.x if state.back is False else ops.select(state.back, ops.get(state.best, 0), state.x)
        return ops.scale(ops.divide(state.scale, state.basis.ascale), x)

    def recomputed(self, ops: Any, problem: LinearProblem, x: Vector, row: Any) -> tuple[Any, int]:
        b, scale, inverse, *_ = scaled_rhs(ops, problem.rhs)
        x = ops.scale(inverse, ops.copy(x))
        r = super().defect(problem.operator, b, x)
        slope, square = problem.operator.T.apply(r), ops.dot(r, r)
        if self.damping is not None:
            square = square + self.damping * ops.dot(x, x)
            slope = ops.axpy(-1.0 * self.damping, x, slope)
        told = ops.sqrt(square), ops.sqrt(ops.dot(slope, slope)), 0.5 * scale * (square - ops.dot(b, b))
        return LeastSquaresRow._make(scale * number for number in told), 2
