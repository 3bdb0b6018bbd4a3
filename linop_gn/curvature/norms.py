"""Norms of the examples' gradients: :func:`gradient_norms`.

What clipping by example (differential privacy), importance sampling, and looking for mislabelled data take. From a
model's layers they are one pass backward for all of them, and no gradient of an example is formed
(:mod:`linop_gn.curvature.layers.squares`); elsewhere they are a product with J^T for each example.
"""

from __future__ import annotations

from ..protocols import Array, Scalar, Tree, Vector
from ..records import Partial
from .at_point import as_point
from .layers.rows import has_layers
from .layers.squares import example_norms
from .losses.weighting import counter
from .objective import Objective
from .pieces import Piece, kept
from .point import Point
from .term import Term

__all__ = ["gradient_norms"]


def gradient_norms(objective: Objective | Point, params: Tree = None) -> Array:
    """The 2-norms of the gradients of the examples' losses, each times its weight: an array (N,).

    An example is an entry of the first axis of the model's outputs: of a sequence the positions add up. The gradient of
    a mean is the sum of these gradients over the sum of the weights, so that of a loss whose mean counts each output
    (``BinaryCrossEntropy``, torch's ``MSELoss``) an example has the sum over its own. An l2 is left out.

    Parameters
    ----------
    objective, params
        The objective and its parameters, or a point, :meth:`lg.Objective.at`. Of several batches, in memory or
        streamed, the norms come one batch after the other. Where several processes have a share of the examples each
        has the norms of its own.

    >>> import numpy as np, linop_gn as lg
    >>> x, y = np.array([[3.0, 4.0], [0.0, 1.0]]), np.zeros(2)
    >>> fit = lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), (x, y), jacobian=lambda w, x: x)
    >>> lg.gradient_norms(fit, np.array([1.0, 2.0]))  # of (x_i.w - y_i) x_i
    array([55.,  2.])

    Raises
    ------
    ValueError
        For an objective made from a plain scalar function, which has no examples.
    """
    point = as_point(objective, params, "gradient_norms")
    xp = point.space.backend.namespace()
    if has_layers(point, streamed=True):
        made = point.gathered(Partial(example_norms, _term_by_term)).pieces
        found = [xp.reshape(piece.values, (-1,)) for piece in made]
    elif point.host:
        found = [term.linearize(point.x).apply(_one_by_one) for term in point.objective.streamed(point.space, point.x)]
    else:
        found = [_of_piece(piece) for piece in point.linearized().pieces]
    return found[0] if len(found) == 1 else xp.concat(found)


def _of_piece(piece: Piece) -> Array:
    if not piece.stacked:
        return piece.apply(_one_by_one)
    ops = piece.space.backend
    return ops.namespace().reshape(ops.scan_over(Partial(kept, _one_by_one), piece)[1], (-1,))


def _term_by_term(term: Term, x: Vector) -> Array:
    return _one_by_one(term.linearize(x))


def _one_by_one(piece: Piece) -> Array:
    """A product with J^T for each example."""
    ops, z = piece.space.backend, piece.outputs
    numbers = counter(ops.namespace(), (*z.shape, 1)[0], z)
    made: Array = ops.scan_over(_norm_of, numbers, piece, piece.slope(z))[1]
    return made


def _norm_of(index: Scalar, piece: Piece, u: Array) -> tuple[tuple[()], Array]:
    xp = piece.space.backend.namespace()
    n = (*u.shape, 1)[0]
    here = xp.reshape(counter(xp, n, u) == index, (-1,) + (1,) * max(0, len(u.shape) - 1)) if u.shape else True
    g = piece.space.join(piece.linearization.vjp(xp.where(here, u, xp.zeros_like(u)) if u.shape else u))
    return (), xp.sqrt(xp.sum(g * g))
