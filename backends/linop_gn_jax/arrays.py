"""Recognising, flattening, packing and converting JAX arrays and pytrees.

Trees are whatever ``jax.tree_util`` says they are, so flax and equinox trees
need nothing of their own. JAX arrays are immutable: "new" and "alias" differ
only for donation, which is why :meth:`JaxArrays.pack` copies a single leaf.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, tree_util
from jax.sharding import NamedSharding, PartitionSpec

from linop_gn.backend import Array, Tree, Vector

from .compiled import at_rest, can_be_quick, compiled, tracing
from .layouts import Layout, layout_of
from .mapped import cast, varying
from .models import parameters_of

__all__ = ["JaxArrays", "gathered", "laid_out", "wanted_dtype", "whole_on_each"]

T = TypeVar("T")


def wanted_dtype(name: str) -> np.dtype[Any]:
    """The dtype called ``name``, unless JAX would silently use a narrower one.

    Raises
    ------
    TypeError
        For 64-bit types while JAX has them switched off.
    """
    dtype = jnp.dtype(name)
    if dtype.itemsize == 8 and dtype.kind in "fiu" and jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise TypeError(
            f"{name} was asked for, but JAX has 64-bit types switched off and would silently use "
            f"{jax.dtypes.canonicalize_dtype(dtype)}. Call jax.config.update('jax_enable_x64', True) at the start of "
            "the program, or use 32-bit data."
        )
    return dtype


def whole_on_each(x: Array) -> NamedSharding | None:
    """How an array lies that is whole on every device, where the axes of an explicit mesh cut ``x``; else None."""
    sharding = jax.typeof(x).sharding
    if all(cut is None for cut in sharding.spec):
        return None
    mesh = sharding.mesh if isinstance(x, jax.core.Tracer) else x.sharding.mesh  # type: ignore[attr-defined]
    return NamedSharding(mesh, PartitionSpec())


def gathered(x: Array) -> Array:
    """``x`` whole on every device, where the axes of an explicit mesh cut it."""
    whole = whole_on_each(x)
    return x if whole is None else jax.sharding.reshard(x, whole)  # type: ignore[no-any-return]


def laid_out(x: Array, aval: Any) -> Array:
    """``x`` over devices as the array that was described: cut by explicit axes, or different along those of a map."""
    if aval.sharding.mesh.empty:
        return x
    if aval.sharding.spec != jax.typeof(x).sharding.spec:
        return jax.sharding.reshard(x, aval.sharding)  # type: ignore[no-any-return]
    return cast(x, varying(aval))  # type: ignore[no-any-return]


def _pack(leaves: list[Array], dtype: str) -> Vector:
    flat = [jnp.ravel(gathered(leaf)).astype(dtype) for leaf in leaves]
    return jnp.concatenate(flat) if len(flat) > 1 else jnp.copy(flat[0])


def _split(vector: Vector, shapes: tuple[tuple[int, ...], ...], dtypes: tuple[str, ...]) -> list[Array]:
    columns, start, leaves = vector.shape[1:], 0, []
    for shape, dtype in zip(shapes, dtypes, strict=True):
        stop = start + math.prod(shape)
        leaves.append(vector[start:stop].reshape(shape + columns).astype(dtype))
        start = stop
    return leaves


def _programs(function: Callable[..., T], static: tuple[int, ...]) -> tuple[Callable[..., T], Callable[..., T]]:
    """``function`` for many numbers or in somebody's trace, and for few: that compiles in half the time."""
    return jax.jit(function, static_argnums=static), compiled(function, static=static, effort="less")


_packs, _splits = _programs(_pack, (1,)), _programs(_split, (1, 2))


def _few(size: int) -> bool:
    return size <= 1_000 and not tracing() and can_be_quick()


@jax.jit
def _all_finite(parts: tuple[Array, ...]) -> Array:
    return jnp.all(jnp.stack([jnp.isfinite(part).all() for part in parts]))


