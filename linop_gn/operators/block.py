"""Operators that act on the parts of a vector independently of each other.

The layerwise Gauss-Newton matrix is one, and so is every layerwise
preconditioner (Martens and Grosse, 2015, have the history of that choice).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ..protocols import Vector
from ..records import record, static
from ..spaces import Space
from .base import LinearOperator

__all__ = ["BlockDiagonal"]


@record
class BlockDiagonal(LinearOperator):
    """diag(A_1, ..., A_k).

    Parameters
    ----------
    blocks
        The operators, in order.
    domain
        The space that the blocks share out among them. Left out, vectors are
        tuples of the blocks' vectors (or their concatenation); blocks need not
        be square then.
    leaves
        For each block the indices of the leaves of ``domain`` that it acts on,
        in the order in which the block sees them. Left out, each block takes as
        many of the following entries as it has.

    Raises
    ------
    ValueError
        If the blocks do not cover the domain, each entry once.
    TypeError
        If the blocks differ in framework or dtype.

    Examples
    --------
    >>> import numpy as np, linop_gn as lg
    >>> A = lg.BlockDiagonal((lg.Dense(np.array([[0.0, 1.0], [1.0, 0.0]])), lg.Diagonal(np.array([5.0]))))
    >>> A @ np.array([1.0, 2.0, 3.0])
    array([ 2.,  1., 15.])
    >>> A @ (np.array([1.0, 2.0]), np.array([3.0]))
    (array([2., 1.]), array([15.]))

    Blocks that share the leaves of a tree out among them:

    >>> space = lg.Space.of({"a": np.zeros(1), "b": np.zeros(2), "c": np.zeros(1)})
    >>> B = lg.BlockDiagonal((lg.Dense(np.eye(2)[::-1]), lg.Identity(lg.Space.flat(2, np.zeros(2)))), space, ((0, 2), (1,)))
    >>> B @ {"a": np.array([1.0]), "b": np.array([2.0, 3.0]), "c": np.array([4.0])}
    {'a': array([4.]), 'b': array([2., 3.]), 'c': array([1.])}
    """

    blocks: tuple[LinearOperator, ...]
    domain: Space = static(default=None)
    leaves: tuple[tuple[int, ...], ...] = static(default=None)
    codomain: Space = static(default=None)

    def __post_init__(self) -> None:
        blocks = tuple(self.blocks)
        _same_kind(blocks)
        domain, codomain = self.domain, self.codomain
        if domain is None:
            domain = _side_by_side([block.domain for block in blocks])
            square = all(block.domain == block.codomain for block in blocks)
            codomain = domain if square else _side_by_side([block.codomain for block in blocks])
        leaves = None if self.leaves is None else tuple(tuple(map(int, group)) for group in self.leaves)
        if codomain is None:
            _check_cover(blocks, domain, leaves)
            codomain = domain
        object.__setattr__(self, "blocks", blocks)
        object.__setattr__(self, "domain", domain)
        object.__setattr__(self, "codomain", codomain)
        object.__setattr__(self, "leaves", leaves)

    @property
    def symmetric(self) -> bool:
        return all(block.symmetric for block in self.blocks)

    @property
    def psd(self) -> bool:
        return all(block.psd for block in self.blocks)

    def matvec(self, v: Vector) -> Vector:
        parts = self._parts(v, [block.domain.size for block in self.blocks])
        return self._whole([block.matvec(part) for block, part in zip(self.blocks, parts, strict=True)])

    def rmatvec(self, u: Vector) -> Vector:
        parts = self._parts(u, [block.codomain.size for block in self.blocks])
        return self._whole([block.rmatvec(part) for block, part in zip(self.blocks, parts, strict=True)])

    def matmat(self, v: Vector) -> Vector:
        parts = self._parts(v, [block.domain.size for block in self.blocks])
        return self._whole([block.matmat(part) for block, part in zip(self.blocks, parts, strict=True)])

    def rmatmat(self, u: Vector) -> Vector:
        parts = self._parts(u, [block.codomain.size for block in self.blocks])
        return self._whole([block.rmatmat(part) for block, part in zip(self.blocks, parts, strict=True)])

    def _parts(self, v: Vector, sizes: list[int]) -> list[Vector]:
        """Each block's entries of ``v`` (views where the framework has them)."""
        if self.leaves is None:
            return _cut(v, sizes)
        pieces = _cut(v, [math.prod(shape) for shape in self.domain.shapes])
        return [self._concat([pieces[i] for i in group]) for group in self.leaves]

    def _whole(self, results: list[Vector]) -> Vector:
        """The vector that the blocks' products are parts of: an array of its own."""
        if self.leaves is None:
            return self._concat(results)
        sizes = [math.prod(shape) for shape in self.domain.shapes]
        pieces = {
            i: piece
            for group, result in zip(self.leaves, results, strict=True)
            for i, piece in zip(group, _cut(result, [sizes[i] for i in group]), strict=True)
        }
        return self._concat([pieces[i] for i in range(len(sizes))])

    def _concat(self, pieces: list[Vector]) -> Vector:
        concat: Callable[..., Vector] = self.backend.namespace().concat
        return pieces[0] if len(pieces) == 1 else concat(pieces, axis=0)


