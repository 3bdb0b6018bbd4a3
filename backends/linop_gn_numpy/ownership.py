"""Whose memory an array is: whether the caller of a function is the only one who knows of its result.

CPython counts references. What a function has just made and kept nowhere has as
few as possible when it arrives; how few that is depends on the interpreter's
version, and is measured on an array of which it is known. Where it cannot be
told from one that somebody holds (no counts, or none that differ), nothing is
taken to be alone.
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


def _least() -> int:
    """The count of an array that nobody else holds; -1 where counts do not tell."""
    if not hasattr(sys, "getrefcount"):
        return -1
    held = np.empty(1)
    alone, kept = _counted(lambda: np.empty(1))[1], _counted(lambda: held)[1]
    return alone if kept > alone else -1


_ALONE = _least()


class NumpyOwnership:
    """Knowing which results need no copy before they are written to."""

    def alone(self, make: Callable[[], R]) -> tuple[R, bool]:
        made: Any
        made, count = _counted(make)
        mine = type(made) is np.ndarray and made.base is None and made.flags.owndata and made.flags.writeable
        return made, mine and count == _ALONE
