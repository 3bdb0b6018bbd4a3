"""The Gauss-Newton operator from the side of the outputs.

With the loss's factor, H_L = S S^T, and the normaliser c of the objective,

    W = sqrt(c) S^T J            (m, n): the root;  m = examples x outputs, over all batches
    G = W^T W                    (n, n): the GGN
    K = W W^T                    (m, m): the Gram operator, c S^T J J^T S

G and K have the same nonzero eigenvalues, and where the batch is small K is the
smaller of the two. The released solver of EGN (arXiv 2405.14402) works with
Q J J^T, for Q = H_L, which is not symmetric; this form is, and needs no inverse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..operators.base import LinearOperator
from ..protocols import Array, Scalar, Tree, Vector
from ..records import record, static
from ..spaces import Space
from .at_point import as_point
from .losses import CrossEntropy, Elementwise, Loss
from .objective import Objective
from .pieces import Piece
from .point import Point

__all__ = ["Gram", "Root", "require_factor", "root_gradient", "root_of"]


@record
class Root(LinearOperator):
    """W = sqrt(c) S^T J, from linearisations that are data: G = W^T W. Vectors of outputs hold all batches in order."""

    pieces: tuple[Any, ...]
    scale: Scalar
    """sqrt(c)."""
    space: Space = static()
    outputs: Space = static()

    @property
    def domain(self) -> Space:
        return self.space

    @property
    def codomain(self) -> Space:
        return self.outputs

    def matvec(self, v: Vector) -> Vector:
        return self.backend.scale(self.scale, over_pieces(self, _push, v))

    def rmatvec(self, u: Vector) -> Vector:
        ops, total, start = self.backend, None, 0
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
        return ops.scale(self.scale, total)

    def rows(self) -> Array:
        """W as an array (m, n): m products with J^T."""
        ops, eye = self.backend, self.backend.identity(self.outputs.size, self.outputs.zeros())
        if "compiled" in ops.capabilities:
            return self.rmatmat(eye).T
        return ops.namespace().stack([self.rmatvec(eye[i, :]) for i in range(eye.shape[0])])  # in the order of memory


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
        For a loss without a factor S, or data that are streamed.
    """

    root: Root

    def __init__(self, objective: Objective | Point, params: Tree = None) -> None:
        point = as_point(objective, params, "Gram")
        if point.host:
            raise ValueError("lg.Gram needs all outputs at once, and the data are streamed: hold them in a list.")
        require_factor(point.objective.loss, "lg.Gram")
        made = point.linearized()
        self.__dict__["root"] = root_of(made.pieces, made.scale, point.space)

    @property
    def domain(self) -> Space:
        return self.root.outputs

    @property
    def psd(self) -> bool:
        return True

    @classmethod
    def of(cls, root: Root) -> Gram:
        """W W^T for a root that there is."""
        made = object.__new__(cls)
        made.__dict__["root"] = root
        return made

    def _prepare(self) -> LinearOperator:
        return self

    def matvec(self, v: Vector) -> Vector:
        return self.root.matvec(self.root.rmatvec(v))


def root_of(pieces: tuple[Any, ...], scale: Scalar, space: Space) -> Root:
    """The root of the GGN whose linearisations and normaliser these are."""
    outputs = [piece.outputs for piece in pieces]
    codomain = Space.of(outputs[0] if len(outputs) == 1 and not pieces[0].stacked else tuple(outputs), "outputs")
    factor = math.sqrt(scale) if isinstance(scale, float) else space.backend.namespace().sqrt(scale)
    return Root(pieces, factor, space, codomain)


def require_factor(loss: Loss | None, who: str) -> None:
    """Raise for a loss that has no closed form of S with S S^T = H_L."""
    if loss is None or type(loss).factor_product is Loss.factor_product:
        name = "a plain scalar function" if loss is None else type(loss).__name__
        raise ValueError(
            f"{who} needs a factor S of the loss's Hessian, S S^T = H_L, and {name} has none in closed form. Use "
            "SquaredError, CrossEntropy, BinaryCrossEntropy or Poisson; give a loss of your own factor_product and "
            "factor_transposed_product; or use lg.GGN with lg.CG, which needs products only."
        )


def root_gradient(root: Root) -> Vector:
    """q (m,) with S q = dL/dz, so that W^T q is the gradient over sqrt(c); zero where the loss does not tell."""
    return over_pieces(root, _root_cotangent)


def over_pieces(root: Root, function: Any, *vectors: Vector) -> Vector:
    """``function(piece, *vectors)`` of all pieces, one after the other in one vector of outputs."""
    ops, parts = root.backend, []
    for piece in root.pieces:
        if piece.stacked:
            made = ops.scan_over(_Kept(function), piece, *vectors)[1]
            parts.append(ops.namespace().reshape(made, (-1,)))
        else:
            parts.append(piece.apply(function, *vectors))
    return root.outputs.join(parts) if len(parts) > 1 else parts[0]


@dataclass(frozen=True)
class _Kept:
    """A function whose results are stacked, and nothing summed."""

    function: Any

    def __call__(self, piece: Piece, *vectors: Vector) -> tuple[tuple[()], Vector]:
        return (), self.function(piece, *vectors)


def _push(piece: Piece, v: Vector) -> Vector:
    """S^T J v, flat."""
    z = piece.lin.jvp(piece.space.split(v))
    return _flat(piece, piece.loss.factor_transposed_product(*_data(piece), z))


def _pull(piece: Piece, u: Vector) -> Vector:
    """J^T S u for flat u."""
    ops = piece.space.backend
    shape, dtype, _ = ops.describe(piece.outputs)
    z = ops.split(u, [shape], [dtype])[0]
    return piece.space.join(piece.lin.vjp(piece.loss.factor_product(*_data(piece), z)))


def _pull_slice(both: tuple[Piece, Vector]) -> Vector:
    return _pull(*both)


def _root_cotangent(piece: Piece) -> Vector:
    """q with S q = r = dL/dz: a quotient for a diagonal S, r / sqrt(w p) for softmax, where r adds up to zero."""
    xp, z, y, w = _data(piece)
    if isinstance(piece.loss, Elementwise):
        size = piece.loss.factor_product(xp, z, y, w, xp.ones_like(z))
    elif isinstance(piece.loss, CrossEntropy):
        p, _, _, mass = piece.loss.shared(xp, z, y, w)
        size = xp.sqrt(p if mass is None else mass * p)
    else:
        size = xp.zeros_like(z)
    good = size > 0
    r = piece.loss.gradient(xp, z, y, w)
    return _flat(piece, xp.where(good, r / xp.where(good, size, xp.ones_like(size)), xp.zeros_like(r)))


def _data(piece: Piece) -> tuple[Any, Array, Array | None, Array | None]:
    return piece.space.backend.namespace(), piece.outputs, piece.targets, piece.weights


def _flat(piece: Piece, z: Array) -> Vector:
    ops = piece.space.backend
    return ops.pack([z], ops.describe(z)[1])
