"""Frobenius norms of arrays and of parts, whose squares may leave the range of numbers."""

from __future__ import annotations

from functools import reduce

from ..protocols import Array, Backend, Scalar
from ..spaces import wide

__all__ = ["norm_of", "root_of_squares"]


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


def root_of_squares(backend: Backend, *norms: Scalar) -> Scalar:
    """The norm of what consists of parts with these norms.

    >>> import linop_gn as lg
    >>> root_of_squares(lg.load("numpy"), 3.0, 4.0)
    5.0
    """
    largest = reduce(backend.maximum, norms)
    shares = [backend.divide(norm, largest) for norm in norms]
    return largest * backend.sqrt(sum(share * share for share in shares))
