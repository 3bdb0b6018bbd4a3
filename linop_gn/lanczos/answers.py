"""What a Lanczos basis answers, as pure functions on backend arithmetic: an outer method may call them in its step.

Each takes a *space*: anything with ``operator``, ``state`` (a
:class:`~linop_gn.lanczos.process.LanczosState`), ``start`` (q_0, where the
basis is not kept) and ``method``. Dampings, radii and tolerances are small
arrays and scalars in user's units.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..protocols import Array, Backend, Scalar, Vector
from ..records import record
from ..run.status import Code, Status
from ..solvers.options import unfit_status
from ..solvers.problem import LinearProblem
from .process import BasisProblem, not_definite
from .quadrature import gauss_rule, radau_rule
from .state import LanczosState, rounding, total
from .tridiagonal import Shifted, Spectrum, filled, lengths, shifted, spectrum, trust_region

__all__ = [
    "KrylovSteps",
    "QuadraticForm",
    "Ritz",
    "combined",
    "first_vector",
    "minimise",
    "residuals_and_models",
    "ritz",
    "ritz_vectors",
    "rule",
    "solve_shifted",
]


class Ritz(NamedTuple):
    """Ritz values, ascending, in user's units; an eigenvalue of A lies within the bound of each.

    ``bounds`` is beta_k times the last entry of T's eigenvector: a residual norm. Inside a compiled program there
    are as many entries as the basis has room for, with NaN where no vector was made.
    """

    values: Array
    bounds: Array


class QuadraticForm(NamedTuple):
    """b.f(A) b by quadrature; ``lower`` and ``upper`` are None where no interval was given."""

    estimate: Scalar
    lower: Scalar | None
    upper: Scalar | None


@record
class KrylovSteps:
    """Solutions for one damping or radius, or for m of them.

    Attributes
    ----------
    x
        In the format of b; for m of them with a trailing axis of m.
    damping
        sigma of (A + sigma I) x = b: what was asked for, or the multiplier that belongs to the radius.
    residual
        ||b - (A + sigma I) x||_2, from the basis; ||b|| where the solution is out of the dtype's range and x therefore
        zero (``STAGNATED`` where it underflows, ``NONFINITE`` where it overflows).
    model
        1/2 x.(A + sigma I) x - b.x for a damping, 1/2 x.A x - b.x for a radius.
    norm
        ||x||_2.
    used
        Basis vectors that x is made of: fewer than there are where A + sigma I is indefinite in the space.
    products
        Products that this answer took: 0, or those of the second pass where the basis was not kept.
    """

    x: Any
    code: Scalar
    damping: Scalar
    residual: Scalar
    model: Scalar
    norm: Scalar
    used: Scalar
    products: Scalar

    @property
    def _statuses(self) -> list[Status]:
        return [Status(int(code)) for code in np.atleast_1d(np.asarray(self.code))]

    @property
    def status(self) -> Any:
        """Why this is the answer: a :class:`~linop_gn.Status`, or a list of them."""
        return self._statuses if np.ndim(self.code) else self._statuses[0]

    @property
    def succeeded(self) -> bool:
        """Whether every status is a success."""
        return all(status.succeeded for status in self._statuses)

    def __repr__(self) -> str:
        columns = [np.atleast_1d(np.asarray(value, dtype=float)) for value in (self.damping, self.residual, self.norm)]
        lines = [f"{'damping':>12} {'residual':>12} {'norm':>12}  status"]
        for status, damping, residual, norm in zip(self._statuses, *columns, strict=True):
            lines.append(f"{damping:12.6g} {residual:12.6g} {norm:12.6g}  {status.name.lower()}")
        taken = int(np.asarray(self.products))
        lines.append(f"{taken} products" if taken else "No product was taken.")
        return "\n".join([*lines, *dict.fromkeys(status.sentence for status in self._statuses)])


def _parts(space: Any) -> tuple[Backend, Any, LanczosState, tuple[Array, Array]]:
    """The arithmetic, that of small arrays, the state, and T."""
    ops, s = space.operator.backend, space.state
    return ops, ops.small_namespace(), s, (s.alphas, s.betas)


def combined(space: Any, coefficients: Array) -> tuple[Vector, Scalar]:
    """The columns (n, m) that the coefficients (k, m) stand for, and the products taken."""
    ops, xp, s, _ = _parts(space)
    coefficients = filled(xp, coefficients, max(1, ops.leading(s.alphas, s.steps).shape[0]))
    if space.start is None:
        return ops.combine(s.basis, coefficients, s.steps), 0 * s.steps
    problem = ReplayProblem(space.operator, space.start, begun=s, coefficients=coefficients)
    state = ops.iterate(Replay(), problem)
    return state.total, state.steps


def first_vector(problem: LinearProblem, s: LanczosState) -> Vector:
    """q_0."""
    ops = problem.operator.backend
    sound = s.norm > 0
    r = ops.scale(ops.divide(1.0, s.scale), ops.mask(sound, ops.copy(problem.rhs)))
    return ops.scale(ops.where(sound, ops.divide(1.0, s.norm), 0.0), r)


def _outcome(
    space: Any, residual: Array, tolerances: tuple[Scalar, Scalar], h: Array, damping: Array, outside: Array
) -> Array:
    """Statuses of solutions, as far as they follow from the run and the residual.

    Beside the residual of the recurrence there is rounding: converged is what meets the tolerance with it. Where it is
    no small part of b, nothing is claimed, nor is where the solution was ``outside`` of the dtype's range.
    """
    ops, xp, s, _ = _parts(space)
    eps, (rtol, atol) = ops.eps(s.basis), tolerances
    threshold = ops.maximum(rtol * s.norm, atol / s.scale)
    shift, length = xp.abs(damping / s.ascale), lengths(ops, h)
    unknown = rounding(eps, s, shift, length)
    if "compiled" in ops.capabilities:  # where what is subnormal may be taken for zero, in each entry of x
        tiny = float(ops.namespace().finfo(s.basis.dtype).tiny) * s.basis.shape[1] ** 0.5
        least = tiny * ops.divide(s.ascale, s.scale)
        unknown = unknown + (s.size + shift) * xp.where(length > 0, least, 0.0)
    lost = unknown > ops.maximum(threshold, eps**0.5 * s.norm)
    residual = residual + unknown
    sound = (s.status == Code.COMPLETED) | (s.status == Code.INVARIANT) | (s.status == Code.CONVERGED) | (s.status == 0)
    rest = xp.where(outside != 0, outside, Code.COMPLETED)
    good = xp.where(lost, Code.STAGNATED, xp.where(residual <= threshold, Code.CONVERGED, rest))
    return xp.where(xp.asarray(sound), good, s.status)


def _answer(
    space: Any, h: Array, code: Array, damping: Array, residual: Array, model: Array, used: Array
) -> KrylovSteps:
    """The solutions that h (k, m) stands for; h and the residual are in the basis's units."""
    ops, xp, s, _ = _parts(space)
    unit, length = ops.divide(s.scale, s.ascale), lengths(ops, h)
    X, products = combined(space, xp.where(h == 0, 0.0, h * unit))
    residual = xp.where(code == Code.NONFINITE_INPUT, xp.nan, residual)  # nobody knows it
    residual = total(s, residual, length) * s.scale
    return KrylovSteps(X, code, damping, residual, model, xp.where(length == 0, 0.0, length * unit), used, products)


