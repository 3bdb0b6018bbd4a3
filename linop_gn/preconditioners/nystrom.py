"""The randomised Nyström preconditioner (Frangella, Tropp and Udell, 2021).

From Y = A Q, with Q an orthonormal basis of a few random vectors, the sketch

    A_nys = Y (Q^T Y)^+ Y^T = U diag(values) U^T

has the largest eigenvalues of A nearly right, and the preconditioner divides by
values + damping there and by the smallest of them + damping elsewhere. With a
rank of twice the effective dimension tr A (A + damping I)^-1 the preconditioned
operator's condition number is bounded by a constant, 28 in expectation.

As in their algorithm 2.1 the sketch is that of A + nu I, with nu at the level of
rounding, which is subtracted at the end. What differs: eigenvalue
decompositions instead of a Cholesky factorisation and a singular value
decomposition, because they exist for every sketch.
"""

from __future__ import annotations

from typing import Any

from ..arguments import whole
from ..draws import check_seed, normal
from ..operators.base import LinearOperator
from ..operators.damped import undamped
from ..protocols import Array, Scalar
from ..records import Partial, record, static
from ..solvers.base import each
from ..spaces import wide
from .base import Checked
from .spectral import spectral_inverse

__all__ = ["Nystrom", "sketch"]


@record
class Nystrom(Checked):
    """The inverse of a randomised Nyström approximation of A, plus the damping. A is to be known as PSD.

    Parameters
    ----------
    rank
        Products with A, and columns (n, rank) stored. At most n are used.
    seed
        Of the sketch: the same numbers on every framework.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Damped(lg.Diagonal(10.0 ** np.linspace(4, -6, 200)), 1e-2)
    >>> plain, sketched = (lg.solve(A, np.ones(200), lg.CG(preconditioner=M))
    ...                    for M in (None, lg.preconditioners.Nystrom(60)))
    >>> plain.steps > 3 * sketched.steps
    True

    Raises
    ------
    ValueError
        For an operator that is not known to be positive semi-definite.
    """

    rank: int = static(default=20)
    seed: Scalar = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", whole("Nystrom", "rank", self.rank, 1))
        check_seed("Nystrom", self.seed)

    def prepare(self, operator: LinearOperator) -> Any:
        inner, _ = undamped(operator)
        if not inner.psd:
            raise ValueError(
                f"Nystrom needs a positive semi-definite operator, and {inner!r} is not known to be. Declare it "
                "(psd=True) if it is, take the Gauss-Newton operator instead of the Hessian, or use Jacobi."
            )
        return sketch(inner, self.rank, self.seed)

    def cost(self, operator: LinearOperator) -> tuple[int, int]:
        """Products, and numbers held at a time, that :meth:`prepare` takes."""
        rank = min(self.rank, operator.domain.size)
        return rank, int(each(operator, 5, 3)) * rank * (operator.domain.size + rank)

    def finish(self, prepared: Any, operator: LinearOperator) -> LinearOperator:
        vectors, values = prepared
        space = operator.domain
        return spectral_inverse(space, vectors, values, undamped(operator)[1], whole=self.rank >= space.size)


def sketch(operator: LinearOperator, rank: int, seed: Scalar) -> tuple[Array, Array]:
    """Eigenvectors (n, r) and eigenvalues (r,) of the Nyström approximation with r = min(rank, n): r products."""
    return operator.backend.call(Partial(_sketch, min(rank, operator.domain.size)), operator.prepare(), seed)


def _sketch(rank: int, operator: LinearOperator, seed: Scalar) -> tuple[Array, Array]:
    space, ops = operator.domain, operator.backend
    sm, dtype = ops.small_namespace(), wide(space.dtype)
    Q = ops.qr(ops.cast(normal(space, seed, rank), dtype))[0]
    Y = ops.cast(operator.matmat(ops.cast(Q, space.dtype)), dtype)
    nu = ops.eps(Y) * ops.item(sm.sqrt(sm.sum(ops.dot(Y, Y))))
    Y = ops.axpy(nu, Q, Y)
    d, V = _eigh(sm, ops.project(Q.T, Y, rank))
    d = sm.maximum(d, ops.eps(Y) * d[-1:])
    root = sm.where(d > 0, 1.0 / sm.sqrt(sm.where(d > 0, d, 1.0)), 0.0)
    B, R = ops.qr(ops.combine(Y.T, V * root, rank))
    R = ops.small(R, Y)
    values, W = _eigh(sm, R @ R.T)
    values = values - nu
    values = sm.where(values < 0, 0.0, values)  # a NaN stays one
    return ops.cast(ops.combine(B.T, W, rank), space.dtype), ops.asarray(values, space.dtype, space.device)


def _eigh(sm: Any, matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors of the symmetric part of a small matrix; NaN where that is not finite."""
    finite = sm.all(sm.isfinite(matrix))
    d, V = sm.linalg.eigh(sm.where(finite, (matrix + matrix.T) / 2, 0.0))
    return sm.where(finite, d, sm.nan), V
