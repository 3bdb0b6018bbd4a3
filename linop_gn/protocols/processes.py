"""Processes that work together, where a framework has groups of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

__all__ = ["Processes", "is_leaving", "leaving"]

T = TypeVar("T")


class Processes(Protocol):
    """What a framework knows of other processes."""

    def processes(self, group: Any, model: Any) -> tuple[Any, Any]:
        """The :class:`linop_gn.distributed.Reduction` over a group, and the model without a wrapper for processes.

        ``group`` None is all processes, or the group of the wrapper. A framework without groups says what to do.
        """
        ...

    def apart(self, x: T, reduction: Any) -> T:
        """The parameters as those of one of the processes that ``reduction`` sums over, to be differentiated there.

        Raises
        ------
        TypeError, ValueError
            Where products cannot call this reduction.
        """
        ...


_leaving: ContextVar[bool] = ContextVar("leaving", default=False)


@contextmanager
def leaving() -> Iterator[None]:
    """Inside, a process is on its way out of an error: what it would send or wait for raises, as others may be gone."""
    token = _leaving.set(True)
    try:
        yield
    finally:
        _leaving.reset(token)


def is_leaving() -> bool:
    """Whether this process is :func:`leaving`."""
    return _leaving.get()
