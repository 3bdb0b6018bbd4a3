"""Frobenius norms of arrays and of parts, whose squares may leave the range of numbers."""

from __future__ import annotations

from functools import reduce

from ..protocols import Array, Backend, Scalar
from ..spaces import wide

__all__ = ["norm_of", "norm_with_diagonal", "norms_of", "root_of_squares"]


def norm_of(backend: Backend, x: Array) -> Scalar:
    """The root of the sum of the squares of all entries, in single precision at least.

    >>> import numpy as np, linop_gn as lg
    >>> bool(np.isclose(norm_of(lg.load("numpy"), np.array([[3e200, 0.0], [0.0, 4e200]])), 5e200))
    True
    """
    flat = backend.namespace().reshape(x, (-1,))
    flat = backend.cast(flat, wide(backend.describe(flat)[1]))
    if not flat.shape[0]:
        return 0.0
    scale = backend.power_of_two(backend.max_abs(flat), flat)
    flat = flat / scale  # of its own: the entries are the caller's
    return scale * backend.sqrt(backend.dot(flat, flat))


def norms_of(backend: Backend, x: Array) -> Array:
    """The norm of each ``x[i]`` (n,), in single precision at least, each in units of its own largest entry.

    >>> import numpy as np, linop_gn as lg
    >>> norms_of(lg.load("numpy"), np.array([[3e200, 4e200], [3e-200, 4e-200]]))
    array([5.e+200, 5.e-200])
    """
    xp, axes = backend.namespace(), tuple(range(1, len(x.shape)))
    x = backend.cast(x, wide(backend.describe(x)[1]))
    if 0 in x.shape:
        return xp.sum(x, axis=axes)
    unit = xp.max(xp.abs(x), axis=axes, keepdims=True)
    unit = xp.where(unit > 0, unit, xp.ones_like(unit))
    x = x / unit
    return xp.reshape(unit, (-1,)) * xp.sqrt(xp.sum(x * x, axis=axes))


def norm_with_diagonal(backend: Backend, norm: Scalar, diagonal: Array, added: Array) -> Scalar:
    """||A + diag(added)||_F from ||A||_F and the diagonal of A; nothing cancels where none of them is negative.

    The root of ||A||^2 + 2 added . diagonal + ||added||^2.

    >>> import numpy as np, linop_gn as lg
    >>> found = norm_with_diagonal(lg.load("numpy"), 4e200, np.array([4e200, 0.0]), np.array([0.0, 3e200]))
    >>> bool(np.isclose(found, 5e200))
    True
    """
    diagonal, added = (backend.cast(x, wide(backend.describe(x)[1])) for x in (diagonal, added))
    scale = backend.power_of_two(backend.maximum(norm, backend.max_abs(added)), added)
    own, share, added = norm / scale, diagonal / scale, added / scale
    return scale * backend.sqrt(own * own + 2.0 * backend.dot(share, added) + backend.dot(added, added))


def root_of_squares(backend: Backend, *norms: Scalar) -> Scalar:
    """The norm of what consists of parts with these norms.

    >>> import linop_gn as lg
    >>> root_of_squares(lg.load("numpy"), 3.0, 4.0)
    5.0
    """
    largest = reduce(backend.maximum, norms)
    shares = [backend.divide(norm, largest) for norm in norms]
    return largest * backend.sqrt(sum(share * share for share in shares))
