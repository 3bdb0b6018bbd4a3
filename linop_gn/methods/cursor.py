"""The place of a run in its batches: taken one by one, gone back to in a run that goes on, alike on all processes."""

from __future__ import annotations

import itertools
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from typing import Any
from zlib import crc32

import numpy as np

from ..dispatch import backend_of
from ..distributed.agreed import Agreed
from .generators import Generators
from .problem import StepData
from .state import is_written

__all__ = ["Cursor"]

_UNEVEN = (
    "minimize: one process has fewer batches than another, and each step takes one of every process. Give all of them "
    "equally many (torch's DistributedSampler does); their sizes may differ."
)


class Cursor:
    """The place of a run in its batches, which it goes through ``passes`` times (None: as often as asked)."""

    def __init__(
        self,
        batches: Iterable[Any],
        passes: int | None,
        generators: Generators | None,
        agreed: Agreed | None = None,
    ) -> None:
        if not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
            raise TypeError(
                f"minimize: batches= is a list, loader or generator of batches, got a {type(batches).__qualname__}."
            )
        self.batches, self.passes, self.generators = batches, passes, generators
        length = _length(batches) if hasattr(batches, "__len__") else None
        if agreed is not None:
            agreed.require_same(length, _UNEVEN)
        self._agreed = agreed if length is None else None  # or each batch that comes is agreed upon
        self._first_of_all = agreed is None or agreed.reduction.first
        self.one_shot = isinstance(batches, Iterator)
        if self.one_shot and passes != 1:
            raise ValueError(
                f"minimize: the batches are a one-shot {type(batches).__qualname__}, which can be gone through once: "
                "pass passes=1, or a list or loader that starts anew."
            )
        self.past = self.taken = 0
        self._rest: Iterator[Any] | None = None
        self._drawn: Any = None  # where the generators were when the pass began
        self._next: tuple[Any, ...] = ()
        self._told: dict[str, str] = {}
        self._first: int | None = None
        """Checksum of the pass's first batch."""
        self._is_other = False

    def __iter__(self) -> Iterator[Any]:
        while self._is_left_to_all():
            (batch,), self._next = self._next, ()
            self.taken += 1
            yield batch

    def peek(self) -> Any:
        """The batch that comes next; where none is left, the first one. It is to be like those of the run gone on from.

        What other orders and lengths of examples leave alone is compared; of values only those of a pass's first batch.
        """
        batch = self._next[0] if self.is_left() else next(iter(self.batches))
        told = {"the number of batches in a pass": f"{_length(self.batches)}"} | _kinds("the batch", batch)
        pairs = {name: (self._told.get(name, now), now) for name, now in told.items()}
        if differ := [f"{name} was {was}, is {now}" for name, (was, now) in pairs.items() if was != now]:
            raise ValueError(
                f"minimize: the batches are not those of the run that is gone on from: {'; '.join(differ[:4])}. "
                "Give the loader that it had, or another path; state= takes other data."
            )
        self._told = told
        if self._is_other and self._first_of_all:
            warnings.warn(
                "minimize: the first batch of the pass is another than when the run took it, so that it does not go on "
                "as it would have. Other data? Give those that it had, or another path. A loader that shuffles, or "
                "augments, by a generator of its own? Hand that over (generators=[...]), or give the loader a "
                "state_dict.",
                stacklevel=3,
            )
        return batch

    def _is_left_to_all(self) -> bool:
        left = self.is_left()
        if self._agreed is not None:
            self._agreed.require_same(left, _UNEVEN)
        return left

    def is_left(self) -> bool:
        """Whether a batch comes next."""
        while not self._next and (self.passes is None or self.past < self.passes):
            if self._rest is None:
                self._drawn = None if self.generators is None else self.generators.states()
                self._rest = iter(self.batches)
            self._next = tuple(itertools.islice(self._rest, 1))
            if self._next and not self.taken and self.generators is not None:
                self._first = _checksum(self._next[0])
            if not self._next and not self.taken:
                raise ValueError("minimize: the batches gave none on this pass; give a list, or a loader.")
            if not self._next:
                self.past, self.taken, self._rest = self.past + 1, 0, None
        return bool(self._next)

    def left(self, unknown: int) -> int:
        """How many batches are left, where that is known."""
        length = _length(self.batches)
        return unknown if length is None or self.passes is None else (self.passes - self.past) * length - self.taken

    def place(self) -> dict[str, Any]:
        """Where the run is, to be written; with the checksum of the first batch of this pass."""
        loader = self.batches.state_dict() if hasattr(self.batches, "state_dict") else None
        at = {"past": self.past, "taken": self.taken, "loader": loader, "drawn": self._drawn}
        return {**at, "told": self._told, "first": self._first}

    def go_to(self, place: dict[str, Any]) -> None:
        """Go on from a place: by the loader's ``load_state_dict``, else by passing over what was taken."""
        if self.one_shot:
            raise ValueError("minimize: a one-shot stream of batches cannot be resumed: give a list, or a loader.")
        self._told = place.get("told", {})
        had, has = place["loader"] is not None, hasattr(self.batches, "load_state_dict")
        if had != has:
            raise ValueError(
                f"minimize: the loader of the run that is gone on from had {'a' if had else 'no'} state_dict, and "
                f"this one has {'a' if has else 'no'} load_state_dict: give the same loader, or another path."
            )
        if had:
            self.batches.load_state_dict(place["loader"])  # type: ignore[attr-defined]
            self.past, self.taken = place["past"], place["taken"]
            return
        for _ in range(place["past"]):  # a loader may know how often it was gone through
            deque(self.batches, maxlen=0)
        if self.generators is not None:
            self.generators.put_back(place["drawn"])
        self._drawn, self._rest = place["drawn"], iter(self.batches)
        self.past, self.taken = place["past"], place["taken"]
        over = list(itertools.islice(self._rest, 1))  # between the others a model may have drawn numbers
        if len(over) + sum(1 for _ in itertools.islice(self._rest, self.taken - 1)) < self.taken:
            raise ValueError(
                f"minimize: the run that is gone on from took {self.taken} batches of this pass, and there are fewer "
                "now: give the loader that it had, or another path."
            )
        self._first = _checksum(over[0])
        self._is_other = place.get("first") not in (None, self._first)


