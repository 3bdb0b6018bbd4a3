"""Squares of the examples' gradients, summed: the diagonal of the empirical Fisher matrix.

    d = (1 / W) sum_i w_i (dl_i/dp)^2        (elementwise; W = sum_i w_i, or 1 for reduction "sum")

The weight of an example enters once, as it does in the curvature: squaring the
gradient of w_i l_i would square it. An example is an entry of the first axis of
the model's outputs: for a language model a sequence, whose positions add up
before they are squared.

Exactly, this takes one product with J^T for each example, or one pass backward where the model has layers
(:mod:`linop_gn.curvature.layers`). With random signs
s_i = -1, 1 the square of a *sum* has the same mean, because mixed terms cancel,

    E (J^T (s o u))^2 = sum_i (J_i^T u_i)^2,

so that each of a few products with J^T is an unbiased and positive estimate of
the whole, with a relative standard deviation of at most sqrt(2 / probes). Where what a product with J^T gives is a sum
over processes already, as of parameters that lie over them, so is that: each process draws signs of its own.

The diagonal of the Gauss-Newton operator is such a sum too, of the columns of the
root S of H_L = S S^T: diag(J^T H_L J) = sum_e (J^T S e)^2 over the unit vectors e
of the outputs. Where these are fewer than parameters it is the cheaper way; by layers it takes as many passes as an
example has outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..draws import counter, signs
from ..protocols import Array, Scalar, Vector
from ..records import Partial
from ..spaces import Space
from .at_point import Products
from .layers.rows import has_layers
from .layers.squares import gradient_squares, root_squares, slopes
from .pieces import Piece, of_batch
from .point import Point

__all__ = ["count_outputs", "diagonal_by_layers", "gauss_newton_diagonal", "squared_gradients"]


def squared_gradients(point: Point, probes: int | None, seed: Scalar = 0) -> Vector:
    """sum_i w_i (dl_i/dp)^2 / W over all batches: exactly for ``probes=None``, else estimated with so many signs."""
    if probes is None:
        _require_own(point)
        return _by_layers(point, gradient_squares, Partial(_one_by_one, None, 0))
    return _one_by_one(probes, seed, point)


def _by_layers(point: Point, squares: Any, otherwise: Callable[[Point], Vector]) -> Vector:
    """The sum by the model's layers; ``otherwise`` where it has none, or examples enter each other's outputs."""
    if point.objective.reduce is not None or not has_layers(point, streamed=True):
        return otherwise(point)
    made: Any = point.gathered(squares).gradient
    ops = point.space.backend
    found: Vector = ops.branch(ops.item(made[1][0]) > 0, lambda d: (otherwise(point),), lambda d: (d,), made[0])[0]
    return found


def _one_by_one(probes: int | None, seed: Scalar, point: Point) -> Vector:
    reduction = point.objective.reduce
    first = 0 if probes is None or reduction is None or not _is_summed(point) else probes * (reduction.rank or 0)
    part = Partial(_squares, probes, first)
    if point.host:
        return point.stream(Partial(of_batch, part), seed).gradient
    made = point.linearized()
    total = Products(made.pieces, made.scale, part, point.space, reduce=reduction)
    return point.space.backend.call(Products.matvec, total, seed)


def _require_own(point: Point) -> None:
    """Raise where what a product with J^T gives is a sum over processes already, of which squares are others."""
    if _is_summed(point):
        point.space.require_together("an exact sum of squares of the examples' gradients, without probes,")


def _is_summed(point: Point) -> bool:
    return point.objective.reduce is not None and point.space.layout is not None


def _squares(probes: int | None, first: int, piece: Piece, seed: Scalar) -> Vector:
    """The unnormalised sum over one batch, from its linearisation, by the signs number ``first`` and following."""
    u, ops = _cotangents(piece), piece.space.backend
    if probes is None:
        return ops.sum_over(_of_example, range(u.shape[0]), piece, u)
    return ops.sum_over(_of_signs, range(first, first + probes), piece, u, seed) / probes


def _cotangents(piece: Piece) -> Array:
    """sqrt(w_i) dl_i/dz_i for all examples."""
    ops, weights = piece.space.backend, piece.weights
    xp = ops.namespace()
    if weights is not None:
        weights = xp.sqrt(xp.astype(weights, piece.outputs.dtype, copy=False))
    return slopes(ops, piece.loss, piece.outputs, piece.targets, weights)


def _of_signs(index: Scalar, piece: Piece, u: Array, seed: Scalar) -> Vector:
    xp = piece.space.backend.namespace()
    drawn = signs(Space.flat(u.shape[0], u), seed, index)
    return _squared(piece, xp.reshape(drawn, (-1,) + (1,) * (len(u.shape) - 1)) * u)


def _of_example(index: Scalar, piece: Piece, u: Array) -> Vector:
    xp = piece.space.backend.namespace()
    here = xp.reshape(counter(Space.flat(u.shape[0], u)) == index, (-1,) + (1,) * (len(u.shape) - 1))
    return _squared(piece, xp.where(here, u, xp.zeros_like(u)))


def _squared(piece: Piece, u: Array) -> Vector:
    g = piece.space.join(piece.linearization.vjp(u))
    return g * g


def count_outputs(point: Point) -> int | None:
    """How many numbers the model puts out on all data; None where they are streamed, or made in another framework.

    Or where processes share parameters and data, so that what a product with J^T gives is a sum over them.
    """
    if point.host or point.objective.is_bridged(point.space) or _is_summed(point):
        return None
    total: int = sum(math.prod(piece.outputs.shape) for piece in point.linearized().pieces)
    reduction = point.objective.reduce
    return total if reduction is None else int(reduction.count(point.space.backend, point.x, total))


def gauss_newton_diagonal(point: Point) -> Vector:
    """diag(J^T H_L J) of the objective without its l2, a product with J^T for each output."""
    _require_own(point)
    made = point.linearized()
    total = Products(made.pieces, made.scale, _columns_of_the_root, point.space, reduce=point.objective.reduce)
    return point.space.backend.call(Products.matvec, total, 0)


def diagonal_by_layers(point: Point) -> tuple[Vector, int] | None:
    """:func:`gauss_newton_diagonal` from the model's layers, and the passes backward that it took.

    None where it cannot be had so, or cannot be known to be right, in a trace.
    """
    if point.objective.reduce is not None or not has_layers(point):
        return None
    made, ops = point.gathered(root_squares), point.space.backend
    value, unfit = made.gradient
    if not ops.is_concrete(unfit) or ops.read(unfit)[0] > 0:
        return None
    return value, sum(piece.number for piece in made.pieces)


def _columns_of_the_root(piece: Piece, nothing: Scalar) -> Vector:
    rooted = piece.rooted()
    return piece.space.backend.sum_over(_of_output, range(math.prod(piece.outputs.shape)), rooted)


def _of_output(index: Scalar, piece: Piece) -> Vector:
    xp, z = piece.space.backend.namespace(), piece.outputs
    here = xp.reshape(counter(Space.flat(math.prod(z.shape), z)) == index, tuple(z.shape))
    return _squared(piece, piece.root.product(xp, xp.astype(here, z.dtype)))