def _in_range(space: Any, h: Array, residual: Array, model: Array) -> tuple[Array, Array, Array, Array]:
    """(h, residual, model, 0); where x is out of range those of x = 0, and the status that belongs to it."""
    ops, xp, s, _ = _parts(space)
    unit, size, n = ops.divide(s.scale, s.ascale), lengths(ops, h), s.basis.shape[1]
    fits, unfit = unfit_status(ops, size, unit, s.basis)
    fits = fits & unfit_status(ops, size / n**0.5, unit, s.basis)[0]  # the largest entry lies between these
    h, residual, model = xp.where(fits, h, 0.0), xp.where(fits, residual, s.norm), xp.where(fits, model, 0.0)
    return h, residual, model, xp.where(fits, 0, unfit)


def _shifted(space: Any, dampings: Array) -> tuple[Shifted, Array]:
    """The solutions with T, the value of the model out of the basis's units; the status where they are out of range."""
    ops, xp, s, T = _parts(space)
    found = shifted(ops, T, s.first, s.norm, dampings / s.ascale, ops.eps(s.basis))
    model = found.model * s.scale * ops.divide(s.scale, s.ascale)
    h, residual, model, outside = _in_range(space, found.h, found.residual, model)
    used = xp.where(outside == 0, found.used, 0)
    return found._replace(h=h, residual=residual, model=model, used=used), outside


