"""The factors of the Gauss-Newton operator: J, and H_L between J^T and J.

With them every variant is a composition: ``J.T @ H @ J`` is the GGN,
``J @ J.T`` the Gram (tangent kernel) operator, and so on.
"""

from __future__ import annotations

import numpy as np

from ..operators.base import LinearOperator
from ..protocols import Scalar, Tree, Vector
from ..records import record, static
from ..spaces import Space
from .ggn import require_loss
from .hessian import as_point
from .objective import Objective
from .pieces import Piece, jvp, loss_hessian, vjp
from .point import Point
from .term import outputs_of

__all__ = ["Jacobian", "LossHessian"]


def _outputs_space(point: Point, name: str) -> Space:
    """The space of the model's outputs, found without computing them where the framework can tell."""
    ops = point.space.backend
    term = point.objective.single(point.space, name)
    if "_linearized" in point.__dict__ or "compiled" not in ops.capabilities:
        return Space.of(point.linearized().pieces[0].outputs, "outputs")
    shape, dtype, _ = ops.describe_of(outputs_of, term, point.x)
    like = ops.asarray(np.zeros(()), dtype, point.space.device)
    return Space.of(ops.namespace().broadcast_to(like, shape), "outputs")


class _Factor(LinearOperator):
    point: Point
    outputs: Space

    def __init__(self, objective: Objective | Point, params: Tree = None) -> None:
        name = type(self).__name__
        point = require_loss(as_point(objective, params, name), name)
        self.__dict__.update(point=point, outputs=_outputs_space(point, f"lg.{name}"))


@record
class Jacobian(_Factor):
    """The Jacobian (m, n) of the model's outputs in the parameters, for data of one batch.

    >>> import numpy as np, linop_gn as lg
    >>> x = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> line = lg.Objective.from_residuals(lambda w: x @ w, jacobian=lambda w: x)
    >>> J = lg.Jacobian(line, np.zeros(2))
    >>> J @ np.array([1.0, 0.0]), J.T @ np.array([1.0, 0.0]), (J.T @ J).psd
    (array([1., 3.]), array([1., 2.]), True)
    """

    point: Point
    outputs: Space = static()

    __init__ = _Factor.__init__

    @property
    def domain(self) -> Space:
        return self.point.space

    @property
    def codomain(self) -> Space:
        return self.outputs

    def _prepare(self) -> LinearOperator:
        return JacobianProducts(self.point.linearized().pieces[0], self.point.space, self.outputs)

    def matvec(self, v: Vector) -> Vector:
        return self.prepare().matvec(v)

    def rmatvec(self, u: Vector) -> Vector:
        return self.prepare().rmatvec(u)


@record
class JacobianProducts(LinearOperator):
    """A Jacobian whose linearisation is data."""

    piece: Piece
    space: Space = static()
    outputs: Space = static()

    @property
    def domain(self) -> Space:
        return self.space

    @property
    def codomain(self) -> Space:
        return self.outputs

    def matvec(self, v: Vector) -> Vector:
        return self.piece.apply(jvp, v)

    def rmatvec(self, u: Vector) -> Vector:
        return self.piece.apply(vjp, u)


@record
class LossHessian(_Factor):
    """The Hessian (m, m) of the objective in the model's outputs: one small block for each example.

    >>> import numpy as np, linop_gn as lg
    >>> x = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> fit = lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), (x, np.ones(2)), jacobian=lambda w, x: x)
    >>> lg.LossHessian(fit, np.zeros(2)).to_dense()
    array([[0.5, 0. ],
           [0. , 0.5]])
    """

    point: Point
    outputs: Space = static()

    __init__ = _Factor.__init__

    @property
    def domain(self) -> Space:
        return self.outputs

    @property
    def symmetric(self) -> bool:
        return True

    @property
    def psd(self) -> bool:
        loss = self.point.objective.loss
        return loss is not None and loss.convex

    def _prepare(self) -> LinearOperator:
        made = self.point.linearized()
        return LossHessianProducts(made.pieces[0], made.scale, self.outputs, self.psd)

    def matvec(self, v: Vector) -> Vector:
        return self.prepare().matvec(v)


@record
class LossHessianProducts(LinearOperator):
    """A loss Hessian whose outputs are data."""

    piece: Piece
    factor: Scalar
    outputs: Space = static()
    is_psd: bool = static()

    @property
    def domain(self) -> Space:
        return self.outputs

    @property
    def symmetric(self) -> bool:
        return True

    @property
    def psd(self) -> bool:
        return self.is_psd

    def matvec(self, v: Vector) -> Vector:
        return self.backend.scale(self.factor, self.piece.apply(loss_hessian, v))
