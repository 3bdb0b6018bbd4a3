"""A batch evaluated with the operations that its parameters entered: rows of inputs and cotangents by example."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ...protocols import Array, Backend, Uses, Vector
from ...records import memo
from ...spaces import wide
from ..losses.hessians import Columns
from ..term import Term
from .layout import Plan, Settings, plan

__all__ = ["Batch", "hessian_of", "observed"]


class Batch(NamedTuple):
    """A batch, evaluated."""

    ops: Backend
    made: Uses
    plans: tuple[Plan, ...]
    settings: Settings
    examples: int
    columns: Columns | None = None
    """Of the root of the loss's Hessian, where it has been asked for."""
    piece: Any = None
    """The same evaluation linearised, where that is what the operations were read from."""
    weights: Array | None = None
    """Of examples: like the outputs, with axes of length one."""

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


def observed(settings: Settings, term: Term, x: Vector) -> Batch:
    """The batch of a term at x without its loss's Hessian."""
    ops = term.ops
    assert ops.calculus is not None
    piece = memo(term).linear
    found = None if piece is None else piece.linearization.uses()
    made = ops.calculus.uses(term.outputs, term.space.split(x)) if found is None else found
    term.check_here(made.outputs)
    plans = plan(made.uses, made.otherwise, term.space, settings)
    return Batch(ops, made, plans, settings, _examples(made), piece=None if found is None else piece)


def hessian_of(term: Term, z: Array) -> Any:
    """H_L of a term's loss at its outputs."""
    return term.hessian(z).whole(term.ops.namespace())


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