def _cut(v: Vector, sizes: list[int]) -> list[Vector]:
    pieces, start = [], 0
    for size in sizes:
        pieces.append(v[start : start + size, ...])
        start += size
    return pieces


def _same_kind(blocks: tuple[LinearOperator, ...]) -> None:
    if not blocks:
        raise ValueError("a block-diagonal operator needs at least one block.")
    for block in blocks:
        if not isinstance(block, LinearOperator):
            raise TypeError(f"a block is a {type(block).__qualname__}, not a linear operator; wrap matrices in Dense.")
        for space in (block.domain, block.codomain):
            first = blocks[0].domain
            if (space.backend, space.dtype) != (first.backend, first.dtype):
                raise TypeError(f"blocks must share framework and dtype, but {block!r} stands beside {blocks[0]!r}.")
            if None not in (space.device, first.device) and space.device != first.device:
                raise ValueError(f"blocks lie on {first.device} and {space.device}; move them to one device.")


def _side_by_side(spaces: list[Space]) -> Space:
    """The tuples of these spaces' vectors."""
    backend = spaces[0].backend
    names, _, structure = backend.flatten(
        tuple(backend.unflatten(space.structure, [0.0] * len(space.names)) for space in spaces)
    )
    shapes = tuple(shape for space in spaces for shape in space.shapes)
    dtypes = tuple(dtype for space in spaces for dtype in space.dtypes)
    device = next((space.device for space in spaces if space.device is not None), None)
    return Space(backend, structure, tuple(names), shapes, dtypes, spaces[0].dtype, device)


def _check_cover(
    blocks: tuple[LinearOperator, ...], domain: Space, leaves: tuple[tuple[int, ...], ...] | None
) -> None:
    for block in blocks:
        if not block.domain.agrees(block.codomain):
            raise ValueError(f"blocks of a given domain must be square, got {block!r}.")
    sizes = [block.domain.size for block in blocks]
    first = blocks[0].domain
    if (first.backend, first.dtype) != (domain.backend, domain.dtype):
        raise TypeError(f"the blocks act on {first!r}, the domain is {domain!r}: framework and dtype must agree.")
    if leaves is None:
        if sum(sizes) != domain.size:
            raise ValueError(f"the blocks have {sizes} entries, {sum(sizes)} in all, but the domain has {domain.size}.")
        return
    if len(leaves) != len(blocks):
        raise ValueError(f"there are {len(blocks)} blocks, but leaves are given for {len(leaves)}.")
    if sorted(i for group in leaves for i in group) != list(range(len(domain.names))):
        raise ValueError(
            f"the groups of leaves {leaves} must hold each index 0 .. {len(domain.names) - 1} once: "
            f"the domain's leaves are {list(domain.names)}."
        )
    for number, (group, size) in enumerate(zip(leaves, sizes, strict=True)):
        wanted = sum(math.prod(domain.shapes[i]) for i in group)
        if wanted != size:
            named = [domain.names[i] for i in group]
            raise ValueError(f"block {number} has {size} entries, but its leaves {named} have {wanted}.")