def _of_all_processes(x: Any) -> Any:
    """``x`` on each process, where each has a part of it; all processes have to ask."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return x
    return jax.jit(lambda x: x, out_shardings=NamedSharding(x.sharding.mesh, PartitionSpec()))(x)  # type: ignore[attr-defined]


_names: dict[Any, list[str]] = {}  # of leaves, by structure: JAX takes 2 microseconds to name one
_name = functools.cache(str)  # NumPy takes 7 microseconds to name a dtype


def _require_narrow(x: np.ndarray[Any, Any]) -> None:
    limits = np.iinfo(np.int32)
    if x.size and not (limits.min <= x.min() and x.max() <= limits.max):
        raise OverflowError(
            f"integers from {x.min()} to {x.max()} do not fit into int32, and JAX has 64-bit types switched off: call "
            "jax.config.update('jax_enable_x64', True) at the start of the program, or use smaller numbers."
        )


@jax.custom_jvp
def _largest(x: Array) -> Array:
    # In loops JAX forgets the rule below when it linearises twice. Which number is subtracted does not matter.
    return jnp.max(lax.stop_gradient(x), axis=-1, keepdims=True)


@_largest.defjvp
def _slope_of_largest(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """By the index: JAX's own rule divides by the number of entries that equal the largest, of which XLA may see none.

    Where x ends in a product and a sum, XLA makes it again in each fusion, in one with a fused multiply-add.
    """
    (x,), (v,) = primals, tangents
    here = jnp.arange(x.shape[-1]) == jnp.argmax(x, axis=-1, keepdims=True)
    return _largest(x), jnp.sum(jnp.where(here, v, 0), axis=-1, keepdims=True)


class JaxArrays:
    """The part of the backend that knows arrays and trees."""

    name = "jax"

    def namespace(self) -> Any:
        return jnp

    def largest(self, x: Array) -> Array:
        return _largest(x)

    def version(self) -> str:
        return jax.__version__

    def devices(self) -> list[str]:
        return [str(device) for device in jax.devices()]

    def is_array(self, x: Any) -> bool:
        return isinstance(x, jax.Array)

    def normalize(self, tree: Any) -> Any:
        """A tree with equinox modules keeps what is no floating-point array of theirs in its structure."""
        return tree if isinstance(tree, jax.Array) else parameters_of(tree)

    def is_concrete(self, tree: Any) -> bool:
        return at_rest() or not any(isinstance(leaf, jax.core.Tracer) for leaf in tree_util.tree_leaves(tree))

    def lives_with(self, tree: Any, x: Array) -> bool:
        if self.is_concrete(tree):
            return True
        return isinstance(x, jax.core.Tracer) and lax.neg(x)._trace is x._trace  # what is computed now is x's trace's

    def flatten(self, tree: Tree) -> tuple[list[str], list[Array], Hashable]:
        leaves, structure = tree_util.tree_flatten(tree)
        names = _names.get(structure)
        if names is None:
            if len(_names) == 256:
                _names.clear()
            pairs, _ = tree_util.tree_flatten_with_path(tree)
            names = _names[structure] = [tree_util.keystr(path, simple=True, separator=".") for path, _ in pairs]
        return names.copy(), leaves, structure

    def unflatten(self, structure: Hashable, leaves: Sequence[Any]) -> Tree:
        return tree_util.tree_unflatten(structure, leaves)  # type: ignore[arg-type]

    def describe(self, x: Array) -> tuple[tuple[int, ...], str, Hashable]:
        return tuple(x.shape), _name(x.dtype), self._device(x)

    @staticmethod
    def _device(x: Array) -> Hashable:
        """The one device that ``x`` was put on; None where JAX itself decides (traced, uncommitted or sharded)."""
        if isinstance(x, jax.core.Tracer) or not x.committed or len(x.sharding.device_set) > 1:
            return None
        return next(iter(x.sharding.device_set))

    def layout(self, leaves: Sequence[Any], names: Sequence[str] = ()) -> Layout | None:
        return layout_of(leaves, names)

    def pack(self, leaves: Sequence[Array], dtype: str) -> Vector:
        kept = list(leaves)
        return _packs[_few(sum(leaf.size for leaf in kept))](kept, str(wanted_dtype(dtype)))

    def split(self, vector: Vector, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str]) -> list[Array]:
        return _splits[_few(vector.size)](vector, tuple(map(tuple, shapes)), tuple(dtypes))

    def asarray(self, host: Any, dtype: str, device: Hashable = None) -> Array:
        # A copy first: JAX would otherwise use the memory of a NumPy array that its owner may write to later.
        own = host.copy() if isinstance(host, np.ndarray) else host
        return jnp.asarray(own, dtype=wanted_dtype(dtype), device=device)  # type: ignore[arg-type]

    def lendable(self, x: Array) -> Array:
        return x

    def borrow(self, x: Any) -> Array:
        """See :meth:`linop_gn.protocols.Arrays.borrow`; int64 becomes int32 where JAX has no other integers.

        Memory of NumPy is taken by ``device_put``, which shares it where it can: ``from_dlpack`` takes ten times
        longer over a copy of memory that does not start at a multiple of 64 bytes.
        """
        name = str(x.dtype).rpartition(".")[2]
        if name != "int64":
            wanted_dtype(name)  # JAX would narrow it without a word
        elif isinstance(x, np.ndarray) and not jax.config.jax_enable_x64:
            _require_narrow(x)
        return jax.device_put(x) if isinstance(x, np.ndarray) else jnp.from_dlpack(x)

    def wait(self, tree: Tree) -> Tree:
        return jax.block_until_ready(tree)

    def cast(self, x: Array, dtype: str) -> Array:
        return x.astype(wanted_dtype(dtype))

    def all_finite(self, x: Array | tuple[Array, ...]) -> bool:
        parts = x if isinstance(x, tuple) else (x,)
        whole = jax.process_count() == 1 or all(part.is_fully_addressable for part in parts)
        if whole and (jax.default_backend() == "cpu" or tracing()):  # NumPy's memory, and operations would be traced
            return all(np.isfinite(np.asarray(part)).all() for part in parts)
        with jax.ensure_compile_time_eval():
            return bool(_all_finite(parts))  # one read for all of them

    def to_numpy(self, x: Array) -> Any:
        is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.array(_of_all_processes(jax.random.key_data(x) if is_key else x))

    def read(self, tree: Any) -> Any:
        return jax.device_get(tree if jax.process_count() == 1 else tree_util.tree_map(_of_all_processes, tree))
