"""Flat vectors of sharded parameters: each device holds, one after the other, its own shards of the leaves.

A vector (n,) is cut along its one axis by the axes of the mesh that cut the leaves, and device d has

    v_d = [shard of leaf 1, shard of leaf 2, ...],    n = devices * len(v_d).

So packing and cutting move nothing between devices, inner products are local sums and one all-reduce, and whatever
solvers do with flat vectors, bases (k, n) of them too, is divided as the parameters are. Only the order of the entries
differs from that on one device, which nobody sees who gives and takes trees.

A leaf that only some of these axes cut would stand in v several times: each of the devices that hold the same shard
takes a part of it then, and cutting the vector gathers it along the other axes (biases, scales). Where the parts are
not even, the last ones end in zeros, which stay zero: ``numbers`` tells them apart.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from linop_gn.backend import Array, Vector

from .arithmetic import scalar_dtype, size, sizes

__all__ = ["Layout", "layout_of"]

Axes = tuple[str, ...]
Blocks = tuple[tuple[int, ...], ...]
"""Of leaves, by index."""


class _Group(NamedTuple):
    """Leaves that the same axes do not cut, and so are shared out along these."""

    leaves: tuple[int, ...]
    rest: Axes
    entries: int
    """Of a device, without the zeros at the end."""
    part: int
    """Of these, or zeros, in the vector."""


def layout_of(leaves: Sequence[Any], names: Sequence[str] = ()) -> Layout | None:
    """The layout of vectors like these leaves; None where no axis of a mesh cuts one, or where that is not known.

    Leaves that were put nowhere, and traced ones whose types tell nothing, count as whole on each device.
    """
    traced = any(issubclass(kind, jax.core.Tracer) for kind in {*map(type, leaves)})
    if not traced and all(type(x.sharding) is SingleDeviceSharding for x in leaves):
        return None  # as most are, and a loop asks at each step
    found = [jax.typeof(x).sharding if isinstance(x, jax.core.Tracer) else x.sharding for x in leaves]
    if not any(isinstance(s, NamedSharding) for s in found):
        return None
    specs = tuple(_spec(s, x.ndim) for s, x in zip(found, leaves, strict=True))
    cut = [i for i, spec in enumerate(specs) if _axes(spec) and _count(found[i].mesh, _axes(spec)) > 1]
    if not cut or jax.sharding.get_abstract_mesh().manual_axes:  # there an array is what one device has of it
        return None
    mesh = next((found[i].mesh for i in cut if isinstance(found[i].mesh, jax.sharding.Mesh)), found[cut[0]].mesh)
    for i, leaf in enumerate(leaves):
        if i in cut:
            apart = found[i].mesh not in (mesh, mesh.abstract_mesh)
        else:
            known = isinstance(mesh, jax.sharding.Mesh) and not isinstance(leaf, jax.core.Tracer) and leaf.committed
            apart = known and found[i].device_set != set(mesh.devices.flat)
        if apart:
            (first, here), (second, there) = ((_name(names, j, leaves[j]), found[j]) for j in (cut[0], i))
            raise ValueError(
                f"{first} is sharded over {_told(here)}, but {second} lies on {_told(there)}: put all parameters on "
                "one mesh, jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(...)))."
            )
    return _layout(mesh, specs, tuple(tuple(x.shape) for x in leaves))


def _name(names: Sequence[str], i: int, leaf: Any) -> str:
    return f"leaf {names[i]!r}" if names else f"leaf {i} of shape {tuple(leaf.shape)}"


def _told(sharding: Any) -> str:
    if isinstance(sharding, NamedSharding):
        return ", ".join(f"{name!r}: {size}" for name, size in sharding.mesh.shape.items()).join(("Mesh(", ")"))
    return ", ".join(map(str, sorted(sharding.device_set, key=lambda device: device.id)))


def _spec(sharding: Any, ndim: int) -> tuple[Any, ...]:
    return _whole(sharding.spec if isinstance(sharding, NamedSharding) else (), ndim)


def _count(mesh: Any, names: Sequence[str]) -> int:
    """The devices along these axes."""
    return math.prod(mesh.shape[name] for name in names)


def _whole(spec: Any, ndim: int) -> tuple[Any, ...]:
    """The axes that cut each axis of an array: a tuple of names, or None."""
    entries = [None if e is None else (e,) if isinstance(e, str) else tuple(e) or None for e in spec]
    return tuple(entries) + (None,) * (ndim - len(entries))


def _axes(spec: tuple[Any, ...]) -> Axes:
    return tuple(name for entry in spec if entry is not None for name in entry)


class Layout:
    """How vectors of sharded leaves lie over a mesh; compared by value, as part of programs."""

    gathering = "jax.device_put(params, NamedSharding(mesh, PartitionSpec()))"
    """How users gather parameters."""

    def __init__(self, mesh: Any, specs: tuple[Any, ...], shapes: tuple[tuple[int, ...], ...]) -> None:
        self.mesh, self.specs, self.shapes = mesh, specs, shapes
        self._key = mesh, specs, shapes
        cutting = {name for spec in specs for name in _axes(spec) if mesh.shape[name] > 1}
        kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))  # JAX has explicit axes before automatic ones
        self.axes: Axes = tuple(sorted(cutting, key=lambda n: (kinds[n] != AxisType.Explicit, [*kinds].index(n))))
        self.typed = any(kinds[name] == AxisType.Explicit for name in self.axes)
        self.devices = _count(mesh, self.axes)
        groups: dict[Axes, list[int]] = {}
        for i, spec in enumerate(specs):
            groups.setdefault(tuple(name for name in self.axes if name not in _axes(spec)), []).append(i)
        self.groups = tuple(self._group(tuple(found), rest) for rest, found in sorted(groups.items()))
        self.size = self.devices * sum(group.part for group in self.groups)

    def _group(self, leaves: tuple[int, ...], rest: Axes) -> _Group:
        entries = sum(math.prod(self._local(i)) for i in leaves)
        return _Group(leaves, rest, entries, -(-entries // _count(self.mesh, rest)))

    def _local(self, leaf: int) -> tuple[int, ...]:
        """The shape of a shard."""
        cuts = [_count(self.mesh, entry or ()) for entry in self.specs[leaf]]
        return tuple(n // cut for n, cut in zip(self.shapes[leaf], cuts, strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"{self.devices} parts along {', '.join(self.axes)}"

    @property
    def padded(self) -> bool:
        """Whether vectors have zeros that are no entry of a leaf."""
        return any(group.entries % _count(self.mesh, group.rest) for group in self.groups)

    def part(self, leaves: tuple[int, ...]) -> Layout | None:
        """The layout of these leaves alone."""
        specs, shapes = tuple(self.specs[i] for i in leaves), tuple(self.shapes[i] for i in leaves)
        return _layout(self.mesh, specs, shapes) if any(_count(self.mesh, _axes(spec)) > 1 for spec in specs) else None

    # vectors and leaves

    def pack(self, leaves: Sequence[Array], dtype: str) -> Vector:
        """The vector (n,) of these leaves, or columns (n, k) of leaves with a last axis of k."""
        columns = leaves[0].ndim - len(self.shapes[0])
        return _packed(self, dtype, columns)(self.constrained(leaves, columns))

    def split(self, vector: Vector, dtypes: Sequence[str]) -> list[Array]:
        """The leaves of a vector, cut as the parameters are."""
        return list(_cut(self, tuple(dtypes), vector.ndim - 1)(vector))

    def constrained(self, leaves: Sequence[Array], columns: int = 0) -> list[Array]:
        """These leaves, laid out as the parameters are."""
        specs = [PartitionSpec(*spec, *(None,) * columns) for spec in self.specs]
        return [laid(x, NamedSharding(self.mesh, spec)) for x, spec in zip(leaves, specs, strict=True)]

    def zeros(self, dtype: str, columns: int | None) -> Vector:
        """The vector of zeros, or columns of them."""
        return _zeros(self, dtype, columns)()

    def from_whole(self, whole: Array) -> Array:
        """A vector or columns that are whole on each device, as those of this layout lie."""
        return laid(whole, NamedSharding(self.mesh, self._specs(whole.ndim - 1)[1]))

    def vector(self, v: Any, what: str) -> Vector:
        """``v`` if it lies as vectors of this layout do, with zeros where they have no entry; else a clear error."""
        wanted = NamedSharding(self.mesh, self._specs(v.ndim - 1)[1])
        if isinstance(v, jax.core.Tracer):
            told = jax.typeof(v).sharding
            same = told.mesh == wanted.mesh.abstract_mesh and _spec(told, v.ndim) == _spec(wanted, v.ndim)
            lies = "is a flat array of which a traced program does not know that it lies"
        else:
            same = v.sharding.is_equivalent_to(wanted, v.ndim)
            lies = "is a flat array that does not lie"
        if not same:
            raise ValueError(
                f"{what} {lies} over the devices as vectors of these sharded parameters do ({self}), in whose order "
                "its entries would be read: give a tree like the parameters."
            )
        return _without_rest(self, v.ndim - 1)(v) if self.padded else v

    def axis_of(self, x: Array) -> int | None:
        """The axis of a vector, columns or a basis along which it is one; how it is cut tells of a square."""
        spec = _spec(x.sharding, x.ndim)
        found = [i for i, n in enumerate(x.shape) if n == self.size and x.ndim <= 2]
        return min(found, key=lambda i: spec[i] is None, default=None)

    def numbers(self) -> Array:
        """The place of each entry in the vector of the whole leaves, int32; from the number of entries on: no entry."""
        return _numbers(self)()

    def by_block(self, name: str, blocks: Blocks, *vectors: Vector) -> Array:
        """For each block of leaves the inner product of its entries in two vectors, or the largest in one: (k,)."""
        return _by_block(self, name, blocks)(*vectors)

    def of_blocks(self, numbers: Array, blocks: Blocks, like: Vector) -> Vector:
        """The vector in which each entry is the number (k,) of its leaf's block."""
        return _of_blocks(self, blocks)(numbers)

    def _program(self, function: Any, inputs: Any, outputs: Any) -> Any:
        mapped = jax.shard_map(function, mesh=self.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)
        if len(set(self.mesh.axis_types)) == 1 or not isinstance(self.mesh, jax.sharding.Mesh):
            return jax.jit(mapped)
        wanted = jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), outputs)
        return jax.jit(mapped, out_shardings=wanted)  # else cut by the explicit axes alone

    def _specs(self, columns: int) -> tuple[list[PartitionSpec], PartitionSpec]:
        """Those of the leaves, and that of vectors."""
        free = (None,) * columns
        return [PartitionSpec(*spec, *free) for spec in self.specs], PartitionSpec(self.axes, *free)

    def _pack_here(self, leaves: Sequence[Array], dtype: Any) -> Vector:
        """What one device puts into a vector."""
        parts = []
        for group in self.groups:
            flat = [jnp.reshape(leaves[i], (-1, *leaves[i].shape[len(self.shapes[i]) :])) for i in group.leaves]
            whole = jnp.concatenate([x.astype(dtype) for x in flat])
            if group.rest:
                more = _count(self.mesh, group.rest) * group.part - group.entries
                zeros = jnp.zeros((more, *whole.shape[1:]), dtype)
                start = lax.axis_index(group.rest) * group.part
                whole = lax.dynamic_slice_in_dim(jnp.concatenate([whole, zeros]), start, group.part)
            parts.append(whole)
        return jnp.concatenate(parts)

    def _split_here(self, vector: Vector, dtypes: tuple[str, ...]) -> tuple[Array, ...]:
        """What one device has of the leaves."""
        found: dict[int, Array] = {}
        start = 0
        for group in self.groups:
            whole, start = vector[start : start + group.part], start + group.part
            if group.rest and group.part:
                whole = lax.all_gather(whole, group.rest, tiled=True)
            at = 0
            for i in group.leaves:
                shape = self._local(i)
                stop = at + math.prod(shape)
                found[i] = whole[at:stop].reshape(shape + vector.shape[1:]).astype(dtypes[i])
                at = stop
        return tuple(found[i] for i in range(len(self.shapes)))

    def _by_block_here(self, vector: Vector, blocks: Blocks, reduce: Any) -> Array:
        """Of what one device has of a vector, the entries of each block reduced: as in any sum, not in a chain.

        Where devices have different entries of a group of leaves, each looks at as many as a leaf may have here.
        """
        found: list[list[Array]] = [[jnp.zeros((), vector.dtype)] for _ in blocks]
        block_of = {i: number for number, block in enumerate(blocks) for i in block}
        base = 0
        for group in self.groups:
            part, base = vector[base : base + group.part], base + group.part
            first = lax.axis_index(group.rest) * group.part if group.rest else 0
            stop = 0
            for i in group.leaves:
                start, stop = stop, stop + math.prod(self._local(i))
                size = min(stop - start, group.part)
                if group.rest:
                    at = jnp.clip(start - first, 0, group.part - size)
                    places = first + at + jnp.arange(size)
                    entries = lax.dynamic_slice_in_dim(part, at, size)
                    entries = jnp.where((start <= places) & (places < stop), entries, 0)
                else:
                    entries = part[start:stop]
                if i in block_of:  # one without entries need not be
                    found[block_of[i]].append(reduce(entries, initial=0))
        return jnp.stack([reduce(jnp.stack(of)) for of in found])

    def _entries_here(self, vector: Vector) -> Vector:
        """What one device has of a vector, with zeros for what is no entry."""
        firsts = [lax.axis_index(group.rest) * group.part if group.rest else 0 for group in self.groups]
        real = [
            first + jnp.arange(group.part) < group.entries for first, group in zip(firsts, self.groups, strict=True)
        ]
        return jnp.where(jnp.reshape(jnp.concatenate(real), (-1, *(1,) * (vector.ndim - 1))), vector, 0)


