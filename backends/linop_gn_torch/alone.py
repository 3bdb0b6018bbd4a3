"""Where parameters are whole: what :class:`.gathering.Way` does for those that lie over processes is nothing here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

__all__ = ["ALONE", "Alone"]


class Alone:
    """A process with all of the parameters."""

    def over(self, function: Callable[[list[Tensor]], Any]) -> Callable[[list[Tensor]], Any]:
        """``function`` as one of what is differentiated."""
        return function

    def run(self, key: Any, along: Any = None, only: Sequence[int] | None = None) -> AbstractContextManager[None]:
        """What the processes do together."""
        return nullcontext()

    def follow(self, leaves: Sequence[int], parts: Sequence[Tensor]) -> None:
        """Take these for what the process has of a tangent in what is run."""

    def summed(self, parts: Sequence[Tensor], leaves: Sequence[int]) -> Sequence[Tensor]:
        """What was scattered of these leaves, with what other processes added to it."""
        return parts

    def completed(self, parts: list[Tensor], only: tuple[int, ...] | None = None) -> list[Tensor]:
        """The leaves of a result."""
        return parts

    def linearized(self, made: Any) -> Any:
        """A linearisation, or one of a gradient, of what is differentiated as one of the parameters."""
        return made

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each of these is so on some process."""
        return flags

    def totals(self, of_leaves: list[float], of_outputs: list[float]) -> tuple[list[float], list[float]]:
        """Numbers summed over all entries of leaves, and such over all of outputs."""
        return of_leaves, of_outputs

    def meet(self) -> None:
        """What the processes have been asked for so far, they have done."""

    def forget(self) -> None:
        """What is run from now on may go another way."""


ALONE = Alone()
