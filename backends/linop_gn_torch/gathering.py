"""Derivatives of models whose parameters are DTensors: whole leaves are differentiated, shards go in and come out.

    gather     shards -> whole leaves     one all-gather of n numbers
    scatter    whole leaves -> shards     where each process has all data: its part of them, and nothing is sent
                                          where each has a share: one reduce-scatter, the sum over the processes

They are each other's transposes, so that with process r's own J_r and H_r

    J^T H J v = scatter(J_r^T H_r J_r gather(v)):

a product gathers v once and scatters the result once, for any number of leaves, and of blocks of leaves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from linop_gn.backend import GradientLinearization, Linearization, LinearizationDefaults

from .sharded import Layout, Leaves, layout_of, widest
from .shards import all_gather, all_reduce, finish, reduce_scatter, sharing

__all__ = ["GatheredGradient", "GatheredLinearization", "Way", "gathered"]


def gathered(params: Sequence[Tensor]) -> tuple[Sequence[Tensor], Way | None]:
    """Whole leaves, and the way between them and the shards that are theirs; None where they were whole."""
    layout = layout_of(params)
    if layout is None:
        return params, None
    way = Way(layout)
    if way.copies:
        layout.require_same_copies({tuple(way.copies): layout.own(params)})
    return way.gather(params), way


class Way:
    """Between shards and whole leaves, as a model of one reduction's processes sees them."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.reduction = layout, sharing.get()
        self.copies = [i for i in range(layout.mesh.ndim) if i not in layout.cut]
        """The axes of the mesh along which processes have the same shards."""
        if self.reduction is not None:
            self.reduction.require_mesh(layout.mesh)

    def part(self, leaves: tuple[int, ...] | None) -> Way:
        """That of these leaves alone; None: of all."""
        if leaves is None:
            return self
        made = copy.copy(self)
        made.layout = self.layout.part(leaves)
        return made

    def gather(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """The whole leaves."""
        layout = self.layout
        shards = layout.own(leaves)
        dtypes, rows = [shard.dtype for shard in shards], [shape or (1,) for shape in layout.shapes]
        flat = layout.flat(shards, widest(dtypes))
        for i in reversed(layout.cut):
            flat = self._collected(flat, i)
        whole = [flat.new_empty(shape, dtype=dtype) for shape, dtype in zip(rows, dtypes, strict=True)]
        for place, own in zip(layout.places, flat.split(layout.length), strict=True):
            for i, part in enumerate(layout.shards(own, place)):
                whole[i][layout.shard(i, place)] = part
        return [leaf.reshape(shape) for leaf, shape in zip(whole, layout.shapes, strict=True)]

    def scatter(self, leaves: Sequence[Tensor]) -> Leaves:
        """The parts of this process of leaves, or of the sum of those that the processes have."""
        layout, dtypes = self.layout, [leaf.dtype for leaf in leaves]
        leaves = [leaf if leaf.ndim else leaf[None] for leaf in leaves]
        wide = widest(dtypes)
        if self.reduction is None:
            flat = self._flat(leaves, layout.here, wide)
            layout.from_first(flat, self.copies)  # where rounding may differ
        else:
            flat = torch.cat([self._flat(leaves, place, wide) for place in layout.places])
            for i in range(layout.mesh.ndim):
                flat = self._reduced(flat, i)
        return layout.wrapped([shard.to(dtype) for shard, dtype in zip(layout.shards(flat), dtypes, strict=True)])

    def _flat(self, leaves: Sequence[Tensor], place: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self.layout.flat([leaf[self.layout.shard(i, place)] for i, leaf in enumerate(leaves)], dtype)

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


class GatheredLinearization(LinearizationDefaults):
    """A linearisation at whole leaves, with vectors in shards."""

    def __init__(self, inner: Linearization, way: Way) -> None:
        self.inner, self.way, self.outputs = inner.without_gradient(), way, inner.outputs
        self.gradient: list[Tensor] | None = None if inner.gradient is None else way.scatter(inner.gradient)

    def jvp(self, tangents: Sequence[Tensor], only: tuple[int, ...] | None = None) -> Tensor:
        """J v."""
        way = self.way.part(only)
        return self.inner.jvp(way.gather(tangents), only)

    def vjp(self, cotangent: Tensor, only: tuple[int, ...] | None = None) -> list[Tensor]:
        """J^T u, for the leaves in ``only`` alone where that is given."""
        return self.way.part(only).scatter(self.inner.vjp(cotangent, only))

    def by_parts(
        self, tangents: Sequence[Tensor], products: Callable[[Linearization, list[Tensor]], list[Tensor]]
    ) -> list[Tensor]:
        """See :meth:`linop_gn.protocols.Linearization.by_parts`."""
        return self.way.scatter(products(self.inner, self.way.gather(tangents)))


class GatheredGradient(LinearizationDefaults):
    """A gradient linearised at whole leaves, with vectors in shards."""

    def __init__(self, inner: GradientLinearization, way: Way) -> None:
        self.inner, self.way, self.value = inner, way, inner.value
        self.gradient: list[Tensor] = way.scatter(inner.gradient)

    def hvp(self, tangents: Sequence[Tensor]) -> list[Tensor]:
        """H v."""
        return self.way.scatter(self.inner.hvp(self.way.gather(tangents)))
