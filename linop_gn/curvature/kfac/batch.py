"""A batch evaluated for Kronecker factors: rows by example, and cotangents for the columns of the loss's Hessian.

Positions of a sequence have columns of their own; where that is too many, those of all positions are added up with
random signs, whose mixed products cancel in the mean. The same signs make the square of J^T u an estimate of the
diagonal for what is in no Kronecker product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ... import draws
from ...protocols import Array, Vector
from ...spaces import Space
from ..layers.batch import Batch, hessian_of, observed
from ..layers.layout import Settings
from ..losses.hessians import Weighted
from ..term import Term

__all__ = ["evaluated", "over_columns", "row_weights"]

_PROBES = 16
"""Products with J^T, at least, that what is estimated is estimated with."""


def evaluated(settings: Settings, term: Term, x: Vector) -> tuple[Batch, Array]:
    """The batch of a term at x, and its weight."""
    batch = observed(settings, term, x)
    z = batch.made.outputs
    hessian = hessian_of(term, z)
    weights = hessian.weights if isinstance(hessian, Weighted) else None
    if not batch.examples:
        raise ValueError(
            "Kronecker factors are of inputs and outputs, and a batch has no example at all: leave it out. Where the "
            "data are shared out over processes, each needs one, if with a weight of zero."
        )
    return batch._replace(columns=hessian.columns(batch.ops.namespace(), z), weights=weights), term.weight(z)


def over_columns(batch: Batch, summand: Callable[[list[Array], list[Array]], tuple[Array, ...]]) -> Any:
    """The sum of ``summand(cotangents of uses, of leaves)`` over the columns with random signs for the examples.

    Several times, with other signs, where something is estimated: a diagonal, or what is shared by all examples (the
    positions' embedding, a weight that is made of others), whose cotangent is a sum over them.
    """
    ops, columns, z = batch.ops, batch.columns, batch.made.outputs
    assert columns is not None
    xp, count = ops.namespace(), columns.number
    leaves = tuple(block.place.weight.leaf for block in batch.plans if block.kind == "diagonal")
    shared = not all(map(batch.tells_examples, range(len(batch.made.uses))))
    times = -(-_PROBES // count) if leaves or shared else 1
    apart = tuple(z.shape[: columns.apart])
    space = Space.flat(math.prod(apart), z)

    def cotangent(index: Any) -> Array:  # by itself, so that the column is gone when it is pulled back
        u = columns.column(index % count)
        signs = xp.reshape(draws.signs(space, 0, index), apart + (1,) * (len(z.shape) - len(apart)))
        made: Array = ops.cast(signs * times**-0.5, ops.describe(u)[1]) * u
        return made

    def one(index: Any) -> Any:
        return summand(*batch.made.pull(cotangent(index), leaves))

    return ops.sum_over(one, range(count * times))


def row_weights(batch: Batch, rows: tuple[int, ...]) -> Array | None:
    """The weights of the examples that rows belong to, flat; None where they weigh the same, or it cannot be told."""
    w, xp, z = batch.weights, batch.ops.namespace(), batch.made.outputs
    if w is None or not w.shape:
        return None
    shape, k = tuple(z.shape), len(rows)
    counted = max([1, *(i + 1 for i, n in enumerate(w.shape) if n > 1)])
    if counted <= k and rows == shape[:k]:
        made = xp.broadcast_to(xp.reshape(w, tuple(w.shape[:k])), rows)
    elif math.prod(rows) == math.prod(shape[:counted]):
        made = xp.broadcast_to(xp.reshape(w, tuple(w.shape[:counted])), shape[:counted])
    elif rows[:1] == shape[:1]:
        means = xp.mean(xp.reshape(w, (w.shape[0], -1)), axis=1)
        made = xp.broadcast_to(xp.reshape(means, (-1,) + (1,) * (k - 1)), rows)
    else:
        return None
    return xp.reshape(made, (-1,))
