"""``autograd.numpy`` as an array-API namespace: what it lacks of the standard's names, with derivatives.

autograd wraps whatever NumPy has, but knows derivatives only for the names that
NumPy had before it adopted the standard.
"""

from __future__ import annotations

from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defvjp, primitive
from autograd.numpy.numpy_boxes import ArrayBox

__all__ = ["namespace"]


@primitive
def astype(x: Any, dtype: Any, copy: bool = True) -> Any:
    """``x`` in another dtype."""
    return np.asarray(x).astype(dtype, copy=copy)


@primitive
def take_along_axis(x: Any, indices: Any, axis: int = -1) -> Any:
    """The entries of ``x`` at ``indices`` along an axis."""
    return np.take_along_axis(x, indices, axis)


@primitive
def _put_along_axis(values: Any, indices: Any, axis: int, shape: tuple[int, ...]) -> Any:
    """Zeros of this shape with ``values`` added at ``indices``: the adjoint of :func:`take_along_axis`."""
    result = np.zeros(shape, values.dtype)
    grid = list(np.indices(values.shape, sparse=True))
    grid[axis] = np.broadcast_to(indices, values.shape)
    np.add.at(result, tuple(grid), values)
    return result


defvjp(astype, lambda ans, x, dtype, copy=True: lambda g: astype(g, anp.result_type(x)))
defvjp(
    take_along_axis,
    lambda ans, x, indices, axis=-1: lambda g: _put_along_axis(g, indices, axis, anp.shape(x)),
    argnums=(0,),
)
defvjp(
    _put_along_axis,
    lambda ans, values, indices, axis, shape: lambda g: take_along_axis(g, indices, axis),
    argnums=(0,),
)


def vecdot(x: Any, y: Any, /, *, axis: int = -1) -> Any:
    """Sums of products along an axis."""
    return anp.sum(x * y, axis=axis)


def take(x: Any, indices: Any, /, *, axis: int = 0) -> Any:
    """The entries at ``indices`` along an axis."""
    return x[(slice(None),) * (axis % anp.ndim(x)) + (indices,)]


def broadcast_to(x: Any, /, shape: tuple[int, ...]) -> Any:
    """``x`` repeated to this shape; autograd's own takes no further leading axes."""
    return anp.broadcast_to(anp.reshape(x, (1,) * (len(shape) - anp.ndim(x)) + anp.shape(x)), shape)


def clip(x: Any, /, min: Any = None, max: Any = None) -> Any:  # noqa: A002
    """``x`` held between two bounds, either of which may be left out."""
    x = x if min is None else anp.maximum(x, min)
    return x if max is None else anp.minimum(x, max)


def flip(x: Any, /, *, axis: Any = None) -> Any:
    """The entries in reverse order along one axis, some, or all."""
    axes = range(anp.ndim(x)) if axis is None else [axis] if isinstance(axis, int) else axis
    turned = {a % anp.ndim(x) for a in axes}
    return x[tuple(slice(None, None, -1 if a in turned else 1) for a in range(anp.ndim(x)))]


def unstack(x: Any, /, *, axis: int = 0) -> tuple[Any, ...]:
    """The slices along an axis."""
    before = (slice(None),) * (axis % anp.ndim(x))
    return tuple(x[(*before, i)] for i in range(anp.shape(x)[axis]))


def cumulative_sum(x: Any, /, *, axis: int | None = None, dtype: Any = None) -> Any:
    """Sums of what comes before, along an axis."""
    return anp.cumsum(x if dtype is None else astype(x, dtype), axis=axis)


def matrix_transpose(x: Any, /) -> Any:
    """The last two axes swapped."""
    return anp.swapaxes(x, -1, -2)


class _Namespace:
    """autograd's functions under the standard's names, and NumPy's for what needs no derivative."""

    pow, acos, asin, atan = map(staticmethod, (anp.power, anp.arccos, anp.arcsin, anp.arctan))
    acosh, asinh, atanh, atan2 = map(staticmethod, (anp.arccosh, anp.arcsinh, anp.arctanh, anp.arctan2))
    bool = np.bool_
    astype, take_along_axis = staticmethod(astype), staticmethod(take_along_axis)
    vecdot, matrix_transpose, take = staticmethod(vecdot), staticmethod(matrix_transpose), staticmethod(take)
    broadcast_to, clip, flip = map(staticmethod, (broadcast_to, clip, flip))
    unstack, cumulative_sum = map(staticmethod, (unstack, cumulative_sum))
    __name__ = "autograd.numpy"
    __array_namespace_info__ = getattr(np, "__array_namespace_info__", None)
    isdtype, finfo, iinfo, from_dlpack = map(staticmethod, (np.isdtype, np.finfo, np.iinfo, np.from_dlpack))
    can_cast, arange, zeros, ones = map(staticmethod, (np.can_cast, np.arange, np.zeros, np.ones))
    full, empty, eye, linspace = map(staticmethod, (np.full, np.empty, np.eye, np.linspace))

    def __getattr__(self, name: str) -> Any:
        return getattr(anp, name)

    @staticmethod
    def asarray(x: Any, /, *, dtype: Any = None, device: Any = None, copy: bool | None = None) -> Any:
        """An array; what is being differentiated stays that."""
        if isinstance(x, ArrayBox):
            return x if dtype is None else astype(x, dtype)
        return np.asarray(x, dtype=dtype, device=device, copy=copy)

    @staticmethod
    def concat(arrays: Any, /, *, axis: int | None = 0) -> Any:
        """Arrays joined along an axis; flattened first if that is None."""
        return anp.concatenate([anp.reshape(x, (-1,)) for x in arrays] if axis is None else list(arrays), axis or 0)

    @staticmethod
    def permute_dims(x: Any, /, axes: tuple[int, ...]) -> Any:
        """The axes in another order."""
        return anp.transpose(x, axes)


namespace = _Namespace()

# The standard gives arrays a device and a transpose. Boxes of autograd are NumPy's in disguise, and have neither.
ArrayBox.device = "cpu"
ArrayBox.mT = property(matrix_transpose)
