"""Loops over a few rows at a time, which rewrite arrays where they stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, tree_util

from linop_gn.backend import Array

__all__ = ["by_rows"]

_CACHED = 1 << 16
"""Entries of a part on the CPU: what is made of it on the way stays in a core's cache."""


def by_rows(
    function: Callable[[list[Array], Any], tuple[Sequence[Array], Any]],
    size: int,
    xs: Sequence[Array],
    data: Any = (),
    sums: Any = (),
) -> tuple[list[Array], Any]:
    """``function(rows of xs, of data) -> (rows, summands)``, of ``size`` rows at a time: in place of xs, and added up.

    ``sums`` are what the summands are added to. Without, xs are rewritten where they stand: a scan would stack its
    results elsewhere. With sums XLA might read rows after they were written, and would copy all of them in each step.
    """
    rows, apart = tree_util.tree_leaves((xs, data)), bool(tree_util.tree_leaves(sums))
    n = len(rows[0])
    if jax.default_backend() == "cpu":
        size = min(size, max(1, _CACHED // max(1, *(math.prod(x.shape[1:]) for x in rows))))

    def one(start: Any, size: int, made: list[Array], sums: Any) -> tuple[list[Array], Any]:
        cut = tree_util.tree_map(lambda a: lax.dynamic_slice_in_dim(a, start, size), (xs if apart else made, data))
        rows, more = function(*cut)
        made = [
            lax.dynamic_update_slice_in_dim(x, y.astype(x.dtype), start, 0) for x, y in zip(made, rows, strict=True)
        ]
        return made, tree_util.tree_map(lambda x, y: x + y.astype(x.dtype), sums, more)

    many, rest = divmod(n, size)  # of no parts the body would still be traced
    carry = [jnp.zeros_like(x) for x in xs] if apart else list(xs), sums
    carry = lax.fori_loop(0, many, lambda i, carry: one(i * size, size, *carry), carry) if many else carry
    return one(many * size, rest, *carry) if rest else carry
