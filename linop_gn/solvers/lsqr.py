"""LSQR: least squares by Golub-Kahan bidiagonalisation, with the smallest residual at every step.

Paige and Saunders (1982), whose symbols these are::

    rho_k = ||(rhobar_k, beta_(k+1))||     c_k = rhobar_k / rho_k     s_k = beta_(k+1) / rho_k
    theta_(k+1) = s_k alpha_(k+1)          rhobar_(k+1) = -c_k alpha_(k+1)
    phi_k = c_k phibar_k                   phibar_(k+1) = s_k phibar_k
    x_k = x_(k-1) + phi_k / rho_k w_k      w_(k+1) = v_(k+1) - theta_(k+1) / rho_k w_k

In exact arithmetic it is CG on (A^T A + lambda I) x = A^T b, without squaring
the condition number. ||r|| never grows; ||A^T r||, which tells how near a
least-squares solution is, does: :class:`~linop_gn.LSMR` may stop earlier.

What differs from ``scipy.sparse.linalg.lsqr``: ``damping`` is lambda (SciPy's
``damp`` is its root), damps x also where x0 is given, and a status is reported
only for norms that were recomputed from x.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from ..protocols import Backend, Scalar, Vector
from ..records import record
from .bidiagonal import Basis
from .least_squares import LeastSquares, LeastSquaresState

__all__ = ["LSQR"]


class _Rotation(NamedTuple):
    rhobar: Scalar
    phibar: Scalar
    inverses: Scalar
    """Sum of ||w_k / rho_k||^2: the square of a norm of the pseudo-inverse, as far as it is known."""


@record
class LSQR(LeastSquares):
    """Least squares, min ||A x - b||^2 + damping ||x||^2, by LSQR.

    Parameters
    ----------
    damping, atol, btol, conlim, max_steps, steps
        As for :class:`~linop_gn.LSMR`.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Dense(np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]))
    >>> solution = lg.solve(A, np.array([1.0, 2.0, 5.0]), lg.LSQR())
    >>> solution.status.name, solution.x.round(6)
    ('LEAST_SQUARES', array([2.333333, 1.333333]))
    """

    depth: ClassVar[int] = 1

    def begin(self, ops: Backend, basis: Basis, beta: Scalar) -> _Rotation:
        return _Rotation(basis.alpha, beta, 0.0 * beta)

    def turn(
        self, ops: Backend, numbers: Any, s: LeastSquaresState, basis: Basis, beta: Scalar, anorm: Scalar
    ) -> tuple[Any, ...]:
        q, (w,) = s.rotation, s.directions
        rho = numbers.sqrt(q.rhobar * q.rhobar + beta * beta)
        c, sn, inverse = numbers.divide(q.rhobar, rho), numbers.divide(beta, rho), numbers.divide(1.0, rho)
        theta, rhobar = sn * basis.alpha, -c * basis.alpha
        phi, phibar = c * q.phibar, sn * q.phibar
        inverses = q.inverses + inverse * inverse * ops.dot(w, w)
        factors = phi * inverse, -theta * inverse
        rotation = _Rotation(rhobar, phibar, inverses)
        return rotation, factors, phibar, abs(phibar * rhobar), phi * phi, anorm * numbers.sqrt(inverses)

    def move(
        self, ops: Backend, x: Vector, directions: tuple[Vector, ...], basis: Basis, factors: Any
    ) -> tuple[Vector, tuple[Vector, ...]]:
        (w,), (length, fade) = directions, factors
        return ops.axpy(length, w, x), (ops.axpby(1.0, basis.v, fade, w),)
