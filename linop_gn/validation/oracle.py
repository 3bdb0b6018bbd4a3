"""The matrix that an operator ought to be, part by part, in float64 NumPy.

Sums, multiples, products, adjoints, damping and blocks are SciPy's, whose linear
operators are told here what the parts are; what was made at a point comes from
:class:`~.matrices.Matrices`. The block-diagonal Gauss-Newton matrix is the whole
one with zeros off its blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from operator import add, matmul
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import LinearOperator as Matrix
from scipy.sparse.linalg import aslinearoperator

from ..curvature.at_point import GGN, BlockGGN, Hessian, Jacobian, LossHessian
from ..curvature.point import Point
from ..operators.algebra import Adjoint, Product, Scaled, Sum
from ..operators.base import LinearOperator
from ..operators.block import BlockDiagonal
from ..operators.damped import Damped, Identity
from ..operators.dense import Dense
from ..operators.diagonal import Diagonal
from ..operators.low_rank import LowRank
from ..spaces import Space
from .data import host
from .matrices import Matrices
from .measure import NotApplicableError

__all__ = ["Oracle", "block_numbers"]

NDArray = np.ndarray[Any, Any]
Map = Callable[[NDArray], NDArray]


class Oracle:
    """Makes matrices of operators; what is worked out at a point is shared by all of them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._points: dict[int, Matrices] = {}

    def at(self, point: Point) -> Matrices:
        """The derivatives at a point."""
        if id(point) not in self._points:
            self._points[id(point)] = Matrices(point, self.limit)
        return self._points[id(point)]

    @property
    def uncertainty(self) -> float:
        """The largest relative uncertainty of a difference that was used."""
        return max((at.uncertainty for at in self._points.values()), default=0.0)

    @property
    def note(self) -> str:
        """Why the oracle is not in float64, where it isn't."""
        return "; ".join(dict.fromkeys(at.note for at in self._points.values() if at.note))

    def matrix(self, A: LinearOperator) -> Matrix:
        """The matrix of A, as ``matmat`` and ``rmatmat``; NotApplicableError where a part's definition is not known."""
        match A:
            case GGN():
                return _symmetric(A, self.at(A.point).gauss_newton)
            case BlockGGN():
                whole = self.at(A.point).gauss_newton
                return _symmetric(A, partial(_on_blocks, whole, block_numbers(A)))
            case Hessian():
                return _symmetric(A, self.at(A.point).hessian)
            case Jacobian():
                at = self.at(A.point)
                return _matrix(A, partial(_of_one_batch, at, at.push), partial(_of_one_batch, at, at.pull))
            case LossHessian():
                at = self.at(A.point)
                return at.twin.scale * _symmetric(A, partial(_of_one_batch, at, at.bend))
            case Sum():
                return self.matrix(A.left) + self.matrix(A.right)
            case Scaled():
                return float(A.scalar) * self.matrix(A.operator)
            case Damped():
                return self.matrix(A.operator) + float(A.damping) * _symmetric(A, np.copy)
            case Adjoint():
                return self.matrix(A.operator).T
            case Product():
                return reduce(matmul, map(self.matrix, A.factors))
            case BlockDiagonal():
                return self._blocks(A)
            case Identity():
                return _symmetric(A, np.copy)
            case Dense():
                return aslinearoperator(host(A.domain, A.matrix))
            case Diagonal():
                return aslinearoperator(sparse.diags_array(host(A.domain, A.values)))
            case LowRank():
                U = host(A.domain, A.factor)
                M = np.ones(U.shape[1]) if A.middle is None else host(A.domain, A.middle)
                return aslinearoperator(U) @ aslinearoperator((np.diag(M) if M.ndim == 1 else M) @ U.T)
        raise NotApplicableError(f"what this {type(A).__name__} ought to be is not known")

    def _blocks(self, A: BlockDiagonal) -> Matrix:
        """The sum of R_i A_i C_i, where C_i picks the block's entries and R_i puts its products where they belong."""
        rows = _places(A.codomain, A.leaves, [block.codomain.size for block in A.blocks])
        columns = _places(A.domain, A.leaves, [block.domain.size for block in A.blocks])
        spread, pick = (sparse.eye_array(size, format="csr") for size in A.shape)
        parts = zip(rows, map(self.matrix, A.blocks), columns, strict=True)
        return reduce(add, (aslinearoperator(spread[:, r]) @ B @ aslinearoperator(pick[c]) for r, B, c in parts))


def _matrix(A: LinearOperator, product: Map, transposed: Map) -> Matrix:
    return Matrix(A.shape, matvec=product, rmatvec=transposed, matmat=product, rmatmat=transposed, dtype=float)


def _symmetric(A: LinearOperator, product: Map) -> Matrix:
    return _matrix(A, product, product)


def _of_one_batch(at: Matrices, product: Callable[..., NDArray], V: NDArray) -> NDArray:
    ((term, z),) = at.batches()
    return product(0, term, z, V)


def _places(space: Space, leaves: Any, sizes: list[int]) -> list[NDArray]:
    """Which entries of a vector each block of a block-diagonal operator has."""
    if leaves is None:
        return list(np.split(np.arange(space.size), np.cumsum(sizes)[:-1]))
    parts = [np.arange(space.size)[part] for part in space.slices.values()]
    return [np.concatenate([parts[i] for i in group]) for group in leaves]


def block_numbers(A: BlockGGN) -> NDArray:
    """The number of the block that each entry belongs to."""
    numbers, parts = np.zeros(A.domain.size, dtype=int), list(A.domain.slices.values())
    for number, block in enumerate(A.blocks):
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
