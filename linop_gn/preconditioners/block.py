"""Block Jacobi: the inverse of the diagonal blocks of the damped operator.

For a Gauss-Newton operator these are the blocks of the layerwise one, whose
products are pruned to what lies above each block. A small block becomes a
matrix, one product for each of its entries, and is factored once as V diag(d)
V^T: another damping then costs nothing, where a Cholesky factorisation would
have to be done again for each. A large block gets a Nyström sketch.
"""

from __future__ import annotations

from typing import Any

from ..arguments import whole
from ..curvature.at_point import GGN, BlockGGN, block_products
from ..curvature.partition import Blocks, partition, whole_leaves
from ..draws import check_seed
from ..operators.base import LinearOperator
from ..operators.block import BlockDiagonal
from ..operators.damped import undamped
from ..protocols import Array, Scalar, Vector
from ..records import record, static
from ..spaces import Space, wide
from .base import Checked
from .nystrom import sketch
from .spectral import spectral_inverse

__all__ = ["BlockJacobi"]


@record
class BlockJacobi(Checked):
    """The inverse of the damped diagonal blocks. The operator is to be known as symmetric.

    Parameters
    ----------
    blocks
        A partition of the leaves, as for :class:`~linop_gn.BlockGGN` ("layer", "leaf", a pattern, ...).
        None: the operator's own blocks where it has some of whole leaves, otherwise by layer.
    dense
        Blocks of up to so many entries are factored, with as many products.
    rank, seed
        Of the sketch of larger blocks: so many products. They have to be positive semi-definite.

    >>> import numpy as np, linop_gn as lg
    >>> two = lg.Space.of({"a": np.zeros(2), "b": np.zeros(1)})
    >>> A = lg.Dense(np.array([[2.0, 1.0, 0.1], [1.0, 3.0, 0.0], [0.1, 0.0, 4.0]]), psd=True, domain=two)
    >>> lg.preconditioners.BlockJacobi()(lg.Damped(A, 1.0)).to_dense().round(4)
    array([[ 0.3636, -0.0909,  0.    ],
           [-0.0909,  0.2727,  0.    ],
           [ 0.    ,  0.    ,  0.2   ]])
    """

    blocks: Blocks | None = static(default=None)
    dense: int = static(default=256)
    rank: int = static(default=20)
    seed: Scalar = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "dense", whole("BlockJacobi", "dense", self.dense, 0))
        object.__setattr__(self, "rank", whole("BlockJacobi", "rank", self.rank, 1))
        check_seed("BlockJacobi", self.seed)

    def prepare(self, operator: LinearOperator) -> Any:
        inner, _ = undamped(operator)
        if not inner.symmetric:
            raise ValueError(f"BlockJacobi needs a symmetric operator, and {inner!r} is not known to be.")
        blocks, leaves = self._blocks(inner)
        spectra = tuple(self._spectrum(block) for block in blocks)
        return Spectra(spectra, tuple(block.domain for block in blocks), leaves)

    def finish(self, prepared: Any, operator: LinearOperator) -> LinearOperator:
        damping = undamped(operator)[1]
        parts = tuple(
            spectral_inverse(space, vectors, values, damping, whole=space.size <= max(self.dense, self.rank))
            for space, (vectors, values) in zip(prepared.spaces, prepared.pairs, strict=True)
        )
        return BlockDiagonal(parts, operator.domain, prepared.leaves)

    def cost(self, operator: LinearOperator) -> tuple[int, int]:
        """Products with blocks, and numbers held at a time, that :meth:`prepare` takes."""
        sizes = [block.domain.size for block in self._blocks(undamped(operator)[0])[0]]
        ranks = [size if size <= self.dense else min(self.rank, size) for size in sizes]
        return sum(ranks), 4 * sum(size * rank for size, rank in zip(sizes, ranks, strict=True))

    def _spectrum(self, block: LinearOperator) -> tuple[Array, Array]:
        if block.domain.size <= self.dense:
            return block.backend.call(_eigen, block.prepare())
        if not block.psd:
            raise ValueError(
                f"BlockJacobi: the block {block!r} is too large to be factored (dense={self.dense}) and is not known "
                "to be positive semi-definite, which a sketch needs. Raise dense=, cut it into smaller blocks, or use "
                "the Gauss-Newton operator."
            )
        return sketch(block, self.rank, self.seed)

    def _blocks(self, inner: LinearOperator) -> tuple[list[LinearOperator], tuple[tuple[int, ...], ...] | None]:
        """The diagonal blocks, and the leaves that each acts on."""
        if self.blocks is None and isinstance(inner, BlockDiagonal):
            return list(inner.blocks), inner.leaves
        own = inner.leaf_blocks if inner.domain.layout else whole_leaves(inner.domain, inner.partition or ())
        cut = (self.blocks is None and own) or partition(inner.domain, "layer" if self.blocks is None else self.blocks)
        leaves = tuple(block.leaves for block in cut)
        if isinstance(inner, (GGN, BlockGGN)) and not inner.host:
            return block_products(inner, cut), leaves
        ready = inner.prepare()
        return [Restricted(ready, block.leaves, block.space, ready.psd) for block in cut], leaves


@record
class Spectra:
    """Eigenvectors and eigenvalues of each block, and where the block lies."""

    pairs: tuple[tuple[Array, Array], ...]
    spaces: tuple[Space, ...] = static()
    leaves: tuple[tuple[int, ...], ...] | None = static()


def _eigen(block: LinearOperator) -> tuple[Array, Array]:
    ops, space = block.backend, block.domain
    space.require_even("a factored block")
    matrix = ops.cast(block.matmat(ops.identity(space.size, space.zeros())), wide(space.dtype))
    values, vectors, _ = ops.eigh((matrix + matrix.T) / 2)
    values = values + 0.0 * ops.namespace().sum(matrix)  # a matrix that is not finite shows
    return ops.cast(vectors, space.dtype), ops.cast(values, space.dtype)


@record
class Restricted(LinearOperator):
    """A diagonal block of a symmetric operator: some leaves in, the same leaves out."""

    operator: LinearOperator
    leaves: tuple[int, ...] = static()
    domain: Space = static(default=None)
    psd: bool = static(default=False)
    symmetric = True

    def matvec(self, v: Vector) -> Vector:
        whole, spread = self.operator.domain, self.operator.domain.split(self.operator.domain.zeros())
        for leaf, part in zip(self.leaves, self.domain.split(v), strict=True):
            spread[leaf] = part
        product = whole.split(self.operator.matvec(whole.join(spread)))
        return self.domain.join([product[leaf] for leaf in self.leaves])
