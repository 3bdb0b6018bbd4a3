r"""Sums of squares of the Jacobian's rows from its layers: diagonals, and the norms of the examples' gradients.

Of a layer with one position, P_nc = g_nc a_n^T, the squares of all rows are one product of matrices, and their norms a
product of norms:

    sum_nc P_nc^2 = (sum_c G_c^2)^T A^2,        |P_nc|^2 = |g_nc|^2 |a_n|^2,

squares entry by entry. With several positions rows are formed, of some examples at a time; their norms are sums over
pairs of positions where that takes fewer flops (Goodfellow, *Efficient per-example gradient computations*, 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ...operators.places import assembled
from ...protocols import Array, Backend, Vector
from ...records import record, static
from ..losses.weighting import counter
from ..term import Term
from .batch import hessian_of
from .rows import Examples, examples

__all__ = ["Norms", "Passes", "example_norms", "gradient_squares", "root_squares", "slopes", "sum_of_squares"]

_ENTRIES = 1 << 22
"""Numbers in the matrices P of as many examples as are held at a time."""


@record
class Passes:
    """What a batch leaves behind beside its sums: the passes backward that they took; none where there are no sums."""

    number: int = static()
    stacked: bool = static(default=False)


def root_squares(term: Term, x: Vector) -> tuple[Any, Passes]:
    """diag(J^T H_L J) of a batch, flat (n,), and whether that is not it, 0 or 1 (1,).

    It is not where a parameter enters no layer, or examples enter each other's outputs.
    """
    made = examples(term, x)
    if made is None or made.rest or made.batch.made.mixes:
        return _unknown(term, x)
    ops, z, C = made.batch.ops, made.batch.made.outputs, made.columns
    xp, N = ops.namespace(), made.batch.examples
    root = hessian_of(term, z).root(xp)

    def column(here: Array) -> Array:
        return root.product(xp, made.like_outputs(xp.broadcast_to(xp.astype(here, z.dtype)[None, :], (N, C))))

    def one(index: Any) -> tuple[Array, ...]:
        return _of_blocks(ops, made, made.pull(column(counter(xp, C, z) == index)))

    sums = ops.sum_over(one, range(C))
    if made.apart:
        return _squares(term, made, sums, _fit(made), C)
    mixed = column(made.mixed())
    return _squares(term, made, sums, _unfit(made, mixed, made.pull(mixed)), C + 2)


def gradient_squares(term: Term, x: Vector) -> tuple[Any, Passes]:
    """sum_i w_i (dl_i/dp)^2 of a batch, as :func:`root_squares`."""
    made = _all_apart(term, x)
    if made is None:
        return _unknown(term, x)
    z, data, xp = made.batch.made.outputs, term.batch, made.batch.ops.namespace()
    roots = None if data.weights is None else xp.sqrt(xp.astype(data.weights, z.dtype, copy=False))
    u = slopes(made.batch.ops, term.loss, z, data.targets, roots)
    pulled = made.pull(u)
    return _squares(term, made, _of_blocks(made.batch.ops, made, pulled), _unfit(made, u, pulled), 2 - made.apart)


def _unknown(term: Term, x: Vector) -> tuple[Any, Passes]:
    zeros = term.space.zeros()
    return (None, (zeros, 1.0 + zeros[:1]), term.weight(term.outputs_at(x))), Passes(0)


def _squares(term: Term, made: Examples, sums: tuple[Array, ...], unfit: Array, passes: int) -> tuple[Any, Passes]:
    space, xp = term.space, made.batch.ops.namespace()
    zeros = space.zeros()
    parts = [
        part
        for block, one in zip(made.plans, sums, strict=True)
        for part in block.place.written(space, xp.astype(xp.reshape(one, block.place.sizes), zeros.dtype, copy=False))
    ]
    unfit = xp.astype(unfit, zeros.dtype, copy=False)
    return (None, (assembled(space, parts, zeros), unfit), term.weight(made.batch.made.outputs)), Passes(passes)


def example_norms(
    otherwise: Callable[[Term, Vector], Array], term: Term, x: Vector
) -> tuple[tuple[None, None, Any], Norms]:
    """(None, None, weight), and |w_i dl_i/dp| of the examples of a batch; or what ``otherwise`` makes of these."""
    made = _all_apart(term, x)
    if made is None:
        return (None, None, term.weight(term.outputs_at(x))), Norms(otherwise(term, x))
    ops, z, data = made.batch.ops, made.batch.made.outputs, term.batch
    xp, u = ops.namespace(), slopes(ops, term.loss, z, data.targets, data.weights)
    pulled = made.pull(u)

    def by_layers(x: Vector) -> tuple[Array]:
        total = sum(_norms(xp, pairs) for pairs in _pairs(made, pulled))
        return (xp.sqrt(xp.astype(total, z.dtype, copy=False)),)

    bad = ops.item(_unfit(made, u, pulled)[0]) > 0
    (norms,) = ops.branch(bad, lambda x: (otherwise(term, x),), by_layers, x)
    return (None, None, term.weight(z)), Norms(norms)


@record
class Norms:
    """Of the examples of a batch."""

    values: Array
    stacked: bool = static(default=False)


def slopes(ops: Backend, loss: Any, z: Array, targets: Any, weights: Any) -> Array:
    """dL/dz of outputs, with these weights of the examples."""
    xp = ops.namespace()
    if not loss.autodiff:
        return loss.gradient(xp, z, targets, weights)
    assert ops.calculus is not None
    return ops.calculus.gradient(lambda z: loss.total(xp, z[0], targets, weights), [z])[1][0]


def _all_apart(term: Term, x: Vector) -> Examples | None:
    """The batch, where all parameters enter layers and an example is an entry of the outputs' first axis."""
    made = examples(term, x)
    if made is None or made.rest or made.batch.made.mixes:
        return None
    return made if made.batch.examples == (*made.batch.made.outputs.shape, 1)[0] else None


