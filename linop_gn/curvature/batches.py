"""Data as batches: what is one, what is many, and what cannot be iterated twice.

* ``None``: the model is a function of the parameters alone.
* a tuple ``(inputs, targets)`` or ``(inputs, targets, weights)``: one batch;
  inputs may be any tree, weights are per example (a boolean mask is a weight).
  A list whose second entry is an array is one too: torch's ``DataLoader`` gives such, with a list for a tuple of
  inputs. So is a mapping with the targets as ``"labels"``, as Hugging Face's loaders give it.
* any other iterable of such tuples: many batches. A list or tuple of them is
  held in memory (an empty one is of a process whose share has no batch);
  anything else (a data loader) is streamed from the host on every pass, and
  therefore has to be iterable again and again. It may give its batches in
  another order each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..dispatch import backend_of, owner_of_type
from ..given import as_tree
from ..protocols import Array, Backend, Tree
from ..records import record, replace, static

__all__ = ["Batch", "Stream", "as_batch", "as_batches", "cut", "mark_of", "stack", "without_rows"]


@record
class Batch:
    """Inputs, targets and weights; ``stacked`` ones have a leading axis over batches of one shape."""

    inputs: Tree = None
    targets: Array | None = None
    weights: Array | None = None
    stacked: bool = static(default=False)
    place: Any = None
    """(which batch of a pass it is, or is of; which example of that is its first), where something may be drawn for its
    examples; None of batches that are whole, and which nobody has numbered. Of stacked ones an array (batches, 2)."""


class Stream:
    """Batches that are read from the host anew on every pass, each made of what there is by ``change``.

    Unless they are meant to be ``changing``, the first two whole passes are compared, whatever the order of examples.
    """

    def __init__(
        self,
        data: Iterable[Any],
        change: Callable[[Any], Batch],
        changing: bool = False,
        microbatch: int | None = None,
    ) -> None:
        self.data, self.change, self.changing, self.microbatch = data, change, changing, microbatch
        self._first: np.ndarray | None = None
        self._compared = False

    def __iter__(self) -> Iterator[Batch]:
        empty, mark = True, None if self.changing or self._compared else np.zeros(3)
        for number, item in enumerate(self.data):
            empty = False
            batch = self.change(item)
            if mark is not None:
                mark += mark_of(batch)
            yield from cut(batch, self.microbatch, number)
        if mark is not None and not empty:
            self._compare(mark)
        if empty:
            raise ValueError(
                "the data gave no batch on this pass; they must be iterable again and again (a list, a data loader, an "
                "object whose __iter__ starts anew), not exhausted by the first pass."
            )

    def _compare(self, mark: np.ndarray) -> None:
        """Raise where the second pass had other examples than the first."""
        if self._first is None:
            self._first = mark
            return
        self._compared = True
        if abs(mark - self._first)[:2].max() > 1e-6 * mark[2]:
            raise ValueError(
                "the data changed between two passes: the second had other examples than the first, or others of their "
                "values, so that each product is of another operator and no solver can converge. Causes are "
                "shuffle=True with drop_last=True, sampling, and random augmentation. Give the same examples on each "
                "pass (their order does not matter): drop_last=False, augmentation drawn once, or one batch held in "
                "memory. If a stochastic objective is meant, say changing_data=True."
            )


def mark_of(batch: Batch) -> np.ndarray:
    """Of a batch's numbers: their sums, their sums with weights along each example, and the sum of their sizes."""
    made, tree = np.zeros(3), (batch.inputs, batch.targets, batch.weights)
    try:
        ops = backend_of(tree)
    except TypeError:  # nothing that a model of arrays could take: it will say so
        return made
    for leaf in ops.flatten(tree)[1]:
        if not ops.is_array(leaf) or not ops.is_concrete(leaf) or ops.describe(leaf)[1].startswith(("complex", "key")):
            continue
        x = np.asarray(ops.to_numpy(leaf))
        if not x.size:  # of a process whose share has no example
            continue
        x = np.nan_to_num(x.reshape(x.shape[0] if x.ndim else 1, -1).astype(np.float64))
        along = np.cos(np.arange(x.shape[1]))
        made += x.sum(), (x @ along).sum(), abs(x).sum()
    return made


def as_batch(item: Any) -> Batch:
    """One batch from a tuple (inputs, targets[, weights]), or a mapping with ``"labels"``."""
    if isinstance(item, Batch):
        return item
    if isinstance(item, Mapping) and "labels" in item:
        item = {name: value for name, value in item.items() if name != "labels"}, item["labels"]
    if not isinstance(item, (tuple, list)) or len(item) not in (2, 3):
        length = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
        raise TypeError(
            "a batch is a tuple (inputs, targets) or (inputs, targets, weights), got "
            f"{type(item).__qualname__}{length}. {_instead_of(item)}"
        )
    inputs, *others = map(as_tree, item)
    return Batch(tuple(inputs) if isinstance(item, list) and type(inputs) is list else inputs, *others)


def _instead_of(data: Any) -> str:
    """What to pass instead of what is no batch."""
    if isinstance(data, Mapping):
        return (
            f"A mapping is a batch if it has the targets as 'labels', and this has {list(map(str, data))}: rename "
            "theirs, or write (inputs, targets)."
        )
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not hasattr(data, "__iter__"):
        return "It has examples one by one: torch.utils.data.DataLoader(dataset, batch_size=...) makes batches of them."
    return "Use targets None for a model whose outputs are residuals."


