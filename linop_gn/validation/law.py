"""A law: what it compares, what measures it, what was found, and what a failure means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from .measure import BELOW_FLOAT64
from .subject import Subject

__all__ = ["Found", "Law", "law"]


@dataclass(frozen=True)
class Found:
    """What a check measured: the error, how uncertain the oracle is, and what else is worth telling."""

    error: float
    uncertainty: float = 0.0
    note: str = ""
    advice: str = ""
    """Instead of the law's own."""


class Law(NamedTuple):
    """A check: its name, what it compares, the function that measures it, and what a failure means."""

    name: str
    measures: str
    check: Callable[[Subject], Found]
    advice: str
    oracle: bool = False
    """Whether it compares with something that was computed in another way."""
    floor: float = 0.0
    steady: bool = False
    """Whether last bits of the parameters play no part in it."""
    exact: bool = False
    """The error is a count, and has to be 0."""
    after: tuple[str, ...] = ("finite", "determinism")
    """Checks without which this one means nothing: it is skipped if one of them failed."""

    def allowed(self, subject: Subject, uncertainty: float) -> float:
        """The tolerance."""
        room = BELOW_FLOAT64 if self.oracle and subject.roomy else 1.0
        if self.exact:
            return 0.0
        wobble = 0.0 if self.steady else subject.wobble
        return max(room * subject.tolerance, self.floor, 2 * wobble) + 10 * uncertainty


def law(measures: str, advice: str, **options: Any) -> Callable[[Callable[[Subject], Found]], Law]:
    """A decorator: the :class:`Law` that a function measures, under its name; ``options`` are its other fields."""
    return lambda check: Law(check.__name__, measures, check, advice, **options)
