"""Random numbers as a function of a seed and an index: the same on every framework, inside compiled programs too.

Probes of an operator must not be constants of a compiled program (a million
parameters and 32 probes are 128 MB of them), and a framework's own generator
gives other numbers than the next one's. Here entry (i, j) is a hash of i, j and
the seed: a finaliser of 32 bits, two rounds of xor, shift and multiplication
with the constants of Wellons' ``lowbias32``, made with arithmetic on int32
that wraps around everywhere. Not for cryptography; plenty for probes.

Signs are Rademacher variables; normal numbers come from pairs of uniform ones
(Box and Muller, 1958).
"""

from __future__ import annotations

import math
from typing import Any

from .protocols import Array, Scalar, Vector
from .spaces import Space, wide

__all__ = [
    "BITS",
    "check_seed",
    "counter",
    "indices",
    "normal",
    "sign_columns",
    "signs",
    "signs_in",
    "sphere",
    "uniform",
    "words",
]

BITS = 31
"""Signs that one word holds."""

_STRIDE = -1640531527  # 2^32 over the golden ratio, as a signed number
_FIRST, _SECOND = 0x7FEB352D, -2073254261


def check_seed(name: str, seed: Any) -> None:
    """Raise unless ``seed`` is a whole number that 31 bits hold, or a traced one."""
    if seed is None or isinstance(seed, bool) or (isinstance(seed, (int, float, str)) and not isinstance(seed, int)):
        raise TypeError(f"{name}: seed must be a whole number, got {seed!r}.")
    if isinstance(seed, int) and not 0 <= seed < 2**31:
        raise ValueError(f"{name}: seed must lie in 0 .. 2^31 - 1, got {seed}.")


def signs(space: Space, seed: Scalar, index: Scalar = 0) -> Vector:
    """The probe (n,) number ``index`` of a seed: entries -1 and 1, each with probability 1/2.

    >>> import numpy as np
    >>> signs(Space.flat(6, np.zeros(1)), seed=3)
    array([...])
    """
    return signs_in(space, words(space, seed, index // BITS), index % BITS)


def words(space: Space, seed: Scalar, group: Scalar) -> Array:
    """The bits (n,) of the probes number ``BITS * group`` and following: hashed once for all of them."""
    return _hashed(space, counter(space), seed, group)


def signs_in(space: Space, bits: Array, place: Scalar) -> Vector:
    """The probe in these places of the words that hold it."""
    return _entries(space, space.backend.cast(1 - 2 * ((bits >> place) & 1), space.dtype))


def sign_columns(space: Space, seed: Scalar, first: Scalar, columns: int) -> Array:
    """The probes number ``first`` .. ``first`` + ``columns`` - 1 of a seed, as columns (n, columns)."""
    index = indices(space, first, columns)
    bits = _hashed(space, counter(space)[:, None], seed, (index // BITS)[None, :])
    return _entries(space, space.backend.cast(1 - 2 * ((bits >> (index % BITS)[None, :]) & 1), space.dtype))


def sphere(space: Space, seed: Scalar, first: Scalar, columns: int) -> Array:
    """Columns (n, columns) number ``first`` and following, uniform on the sphere of radius sqrt(n)."""
    ops, xp = space.backend, space.backend.namespace()
    rows, index = counter(space)[:, None], indices(space, first, columns)[None, :]
    u, v = (_uniform(space, _hashed(space, rows, seed, 2 * index + i)) for i in (0, 1))
    normal = _entries(space, xp.sqrt(-2.0 * xp.log(u)) * xp.cos(2.0 * math.pi * v))
    return ops.cast(ops.scale(space.size**0.5 / ops.sqrt(ops.dot(normal, normal)), normal), space.dtype)


def normal(space: Space, seed: Scalar, columns: int) -> Array:
    """Standard normal columns (n, columns)."""
    ops, xp = space.backend, space.backend.namespace()
    half = (columns + 1) // 2
    pairs = xp.arange(2 * half, dtype=xp.int32, **_place(space))
    u = _uniform(space, _hashed(space, counter(space)[:, None], seed, pairs[None, :]))
    length, angle = xp.sqrt(-2.0 * xp.log(u[:, :half])), 2.0 * math.pi * u[:, half:]
    both = xp.concat([length * xp.cos(angle), length * xp.sin(angle)], axis=1)
    return _entries(space, ops.cast(both[:, :columns], space.dtype))


def counter(space: Space) -> Array:
    """0 .. n - 1, as int32; the place of each entry in the vector of all leaves in order, whatever the layout."""
    if space.size >= 2**31:
        raise ValueError(
            f"probes number the entries of vectors by 32 bits, and there are {space.size}: estimate of parts of the "
            "parameters, or take what draws nothing."
        )
    if space.layout is not None:
        return space.layout.numbers()
    xp = space.backend.namespace()
    return xp.arange(space.size, dtype=xp.int32, **_place(space))


def indices(space: Space, first: Scalar, columns: int) -> Array:
    """``first`` .. ``first`` + ``columns`` - 1, as int32."""
    xp = space.backend.namespace()
    return xp.arange(columns, dtype=xp.int32, **_place(space)) + _small(xp, first)


def unit_columns(space: Space, first: Scalar, columns: int) -> Array:
    """The columns number ``first`` and following of the identity."""
    ops, xp = space.backend, space.backend.namespace()
    index = indices(space, first, columns)
    made = ops.cast(xp.astype(counter(space)[:, None] == index[None, :], xp.int32), space.dtype)
    return _entries(space, made)


def _entries(space: Space, drawn: Array) -> Array:
    """``drawn`` with zeros where flat vectors of a layout have no entry."""
    if space.width != space.size:
        real = counter(space) < space.size
        drawn = space.backend.namespace().where(real if len(drawn.shape) == 1 else real[:, None], drawn, 0)
    return drawn if space.layout is None else space.backend.spread(space.layout, drawn)


def _place(space: Space) -> dict[str, Any]:
    return {} if space.device is None else {"device": space.device}


def uniform(xp: Any, rows: Array, seed: Scalar, index: Scalar, dtype: Any) -> Array:
    """Numbers in (0, 1) with 23 bits, one for each of ``rows`` (int32), in a dtype of single precision at least."""
    return (xp.astype(_bits(xp, rows, seed, index) >> 8, dtype) + 0.5) * 2.0**-23


def _hashed(space: Space, rows: Array, seed: Scalar, index: Scalar) -> Array:
    return _bits(space.backend.namespace(), rows, seed, index)


def _bits(xp: Any, rows: Array, seed: Scalar, index: Scalar) -> Array:
    """31 random bits for each row, as non-negative int32."""
    zero = rows ^ rows  # the seed may be a Python number or an array of any integer type
    s, j = (zero + _small(xp, value) for value in (seed, index))
    x = _mixed(_mixed(s ^ 0x2545F491) + j * _STRIDE)
    return _mixed(_mixed(x ^ (rows * _STRIDE)) + rows) & 0x7FFFFFFF


def _small(xp: Any, value: Scalar) -> Any:
    return value if isinstance(value, int) else xp.astype(value, xp.int32, copy=False)


def _mixed(x: Array) -> Array:
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * _FIRST
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * _SECOND
    return x ^ ((x >> 16) & 0xFFFF)


def _uniform(space: Space, bits: Array) -> Array:
    """Numbers in (0, 1) with 23 bits, in float32 at least."""
    ops = space.backend
    return (ops.cast(bits >> 8, wide(space.dtype)) + 0.5) * 2.0**-23
