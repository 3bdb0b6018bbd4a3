"""Rows of Jacobians and Hessians by reverse mode: slow, and independent of how products are made.

Many rows are computed in one compiled loop and come back on the host. A bound
method of a record (a term's ``outputs``) is compiled once for all records of its
structure, since the record is an argument of the program; any other function
is compiled anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import MethodType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, tree_util

from linop_gn.protocols import Array

from .compiled import compiled, tracing

__all__ = ["rows_of"]

Flat = Callable[[Callable[[list[Array]], Array], list[Array]], Array]
FEW = 4


def rows_of(
    flat: Flat, function: Callable[[list[Array]], Array], leaves: list[Array], rows: Sequence[int]
) -> list[list[Array]]:
    """Rows of the Jacobian of ``p -> flat(function, p)``, a flat array, at ``leaves``."""
    if len(rows) <= FEW or tracing():
        outputs, pullback = jax.vjp(lambda p: flat(function, p), leaves)
        return [_row(pullback, outputs, row) for row in rows]
    owner, method = _parted(function)
    outputs, pullback = _linear_part(flat, method)(owner, leaves)
    stacked = jax.device_get(_all_rows(pullback, outputs, jnp.asarray(rows)))
    return [[leaf[i] for leaf in stacked] for i in range(len(rows))]


def _parted(function: Callable[[list[Array]], Array]) -> tuple[Any, Callable[[Any, list[Array]], Array]]:
    """A bound method as its owner, if that is data, and the method; any other function as nothing and itself."""
    if isinstance(function, MethodType) and not tree_util.all_leaves([function.__self__]):
        return function.__self__, function.__func__
    return None, lambda _, leaves: function(leaves)


@lru_cache(maxsize=64)
def _linear_part(flat: Flat, method: Callable[[Any, list[Array]], Array]) -> Callable[..., tuple[Array, Any]]:
    def linear_part(owner: Any, leaves: list[Array]) -> Any:
        return jax.vjp(lambda p: flat(lambda q: method(owner, q), p), leaves)

    return compiled(linear_part, label=lambda *_: "rows")


def _row(pullback: Any, outputs: Array, row: Any) -> list[Array]:
    (leaves,) = pullback(jnp.zeros_like(outputs).at[row].set(1))
    return leaves  # type: ignore[no-any-return]


_all_rows = compiled(
    lambda pullback, outputs, rows: lax.map(lambda row: _row(pullback, outputs, row), rows),
    label=lambda *_: "rows",
    loops=True,
)
