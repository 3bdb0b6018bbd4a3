"""A sum over whole numbers of what a pure function makes of each: one loop in a compiled program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from .protocols import Backend

__all__ = ["sum_over_indices"]

R = TypeVar("R")


def sum_over_indices(ops: Backend, function: Callable[..., R], count: int, *shared: Any) -> R:
    """The sum of ``function(i, *shared)`` for i = 0 .. count - 1 >= 0; the results are tuples of arrays.

    >>> from linop_gn import load
    >>> import numpy as np
    >>> sum_over_indices(load("numpy"), lambda i, x: (i * x,), 4, np.ones(2))
    (array([6., 6.]),)
    """
    if "compiled" in ops.capabilities and not any(getattr(record, "host", False) for record in shared):
        xp = ops.namespace()
        return ops.sum_over(function, xp.arange(count, dtype=xp.int32), *shared)
    total: Any = function(0, *shared)
    for i in range(1, count):
        total = tuple(a + b for a, b in zip(total, function(i, *shared), strict=True))  # type: ignore[call-overload]
    return total  # type: ignore[no-any-return]
