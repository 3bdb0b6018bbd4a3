r"""The sums over a batch that Kronecker factors are made of.

With a_r the input of a layer in row r (an example n, a position t) and g_{r,c} the derivative of sum_r z_r . u_c in its
result, for the columns u_c of the root of the loss's Hessian, the block of the Gauss-Newton operator is

    G = sum_n sum_c vec(P_nc) vec(P_nc)^T,      P_nc = sum_t g_{nt,c} a_nt^T.

``expand`` takes rows for examples, ``reduce`` adds up the positions of one (Eschenhagen et al., *Kronecker-factored
approximate curvature for modern neural network architectures*, 2023):

    expand    L = sum_{r,c} g_rc g_rc^T,                R = sum_r w_r a_r a_r^T / sum_r w_r
    reduce    L = sum_{n,c} g_nc g_nc^T,  g_nc = sum_t g_ntc,      R of the means a_n over t

so that L (x) R is G for one example with one position, and for constant L or R. w are the weights of the examples,
which L has in u. EKFAC's values are those of G in the eigenvectors of L and R, sum_nc (U^T P_nc W)^2 (George et al.,
*Fast approximate natural gradient descent in a Kronecker-factored eigenbasis*, 2018).

Positions of a sequence have columns of their own; where that is too many, those of all positions are added up with
random signs, whose mixed products cancel in the mean. The same signs make the square of J^T u an estimate of the
diagonal for what is in no Kronecker product.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ... import draws
from ...protocols import Array, Backend, Uses, Vector
from ...spaces import Space
from ..losses.hessians import Columns, Weighted
from ..losses.weighting import counter
from ..term import Term
from .layout import Layout, Plan, Settings, plan

__all__ = ["corrections", "factor_sums", "plus"]

_PROBES = 16
"""Products with J^T, at least, that what is estimated is estimated with."""
_ENTRIES = 1 << 22
"""Numbers in the matrices P of as many examples as are held at a time."""


class _Batch(NamedTuple):
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
        x = x if ops.describe(x)[1] == "float64" else ops.cast(x, "float32")
        count = self.examples if self.by_example((i,)) else math.prod(rows)
        x = xp.reshape(x, (x.shape[0], count, math.prod(rows) // count, -1))
        if block is None or block.place.bias is None:
            return x
        return xp.concat([x, xp.ones_like(x[..., :1])], axis=-1)

    def reduces(self, block: Plan, uses: tuple[int, ...]) -> bool:
        """Whether the positions of an example are added up before they are multiplied."""
        return self.settings.sharing == "reduce" and block.linear and self.by_example(uses)


def factor_sums(settings: Settings, term: Term, x: Vector) -> tuple[tuple[Any, ...], Layout]:
    """(None, the sums of a batch for the factors of all blocks, its weight), and the blocks.

    Kronecker blocks have three for each orientation of their uses: of the outputs, of the inputs, and the count.
    """
    batch, weight = _evaluated(settings, term, x)
    sides = [_input_sides(batch, block) for block in batch.plans]
    entrywise = [i for block in batch.plans if block.kind == "elementwise" for i in block.uses]
    scales = {i: batch.rows(i, _input(batch, i)) for i in entrywise if batch.made.uses[i].kind == "scale"}
    sums = _over_columns(batch, lambda pulled, leaves: _output_sides(batch, scales, pulled, leaves))
    made: list[Array] = []
    left = iter(sums)
    for given in sides:
        made += [next(left)] if not given else [x for side in given for x in (next(left), *side)]
    return (None, tuple(made), weight), Layout.of(batch.plans)


def corrections(settings: Settings, term: Term, x: Vector, *vectors: Array) -> tuple[tuple[Any, ...], Layout]:
    """(None, the sums of a batch for the values of linear blocks in other eigenvectors, its weight), and the blocks.

    ``vectors`` are those of the sides that are matrices, one after the other.
    """
    batch, weight = _evaluated(settings, term, x)
    left = iter(vectors)
    bases = [
        (block, next(left) if block.left else None, next(left) if block.right else None)
        for block in batch.plans
        if block.linear
    ]
    inputs = [_inputs_in_basis(batch, *basis) for basis in bases]

    def squares(pulled: list[Array], leaves: list[Array]) -> tuple[Array, ...]:
        return tuple(_values(batch, *basis, given, pulled) for basis, given in zip(bases, inputs, strict=True))

    return (None, _over_columns(batch, squares), weight), Layout.of(batch.plans)


def _evaluated(settings: Settings, term: Term, x: Vector) -> tuple[_Batch, Array]:
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
    return _Batch(ops, made, plans, hessian.columns(xp, z), weights, settings, _examples(made)), term.weight(z)


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


def _over_columns(batch: _Batch, summand: Callable[[list[Array], list[Array]], tuple[Array, ...]]) -> Any:
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


# the side of the inputs


def _input_sides(batch: _Batch, block: Plan) -> list[tuple[Array, Array]]:
    """(sum w a a^T, sum w) of the uses, and of those that are turned; nothing for blocks without inputs."""
    if block.kind != "kronecker":
        return []
    both = (block.uses, block.right), (block.transposed, block.left)
    return [_input_side(batch, block, uses, matrix) for uses, matrix in both if uses]


def _input_side(batch: _Batch, block: Plan, uses: tuple[int, ...], matrix: bool) -> tuple[Array, Array]:
    xp, parts = batch.ops.namespace(), []
    if batch.reduces(block, uses):
        given = [batch.rows(i, _input(batch, i)) for i in uses]
        total = sum(a.shape[2] for a in given)
        a = sum(xp.sum(a, axis=2, keepdims=True) for a in given) / total
        parts = [_with_one(xp, a, _row_weights(batch, (batch.examples,)), matrix, block)]
    else:
        for i in uses:
            use = batch.made.uses[i]
            w = _row_weights(batch, batch.shape(i))
            if use.kind == "lookup":
                parts.append(_counts(batch, block, i, w))
            else:
                parts.append(_with_one(xp, batch.rows(i, _input(batch, i)), w, matrix, block))
    made, count = parts[0]
    for moment, more in parts[1:]:
        made, count = plus(xp, made, moment), count + more
    return made, count


def _input(batch: _Batch, i: int) -> Array:
    given = batch.made.inputs[i]
    assert given is not None
    return given


def _moment(xp: Any, a: Array, w: Array | None, matrix: bool) -> tuple[Array, Array]:
    """sum_r w_r a_r a_r^T (groups, n, n), or its diagonal (groups, n); and sum_r w_r (1,)."""
    a = xp.reshape(a, (a.shape[0], -1, a.shape[-1]))
    one = xp.ones_like(a[0, :1, 0])
    count = one * a.shape[1] if w is None else xp.sum(w, keepdims=True) * one
    wa = a if w is None else xp.astype(w, a.dtype)[:, None] * a
    return (_gram(xp, wa, a) if matrix else xp.sum(wa * a, axis=1)), count


def _with_one(xp: Any, a: Array, w: Array | None, matrix: bool, block: Plan) -> tuple[Array, Array]:
    """:func:`_moment` of (a, 1) where the block has a bias, without a copy of all rows."""
    moment, count = _moment(xp, a, w, matrix)
    if block.place.bias is None:
        return moment, count
    rows = xp.reshape(a, (a.shape[0], -1, a.shape[-1]))
    one = xp.zeros_like(rows[:, :1, :1]) + count
    if not matrix:
        return xp.concat([moment, one[:, :, 0]], axis=1), count
    s = xp.sum(rows if w is None else xp.astype(w, a.dtype)[:, None] * rows, axis=1)[:, :, None]
    last = xp.concat([xp.matrix_transpose(s), one], axis=2)
    return xp.concat([xp.concat([moment, s], axis=2), last], axis=1), count


def _gram(xp: Any, x: Array, y: Array) -> Array:
    """x^T y (groups, n, n) that is known to be symmetric: of large ones the upper part, in strips."""
    n = x.shape[-1]
    strips = min(8, n // 64)
    if strips < 4:
        return xp.matmul(xp.matrix_transpose(x), y)
    cuts = [n * i // strips for i in range(strips + 1)]
    ranges = list(itertools.pairwise(cuts))  # 5/8 of the work for four of them, 9/16 for eight
    upper = [xp.matmul(xp.matrix_transpose(x[:, :, i:j]), y[:, :, i:]) for i, j in ranges]
    rows = []
    for k, (i, j) in enumerate(ranges):
        left = [xp.matrix_transpose(upper[m][:, :, i - first : j - first]) for m, (first, _) in enumerate(ranges[:k])]
        rows.append(xp.concat([*left, upper[k]], axis=2) if left else upper[k])
    return xp.concat(rows, axis=1)


def _counts(batch: _Batch, block: Plan, i: int, w: Array | None) -> tuple[Array, Array]:
    """How often each row of an embedding was looked up, with weights (1, V); and the total (1,)."""
    ops, xp, size = batch.ops, batch.ops.namespace(), block.place.sizes[1 if i in block.transposed else 2]
    index = xp.reshape(batch.arranged(i, _input(batch, i), 0), (-1,))
    order = xp.argsort(index)
    kinds = "float64" if ops.describe(batch.made.outputs)[1] == "float64" else "float32"
    values = xp.astype(counter(xp, size + 1, index), index.dtype) - 1
    ends = xp.searchsorted(xp.take(index, order, axis=0), values, side="right")
    if w is not None and tuple(batch.made.uses[i].rows) != (batch.examples,):  # which may be positions as well
        w = xp.take(ops.cast(w, kinds), order, axis=0)
        ends = xp.take(xp.concat([xp.zeros_like(w[:1]), xp.cumulative_sum(w)]), ends, axis=0)
    counts = ops.cast(ends[1:] - ends[:-1], kinds)[None, :]
    counts = xp.where(counts > 0, counts, 0.0 * counts)  # sums of weights are rounded
    return counts, xp.sum(counts, axis=-1)


def _row_weights(batch: _Batch, rows: tuple[int, ...]) -> Array | None:
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


# the side of the outputs


def _output_sides(
    batch: _Batch, scales: dict[int, Array], pulled: list[Array], leaves: list[Array]
) -> tuple[Array, ...]:
    """The sums of one column for all blocks; ``scales`` are the inputs of those."""
    xp, made, diagonals = batch.ops.namespace(), [], iter(leaves)
    for block in batch.plans:
        if block.kind == "diagonal":
            g = xp.reshape(next(diagonals), (1, 1, 1, -1))
            g = g if batch.ops.describe(g)[1] == "float64" else batch.ops.cast(g, "float32")
            made.append(_moment(xp, g, None, False)[0])
        elif block.kind == "elementwise":
            made.append(_elementwise(batch, block, scales, pulled))
        else:
            both = (block.uses, block.left), (block.transposed, block.right)
            made += [_output_side(batch, block, uses, matrix, pulled) for uses, matrix in both if uses]
    return tuple(made)


def _output_side(batch: _Batch, block: Plan, uses: tuple[int, ...], matrix: bool, pulled: list[Array]) -> Array:
    """sum_r g_r g_r^T, or that of the sums over positions."""
    xp = batch.ops.namespace()
    given = [batch.rows(i, pulled[i]) for i in uses]
    if batch.reduces(block, uses):
        given = [sum(xp.sum(g, axis=2, keepdims=True) for g in given)]
    parts = [_moment(xp, g, None, matrix)[0] for g in given]
    return sum(parts[1:], parts[0])


def _elementwise(batch: _Batch, block: Plan, scales: dict[int, Array], pulled: list[Array]) -> Array:
    """sum_n s_n s_n^T of the gradients s_n = sum_t g_nt x_nt of a scale, s_n = sum_t g_nt of a shift."""
    xp, sums = batch.ops.namespace(), []
    for i in block.uses:
        g = batch.rows(i, pulled[i])
        if i in scales:
            g = g * scales[i]
        sums.append(xp.sum(g, axis=2, keepdims=True))
    if batch.by_example(block.uses):
        sums = [sum(sums[1:], sums[0])]
    parts = [_moment(xp, s, None, block.left)[0] for s in sums]
    return sum(parts[1:], parts[0])


# values in given eigenvectors


def _inputs_in_basis(batch: _Batch, block: Plan, left: Array | None, right: Array | None) -> dict[int, Array]:
    """The inputs of each use in the eigenvectors of their side."""
    xp, made = batch.ops.namespace(), {}
    for uses, vectors in ((block.uses, right), (block.transposed, left)):
        for i in uses:
            made[i] = _through(xp, batch.rows(i, _input(batch, i), block), vectors)
    return made


def _through(xp: Any, rows: Array, vectors: Array | None) -> Array:
    return rows if vectors is None else xp.matmul(rows, vectors[:, None, :, :])


def _values(
    batch: _Batch, block: Plan, left: Array | None, right: Array | None, inputs: dict[int, Array], pulled: list[Array]
) -> Array:
    """sum_n (U^T P_n W)^2 of one column (groups, outputs, inputs)."""
    xp, pairs = batch.ops.namespace(), []
    for uses, vectors in ((block.uses, left), (block.transposed, right)):
        for i in uses:
            g = _through(xp, batch.rows(i, pulled[i]), vectors)
            pairs.append((g, inputs[i]) if i in block.uses else (inputs[i], g))
    together = batch.by_example((*block.uses, *block.transposed))
    groups = [pairs] if together else [[pair] for pair in pairs]
    parts = [_squares(batch.ops, group) for group in groups]
    return sum(parts[1:], parts[0])


def _squares(ops: Backend, pairs: list[tuple[Array, Array]]) -> Array:
    """sum_n (sum_t g_nt a_nt^T)^2 over pairs of (groups, examples, positions, n) that belong to the same examples."""
    xp = ops.namespace()
    (g, a), *rest = pairs
    if not rest and g.shape[2] == 1:
        return xp.matmul(xp.matrix_transpose(g[:, :, 0, :] ** 2), a[:, :, 0, :] ** 2)

    def some(both: list[tuple[Array, Array]]) -> Array:
        P = sum(xp.matmul(xp.matrix_transpose(g), a) for g, a in both)
        return xp.sum(P * P, axis=1)

    n, examples = max(1, _ENTRIES // (g.shape[0] * g.shape[-1] * a.shape[-1])), g.shape[1]
    if n >= examples:
        return some(pairs)
    whole = examples // n

    def stack(x: Array) -> Array:
        parts = xp.reshape(x[:, : whole * n, ...], (x.shape[0], whole, n, *x.shape[2:]))
        return xp.permute_dims(parts, (1, 0, 2, 3, 4))

    total = ops.sum_over(some, [(stack(g), stack(a)) for g, a in pairs])
    if whole * n < examples:
        total = total + some([(g[:, whole * n :, ...], a[:, whole * n :, ...]) for g, a in pairs])
    return total


def plus(xp: Any, x: Array, y: Array) -> Array:
    """The sum of two factors, of which one may be a diagonal."""
    if len(x.shape) == len(y.shape):
        return x + y
    diagonal, matrix = (x, y) if len(x.shape) == 2 else (y, x)
    return matrix + _embedded(xp, diagonal, matrix)


def _embedded(xp: Any, diagonal: Array, like: Array) -> Array:
    """The matrices (groups, n, n) of diagonals (groups, n), like others of that size."""
    places = counter(xp, diagonal.shape[-1], like)
    return xp.where(places[:, None] == places[None, :], diagonal[:, None, :], xp.zeros_like(like))
