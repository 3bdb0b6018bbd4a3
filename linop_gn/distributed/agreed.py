"""What processes must find alike before they go on together."""

from __future__ import annotations

from enum import Enum
from numbers import Number
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from ..dispatch import backend_of, owner_of
from ..protocols import Backend, Vector
from ..records import fields
from ..spaces import Space
from .reduction import Reduction, mark_of

__all__ = ["Agreed", "require_alike", "told_of"]


class Agreed(NamedTuple):
    """The processes of a reduction, asked in arrays like a vector."""

    reduction: Reduction
    like: Vector

    @property
    def _ops(self) -> Backend:
        return backend_of(self.like)

    def require_same(self, found: Any, what: str) -> None:
        """Raise on all of them, saying ``what``, unless all found the same."""
        self.reduction.require_same(self._ops, self.like, mark_of(found), what)

    def wait(self) -> None:
        """Until all of them have come here."""
        self.reduction.any(self._ops, self.like, False)


def require_alike(reduction: Reduction | None, door: str, space: Space, asked: Any, **vectors: Vector | None) -> None:
    """Raise on all processes where some ask for other things than others: numbers, methods, vectors.

    One collective of 17 numbers and 16 for each vector, before anything is begun: else they would take other steps, and
    wait for each other.
    """
    if reduction is None:
        return
    ops = space.backend
    given = {name: v for name, v in vectors.items() if v is not None}
    marks = {
        _ASKED.format(door): mark_of((told_of(reduction, asked), [(k, ops.describe(v)[:2]) for k, v in given.items()]))
    }
    marks |= {_OWN.format(door, name.replace("_", " ")): reduction.fingerprint(ops, v) for name, v in given.items()}
    reduction.compare(ops, space.one, marks)


def told_of(reduction: Reduction, x: Any) -> Any:
    """What must be the same everywhere of an option, a loss, a method, an operator: numbers, arrays, kinds of things.

    Of an operator no arrays are told, which may come of a share of the data.
    """
    if x is None or isinstance(x, (bool, int, float, str, Enum)):
        return x
    if isinstance(x, (np.ndarray, np.generic)):
        return x.item() if x.ndim == 0 else (x.shape, crc32(np.ascontiguousarray(x).tobytes()))
    if isinstance(x, (tuple, list)):
        return tuple(told_of(reduction, part) for part in x)
    if isinstance(x, dict):
        return tuple((str(name), told_of(reduction, part)) for name, part in x.items())
    kind = getattr(x, "__qualname__", type(x).__qualname__)
    if isinstance(x, type):
        return kind
    ops = owner_of(x)
    if ops is not None and ops.is_array(x):
        return ops.describe(x)[:2], reduction.fingerprint(ops, x)
    if hasattr(x, "reduction") and hasattr(x, "matvec"):
        held = fields(x) if hasattr(x, "__dataclass_fields__") else {}
        return kind, [(name, told_of(reduction, part)) for name, part in held.items() if _is_number_or_operator(part)]
    if hasattr(x, "__dataclass_fields__") and not hasattr(x, "objective") and not hasattr(x, "batches"):
        return kind, [(name, told_of(reduction, part)) for name, part in fields(x).items()]
    return kind


def _is_number_or_operator(x: Any) -> bool:
    if isinstance(x, (tuple, list)):
        return all(map(_is_number_or_operator, x))
    return isinstance(x, (Number, str)) or hasattr(x, "matvec") or getattr(x, "shape", None) == ()


_ASKED = (
    "{}: the processes ask for different things. Give all of them the same method, with the same numbers, the same "
    "damping, limits and tolerances, and vectors of one shape and dtype."
)
_OWN = (
    "{}: the {} is not the same on all processes. Take it from the objective that is summed over them, not from "
    "that of one process's own examples (fit.gradient rather than own.gradient), and begin from one seed."
)