def solve_shifted(space: Any, dampings: Array, rtol: Scalar, atol: Scalar) -> KrylovSteps:
    """x of (A + damping I) x = b for each damping (m,)."""
    xp, (found, outside) = _parts(space)[1], _shifted(space, dampings)
    code = _outcome(space, found.residual, (rtol, atol), found.h, dampings, outside)
    code = xp.where(found.noisy & (code == Code.COMPLETED), Code.STAGNATED, code)
    # Of an operator that is known to be positive semi-definite, a negative pivot is rounding.
    kind = xp.where((dampings >= 0) & space.operator.psd, Code.STAGNATED, Code.NEGATIVE_CURVATURE)
    code = xp.where(found.negative & ((code == Code.COMPLETED) | (code == Code.CONVERGED)), kind, code)
    return _answer(space, found.h, code, dampings, found.residual, found.model, found.used)


def residuals_and_models(space: Any, dampings: Array) -> tuple[Array, Array]:
    """Of the same solutions."""
    ops, _, s, _ = _parts(space)
    found, _ = _shifted(space, dampings)
    return total(s, found.residual, lengths(ops, found.h)) * s.scale, found.model


def minimise(space: Any, radii: Array, rtol: Scalar, atol: Scalar) -> KrylovSteps:
    """The minimiser of 1/2 x.A x - b.x over ||x|| <= radius for each radius (m,)."""
    ops, xp, s, _ = _parts(space)
    count, norm = ops.maximum(s.steps, 1), ops.where(s.steps > 0, s.norm, 0.0)
    S = _spectrum(space)
    scaled = xp.maximum(radii * ops.divide(s.ascale, s.scale), xp.finfo(radii.dtype).tiny)
    found = trust_region(ops, S, norm, xp.where(xp.isfinite(radii), scaled, radii), ops.eps(s.basis))
    # Where there is no minimum, what conjugate gradients reached before they met negative curvature.
    zero = xp.zeros_like(radii)
    safe, _ = _shifted(space, zero)
    k = found.h.shape[0]
    h = xp.where(found.unbounded, filled(xp, safe.h, k), found.h)
    last = xp.sum(xp.where((xp.arange(k) == count - 1)[:, None], found.h, 0.0), axis=0)
    residual = xp.where(s.steps > 0, xp.abs(ops.lookup(s.betas, count - 1) * last), s.norm)
    residual = xp.where(found.unbounded, safe.residual, residual)
    reached = found.rate * s.scale * (found.length * ops.divide(s.scale, s.ascale))
    model = xp.where(found.unbounded, safe.model, reached)
    h, residual, model, outside = _in_range(space, h, residual, model)
    active = found.active & (outside == 0)
    code = _outcome(space, residual, (rtol, atol), h, zero, outside)
    code = xp.where((code == Code.STAGNATED) & active, Code.COMPLETED, code)  # large because the region is
    fine = (code == Code.COMPLETED) | (code == Code.CONVERGED)
    code = xp.where(fine & active, Code.BOUNDARY, code)
    code = xp.where(fine & found.unbounded, not_definite(space.operator), code)
    known = space.operator.psd | space.method.explored(ops, s, S, found.multiplier, rtol)
    code = xp.where((code == Code.CONVERGED) & ~known, Code.UNEXPLORED, code)
    multiplier = xp.where(found.unbounded | (outside != 0), 0.0, found.multiplier) * s.ascale
    used = xp.where(outside == 0, s.steps, 0)
    return _answer(space, h, code, multiplier, residual, model, used)