def _unfit(made: Examples, u: Array, pulled: list[Array]) -> Array:
    """1 where examples enter each other's outputs, else 0: (1,)."""
    if made.apart:
        return _fit(made)
    xp = made.batch.ops.namespace()
    s = xp.broadcast_to(made.numbers()[:, None], (made.batch.examples, made.columns))
    good = made.agree(made.pull(made.like_outputs(s) * u), pulled)
    return xp.reshape(xp.where(good, 0.0 * made.numbers()[0], 1.0 + 0.0 * made.numbers()[0]), (1,))


def _fit(made: Examples) -> Array:
    return made.batch.ops.namespace().zeros_like(made.numbers()[:1])


def _pairs(made: Examples, pulled: list[Array]) -> Iterator[list[tuple[Array, Array]]]:
    """The sides (groups, examples, positions, size) of outputs and of inputs, of each block's terms."""
    terms = list(zip(made.shares, pulled, made.fixed(), strict=True))
    for number in range(len(made.plans)):
        yield [(f, g) if share.turned else (g, f) for share, g, f in terms if share.block == number]


def _of_blocks(ops: Backend, made: Examples, pulled: list[Array]) -> tuple[Array, ...]:
    return tuple(sum_of_squares(ops, pairs) for pairs in _pairs(made, pulled))


def sum_of_squares(ops: Backend, pairs: list[tuple[Array, Array]]) -> Array:
    """sum_n (sum_t g_nt a_nt^T)^2 over pairs of (groups, examples, positions, n) that belong to the same examples."""
    xp = ops.namespace()
    (g, a), *rest = pairs
    if not rest and g.shape[2] == 1:
        return xp.matmul(xp.matrix_transpose(g[:, :, 0, :] ** 2), a[:, :, 0, :] ** 2)

    def some(both: list[tuple[Array, Array]]) -> Array:
        P = sum(xp.matmul(xp.matrix_transpose(g), a) for g, a in both)
        return xp.sum(P * P, axis=1)

    n, many = max(1, _ENTRIES // (g.shape[0] * g.shape[-1] * a.shape[-1])), g.shape[1]
    if n >= many:
        return some(pairs)
    whole = many // n

    def stack(x: Array) -> Array:
        parts = xp.reshape(x[:, : whole * n, ...], (x.shape[0], whole, n, *x.shape[2:]))
        return xp.permute_dims(parts, (1, 0, 2, 3, 4))

    total = ops.sum_over(some, [(stack(g), stack(a)) for g, a in pairs])
    if whole * n < many:
        total = total + some([(g[:, whole * n :, ...], a[:, whole * n :, ...]) for g, a in pairs])
    return total


def _norms(xp: Any, pairs: list[tuple[Array, Array]]) -> Array:
    """|sum over pairs and positions of g a^T|^2 for each example."""
    (g, a), *rest = pairs
    _, N, T, o = g.shape
    d = a.shape[-1]
    if not rest and (T == 1 or T * (o + d) < o * d):
        both = xp.matmul(g, xp.matrix_transpose(g)) * xp.matmul(a, xp.matrix_transpose(a))
        return xp.sum(both, axis=(0, 2, 3))
    step, total = max(1, min(o, _ENTRIES // max(1, g.shape[0] * N * d))), None
    for first in range(0, o, step):
        P = sum(xp.matmul(xp.matrix_transpose(g[..., first : first + step]), a) for g, a in pairs)
        made = xp.sum(P * P, axis=(0, 2, 3))
        total = made if total is None else total + made
    return total