def laid(x: Array, sharding: NamedSharding) -> Array:
    """``x`` over devices as this says."""
    if not isinstance(x, jax.core.Tracer):
        same = x.sharding == sharding or x.sharding.is_equivalent_to(sharding, x.ndim)
        return x if same else jax.device_put(x, sharding)
    mesh, kinds = sharding.mesh, set(sharding.mesh.axis_types)
    if AxisType.Explicit not in kinds:
        return lax.with_sharding_constraint(x, sharding)
    explicit = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit}
    spec = [tuple(name for name in entry or () if name in explicit) for entry in _spec(sharding, x.ndim)]
    x = jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(*spec)))
    if kinds == {AxisType.Explicit}:
        return x
    return jax.shard_map(lambda x: x, mesh=mesh, in_specs=sharding.spec, out_specs=sharding.spec)(x)


_layout = functools.lru_cache(maxsize=256)(Layout)


@functools.lru_cache(maxsize=256)
def _packed(layout: Layout, dtype: str, columns: int) -> Any:
    leaves, vector = layout._specs(columns)
    return layout._program(lambda given: layout._pack_here(given, dtype), (leaves,), vector)


@functools.lru_cache(maxsize=256)
def _cut(layout: Layout, dtypes: tuple[str, ...], columns: int) -> Any:
    leaves, vector = layout._specs(columns)
    return layout._program(lambda given: layout._split_here(given, dtypes), (vector,), tuple(leaves))


