"""The block-diagonal Gauss-Newton operator: layers without their interactions.

    B = blockdiag(J_1^T H_L J_1, ..., J_L^T H_L J_L)

where J_l is the Jacobian in the parameters of block l alone. A product is one
JVP and one VJP *for each block*, on one shared linearisation, each pruned to
what lies above its block: 1.3 gradients for three blocks, 3.6 for nine. (One
batched pass over all blocks would cost four times as much.)
"""

from __future__ import annotations

import dataclasses

from ..operators.base import LinearOperator
from ..operators.sections import Section, of_leaves
from ..protocols import Scalar, Tree, Vector
from ..records import record, static
from ..spaces import Space
from .ggn import require_loss
from .hessian import as_point
from .objective import Objective
from .partition import Block, Blocks, Partition, partition
from .pieces import Blockwise, OneBlock, Piece, sum_products
from .point import Point, Sums
from .term import Term

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

    def __init__(self, objective: Objective | Point, params: Tree = None, *, blocks: Blocks = "layer") -> None:
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
        return BlockGGNProducts(made.pieces, made.scale, self.point.space, self.partition, self.psd)

    @property
    def sections(self) -> tuple[Section, ...]:
        return _sections(self.point.space, self.partition)

    def matvec(self, v: Vector) -> Vector:
        if not self.host:
            return self.prepare().matvec(v)
        return self.point.stream(_StreamedBlocks(_product(self.partition)), v).gradient

    def diagonal_blocks(self) -> dict[str, LinearOperator]:
        """Each block as an operator on its own parameters, by name; they share one linearisation."""
        if self.host:
            raise ValueError(
                "the blocks of an operator over streamed data cannot be taken apart; hold the data in a list."
            )
        made = self.point.linearized()
        return {block.name: BlockProducts(made.pieces, made.scale, block, self.psd) for block in self.partition}


def _product(blocks: Partition) -> Blockwise:
    return Blockwise(tuple(block.leaves for block in blocks))


def _sections(space: Space, blocks: Partition) -> tuple[Section, ...]:
    return of_leaves(space, tuple((block.name, block.leaves) for block in blocks))


@dataclasses.dataclass(frozen=True)
class _StreamedBlocks:
    """All blocks' products on one streamed batch, linearised once; equal ones are one compiled program."""

    product: Blockwise

    def __call__(self, term: Term, x: Vector, v: Vector) -> Sums:
        piece = term.linearize(x)
        return None, piece.apply(self.product, v), piece.weight


@record
class BlockGGNProducts(LinearOperator):
    """A block GGN whose linearisations are data."""

    pieces: tuple[Piece, ...]
    factor: Scalar
    space: Space = static()
    partition: Partition = static()
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

    @property
    def sections(self) -> tuple[Section, ...]:
        return _sections(self.space, self.partition)

    def matvec(self, v: Vector) -> Vector:
        return sum_products(self.backend, self.pieces, _product(self.partition), v, self.factor)


@record
class BlockProducts(LinearOperator):
    """One block of a GGN, on the space of its own leaves."""

    pieces: tuple[Piece, ...]
    factor: Scalar
    block: Block = static()
    is_psd: bool = static()

    @property
    def domain(self) -> Space:
        return self.block.space

    @property
    def symmetric(self) -> bool:
        return True

    @property
    def psd(self) -> bool:
        return self.is_psd

    def matvec(self, v: Vector) -> Vector:
        return sum_products(self.backend, self.pieces, OneBlock(self.block.leaves), v, self.factor)
