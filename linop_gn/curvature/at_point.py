r"""The operators of an objective at a point, by products with a model that is linearised once.

With J the Jacobian of the model's outputs z in the parameters p and H_L the
Hessian of the loss in the outputs,

=================== ================================ ===================================================
:class:`GGN`         J^T H_L J                        generalised Gauss-Newton (Schraudolph, 2002)
:class:`BlockGGN`    blockdiag(J_l^T H_L J_l)         J_l: the columns of J for the leaves of block l
:class:`Hessian`     d^2 L / dp^2                     the gradient, linearised (Pearlmutter, 1994)
:class:`Jacobian`    J
:class:`LossHessian` H_L
=================== ================================ ===================================================

A GGN product is one JVP and one VJP; for a convex loss the GGN is PSD, for
squared error it is J^T J, for softmax cross-entropy the Fisher information. A
block GGN product is one JVP and one VJP *for each block*, each pruned to what
lies above its block: 1.3 gradients for three blocks, 3.0 for nine. (One batched
pass over all blocks would cost four times as much.) With few outputs and more
than three blocks it is 1.0 to 1.5, from the model's layers, where these take so
few flops (:mod:`linop_gn.curvature.layers.blocks`). The Hessian is forward over
reverse in JAX, backward over the kept gradient graph in PyTorch, where forward
over reverse is silently wrong on normalisation layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from ..distributed.reduction import Reduction
from ..distributed.watching import telling
from ..operators.algebra import Modified
from ..operators.base import LinearOperator
from ..operators.damped import Damped
from ..operators.partition import LeafBlock
from ..protocols import Scalar, Tree, Vector
from ..records import Partial, fields, fill, rebuild, record, static
from ..spaces import Space
from .checks import require_one_process
from .layers.blocks import LayerBlocks, block_factors, covered, cut, pays
from .layers.rows import layers_at
from .objective import Objective
from .partition import Blocks, partition
from .pieces import (
    added,
    applied,
    by_columns,
    each_block,
    ggn,
    hessian,
    jvp,
    loss_hessian,
    multiple,
    of_batch,
    one_block,
    scaled,
    together,
    vjp,
)
from .point import Point
from .term import outputs_of

__all__ = ["GGN", "AtPoint", "BlockGGN", "Hessian", "Jacobian", "LossHessian", "Products", "as_point", "block_products"]

_LAYERS = 4
"""Blocks from which on layers may pay."""


@record
class Products(LinearOperator):
    """An operator whose linearisation is data: ``scale`` times the sum of ``product(piece, v)`` over batches."""

    pieces: tuple[Any, ...]
    scale: Scalar | None
    product: Callable[..., Vector] = static()
    domain: Space = static(default=None)
    codomain: Space = static(default=None)
    symmetric: bool = static(default=True)
    psd: bool = static(default=False)
    leaf_blocks: tuple[LeafBlock, ...] | None = static(default=None)
    adjoint: Callable[..., Vector] | None = static(default=None)
    reduce: Reduction | None = static(default=None)
    """What sums over processes, of which each has the pieces of its share of the data."""

    @property
    def reduction(self) -> Reduction | None:
        return self.reduce

    @property
    def together(self) -> int:
        return together(self.pieces, self.domain)

    def matvec(self, v: Vector) -> Vector:
        if self.reduce is None:
            return self._over_pieces(self.product, v)
        with telling(self.reduce):
            own = self._over_pieces(self.product, v)
            if isinstance(own, tuple):  # of leaves
                return tuple(self.reduce.sum(self.backend, own))
            return self.reduce.sum(self.backend, [own])[0]

    def matmat(self, v: Vector) -> Vector:
        if self.reduce is None:
            if any(piece.recomputes for piece in self.pieces):
                return self._over_pieces(Partial(by_columns, self.product), v)
            return super().matmat(v)
        with telling(self.reduce):
            own = rebuild(type(self), fields(self) | {"reduce": None})
            return self.reduce.sum(self.backend, [own.matmat(v)])[0]

    def rmatvec(self, u: Vector) -> Vector:
        return self.matvec(u) if self.adjoint is None else self._over_pieces(self.adjoint, u)

    @property
    def leafwise(self) -> bool:
        return all(piece.leafwise for piece in self.pieces)

    def _over_pieces(self, product: Callable[..., Vector], v: Vector) -> Vector:
        ops, total = self.backend, None
        for piece in self.pieces:
            if piece.stacked:
                part = ops.sum_over(Partial(applied, product), piece, v)
                part = part if self.scale is None else scaled(ops, self.scale, part)
            elif self.scale is None:
                part = piece.apply(product, v)
            else:
                part = piece.apply(Partial(multiple, product), v, self.scale)
            total = part if total is None else added(ops, part, total)
            del part  # which would be held while the next is made
        if total is None:  # of a process whose share has no batch
            return self.domain.zeros(v.shape[1] if len(getattr(v, "shape", ())) == 2 else None)
        return total


@record
class AtPoint(LinearOperator):
    """An operator made of an objective's derivatives at a point, which value and gradient share."""

    point: Point

    symmetric = True
    product: ClassVar[Callable[..., Vector]]
    """``product(piece, v)`` of one linearised batch."""
    regularised: ClassVar[bool] = False
    """Whether it is of the whole objective, its l2 included."""

    def __init__(self, objective: Objective | Point, params: Tree = None) -> None:
        fill(self, point=as_point(objective, params, type(self).__name__))

    @property
    def domain(self) -> Space:
        return self.point.space

    @property
    def reduction(self) -> Reduction | None:
        return self.point.objective.reduce

    @property
    def psd(self) -> bool:
        loss = self.point.objective.loss
        return loss is not None and loss.convex

    @property
    def host(self) -> bool:
        return self.point.host

    def _prepare(self) -> LinearOperator:
        return self if self.host else with_l2(self._products(), self._l2)

    @property
    def _l2(self) -> Any:
        return self.point.objective.l2_in(self.point.space) if self.regularised else None

    def _products(self) -> Products:
        made = self.point.linearized()
        known = self.domain, self.codomain, self.symmetric, self.psd, self.leaf_blocks
        return Products(made.pieces, made.scale, self.product, *known, reduce=self.reduction)

    @property
    def together(self) -> int:
        return 1 if self.host else self.prepare().together

    def matvec(self, v: Vector) -> Vector:
        if not self.host:
            return self.prepare().matvec(v)
        made, l2 = self.point.stream(Partial(of_batch, self.product), v).gradient, self._l2
        return made if l2 is None else self.backend.axpy(1.0, _times(l2, v), made)


