"""Residuals of all pairs: what an array (m, 1) less one of (n,) gives, m n numbers where n were meant (mostly m = n).

    r_ij = (a_i - b_j) w_j   or   (a_i - b_j) w_i        (w: weights; often 1)

Whatever a, b and w are, the rows of r less its first row, or the columns less the first column, have rank one, r
itself has not, unless a or b is constant; then r_ij - r_i0 - r_0j + r_00 is zero. Rounding of each r_ij is relative to
itself, so that both are seen to rounding. An image of residuals hardly ever is like that; one of an exact plane may
be. So nothing is said where an array with axes m and n is among the data, or among what the function holds.
"""

from __future__ import annotations

import warnings
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import numpy as np

from ..protocols import Array, Backend

__all__ = ["may_be_pairs", "warn_of_pairs"]

_MOST = 64
"""Rows and columns that are looked at."""
_FOLLOWED = partial, MethodType, FunctionType


def may_be_pairs(ops: Backend, shape: tuple[int, ...], function: Any, data: Any) -> bool:
    """Whether residuals of this shape may be those of all pairs: no array (m, n) is known that they were meant for."""
    m, n = axes if len(axes := _axes(shape)) == 2 else (0, 0)
    if min(m, n) < 3:
        return False
    shapes = [getattr(x, "shape", None) for x in (*ops.flatten(data)[1], *_held(function))]
    return not any(isinstance(s, tuple) and m in s and n in s and (m != n or s.count(n) > 1) for s in shapes)


def warn_of_pairs(ops: Backend, r: Array) -> None:
    """Warn if residuals r (m, n) are those of all pairs."""
    m, n = _axes(tuple(r.shape))
    r = ops.namespace().reshape(r, (m, n))[:: -(-m // _MOST), :: -(-n // _MOST)]
    if _are_pairs(np.asarray(ops.to_numpy(r), dtype=np.float64), ops.eps(r)):
        meant = f"{n} were meant" if m == n else "pairs were not meant"
        warnings.warn(
            f"there are {m} x {n} residuals, one for each pair of a row and a column: an array ({m}, 1) met one of "
            f"({n},), and broadcasting paired them all. If {meant}, give both one shape: model(x)[:, 0] - y, or "
            "y[:, None].",
            UserWarning,
            stacklevel=2,
        )


def _axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes that are longer than one."""
    return tuple(length for length in shape if length != 1)


def _are_pairs(r: Any, eps: float) -> bool:
    size = np.abs(r).max()
    if not 0 < size < np.inf:
        return False
    r = r / size
    rows, columns = r - r[:1], r - r[:, :1]
    if np.abs(rows).max() <= 16 * eps and np.abs(columns).max() <= 16 * eps:
        return False  # all the same: nothing can be told
    return np.abs(rows - rows[:, :1]).max() <= 16 * eps or (
        not _has_rank_one(r, eps) and (_has_rank_one(rows, eps) or _has_rank_one(columns, eps))
    )


def _has_rank_one(m: Any, eps: float) -> bool:
    """Whether m_ij m_kl = m_il m_kj for the largest m_kl, to the rounding of numbers near 1."""
    k, l = np.unravel_index(np.argmax(np.abs(m)), m.shape)
    return bool(np.abs(m * m[k, l] - m[:, l : l + 1] * m[k]).max() <= 64 * eps * abs(m[k, l]))


def _held(function: Any) -> list[Any]:
    """What a function was made with: closure, defaults, globals, its object, and that of functions of its module."""
    held, ways, seen = [], [function], set()
    while ways:
        f = ways.pop()
        if id(f) in seen:
            continue
        seen.add(id(f))
        if isinstance(f, partial):
            found = [f.func, *f.args, *f.keywords.values()]
        elif isinstance(f, MethodType):
            found = [f.__func__, *vars(f.__self__).values()] if hasattr(f.__self__, "__dict__") else [f.__func__]
        elif isinstance(f, FunctionType):
            cells = [cell.cell_contents for cell in f.__closure__ or () if cell != CellType()]
            names = [f.__globals__.get(name) for name in f.__code__.co_names]
            ours = [x for x in names if not isinstance(x, FunctionType) or x.__globals__ is f.__globals__]
            found = [*cells, *ours, *(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()]
        else:
            found = [type(f).__call__, *vars(f).values()] if hasattr(f, "__dict__") and not isinstance(f, type) else []
        held += found
        ways += [x for x in found if isinstance(x, _FOLLOWED) or type(x).__module__.startswith("linop_gn.")]
    return held
