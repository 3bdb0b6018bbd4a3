"""The matrix that an operator ought to be, part by part, in float64 NumPy.

Sums, multiples, products, adjoints, damping and blocks are worked out by the rules
of matrices; what was made at a point comes from :class:`~.at_point.AtPoint`. The
block-diagonal Gauss-Newton matrix is the whole one with zeros off its blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, singledispatchmethod
from typing import Any, NamedTuple

import numpy as np

from ..curvature.block_ggn import BlockGGN
from ..curvature.ggn import GGN
from ..curvature.hessian import Hessian
from ..curvature.jacobian import Jacobian, LossHessian
from ..curvature.partition import Partition
from ..curvature.point import Point
from ..operators.algebra import Adjoint, Product, Scaled, Sum
from ..operators.base import LinearOperator
from ..operators.block import BlockDiagonal
from ..operators.damped import Damped, Identity
from ..operators.dense import Dense
from ..operators.diagonal import Diagonal
from ..operators.low_rank import LowRank
from ..spaces import Space
from .at_point import AtPoint
from .measure import NotApplicableError
from .vectors import host

__all__ = ["Matrix", "Oracle"]

NDArray = np.ndarray[Any, Any]
Map = Callable[[NDArray], NDArray]


class Matrix(NamedTuple):
    """A V and A^T U for host columns."""

    apply: Map
    apply_transposed: Map

    @classmethod
    def symmetric(cls, apply: Map) -> Matrix:
        return cls(apply, apply)

    @classmethod
    def dense(cls, values: NDArray) -> Matrix:
        return cls(lambda V: values @ V, lambda U: values.T @ U)


class Oracle:
    """Makes matrices of operators; what is worked out at a point is shared by all of them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._points: dict[int, AtPoint] = {}

    def at(self, point: Point) -> AtPoint:
        """The derivatives at a point."""
        if id(point) not in self._points:
            self._points[id(point)] = AtPoint(point, self.limit)
        return self._points[id(point)]

    @property
    def uncertainty(self) -> float:
        """The largest relative uncertainty of a difference that was used."""
        return max((point.uncertainty for point in self._points.values()), default=0.0)

    @property
    def note(self) -> str:
        """Why the oracle is not in float64, where it isn't."""
        return "; ".join(dict.fromkeys(point.note for point in self._points.values() if point.note))

    @singledispatchmethod
    def matrix(self, operator: LinearOperator) -> Matrix:
        """The matrix of ``operator``; NotApplicableError if there is a part whose definition is not known."""
        raise NotApplicableError(f"what a {type(operator).__name__} ought to be is not known")

    @matrix.register
    def _(self, operator: GGN) -> Matrix:
        return Matrix.symmetric(self.at(operator.point).gauss_newton)

    @matrix.register
    def _(self, operator: BlockGGN) -> Matrix:
        blocks = _block_numbers(operator.domain, operator.partition)
        return Matrix.symmetric(partial(_on_blocks, self.at(operator.point).gauss_newton, blocks))

    @matrix.register
    def _(self, operator: Hessian) -> Matrix:
        return Matrix.symmetric(self.at(operator.point).hessian)

    @matrix.register
    def _(self, operator: Jacobian) -> Matrix:
        at = self.at(operator.point)

        def product(V: NDArray) -> NDArray:
            ((term, z),) = at.batches()
            return at.push(0, term, z, V)

        def transposed(U: NDArray) -> NDArray:
            ((term, z),) = at.batches()
            return at.pull(0, term, z, U)

        return Matrix(product, transposed)

    @matrix.register
    def _(self, operator: LossHessian) -> Matrix:
        at = self.at(operator.point)

        def product(Z: NDArray) -> NDArray:
            ((term, z),) = at.batches()
            return at.twin.scale * at.bend(0, term, z, Z)

        return Matrix.symmetric(product)

    @matrix.register
    def _(self, operator: Sum) -> Matrix:
        left, right = self.matrix(operator.left), self.matrix(operator.right)
        return Matrix(
            lambda V: left.apply(V) + right.apply(V), lambda U: left.apply_transposed(U) + right.apply_transposed(U)
        )

    @matrix.register
    def _(self, operator: Scaled) -> Matrix:
        inner, factor = self.matrix(operator.operator), float(operator.factor)
        return Matrix(lambda V: factor * inner.apply(V), lambda U: factor * inner.apply_transposed(U))

    @matrix.register
    def _(self, operator: Damped) -> Matrix:
        inner, damping = self.matrix(operator.operator), float(operator.damping)
        return Matrix(lambda V: inner.apply(V) + damping * V, lambda U: inner.apply_transposed(U) + damping * U)

    @matrix.register
    def _(self, operator: Adjoint) -> Matrix:
        inner = self.matrix(operator.operator)
        return Matrix(inner.apply_transposed, inner.apply)

    @matrix.register
    def _(self, operator: Product) -> Matrix:
        factors = [self.matrix(factor) for factor in operator.factors]

        def product(V: NDArray) -> NDArray:
            for factor in reversed(factors):
                V = factor.apply(V)
            return V

        def transposed(U: NDArray) -> NDArray:
            for factor in factors:
                U = factor.apply_transposed(U)
            return U

        return Matrix(product, transposed)

    @matrix.register
    def _(self, operator: BlockDiagonal) -> Matrix:
        blocks = [self.matrix(block) for block in operator.blocks]
        rows = _places(operator.codomain, operator.leaves, [block.codomain.size for block in operator.blocks])
        columns = _places(operator.domain, operator.leaves, [block.domain.size for block in operator.blocks])

        def spread(maps: list[Map], source: list[NDArray], target: list[NDArray], size: int, V: NDArray) -> NDArray:
            out = np.zeros((size, V.shape[1]))
            for function, s, t in zip(maps, source, target, strict=True):
                out[t] = function(V[s])
            return out

        m, n = operator.shape
        return Matrix(
            partial(spread, [block.apply for block in blocks], columns, rows, m),
            partial(spread, [block.apply_transposed for block in blocks], rows, columns, n),
        )

    @matrix.register
    def _(self, operator: Identity) -> Matrix:
        return Matrix.symmetric(np.copy)

    @matrix.register
    def _(self, operator: Dense) -> Matrix:
        return Matrix.dense(host(operator.domain, operator.matrix))

    @matrix.register
    def _(self, operator: Diagonal) -> Matrix:
        values = host(operator.domain, operator.values)
        return Matrix.symmetric(lambda V: values[:, None] * V)

    @matrix.register
    def _(self, operator: LowRank) -> Matrix:
        U = host(operator.domain, operator.factor)
        M = np.ones(U.shape[1]) if operator.middle is None else host(operator.domain, operator.middle)
        middle = np.diag(M) if M.ndim == 1 else M
        return Matrix.symmetric(lambda V: U @ (middle @ (U.T @ V)))