def as_batches(data: Any) -> tuple[Batch, ...] | Stream:
    """Batches from what users pass as data.

    >>> len(as_batches([("inputs", "targets"), ("inputs", "targets", "weights")]))
    2

    Raises
    ------
    TypeError
        For what is no tuple and no iterable of tuples, or can be iterated only once.
    """
    if data is None:
        return (Batch(),)
    if type(data) is tuple and len(data) in (2, 3) and all(owner_of_type(type(x)) for x in data):
        return (Batch(*data),)  # arrays, as a loop has them: to look for other kinds takes longer
    one = isinstance(data, list) and len(data) in (2, 3) and hasattr(data[1], "shape")
    one = one or (isinstance(data, Mapping) and "labels" in data)
    if one or isinstance(data, Batch) or (isinstance(data, tuple) and data and not all(map(_is_batch, data))):
        return (as_batch(data),)
    if isinstance(data, (list, tuple)):
        return tuple(as_batch(item) for item in data)
    if not isinstance(data, Iterable) or hasattr(data, "shape") or isinstance(data, (Mapping, str, bytes)):
        raise TypeError(
            f"data must be a tuple (inputs, targets[, weights]) or an iterable of such tuples, got "
            f"{type(data).__qualname__}. {_instead_of(data)}"
        )
    if isinstance(data, Iterator):  # asked of the type: calling iter() would start a data loader's workers
        raise TypeError(
            f"the data are a one-shot {type(data).__qualname__}: a second pass over them would see nothing, and the "
            "operator would be zero. Pass a list of batches, or an object that can be iterated again (a data loader)."
        )
    return Stream(data, as_batch)


def _is_batch(item: Any) -> bool:
    labelled = isinstance(item, Mapping) and "labels" in item
    return labelled or isinstance(item, Batch) or (isinstance(item, tuple) and len(item) in (2, 3))


def cut(batch: Batch, size: int | None, number: int) -> tuple[Batch, ...]:
    """The batch of this number as microbatches of ``size`` examples, the last of what is left, which know their places.

    They are views, where the framework has them. All arrays are cut along their first axis, except those without axes,
    and weights that are one for all.

    Raises
    ------
    ValueError
        For arrays that do not have one length in common.
    """
    if size is None:
        return (batch,)
    batch = replace(batch, place=(number, 0))
    count, rows, leaves = _by_rows(batch, f"microbatch={size} cuts a batch")
    if count <= size:
        return (batch,)
    if backend_of(leaves).layout(leaves) is not None:
        raise ValueError(
            f"microbatch={size} would cut examples that lie over several devices, so that each part is on some of them "
            "only. Leave it out (each device has its share alone, also with memory='low'), or cut what one device has: "
            "lg.distributed.DataParallel inside of a map over the devices."
        )
    parts = range(0, count, size)
    return tuple(replace(rows(start, start + size), place=(number, start)) for start in parts)


def without_rows(batch: Batch) -> Batch:
    """A batch like this one without any example: what a process adds that has fewer batches than others."""
    return _by_rows(batch, "a batch without rows, for a process that has fewer than others, is cut")[1](0, 0)


def _by_rows(batch: Batch, what: str) -> tuple[int, Callable[[int, int], Batch], list[Array]]:
    """How many examples there are, the batch of some of them, and the arrays that hold them."""
    tree = {"inputs": batch.inputs, "targets": batch.targets, "weights": batch.weights}
    backend = backend_of(tree)
    names, leaves, structure = backend.flatten(tree)
    whole = [backend.is_array(leaf) and bool(leaf.shape) for leaf in leaves]
    if "weights" in names and max(leaf.shape[0] for leaf, rows in zip(leaves, whole, strict=True) if rows) > 1:
        weights = names.index("weights")
        whole[weights] = whole[weights] and leaves[weights].shape[0] > 1
    lengths = {name: leaf.shape[0] for name, leaf, rows in zip(names, leaves, whole, strict=True) if rows}
    if len({*lengths.values()}) != 1:
        raise ValueError(
            f"{what} along the first axis of its arrays, which must be that of the examples in "
            f"all of them; their lengths are {lengths}. Close over what belongs to no example in the model."
        )

    def part(start: int, stop: int) -> Batch:
        rows = [x[start:stop] if axis else x for x, axis in zip(leaves, whole, strict=True)]
        return replace(batch, **backend.unflatten(structure, rows))

    return lengths.popitem()[1], part, [leaf for leaf, axis in zip(leaves, whole, strict=True) if axis]


def stack(batches: tuple[Batch, ...], backend: Backend) -> tuple[Batch, ...]:
    """Batches of equal shapes stacked into one, so that a compiled program holds one copy of the work for them.

    Those that hold anything but arrays stay as they are.
    """
    groups: dict[Any, list[tuple[list[Array], Any]]] = {}
    made = []
    for batch in batches:
        _, leaves, structure = backend.flatten((batch.inputs, batch.targets, batch.weights))
        if all(map(backend.is_array, leaves)):
            key = (structure, tuple(backend.describe(leaf)[:2] for leaf in leaves))
            groups.setdefault(key, []).append((leaves, batch.place))
        else:
            made.append(batch)
    xp = backend.namespace()
    for (structure, _), group in groups.items():
        many = len(group) > 1
        columns = zip(*(leaves for leaves, _ in group), strict=True)
        leaves = [xp.stack(column) for column in columns] if many else group[0][0]
        place = None
        if group[0][1] is not None:
            place = xp.asarray([p for _, p in group], dtype=xp.int32) if many else group[0][1]
        made.append(Batch(*backend.unflatten(structure, leaves), stacked=many, place=place))  # type: ignore[misc]
    return tuple(made)
