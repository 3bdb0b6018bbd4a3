r"""The sums over a batch that Kronecker factors are made of.

With a_r the input of a layer in row r (an example n, a position t) and g_{r,c} the derivative of sum_r z_r . u_c in its
result, for the columns u_c of the root of the loss's Hessian, the block of the Gauss-Newton operator is

    G = sum_n sum_c vec(P_nc) vec(P_nc)^T,      P_nc = sum_t g_{nt,c} a_nt^T.

``expand`` takes rows for examples, ``reduce`` adds up the positions of one (Eschenhagen et al., *Kronecker-factored
approximate curvature for modern neural network architectures*, 2023):

    expand    L = sum_{r,c} g_rc g_rc^T,                R = sum_r w_r a_r a_r^T / sum_r w_r
    reduce    L = sum_{n,c} g_nc g_nc^T,  g_nc = sum_t g_ntc,      R of the means a_n over t

so that L (x) R is G for one example with one position, and for constant L or R. w are the weights of the examples,
which L has in u.
"""

from __future__ import annotations

import itertools
from typing import Any

from ...protocols import Array, Vector
from ...spaces import wide
from ..layers.batch import Batch
from ..layers.layout import Layout, Plan, Settings
from ..losses.weighting import counter
from ..term import Term
from .batch import evaluated, over_columns, row_weights

__all__ = ["factor_sums", "plus"]


def factor_sums(settings: Settings, term: Term, x: Vector) -> tuple[tuple[Any, ...], Layout]:
    """(None, the sums of a batch for the factors of all blocks, its weight), and the blocks.

    Kronecker blocks have three for each orientation of their uses: of the outputs, of the inputs, and the count.
    """
    batch, weight = evaluated(settings, term, x)
    sides = [_input_sides(batch, block) for block in batch.plans]
    entrywise = [i for block in batch.plans if block.kind == "elementwise" for i in block.uses]
    scales = {i: batch.rows(i, batch.given(i)) for i in entrywise if batch.made.uses[i].kind == "scale"}
    sums = over_columns(batch, lambda pulled, leaves: _output_sides(batch, scales, pulled, leaves))
    made: list[Array] = []
    left = iter(sums)
    for given in sides:
        made += [next(left)] if not given else [x for side in given for x in (next(left), *side)]
    return (None, tuple(made), weight), Layout.of(batch.plans, batch.made.mixes)


# the side of the inputs


def _input_sides(batch: Batch, block: Plan) -> list[tuple[Array, Array]]:
    """(sum w a a^T, sum w) of the uses, and of those that are transposed; nothing for blocks without inputs."""
    if block.kind != "kronecker":
        return []
    both = (block.uses, block.right), (block.transposed, block.left)
    return [_input_side(batch, block, uses, matrix) for uses, matrix in both if uses]


def _input_side(batch: Batch, block: Plan, uses: tuple[int, ...], matrix: bool) -> tuple[Array, Array]:
    xp, parts, one = batch.ops.namespace(), [], block.place.bias is not None
    if batch.reduces(block, uses):
        given = [batch.rows(i, batch.given(i)) for i in uses]
        total = sum(a.shape[2] for a in given)
        a = sum(xp.sum(a, axis=2, keepdims=True) for a in given) / total
        parts = [_moment(xp, a, row_weights(batch, (batch.examples,)), matrix, one)]
    else:
        for i in uses:
            use = batch.made.uses[i]
            w = row_weights(batch, batch.shape(i))
            if use.kind == "lookup":
                parts.append(_counts(batch, block, i, w))
            else:
                parts.append(_moment(xp, batch.rows(i, batch.given(i)), w, matrix, one))
    made, count = parts[0]
    for moment, more in parts[1:]:
        made, count = plus(xp, made, moment), count + more
    return made, count


def _moment(xp: Any, a: Array, w: Array | None, matrix: bool, one: bool = False) -> tuple[Array, Array]:
    """sum_r w_r a_r a_r^T (groups, n, n), or its diagonal (groups, n); and sum_r w_r (1,).

    With ``one`` of (a, 1), for a bias, at no copy of all rows.
    """
    a = xp.reshape(a, (a.shape[0], -1, a.shape[-1]))
    unit = xp.ones_like(a[0, :1, 0])
    count = unit * a.shape[1] if w is None else xp.sum(w, keepdims=True) * unit
    wa = a if w is None else xp.astype(w, a.dtype)[:, None] * a
    last = xp.concat([xp.sum(wa, axis=1), xp.zeros_like(a[:, 0, :1]) + count], axis=1) if one else None
    if matrix:
        return _gram(xp, wa, a, last), count
    moment = xp.sum(wa * a, axis=1)
    return (moment if last is None else xp.concat([moment, last[:, -1:]], axis=1)), count


