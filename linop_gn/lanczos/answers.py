"""What a Lanczos basis answers, as pure functions on backend arithmetic: an outer method may call them in its step.

Each takes a *space*: anything with ``operator``, ``state`` (a
:class:`~linop_gn.lanczos.process.LanczosState`), ``start`` (q_0, where the
basis is not kept) and ``method``. Dampings, radii and tolerances are small
arrays and scalars in user's units.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..operators.base import LinearOperator
from ..protocols import Array, Backend, Scalar, Vector
from ..records import record
from ..run.status import Code, Status
from ..solvers.problem import LinearProblem
from .process import LanczosState, rounding, total
from .quadrature import gauss_rule, radau_rule
from .tridiagonal import Spectrum, filled, lengths, shifted, spectrum, trust_region

__all__ = [
    "KrylovSteps",
    "QuadraticForm",
    "Ritz",
    "combined",
    "first_vector",
    "gauss",
    "minimise",
    "radau",
    "residuals_and_models",
    "ritz",
    "ritz_vectors",
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
        ||b - (A + sigma I) x||_2, from the basis.
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
    def status(self) -> Any:
        """Why this is the answer: a :class:`~linop_gn.Status`, or a list of them."""
        codes = np.asarray(self.code)
        return Status(int(codes)) if codes.ndim == 0 else [Status(int(code)) for code in codes]

    @property
    def succeeded(self) -> bool:
        """Whether every status is a success."""
        statuses = self.status if isinstance(self.status, list) else [self.status]
        return all(status.succeeded for status in statuses)

    def __repr__(self) -> str:
        statuses = self.status if isinstance(self.status, list) else [self.status]
        columns = [np.atleast_1d(np.asarray(value, dtype=float)) for value in (self.damping, self.residual, self.norm)]
        lines = [f"{'damping':>12} {'residual':>12} {'norm':>12}  status"]
        for status, damping, residual, norm in zip(statuses, *columns, strict=True):
            lines.append(f"{damping:12.6g} {residual:12.6g} {norm:12.6g}  {status.name.lower()}")
        taken = int(np.asarray(self.products))
        lines.append(f"{taken} products" if taken else "No product was taken.")
        return "\n".join([*lines, *dict.fromkeys(status.sentence for status in statuses)])


def _T(s: LanczosState) -> tuple[Array, Array]:
    return s.alphas, s.betas


def _rows(ops: Any, s: LanczosState) -> tuple[Scalar, Scalar]:
    """How many rows of T there are, at least one, and the norm of b, 0 where nothing was computed."""
    return ops.maximum(s.steps, 1), ops.where(s.steps > 0, s.norm, 0.0)


def _eps(space: Any) -> float:
    made: float = space.operator.backend.eps(space.state.basis)
    return made


def combined(space: Any, coefficients: Array) -> tuple[Vector, Scalar]:
    """The columns (n, m) that the coefficients (k, m) stand for, and the products taken."""
    ops, s = space.operator.backend, space.state
    coefficients = filled(ops.small_namespace(), coefficients, max(1, ops.leading(s.alphas, s.steps).shape[0]))
    if space.start is None:
        return ops.combine(s.basis, coefficients, s.steps), 0 * s.steps
    problem = ReplayProblem(space.operator, space.start, s.alphas, s.betas, s.unit, coefficients, s.steps)
    state = ops.iterate(Replay(), problem)
    return state.total, state.products


def first_vector(problem: LinearProblem, s: LanczosState) -> Vector:
    """q_0."""
    ops = problem.operator.backend
    sound = s.norm > 0
    r = ops.scale(ops.divide(1.0, s.scale), ops.mask(sound, ops.copy(problem.rhs)))
    return ops.scale(ops.where(sound, ops.divide(1.0, s.norm), 0.0), r)


def _outcome(space: Any, residual: Array, threshold: Scalar, h: Array, damping: Array) -> Array:
    """Statuses of solutions, as far as they follow from the run and the residual.

    Beside the residual of the recurrence there is rounding: converged is what meets the tolerance with it. Where it is
    no small part of b, nothing is claimed.
    """
    ops, s = space.operator.backend, space.state
    xp, eps = ops.small_namespace(), _eps(space)
    unknown = rounding(eps, s, xp.abs(damping / s.unit), lengths(ops, h))
    lost = unknown > ops.maximum(threshold, eps**0.5 * s.norm)
    residual = residual + unknown
    sound = (s.status == Code.COMPLETED) | (s.status == Code.INVARIANT) | (s.status == Code.CONVERGED) | (s.status == 0)
    good = xp.where(lost, Code.STAGNATED, xp.where(residual <= threshold, Code.CONVERGED, Code.COMPLETED))
    return xp.where(xp.asarray(sound), good, s.status)


def _answer(
    space: Any, h: Array, code: Array, damping: Array, residual: Array, model: Array, used: Array
) -> KrylovSteps:
    """The solutions that h (k, m) stands for; h and the residual are in the basis's units."""
    ops, s = space.operator.backend, space.state
    xp = ops.small_namespace()
    factor = ops.divide(s.scale, s.unit)
    norm = lengths(ops, h) * factor
    X, products = combined(space, h * factor)
    most = float(ops.namespace().finfo(s.basis.dtype).max)
    code = xp.where(norm <= most, code, Code.NONFINITE)
    residual = xp.where(code == Code.NONFINITE_INPUT, xp.nan, residual)  # nobody knows it
    return KrylovSteps(
        x=X,
        code=code,
        damping=damping,
        residual=total(s, residual, norm / factor) * s.scale,
        model=model,
        norm=norm,
        used=used,
        products=products,
    )