@record
class WithDiagonal(Modified):
    """A + diag(l2), for a vector l2 (n,) that is not negative."""

    l2: Vector

    @property
    def psd(self) -> bool:
        return self.operator.psd

    def matvec(self, v: Vector) -> Vector:
        return self.backend.axpy(1.0, _times(self.l2, v), self.operator.apply(v))

    matmat = matvec

    def rmatvec(self, u: Vector) -> Vector:
        return self.backend.axpy(1.0, _times(self.l2, u), self.operator.rapply(u))

    rmatmat = rmatvec


def with_l2(made: LinearOperator, l2: Any) -> LinearOperator:
    """``made`` + l2, a number or a vector; None: nothing."""
    if l2 is None:
        return made
    return Damped(made, l2) if isinstance(l2, (int, float)) or l2.shape == () else WithDiagonal(made, l2)


def _times(l2: Any, v: Vector) -> Vector:
    return l2[:, None] * v if len(getattr(l2, "shape", ())) and len(v.shape) == 2 else l2 * v


@record
class GGN(AtPoint):
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

    product = staticmethod(ggn)
    regularised = True
    __init__ = AtPoint.__init__


@record
class Hessian(AtPoint):
    """The Hessian of ``objective`` at ``params``, which are copied.

    Shape (n, n) for n parameters; symmetric, in general indefinite. Products cost about two gradients.

    >>> import numpy as np, linop_gn as lg
    >>> f = lg.Objective.from_function(lambda p: p @ p * (p @ p) / 4,
    ...     gradient=lambda p: (p @ p) * p, hvp=lambda p, v: (p @ p) * v + 2 * (p @ v) * p)
    >>> lg.Hessian(f, np.array([1.0, 2.0])) @ np.array([1.0, 0.0])
    array([7., 4.])

    Raises
    ------
    MissingDerivativeError
        At the first product, for arrays whose framework has no derivatives.
    """

    psd = False
    product = staticmethod(hessian)
    regularised = True

    def __init__(self, objective: Objective | Point, params: Tree = None) -> None:
        fill(self, point=as_point(objective, params, "Hessian", any_function=True).expect_hessian())

    def _products(self) -> Products:
        made = self.point.curved()
        return Products(made.pieces, made.scale, self.product, self.domain, self.domain, reduce=self.reduction)


