"""Data as batches: what is one, what is many, and what cannot be iterated twice.

* ``None``: the model is a function of the parameters alone.
* a tuple ``(inputs, targets)`` or ``(inputs, targets, weights)``: one batch;
  inputs may be any tree, weights are per example (a boolean mask is a weight).
* any other iterable of such tuples: many batches. A list or tuple of them is
  held in memory; anything else (a data loader) is streamed from the host on
  every pass, and therefore has to be iterable again and again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ..protocols import Array, Backend, Tree
from ..records import record, static

__all__ = ["Batch", "Stream", "as_batch", "as_batches"]


@record
class Batch:
    """Inputs, targets and weights; ``stacked`` ones have a leading axis over batches of one shape."""

    inputs: Tree = None
    targets: Array | None = None
    weights: Array | None = None
    stacked: bool = static(default=False)


class Stream:
    """Batches that are read from the host anew on every pass."""

    def __init__(self, data: Iterable[Any]) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Batch]:
        empty = True
        for item in self.data:
            empty = False
            yield as_batch(item)
        if empty:
            raise ValueError(
                "the data gave no batch on this pass; it must be iterable again and again (a list, a data loader, an "
                "object whose __iter__ starts anew), not exhausted by the first pass."
            )


def as_batch(item: Any) -> Batch:
    """One batch from a tuple (inputs, targets[, weights])."""
    if isinstance(item, Batch):
        return item
    if not isinstance(item, (tuple, list)) or len(item) not in (2, 3):
        length = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
        raise TypeError(
            f"a batch is a tuple (inputs, targets) or (inputs, targets, weights), got {type(item).__qualname__}{length}. "
            "Use targets None for a model whose outputs are residuals."
        )
    return Batch(*item)


def as_batches(data: Any) -> tuple[Batch, ...] | Stream:
    """Batches from what users pass as data."""
    if data is None:
        return (Batch(),)
    if isinstance(data, Batch):
        return (data,)
    if isinstance(data, tuple) and not _is_many(data):
        return (as_batch(data),)
    if isinstance(data, (list, tuple)):
        if not data:
            raise ValueError("the data hold no batch: an empty list. Give at least one (inputs, targets).")
        return tuple(as_batch(item) for item in data)
    if not isinstance(data, Iterable) or hasattr(data, "shape") or isinstance(data, (dict, str, bytes)):
        raise TypeError(
            f"data must be a tuple (inputs, targets[, weights]) or an iterable of such tuples, got "
            f"{type(data).__qualname__}."
        )
    if iter(data) is data:
        raise TypeError(
            f"the data are a one-shot {type(data).__qualname__}: a second pass over them would see nothing, and the "
            "operator would be zero. Pass a list of batches, or an object that can be iterated again (a data loader)."
        )
    return Stream(data)


def _is_many(data: tuple[Any, ...]) -> bool:
    return bool(data) and all(isinstance(item, Batch) or (isinstance(item, tuple) and len(item) in (2, 3)) for item in data)


def stack(batches: tuple[Batch, ...], backend: Backend) -> tuple[Batch, ...]:
    """Batches of equal shapes stacked into one, so that a compiled program holds one copy of the work for them."""
    groups: dict[Any, list[list[Array]]] = {}
    for batch in batches:
        _, leaves, structure = backend.flatten((batch.inputs, batch.targets, batch.weights))
        key = (structure, tuple(backend.describe(leaf)[:2] for leaf in leaves))
        groups.setdefault(key, []).append(leaves)
    xp = backend.namespace()
    made = []
    for (structure, _), group in groups.items():
        many = len(group) > 1
        leaves = [xp.stack(column) for column in zip(*group, strict=True)] if many else group[0]
        made.append(Batch(*backend.unflatten(structure, leaves), stacked=many))  # type: ignore[misc]
    return tuple(made)
