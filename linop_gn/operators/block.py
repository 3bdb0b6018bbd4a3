"""Operators that act on the parts of a vector independently of each other.

The layerwise Gauss-Newton matrix is one, and so is every layerwise
preconditioner (Martens and Grosse, 2015, have the history of that choice).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..protocols import Scalar, Vector
from ..records import fill, record, static
from ..spaces import Space
from .base import LinearOperator
from .norms import root_of_squares
from .partition import LeafBlock, Partition, consecutive, named

__all__ = ["BlockDiagonal"]


@record
class BlockDiagonal(LinearOperator):
    """diag(A_1, ..., A_k).

    Parameters
    ----------
    blocks
        The operators, in order.
    domain, codomain
        The spaces that the blocks share out among them; each block takes as many
        of the following entries as it has. Left out, vectors are tuples of the
        blocks' vectors (or, flat, their concatenation); a codomain left out
        beside a domain is that domain.
    leaves
        For each block the indices of the leaves of ``domain`` that it acts on,
        in the order in which the block sees them, for blocks that are square
        but do not lie one after the other.

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
    >>> swap, double = lg.Dense(np.array([[0.0, 1.0], [1.0, 0.0]])), lg.Diagonal(np.array([2.0, 2.0]))
    >>> B = lg.BlockDiagonal((swap, double), space, leaves=((0, 2), (1,)))
    >>> B @ {"a": np.array([1.0]), "b": np.array([2.0, 3.0]), "c": np.array([4.0])}
    {'a': array([4.]), 'b': array([4., 6.]), 'c': array([1.])}
    """

    blocks: tuple[LinearOperator, ...]
    domain: Space = static(default=None)
    leaves: tuple[tuple[int, ...], ...] | None = static(default=None)
    codomain: Space = static(default=None)

    def __post_init__(self) -> None:
        blocks = tuple(self.blocks)
        _same_kind(blocks)
        domain: Any = self.domain
        codomain: Any = self.codomain
        leaves = None if self.leaves is None else tuple(tuple(map(int, group)) for group in self.leaves)
        if domain is None:
            if leaves is not None:
                raise ValueError("leaves are indices into a domain: give that as well.")
            domain = _side_by_side([block.domain for block in blocks])
            square = all(block.domain == block.codomain for block in blocks)
            codomain = domain if square else _side_by_side([block.codomain for block in blocks])
        codomain = domain if codomain is None else codomain
        _check_sizes("domain", domain, [block.domain for block in blocks])
        _check_sizes("codomain", codomain, [block.codomain for block in blocks])
        if leaves is not None:
            _check_leaves(blocks, domain, codomain, leaves)
        fill(self, blocks=blocks, domain=domain, codomain=codomain, leaves=leaves)

    @property
    def symmetric(self) -> bool:
        return all(block.symmetric for block in self.blocks)

    @property
    def psd(self) -> bool:
        return all(block.psd for block in self.blocks)

    @property
    def leaf_blocks(self) -> tuple[LeafBlock, ...] | None:
        spaces = tuple(block.domain for block in self.blocks)
        return None if self.leaves is None else named(self.domain, self.leaves, spaces)

    @property
    def partition(self) -> Partition | None:
        if self.leaves is not None or self.domain.layout is not None:
            return super().partition
        square = all(block.domain.agrees(block.codomain) for block in self.blocks)
        return consecutive([block.domain.size for block in self.blocks]) if square else None

    def matvec(self, v: Vector) -> Vector:
        parts = self._parts(v, [block.domain.size for block in self.blocks])
        return self._whole([block.apply(part) for block, part in zip(self.blocks, parts, strict=True)])

    def rmatvec(self, u: Vector) -> Vector:
        parts = self._parts(u, [block.codomain.size for block in self.blocks])
        return self._whole([block.rapply(part) for block, part in zip(self.blocks, parts, strict=True)])

    matmat, rmatmat = matvec, rmatvec

    def known_diagonal(self) -> Vector | None:
        square = all(block.shape[0] == block.shape[1] for block in self.blocks)
        parts = [block.known_diagonal() for block in self.blocks] if square else [None]
        return None if any(part is None for part in parts) else self._whole(parts)

    def known_frobenius_norm(self) -> Scalar | None:
        parts = [block.known_frobenius_norm() for block in self.blocks]
        return None if any(part is None for part in parts) else root_of_squares(self.backend, *parts)

    def known_logdet(self, damping: Scalar) -> Scalar | None:
        parts = [block.known_logdet(damping) if block.symmetric else None for block in self.blocks]
        return None if any(part is None for part in parts) else sum(parts)  # type: ignore[arg-type]

    def _parts(self, v: Vector, sizes: list[int]) -> list[Vector]:
        """Each block's entries of ``v`` (views where the framework has them)."""
        if self.leaves is None:
            return _cut(v, sizes)
        if self.domain.layout is not None:
            leaves = self.domain.split(v)
            groups = zip(self.blocks, self.leaves, strict=True)
            return [block.domain.join([leaves[i] for i in group]) for block, group in groups]
        pieces = _cut(v, [math.prod(shape) for shape in self.domain.shapes])
        return [self._concat([pieces[i] for i in group]) for group in self.leaves]

    def _whole(self, results: list[Vector]) -> Vector:
        """The vector that the blocks' products are parts of: an array of its own."""
        if self.leaves is None:
            return self._concat(results)
        if self.codomain.layout is not None:
            made: dict[int, Any] = {}
            for block, group, result in zip(self.blocks, self.leaves, results, strict=True):
                made.update(zip(group, block.codomain.split(result), strict=True))
            return self.codomain.join([made[i] for i in range(len(made))])
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


def _check_sizes(what: str, whole: Space, parts: list[Space]) -> None:
    """Whether the blocks' spaces, one after the other, have the whole's framework, dtype and entries."""
    if (parts[0].backend, parts[0].dtype) != (whole.backend, whole.dtype):
        raise TypeError(f"the blocks have the {what} {parts[0]!r}, in {whole!r}: framework and dtype must agree.")
    sizes = [part.size for part in parts]
    if sum(sizes) != whole.size:
        raise ValueError(f"the blocks have {sizes} entries, {sum(sizes)} in all, but the {what} has {whole.size}.")


def _check_leaves(
    blocks: tuple[LinearOperator, ...], domain: Space, codomain: Space, leaves: tuple[tuple[int, ...], ...]
) -> None:
    """Whether the groups of leaves share the domain out, each to a square block of its size."""
    if codomain != domain:
        raise ValueError("blocks given by leaves map the domain to itself; leave the codomain out.")
    if len(leaves) != len(blocks):
        raise ValueError(f"there are {len(blocks)} blocks, but leaves are given for {len(leaves)}.")
    if sorted(i for group in leaves for i in group) != list(range(len(domain.names))):
        raise ValueError(
            f"the groups of leaves {leaves} must hold each index 0 .. {len(domain.names) - 1} once: "
            f"the domain's leaves are {list(domain.names)}."
        )
    for number, (group, block) in enumerate(zip(leaves, blocks, strict=True)):
        wanted = sum(math.prod(domain.shapes[i]) for i in group)
        if block.shape != (wanted, wanted):
            named = [domain.names[i] for i in group]
            raise ValueError(f"block {number} is {block!r}, but its leaves {named} have {wanted} entries.")
