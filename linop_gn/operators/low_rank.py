"""U M U^T with a thin U: two products with thin matrices, never the n x n one.

What quasi-Newton memories, sketches and truncated spectra are made of; with
:class:`~linop_gn.Damped` around it, the usual preconditioner.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dispatch import backend_of
from ..protocols import Array, Scalar, Vector
from ..records import fill, record, static
from ..spaces import Space, wide
from .base import LinearOperator
from .checks import array_of, nonnegative, space_for, symmetric_enough, values_of
from .norms import norm_of

__all__ = ["LowRank"]


@record
class LowRank(LinearOperator):
    """U M U^T, symmetric of rank at most r.

    Parameters
    ----------
    factor
        U, an array (n, r). Neither it nor the middle is copied.
    middle
        M: a symmetric matrix (r, r), the diagonal (r,) of one, or None for the
        identity.
    psd
        Whether M is positive semi-definite. Left out, it is true without a
        middle, found from the values of a diagonal one where they can be read,
        and counts as unknown for a matrix.
    domain
        The space of the vectors, where they are trees.

    Raises
    ------
    ValueError
        For NaN or infinite entries, a middle of another size, one that is not
        symmetric, or ``psd=True`` with a negative diagonal entry in it.
    TypeError
        For arrays of several frameworks or dtypes.

    Examples
    --------
    >>> import numpy as np, linop_gn as lg
    >>> U = np.array([[1.0], [2.0], [0.0]])
    >>> A = lg.LowRank(U, np.array([3.0]))
    >>> A
    LowRank(3 x 3, psd, numpy float64)
    >>> A @ np.array([1.0, 0.0, 0.0])
    array([3., 6., 0.])
    """

    factor: Array
    middle: Array | None = None
    psd: bool = static(default=None)
    domain: Space = static(default=None)

    def __post_init__(self) -> None:
        backend = backend_of(self.factor, self.middle)
        n, r = array_of(backend, self.factor, (2,), "the factor")
        domain = space_for(self.domain, n, self.factor, "the domain", backend)
        claimed: Any = self.psd
        psd = self.middle is None if claimed is None else bool(claimed)
        values_of(backend, self.factor, "the factor")
        if self.middle is not None:
            shape = array_of(backend, self.middle, (1, 2), "the middle")
            if set(shape) != {r}:
                raise ValueError(f"the middle has shape {shape}; expected ({r},) or ({r}, {r}) for a factor {(n, r)}.")
            domain.require("the middle", self.middle)
            host = values_of(backend, self.middle, "the middle")
            if host is not None:
                if host.ndim == 2:
                    symmetric_enough(host, backend.eps(self.middle), "the middle", "the role of M in U M U^T")
                known = nonnegative(host if host.ndim == 1 else host.diagonal(), claimed, "the middle's diagonal")
                psd = known if claimed is None and host.ndim == 1 else psd
        fill(self, domain=domain, psd=psd)

    @property
    def symmetric(self) -> bool:
        return True

    def matvec(self, v: Vector) -> Vector:
        inner = self.factor.T @ v
        if self.middle is not None:
            if len(self.middle.shape) == 2:
                inner = self.middle @ inner
            else:
                inner = (self.middle if len(inner.shape) == 1 else self.middle[:, None]) * inner
        return self.factor @ inner

    matmat = matvec

    def known_diagonal(self) -> Vector | None:
        weighted = self.factor
        if self.middle is not None:
            weighted = self.factor * self.middle if len(self.middle.shape) == 1 else self.factor @ self.middle
        made: Vector = self.backend.namespace().sum(weighted * self.factor, axis=1)
        return made

    def known_frobenius_norm(self) -> Scalar | None:
        """That of R M R^T, U = Q R: with Gram matrices in its place half of the digits would be lost."""
        ops = self.backend
        R, middle = self._triangle()
        if middle is None:
            return norm_of(ops, R @ R.T)
        return norm_of(ops, (R * middle if len(middle.shape) == 1 else R @ middle) @ R.T)

    def known_logdet(self, damping: Scalar) -> Scalar | None:
        """By the squares of the singular values of R M^(1/2), U = Q R; None unless M is a diagonal that is psd."""
        if not self.psd or (self.middle is not None and len(self.middle.shape) == 2):
            return None
        ops, xp = self.backend, self.backend.namespace()
        R, middle = self._triangle()
        if 0 in R.shape:
            return None
        sizes = xp.linalg.svdvals(R if middle is None else R * xp.sqrt(middle))
        sizes = xp.where(sizes > max(R.shape) * ops.eps(sizes) * xp.max(sizes), sizes, xp.zeros_like(sizes))
        zero, idle = 0.0 * sizes[0], self.domain.size - sizes.shape[0]
        with np.errstate(divide="ignore"):  # of a singular one it is minus infinity
            total = xp.sum(xp.log(sizes * sizes + damping))
            return ops.item(total + idle * xp.log(zero + damping) if idle else total)

    def _triangle(self) -> tuple[Array, Array | None]:
        """R of U = Q R, and M, in single precision at least."""
        ops, dtype = self.backend, wide(self.domain.dtype)
        R = ops.namespace().linalg.qr(ops.cast(self.factor, dtype))[1]
        return R, None if self.middle is None else ops.cast(self.middle, dtype)
