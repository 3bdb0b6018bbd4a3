"""Processes that work together, where a framework has groups of them."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Processes"]


class Processes(Protocol):
    """What a framework knows of other processes."""

    def processes(self, group: Any, model: Any) -> tuple[Any, Any]:
        """The :class:`linop_gn.distributed.Reduction` over a group, and the model without a wrapper for processes.

        ``group`` None is all processes, or the group of the wrapper. A framework without groups says what to do.
        """
        ...
