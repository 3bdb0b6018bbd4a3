"""The matrices of operators, for solvers that factor them: whole, by blocks, or in double precision.

A matrix is read off by one product with n columns. Where the operator knows its
blocks, one column serves all of them: the entries of block i of A e, with e the
sum of the blocks' j-th unit vectors, are the j-th column of that block. So the
matrices of all blocks take as many products as the largest one has columns.

In double precision the operator is taken apart: sums, multiples and products
are formed in float64 from the matrices of what they are made of. The product
J^T J loses its definiteness in float32, where its eigenvalues are rounded by
eps ||J||^2; formed in float64 from a J in float32 it keeps it.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

from ..operators.algebra import Adjoint, Product, Scaled, Sum
from ..operators.base import LinearOperator
from ..operators.damped import Damped, Identity, partition_of
from ..operators.dense import Dense
from ..operators.partition import Block, Partition
from ..protocols import Array, Backend, Vector
from ..records import fields, rebuild

__all__ = ["Matrices", "blocks_of", "cut", "join", "largest_block", "matrices", "with_matrices"]


class Matrices(NamedTuple):
    """The diagonal blocks of an operator, or the one block that it is."""

    blocks: list[Array]
    partition: Partition
    products: int
    """With the operator, or with those that it is made of."""


def with_matrices(operator: LinearOperator) -> LinearOperator:
    """The operator prepared, and a matrix where it has a shorter way to it than products."""
    if isinstance(operator, Damped):
        return rebuild(Damped, fields(operator) | {"operator": with_matrices(operator.operator)})
    known = operator.known_matrix()
    if known is None:
        return operator.prepare()
    kinds = {"symmetric": operator.symmetric, "psd": operator.psd}
    return rebuild(Dense, {"matrix": known, **kinds, "domain": operator.domain, "codomain": operator.codomain})


def blocks_of(operator: LinearOperator) -> Partition:
    """The operator's blocks, damped or not; all of it as one where it knows of none."""
    return partition_of(operator) or (Block("", ((0, operator.domain.size),)),)


def largest_block(operator: LinearOperator) -> int:
    """The number of rows of the largest matrix that :func:`matrices` makes."""
    return max(block.size for block in blocks_of(operator))


def matrices(ops: Backend, operator: LinearOperator, like: Vector, double: bool) -> Matrices:
    """The blocks' matrices, in the dtype of ``like`` but at least float32, or in float64."""
    partition = blocks_of(operator)
    if double and len(partition) == 1:
        matrix, products = _in_double(ops, operator, like)
        return Matrices([matrix], partition, products)
    width = largest_block(operator)
    unit = ops.identity(width, like)
    ranges = _ranges(partition)
    probe = unit if len(partition) == 1 else _concat(ops, [unit[first : first + b - a, :] for a, b, _, first in ranges])
    columns = ops.gathered(operator.apply(operator.domain.from_whole(probe)))
    dtype = "float64" if double else "float32"
    if double or ops.describe(columns)[1] in ("float16", "bfloat16"):
        columns = ops.cast(columns, dtype)
    blocks = [
        _concat(ops, [columns[a:b, : block.size] for a, b in block.ranges]) if len(partition) > 1 else columns
        for block in partition
    ]
    return Matrices(blocks, partition, width)


def _ranges(partition: Partition) -> list[tuple[int, int, int, int]]:
    """(start, stop, block, place in the block) of all ranges of entries, in the order of the vector."""
    ranges = []
    for number, block in enumerate(partition):
        first = 0
        for start, stop in block.ranges:
            ranges.append((start, stop, number, first))
            first += stop - start
    return sorted(ranges)


def cut(ops: Backend, v: Vector, partition: Partition) -> list[Vector]:
    """Each block's entries of ``v``."""
    if len(partition) == 1:
        return [v]
    return [_concat(ops, [v[start:stop, ...] for start, stop in block.ranges]) for block in partition]


def join(ops: Backend, parts: list[Vector], partition: Partition) -> Vector:
    """The vector that has these blocks."""
    if len(partition) == 1:
        return parts[0]
    return _concat(ops, [parts[number][first : first + b - a, ...] for a, b, number, first in _ranges(partition)])


def _concat(ops: Backend, pieces: list[Any]) -> Any:
    return pieces[0] if len(pieces) == 1 else ops.namespace().concat(pieces, axis=0)


def _in_double(ops: Backend, whole: LinearOperator, like: Vector) -> tuple[Array, int]:
    """The operator's matrix in float64, and the products that it took; parts that are met again are made once."""
    made: dict[int, Array] = {}
    products = 0

    def of(operator: LinearOperator) -> Array:
        if id(operator) not in made:
            made[id(operator)] = new(operator)
        return made[id(operator)]

    def new(operator: LinearOperator) -> Array:
        nonlocal products
        if isinstance(operator, Damped):
            matrix = of(operator.operator)
            return matrix + operator.damping * ops.identity(matrix.shape[0], matrix)
        if isinstance(operator, Sum):
            return of(operator.left) + of(operator.right)
        if isinstance(operator, Scaled):
            return operator.scalar * of(operator.operator)
        if isinstance(operator, Adjoint):
            return of(operator.operator).T
        if isinstance(operator, Product):
            return reduce(
                lambda matrix, factor: of(factor) @ matrix, operator.factors[-2::-1], of(operator.factors[-1])
            )
        if isinstance(operator, Dense):
            return ops.cast(operator.matrix, "float64")
        unit = ops.identity(operator.domain.size, like)
        if isinstance(operator, Identity):
            return ops.cast(unit, "float64")
        products += operator.domain.size
        columns = operator.apply(operator.domain.from_whole(ops.cast(unit, operator.dtype)))
        return ops.cast(ops.gathered(columns), "float64")

    return of(whole), products
