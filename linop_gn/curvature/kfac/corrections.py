"""The eigenvalues of EKFAC: those of the operator's own block in the eigenvectors U, W of its Kronecker factors.

With P_nc as in :mod:`~linop_gn.curvature.kfac.sums`, diag((U (x) W)^T G (U (x) W)) = sum_nc (U^T P_nc W)^2: no other
values are nearer to G (George et al., *Fast approximate natural gradient descent in a Kronecker-factored eigenbasis*,
2018).
"""

from __future__ import annotations

from typing import Any

from ...protocols import Array, Backend, Vector
from ..term import Term
from .batch import Batch, evaluated, over_columns
from .layout import Layout, Plan, Settings

__all__ = ["corrections"]

_ENTRIES = 1 << 22
"""Numbers in the matrices P of as many examples as are held at a time."""


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
    parts = [_squares(batch.ops, group) for group in groups]
    return sum(parts[1:], parts[0])


def _squares(ops: Backend, pairs: list[tuple[Array, Array]]) -> Array:
    """sum_n (sum_t g_nt a_nt^T)^2 over pairs of (groups, examples, positions, n) that belong to the same examples."""
    xp = ops.namespace()
    (g, a), *rest = pairs
    if not rest and g.shape[2] == 1:
        return xp.matmul(xp.matrix_transpose(g[:, :, 0, :] ** 2), a[:, :, 0, :] ** 2)

    def some(both: list[tuple[Array, Array]]) -> Array:
        P = sum(xp.matmul(xp.matrix_transpose(g), a) for g, a in both)
        return xp.sum(P * P, axis=1)

    n, examples = max(1, _ENTRIES // (g.shape[0] * g.shape[-1] * a.shape[-1])), g.shape[1]
    if n >= examples:
        return some(pairs)
    whole = examples // n

    def stack(x: Array) -> Array:
        parts = xp.reshape(x[:, : whole * n, ...], (x.shape[0], whole, n, *x.shape[2:]))
        return xp.permute_dims(parts, (1, 0, 2, 3, 4))

    total = ops.sum_over(some, [(stack(g), stack(a)) for g, a in pairs])
    if whole * n < examples:
        total = total + some([(g[:, whole * n :, ...], a[:, whole * n :, ...]) for g, a in pairs])
    return total