def _spectrum(space: Any) -> Spectrum:
    """Of T, which has one row at least."""
    ops, _, s, T = _parts(space)
    return spectrum(ops, T, ops.maximum(s.steps, 1))


def ritz(space: Any) -> tuple[Array, Array]:
    """Ritz values and their error bounds; NaN where a compiler keeps more."""
    (ops, xp, s, _), S = _parts(space), _spectrum(space)
    index = xp.arange(S.values.shape[0])
    last = xp.sum(xp.where((index == s.steps - 1)[:, None], S.vectors, 0.0), axis=0)
    bounds = xp.abs(ops.lookup(s.betas, ops.maximum(s.steps - 1, 0)) * last)
    inside = index < s.steps
    return xp.where(inside, S.values * s.ascale, xp.nan), xp.where(inside, bounds * s.ascale, xp.nan)


def ritz_vectors(space: Any) -> Array:
    """T's eigenvectors as columns."""
    return _spectrum(space).vectors


def rule(space: Any, end: Scalar | None = None) -> tuple[Array, Array]:
    """Nodes and weights for b.f(A) b, of Gauss, or of Gauss and Radau with a node at ``end``."""
    ops, _, s, T = _parts(space)
    count = ops.maximum(s.first, 1)
    nodes, weights = gauss_rule(ops, T, count) if end is None else radau_rule(ops, T, count, end / s.ascale)
    return nodes * s.ascale, weights * (s.norm * s.scale) ** 2


# The basis that was not kept, made again: one product for each vector after the first.


@record
class ReplayProblem(BasisProblem):
    """The sum of q_j c_j for coefficients c (k, m), from q_0, the right-hand side, and the T of the run ``begun``."""

    coefficients: Any = None


class ReplayState(NamedTuple):
    """The latest two vectors, and the combinations so far."""

    q: Vector
    older: Vector
    total: Vector
    status: Scalar
    steps: Scalar
    """Products taken."""


@record
class Replay:
    """The method; its state ends with ``total`` (n, m)."""

    def init(self, ops: Backend, problem: ReplayProblem) -> ReplayState:
        q = problem.rhs
        none = ops.scalar(0, q)
        status = ops.where(problem.begun.steps > 1, Code.RUNNING, Code.COMPLETED)
        return ReplayState(ops.copy(q), ops.zeros_like(q), self._outer(ops, problem, q, none), status, none)

    def _outer(self, ops: Backend, problem: ReplayProblem, q: Vector, j: Scalar) -> Vector:
        """q_j c_j (n, m): the combination of a basis of one vector."""
        one = ops.store(ops.basis(q, 1), 0, 1.0, q)
        return ops.combine(one, problem.coefficients[j, :][None, :], 1)

    def step(self, ops: Backend, problem: ReplayProblem, s: ReplayState) -> ReplayState:
        running, T = s.status == Code.RUNNING, problem.begun
        j = ops.where(running, s.steps, 0)
        alpha, beta = ops.lookup(T.alphas, j), ops.lookup(T.betas, j)
        before = ops.where(j > 0, ops.lookup(T.betas, ops.maximum(j - 1, 0)), 0.0)
        w = problem.operator.apply(s.q)
        w = ops.axpby(-before, s.older, ops.divide(1.0, T.ascale), w)
        w = ops.axpy(-alpha, s.q, w)
        w = ops.scale(ops.where(running, ops.divide(1.0, beta), 0.0), w)
        part = self._outer(ops, problem, w, j + 1)
        total = ops.axpy(ops.where(running, 1.0, 0.0), part, s.total)
        steps = s.steps + running
        return ReplayState(w, s.q, total, ops.where(steps + 1 >= T.steps, Code.COMPLETED, s.status), steps)

    def observe(self, state: ReplayState) -> Any:
        return ()

    def answer(self, ops: Backend, problem: ReplayProblem, state: ReplayState) -> Any:
        return state.total
