"""Weights, masks and numbers as arrays that fit the outputs.

Everything here comes back in the outputs' dtype and on their device, with
trailing axes of length one, so that plain broadcasting does the rest. Where
something does not count, :func:`keep` puts a zero *before* any arithmetic:
0 * NaN is NaN, and so is the derivative of a ``where`` taken afterwards.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import array_api_compat

from ...protocols import Array

__all__ = [
    "class_mask",
    "count",
    "counter",
    "finite",
    "fit_weights",
    "grand_total",
    "index_dtype",
    "keep",
    "number",
    "placed",
    "placement",
    "real",
]


def number(xp: Any, value: Any, like: Array) -> Any:
    """A Python float from any real number, or a 0-d array in the dtype of ``like``: neither widens it."""
    plain = real(value)
    return xp.astype(value, like.dtype, copy=False) if plain is None else plain


def real(value: Any) -> float | None:
    """The value of a real number, Python's or NumPy's; None for arrays, whose value may not be known yet."""
    return float(value) if isinstance(value, numbers.Real) else None


def keep(xp: Any, condition: Array | None, x: Array) -> Array:
    """``x`` where the condition holds (None: everywhere), and zero elsewhere."""
    return x if condition is None else xp.where(condition, x, 0)


def fit_weights(xp: Any, loss: str, weights: Array | None, outputs: Array, axes: int) -> Array | None:
    """Weights that broadcast from the left to the first ``axes`` axes, shaped to multiply ``outputs``."""
    if weights is None:
        return None
    shape, examples = tuple(weights.shape), tuple(outputs.shape[:axes])
    refuse_shape(loss, shape, examples)
    padded = xp.reshape(weights, shape + (1,) * (len(outputs.shape) - len(shape)))
    return xp.astype(padded, outputs.dtype, copy=False)


def refuse_shape(loss: str, shape: tuple[int, ...], examples: tuple[int, ...]) -> None:
    """Raise unless weights of this shape broadcast from the left to the examples."""
    if len(shape) > len(examples) or any(n not in (1, m) for n, m in zip(shape, examples, strict=False)):
        raise ValueError(
            f"{loss}: weights of shape {shape} do not fit examples of shape {examples}: they must have that shape, "
            "or broadcast to it from the left (trailing axes left out, or of length one)."
        )


def count(xp: Any, weights: Array | None, outputs: Array, axes: int) -> Array:
    """The sum of weights over the first ``axes`` axes: the number of examples where there are none."""
    examples = tuple(outputs.shape[:axes])
    if weights is None:
        return xp.asarray(float(math.prod(examples)), dtype=outputs.dtype, **placement(outputs))
    whole = xp.broadcast_to(weights, examples + (1,) * (len(outputs.shape) - axes))
    return grand_total(xp, whole)


def grand_total(xp: Any, x: Array) -> Array:
    """The sum of all entries as a 0-d array (NumPy's own sum would be a scalar, which is no array)."""
    return xp.reshape(xp.sum(x, keepdims=True), ())


def finite(xp: Any, x: Array) -> Any:
    """Where ``x`` is finite: everywhere, if it has no floating point."""
    return xp.isfinite(x) if xp.isdtype(x.dtype, "real floating") else xp.ones(x.shape, dtype=xp.bool)


def index_dtype(xp: Any) -> Any:
    """The dtype in which this library indexes (int64; int32 in JAX unless it was asked for 64 bits)."""
    told = getattr(xp, "__array_namespace_info__", None)  # NumPy has it from 2.1 on
    return xp.int64 if told is None else told().default_dtypes()["indexing"]


def class_mask(xp: Any, index: Array, like: Array) -> Array:
    """True at the class that ``index`` (..., 1) names: a mask of the shape (..., C) of ``like``."""
    return index == xp.arange(like.shape[-1], dtype=index.dtype, **placement(like))


def counter(xp: Any, count: int, like: Array) -> Array:
    """0 .. count - 1 as int32, where ``like`` is."""
    return xp.arange(count, dtype=xp.int32, **placement(like))


def placed(xp: Any, numbers: Any, like: Array) -> Array:
    """NumPy's numbers as an array of the dtype of ``like``, where that is."""
    return xp.asarray(numbers, dtype=like.dtype, **placement(like))


def placement(like: Array) -> dict[str, Any]:
    """What creates a constant where ``like`` is."""
    # Arrays that are being traced have no device, and those spread over several name their layout, which
    # a small constant cannot have: in both cases the library places the constant by itself.
    device = array_api_compat.device(like)
    return {} if device is None or hasattr(device, "device_set") else {"device": device}