def _threshold(space: Any, rtol: Scalar, atol: Scalar) -> Scalar:
    ops, s = space.operator.backend, space.state
    return ops.maximum(rtol * s.norm, atol / s.scale)


def solve_shifted(space: Any, dampings: Array, rtol: Scalar, atol: Scalar) -> KrylovSteps:
    """x of (A + damping I) x = b for each damping (m,)."""
    ops, s = space.operator.backend, space.state
    xp = ops.small_namespace()
    found = shifted(ops, _T(s), s.first, s.norm, dampings / s.unit, _eps(space))
    code = _outcome(space, found.residual, _threshold(space, rtol, atol), found.h, dampings)
    code = xp.where(found.noisy & (code == Code.COMPLETED), Code.STAGNATED, code)
    # Of an operator that is known to be positive semi-definite, a negative pivot is rounding.
    kind = xp.where((dampings >= 0) & space.operator.psd, Code.STAGNATED, Code.NEGATIVE_CURVATURE)
    code = xp.where(found.negative & ((code == Code.COMPLETED) | (code == Code.CONVERGED)), kind, code)
    return _answer(space, found.h, code, dampings, found.residual, _model(ops, s, found.model), found.used)


def _model(ops: Backend, s: LanczosState, model: Array) -> Array:
    """A value of the model, out of the basis's units."""
    return model * s.scale * ops.divide(s.scale, s.unit)


def residuals_and_models(space: Any, dampings: Array) -> tuple[Array, Array]:
    """Of the same solutions."""
    s = space.state
    found = shifted(space.operator.backend, _T(s), s.first, s.norm, dampings / s.unit, _eps(space))
    residual = total(s, found.residual, lengths(space.operator.backend, found.h))
    return residual * s.scale, _model(space.operator.backend, s, found.model)


def minimise(space: Any, radii: Array, rtol: Scalar, atol: Scalar) -> KrylovSteps:
    """The minimiser of 1/2 x.A x - b.x over ||x|| <= radius for each radius (m,)."""
    ops, s = space.operator.backend, space.state
    xp = ops.small_namespace()
    count, norm = _rows(ops, s)
    found = trust_region(ops, spectrum(ops, _T(s), count), norm, radii * (s.unit / s.scale), _eps(space))
    # Where there is no minimum, what conjugate gradients reached before they met negative curvature.
    zero = xp.zeros_like(radii)
    safe = shifted(ops, _T(s), s.first, s.norm, zero, _eps(space))
    k = found.h.shape[0]
    h = xp.where(found.unbounded, filled(xp, safe.h, k), found.h)
    last = xp.sum(xp.where((xp.arange(k) == count - 1)[:, None], found.h, 0.0), axis=0)
    residual = xp.where(s.steps > 0, xp.abs(ops.lookup(s.betas, count - 1) * last), s.norm)
    residual = xp.where(found.unbounded, safe.residual, residual)
    reached = found.rate * s.scale * (found.length * ops.divide(s.scale, s.unit))
    model = xp.where(found.unbounded, _model(ops, s, safe.model), reached)
    code = _outcome(space, residual, _threshold(space, rtol, atol), h, zero)
    code = xp.where((code == Code.STAGNATED) & found.active, Code.COMPLETED, code)  # large because the region is
    fine = (code == Code.COMPLETED) | (code == Code.CONVERGED)
    code = xp.where(fine & found.active, Code.BOUNDARY, code)
    code = xp.where(fine & found.unbounded, Code.STAGNATED if space.operator.psd else Code.NEGATIVE_CURVATURE, code)
    multiplier = xp.where(found.unbounded, 0.0, found.multiplier) * s.unit
    return _answer(space, h, code, multiplier, residual, model, s.steps + 0 * code)