def _places(space: Space, leaves: Any, sizes: list[int]) -> list[NDArray]:
    """Which entries of a vector each block of a block-diagonal operator has."""
    if leaves is None:
        return list(np.split(np.arange(space.size), np.cumsum(sizes)[:-1]))
    parts = [np.arange(space.size)[part] for part in space.blocks.values()]
    return [np.concatenate([parts[i] for i in group]) for group in leaves]


def _block_numbers(space: Space, partition: Partition) -> NDArray:
    """The number of the block that each entry belongs to."""
    numbers, parts = np.zeros(space.size, dtype=int), list(space.blocks.values())
    for number, block in enumerate(partition):
        for i in block.leaves:
            numbers[parts[i]] = number
    return numbers


def _on_blocks(product: Map, blocks: NDArray, V: NDArray) -> NDArray:
    """The sum over blocks of P product(P V), with P the projector on a block; one call with all columns but zeros."""
    masks = [blocks == number for number in range(blocks.max() + 1)]
    parts = [(j, mask) for mask in masks for j in range(V.shape[1]) if V[mask, j].any()]
    total = np.zeros_like(V)
    if parts:
        images = product(np.stack([np.where(mask, V[:, j], 0.0) for j, mask in parts], axis=1))
        for (j, mask), image in zip(parts, images.T, strict=True):
            total[mask, j] += image[mask]
    return total
