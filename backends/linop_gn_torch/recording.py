"""What must be in force again whenever a recorded graph is run backward.

Most graphs hold all they need. One with activation checkpointing does not: it
runs parts of the model's forward again, and that must meet the same kernels
and the same parameters as the first time. Recomputed with the module's own
parameters instead of the ones differentiated at, the products would be
silently those of another point.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

from .safe_ops import twice_differentiable

__all__ = ["Recording", "current"]

R = TypeVar("R")
Surround = Callable[[Callable[[], Any]], Any]

current: ContextVar[Recording | None] = ContextVar("current", default=None)
"""The recording that is being made, for those who have something to add to it."""


class Recording:
    """Surroundings of one recorded graph; ``kernels`` is the context that chooses its operations."""

    def __init__(self, kernels: Callable[[], AbstractContextManager[None]] = twice_differentiable) -> None:
        self.kernels = kernels
        self.surroundings: list[Surround] = []

    def make(self, thunk: Callable[[], R]) -> R:
        """Run ``thunk``, which records a graph."""
        token = current.set(self)
        try:
            with self.kernels():
                return thunk()
        finally:
            current.reset(token)

    def resume(self, thunk: Callable[[], R]) -> R:
        """Run ``thunk``, which goes through the graph."""
        for surround in self.surroundings:
            thunk = partial(surround, thunk)
        with self.kernels():
            return thunk()
