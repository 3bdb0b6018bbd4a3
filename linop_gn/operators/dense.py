"""A matrix as an operator.

What SciPy's ``aslinearoperator`` makes of a matrix, with a few differences: it
belongs to the framework of the matrix, it may act between trees, and what is
known about it (symmetric, PSD) is written down, and checked where that is cheap.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dispatch import backend_of
from ..protocols import Array, Scalar, Vector
from ..records import fill, record, static
from ..spaces import Space
from .base import LinearOperator
from .checks import array_of, space_for, symmetric_enough, values_of
from .norms import norm_of

__all__ = ["Dense"]


@record
class Dense(LinearOperator):
    """The operator of a matrix (m, n) of any framework.

    Parameters
    ----------
    matrix
        Real floating-point array (m, n). It is not copied: what is written into it later, the operator has, and what
        was found of it, such as its symmetry, may not hold any more.
    symmetric
        Whether the matrix is symmetric. Left out, a matrix that equals its
        transpose exactly is found to be; in a trace, where values cannot be
        read, it counts as general.
    psd
        Claim that it is symmetric positive semi-definite. Only the symmetry is
        checked here, since definiteness costs a factorisation:
        :func:`linop_gn.validate` checks that.
    domain, codomain
        The spaces, for a matrix that acts between trees; plain vectors if left
        out (a square matrix maps a given domain to itself).

    Raises
    ------
    ValueError
        For NaN or infinite entries, an asymmetric matrix that is claimed to be
        symmetric, or spaces whose sizes are not (m, n).
    TypeError
        For something that is not a matrix of real floating-point numbers.

    Examples
    --------
    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Dense(np.array([[2.0, 1.0], [1.0, 3.0]]))
    >>> A
    Dense(2 x 2, symmetric, numpy float64)
    >>> A @ np.array([1.0, 1.0])
    array([3., 4.])
    >>> lg.Dense(np.array([[0.0, 1.0], [3.0, 0.0]]), symmetric=True)
    Traceback (most recent call last):
    ValueError: the matrix was given with symmetric=True, but it is not symmetric: entries (0, 1) and (1, 0)...
    """

    matrix: Array
    symmetric: bool = static(default=None)
    psd: bool = static(default=False)
    domain: Space = static(default=None)
    codomain: Space = static(default=None)

    def __post_init__(self) -> None:
        backend = backend_of(self.matrix)
        m, n = array_of(backend, self.matrix, (2,), "the matrix")
        target: Any = self.codomain
        claimed: Any = self.symmetric
        domain = space_for(self.domain, n, self.matrix, "the domain", backend)
        codomain = space_for(domain if target is None and m == n else target, m, self.matrix, "the codomain", backend)
        symmetric = bool(claimed or self.psd)
        if symmetric and m != n:
            raise ValueError(f"a matrix of shape {(m, n)} cannot be symmetric or positive semi-definite.")
        host = values_of(backend, self.matrix, "the matrix")
        if host is not None:
            if symmetric:
                claim = "psd=True" if self.psd else "symmetric=True"
                symmetric_enough(host, backend.eps(self.matrix), "the matrix", claim)
            elif claimed is None and m == n:
                symmetric = bool(np.array_equal(host, host.T))
        fill(self, domain=domain, codomain=codomain, symmetric=symmetric, psd=bool(self.psd))

    def matvec(self, v: Vector) -> Vector:
        return self.matrix @ v

    def rmatvec(self, u: Vector) -> Vector:
        return self.matrix.T @ u

    matmat = matvec
    rmatmat = rmatvec

    def known_diagonal(self) -> Vector | None:
        return self.backend.copy(self.backend.namespace().linalg.diagonal(self.matrix))

    def known_frobenius_norm(self) -> Scalar | None:
        return norm_of(self.backend, self.matrix)
