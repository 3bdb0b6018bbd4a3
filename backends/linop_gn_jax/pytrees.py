"""Every record is a pytree: its data fields are children, its static fields part of the structure.

A frozen dataclass registered this way goes through ``jit``, ``vmap``, ``scan``
and ``grad`` like an array, and one compiled program serves all records of the
same structure. Unflattening runs no ``__init__`` and no ``__post_init__``:
inside a transformation the children are tracers, placeholders or axis numbers,
which no validation could accept. Whatever a record keeps besides its fields
(cached properties) stays behind at the boundary.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from jax.tree_util import GetAttrKey, register_pytree_with_keys

from linop_gn.records import data_fields, rebuild, static_fields

__all__ = ["register_record"]


def register_record(cls: type) -> None:
    """Make one record type known to JAX."""
    data, static = data_fields(cls), static_fields(cls)
    names = (*data, *static)
    keys, children_of, values_of = tuple(map(GetAttrKey, data)), _getter(data), _getter(static)

    def flatten(instance: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        values = values_of(instance)
        try:
            hash(values)
        except TypeError:
            _refuse_unhashable(cls, static, values)
        return children_of(instance), values

    def flatten_with_keys(instance: Any) -> tuple[tuple[tuple[GetAttrKey, Any], ...], tuple[Any, ...]]:
        children, values = flatten(instance)
        return tuple(zip(keys, children, strict=True)), values

    def unflatten(values: tuple[Any, ...], children: Any) -> Any:
        return rebuild(cls, dict(zip(names, (*children, *values), strict=True)))

    register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)


def _getter(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """The function that returns these attributes; it is called for each record at each call of a program."""
    if len(names) > 1:
        return attrgetter(*names)
    if not names:
        return lambda instance: ()
    one = attrgetter(*names)
    return lambda instance: (one(instance),)


def _refuse_unhashable(cls: type, names: tuple[str, ...], values: tuple[Any, ...]) -> None:
    for name, value in zip(names, values, strict=True):
        try:
            hash(value)
        except TypeError:
            raise TypeError(
                f"the static field {name!r} of {cls.__qualname__} holds a {type(value).__qualname__}, which cannot be "
                "hashed. Static fields are part of the compiled program: use functions, names, numbers or tuples of "
                "them there. Arrays and whatever changes from step to step belong in a data field (one declared "
                "without static())."
            ) from None
