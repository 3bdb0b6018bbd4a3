"""Sums over the axes of a mesh inside ``jax.shard_map``, where each device has its share of the data.

J^T of parameters that are the same on all devices is summed by JAX itself or not, as ``check_vma`` says, and a ``psum``
inside of what is transposed is one more on the way back: of eight devices, 8 times the product or an eighth of it.
So parameters are cast to numbers of one device before the model is linearised there. Then the transpose sums over no
devices, with ``check_vma`` and without, in however many batches, and what it gives is summed once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
from jax import lax, tree_util

from linop_gn.backend import Array, Backend, Vector
from linop_gn.distributed import Reduction

from .mapped import cast, varying

__all__ = ["JaxDevices", "OverAxes"]

T = TypeVar("T")


class OverAxes(Reduction):
    """Sums over axes of the mesh, as a part of programs; compared by value."""

    def __init__(self, axes: tuple[str, ...]) -> None:
        super().__init__(lambda x: lax.psum(cast(x, frozenset(axes)), axes))
        self.axes = axes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OverAxes) and self.axes == other.axes

    def __hash__(self) -> int:
        return hash(self.axes)

    def __repr__(self) -> str:
        return f"OverAxes({', '.join(self.axes)})"

    # All devices run one program, so that there is nothing to find out of the others.

    def sum(self, ops: Backend, arrays: Sequence[Array], marks: Mapping[str, int] | None = None) -> list[Array]:
        return super().sum(ops, arrays)

    def fingerprint(self, ops: Backend, x: Vector) -> int:
        return 0

    def compare(self, ops: Backend, like: Vector, marks: Mapping[str, int], wish: bool | None = None) -> bool:
        return bool(wish)

    def place(self, i: Any) -> Any:
        return i * lax.axis_size(self.axes) + lax.axis_index(self.axes)


class JaxDevices:
    """The part of the backend that :class:`linop_gn.protocols.Processes` describes."""

    def processes(self, group: Any, model: Any) -> tuple[Reduction, Any]:
        """The reduction over an axis of the mesh, or several."""
        axes = (group,) if isinstance(group, str) else tuple(group) if isinstance(group, list) else group
        if not (isinstance(axes, tuple) and axes and all(isinstance(axis, str) for axis in axes)):
            raise TypeError(
                "lg.distributed.DataParallel: in JAX the group is the axis of the mesh along which the examples are "
                f"cut, as a name or several, inside jax.shard_map; got {group!r}. Outside of it, arrays that "
                "are sharded along the examples need no group."
            )
        made = OverAxes(axes)
        self.apart((), made)
        return made, model

    def apart(self, x: T, reduction: Any) -> T:
        """The parameters, which :func:`.mapped.apart` casts to those of one device."""
        if not isinstance(reduction, OverAxes):
            raise TypeError(
                "reduce= is called between products, and jax compiles whole solves: share the data out over its "
                "devices instead, as arrays that are sharded along the examples, or inside jax.shard_map by "
                "lg.distributed.DataParallel(objective, axis)."
            )
        missing = [axis for axis in reduction.axes if axis not in jax.sharding.get_abstract_mesh().manual_axes]
        if missing:
            raise ValueError(
                f"lg.distributed.DataParallel sums over {', '.join(missing)}, which no jax.shard_map around it maps: "
                "make the objective inside of the mapped function. Outside, arrays that are sharded along the examples "
                "need no DataParallel."
            )
        axes = frozenset(reduction.axes)
        differ = [axis for leaf in tree_util.tree_leaves(x) for axis in axes & varying(jax.typeof(leaf))]
        if differ:
            raise ValueError(
                f"lg.distributed.DataParallel sums over {', '.join(sorted(set(differ)))}, along which the parameters "
                "differ, so that each device would add a derivative in its own to those in others: hand in parameters "
                "that are the same on all its devices (in_specs: jax.sharding.PartitionSpec()). Those that are split "
                "go without shard_map, as sharded arrays."
            )
        return x
