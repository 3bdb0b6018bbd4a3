"""The Gauss-Newton operator from the side of the outputs.

With the root of the loss's Hessian, H_L = S S^T, and the normaliser c of the objective,

    W = sqrt(c) S^T J            (m, n): the root;  m = examples x outputs, over all batches
    G = W^T W                    (n, n): the GGN
    K = W W^T                    (m, m): the Gram operator, c S^T J J^T S

G and K have the same nonzero eigenvalues, and where the batch is small K is the
smaller of the two. The released solver of EGN (arXiv 2405.14402) works with
Q J J^T, for Q = H_L, which is not symmetric; this form is, and needs no inverse.
"""

from __future__ import annotations

import math
from typing import Any

from ..arguments import known
from ..operators.base import LinearOperator
from ..protocols import Array, Scalar, Tree, Vector, unchanged
from ..records import Partial, fill, memo, rebuild, record, static
from ..spaces import Space
from .at_point import as_point
from .checks import require_one_process
from .layers.gram import gram
from .layers.root import LayerRoot
from .layers.rows import Layers, layers_at
from .losses import Loss, SquaredError
from .objective import Objective
from .pieces import Piece, flat_outputs, kept, like_outputs, together
from .point import Point
from .terms import Terms

__all__ = ["ByLayers", "Gram", "Root", "gram_by_layers", "keeps_rows", "require_root", "root_gradient", "root_of"]

_SMALL = 2**22
"""Entries of W up to which its rows are kept by default: there a matrix product is quicker than m calls."""


@record
class Root(LinearOperator):
    """W = sqrt(c) S^T J, from linearisations that are data: G = W^T W. Vectors of outputs hold all batches in order."""

    pieces: tuple[Any, ...]
    scale: Scalar
    """sqrt(c)."""
    domain: Space = static(default=None)
    codomain: Space = static(default=None)
    units: Vector | None = None
    """S of W S, where the parameters are in other units."""

    @property
    def together(self) -> int:
        return together(self.pieces, self.domain)

    def matvec(self, v: Vector) -> Vector:
        v = v if self.units is None else self.units * v
        return self.backend.scale(self.scale, over_pieces(self, _push, v))

    def rmatvec(self, u: Vector) -> Vector:
        ops, total, start = self.backend, None, 0
        early = "compiled" in ops.capabilities  # what is packed last, and cut by who takes it, is not packed
        u = ops.scale(self.scale, ops.copy(u)) if early else u
        for piece in self.pieces:
            stop = start + math.prod(piece.outputs.shape)
            part = u[start:stop]
            if piece.stacked:
                rows = ops.namespace().reshape(part, (piece.outputs.shape[0], -1))
                product = ops.sum_over(_pull_slice, (piece, rows))
            else:
                product = piece.apply(_pull, part)
            total = product if total is None else ops.axpy(1.0, product, total)
            start = stop
        total = total if early else ops.scale(self.scale, total)
        return total if self.units is None else self.units * total

    def rows(self) -> Array:
        """W as an array (m, n): m products with J^T."""
        return self.rmatmat(self.backend.identity(self.codomain.size, self.codomain.zeros())).T

    def gram(self, rows: bool | None = None) -> tuple[Array | None, Array]:
        """W, if its ``rows`` are kept (None: where m n <= 2^22), and K (m, m): from these, or column by column."""
        ops, (m, n) = self.backend, self.shape
        if not keeps_rows(rows, m, n):
            return None, Gram.of(self).matmat(ops.identity(m, self.codomain.zeros()))
        W = ops.cast(self.rows(), self.codomain.dtype)
        return W, ops.syrk(W)


