"""Tables and shelves as arrays with a leading axis, written to in place by compiled loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from linop_gn.backend import Scalar, Vector

from .mapped import steady

__all__ = ["JaxStores"]


class JaxStores:
    """See :class:`linop_gn.protocols.Stores`; a shelf takes all its memory at once.

    A vector is put by a loop of one round or none: a conditional would have to copy the shelf.
    """

    def stack(self, scalars: Sequence[Scalar]) -> Scalar:
        return jnp.stack(list(scalars))

    def table(self, capacity: int, like: Scalar) -> Any:
        return jnp.zeros((capacity, *jnp.shape(like)), jnp.result_type(like))

    def write(self, table: Any, index: Scalar, value: Scalar) -> Any:
        if table.ndim == 1:
            return lax.dynamic_update_index_in_dim(table, jnp.asarray(value, table.dtype), index, 0)
        return table.at[index, jnp.arange(table.shape[1])].set(value)

    def lookup(self, table: Any, index: Scalar) -> Scalar:
        table = jnp.asarray(table)
        return table[index, jnp.arange(table.shape[1])] if table.ndim == 2 else table[index]

    def shelf(self, capacity: int, like: Vector) -> Any:
        return jnp.broadcast_to(jnp.zeros_like(like), (capacity, *like.shape))  # over an explicit mesh as ``like`` is

    def put(self, shelf: Any, index: Scalar, value: Vector, wanted: Scalar) -> Any:
        if jnp.ndim(index) == 0:

            def write(carry: tuple[Any, Any]) -> tuple[Any, Any]:
                return jnp.zeros_like(carry[0]), lax.dynamic_update_index_in_dim(carry[1], value, index, 0)

            return lax.while_loop(lambda carry: carry[0], *steady(write, (jnp.asarray(wanted), shelf)))[1]
        columns = jnp.arange(shelf.shape[2])
        kept = jnp.where(jnp.asarray(wanted)[..., None], value.T, shelf[index, :, columns])
        return shelf.at[index, :, columns].set(kept)

    def get(self, shelf: Any, index: int) -> Vector:
        return shelf[index]
