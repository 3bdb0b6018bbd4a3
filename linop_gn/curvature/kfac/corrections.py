"""The eigenvalues of EKFAC: those of the operator's own block in the eigenvectors U, W of its Kronecker factors.

With P_nc as in :mod:`~linop_gn.curvature.kfac.sums`, diag((U (x) W)^T G (U (x) W)) = sum_nc (U^T P_nc W)^2: no other
values are nearer to G (George et al., *Fast approximate natural gradient descent in a Kronecker-factored eigenbasis*,
2018).
"""

from __future__ import annotations

from typing import Any

from ...protocols import Array, Vector
from ..layers.batch import Batch
from ..layers.layout import Layout, Plan, Settings
from ..layers.squares import sum_of_squares
from ..term import Term
from .batch import evaluated, over_columns

__all__ = ["corrections"]


def corrections(settings: Settings, term: Term, x: Vector, *vectors: Array) -> tuple[tuple[Any, ...], Layout]:
    """(None, the sums of a batch for the values of linear blocks in other eigenvectors, its weight), and the blocks.

    ``vectors`` are those of the sides that are matrices, one after the other.
    """
    batch, weight = evaluated(settings, term, x)
    left = iter(vectors)
    bases = [
        (block, next(left) if block.left else None, next(left) if block.right else None)
        for block in batch.plans
        if block.linear
    ]
    inputs = [_inputs_in_basis(batch, *basis) for basis in bases]

    def squares(pulled: list[Array], leaves: list[Array]) -> tuple[Array, ...]:
        return tuple(_values(batch, *basis, given, pulled) for basis, given in zip(bases, inputs, strict=True))

    return (None, over_columns(batch, squares), weight), Layout.of(batch.plans, batch.made.mixes)


def _inputs_in_basis(batch: Batch, block: Plan, left: Array | None, right: Array | None) -> dict[int, Array]:
    """The inputs of each use in the eigenvectors of their side."""
    xp, made = batch.ops.namespace(), {}
    for uses, vectors in ((block.uses, right), (block.transposed, left)):
        for i in uses:
            made[i] = _through(xp, batch.rows(i, batch.given(i), block), vectors)
    return made


def _through(xp: Any, rows: Array, vectors: Array | None) -> Array:
    """One product of all rows: with examples as an axis to broadcast over, each would be a product of its own."""
    if vectors is None:
        return rows
    return xp.reshape(xp.matmul(xp.reshape(rows, (rows.shape[0], -1, rows.shape[-1])), vectors), rows.shape)


def _values(
    batch: Batch, block: Plan, left: Array | None, right: Array | None, inputs: dict[int, Array], pulled: list[Array]
) -> Array:
    """sum_n (U^T P_n W)^2 of one column (groups, outputs, inputs)."""
    xp, pairs = batch.ops.namespace(), []
    for uses, vectors in ((block.uses, left), (block.transposed, right)):
        for i in uses:
            g = _through(xp, batch.rows(i, pulled[i]), vectors)
            pairs.append((g, inputs[i]) if i in block.uses else (inputs[i], g))
    together = batch.by_example((*block.uses, *block.transposed))
    groups = [pairs] if together else [[pair] for pair in pairs]
    parts = [sum_of_squares(batch.ops, group) for group in groups]
    return sum(parts[1:], parts[0])