@functools.lru_cache(maxsize=256)
def _without_rest(layout: Layout, columns: int) -> Any:
    _, vector = layout._specs(columns)
    return layout._program(layout._entries_here, (vector,), vector)


@functools.lru_cache(maxsize=256)
def _by_block(layout: Layout, name: str, blocks: Blocks) -> Any:
    def dot(x: Vector, y: Vector) -> Array:
        terms = x.astype(scalar_dtype(x.dtype)) * y.astype(scalar_dtype(y.dtype))
        return lax.psum(layout._by_block_here(terms, blocks, jnp.sum), layout.axes)

    def max_abs(x: Vector) -> Array:
        return size(lax.pmax(layout._by_block_here(sizes(x), blocks, jnp.max), layout.axes))

    _, vector = layout._specs(0)
    function, many = (dot, 2) if name == "dot" else (max_abs, 1)
    return layout._program(function, (vector,) * many, PartitionSpec())


@functools.lru_cache(maxsize=256)
def _of_blocks(layout: Layout, blocks: Blocks) -> Any:
    block_of = {i: number for number, block in enumerate(blocks) for i in block}

    def here(numbers: Array) -> Vector:
        leaves = [jnp.broadcast_to(numbers[block_of.get(i, 0)], layout._local(i)) for i in range(len(layout.shapes))]
        return layout._pack_here(leaves, numbers.dtype)

    return layout._program(here, (PartitionSpec(),), layout._specs(0)[1])


@functools.lru_cache(maxsize=256)
def _zeros(layout: Layout, dtype: str, columns: int | None) -> Any:
    shape, free = (layout.size // layout.devices,), () if columns is None else (columns,)
    vector = PartitionSpec(layout.axes, *(None,) * len(free))
    return layout._program(lambda: jnp.zeros(shape + free, dtype), (), vector)


@functools.lru_cache(maxsize=256)
def _numbers(layout: Layout) -> Any:
    """Leaves of their numbers are packed, with the zeros at the end told apart by counting from one."""
    ends = np.cumsum([math.prod(shape) for shape in layout.shapes]).tolist()
    total = ends[-1]

    def numbered() -> Array:
        leaves = [
            jnp.arange(end - math.prod(shape), end, dtype=jnp.int32).reshape(shape) + 1
            for shape, end in zip(layout.shapes, ends, strict=True)
        ]
        packed = layout.pack(leaves, "int32")
        return jnp.where(packed == 0, total, packed - 1)

    return jax.jit(numbered)
