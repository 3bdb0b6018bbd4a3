"""Derivatives of models whose parameters are DTensors: shards are differentiated, leaves are gathered as they are used.

    gather     shards -> whole leaves     an all-gather of a leaf, by each operation that takes it
    scatter    whole leaves -> shards     where each process has all data: its part of them, and nothing is sent
                                          where each has a share: a reduce-scatter, the sum over the processes

They are each other's transposes (:mod:`.wholes`), so that with process r's own J_r and H_r

    J^T H J v = scatter(J_r^T H_r J_r gather(v))

goes through the model a leaf at a time: J v gathers each leaf of v and of the parameters once, J^T u gathers those of
the parameters and scatters those of the result. In memory, beside what a process has of vectors and its activations, is
one leaf. Small ones go together (:func:`groups_of`), and what a model uses again and again stays.

Processes gather as their graphs ask for it. Where data lead the model another way on each they ask for other leaves, so
that they take turns: each tells what it asks for, and all do one of these, with zeros where they have nothing to add,
until none asks any more. If all have asked for the same all the time, the next run of its kind goes by that plan, and
they tell no more than that they have come to its end. Who asks for something else meanwhile does what the plan says
first. Products of one linearisation do without that, too: a graph stays what it is.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from linop_gn.backend import GradientLinearization, Linearization, LinearizationDefaults

from .alone import ALONE, Alone
from .sharded import Layout, Leaves, layout_of, widest
from .shards import all_gather, all_reduce, finish, reduce_scatter, sharing
from .trees import map_tree
from .wholes import Gather, in_full

__all__ = ["Way", "gathered", "groups_of"]

_SMALL = 8
"""Leaves are small that have less than one in so many of the largest one's entries,"""
FEW = 1 << 18
"""or no more than so many: these are sent in little more time than it takes to begin to send."""
_OFTEN = 4
"""A leaf that is used more often than this in one run stays gathered to its end, as a recurrent layer's weights."""

_AT, _ALONG, _SCATTER = range(3)
"""What processes ask for: a leaf of the parameters, one of a tangent, the sum of a leaf."""


_plans: dict[tuple[Layout, int, Any], list[int]] = {}
"""What processes gathered and scattered, one after the other, in the latest run: of layouts, groups and keys."""


def gathered(params: Sequence[Tensor]) -> tuple[Sequence[Tensor], Alone]:
    """What this process has of parameters, and the way to the others; parameters that are whole as they are."""
    layout = layout_of(params)
    if layout is None:
        return params, ALONE
    way = Way(layout, params)
    if way.copies:
        layout.require_same_copies({tuple(way.copies): way.parts})
    return way.parts, way


def groups_of(shapes: Sequence[tuple[int, ...]], most: int) -> list[tuple[int, ...]]:
    """Leaves that are gathered together: small ones up to ``most`` entries, others each for itself.

    >>> groups_of([(8, 8), (2,), (8, 8), (2,), (4,)], 8)
    [(0,), (2,), (1, 3, 4)]
    """
    sizes = [math.prod(shape) for shape in shapes]
    groups = [(i,) for i, size in enumerate(sizes) if size > most]
    together, filled = list[int](), 0
    for i, size in enumerate(sizes):
        if size <= most:
            if filled + size > most:
                groups.append(tuple(together))
                together, filled = [], 0
            together.append(i)
            filled += size
    return [*groups, tuple(together)] if together else groups