@record
class Gram(LinearOperator):
    """K = c S^T J J^T S for the model's outputs: the Gauss-Newton operator from the side of the outputs.

    Shape (m, m) for m outputs of all batches together, in whose shape its vectors come for data of
    one batch; PSD. ``root`` is W with K = W W^T. It is linearised when it is made.

    >>> import numpy as np, linop_gn as lg
    >>> x = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> line = lg.Objective.from_residuals(lambda w: x @ w - 1.0, jacobian=lambda w: x)
    >>> lg.Gram(line, np.zeros(2)) @ np.array([1.0, 0.0])
    array([ 5., 11.])

    Raises
    ------
    ValueError
        For a loss without a root S, or data that are streamed.
    """

    psd = True
    source: Point | Root
    """Where W is linearised, or W itself."""
    outputs: Space = static()

    def __init__(self, objective: Objective | Point, params: Tree = None) -> None:
        point = as_point(objective, params, "Gram")
        if point.host:
            raise ValueError("lg.Gram needs all outputs at once, and the data are streamed: hold them in a list.")
        require_root(point.objective.loss, "lg.Gram", point.objective)
        root = _root_at(point)
        fill(self, source=point, outputs=root.codomain)
        if self.backend.is_concrete(root):
            memo(self).prepared = Gram.of(root)

    @property
    def domain(self) -> Space:
        return self.outputs

    @property
    def root(self) -> Root:
        """W, linearised once; a copy linearises anew."""
        ready: Any = self.prepare()
        return ready.source  # type: ignore[no-any-return]

    @classmethod
    def of(cls, root: Root) -> Gram:
        """W W^T for a root that there is."""
        return rebuild(cls, {"source": root, "outputs": root.codomain})

    def _prepare(self) -> LinearOperator:
        return self if isinstance(self.source, Root) else Gram.of(_root_at(self.source))

    def matvec(self, v: Vector) -> Vector:
        return self.root.matvec(self.root.rmatvec(v))

    @property
    def together(self) -> int:
        return self.root.together

    def known_matrix(self) -> Array | None:
        """K (m, m) by the layers' inputs and derivatives, where the model has such: see :func:`gram_by_layers`."""
        made = None if isinstance(self.source, Root) else gram_by_layers(self, self.source)
        return None if made is None else made.matrix


def keeps_rows(rows: bool | None, m: int, n: int) -> bool:
    """Whether the rows of W (m, n) are kept: as was asked for, or by size."""
    return m * n <= _SMALL if rows is None else rows


@record
class ByLayers:
    """K (m, m), and W by the layers that it was made of; None where examples enter each other's outputs."""

    matrix: Array
    root: LayerRoot | None


def gram_by_layers(owner: LinearOperator, point: Point) -> ByLayers | None:
    """K and W at a point by layers; None where the model has none. Made once for ``owner``, and kept.

    Where examples enter each other's outputs K is formed from the rows of W, or column by column.
    """
    slots, ops = memo(owner), point.space.backend
    if slots.made is None:
        found = layers_at(point) if point.objective.reduce is None else None
        if found is None:
            return None
        root = _root_at(point)
        apart = ops.call(Layers.hold_for, found, root.pieces)
        known = bool(ops.read(apart)) if ops.is_concrete(apart) else None
        if known is None:
            matrix = _either(apart, found, root)
        else:
            matrix = ops.call(_matrix, found, root) if known else root.gram()[1]
        by_layers = None if known is False else LayerRoot.of(found, root, known is True, _slope(point))
        made = ByLayers(matrix, by_layers)
        if not point.may_keep(made):
            return made
        slots.made = made
    return slots.made  # type: ignore[no-any-return]


def _slope(point: Point) -> Any:
    """The gradient of a sum over batches, where it is at hand; unpacked where it is that there."""
    made = point.linearized().gradient if point.objective.l2 is None else None
    return point.space.join(list(made)) if isinstance(made, tuple) else made


def _either(apart: Array, found: Layers, root: Root) -> Array:
    """K, where the program finds out which way: what it will hardly take holds one column at a time."""
    ops, (m, n) = root.backend, root.shape

    def otherwise(_: Array) -> tuple[Array]:
        if keeps_rows(None, m, n):
            return (root.gram()[1],)
        return (ops.over_columns(lambda e: root.matvec(root.rmatvec(e)), ops.identity(m, root.codomain.zeros())),)

    # By layers in any case: in a branch, all that it is made of would be copied first.
    made: Array = ops.branch(ops.logical_not(ops.item(apart)), otherwise, unchanged, _matrix(found, root))[0]
    return made


def _matrix(found: Layers, root: Root) -> Array:
    ops = root.backend
    return ops.cast(root.scale * root.scale * gram(ops, found), root.codomain.dtype)