def _gram(xp: Any, x: Array, y: Array, last: Array | None) -> Array:
    """x^T y (groups, n, n) that is known to be symmetric: of large ones the upper part, in strips.

    With ``last`` (groups, n + 1) as one more row and column.
    """
    n = x.shape[-1]
    strips = min(8, n // 64)
    if strips < 4 or x.shape[1] < 512:  # of few rows copies cost more than products
        strips = 1
    cuts = [n * i // strips for i in range(strips + 1)]
    ranges = list(itertools.pairwise(cuts))  # 5/8 of the work for four of them, 9/16 for eight
    upper = [xp.matmul(xp.matrix_transpose(x[:, :, i:j]), y[:, :, i:]) for i, j in ranges]
    rows = []
    for k, (i, j) in enumerate(ranges):
        left = [xp.matrix_transpose(upper[m][:, :, i - first : j - first]) for m, (first, _) in enumerate(ranges[:k])]
        row = [*left, upper[k], *([] if last is None else [last[:, i:j, None]])]
        rows.append(xp.concat(row, axis=2) if len(row) > 1 else row[0])
    rows += [] if last is None else [last[:, None, :]]
    return xp.concat(rows, axis=1) if len(rows) > 1 else rows[0]


def _counts(batch: Batch, block: Plan, i: int, w: Array | None) -> tuple[Array, Array]:
    """How often each row of an embedding was looked up, with weights (1, V); and the total (1,)."""
    ops, xp, size = batch.ops, batch.ops.namespace(), block.place.sizes[1 if i in block.transposed else 2]
    index = xp.reshape(batch.arranged(i, batch.given(i), 0), (-1,))
    order = xp.argsort(index)
    dtype = wide(ops.describe(batch.made.outputs)[1])
    values = xp.astype(counter(xp, size + 1, index), index.dtype) - 1
    ends = xp.searchsorted(xp.take(index, order, axis=0), values, side="right")
    if w is not None and tuple(batch.made.uses[i].rows) != (batch.examples,):  # which may be positions as well
        w = xp.take(ops.cast(w, dtype), order, axis=0)
        ends = xp.take(xp.concat([xp.zeros_like(w[:1]), xp.cumulative_sum(w)]), ends, axis=0)
    counts = ops.cast(ends[1:] - ends[:-1], dtype)[None, :]
    counts = xp.where(counts > 0, counts, 0.0 * counts)  # sums of weights are rounded
    return counts, xp.sum(counts, axis=-1)


# the side of the outputs


def _output_sides(
    batch: Batch, scales: dict[int, Array], pulled: list[Array], leaves: list[Array]
) -> tuple[Array, ...]:
    """The sums of one column for all blocks; ``scales`` are the inputs of those."""
    xp, made, diagonals = batch.ops.namespace(), [], iter(leaves)
    for block in batch.plans:
        if block.kind == "diagonal":
            g = xp.reshape(next(diagonals), (1, 1, 1, -1))
            made.append(_moment(xp, batch.ops.cast(g, wide(batch.ops.describe(g)[1])), None, False)[0])
        elif block.kind == "elementwise":
            made.append(_elementwise(batch, block, scales, pulled))
        else:
            both = (block.uses, block.left), (block.transposed, block.right)
            made += [_output_side(batch, block, uses, matrix, pulled) for uses, matrix in both if uses]
    return tuple(made)


def _output_side(batch: Batch, block: Plan, uses: tuple[int, ...], matrix: bool, pulled: list[Array]) -> Array:
    """sum_r g_r g_r^T, or that of the sums over positions."""
    xp = batch.ops.namespace()
    given = [batch.rows(i, pulled[i]) for i in uses]
    if batch.reduces(block, uses):
        given = [sum(xp.sum(g, axis=2, keepdims=True) for g in given)]
    parts = [_moment(xp, g, None, matrix)[0] for g in given]
    return sum(parts[1:], parts[0])


def _elementwise(batch: Batch, block: Plan, scales: dict[int, Array], pulled: list[Array]) -> Array:
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
