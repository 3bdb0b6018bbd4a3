"""The array type: a NumPy array, and the node of the record that it belongs to, if any."""

import itertools

import numpy as np

__all__ = ["Array", "Node", "lifted", "primitive", "record"]

_numbers = itertools.count()


class Node:
    """A step of the record: what it was made from, and the cotangents of that from its own."""

    __slots__ = ("number", "parents", "pull")

    def __init__(self, parents=(), pull=None):
        self.number, self.parents, self.pull = next(_numbers), parents, pull


class Array:
    """Numbers, and where they came from; operators are in :mod:`slate.functions`."""

    __array_ufunc__ = None  # NumPy's scalars leave arithmetic to us
    __hash__ = None

    def __init__(self, value, node=None):
        self.value, self.node = np.asarray(value), node

    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    dtype = property(lambda self: self.value.dtype)
    flags = property(lambda self: self.value.flags)
    device = "cpu"

    def numpy(self):
        """A NumPy array of one's own."""
        return self.value.copy()

    def __float__(self):
        return float(self.value)

    def __int__(self):
        return int(self.value)

    def __bool__(self):
        return bool(self.value)

    def __len__(self):
        return len(self.value)

    def __array__(self, *args, **options):
        raise TypeError("a slate array is not turned into a NumPy array silently: call its method numpy()")

    def __dlpack__(self, **options):
        return self.value.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.value.__dlpack_device__()

    def __setitem__(self, key, value):
        if self.node is not None:
            raise TypeError("an array that is being recorded cannot be written to; use where or concat")
        self.value[_value(key)] = _value(value)

    def __repr__(self):
        return f"slate.{repr(self.value).replace('array', 'Array', 1)}"


def record(x):
    """The same numbers as the start of a new record."""
    return Array(x.value, Node())


def _value(x):
    if isinstance(x, Array):
        return x.value
    return type(x)(map(_value, x)) if type(x) in (list, tuple) else x


def primitive(forward, *pulls):
    """A function of arrays with derivatives: ``pulls[i](g, out, *args)`` is the cotangent of argument i."""

    def run(*args, **options):
        out = Array(forward(*map(_value, args), **options))
        live = [i for i, x in enumerate(args) if isinstance(x, Array) and x.node is not None]
        if live:
            parents = tuple(args[i].node for i in live)
            out.node = Node(parents, lambda g: [pulls[i](g, out, *args, **options) for i in live])
        return out

    return run


def lifted(function):
    """A function of NumPy's on slate arrays, without a derivative."""

    def run(*args, **options):
        given = [*args, *options.values(), *(x for group in args if isinstance(group, (list, tuple)) for x in group)]
        made = function(*map(_value, args), **{name: _value(value) for name, value in options.items()})
        recorded = any(isinstance(x, Array) and x.node is not None for x in given)
        if recorded and getattr(made, "dtype", np.dtype(bool)).kind == "f":
            raise NotImplementedError(f"slate has no derivative for {function.__name__}")
        return _wrapped(made)

    return run


def _wrapped(made):
    if isinstance(made, (np.ndarray, np.generic)):
        return Array(made)
    return tuple(map(_wrapped, made)) if isinstance(made, tuple) else made
