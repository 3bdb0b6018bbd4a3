"""Newton's step by a symmetric eigendecomposition of the whole curvature, n products for a point.

With G = V diag(e) V^T, formed and factored once, every damping is a pass over V:

    d = -V diag(1 / (e + damping)) V^T g

At damping 0 this is the pseudo-inverse: eigenvalues with |e| <= rcond max |e| are left out, as NumPy's
``pinv(G, rtol=None, hermitian=True)`` does for rcond = n eps. Golub and Van Loan, *Matrix Computations* (2013), 5.5.

A spectrum may serve several points (Shamanskii, 1967): an inexact Newton step then, whose promise m(d) and residual
g + (G + damping I) d are taken at the point itself, by one product.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ...arguments import require_number, whole
from ...operators.base import LinearOperator
from ...protocols import Array, Backend, Scalar, Vector
from ...records import record, static
from ...run.status import Code, verdict
from ...solvers.direct import Eigh
from .base import Descent, Model, Noise, Trial, solved_as

__all__ = ["Eigen"]


class Spectrum(NamedTuple):
    """The curvature's eigenvalues and eigenvectors, and the gradient among these."""

    values: Array
    vectors: Array
    along: Array
    sound: Scalar
    age: Any = None
    """Points since the one that it is of; None where each point has its own."""
    asked: Any = None
    """Whether a step was made from this one."""


