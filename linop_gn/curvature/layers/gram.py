r"""Inner products of the Jacobian's rows from its layers: K = W W^T without a row of W.

Of a layer with one position, <P_nc, P_mk> = (a_n . a_m) (g_nc . g_mk), so that

    K = sum over layers  (A A^T) o (S S^T),        A (examples, inputs), S (outputs of the model, outputs of the layer),

o entry by entry, where a bias adds 1 to A A^T. This takes 2 m^2 d flops for m outputs and a layer of width d, and the
product of rows 2 m^2 d^2. Where T positions share a weight the sums are over pairs of them, T^2 times as much: then, as
in convolutions, the rows P are formed, some outputs of the layer at a time. Whichever takes fewer flops is taken, for
each layer by itself.
"""

from __future__ import annotations

from ...protocols import Array, Backend
from .rows import Layers

__all__ = ["gram"]

_ENTRIES = 1 << 24
"""Numbers in the rows, or in the pairs of positions, that are held at a time."""


def gram(ops: Backend, layers: Layers) -> Array:
    """W W^T (m, m), where W = S^T J."""
    xp, total, dtype = ops.namespace(), None, layers.outputs.dtype
    for block in range(len(layers.places)):
        pairs = [
            (m, f, share.turned)
            for m, f, share in zip(layers.moving, layers.fixed, layers.shares, strict=True)
            if share.block == block
        ]
        made = _by_pairs(ops, *pairs[0][:2]) if len(pairs) == 1 and _pairs_pay(*pairs[0][:2]) else _by_rows(ops, pairs)
        total = made if total is None else total + made
    assert total is not None
    total = xp.astype(total, dtype, copy=False)
    return total if layers.rest is None else total + ops.syrk(layers.rest)


def _pairs_pay(moving: Array, fixed: Array) -> bool:
    """Whether pairs of positions take fewer flops than rows, and little memory."""
    (C, groups, N, T, o), d = moving.shape, fixed.shape[-1]
    m, few = C * N, (N * T) ** 2 * d + (C * N * T) ** 2 * (o + 1)
    return bool(few < m * T * o * d + m * m * o * d and groups * (m * T) ** 2 <= max(_ENTRIES, 2 * m * m))


def _by_pairs(ops: Backend, moving: Array, fixed: Array) -> Array:
    xp, (C, groups, N, T, o) = ops.namespace(), moving.shape
    S = xp.reshape(xp.permute_dims(moving, (1, 2, 0, 3, 4)), (groups, N * C * T, o))
    if groups == T == 1:  # matrices, where a stack of one is copied before it is multiplied
        S, A = S[0, ...], xp.reshape(fixed, (N, -1))
        made = xp.reshape(ops.syrk(S), (N, C, N, C)) * ops.syrk(A)[:, None, :, None]
        return xp.reshape(made, (N * C, N * C))
    A = xp.reshape(fixed, (groups, N * T, -1))
    SS = xp.reshape(xp.matmul(S, xp.matrix_transpose(S)), (groups, N, C, T, N, C, T))
    AA = xp.reshape(xp.matmul(A, xp.matrix_transpose(A)), (groups, N, 1, T, N, 1, T))
    return xp.reshape(xp.sum(SS * AA, axis=(0, 3, 6)), (N * C, N * C))


def _by_rows(ops: Backend, pairs: list[tuple[Array, Array, bool]]) -> Array:
    """Of some of the layer's outputs at a time."""
    xp = ops.namespace()
    sides = [(f[None], m) if turned else (m, f[None]) for m, f, turned in pairs]
    (C, groups, N), o = pairs[0][0].shape[:3], sides[0][0].shape[-1]
    each = C * N * groups * sides[0][1].shape[-1]
    step = max(1, min(o, _ENTRIES // max(1, each)))
    total = None
    for first in range(0, o, step):
        P = sum(
            xp.matmul(xp.matrix_transpose(left[..., first : first + step]), right) for left, right in sides
        )  # (columns, groups, examples, outputs, inputs)
        P = xp.reshape(xp.permute_dims(P, (2, 0, 1, 3, 4)), (N * C, -1))
        made = ops.syrk(P)
        total = made if total is None else total + made
    return total
