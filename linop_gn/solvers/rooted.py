"""The root W of a damped Gauss-Newton operator, G = W^T W, of what there is: linearisations, layers, factors."""

from __future__ import annotations

from typing import Any

from ..curvature.at_point import Products
from ..curvature.gram import ByLayers, Root, root_gradient, root_of
from ..curvature.layers.root import LayerRoot
from ..operators.base import LinearOperator
from ..operators.congruence import Congruence
from ..operators.damped import undamped
from ..operators.dense import Dense
from ..operators.low_rank import LowRank
from ..protocols import Array, Backend, Scalar, Vector
from ..records import rebuild, record, replace
from ..spaces import Space
from .base import bytes_each

__all__ = ["WithGram", "gradient_of", "gram_matrix", "inner_of", "known_gram", "pull", "push", "rooted", "slope_of"]


@record
class WithGram(Products):
    """A Gauss-Newton operator with its K, and the W that this was made of; its products are its own, and verify."""

    gram: ByLayers = None  # type: ignore[assignment]


def gram_matrix(ops: Backend, root: LinearOperator, rows: bool | None, most_bytes: int) -> tuple[Array | None, Array]:
    """W, where there is room for it, and K."""
    m = root.shape[0]
    size = m * m * bytes_each(root.T)
    if root.codomain.dtype not in ("float32", "float64"):
        raise ValueError(f"GramSolve: outputs of {root.codomain.dtype} cannot be factored; use float32, or lg.CG.")
    if size > most_bytes:
        raise ValueError(
            f"GramSolve: the Gram matrix of {m} outputs would take {size:.3g} bytes, more than most_bytes="
            f"{most_bytes}. Take a smaller batch, pass solver=lg.CG(rtol=1e-6), or use lg.CG on the GGN."
        )
    if isinstance(root, Dense):
        return root.matrix, ops.syrk(root.matrix)
    assert isinstance(root, Root)  # of one by layers K is known
    return root.gram(rows)


def slope_of(root: Root | LayerRoot) -> Vector:
    """q with sqrt(c) W^T q the objective's gradient."""
    return root.gradient if isinstance(root, LayerRoot) else root_gradient(root)


def gradient_of(root: LinearOperator) -> Any:
    """The objective's gradient, sqrt(c) W^T q, where the root has it; it may be unpacked."""
    return root.pulled if isinstance(root, LayerRoot) else None


def known_gram(operator: LinearOperator) -> ByLayers | None:
    """K and W, where the operator was prepared with them, and is in no other units."""
    inner, units, _ = inner_of(operator)
    made = undamped(inner)[0]
    return made.gram if units is None and isinstance(made, WithGram) else None


def inner_of(operator: LinearOperator) -> tuple[LinearOperator, Vector | None, Scalar]:
    """G of a damped G or S G S, the units S, and the damping; G may have an l2, which is more of it."""
    inner, damping = undamped(operator)
    return (inner.operator, inner.units, damping) if isinstance(inner, Congruence) else (inner, None, damping)


def rooted(operator: LinearOperator) -> tuple[Root | LayerRoot | Dense, Scalar]:
    """W, and all that is added to W^T W: the damping, and an l2."""
    inner, units, damping = inner_of(operator)
    known = known_gram(operator)
    if known is not None and known.root is not None:
        return known.root, damping + undamped(inner.prepare())[1]
    if isinstance(inner, LowRank):
        W, middle, xp = inner.factor.T, inner.middle, inner.backend.namespace()
        W = W if middle is None else xp.sqrt(middle)[:, None] * W
        W = W if units is None else W * units
        spaces = {"domain": inner.domain, "codomain": Space.flat(W.shape[0], W)}
        return rebuild(Dense, {"matrix": W, "symmetric": False, "psd": False, **spaces}), damping
    made: Any
    made, l2 = undamped(inner.prepare())
    return replace(root_of(made.pieces, made.scale, made.domain), units=units), damping + l2


def push(root: LinearOperator, rows: Array | None, v: Vector) -> Vector:
    """W v."""
    return root.apply(v) if rows is None else rows @ root.backend.cast(v, root.codomain.dtype)


def pull(root: LinearOperator, rows: Array | None, u: Vector) -> Vector:
    """W^T u."""
    if rows is not None:
        made: Vector = root.backend.cast(rows.T @ u, root.domain.dtype)
        return made
    return root.rapply(u)
