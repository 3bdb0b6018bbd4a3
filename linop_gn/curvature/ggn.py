"""The generalised Gauss-Newton operator, by products.

    G = J^T H_L J

J is the Jacobian of the model's outputs in the parameters, H_L the Hessian of
the loss in the outputs (Schraudolph, 2002). For a convex loss G is positive
semi-definite; for squared error it is the Gauss-Newton matrix J^T J, for
softmax cross-entropy the Fisher information. One product is one JVP and one
VJP through a model linearised once.
"""

from __future__ import annotations

from ..operators.base import LinearOperator
from ..protocols import Scalar, Tree, Vector
from ..records import record, static
from ..spaces import Space
from .hessian import as_point
from .objective import Objective
from .pieces import Piece, ggn, sum_products
from .point import Point, Sums
from .term import Term

__all__ = ["GGN", "require_loss"]


@record
class GGN(LinearOperator):
    """The generalised Gauss-Newton operator of ``objective`` at ``params``, which are copied.

    Shape (n, n) for n parameters; PSD when the loss is convex. Linearised once, at
    the first product or when a solver takes it, together with the gradient.

    >>> import numpy as np, linop_gn as lg
    >>> x = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> line = lg.Objective.from_residuals(lambda w: x @ w - 1.0, jacobian=lambda w: x)
    >>> lg.GGN(line, np.zeros(2)) @ np.array([1.0, 0.0])
    array([10., 14.])

    Raises
    ------
    ValueError
        For an objective made from a plain scalar function, which has no outputs.
    MissingDerivativeError
        At the first product, for arrays whose framework has no derivatives.
    """

    point: Point

    def __init__(self, objective: Objective | Point, params: Tree = None) -> None:
        self.__dict__["point"] = require_loss(as_point(objective, params, "GGN"), "GGN")

    @property
    def domain(self) -> Space:
        return self.point.space

    @property
    def symmetric(self) -> bool:
        return True

    @property
    def psd(self) -> bool:
        loss = self.point.objective.loss
        return loss is not None and loss.convex

    @property
    def host(self) -> bool:
        return self.point.host

    def _prepare(self) -> LinearOperator:
        if self.host:
            return self
        made = self.point.linearized()
        return GGNProducts(made.pieces, made.scale, self.point.space, self.psd)

    def matvec(self, v: Vector) -> Vector:
        if not self.host:
            return self.prepare().matvec(v)
        return self.point.stream(_ggn_sums, v).gradient


@record
class GGNProducts(LinearOperator):
    """A GGN whose linearisations are data."""

    pieces: tuple[Piece, ...]
    factor: Scalar
    space: Space = static()
    is_psd: bool = static()

    @property
    def domain(self) -> Space:
        return self.space

    @property
    def symmetric(self) -> bool:
        return True

    @property
    def psd(self) -> bool:
        return self.is_psd

    def matvec(self, v: Vector) -> Vector:
        return sum_products(self.backend, self.pieces, ggn, v, self.factor)


def _ggn_sums(term: Term, x: Vector, v: Vector) -> Sums:
    piece = term.linearize(x)
    return None, piece.apply(ggn, v), piece.weight


def require_loss(point: Point, name: str) -> Point:
    """``point`` itself, if its objective has a model and a loss."""
    if point.objective.loss is None:
        raise ValueError(
            f"lg.{name} needs to know the model and the loss apart, and this objective is a plain scalar function. "
            "Make it with lg.Objective(model, loss, data) or lg.Objective.from_residuals(residuals); "
            "lg.Hessian works for scalar functions."
        )
    return point
