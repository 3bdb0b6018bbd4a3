"""LSMR: least squares by Golub-Kahan bidiagonalisation, with the smallest ||A^T r|| at every step.

Fong and Saunders (2011), whose symbols these are (P for the first rotations,
Pbar for the second, Ptilde for those that only serve the estimate of ||r||)::

    P:     rho_k = ||(alphabar_k, beta_(k+1))||         theta_(k+1) = s_k alpha_(k+1)
    Pbar:  rhobar_k = ||(cbar_(k-1) rho_k, theta_(k+1))||     zeta_k = cbar_k zetabar_k
    hbar_k = h_k - sbar_(k-1) rho_k rho_k / (rho_(k-1) rhobar_(k-1)) hbar_(k-1)
    x_k = x_(k-1) + zeta_k / (rho_k rhobar_k) hbar_k          h_(k+1) = v_(k+1) - theta_(k+1) / rho_k h_k

In exact arithmetic it is MINRES on (A^T A + lambda I) x = A^T b, without
squaring the condition number: ||A^T r|| never grows, which makes it the safer
of the two to stop early; ||r|| is nearly that of :class:`~linop_gn.LSQR`.

What differs from ``scipy.sparse.linalg.lsmr``: ``damping`` is lambda (SciPy's
``damp`` is its root), damps x also where x0 is given, a status is reported only
for norms that were recomputed from x, and the estimated condition number does
not depend on the units of A (SciPy's takes 1 among the singular values).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

from ..protocols import Backend, Scalar, Vector
from ..records import record
from .bidiagonal import Basis
from .least_squares import LeastSquares, LeastSquaresState

__all__ = ["LSMR"]


class _Rotation(NamedTuple):
    # P, Pbar
    alphabar: Scalar
    zetabar: Scalar
    rho: Scalar
    rhobar: Scalar
    cbar: Scalar
    sbar: Scalar
    zeta: Scalar
    # Ptilde
    betadd: Scalar
    betad: Scalar
    rhod: Scalar
    tautilde: Scalar
    thetatilde: Scalar
    # of the diagonal, by which the condition number is estimated
    largest: Scalar
    smallest: Scalar


@record
class LSMR(LeastSquares):
    """Least squares, min ||A x - b||^2 + damping ||x||^2, by LSMR.

    Parameters
    ----------
    damping
        lambda of ``Damped(A.T @ A, lambda)``, data: SciPy's ``damp`` is its square root. None: no damping.
    atol, btol
        Tolerances relative to A and to b, as in SciPy: a compatible system's solution is found when
        ||r|| <= btol ||b|| + atol ||A|| ||x|| (``CONVERGED``), a least-squares solution when
        ||A^T r|| <= atol ||A|| ||r|| (``LEAST_SQUARES``).
    conlim
        Stop when cond(A) is estimated to be above this (``CONDITION_LIMIT``); None: at 1 / eps.
    max_steps
        Limit on steps of two products; None means min(10 m, 10 n, 10000).
    steps
        Run exactly this many steps, fewer only if nothing is left to do: ``COMPLETED``.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Dense(np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]))
    >>> solution = lg.solve(A, np.array([1.0, 2.0, 5.0]), lg.LSMR())
    >>> solution.status.name, solution.x.round(6)
    ('LEAST_SQUARES', array([2.333333, 1.333333]))
    """

    depth: ClassVar[int] = 2

    def begin(self, ops: Backend, basis: Basis, beta: Scalar) -> _Rotation:
        nothing, one = 0.0 * beta, 0.0 * beta + 1.0
        second, norms = (one, one, one, nothing, nothing), (beta, nothing, one, nothing, nothing)
        return _Rotation(basis.alpha, basis.alpha * beta, *second, *norms, nothing, nothing + math.inf)

    def turn(
        self, ops: Backend, numbers: Any, s: LeastSquaresState, basis: Basis, beta: Scalar, anorm: Scalar
    ) -> tuple[Any, ...]:
        q, sqrt, divide = s.rotation, numbers.sqrt, numbers.divide
        # P_k
        rho = sqrt(q.alphabar * q.alphabar + beta * beta)
        c, sn = divide(q.alphabar, rho), divide(beta, rho)
        theta, alphabar = sn * basis.alpha, c * basis.alpha
        # Pbar_k
        thetabar, turned = q.sbar * rho, q.cbar * rho
        rhobar = sqrt(turned * turned + theta * theta)
        cbar, sbar = divide(turned, rhobar), divide(theta, rhobar)
        zeta, zetabar = cbar * q.zetabar, -sbar * q.zetabar
        back, length = -divide(thetabar * rho, q.rho * q.rhobar), divide(zeta, rho * rhobar)

        # Ptilde_(k-1), and from it ||r_k||
        betahat, betadd = c * q.betadd, -sn * q.betadd
        rhotilde = sqrt(q.rhod * q.rhod + thetabar * thetabar)
        ctilde, stilde = divide(q.rhod, rhotilde), divide(thetabar, rhotilde)
        thetatilde, rhod = stilde * rhobar, ctilde * rhobar
        betad = ctilde * betahat - stilde * q.betad
        tautilde = divide(q.zeta - q.thetatilde * q.tautilde, rhotilde)
        tau = divide(zeta - thetatilde * tautilde, rhod)
        norm = sqrt((betad - tau) * (betad - tau) + betadd * betadd)

        cond = divide(numbers.maximum(q.largest, turned), numbers.minimum(q.smallest, turned))
        largest, smallest = numbers.maximum(q.largest, rhobar), numbers.minimum(q.smallest, rhobar)
        second, norms = (rho, rhobar, cbar, sbar, zeta), (betadd, betad, rhod, tautilde, thetatilde)
        rotation = tuple.__new__(_Rotation, (alphabar, zetabar, *second, *norms, largest, smallest))
        factors = 1.0, back, length, -divide(theta, rho)
        return rotation, factors, norm, abs(zetabar), (s.norm - norm) * (s.norm + norm), cond

    def move(
        self, ops: Backend, x: Vector, directions: tuple[Vector, ...], basis: Basis, factors: Any
    ) -> tuple[Vector, tuple[Vector, ...]]:
        (h, hbar), (onto, back, length, fade) = directions, factors
        hbar = ops.axpby(onto, h, back, hbar)
        x = ops.axpy(length, hbar, x)
        return x, (ops.axpby(1.0, basis.v, fade, h), hbar)
