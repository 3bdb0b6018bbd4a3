"""Whose memory an array is: whether the caller of a function is the only one who knows of its result.

CPython counts references. What a function has just made and stored nowhere has as
few as possible when it arrives; how few that is depends on the interpreter's
version, and is measured on an array of which it is known. Where it cannot be
told from one that somebody holds (no counts, none that differ, or a debugger
that looks into frames and holds what it sees), nothing is taken to be alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

__all__ = ["NumpyOwnership"]

R = TypeVar("R")


def _counted(make: Callable[[], R]) -> tuple[R, int]:
    made = make()
    return made, sys.getrefcount(made)


def _fresh() -> Any:
    return np.empty(1)


_HELD = np.empty(1)
_COUNTS = hasattr(sys, "getrefcount")
"""PyPy has none."""


def _held() -> Any:
    return _HELD


class NumpyOwnership:
    """Knowing which results need no copy before they are written to."""

    def alone(self, make: Callable[[], R]) -> tuple[R, bool]:
        made: Any
        if not _COUNTS or sys.gettrace() is not None or sys.getprofile() is not None:
            return make(), False
        made, count = _counted(make)
        mine = type(made) is np.ndarray and made.base is None and made.flags.owndata and made.flags.writeable
        # Measured each time, under what looks on this time.
        return made, mine and count <= _counted(_fresh)[1] < _counted(_held)[1]
