"""The block-diagonal Gauss-Newton operator: layers without their interactions.

    B = blockdiag(J_1^T H_L J_1, ..., J_L^T H_L J_L)

where J_l is the Jacobian in the parameters of block l alone. A product is one
JVP and one VJP *for each block*, on one shared linearisation, each pruned to
what lies above its block: 1.3 gradients for three blocks, 3.6 for nine. (One
batched pass over all blocks would cost four times as much.)
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ..operators.base import LinearOperator
from ..protocols import Scalar, Tree, Vector
from ..records import record, static
from ..spaces import Space
from .ggn import require_loss
from .hessian import as_point, stream_product, sum_products
from .objective import Objective
from .partition import Partition, partition
from .point import Point
from .term import Piece, Term

__all__ = ["BlockGGN"]


@record
class BlockGGN(LinearOperator):
    """The GGN of ``objective`` at ``params`` with everything off the block diagonal left out.

    ``blocks`` is ``"layer"``, ``"leaf"`` or a partition of your own: see
    :mod:`linop_gn.curvature.partition`.

    >>> import numpy as np, linop_gn as lg
    >>> x = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> plane = lg.Objective.from_residuals(lambda p: p["a"] * x[:, 0] + p["b"] * x[:, 1],
    ...     jacobian=lambda p: {"a": x[:, 0], "b": x[:, 1]})
    >>> B = lg.BlockGGN(plane, {"a": np.array(0.0), "b": np.array(0.0)}, blocks="leaf")
    >>> B.to_dense()
    array([[10.,  0.],
           [ 0., 20.]])
    """

    point: Point
    partition: Partition = static()

    def __init__(self, objective: Objective | Point, params: Tree = None, *, blocks: Any = "layer") -> None:
        point = require_loss(as_point(objective, params, "BlockGGN"), "BlockGGN")
        self.__dict__.update(point=point, partition=partition(point.space, blocks))

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
        return BlockProducts(made.pieces, made.scale, self.point.space, self.partition, self.psd)

    def matvec(self, v: Vector) -> Vector:
        if not self.host:
            return self.prepare().matvec(v)
        total = []
        for _, indices in self.partition:
            sub = subspace(self.point.space, indices)
            leaves = self.point.space.split(v)
            part = stream_product(self.point, _Part(indices, sub), sub.join([leaves[i] for i in indices]))
            total.append(part)
        return assemble(self.point.space, self.partition, total)

    def diagonal_blocks(self) -> dict[str, LinearOperator]:
        """Each block as an operator on its own parameters, by name; they share one linearisation."""
        if self.host:
            raise ValueError("the blocks of an operator over streamed data cannot be taken apart; hold the data in a list.")
        made = self.point.linearized()
        return {
            name: BlockProducts(
                made.pieces, made.scale, subspace(self.point.space, indices), ((name, indices),), self.psd, True
            )
            for name, indices in self.partition
        }


@dataclasses.dataclass(frozen=True)
class _Part:
    """One block's product on one streamed batch; equal parts compile once."""

    indices: tuple[int, ...]
    sub: Space

    def __call__(self, term: Term, x: Vector, v: Vector) -> Any:
        piece = term.linearize(x)
        return None, piece.ggn(v, self.indices, self.sub), piece.weight


@record
class BlockProducts(LinearOperator):
    """A block GGN whose linearisations are data; ``alone`` for one block on its own space."""

    pieces: tuple[Piece, ...]
    factor: Scalar
    space: Space = static()
    partition: Partition = static()
    is_psd: bool = static()
    alone: bool = static(default=False)

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
        if self.alone:
            return self._block(self.partition[0][1], self.space, v)
        leaves, parts = self.space.split(v), []
        for _, indices in self.partition:
            sub = subspace(self.space, indices)
            parts.append(self._block(indices, sub, sub.join([leaves[i] for i in indices])))
        return assemble(self.space, self.partition, parts)

    def _block(self, indices: tuple[int, ...], sub: Space, v: Vector) -> Vector:
        return sum_products(self.backend, self.pieces, lambda piece, v: piece.ggn(v, indices, sub), v, self.factor)


def subspace(space: Space, indices: tuple[int, ...]) -> Space:
    """The space of some leaves, as a flat dict from leaf name to array."""
    ops = space.backend
    names = [space.names[i] for i in indices]
    _, order, structure = ops.flatten(dict(zip(names, indices, strict=True)))
    if tuple(order) != indices:  # frameworks that sort keys would permute the leaves: use a list instead
        _, _, structure = ops.flatten(list(indices))
    shapes = tuple(space.shapes[i] for i in indices)
    dtypes = tuple(space.dtypes[i] for i in indices)
    return Space(ops, structure, tuple(names), shapes, dtypes, space.dtype, space.device)


def assemble(space: Space, blocks: Partition, parts: list[Vector]) -> Vector:
    """The flat vector whose blocks are ``parts``."""
    leaves: list[Any] = [None] * len(space.names)
    for (_, indices), part in zip(blocks, parts, strict=True):
        for i, leaf in zip(indices, subspace(space, indices).split(part), strict=True):
            leaves[i] = leaf
    return space.join(leaves)