def _root_at(point: Point) -> Root:
    made = point.linearized()
    return root_of(made.pieces, made.scale, point.space)


def root_of(pieces: tuple[Any, ...], scale: Scalar, space: Space) -> Root:
    """The root of the GGN whose linearisations and normaliser these are."""
    outputs = [piece.outputs for piece in pieces]
    codomain = Space.of(outputs[0] if len(outputs) == 1 and not pieces[0].stacked else tuple(outputs), "outputs")
    size = math.sqrt(scale) if isinstance(scale, float) else space.backend.namespace().sqrt(scale)
    rooted = (piece.rooted() if piece.recomputes else space.backend.call(_rooted, piece) for piece in pieces)
    return Root(tuple(rooted), size, space, codomain)


def _rooted(piece: Any) -> Any:
    if not piece.stacked:
        return piece.rooted()
    return piece.space.backend.scan_over(Partial(kept, type(piece).rooted), piece)[1]


def require_root(loss: Loss | None, who: str, terms: Terms | None = None) -> None:
    """Raise for a loss whose Hessian has no real root S, S S^T = H_L, or none by blocks that are known."""
    require_one_process(terms, who)
    require_no_l2(terms, who)
    if loss is None or loss.autodiff or not loss.convex:
        name = "a plain scalar function" if loss is None else type(loss).__name__
        why = "is not known to be convex" if loss is not None and not loss.autodiff else "has no closed forms"
        raise ValueError(
            f"{who} needs a root S of the loss's Hessian, S S^T = H_L, and {name} {why}. Use SquaredError, "
            "CrossEntropy, BinaryCrossEntropy or Poisson; write a convex loss as a subclass of lg.losses.Loss with "
            "value, slope and curvature; or use lg.GGN with lg.CG, which needs products only."
        )


def require_no_l2(terms: Terms | None, who: str) -> None:
    """Raise for an objective with an l2, for methods that see the model and the loss only."""
    l2 = None if terms is None else terms.l2
    if terms is not None and l2 is not None and not (getattr(l2, "shape", None) == () and known(who, "l2", l2) == 0):
        residuals = isinstance(terms.loss, SquaredError) and all(batch.targets is None for batch in terms.batches)
        raise ValueError(
            f"{who} takes the model and the loss, and would leave out the objective's l2: "
            + ("append sqrt(l2) * p to the residuals, or " if residuals else "")
            + "use what takes products with lg.GGN, such as lg.LevenbergMarquardt() to fit and lg.CG() to solve."
        )


def root_gradient(root: Root) -> Vector:
    """q (m,) with S q = dL/dz, so that W^T q is the gradient over sqrt(c); zero where S has no inverse."""
    return over_pieces(root, _root_cotangent)


def over_pieces(root: Root, function: Any, *vectors: Vector) -> Vector:
    """``function(piece, *vectors)`` of all pieces, one after the other in one vector of outputs."""
    ops, parts = root.backend, []
    for piece in root.pieces:
        if piece.stacked:
            made = ops.scan_over(Partial(kept, function), piece, *vectors)[1]
            parts.append(ops.namespace().reshape(made, (-1,)))
        else:
            parts.append(piece.apply(function, *vectors))
    return root.codomain.join(parts) if len(parts) > 1 else parts[0]


def _push(piece: Piece, v: Vector) -> Vector:
    """S^T J v, flat."""
    z = piece.linearization.jvp(piece.space.split(v))
    return flat_outputs(piece, piece.root.transposed(piece.space.backend.namespace(), z))


def _pull(piece: Piece, u: Vector) -> Vector:
    """J^T S u for flat u."""
    xp = piece.space.backend.namespace()
    return piece.space.join(piece.linearization.vjp(piece.root.product(xp, like_outputs(piece, u))))


def _pull_slice(both: tuple[Piece, Vector]) -> Vector:
    piece, u = both
    return piece.apply(_pull, u)


def _root_cotangent(piece: Piece) -> Vector:
    """q with S q = dL/dz."""
    xp = piece.space.backend.namespace()
    r = piece.loss.gradient(xp, piece.outputs, piece.targets, piece.weights)
    return flat_outputs(piece, piece.root.solve(xp, r))