def _checksum(batch: Any) -> int | None:
    """Of the bits of a batch's arrays; None where nothing is known of them."""
    parts = (batch.gradient, batch.curvature, batch.acceptance) if isinstance(batch, StepData) else batch
    try:
        ops = backend_of(parts)
    except TypeError:
        return None
    leaves = [x for x in ops.flatten(parts)[1] if ops.is_array(x) and is_written(ops, x)]
    return reduce(lambda so_far, x: crc32(np.asarray(ops.to_numpy(x)).tobytes(), so_far), leaves, 0)


def _length(batches: Any) -> int | None:
    """How many batches there are, where that is known."""
    try:
        return len(batches)
    except TypeError:  # also of torch's loaders of streams, which have a __len__ all the same
        return None


def _kinds(name: str, item: Any) -> dict[str, str]:
    """Dtype and number of axes of the arrays in a batch, by name; of a list of batches those of the first."""
    if hasattr(item, "shape") and hasattr(item, "dtype"):
        return {name: f"{item.dtype} with {len(item.shape)} axes"}
    if isinstance(item, StepData):
        return _kinds(name, item.gradient)
    if isinstance(item, Mapping):
        children: Any = item.items()
    elif isinstance(item, (tuple, list)):
        several = isinstance(item, list) and not any(hasattr(child, "shape") for child in item)
        children = enumerate(item[:1] if several else item)
    else:
        children = ()
    return {k: v for key, child in children for k, v in _kinds(f"{name}[{key!r}]", child).items()}
