"""What Python objects a function reads hold now: a mark, which is another one when a program would be of another model.

Numbers that a model reads become constants of a program. They are looked for where a function finds them: in its
closure, defaults and globals, in functions, containers, NumPy arrays and objects that it finds there, and in the
methods of these. Tensors are told apart by identity: what is written into them is followed. Of NumPy arrays a copy is
kept, which the array is compared with: that misses nothing, and takes a tenth of the time of hashing it. Numbers are
compared by their bits as well, so that -0.0 is not 0.0, and a NaN is one.
"""

from __future__ import annotations

import sys
import weakref
from array import array
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from types import CellType, CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from .modules import INTERNAL, AdaptedModule

__all__ = ["mark"]

REACH = 4096
"""How many objects are looked at, the nearest first."""
MOST = 256
"""Containers of more entries are looked at for their length alone."""
_KEPT = INTERNAL - {"training", "_parameters", "_buffers", "_modules"}
_NUMBERS = type(None), bool, int, float, complex, str, bytes


class _Same:
    """An object, equal to itself alone."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.held is self.held

    def __hash__(self) -> int:
        return id(self.held)


class _Bits:
    """What a NumPy array held: equal to what holds the same bits."""

    def __init__(self, x: np.ndarray[Any, Any]) -> None:
        self.kind = x.shape, x.dtype
        self.words = _words(x).copy()  # the bytes between fields of records, too, which a copy of x need not have

    def are_those_of(self, x: np.ndarray[Any, Any]) -> bool:
        return self.kind == (x.shape, x.dtype) and self._holds(_words(x))

    def _holds(self, words: np.ndarray[Any, Any]) -> bool:
        own = self.words
        return all(np.array_equal(own[i : i + _BLOCK], words[i : i + _BLOCK]) for i in range(0, len(own), _BLOCK))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Bits):
            return False
        return self is other or (self.kind == other.kind and self._holds(other.words))

    def __hash__(self) -> int:
        return hash((self.kind[0], self.kind[1].str))


_BLOCK = 1 << 15
"""Words that are compared at a time, which a processor's cache holds."""
_latest: dict[int, tuple[weakref.ref[Any], _Bits]] = {}
"""What arrays held when they were last looked at, by their identities."""


def _words(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The bits of an array; no copy of a contiguous one."""
    flat = np.ascontiguousarray(x).reshape(-1).view(np.uint8) if x.nbytes else np.empty(0, np.uint8)
    return flat.view(np.uint64) if flat.size % 8 == 0 else flat


def _bits_of(x: np.ndarray[Any, Any]) -> _Bits:
    """Those that are kept of the array, while they are its own; else new ones."""
    key = id(x)
    held, bits = _latest.get(key, (None, None))
    if held is None or bits is None or held() is not x or not bits.are_those_of(x):
        bits = _Bits(x)
        _latest[key] = weakref.ref(x, partial(_forget, _latest, key)), bits
    return bits


def _forget(latest: dict[int, tuple[weakref.ref[Any], _Bits]], key: int, gone: Any) -> None:
    """Called with all that it needs: at the end of a process globals are gone before arrays."""
    if key in latest and latest[key][0] is gone:  # or another array has its identity by now
        del latest[key]


def mark(held: Any) -> Any:
    """What is another one when ``held`` finds other numbers, functions or objects than before.

    >>> scale = 1.0
    >>> before = mark(lambda x: scale * x)
    >>> scale = 2.0
    >>> mark(lambda x: scale * x) == before
    False
    """
    found: list[Any] = []
    seen: set[int] = set()
    todo = deque([held])
    while todo and len(seen) < REACH:
        x = todo.popleft()
        if isinstance(x, _NUMBERS):
            found.append((type(x), _exactly(x)))
        elif isinstance(x, bytearray | array):
            found.append((type(x), memoryview(x).format, bytes(x)))
        elif type(x) is np.ndarray and not x.dtype.hasobject:
            found.append(_bits_of(x))
        else:
            found.append(_Same(x.__code__ if isinstance(x, FunctionType) else x))
            if id(x) not in seen:
                seen.add(id(x))
                todo += _inside(x)
    return tuple(found)


def _exactly(x: Any) -> Any:
    """A number, or the bits of one."""
    if isinstance(x, float):
        return float.hex(x)
    return (float.hex(x.real), float.hex(x.imag)) if isinstance(x, complex) else x


def _inside(held: Any) -> Iterator[Any]:
    """What is looked at next."""
    if isinstance(held, AdaptedModule):  # which is another one when the module has changed
        for kind in {type(m): None for m in held.source.modules()}:
            yield from _methods(kind)
    elif isinstance(held, FunctionType):
        yield from _read(held)
    elif isinstance(held, partial):
        yield from (held.func, *held.args, *held.keywords.values())
    elif isinstance(held, MethodType):
        yield from (held.__func__, held.__self__)
    elif isinstance(held, staticmethod | classmethod):
        yield held.__func__
    elif isinstance(held, property):
        yield held.fget
    elif isinstance(held, type):
        yield from _methods(held)
    elif isinstance(held, np.ndarray):  # of objects, or with more than numbers: a mask
        if not held.dtype.hasobject:
            yield held.view(np.ndarray)
        elif held.size <= MOST:
            yield from (*held.shape, *held.ravel().tolist())
        yield from getattr(held, "__dict__", {}).values()
    elif isinstance(held, Mapping | list | tuple | set | frozenset | deque):
        yield len(held)
        if len(held) <= MOST:
            yield from held
            yield from held.values() if isinstance(held, Mapping) else ()
    elif not isinstance(held, torch.Tensor | ModuleType):
        own = getattr(held, "__dict__", {})
        yield from (x for name, x in own.items() if not (isinstance(held, nn.Module) and name in _KEPT))
        yield from _slots(held)
        yield from _methods(type(held))


def _slots(held: Any) -> Iterator[Any]:
    """What an object holds outside of its __dict__, but for those of libraries."""
    for x in _methods(type(held)):
        if isinstance(x, MemberDescriptorType):
            with suppress(AttributeError):  # nothing is there yet
                yield x.__get__(held)


def _read(function: FunctionType) -> Iterator[Any]:
    """What a function finds in its closure, defaults and globals, and in modules that are among these."""
    if _is_known(function.__module__):
        return
    yield from (cell.cell_contents for cell in function.__closure__ or () if cell != CellType())
    yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    names = list(dict.fromkeys(_names(function.__code__)))
    spaces, entered = [function.__globals__], {id(function.__globals__)}
    for space in spaces:
        read = [space[name] for name in names if name in space]
        yield from read
        for x in read:
            if isinstance(x, ModuleType) and id(vars(x)) not in entered and not _is_known(x.__name__):
                entered.add(id(vars(x)))
                spaces.append(vars(x))


def _methods(kind: type) -> Iterator[Any]:
    """What the classes of an object define, but for those of libraries."""
    for base in kind.__mro__:
        if not _is_known(base.__module__):
            yield from (x for name, x in vars(base).items() if name not in ("__dict__", "__weakref__"))


def _names(code: CodeType) -> Iterator[str]:
    """The names that a function reads, and those that functions inside of it read."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


@cache
def _is_known(module: str | None) -> bool:
    """Whether it is of a library, which stays as it is."""
    top = str(module).partition(".")[0]
    if top in sys.stdlib_module_names or top in ("torch", "linop_gn", "linop_gn_torch"):
        return True
    return "-packages" in (getattr(sys.modules.get(top), "__file__", None) or "")