def _spectrum(space: Any) -> Spectrum:
    ops, s = space.operator.backend, space.state
    return spectrum(ops, _T(s), _rows(ops, s)[0])


def ritz(space: Any) -> tuple[Array, Array]:
    """Ritz values and their error bounds; NaN where a compiler keeps more."""
    ops, s = space.operator.backend, space.state
    xp = ops.small_namespace()
    S = _spectrum(space)
    index = xp.arange(S.values.shape[0])
    last = xp.sum(xp.where((index == s.steps - 1)[:, None], S.vectors, 0.0), axis=0)
    bounds = xp.abs(ops.lookup(s.betas, ops.maximum(s.steps - 1, 0)) * last)
    inside = index < s.steps
    return xp.where(inside, S.values * s.unit, xp.nan), xp.where(inside, bounds * s.unit, xp.nan)


def ritz_vectors(space: Any) -> Array:
    """T's eigenvectors as columns."""
    return _spectrum(space).vectors


def gauss(space: Any) -> tuple[Array, Array]:
    """Nodes and weights for b.f(A) b."""
    s = space.state
    nodes, weights = gauss_rule(space.operator.backend, _T(s), space.operator.backend.maximum(s.first, 1))
    return nodes * s.unit, weights * (s.norm * s.scale) ** 2


def radau(space: Any, end: Scalar) -> tuple[Array, Array]:
    """The same with a node at ``end``."""
    s = space.state
    ops = space.operator.backend
    nodes, weights = radau_rule(ops, _T(s), ops.maximum(s.first, 1), end / s.unit)
    return nodes * s.unit, weights * (s.norm * s.scale) ** 2


# The basis that was not kept, made again: one product for each vector after the first.


@record
class ReplayProblem:
    """``sum over j < count of q_j c_j`` for coefficients c (k, m), from q_0 and the T that was recorded."""

    operator: LinearOperator
    rhs: Vector
    """q_0."""
    alphas: Array
    betas: Array
    unit: Scalar
    coefficients: Array
    count: Scalar

    @property
    def like(self) -> Vector:
        """A vector of the problem."""
        return self.rhs

    @property
    def host(self) -> bool:
        """Whether a product draws data from the host."""
        return self.operator.host


class ReplayState(NamedTuple):
    """The latest two vectors, and the combinations so far."""

    q: Vector
    older: Vector
    total: Vector
    status: Scalar
    steps: Scalar
    products: Scalar


class ReplayRow(NamedTuple):
    """Products taken."""

    products: Scalar


@record
class Replay:
    """The method; its state ends with ``total`` (n, m)."""

    def init(self, ops: Backend, problem: ReplayProblem) -> ReplayState:
        q = problem.rhs
        none = ops.scalar(0, q)
        return ReplayState(
            q=ops.copy(q),
            older=ops.zeros_like(q),
            total=self._outer(ops, problem, q, none),
            status=ops.where(problem.count > 1, Code.RUNNING, Code.COMPLETED),
            steps=none,
            products=none,
        )

    def _outer(self, ops: Backend, problem: ReplayProblem, q: Vector, j: Scalar) -> Vector:
        """q_j c_j (n, m): the combination of a basis of one vector."""
        one = ops.store(ops.basis(q, 1), 0, 1.0, q)
        return ops.combine(one, problem.coefficients[j, :][None, :], 1)

    def step(self, ops: Backend, problem: ReplayProblem, s: ReplayState) -> ReplayState:
        running = s.status == Code.RUNNING
        j = ops.where(running, s.steps, 0)
        alpha, beta = ops.lookup(problem.alphas, j), ops.lookup(problem.betas, j)
        before = ops.where(j > 0, ops.lookup(problem.betas, ops.maximum(j - 1, 0)), 0.0)
        w = problem.operator.apply(s.q)
        w = ops.axpby(-before, s.older, ops.divide(1.0, problem.unit), w)
        w = ops.axpy(-alpha, s.q, w)
        w = ops.scale(ops.where(running, ops.divide(1.0, beta), 0.0), w)
        part = self._outer(ops, problem, w, j + 1)
        total = ops.axpy(ops.where(running, 1.0, 0.0), part, s.total)
        steps = s.steps + ops.where(running, 1, 0)
        done = ops.where(steps + 1 >= problem.count, Code.COMPLETED, s.status)
        return ReplayState(w, s.q, total, done, steps, s.products + ops.where(running, 1, 0))

    def observe(self, state: ReplayState) -> ReplayRow:
        return ReplayRow(state.products)

    def answer(self, ops: Backend, problem: ReplayProblem, state: ReplayState) -> Any:
        return state.total
