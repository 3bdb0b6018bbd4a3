"""Parameters that are DTensors: each process has shards of them, and of every vector the entries of its shards.

A vector is a DTensor (n,) of which process d has

    v_d = [shard of leaf 1, shard of leaf 2, ..., zeros],    n = processes * len(v_d),

one after the other, with zeros up to the length that the longest has: torch cuts 13 rows in four as 4, 4, 4, 1.
Packing and cutting send nothing; inner products are local ones and one all-reduce of a number.

The model sees whole leaves. What is differentiated is a function of a process's shards, and between these and the model
stands a linear map with its transpose, each other's derivatives to any order:

    gather     shards -> whole leaves     one all-gather of n numbers
    scatter    whole leaves -> shards     where each process has all data: its part of them, and nothing is sent
                                          where each has a share: one reduce-scatter, the sum over the processes

So a product gathers v once and scatters the result once, for any number of leaves. Within the model all tensors are
plain, and so is what solvers compute with: arithmetic, bases and QR are of local parts (:mod:`.shards`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
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
    finish,
    is_sharded,
    largest,
    local,
    mark_of_bits,
    placed,
    reduce_scatter,
    require_alike,
    sharing,
    spread,
    summed,
    wait,
)

__all__ = ["Layout", "Way", "layout_of"]

_ARITHMETIC = TorchArithmetic()
_SCALAR = " A number cannot be sharded: give it the shape (1,)."


def layout_of(leaves: Sequence[Any]) -> Layout | None:
    """The layout of vectors like these leaves; None where none of them is a DTensor.

    Raises
    ------
    ValueError
        For leaves that do not lie alike: each of them over one mesh, and along each of its axes all cut, or all copied.
    """
    if not any(is_sharded(x) for x in leaves):
        return None
    for i, x in enumerate(leaves):
        if not is_sharded(x):
            raise ValueError(
                f"parameter {i} (shape {tuple(x.shape)}) is a plain tensor, and others are DTensors: spread it too, "
                f"torch.distributed.tensor.distribute_tensor(x, mesh, placements).{_SCALAR * (x.ndim == 0)}"
            )
        if x.device_mesh != leaves[0].device_mesh:
            raise ValueError(f"parameters lie over several meshes, {leaves[0].device_mesh} and {x.device_mesh}.")
        if odd := [p for p in x.placements if type(p).__name__ not in ("Shard", "Replicate")]:
            raise ValueError(
                f"parameter {i} (shape {tuple(x.shape)}) is placed by {odd[0]!r}; Shard and Replicate can be followed "
                "here: x.redistribute(placements=...)."
            )
    return _layout(leaves[0].device_mesh, tuple(x.placements for x in leaves), tuple(tuple(x.shape) for x in leaves))


@lru_cache(maxsize=256)
def _layout(mesh: Any, placements: tuple[Any, ...], shapes: tuple[tuple[int, ...], ...]) -> Layout:
    return Layout(mesh, placements, shapes)


class Layout:
    """How vectors of DTensors lie over a mesh; compared by value."""

    gathering = "p.full_tensor() of each"
    """How users gather parameters."""

    def __init__(self, mesh: Any, placements: tuple[Any, ...], shapes: tuple[tuple[int, ...], ...]) -> None:
        self.mesh, self.placements, self.shapes = mesh, placements, shapes
        self._key = mesh, placements, shapes
        kinds = [tuple(p.is_shard() for p in of) for of in placements]
        if len(set(kinds)) > 1:
            i = next(i for i, kind in enumerate(kinds) if kind != kinds[0])
            raise ValueError(
                f"parameter {i} (shape {shapes[i]}) is placed as {placements[i]}, and the first as {placements[0]}: "
                "along each axis of the mesh either all are sharded or none. Shard small ones as well (torch gives "
                f"processes beyond their rows none).{_SCALAR * (() in (shapes[i], shapes[0]))}"
            )
        self.cut = tuple(i for i, is_cut in enumerate(kinds[0]) if is_cut)
        self.devices = math.prod(mesh.size(i) for i in self.cut)
        self.vectors = placed(kinds[0])
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
        return _layout(self.mesh, tuple(self.placements[i] for i in leaves), tuple(self.shapes[i] for i in leaves))

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

    def shard(self, leaf: int, place: tuple[int, ...]) -> tuple[slice, ...]:
        """Which entries of a leaf a process has."""
        ranges = [(0, size) for size in self.shapes[leaf]]
        for i, at in zip(self.cut, place, strict=True):
            axis = self.placements[leaf][i].dim
            start, size = ranges[axis]
            most = -(-size // self.mesh.size(i))
            first = min(at * most, size)
            ranges[axis] = start + first, min(most, size - first)
        return tuple(slice(start, start + size) for start, size in ranges)

    # blocks of leaves, by index

    def by_block(self, name: str, blocks: Sequence[Sequence[int]], *vectors: Tensor) -> Any:
        """For each block of leaves the inner product of its entries in two vectors, or the largest in one: (k,)."""
        require_alike(*vectors)
        parts = [[part.reshape(-1) for part in self.shards(local(x))] for x in vectors]
        here = getattr(_ARITHMETIC, name)
        found = [[here(*(of[i] for of in parts)) for i in block if len(parts[0][i])] for block in blocks]
        if name == "dot":
            return summed([math.fsum(of) for of in found], vectors[0])
        return largest([float(np.max(of, initial=0.0)) for of in found], vectors[0])

    def of_blocks(self, numbers: Any, blocks: Sequence[Sequence[int]], like: Tensor) -> Tensor:
        """The vector in which each entry is the number (k,) of its leaf's block."""
        whole = numbers.dtype != np.float64
        made = torch.tensor(numbers, dtype=None if whole else torch.promote_types(like.dtype, torch.float32))
        block_of = {i: number for number, block in enumerate(blocks) for i in block}
        made, shapes = made.to(local(like).device), self._shapes(self.here)
        return self.spread(self.flat([made[block_of[i]].expand(s) for i, s in enumerate(shapes)], made.dtype))

    def _shapes(self, place: tuple[int, ...]) -> list[tuple[int, ...]]:
        every = [self.shard(i, place) for i in range(len(self.shapes))]
        return [tuple(along.stop - along.start for along in shard) for shard in every]

    def entries(self, place: tuple[int, ...]) -> int:
        """How many entries of leaves a process has."""
        return sum(map(math.prod, self._shapes(place)))

    # vectors and leaves

    def pack(self, leaves: Sequence[Tensor], dtype: str) -> Tensor:
        """The vector (n,) of these leaves, or columns (n, k) of leaves with a last axis of k."""
        return self.spread(self.flat(self.own(leaves), getattr(torch, dtype)))

    def flat(self, shards: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """What this process has of a vector, from its shards."""
        columns = shards[0].shape[len(self.shapes[0]) :]
        flat = [shard.reshape(-1, *columns).to(dtype) for shard in shards]
        missing = self.length - sum(map(len, flat))
        return torch.cat([*flat, flat[0].new_zeros(missing, *columns)])

    def own(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Shards that this process has of leaves: of DTensors that lie otherwise too, and of whole ones."""
        made = []
        for i, leaf in enumerate(leaves):
            placements = self.placements[i]
            if not is_sharded(leaf):
                made.append(leaf.detach()[self.shard(i, self.here)])
            elif leaf.placements == placements and leaf.device_mesh == self.mesh:
                made.append(local(leaf))
            else:
                made.append(local(leaf.detach().redistribute(self.mesh, placements)))
        return made

    def spread(self, part: Tensor) -> Tensor:
        """The vector, or columns, of which this process has a part."""
        return spread(part, self.mesh, self.vectors, self.size)

    def split(self, vector: Tensor, dtypes: Sequence[str]) -> list[Tensor]:
        """The leaves of a vector, as the parameters lie: views, where they have its dtype."""
        if not is_sharded(vector) or vector.placements != self.vectors or len(vector) != self.size:  # type: ignore[attr-defined]
            raise astray(vector, f"vectors ({self.size},) placed as {self.vectors}")
        kinds = [getattr(torch, dtype) for dtype in dtypes]
        return self.wrapped([shard.to(kind) for shard, kind in zip(self.shards(local(vector)), kinds, strict=True)])

    def shards(self, flat: Tensor, place: tuple[int, ...] | None = None) -> list[Tensor]:
        """The shards that what a process has of a vector consists of."""
        shapes = self._shapes(self.here if place is None else place)
        sizes = [math.prod(shape) for shape in shapes]
        parts = flat[: sum(sizes)].split(sizes)
        return [part.reshape(*shape, *flat.shape[1:]) for part, shape in zip(parts, shapes, strict=True)]

    def wrapped(self, shards: Sequence[Tensor], chosen: Sequence[int] | None = None) -> list[Tensor]:
        """Shards of this process, of the leaves in ``chosen``, as DTensors like the parameters."""
        from torch.distributed.tensor import DTensor

        made: list[Tensor] = []
        for i, shard in zip(range(len(self.shapes)) if chosen is None else chosen, shards, strict=True):
            shape = torch.Size((*self.shapes[i], *shard.shape[len(self.shapes[i]) :]))
            stride = tuple(math.prod(shape[j + 1 :]) for j in range(len(shape)))
            placed = self.placements[i]
            made.append(DTensor.from_local(shard, self.mesh, placed, run_check=False, shape=shape, stride=stride))
        return made

    def constrained(self, leaves: list[Tensor]) -> list[Tensor]:
        """These leaves, laid out as the parameters are."""
        return self.wrapped(self.own(leaves))

    def zeros(self, dtype: str, columns: int | None) -> Tensor:
        """The vector of zeros, or columns of them."""
        shape = (self.length,) if columns is None else (self.length, columns)
        return self.spread(torch.zeros(shape, dtype=getattr(torch, dtype), device=self._device))

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
    def _device(self) -> torch.device:
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

    def numbers(self) -> Tensor:
        """The place of each entry in the vector of the whole leaves, int32, on this process; beyond them, their number.

        It is a plain tensor: what is drawn by it is, too, until :meth:`spread`.
        """
        total = sum(map(math.prod, self.shapes))
        every = torch.arange(total, dtype=torch.int32, device=self._device)
        whole = every.split([math.prod(shape) for shape in self.shapes])
        leaves = [part.reshape(shape) for part, shape in zip(whole, self.shapes, strict=True)]
        found = torch.cat([leaf.reshape(-1) for leaf in self.own(leaves)])
        return torch.cat([found, found.new_full((self.length - len(found),), total)])


class Way:
    """Between shards and whole leaves, as a model of one reduction's processes sees them."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.reduction = layout, sharing.get()
        self.shared = self.reduction is not None
        if self.shared:
            self.reduction.require_mesh(layout.mesh)

    def seen(self, function: Callable[[list[Tensor]], Any]) -> Callable[[list[Tensor]], Any]:
        """``function``, of whole leaves, as one of shards."""
        return lambda shards: function(list(_Gather.apply(self, *shards)))

    def require_same_copies(self, shards: Sequence[Tensor]) -> None:
        """Raise on all processes unless those that should have the same shards do: along axes that cut nothing."""
        layout, mesh = self.layout, self.layout.mesh
        if math.prod(mesh.shape) == layout.devices:
            return
        sent = np.zeros((layout.devices, len(as_sent([0]))))
        sent[layout.places.index(layout.here)] = as_sent([mark_of_bits(shards)])
        found = torch.tensor(sent, dtype=torch.float32, device=layout._device)
        all_reduce(found, mesh, range(mesh.ndim), self.reduction)
        if any(which_differs(sums) is not None for sums in found.tolist()):
            raise ValueError(
                "the parameters are DTensors, and processes that should have the same shards of them, along an axis of "
                "the mesh that is replicated, do not. Make them by distribute_tensor, which sends those of the first "
                "process, or begin from one seed."
            )

    def gather(self, shards: Sequence[Tensor]) -> list[Tensor]:
        """The whole leaves."""
        layout, dtypes = self.layout, [shard.dtype for shard in shards]
        flat = layout.flat(shards, _widest(dtypes))
        for i in reversed(layout.cut):
            flat = self._collected(flat, i)
        parts = [
            layout.shards(part, place) for part, place in zip(flat.split(layout.length), layout.places, strict=True)
        ]
        whole = [flat.new_empty(shape, dtype=dtype) for shape, dtype in zip(layout.shapes, dtypes, strict=True)]
        for place, found in zip(layout.places, parts, strict=True):
            for i, part in enumerate(found):
                whole[i][layout.shard(i, place)] = part
        return whole

    def scatter(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Shards of this process of leaves, or of the sum of those that the processes have."""
        layout, dtypes = self.layout, [leaf.dtype for leaf in leaves]
        if not self.shared:
            copies = [i for i in range(layout.mesh.ndim) if i not in layout.cut]  # where rounding may differ
            own = [leaf[layout.shard(i, layout.here)].clone() for i, leaf in enumerate(leaves)]
            return [layout.from_first(shard, copies) for shard in own] if copies else own
        wide = _widest(dtypes)
        flat = torch.cat([layout.flat(list(self._cut(leaves, place)), wide) for place in layout.places])
        for i in range(layout.mesh.ndim):
            flat = self._reduced(flat, i)
        return [shard.to(dtype, copy=True) for shard, dtype in zip(layout.shards(flat), dtypes, strict=True)]

    def total(self, expected: float, found: float) -> tuple[float, float]:
        """<J^T u, J^T u> and <J J^T u, u> of all processes, from the shards and the outputs of this one."""
        layout = self.layout
        sent = torch.tensor([expected, found if self.shared else found / layout.devices], dtype=torch.float64)
        sent = sent.to(layout._device)
        all_reduce(sent, layout.mesh, layout.cut if not self.shared else range(layout.mesh.ndim), sharing.get())
        copies = math.prod(layout.mesh.shape) // layout.devices if self.shared else 1
        return float(sent[0]) / copies, float(sent[1])

    def _cut(self, leaves: Sequence[Tensor], place: tuple[int, ...]) -> Iterator[Tensor]:
        return (leaf[self.layout.shard(i, place)] for i, leaf in enumerate(leaves))

    def _collected(self, flat: Tensor, axis: int) -> Tensor:
        made = flat.new_empty(len(flat) * self.layout.mesh.size(axis))
        group = self.layout.mesh.get_group(axis)
        finish(self.reduction, lambda: all_gather(made, flat, group))
        return made

    def _reduced(self, flat: Tensor, axis: int) -> Tensor:
        if axis not in self.layout.cut:
            return all_reduce(flat, self.layout.mesh, [axis], self.reduction)
        group = self.layout.mesh.get_group(axis)
        made = flat.new_empty(len(flat) // self.layout.mesh.size(axis))
        finish(self.reduction, lambda: reduce_scatter(made, flat, group))
        return made


def _widest(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    found = dtypes[0]
    for dtype in dtypes[1:]:
        found = torch.promote_types(found, dtype)
    return found


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, way: Way, *shards: Tensor) -> Any:
        ctx.way = way
        return tuple(way.gather(shards))

    @staticmethod
    def backward(ctx: Any, *leaves: Tensor) -> Any:
        return None, *_Scatter.apply(ctx.way, *leaves)


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, way: Way, *leaves: Tensor) -> Any:
        ctx.way = way
        return tuple(way.scatter(leaves))

    @staticmethod
    def backward(ctx: Any, *shards: Tensor) -> Any:
        return None, *_Gather.apply(ctx.way, *shards)
