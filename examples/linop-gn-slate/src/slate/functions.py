"""Functions with derivatives, each written with such functions again, so that derivatives have derivatives."""

import numpy as np

from .arrays import Array, lifted, primitive

__all__ = ["add", "asarray", "astype", "broadcast_to", "concat", "cos", "divide", "exp", "from_dlpack", "log", "matmul"]
__all__ += ["multiply", "negative", "permute_dims", "reshape", "sin", "stack", "subtract", "sum", "tanh", "where"]


def _shape(x):
    return getattr(x, "shape", ())


def _fitted(g, like):
    """The cotangent summed over the axes that ``like`` was broadcast along."""
    shape = _shape(like)
    extra = len(g.shape) - len(shape)
    wide = [i for i, size in enumerate(g.shape) if i < extra or (shape[i - extra] == 1 and size != 1)]
    return reshape(sum(g, axis=tuple(wide)), shape) if wide else g


add = primitive(np.add, lambda g, z, x, y: _fitted(g, x), lambda g, z, x, y: _fitted(g, y))
subtract = primitive(np.subtract, lambda g, z, x, y: _fitted(g, x), lambda g, z, x, y: _fitted(-g, y))
multiply = primitive(np.multiply, lambda g, z, x, y: _fitted(g * y, x), lambda g, z, x, y: _fitted(g * x, y))
divide = primitive(np.divide, lambda g, z, x, y: _fitted(g / y, x), lambda g, z, x, y: _fitted(-g * z / y, y))
negative = primitive(np.negative, lambda g, z, x: -g)
exp = primitive(np.exp, lambda g, z, x: g * z)
log = primitive(np.log, lambda g, z, x: g / x)
sin = primitive(np.sin, lambda g, z, x: g * cos(x))
cos = primitive(np.cos, lambda g, z, x: -g * sin(x))
tanh = primitive(np.tanh, lambda g, z, x: g * (1.0 - z * z))
reshape = primitive(np.reshape, lambda g, z, x, shape: reshape(g, x.shape))
broadcast_to = primitive(np.broadcast_to, lambda g, z, x, shape: _fitted(g, x))
permute_dims = primitive(np.permute_dims, lambda g, z, x, axes: permute_dims(g, tuple(np.argsort(axes).tolist())))
_take = primitive(lambda x, key: x[key], lambda g, z, x, key: _scatter(g, key, x.shape))
_sum = primitive(np.sum, lambda g, z, x, axis, dtype: _spread(g, x, axis))
_where = primitive(
    np.where,
    None,
    lambda g, z, c, x, y: _fitted(_where(c, g, 0.0 * g), x),
    lambda g, z, c, x, y: _fitted(_where(c, 0.0 * g, g), y),
)
_product = primitive(
    np.matmul,
    lambda g, z, x, y: _product(g, permute_dims(y, (1, 0))),
    lambda g, z, x, y: _product(permute_dims(x, (1, 0)), g),
)


def _placed(x, key, shape):
    whole = np.zeros(shape, x.dtype)
    np.add.at(whole, key, x)
    return whole


_scatter = primitive(_placed, lambda g, z, x, key, shape: _take(g, key))


def sum(x, axis=None, dtype=None, keepdims=False):  # noqa: A001
    """Sum of entries, over some axes."""
    total = _sum(x, axis=axis, dtype=dtype)
    if not keepdims:
        return total
    axes = range(x.ndim) if axis is None else np.atleast_1d(axis) % x.ndim
    return reshape(total, tuple(1 if i in axes else size for i, size in enumerate(x.shape)))


def _spread(g, x, axis):
    axes = range(x.ndim) if axis is None else np.atleast_1d(axis) % x.ndim
    shape = tuple(1 if i in axes else size for i, size in enumerate(x.shape))
    return astype(broadcast_to(reshape(g, shape), x.shape), x.dtype)


def where(condition, x, y):
    """x where the condition holds, else y."""
    return _where(getattr(condition, "value", condition), x, y)


def matmul(x, y):
    """The product of matrices and vectors."""
    shape = (*x.shape[:-1], *(y.shape[1:] if y.ndim == 2 else ()))
    return reshape(_product(x if x.ndim > 1 else x[None, :], y if y.ndim > 1 else y[:, None]), shape)


def concat(arrays, axis=0):
    """Arrays one after the other along an axis."""
    ends = np.cumsum([x.shape[axis] for x in arrays]).tolist()
    total, made = (*arrays[0].shape[:axis], ends[-1], *arrays[0].shape[axis + 1 :]), None
    if all(x.node is None for x in arrays):
        return Array(np.concatenate([x.value for x in arrays], axis=axis))
    for x, end in zip(arrays, ends, strict=True):
        key = (slice(None),) * axis + (slice(end - x.shape[axis], end),)
        part = _scatter(x, key, total)
        made = part if made is None else made + part
    return made


def stack(arrays, axis=0):
    """Arrays side by side along a new axis."""
    return concat([reshape(x, (*x.shape[:axis], 1, *x.shape[axis:])) for x in arrays], axis=axis)


def _cast(x, dtype):
    return np.array(x, dtype=dtype)


_astype = primitive(_cast, lambda g, z, x, dtype: _astype(g, x.dtype))


def astype(x, dtype, copy=True):
    """The same numbers in another dtype."""
    return x if not copy and x.dtype == dtype else _astype(x, dtype)


def asarray(obj, dtype=None, device=None, copy=None):
    """An array, from another or from the host; a new one where ``copy`` is true."""
    if isinstance(obj, Array):
        return astype(obj, obj.dtype if dtype is None else dtype, copy=bool(copy))
    return Array(np.array(obj, dtype=dtype, copy=True if copy else None))


def from_dlpack(x):
    """An array over the memory of another library's."""
    return Array(np.from_dlpack(x))


def _operator(function, swapped=False):
    def run(self, other):
        if not isinstance(other, (Array, int, float, bool, np.generic)):
            return NotImplemented
        return function(other, self) if swapped else function(self, other)

    return run


def _in_place(function, ufunc):
    def run(self, other):
        if self.node is not None or getattr(other, "node", None) is not None:
            return function(self, other)
        ufunc(self.value, getattr(other, "value", other), out=self.value, casting="same_kind")
        return self

    return run


for name, function, ufunc in (
    ("add", add, np.add),
    ("sub", subtract, np.subtract),
    ("mul", multiply, np.multiply),
    ("truediv", divide, np.divide),
):
    setattr(Array, f"__{name}__", _operator(function))
    setattr(Array, f"__r{name}__", _operator(function, swapped=True))
    setattr(Array, f"__i{name}__", _in_place(function, ufunc))
for name, function in (("lt", np.less), ("le", np.less_equal), ("gt", np.greater), ("ge", np.greater_equal)):
    setattr(Array, f"__{name}__", _operator(lifted(function)))
for name, function in (("eq", np.equal), ("ne", np.not_equal), ("and", np.logical_and), ("or", np.logical_or)):
    setattr(Array, f"__{name}__", _operator(lifted(function)))
Array.__matmul__ = matmul
Array.__neg__ = negative
Array.__abs__ = lifted(np.abs)
Array.__invert__ = lifted(np.logical_not)
Array.__pow__ = _operator(lifted(np.power))
Array.__getitem__ = lambda self, key: _take(self, getattr(key, "value", key))
Array.T = property(lambda self: permute_dims(self, tuple(reversed(range(self.ndim)))))
Array.mT = property(lambda self: permute_dims(self, (*range(self.ndim - 2), self.ndim - 1, self.ndim - 2)))
