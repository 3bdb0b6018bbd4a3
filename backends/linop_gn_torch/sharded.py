"""Parameters that are DTensors: each process has shards of them, and of every vector the entries of its shards.

A vector is a DTensor (n,) of which process d has

    v_d = [shard of leaf 1, shard of leaf 2, ..., zeros],    n = processes * len(v_d),

one after the other, with zeros up to the length that the longest has: torch cuts 13 rows in four as 4, 4, 4, 1. Leaves
of which all processes have copies, plain tensors and numbers too, are cut in vectors as well, along their first axis,
so that no entry is counted twice. Packing and cutting send nothing; inner products are local ones and one all-reduce of
a number. What users are given lies as their parameters do: there copies are put together again (:meth:`Layout.given`).

Within the model leaves are whole, each while an operation takes it (:mod:`.gathering`). What solvers compute with,
arithmetic, bases and QR, is of local parts (:mod:`.shards`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache, reduce
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from linop_gn.distributed.reduction import as_sent, which_differs

from .arithmetic import TorchArithmetic
from .shards import (
    all_gather,
    all_reduce,
    astray,
    is_sharded,
    largest,
    local,
    mark_of_bits,
    placed,
    require_alike,
    sharing,
    spread,
    summed,
    wait,
)

__all__ = ["Layout", "Leaves", "layout_of", "widest"]

_ARITHMETIC = TorchArithmetic()


class Leaves(list[Tensor]):
    """The leaves of a vector as it is cut, a DTensor each, with the layout of what they are parts of."""

    layout: Layout
    parts: Sequence[Tensor] | None = None
    """What this process has of each."""
    vector: Tensor | None = None
    """What this process has of the vector, where its leaves are in that memory, and nobody has been given it."""


def layout_of(leaves: Sequence[Any]) -> Layout | None:
    """The layout of vectors like these leaves; None where none of them is a DTensor.

    Raises
    ------
    ValueError
        For DTensors over several meshes, or placed otherwise than by Shard and Replicate.
    """
    if isinstance(leaves, Leaves):
        return leaves.layout
    for first in leaves:
        if is_sharded(first):
            break
    else:
        return None
    for i, x in enumerate(leaves):
        if not is_sharded(x):
            continue
        if x.device_mesh != first.device_mesh:
            raise ValueError(f"parameters lie over several meshes, {first.device_mesh} and {x.device_mesh}.")
        if odd := [p for p in x.placements if type(p).__name__ not in ("Shard", "Replicate")]:
            raise ValueError(
                f"parameter {i} (shape {tuple(x.shape)}) is placed by {odd[0]!r}; Shard and Replicate can be followed "
                "here: x.redistribute(placements=...)."
            )
    placements = tuple(x.placements if is_sharded(x) else None for x in leaves)
    return _layout(first.device_mesh, placements, tuple(tuple(x.shape) for x in leaves))


@lru_cache(maxsize=256)
def _layout(
    mesh: Any,
    placements: tuple[tuple[Any, ...] | None, ...],
    shapes: tuple[tuple[int, ...], ...],
    cut: tuple[int, ...] | None = None,
) -> Layout:
    return Layout(mesh, placements, shapes, cut)


class Layout:
    """How vectors of DTensors lie over a mesh; compared by value.

    ``placements`` holds None for a plain tensor, of which each process has a copy. ``cut`` are the axes of the mesh
    that cut vectors: those along which a leaf is sharded, of a part of the leaves those of all of them.
    """

    gathering = "p.full_tensor() of each"
    """How users gather parameters."""
    typed = False
    """Whether types of arrays say how they lie, so that what makes a matrix of vectors has to say it too."""

    def __init__(
        self,
        mesh: Any,
        placements: tuple[tuple[Any, ...] | None, ...],
        shapes: tuple[tuple[int, ...], ...],
        cut: tuple[int, ...] | None = None,
    ) -> None:
        self.mesh, self.placements, self.shapes = mesh, placements, shapes
        self._rows = tuple(shape or (1,) for shape in shapes)
        by_leaf = [{i for i, p in enumerate(of or ()) if p.is_shard()} for of in placements]
        self.cut = tuple(sorted(set[int]().union(*by_leaf))) if cut is None else cut
        self.copied = tuple(tuple(i for i in self.cut if i not in axes) for axes in by_leaf)
        """For each leaf the axes of the mesh along which processes have copies, and vectors parts, of it."""
        self._key = mesh, placements, shapes, self.cut
        self._shards: dict[tuple[int, tuple[int, ...], int | None], tuple[slice, ...]] = {}
        self.devices = math.prod(mesh.size(i) for i in self.cut)
        self.vectors = placed([i in self.cut for i in range(mesh.ndim)])
        self.length = self.entries((0,) * len(self.cut))  # torch gives the first ones most
        self.size = self.devices * self.length

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"{self.devices} parts over {tuple(self.mesh.shape)} processes"

    def part(self, leaves: tuple[int, ...]) -> Layout:
        """The layout of these leaves alone."""
        placements, shapes = tuple(self.placements[i] for i in leaves), tuple(self.shapes[i] for i in leaves)
        return _layout(self.mesh, placements, shapes, self.cut)

    # where shards lie

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files."""
        return not any(self.mesh.get_coordinate())

    @property
    def here(self) -> tuple[int, ...]:
        """The place of this process along the axes of the mesh that cut."""
        return tuple(self.mesh.get_coordinate()[i] for i in self.cut)

    @cached_property
    def places(self) -> list[tuple[int, ...]]:
        """Of all processes that have different shards, in the order of vectors."""
        return list(product(*(range(self.mesh.size(i)) for i in self.cut)))

    def shard(self, leaf: int, place: tuple[int, ...], last: int | None = None) -> tuple[slice, ...]:
        """Which entries of a leaf a process has in vectors, a number as an array (1,).

        With ``last``, of the axes along which it is copied only those up to this one cut it; -1: which ones it has.
        """
        known = self._shards.get((leaf, place, last))
        if known is not None:
            return known
        ranges = [(0, size) for size in self._rows[leaf]]
        at, copied, given = dict(zip(self.cut, place, strict=True)), self.copied[leaf], self.placements[leaf] or ()
        for i in (*(i for i in self.cut if i not in copied), *(i for i in copied if last is None or i <= last)):
            axis = 0 if i in copied else given[i].dim
            start, size = ranges[axis]
            most = -(-size // self.mesh.size(i))
            first = min(at[i] * most, size)
            ranges[axis] = start + first, min(most, size - first)
        made = self._shards[leaf, place, last] = tuple(slice(start, start + size) for start, size in ranges)
        return made

    @cached_property
    def in_order(self) -> bool:
        """Whether what the processes have, one after the other, is the one leaf that there is, and zeros."""
        if len(self._rows) != 1:
            return False
        others = self._rows[0][1:]
        for k, place in enumerate(self.places):
            first, *rest = self.shard(0, place)
            if any(along.stop - along.start != size for along, size in zip(rest, others, strict=True)):
                return False
            if first.start != first.stop and first.start * math.prod(others) != k * self.length:
                return False
        return True

    # blocks of leaves, by index

    def by_block(self, name: str, blocks: Sequence[Sequence[int]], *vectors: Tensor) -> Any:
        """For each block of leaves the inner product of its entries in two vectors, or the largest in one: (k,)."""
        require_alike(*vectors)
        parts = [[part.reshape(-1) for part in self.shards(local(x))] for x in vectors]
        here = getattr(_ARITHMETIC, name)
        found = [[here(*(of[i] for of in parts)) for i in block if len(parts[0][i])] for block in blocks]
        if name == "dot":
            return summed([sum(of, 0.0) for of in found], vectors[0])
        return largest([float(np.max(of, initial=0.0)) for of in found], vectors[0])

    def of_blocks(self, numbers: Any, blocks: Sequence[Sequence[int]], like: Tensor) -> Tensor:
        """The vector in which each entry is the number (k,) of its leaf's block."""
        whole = numbers.dtype != np.float64
        made = torch.tensor(numbers, dtype=None if whole else torch.promote_types(like.dtype, torch.float32))
        block_of = {i: number for number, block in enumerate(blocks) for i in block}
        made, shapes = made.to(local(like).device), self._shapes(self.here)
        return self.spread(self.flat([made[block_of.get(i, 0)].expand(s) for i, s in enumerate(shapes)], made.dtype))

    def _shapes(self, place: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [_shape(self.shard(i, place)) for i in range(len(self.shapes))]

    def entries(self, place: tuple[int, ...]) -> int:
        """How many entries of leaves a process has."""
        return sum(map(math.prod, self._shapes(place)))

    # vectors and leaves

    def pack(self, leaves: Sequence[Tensor], dtype: str) -> Tensor:
        """The vector (n,) of these leaves, or columns (n, k) of leaves with a last axis of k."""
        if isinstance(leaves, Leaves) and leaves.vector is not None and leaves.vector.dtype == getattr(torch, dtype):
            vector, leaves.vector = leaves.vector, None
            return self.spread(vector)
        copies = dict[tuple[int, ...], list[Tensor]]()
        for axes, x in zip(self.copied, leaves, strict=True):
            if axes and not (is_sharded(x) and any(x.placements[i].is_shard() for i in axes)):  # type: ignore[attr-defined]
                copies.setdefault(axes, []).append(local(x).detach())
        self.require_same_copies(copies)
        return self.spread(self.flat(self.own(leaves), getattr(torch, dtype)))

    def flat(self, shards: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """What this process has of a vector, from its shards."""
        columns = shards[0].shape[len(self._rows[0]) :]
        return _filled_up([shard.to(dtype) for shard in shards], self.length, columns)

    def own(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """What this process has in vectors of leaves: of DTensors that lie otherwise too, and of whole ones."""
        if isinstance(leaves, Leaves) and leaves.parts is not None and leaves.layout == self:
            return [part.detach() for part in leaves.parts]
        made = []
        for i, leaf in enumerate(leaves):
            mine, have, given = self.shard(i, self.here), self.shard(i, self.here, -1), self.placements[i]
            cut = is_sharded(leaf) and any(p.is_shard() for p in leaf.placements)  # type: ignore[attr-defined]
            if not is_sharded(leaf):
                have = tuple(slice(0, size) for size in self._rows[i])
            elif leaf.device_mesh == self.mesh and leaf.placements == self._cuts[i]:  # type: ignore[attr-defined]
                have = mine
            elif leaf.device_mesh != self.mesh or leaf.placements != given:  # type: ignore[attr-defined]
                leaf = leaf.detach().redistribute(self.mesh, given or placed([False] * self.mesh.ndim))  # type: ignore[attr-defined]
            part = local(leaf).detach()
            part = part if self.shapes[i] or cut else part[None]
            at = (slice(m.start - h.start, m.stop - h.start) for m, h in zip(mine, have, strict=True))
            made.append(part[tuple(at)])
        return made

    def spread(self, part: Tensor) -> Tensor:
        """The vector, or columns, of which this process has a part."""
        return spread(part, self.mesh, self.vectors, self.size)

    def split(self, vector: Tensor, dtypes: Sequence[str]) -> Leaves:
        """The leaves of a vector, a DTensor of the parts that processes have of each: views, where they have its dtype.

        They lie as the parameters do, but for copies, which are in parts: :meth:`given` are those that users have.
        """
        if not is_sharded(vector) or vector.placements != self.vectors or len(vector) != self.size:  # type: ignore[attr-defined]
            raise astray(vector, f"vectors ({self.size},) placed as {self.vectors}")
        kinds = [getattr(torch, dtype) for dtype in dtypes]
        return self.wrapped([shard.to(kind) for shard, kind in zip(self.shards(local(vector)), kinds, strict=True)])

    def shards(self, flat: Tensor, place: tuple[int, ...] | None = None) -> list[Tensor]:
        """The shards that what a process has of a vector consists of."""
        return _cut(flat, self._shapes(self.here if place is None else place))

    def wrapped(self, shards: Sequence[Tensor]) -> Leaves:
        """Shards of this process as DTensors."""
        made = Leaves(self._like(i, shard, self._cuts[i], self._rows[i]) for i, shard in enumerate(shards))
        made.layout, made.parts = self, tuple(shards)
        return made

    def given(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Leaves of a vector as the parameters were given: copies on all processes, plain tensors plain."""
        parts, made = [local(leaf) for leaf in leaves], list(leaves)
        for i in reversed(self.cut):
            those = [leaf for leaf, axes in enumerate(self.copied) if i in axes]
            for leaf, part in zip(those, self._joined([parts[j] for j in those], those, i), strict=True):
                parts[leaf] = part
        for i, (axes, given) in enumerate(zip(self.copied, self.placements, strict=True)):
            if axes or given is None:
                part = parts[i] if self.shapes[i] else parts[i][0]
                made[i] = part if given is None else self._like(i, part, given, self.shapes[i])
        return made

    def constrained(self, leaves: list[Tensor]) -> list[Tensor]:
        """These leaves, laid out as the parameters are."""
        return self.given(self.wrapped(self.own(leaves)))

    @cached_property
    def _cuts(self) -> list[tuple[Any, ...]]:
        """The placements of what processes have of each leaf in vectors."""
        cut = placed([i in self.cut for i in range(self.mesh.ndim)])
        both = zip(self.placements, self.copied, strict=True)
        return [tuple(p if of is None or i in copied else of[i] for i, p in enumerate(cut)) for of, copied in both]

    def _like(self, leaf: int, part: Tensor, placements: Any, shape: tuple[int, ...]) -> Tensor:
        """A DTensor (shape), or columns of such, of which this process has a part."""
        from torch.distributed.tensor import DTensor

        whole = torch.Size((*shape, *part.shape[len(shape) :]))
        stride = tuple(math.prod(whole[j + 1 :]) for j in range(len(whole)))
        return DTensor.from_local(part, self.mesh, placements, run_check=False, shape=whole, stride=stride)

    def _joined(self, parts: Sequence[Tensor], leaves: Sequence[int], axis: int) -> Sequence[Tensor]:
        """The parts of these leaves that processes have along an axis of the mesh, put together by one all-gather."""
        if not leaves:
            return parts
        place, at, count = self.here, self.cut.index(axis), self.mesh.size(axis)
        places = [(*place[:at], c, *place[at + 1 :]) for c in range(count)]
        shapes = [[_shape(self.shard(leaf, there, axis)) for leaf in leaves] for there in places]
        length, columns = sum(map(math.prod, shapes[0])), parts[0].shape[len(self._rows[leaves[0]]) :]
        wide, group = widest([part.dtype for part in parts]), self.mesh.get_group(axis)
        flat = _filled_up([part.to(wide) for part in parts], length, columns)
        every = flat.new_empty(len(flat) * count, *columns)
        wait(lambda: all_gather(every, flat, group))
        found = [_cut(of, own) for of, own in zip(every.split(length), shapes, strict=True)]
        return [torch.cat(of).to(part.dtype) for part, of in zip(parts, zip(*found, strict=True), strict=True)]

    def require_same_copies(self, copies: Mapping[tuple[int, ...], Sequence[Tensor]]) -> None:
        """Raise on all processes unless those have the same that differ in their place along axes of the mesh alone.

        ``copies`` holds what this one has, by these axes. All-reduces of 17 numbers for each place along the others.
        """
        if not copies:
            return
        mesh, sent = self.mesh, []
        for axes, own in copies.items():
            others = [i for i in range(mesh.ndim) if i not in axes]
            table = np.zeros((*(mesh.size(i) for i in others), len(as_sent([0]))))
            table[tuple(mesh.get_coordinate()[i] for i in others)] = as_sent([mark_of_bits(own)])
            sent.append(table.reshape(-1, table.shape[-1]))
        found = torch.tensor(np.concatenate(sent), dtype=torch.float32, device=self.device)
        all_reduce(found, mesh, range(mesh.ndim), sharing.get())
        if any(which_differs(sums) is not None for sums in found.tolist()):
            raise ValueError(
                "the parameters, or vectors like them, are DTensors or among such, and processes that should have the "
                "same shards of them, because they are replicated or plain tensors, do not. Make them by "
                "distribute_tensor, which sends those of the first process, or begin from one seed."
            )

    def zeros(self, dtype: str, columns: int | None) -> Tensor:
        """The vector of zeros, or columns of them."""
        shape = (self.length,) if columns is None else (self.length, columns)
        return self.spread(torch.zeros(shape, dtype=getattr(torch, dtype), device=self.device))

    def agreed(self, number: Tensor) -> Tensor:
        """A number as the first process has it."""
        return self.from_first(number.detach().clone(), range(self.mesh.ndim))

    def from_first(self, x: Tensor, axes: Iterable[int]) -> Tensor:
        """``x`` of the first process along these axes of the mesh; writes into it."""
        for i in axes:
            group = self.mesh.get_group(i)
            wait(lambda group=group: dist.broadcast(x, group=group, group_src=0, async_op=True))
        return x

    @property
    def device(self) -> torch.device:
        """Of this process."""
        kind = self.mesh.device_type
        return torch.device(kind, torch.accelerator.current_device_index()) if kind != "cpu" else torch.device(kind)

    def vector(self, v: Any, what: str) -> Tensor:
        """``v`` if it lies as vectors of this layout do, with zeros where they have no entry; else a clear error."""
        if not is_sharded(v) or v.device_mesh != self.mesh or tuple(v.placements) != self.vectors:
            raise ValueError(
                f"{what} is a flat array that does not lie over the processes as vectors of these sharded parameters "
                f"do ({self}), in whose order its entries would be read: give a tree like the parameters."
            )
        end = self.entries(self.here)
        if end == self.length:
            return v
        part = local(v).clone()
        part[end:] = 0
        return self.spread(part)

    def axis_of(self, x: Tensor) -> int | None:
        """The axis of a vector, columns or a basis along which it is one; a plain tensor has its length by chance."""
        found = [i for i, n in enumerate(x.shape) if n == self.size and x.ndim <= 2 and is_sharded(x)]
        return min(found, key=lambda i: not any(p.is_shard(i) for p in x.placements), default=None)  # type: ignore[attr-defined]

    def numbers(self) -> Tensor:
        """The place of each entry in the vector of the whole leaves, int32, on this process; beyond them, their number.

        It is a plain tensor: what is drawn by it is, too, until :meth:`spread`.
        """
        total = sum(map(math.prod, self.shapes))
        every = torch.arange(total, dtype=torch.int32, device=self.device)
        found = torch.cat([leaf.reshape(-1) for leaf in self.own(_cut(every, self.shapes))])
        return torch.cat([found, found.new_full((self.length - len(found),), total)])


def _shape(shard: tuple[slice, ...]) -> tuple[int, ...]:
    return tuple(along.stop - along.start for along in shard)


def _cut(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Arrays of these shapes, or columns of such, from the beginning of a flat one."""
    sizes = [math.prod(shape) for shape in shapes]
    parts = flat[: sum(sizes)].split(sizes)
    return [part.reshape((*shape, *flat.shape[1:])) for part, shape in zip(parts, shapes, strict=True)]


def _filled_up(parts: Sequence[Tensor], length: int, columns: Sequence[int]) -> Tensor:
    """The parts, flat but for their columns, and zeros up to this length."""
    flat = [part.reshape(-1, *columns) for part in parts]
    return torch.cat([*flat, flat[0].new_zeros(length - sum(map(len, flat)), *columns)])


def widest(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """The dtype that holds the numbers of all of these."""
    return reduce(torch.promote_types, dtypes)