@record
class BlockGGN(AtPoint):
    """The GGN of ``objective`` at ``params`` with everything off the block diagonal left out.

    ``blocks`` is ``"layer"``, ``"leaf"`` or a partition of your own: see
    :mod:`linop_gn.curvature.partition`. Of many blocks and few outputs for each example products are made of the
    model's layers, not on its graph, where a few of them make up for the passes backward which that takes.

    >>> import numpy as np, linop_gn as lg
    >>> x = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> plane = lg.Objective.from_residuals(lambda p: p["a"] * x[:, 0] + p["b"] * x[:, 1],
    ...     jacobian=lambda p: {"a": x[:, 0], "b": x[:, 1]})
    >>> B = lg.BlockGGN(plane, {"a": np.array(0.0), "b": np.array(0.0)}, blocks="leaf")
    >>> B.to_dense()
    array([[10.,  0.],
           [ 0., 20.]])
    """

    blocks: tuple[LeafBlock, ...] = static()
    regularised = True

    def __init__(self, objective: Objective | Point, params: Tree = None, *, blocks: Blocks = "layer") -> None:
        AtPoint.__init__(self, objective, params)
        fill(self, blocks=partition(self.domain, blocks))

    @property
    def product(self) -> Partial[Vector]:  # type: ignore[override]
        return Partial(each_block, tuple(block.leaves for block in self.blocks))

    def _prepare(self) -> LinearOperator:
        made = None if self.host else self._by_layers()
        return super()._prepare() if made is None else with_l2(made, self._l2)

    def _by_layers(self) -> LinearOperator | None:
        """Products from the model's layers, where they take much fewer flops than on the graph; None elsewhere."""
        point, blocks = self.point, tuple(block.leaves for block in self.blocks)
        loss, ops = point.objective.loss, self.backend
        if len(blocks) < _LAYERS or self.reduction is not None or loss is None or loss.autodiff or not loss.convex:
            return None
        found = layers_at(point, Partial(pays, blocks))
        if found is None:
            return None
        found = cut(blocks, found)
        places = covered(blocks, found.places, found.left)
        if not places:
            return None
        apart = found.hold_for(point.linearized().pieces)
        if ops.is_concrete(apart):
            if not ops.read(apart):
                return None
            apart = None
        outside = tuple(leaves for number, leaves in enumerate(blocks) if number not in places)
        graph = self._products() if outside or apart is not None else None
        others = fields(graph) | {"product": Partial(each_block, outside)} if graph and outside else None
        return LayerBlocks(
            ops.call(Partial(block_factors, self.domain, tuple(map(tuple, places.values()))), found),
            point.linearized().scale,
            None if others is None else rebuild(Products, others),
            graph if apart is not None else None,
            apart,
            tuple(tuple(found.places[k] for k in own) for own in places.values()),
            self.domain,
            self.psd,
            self.blocks,
        )

    @property
    def leaf_blocks(self) -> tuple[LeafBlock, ...]:
        return self.blocks

    def diagonal_blocks(self) -> dict[str, LinearOperator]:
        """Each block as an operator on its own parameters, by name; they share one linearisation."""
        if self.host:
            raise ValueError("an operator over streamed data cannot be taken apart; hold the data in a list.")
        return {block.name: made for block, made in zip(self.blocks, block_products(self, self.blocks), strict=True)}


def block_products(operator: GGN | BlockGGN, blocks: tuple[LeafBlock, ...]) -> list[LinearOperator]:
    """J_l^T H_L J_l for each of the blocks, on the space of its own leaves; they share one linearisation."""
    made, l2 = operator.point.linearized(), operator.point.objective.l2_in(operator.domain)
    over = operator.reduction
    parts = operator.domain.split(l2) if len(getattr(l2, "shape", ())) else None
    return [
        with_l2(
            Products(
                made.pieces, made.scale, Partial(one_block, leaves), space, space, True, operator.psd, reduce=over
            ),
            l2 if parts is None else space.join([parts[i] for i in leaves]),
        )
        for _, leaves, space in blocks
    ]