class Way(Alone):
    """Between shards and whole leaves, as a model of one reduction's processes sees them."""

    def __init__(self, layout: Layout, params: Sequence[Tensor]) -> None:
        self.layout, self.reduction = layout, sharing.get()
        self.parts = layout.own(params)
        self.copies = [i for i in range(layout.mesh.ndim) if i not in layout.cut]
        """The axes of the mesh along which processes have the same shards."""
        if self.reduction is not None:
            self.reduction.require_mesh(layout.mesh)
        self.small = max(FEW, max(map(math.prod, layout.shapes), default=0) // _SMALL)
        """How many entries small leaves have at most, and how many of such are gathered at once."""
        groups = groups_of(layout.shapes, self.small)
        self.groups = [Group(self, i, leaves) for i, leaves in enumerate(groups)]
        self._along: Sequence[Tensor | None] = [None] * len(self.parts)
        self._added: dict[int, Tensor] = {}
        """Of leaves that this process did not scatter when another one did."""
        self._vector: Tensor | None = None
        self._slots: list[Tensor] | None = None
        """This process's part of a result, and where its leaves are in that."""
        self._key: Any = None
        self._settled: dict[Any, list[int]] = {}
        """What all processes do in runs, of graphs that they have been through."""
        self._plan, self._done = deque[int](), list[int]()
        self._known, self._apart = False, False
        self.kept: list[_Parts] = []

    # what is run

    def over(self, function: Callable[[list[Tensor]], Any]) -> Callable[[list[Tensor]], Any]:
        """A function of whole leaves as one of parts."""

        def of_parts(parts: list[Tensor]) -> Any:
            leaves: list[Any] = [None] * len(parts)
            for group in self.groups:
                own = [parts[i] for i in group.leaves]
                for i, leaf in zip(group.leaves, Gather.apply(_Parts(self, group, own, _AT), *own), strict=True):
                    leaves[i] = leaf
            return map_tree(in_full, function(leaves))

        return of_parts

    @contextmanager
    def run(self, key: Any, along: Sequence[Tensor] | None = None, only: Sequence[int] | None = None) -> Iterator[None]:
        """What gathers and scatters, by a ``key`` that tells it from others; ``along`` are parts of tangents in it.

        What is scattered without being recorded goes to its place in the vector that it will be.
        """
        self._begin((key, 0))
        self._added, self._vector, self._slots = {}, None, None
        self._along = [None] * len(self.parts)
        if along is not None:
            self.follow(range(len(self.parts)) if only is None else only, along)
        try:
            yield
            self._end()
        finally:
            for parts in self.kept:
                parts.held = None
            self.kept, self._along = [], [None] * len(self.parts)
            for group in self.groups:
                group.times = {}

    def follow(self, leaves: Sequence[int], parts: Sequence[Tensor]) -> None:
        along = list[Tensor | None](self._along)
        for i, part in zip(leaves, parts, strict=True):
            along[i] = part
        self._along = along

    def tangents(self, leaves: Sequence[Tensor], only: tuple[int, ...] | None) -> list[Tensor]:
        """The parts of tangents, of the leaves in ``only`` where that is given."""
        return self._of(only).own(leaves)

    def summed(self, parts: Sequence[Tensor], leaves: Sequence[int]) -> Sequence[Tensor]:
        added = self._added
        return [part + added[i] if i in added else part for i, part in zip(leaves, parts, strict=True)]

    def slot(self, leaf: int) -> Tensor | None:
        """The place for what is scattered; None where leaves have several dtypes."""
        if self._slots is None and len({part.dtype for part in self.parts}) == 1:
            vector = self.parts[0].new_empty(self.layout.length)
            vector[self.layout.entries(self.layout.here) :] = 0
            self._vector, self._slots = vector, self.layout.shards(vector)
        return None if self._slots is None else self._slots[leaf]

    def completed(self, parts: Sequence[Tensor], only: tuple[int, ...] | None = None) -> Leaves:
        parts = self.summed(parts, range(len(self.parts)) if only is None else only)
        made, vector, slots = self._of(only).wrapped(parts), self._vector, self._slots
        self._vector = self._slots = None
        if only is None and vector is not None and slots is not None:
            for slot, part in zip(slots, parts, strict=True):
                if not _same(slot, part):
                    slot.copy_(part)
            made.vector = vector
        return made

    def _of(self, only: tuple[int, ...] | None) -> Layout:
        return self.layout if only is None else self.layout.part(only)

    def linearized(self, made: Any) -> Any:
        return ShardedGradient(made, self) if hasattr(made, "hvp") else ShardedLinearization(made, self)

    # what all have to know

    def any(self, *flags: bool) -> tuple[bool, ...]:
        self.meet()
        sent = torch.tensor([float(flag) for flag in flags], device=self.layout.device)
        return tuple(x > 0 for x in self._over_all(sent, dist.ReduceOp.MAX).tolist())

    def totals(self, of_leaves: list[float], of_outputs: list[float]) -> tuple[list[float], list[float]]:
        self.meet()
        x, y = (torch.tensor(of, dtype=torch.float64, device=self.layout.device) for of in (of_leaves, of_outputs))
        all_reduce(x, self.layout.mesh, self.layout.cut, self.reduction)
        y = y if self.reduction is None else self._over_all(y, dist.ReduceOp.SUM)
        return x.tolist(), y.tolist()

    # turns

    def in_turn(self, kind: int, group: int, act: Callable[[], Any]) -> Any:
        """What ``act`` returns, when all processes are at it; until then, take part in what others ask for."""
        own = 1 + 3 * group + kind
        while (asked := self._next(own)) != own:
            self._take_part(asked)
        return act()

    def meet(self) -> None:
        self._end()
        self._begin((self._key[0], self._key[1] + 1))

    def forget(self) -> None:
        self._settled = {}

    def _begin(self, key: Any) -> None:
        self._key, self._known, self._apart = key, key in self._settled, False
        self._plan, self._done = deque(self._settled.get(key) or _plans.get((self.layout, self.small, key)) or ()), []

    def _end(self) -> None:
        while asked := self._next(0):
            self._take_part(asked)
        _plans.pop((self.layout, self.small, self._key), None)
        if not self._apart:
            self._settled[self._key] = _plans[self.layout, self.small, self._key] = self._done

    def _next(self, own: int) -> int:
        """What is done next: what the plan says, or, of what the processes ask for, the one with the highest number."""
        if self._plan or self._known:
            asked = self._plan.popleft() if self._plan else 0
            self._apart = self._apart or asked != own
            if self._apart and self._known:
                raise RuntimeError(
                    "a product goes another way through the model than the one before: something in it changes, such "
                    "as a hook, and processes would wait for each other in vain. Make it the same each time."
                )
        else:
            sent = torch.tensor([own, -own, self._apart], device=self.layout.device)
            asked, least, apart = self._over_all(sent, dist.ReduceOp.MAX).tolist()
            self._apart = bool(apart) or asked != -least
        if asked:
            self._done.append(asked)
        return asked

    def _take_part(self, asked: int) -> None:
        number, kind = divmod(asked - 1, 3)
        group = self.groups[number]
        if kind == _SCATTER:
            for i, part in zip(group.leaves, group.scattered([None] * len(group.leaves), True), strict=True):
                self._added[i] = self._added[i] + part if i in self._added else part
            return
        parts = self.parts if kind == _AT else self._along
        group.gathered([torch.zeros_like(self.parts[i]) if parts[i] is None else parts[i] for i in group.leaves])

    def _over_all(self, x: Tensor, op: Any) -> Tensor:
        return all_reduce(x, self.layout.mesh, range(self.layout.mesh.ndim), self.reduction, op)

    def keep(self, parts: _Parts) -> None:
        """Keep this gathered to the end of the run, if it is small until others come."""
        self.kept.append(parts)
        small = [x for x in self.kept if x.group.is_small]
        for old in small[:-2]:  # of the parameters and of a tangent
            old.held = None
            self.kept.remove(old)


class Group:
    """Some leaves, which are gathered, and scattered, at once."""

    def __init__(self, way: Way, number: int, leaves: tuple[int, ...]) -> None:
        self.way: Way = weakref.proxy(way)  # which would else be held, with its parts, until cycles are looked for
        self.number, self.leaves = number, leaves
        self.layout = way.layout.part(leaves)
        self.is_small = math.prod(way.layout.shapes[leaves[0]]) <= way.small
        self.times: dict[int, int] = {}
        """How often the leaves of the parameters, and of a tangent, were gathered in one run."""
        self._whole = self.layout.in_order
        self._cut = self.layout.cut if self.layout.size else ()

    def gathered(self, parts: Sequence[Tensor]) -> dict[int, Tensor]:
        """The whole leaves."""
        layout, dtypes = self.layout, [part.dtype for part in parts]
        if len(parts) == 1 and parts[0].numel() == layout.length and parts[0].is_contiguous():
            flat = parts[0].reshape(-1)
        else:
            flat = layout.flat(parts, widest(dtypes))
        for i in reversed(self._cut):
            flat = self._collected(flat, i)
        rows = [shape or (1,) for shape in layout.shapes]
        if self._whole:
            return {self.leaves[0]: flat[: math.prod(rows[0])].view(rows[0])}
        whole = [flat.new_empty(shape, dtype=dtype) for shape, dtype in zip(rows, dtypes, strict=True)]
        for place, own in zip(layout.places, flat.split(layout.length), strict=True):
            for i, part in enumerate(layout.shards(own, place)):
                whole[i][layout.shard(i, place)] = part
        return dict(zip(self.leaves, whole, strict=True))

    def scattered(self, wholes: Sequence[Tensor | None], recorded: bool) -> list[Tensor]:
        """The parts of this process of leaves, or of the sum of those that the processes have; None for zeros."""
        layout, parts = self.layout, [self.way.parts[i] for i in self.leaves]
        wide, here = widest([part.dtype for part in parts]), layout.here
        leaves = [
            None if x is None else x.reshape(shape or (1,)) for x, shape in zip(wholes, layout.shapes, strict=True)
        ]
        if self.way.reduction is None:
            flat = self._flat(leaves, here, wide)
            layout.from_first(flat, self.way.copies)  # where rounding may differ
        else:
            if self._whole and leaves[0] is not None:
                flat = leaves[0].reshape(-1)
                if len(flat) < layout.size or not layout.cut:
                    flat = torch.cat([flat, flat.new_zeros(layout.size - len(flat))])
            else:
                flat = torch.cat([self._flat(leaves, place, wide) for place in layout.places])
            slot = None if recorded or len(leaves) > 1 else self.way.slot(self.leaves[0])
            for i in (*self._cut, *self.way.copies):
                flat = self._reduced(flat, i, slot)
        made = []
        for i, shard, part in zip(self.leaves, layout.shards(flat), parts, strict=True):
            slot = None if recorded else self.way.slot(i)
            made.append(shard.to(part.dtype) if slot is None else slot if _same(slot, shard) else slot.copy_(shard))
        return made

    def _flat(self, leaves: Sequence[Tensor | None], place: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        shards = []
        for i, leaf in enumerate(leaves):
            at = self.layout.shard(i, place)
            zeros = [along.stop - along.start for along in at]
            shards.append(torch.zeros(zeros, device=self.layout.device) if leaf is None else leaf[at])
        return self.layout.flat(shards, dtype)

    def _collected(self, flat: Tensor, axis: int) -> Tensor:
        made = flat.new_empty(len(flat) * self.layout.mesh.size(axis))
        mesh = self.layout.mesh.get_group(axis)
        finish(self.way.reduction, lambda: all_gather(made, flat, mesh))
        return made

    def _reduced(self, flat: Tensor, axis: int, slot: Tensor | None) -> Tensor:
        if axis not in self.layout.cut:
            return all_reduce(flat, self.layout.mesh, [axis], self.way.reduction)
        mesh = self.layout.mesh.get_group(axis)
        size = len(flat) // self.layout.mesh.size(axis)
        made = flat.new_empty(size) if slot is None or slot.numel() != size else slot.view(-1)
        finish(self.way.reduction, lambda: reduce_scatter(made, flat.contiguous(), mesh))
        return made


def _same(x: Tensor, y: Tensor) -> bool:
    return x.data_ptr() == y.data_ptr()


class _Parts:
    """What this process has of the leaves of a group: see :class:`.wholes.Shards`."""

    def __init__(self, way: Way, group: Group, parts: Sequence[Tensor], kind: int) -> None:
        self.way, self.group, self.parts, self.leaves = way, group, parts, group.leaves
        self.held: dict[int, Tensor] | None = None
        self._kind = kind

    def shape(self, leaf: int) -> tuple[int, ...]:
        return self.way.layout.shapes[leaf]

    def of(self, parts: Sequence[Tensor | None]) -> _Parts:
        like = zip(parts, self.parts, strict=True)
        return _Parts(self.way, self.group, [torch.zeros_like(own) if v is None else v for v, own in like], _ALONG)

    def gathered(self) -> dict[int, Tensor]:
        if self.held is not None:
            return self.held
        group, kind = self.group, self._kind
        made = self.way.in_turn(kind, group.number, lambda: group.gathered(self.parts))
        group.times[kind] = group.times.get(kind, 0) + 1
        if group.is_small or group.times[kind] > _OFTEN:
            self.held = made
            self.way.keep(self)
        return made  # type: ignore[no-any-return]

    def scattered(self, wholes: Sequence[Tensor | None], recorded: bool) -> list[Tensor]:
        group = self.group
        return self.way.in_turn(_SCATTER, group.number, lambda: group.scattered(wholes, recorded))  # type: ignore[no-any-return]


class ShardedLinearization(LinearizationDefaults):
    """A linearisation of what each process has of the leaves, with vectors in shards."""

    def __init__(self, inner: Linearization, way: Way) -> None:
        self.inner, self.way, self.outputs = inner.without_gradient(), way, inner.outputs
        self.gradient: list[Tensor] | None = None if inner.gradient is None else way.completed(inner.gradient)

    def jvp(self, tangents: Sequence[Tensor], only: tuple[int, ...] | None = None) -> Tensor:
        """J v."""
        parts = self.way.tangents(tangents, only)
        with self.way.run(("J v", only), parts, only):
            return self.inner.jvp(parts, only)

    def vjp(self, cotangent: Tensor, only: tuple[int, ...] | None = None) -> list[Tensor]:
        """J^T u, for the leaves in ``only`` alone where that is given."""
        with self.way.run(("J^T u", only)):
            made = self.inner.vjp(cotangent, only)
        return self.way.completed(made, only)


class ShardedGradient(LinearizationDefaults):
    """A gradient linearised, of what each process has of the leaves, with vectors in shards."""

    def __init__(self, inner: GradientLinearization, way: Way) -> None:
        self.inner, self.way, self.value = inner, way, inner.value
        self.gradient: list[Tensor] = way.completed(inner.gradient)

    def hvp(self, tangents: Sequence[Tensor]) -> list[Tensor]:
        """H v."""
        parts = self.way.tangents(tangents, None)
        with self.way.run("H v", parts):
            made = self.inner.hvp(parts)
        return self.way.completed(made)