@record
class Eigen(Descent):
    """d = -(G + damping I)^+ g, dense.

    Parameters
    ----------
    rcond
        Eigenvalues e with |e + damping| <= rcond max |e + damping| are left out; None: n round-offs.
    positive
        Whether |e| takes the place of e, so that d is a direction of descent for curvature of any sign.
    every
        The spectrum of a point serves so many points at most, at one product for a step: as long as the direction
        leaves at most half of the gradient, promises more than a small part of the value, and is not refused.
    max_size
        Refuse larger curvature.

    >>> import numpy as np, linop_gn as lg
    >>> line = lg.Objective.from_residuals(lambda p: p[:1] + p[1:] - 2.0, jacobian=lambda p: np.ones((1, 2)))
    >>> method = lg.SecondOrder(descent=lg.descents.Eigen(), control=lg.ConstantDamping(), level=0.0)
    >>> lg.minimize(line, np.array([0.0, 1.0]), method).params.round(12)
    array([0.5, 1.5])
    """

    rcond: Scalar | None = None
    positive: bool = static(default=False)
    max_size: int = static(default=10_000)
    every: int = static(default=1)

    def __post_init__(self) -> None:
        require_number("Eigen", "rcond", self.rcond, optional=True)
        object.__setattr__(self, "max_size", whole("Eigen", "max_size", self.max_size))
        object.__setattr__(self, "every", whole("Eigen", "every", self.every, 1))

    def check(self, operator: LinearOperator, level: Scalar) -> None:
        """Raise for a curvature that is not symmetric, or too large."""
        Eigh(max_size=self.max_size).check(operator)

    def query(self, ops: Backend, model: Model, before: Spectrum | None) -> tuple[Spectrum, Scalar]:
        """The eigendecomposition, or that of an earlier point."""
        none = ops.scalar(0, model.x)
        if self.every == 1:
            return self._factored(ops, model), model.x.shape[0]
        if before is None:
            return self._factored(ops, model)._replace(age=none, asked=none + 0), model.x.shape[0]
        # One that no step was made from is of other data.
        age = ops.where(before.asked > 0, before.age + 1, self.every)
        return before._replace(along=_along(ops, before.vectors, model), age=age, asked=none), none + 0

    def _factored(self, ops: Backend, model: Model) -> Spectrum:
        xp, n = ops.namespace(), model.x.shape[0]
        space = model.operator.domain
        G = ops.gathered(model.operator.apply(space.from_whole(ops.identity(n, model.x))))
        if ops.describe(G)[1] not in ("float32", "float64"):
            G = ops.cast(G, "float32")
        finite = ops.isfinite(ops.max_abs(xp.reshape(G, (-1,))))
        G = ops.select(finite, G + 0.5 * (G.T - G), ops.identity(n, G))
        values, vectors, sound = ops.eigh(G)
        return Spectrum(values, vectors, _along(ops, vectors, model), sound & finite)

    def step(self, ops: Backend, model: Model, kept: Spectrum, level: Scalar) -> Trial:
        """The direction at this damping."""
        if self.every == 1:
            return self._trial(ops, model, kept, level)
        zero, count, old = 0.0 * model.gradient_norm, 0 * kept.age, kept.age > 0

        def tried(g: Vector) -> tuple[Scalar, ...]:
            trial = self._trial(ops, model, kept, level)
            d = trial.direction
            r = model.operator.apply(d)
            promised = -(ops.dot(g, d) + 0.5 * ops.dot(d, r))
            r = ops.axpy(1.0, g, ops.axpy(level, d, r))
            left = ops.sqrt(ops.dot(r, r))
            return left, promised, count + 1

        first = old & (kept.age < self.every) & (kept.asked == 0)
        left, promised, spent = ops.branch(first, tried, lambda g: (zero, zero, count), model.gradient)
        # So far above rounding that no test of the end is met.
        good = (left <= 0.5 * model.gradient_norm) & (promised > Noise.of(ops, model).promised)
        # Of a zero gradient nothing is asked.
        due = old & ops.logical_not(good) & (model.gradient_norm > 0)

        def anew(g: Vector) -> tuple[Spectrum, Scalar]:
            made = self._factored(ops, model)._replace(age=count, asked=count + 0)
            return made, spent + g.shape[0]

        kept, spent = ops.branch(due, anew, lambda g: (kept, spent), model.gradient)
        trial, old = self._trial(ops, model, kept, level), kept.age > 0
        return trial._replace(
            predicted=ops.where(old, promised, trial.predicted),
            status=ops.where(old, solved_as(model), trial.status),
            free=trial.free & ops.logical_not(old),
            left=ops.where(old, left, 0.0),
            other=old,
            kept=kept._replace(asked=count + 1),
            products=spent,
        )

    def _trial(self, ops: Backend, model: Model, kept: Spectrum, level: Scalar) -> Trial:
        xp, e = ops.namespace(), kept.values
        n, dtype = e.shape[0], ops.describe(model.x)[1]
        bent = (xp.abs(e) if self.positive else e) + level * xp.ones_like(e)
        sizes = xp.abs(bent)
        least_kept = (n * ops.eps(model.x) if self.rcond is None else self.rcond) * xp.max(sizes)
        large = sizes > least_kept
        step = xp.where(large, -kept.along / xp.where(large, bent, xp.ones_like(e)), xp.zeros_like(e))
        d = model.operator.domain.from_whole(ops.cast(kept.vectors @ step, dtype))
        square, energy = ops.dot(step, step), ops.dot(step, e * step)
        predicted = -(ops.dot(kept.along, step) + 0.5 * energy)
        damping_term = 0.5 * level * square
        least, most = -ops.max_abs(xp.where(e < 0, e, xp.zeros_like(e))), ops.max_abs(e)
        negative = least < -n * ops.eps(model.x) * most
        status = verdict(
            ops,
            ops.scalar(Code.CONVERGED, model.x),
            (ops.logical_not(kept.sound), Code.NONFINITE),
            (negative, Code.NEGATIVE_CURVATURE),
        )
        left = xp.where(large, xp.zeros_like(e), kept.along)  # of the gradient, in directions that are left out
        left = ops.dot(left, left)
        whole = left <= ops.eps(model.x) * ops.dot(kept.along, kept.along)
        whole = whole | (left <= 2.0 * ops.item(least_kept) * Noise.of(ops, model).value)
        status = ops.where((status == Code.CONVERGED) & (square == 0) & ops.logical_not(whole), Code.SINGULAR, status)
        free = (status == Code.CONVERGED) & (2.0 * damping_term <= energy) & whole
        return Trial(ops.mask(kept.sound, d), predicted, status, kept, 0, damping_term, free)


def _along(ops: Backend, vectors: Array, model: Model) -> Array:
    """The gradient among the eigenvectors."""
    made: Array = vectors.T @ ops.cast(ops.gathered(model.gradient), ops.describe(vectors)[1])
    return made
