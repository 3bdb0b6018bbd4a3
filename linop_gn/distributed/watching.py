"""Watchers of a run that several processes take together: shown on one of them, and stopped on all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

from ..protocols import Backend, Vector
from .reduction import Reduction

__all__ = ["Together", "summing", "telling", "together", "told_to_all"]

F = TypeVar("F", bound=Callable[..., Any])


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


_active: ContextVar[Reduction | None] = ContextVar("active", default=None)


def summing() -> Reduction | None:
    """What is summed over by that which is being made."""
    return _active.get()


def telling(reduction: Any) -> AbstractContextManager[Any]:
    """What is raised inside, other processes hear of where they wait for this one; what is no reduction has none."""
    reduction = reduction if isinstance(reduction, Reduction) else None
    return nullcontext() if reduction is None and _active.get() is None else _telling(reduction)


@contextmanager
def _telling(reduction: Reduction | None) -> Iterator[None]:
    """Either is set: what belongs to no sum is aside of the one that is being made."""
    outer = _active.get()
    token = _active.set(reduction)
    try:
        if reduction is not None:
            with reduction.telling():
                yield
        elif outer is not None:
            with outer.aside():
                yield
    finally:
        _active.reset(token)


def told_to_all(door: F) -> F:
    """A door whose first argument is an operator: what it raises, the processes that its products are summed over hear.

    Where an argument is refused on one of them, the others may be in the first product.
    """

    @wraps(door)
    def opened(A: Any, *args: Any, **options: Any) -> Any:
        reduction = getattr(A, "reduction", None)
        if reduction is None and _active.get() is None:
            return door(A, *args, **options)
        with telling(reduction):
            return door(A, *args, **options)

    return opened  # type: ignore[return-value]
