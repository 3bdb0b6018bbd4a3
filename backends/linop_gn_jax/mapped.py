"""Loops and branches inside ``jax.shard_map``, where types tell along which axes of the mesh numbers differ.

JAX wants the carry of a loop to differ along the same axes before and after, and the
results of two branches along the same: what differs along fewer is cast (``pcast``, no communication).
Outside of such maps nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from jax import lax, tree_util

from linop_gn.distributed.watching import summing

from .combining import combined

__all__ = ["alike", "apart", "cast", "steady", "varying"]

T = TypeVar("T")
Axes = frozenset[str]


def varying(aval: Any) -> Axes:
    """The axes along which numbers of this type differ."""
    kind = getattr(aval, "manual_axis_type", aval)  # the aval itself, until JAX 0.9
    return getattr(kind, "varying", None) or getattr(kind, "vma", None) or frozenset()


def cast(x: Any, axes: Axes) -> Any:
    """``x`` as numbers that differ along these axes, too."""
    missing = axes - varying(jax.typeof(x))
    return lax.pcast(x, tuple(missing), to="varying") if missing else x


def apart(leaves: list[Any], results: Callable[[list[Any]], Any]) -> tuple[list[Any], Axes]:
    """Parameters that differ along the axes along which the results at them do, as an objective's own; and these axes.

    JAX would sum what comes back to parameters that are the same everywhere, over devices whose objectives are apart.

    Raises
    ------
    ValueError
        Where the results are made of the parameters of other devices too, so that no sum of them is a derivative.
    """
    if not _mapped():
        return leaves, frozenset()
    program, summed = jax.make_jaxpr(results)(leaves), frozenset(getattr(summing(), "axes", ()))
    manual = frozenset(jax.sharding.get_abstract_mesh().manual_axes)
    typed = any(map(varying, jax.make_jaxpr(lambda: lax.axis_index(tuple(manual)))().out_avals))
    axes = summed.union(*map(varying, program.out_avals)) if typed else frozenset()
    own = [varying(jax.typeof(leaf)) for leaf in leaves]
    parted = frozenset[str]().union(*own)
    for axis, name, alone in combined(program, [x | (axes - summed) if typed else manual for x in own]):
        if axis in parted or (alone and not typed):
            raise ValueError(_PARTS.format(axis=axis, name=name))
        if axis not in summed:
            raise ValueError(_OWN.format(axis=axis, name=name, axes=sorted({*summed, axis})))
    return [cast(leaf, axes) for leaf in leaves], axes


_PARTS = (
    "the parameters differ along {axis} inside of jax.shard_map, and the model takes those of other devices ({name}): "
    "they are parts of one vector, of which a device would take its own for all. Give parameters that are the same on "
    "all devices of the map, gathered before and not in the model: jax.lax.all_gather(part, {axis!r}, tiled=True, "
    "to='invarying'). Or let them be split without shard_map, as sharded arrays, which the compiler gathers."
)
_OWN = (
    "the model combines numbers made of parameters over {axis} inside of jax.shard_map ({name}), where the objective "
    "is each device's own: what comes back is of those of other devices too, and no derivative of its value. If the "
    "parameters are the same along {axis}, sum over it: lg.distributed.DataParallel(objective, {axes}). Those that are "
    "split go without shard_map, as sharded arrays."
)


def alike(functions: Sequence[Callable[..., Any]], operands: tuple[Any, ...]) -> Sequence[Callable[..., Any]]:
    """The functions, whose results at the operands differ along the same axes."""
    if not _mapped():
        return functions
    made = zip(*(_results(function, *operands) for function in functions), strict=True)
    axes = [frozenset[str]().union(*both) for both in made]
    return [lambda *given, f=function: _cast_all(f(*given), axes) for function in functions]


def steady(body: Callable[..., T], state: T, *before: Any) -> tuple[Callable[..., T], T]:
    """``body(*before, state)`` and ``state``, such that the axes along which it differs stay the same."""
    if not _mapped():
        return body, state
    axes = [varying(jax.typeof(x)) for x in tree_util.tree_leaves(state)]
    while (after := [a | b for a, b in zip(axes, _results(body, *before, state), strict=True)]) != axes:
        axes, state = after, _cast_all(state, after)
    return lambda *given: _cast_all(body(*given), axes), state


def _mapped() -> bool:
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def _results(function: Callable[..., Any], *operands: Any) -> list[Axes]:
    return [varying(aval) for aval in jax.make_jaxpr(function)(*operands).out_avals]


def _cast_all(tree: T, axes: Sequence[Axes]) -> T:
    leaves, structure = tree_util.tree_flatten(tree)
    return tree_util.tree_unflatten(structure, list(map(cast, leaves, axes)))
