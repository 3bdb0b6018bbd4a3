"""Newton's step by a symmetric eigendecomposition of the whole curvature, n products for a point.

With G = V diag(e) V^T, formed and factored once, every damping is a pass over V:

    d = -V diag(1 / (e + damping)) V^T g

At damping 0 this is the pseudo-inverse: eigenvalues with |e| <= rcond max |e| are left out, as NumPy's
``pinv(G, rtol=None, hermitian=True)`` does for rcond = n eps. Golub and Van Loan, *Matrix Computations* (2013), 5.5.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ...arguments import require_number, whole
from ...operators.base import LinearOperator
from ...protocols import Array, Backend, Scalar
from ...records import record, static
from ...run.status import Code, verdict
from ...solvers.direct import Eigh
from .base import Descent, Model, Trial

__all__ = ["Eigen"]


class Spectrum(NamedTuple):
    """The curvature's eigenvalues and eigenvectors, and the gradient among these."""

    values: Array
    vectors: Array
    along: Array
    sound: Scalar


@record
class Eigen(Descent):
    """d = -(G + damping I)^+ g, dense.

    Parameters
    ----------
    rcond
        Eigenvalues e with |e + damping| <= rcond max |e + damping| are left out; None: n round-offs.
    positive
        Whether |e| takes the place of e, so that d is a direction of descent for curvature of any sign.
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

    def __post_init__(self) -> None:
        require_number("Eigen", "rcond", self.rcond)
        object.__setattr__(self, "max_size", whole("Eigen", "max_size", self.max_size))

    def check(self, operator: LinearOperator, level: Scalar) -> None:
        """Raise for a curvature that is not symmetric, or too large."""
        Eigh(max_size=self.max_size).check(operator)

    def query(self, ops: Backend, model: Model, before: Any) -> tuple[Spectrum, Scalar]:
        """The eigendecomposition."""
        xp, n = ops.namespace(), model.x.shape[0]
        G = model.operator.apply(ops.identity(n, model.x))
        if ops.describe(G)[1] not in ("float32", "float64"):
            G = ops.cast(G, "float32")
        finite = ops.isfinite(ops.max_abs(xp.reshape(G, (-1,))))
        G = ops.select(finite, G + 0.5 * (G.T - G), ops.identity(n, G))
        values, vectors, sound = ops.eigh(G)
        along = vectors.T @ ops.cast(model.gradient, ops.describe(G)[1])
        return Spectrum(values, vectors, along, sound & finite), n

    def step(self, ops: Backend, model: Model, kept: Spectrum, level: Scalar) -> Trial:
        """The direction at this damping."""
        xp, e = ops.namespace(), kept.values
        n, dtype = e.shape[0], ops.describe(model.x)[1]
        bent = (xp.abs(e) if self.positive else e) + level * xp.ones_like(e)
        sizes = xp.abs(bent)
        large = sizes > (n * ops.eps(model.x) if self.rcond is None else self.rcond) * xp.max(sizes)
        step = xp.where(large, -kept.along / xp.where(large, bent, xp.ones_like(e)), xp.zeros_like(e))
        d = ops.cast(kept.vectors @ step, dtype)
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
        whole = ops.dot(left, left) <= ops.eps(model.x) * ops.dot(kept.along, kept.along)
        free = (status == Code.CONVERGED) & (2.0 * damping_term <= energy) & whole
        return Trial(ops.mask(kept.sound, d), predicted, status, kept, 0, damping_term, free)
