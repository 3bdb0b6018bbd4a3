"""The Frobenius norm of an operator: the root of the trace of A^T A, from products with A alone.

||A||_F^2 is the expectation of ||A z||^2 over vectors z of random signs
(Hutchinson, 1990, for A^T A). The error of the root is that of the square over
twice the root.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ..arguments import whole
from ..distributed.watching import told_to_all
from ..draws import sign_columns, unit_columns
from ..foreign import advised
from ..operators.base import LinearOperator, require_operator
from ..protocols import Backend, Scalar
from ..records import record, static
from ..run.loop import Watcher
from ..run.status import Code
from .estimate import (
    Estimate,
    Estimator,
    EstimatorState,
    Probed,
    block_of,
    check_numbers,
    estimated,
    exactly,
    gathered,
    is_looked_at,
    scaled,
)

__all__ = ["frobenius_norm"]


@record
class UnitVectors(Estimator):
    """The root of the sum of ||A e_i||^2 over all unit vectors."""

    samples: int = static()
    block: int = static()
    title: ClassVar[str] = "unit vectors"

    def start(self, ops: Backend, problem: Probed) -> tuple[Any, Scalar]:
        return 0.0, 0.0

    def absorb(self, ops: Backend, problem: Probed, s: EstimatorState) -> Any:
        E = unit_columns(problem.operator.domain, s.samples, self.block)
        Y, scale = scaled(ops, s.scale, problem.multiply(E))
        total = s.held + ops.item(ops.small_namespace().sum(ops.dot(Y, Y)))
        return ops.sqrt(total), 0.0, total, scale, Code.RUNNING


@record
class Hutchinson(Estimator):
    """The root of the mean of ||A z||^2 over vectors z of random signs."""

    samples: int = static()
    block: int = static()
    title: ClassVar[str] = "Hutchinson"

    def start(self, ops: Backend, problem: Probed) -> tuple[Any, Scalar]:
        return (0.0, 0.0), 0.0

    def absorb(self, ops: Backend, problem: Probed, s: EstimatorState) -> Any:
        Z = sign_columns(problem.operator.domain, problem.seed, s.samples, self.block)
        Y, scale = scaled(ops, s.scale, problem.multiply(Z))
        mean, squares = s.held
        mean, squares, error = gathered(ops, s.samples, mean, squares, ops.dot(Y, Y))
        value = ops.sqrt(mean)
        return value, ops.divide(error, 2.0 * value), (mean, squares), scale, Code.RUNNING


@told_to_all
@advised
def frobenius_norm(
    A: LinearOperator,
    *,
    products: int = 100,
    rtol: Scalar = 0.0,
    atol: Scalar = 0.0,
    seed: Scalar = 0,
    watch: Sequence[Watcher] = (),
    every: int = 1,
) -> Estimate:
    """||A||_F of any operator, exact or with a standard error.

    Parameters
    ----------
    A
        Operator (m, n). Its adjoint has the same norm: of one with few rows ask ``A.T``.
    products
        Products with A at most. Where they are n or more, n unit vectors give the exact norm; an operator that knows
        its own (a matrix, a diagonal, low rank, Kronecker factors, multiples and blocks of these) takes none.
    rtol, atol, seed, watch, every
        As of :func:`linop_gn.trace`.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Dense(np.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))
    >>> lg.frobenius_norm(A)
    frobenius_norm 5; known norm, 0 products, completed
    Exact: the operator knows its norm without a product.
    >>> lg.frobenius_norm(A @ lg.Identity(A.domain))
    frobenius_norm 5; unit vectors, 2 products, completed
    Exact: the products cover the whole space, a unit vector for each.

    Raises
    ------
    TypeError, ValueError
        For what is no operator, or products that are no whole number.
    """
    require_operator("frobenius_norm", A)
    check_numbers("frobenius_norm", rtol, atol, seed)
    products, n = whole("frobenius_norm", "products", products, 1), A.domain.size
    known = A.known_frobenius_norm()
    if known is not None:
        ops = A.backend
        code = ops.where(ops.isfinite(known), Code.COMPLETED, Code.NONFINITE)
        return exactly("frobenius_norm", known, 0.0, method="known norm", code=code)
    exact, looked_at = products >= n, is_looked_at(watch, rtol, atol)
    probes = n if exact else products
    estimator = (UnitVectors if exact else Hutchinson)(probes, block_of(probes, looked_at))
    rtol, atol = (0.0, 0.0) if exact else (rtol, atol)
    return estimated("frobenius_norm", A, estimator, rtol, atol, seed, watch, every, exact)