@record
class _AtOutputs(AtPoint):
    """An operator that also knows the space of the model's outputs, for data of one batch."""

    outputs: Space = static()

    def __init__(self, objective: Objective | Point, params: Tree = None) -> None:
        AtPoint.__init__(self, objective, params)
        name = f"lg.{type(self).__name__}"
        require_one_process(self.point.objective, name, "is of the outputs of one process, which knows them all")
        fill(self, outputs=_outputs_space(self.point, name))


@record
class Jacobian(_AtOutputs):
    """The Jacobian (m, n) of the model's outputs in the parameters, for data of one batch.

    With :class:`LossHessian`, ``J.T @ H @ J`` is the GGN, and ``J @ J.T`` the Gram (tangent kernel) operator.

    >>> import numpy as np, linop_gn as lg
    >>> x = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> line = lg.Objective.from_residuals(lambda w: x @ w, jacobian=lambda w: x)
    >>> J = lg.Jacobian(line, np.zeros(2))
    >>> J @ np.array([1.0, 0.0]), J.T @ np.array([1.0, 0.0]), (J.T @ J).psd
    (array([1., 3.]), array([1., 2.]), True)
    """

    symmetric = False
    psd = False
    __init__ = _AtOutputs.__init__

    @property
    def codomain(self) -> Space:
        return self.outputs

    def _products(self) -> Products:
        made = self.point.linearized()
        return Products(made.pieces, None, jvp, self.domain, self.codomain, symmetric=False, adjoint=vjp)

    def rmatvec(self, u: Vector) -> Vector:
        return self.prepare().rmatvec(u)


@record
class LossHessian(_AtOutputs):
    """The Hessian (m, m) of the objective in the model's outputs: one small block for each example.

    >>> import numpy as np, linop_gn as lg
    >>> x = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> fit = lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), (x, np.ones(2)), jacobian=lambda w, x: x)
    >>> lg.LossHessian(fit, np.zeros(2)).to_dense()
    array([[0.5, 0. ],
           [0. , 0.5]])
    """

    product = staticmethod(loss_hessian)
    __init__ = _AtOutputs.__init__

    @property
    def domain(self) -> Space:
        return self.outputs


def _outputs_space(point: Point, name: str) -> Space:
    """The space of the model's outputs, found without computing them where the framework can tell."""
    ops = point.space.backend
    term = point.objective.single(point.space, name)
    if point.is_linearized or "compiled" not in ops.capabilities:
        return Space.of(point.linearized().pieces[0].outputs, "outputs")
    shape, dtype, _ = ops.describe_of(outputs_of, term, point.x)
    like = ops.asarray(np.zeros(()), dtype, point.space.device)
    return Space.of(ops.namespace().broadcast_to(like, shape), "outputs")


def as_point(objective: Any, params: Tree, name: str, any_function: bool = False) -> Point:
    """The point that the operator lg.``name`` is made at; unless ``any_function``, its objective must have a loss."""
    if isinstance(objective, Objective):
        if params is None:
            raise TypeError(f"lg.{name} needs the parameters to be taken at: lg.{name}(objective, params).")
        objective = objective.at(params)
    elif params is not None and isinstance(objective, Point):
        raise TypeError(f"lg.{name} was given a point, which has its parameters already, and parameters beside it.")
    if not isinstance(objective, Point):
        raise TypeError(
            f"lg.{name} needs an lg.Objective, got {type(objective).__qualname__}; make one with "
            "lg.Objective(model, loss, data), .from_residuals(...) or .from_function(...)."
        )
    if objective.objective.loss is None and not any_function:
        raise ValueError(
            f"lg.{name} needs to know the model and the loss apart, and this objective is a plain scalar function. "
            "Make it with lg.Objective(model, loss, data) or lg.Objective.from_residuals(residuals); "
            "lg.Hessian works for scalar functions, and lg.TrustRegion() minimises them."
        )
    return objective
