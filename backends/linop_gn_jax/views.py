"""Views of parameters, and what primitive operations make of them: views again, or nothing that strides can tell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
from jax.extend import core

from linop_gn.backend import View

__all__ = ["MOVES", "c_strides", "entry", "moved", "repeats", "reshaped", "stretched", "taken", "view_of"]


def view_of(leaf: int, offset: int, shape: Sequence[int], strides: Sequence[int] | None = None) -> View:
    """The view, in C order unless told. An axis of length one has the stride 0: it is repeated once."""
    strides = c_strides(shape) if strides is None else strides
    fixed = (0 if n == 1 else int(s) for n, s in zip(shape, strides, strict=True))
    return View(leaf, int(offset), tuple(map(int, shape)), tuple(fixed))


def c_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Of an array in C order, in entries."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def taken(view: View, axes: Sequence[int]) -> View:
    """Some of its axes, in this order; the first entries along the others."""
    return view_of(view.leaf, view.offset, [view.shape[a] for a in axes], [view.strides[a] for a in axes])


def entry(view: View, axis: int, index: int) -> View:
    """One entry along an axis."""
    at = view._replace(offset=view.offset + index * view.strides[axis])
    return taken(at, [a for a in range(len(view.shape)) if a != axis])


def repeats(view: View, axes: Sequence[int] | None = None) -> bool:
    """Whether one of these axes (of all) holds the same entries again and again."""
    axes = range(len(view.shape)) if axes is None else axes
    return any(view.shape[a] > 1 and view.strides[a] == 0 for a in axes)


def stretched(view: View, shape: Sequence[int]) -> View:
    """As elementwise operations take an operand: a scalar, or with axes of length one."""
    return _broadcast(view, shape, range(len(shape) - len(view.shape), len(shape)))


def reshaped(view: View, shape: Sequence[int]) -> View | None:
    """The same entries in the same order, where strides can tell; as NumPy reshapes without a copy."""
    if math.prod(shape) == 0:
        return None
    old = [(n, s) for n, s in zip(view.shape, view.strides, strict=True) if n > 1]
    strides: list[int] = []
    waiting: list[int] = []  # new axes whose product is not yet one of old axes
    for n in shape:
        waiting.append(n)
        size, covered, count = math.prod(waiting), 1, 0
        while covered < size:
            covered *= old[count][0]
            count += 1
        if size == 1 or covered != size:
            continue
        if any(s != m * t for (_, s), (m, t) in itertools.pairwise(old[:count])):
            return None
        strides += [old[count - 1][1] * s for s in c_strides(waiting)]
        old, waiting = old[count:], []
    return view_of(view.leaf, view.offset, shape, [*strides, *(0 for _ in waiting)])


def moved(eqn: core.JaxprEqn, view: View | None, others: Sequence[int | None]) -> list[View | None]:
    """What an operation of :data:`MOVES` makes of a view; ``others`` are its other operands, None where unknown."""
    if view is None or math.prod(view.shape) == 0:
        return [None] * len(eqn.outvars)
    return MOVES[eqn.primitive.name](view, eqn.params, eqn.outvars[0].aval.shape, others)


def _slice(
    view: View, starts: Sequence[int], limits: Sequence[int], steps: Sequence[int] | None = None
) -> list[View | None]:
    steps = [1] * len(starts) if steps is None else steps
    offset = view.offset + sum(int(a) * s for a, s in zip(starts, view.strides, strict=True))
    shape = [-(-(b - a) // n) for a, b, n in zip(starts, limits, steps, strict=True)]
    return [view_of(view.leaf, offset, shape, [s * n for s, n in zip(view.strides, steps, strict=True)])]


def _dynamic_slice(view: View, sizes: Sequence[int], others: Sequence[int | None]) -> list[View | None]:
    starts = [0 if at is None else min(max(at, 0), n - m) for at, n, m in zip(others, view.shape, sizes, strict=True)]
    return [None] if None in others else _slice(view, starts, [a + m for a, m in zip(starts, sizes, strict=True)])


def _split(view: View, axis: int, sizes: Sequence[int]) -> list[View | None]:
    made, start = list[View | None](), 0
    for size in sizes:
        starts, limits = [0] * len(view.shape), list(view.shape)
        starts[axis], limits[axis] = start, start + size
        made += _slice(view, starts, limits)
        start += size
    return made


def _rev(view: View, axes: Sequence[int]) -> list[View | None]:
    offset = view.offset + sum((view.shape[a] - 1) * view.strides[a] for a in axes)
    strides = [-s if a in axes else s for a, s in enumerate(view.strides)]
    return [view_of(view.leaf, offset, view.shape, strides)]


def _broadcast(view: View, shape: Sequence[int], dimensions: Sequence[int]) -> View:
    strides = [0] * len(shape)
    for axis, n, s in zip(dimensions, view.shape, view.strides, strict=True):
        strides[axis] = s if n == shape[axis] else 0
    return view_of(view.leaf, view.offset, shape, strides)


_Move: TypeAlias = "Callable[[View, dict[str, Any], Sequence[int], Sequence[int | None]], list[View | None]]"

_same: _Move = lambda view, p, shape, others: [view]  # noqa: E731
_reshape: _Move = lambda view, p, shape, others: [reshaped(view, shape)]  # noqa: E731

MOVES: dict[str, _Move] = {
    "broadcast_in_dim": lambda view, p, shape, _: [_broadcast(view, shape, p["broadcast_dimensions"])],
    "convert_element_type": lambda view, p, *_: [view if jnp.issubdtype(p["new_dtype"], jnp.floating) else None],
    "copy": _same,
    "copy_p": _same,
    "dynamic_slice": lambda view, p, _, others: _dynamic_slice(view, p["slice_sizes"], others),
    "expand_dims": _reshape,
    "name": _same,
    "reshape": _reshape,
    "reshard": _same,
    "rev": lambda view, p, *_: _rev(view, p["dimensions"]),
    "sharding_constraint": _same,
    "slice": lambda view, p, *_: _slice(view, p["start_indices"], p["limit_indices"], p["strides"]),
    "split": lambda view, p, *_: _split(view, p["axis"], p["sizes"]),
    "squeeze": _reshape,
    "transpose": lambda view, p, *_: [taken(view, p["permutation"])],
    "unstack": lambda view, p, *_: [entry(view, p["axis"], i) for i in range(view.shape[p["axis"]])],
}
"""(view, parameters of the operation, shape of its first result, other operands) -> the views that it makes."""
