"""Watchers of a run that several processes take together: shown on one of them, and stopped on all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

from ..protocols import Backend, Vector
from .reduction import Reduction

__all__ = ["Together", "telling", "together"]


class Together:
    """Watchers as one, whose wish to stop is that of any process.

    Those that ``shows`` (a progress bar) are left out on all processes but the first. Where none ``stops``, nothing is
    sent: a process may have a progress bar or a recorder that others have not. Watchers that stop belong on all.
    """

    def __init__(self, watch: Sequence[Any], agreed: Callable[[bool], bool], first: bool) -> None:
        self.watch = [watcher for watcher in watch if first or not getattr(watcher, "shows", False)]
        self.stops = any(getattr(watcher, "stops", True) for watcher in watch)
        self.agreed = agreed
        self._begun = ExitStack()

    def begin(self, look: Any) -> None:
        """Begin each."""
        self.latest = look
        with ExitStack() as begun:
            for watcher in self.watch:
                if hasattr(watcher, "begin"):
                    watcher.begin(look)
                if hasattr(watcher, "end"):
                    begun.callback(lambda end: end(self.latest), watcher.end)
            self._begun = begun.pop_all()

    def __call__(self, look: Any) -> bool:
        """Show the look to each; whether any process wishes to stop."""
        self.latest = look
        wishes = [watcher(look) for watcher in self.watch]
        return self.agreed(any(wishes)) if self.stops else False

    def end(self, look: Any) -> None:
        """End each."""
        self.latest = look
        self._begun.close()


def together(
    reduction: Reduction | None, ops: Backend, like: Vector, watch: Sequence[Callable[[Any], Any]]
) -> list[Callable[[Any], Any]]:
    """The watchers of a run whose products are summed over processes; as they are where there is one process."""
    if reduction is None or not watch:
        return list(watch)
    return [Together(watch, lambda wish: reduction.any(ops, like, wish), reduction.first)]


def telling(reduction: Reduction | None) -> AbstractContextManager[Any]:
    """What is raised inside, other processes hear of where they wait for this one."""
    return nullcontext() if reduction is None else reduction.telling()
