"""Errors at the door: values of targets and weights, looked at once on the host.

Each function raises an error that names the loss, what was given, where it is
wrong and what to do. Nothing here runs while a compiler is tracing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...protocols import Array, Backend
from .weighting import refuse_shape

__all__ = ["counted_examples", "kind", "refuse", "refuse_empty", "refuse_number", "to_host"]


def kind(dtype: str) -> str:
    """``"bool"``, ``"integer"``, ``"real"`` or ``"complex"``, from a dtype's name."""
    for prefix, name in (("bool", "bool"), ("int", "integer"), ("uint", "integer"), ("complex", "complex")):
        if dtype.startswith(prefix):
            return name
    return "real"


def to_host(backend: Backend, loss: str, role: str, x: Any, kinds: tuple[str, ...]) -> np.ndarray[Any, Any]:
    """The values of an array of this backend whose dtype is of one of these kinds."""
    if not backend.is_array(x):
        raise TypeError(
            f"{loss}: {role} must be an array of {backend.name}, like the outputs, got {type(x).__module__}."
            f"{type(x).__qualname__}. Convert the data once, before the objective is made."
        )
    _, dtype, _ = backend.describe(x)
    if kind(dtype) not in kinds:
        raise TypeError(f"{loss}: {role} must be {' or '.join(kinds)}, got {dtype}. Cast them.")
    return np.asarray(backend.to_numpy(x))


def refuse(loss: str, bad: Any, values: Any, must: str) -> None:
    """Raise with the value at the first position where ``bad`` holds; ``must`` says what is right."""
    if not np.any(bad):
        return
    position = tuple(int(i) for i in np.argwhere(bad)[0])
    number, where = int(np.sum(bad)), f" at position {position}" if position else ""
    others = f" (and {number - 1} more like it)" if number > 1 else ""
    got = values[position] if values.dtype.kind in "iu" else f"{values[position]:g}"
    raise ValueError(f"{loss}: {must}, got {got}{where}{others}")


def refuse_number(loss: str, role: str, value: float, limits: Mapping[str, Any]) -> None:
    """Raise unless a number is what its limit, in words and as a function, says."""
    words, good = limits.get(role, ("", lambda number: True))
    if not good(value):
        raise ValueError(f"{loss}: {role} must {words}, got {value}.")


def counted_examples(
    backend: Backend, loss: str, weights: Array | None, examples: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    """Which examples have a weight, as an array of that shape, after checking the weights themselves."""
    if weights is None:
        return np.broadcast_to(np.True_, examples)
    values = to_host(backend, loss, "weights", weights, ("bool", "integer", "real"))
    refuse_shape(loss, values.shape, examples)
    values = values.astype(np.float64)
    refuse(loss, ~np.isfinite(values), values, "weights must be finite")
    refuse(loss, values < 0, values, "weights must not be negative (the loss would not be bounded below)")
    padded = values.reshape(values.shape + (1,) * (len(examples) - values.ndim))
    return np.broadcast_to(padded != 0, examples)


def refuse_empty(loss: str, counted: np.ndarray[Any, Any]) -> None:
    """Raise if no example counts."""
    if not counted.size:
        raise ValueError(f"{loss}: empty batch: examples of shape {counted.shape} are none. Drop this batch.")
    if not counted.any():
        raise ValueError(
            f"{loss}: empty batch: none of its {counted.size} examples counts (all are ignored or have weight zero), "
            "so that a mean over them is 0/0. Drop this batch, or look at the mask."
        )
