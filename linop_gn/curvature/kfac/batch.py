"""A batch evaluated for Kronecker factors: rows by example, and cotangents for the columns of the loss's Hessian.

Positions of a sequence have columns of their own; where that is too many, those of all positions are added up with
random signs, whose mixed products cancel in the mean. The same signs make the square of J^T u an estimate of the
diagonal for what is in no Kronecker product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ... import draws
from ...protocols import Array, Backend, Uses, Vector
from ...spaces import Space, wide
from ..losses.hessians import Columns, Weighted
from ..term import Term
from .layout import Plan, Settings, plan

__all__ = ["Batch", "evaluated", "over_columns", "row_weights"]

_PROBES = 16
"""Products with J^T, at least, that what is estimated is estimated with."""


class Batch(NamedTuple):
    """A batch, evaluated."""

    ops: Backend
    made: Uses
    plans: tuple[Plan, ...]
    columns: Columns
    weights: Array | None
    """Of examples: like the outputs, with axes of length one."""
    settings: Settings
    examples: int

    def axis(self, i: int) -> int | None:
        """Which of the rows' axes begins with that of the examples: the only one of that length, or the first."""
        rows, n = self.made.uses[i].rows, self.examples
        if rows.count(n) == 1:
            return rows.index(n)
        return 0 if rows and rows[0] % n == 0 else None  # the first, or positions beside it in one

    def by_example(self, uses: tuple[int, ...]) -> bool:
        """Whether the rows of these uses have an axis of the examples."""
        return all(self.axis(i) is not None for i in uses)

    def tells_examples(self, i: int) -> bool:
        """Whether each row of use i belongs to one example, as far as sizes tell."""
        shape = tuple(self.made.outputs.shape)
        flat = {math.prod(shape[:k]) for k in range(1, len(shape) + 1)}
        return self.axis(i) is not None or math.prod(self.made.uses[i].rows) in flat

    def shape(self, i: int) -> tuple[int, ...]:
        """The rows of use i with the axis of the examples first."""
        rows, axis = self.made.uses[i].rows, self.axis(i) or 0
        return rows[axis : axis + 1] + rows[:axis] + rows[axis + 1 :]

    def arranged(self, i: int, x: Array, lead: int) -> Array:
        """``x`` (``lead`` axes, *rows, ...) with the axis of the examples as the first of the rows."""
        axis = self.axis(i) or 0
        if not axis:
            return x
        order = list(range(len(x.shape)))
        order.insert(lead, order.pop(lead + axis))
        return self.ops.namespace().permute_dims(x, tuple(order))

    def rows(self, i: int, x: Array, block: Plan | None = None) -> Array:
        """Inputs (with a one for the bias of ``block``) or cotangents of use i as (groups, examples, positions, n).

        In single precision at least. Where the first axis is not that of the examples, rows are taken for examples.
        """
        ops, xp, rows = self.ops, self.ops.namespace(), self.made.uses[i].rows
        x = self.arranged(i, x, 1)
        x = ops.cast(x, wide(ops.describe(x)[1]))
        count = self.examples if self.by_example((i,)) else math.prod(rows)
        x = xp.reshape(x, (x.shape[0], count, math.prod(rows) // count, -1))
        if block is None or block.place.bias is None:
            return x
        return xp.concat([x, xp.ones_like(x[..., :1])], axis=-1)

    def given(self, i: int) -> Array:
        """The inputs of use i, which has some."""
        made = self.made.inputs[i]
        assert made is not None
        return made

    def reduces(self, block: Plan, uses: tuple[int, ...]) -> bool:
        """Whether the positions of an example are added up before they are multiplied."""
        return self.settings.sharing == "reduce" and block.linear and self.by_example(uses)


def evaluated(settings: Settings, term: Term, x: Vector) -> tuple[Batch, Array]:
    """The batch of a term at x, and its weight."""
    ops, loss = term.ops, term.loss
    xp = ops.namespace()
    assert loss is not None
    assert ops.calculus is not None
    made = ops.calculus.uses(term.outputs, term.space.split(x))
    z = made.outputs
    term.check_here(z)
    hessian = loss.of_batch(term.batch.place).hessian(xp, z, term.batch.targets, term.batch.weights)
    weights = hessian.weights if isinstance(hessian, Weighted) else None
    plans = plan(made.uses, made.otherwise, term.space, settings)
    examples = _examples(made)
    if not examples:
        raise ValueError(
            "Kronecker factors are of inputs and outputs, and a batch has no example at all: leave it out. Where the "
            "data are shared out over processes, each needs one, if with a weight of zero."
        )
    return Batch(ops, made, plans, hessian.columns(xp, z), weights, settings, examples), term.weight(z)


def _examples(made: Uses) -> int:
    """How many there are: of outputs that were flattened over positions, what the rows of some use begin with.

    Columns have random signs for each entry of the outputs' first axis, so that those of one example may be added.
    """
    shape = tuple(made.outputs.shape)
    count = int(shape[0]) if shape else 1
    for rows in (use.rows for use in made.uses):
        if rows and (math.prod(rows),) == shape[:1]:
            count = math.gcd(count, rows[0])
    return count


def over_columns(batch: Batch, summand: Callable[[list[Array], list[Array]], tuple[Array, ...]]) -> Any:
    """The sum of ``summand(cotangents of uses, of leaves)`` over the columns with random signs for the examples.

    Several times, with other signs, where something is estimated: a diagonal, or what is shared by all examples (the
    positions' embedding, a weight that is made of others), whose cotangent is a sum over them.
    """
    ops, columns, z = batch.ops, batch.columns, batch.made.outputs
    xp, count = ops.namespace(), columns.number
    leaves = tuple(block.place.weight.leaf for block in batch.plans if block.kind == "diagonal")
    shared = not all(map(batch.tells_examples, range(len(batch.made.uses))))
    times = -(-_PROBES // count) if leaves or shared else 1
    apart = tuple(z.shape[: columns.apart])
    space = Space.flat(math.prod(apart), z)

    def one(index: Any) -> Any:
        u = columns.column(index % count)
        signs = xp.reshape(draws.signs(space, 0, index), apart + (1,) * (len(z.shape) - len(apart)))
        return summand(*batch.made.pull(ops.cast(signs * times**-0.5, ops.describe(u)[1]) * u, leaves))

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
