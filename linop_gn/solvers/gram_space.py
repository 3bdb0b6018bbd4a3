"""One solve in the space of the outputs, and what all right-hand sides share; see :mod:`linop_gn.solvers.gram`.

K = W W^T is formed from the rows of W, m products with J^T and a matrix product
of 2 m^2 n flops, or column by column, m products with J^T and J. For dense layers
a product with J takes 4 n flops for each example, so that the second way takes
less as soon as there are several classes, and never holds m n numbers. The first
is quicker where all is small. Or K is not formed, and a solver takes its products.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..curvature.gram import Gram, Root, root_gradient, root_of
from ..operators.base import LinearOperator
from ..operators.damped import Damped, undamped
from ..protocols import Array, Backend, Scalar, Vector
from .problem import LinearProblem, Recipe
from .served import inner_solve

__all__ = ["Factored", "factored_by", "keeps_rows", "solve_with"]

_WIDTH = {"float32": 4, "float64": 8}
_SMALL = 2**22
"""Entries of W up to which its rows are kept by default: there a matrix product is quicker than m calls."""
_ROUNDING = 64.0
"""What is left of a right-hand side beside the gradient's multiple counts as rounding below so many round-offs."""


class Factored(NamedTuple):
    """What all right-hand sides share."""

    rows: Array | None
    """W (m, n), where it is kept."""
    factor: Any
    """Of K + shift I; None where a solver takes its products."""
    shift: Scalar
    """The damping, or what rounding in K needs, if that is more: refinement makes up for the difference."""
    q: Vector
    t: Vector
    tt: Scalar


def keeps_rows(rows: bool | None, m: int, n: int) -> bool:
    """Whether the rows of W (m, n) are kept: as was asked for, or by size."""
    return m * n <= _SMALL if rows is None else rows


def factored_by(
    ops: Backend, operator: LinearOperator, dense: bool, rows: bool | None, most_bytes: int
) -> tuple[Factored, Scalar, int]:
    """What all right-hand sides share; whether it is finite; the products that it took."""
    root, damping = _root(operator)
    shift, W, factor, spent = ops.item(damping), None, None, 1
    good: Any = True
    if dense:
        W, K = _matrix(ops, root, rows, most_bytes)
        xp, spent = ops.namespace(), root.shape[0]
        trace = ops.item(xp.sum(xp.linalg.diagonal(K)))
        shift = ops.maximum(shift, 2.0 * ops.eps(K) * trace)
        factor, good = ops.cholesky(ops.axpy(shift, ops.identity(spent, K), K))
    q = root_gradient(root)
    t = _pull(root, W, q)
    tt = ops.dot(t, t)
    return Factored(W, factor, shift, q, t, tt), good & ops.isfinite(tt), spent


def _matrix(ops: Backend, root: Root, rows: bool | None, most_bytes: int) -> tuple[Array | None, Array]:
    """W, where there is room for it, and K."""
    m, n = root.shape
    width = _WIDTH.get(root.codomain.dtype)
    if width is None:
        raise ValueError(f"GramSolve: outputs of {root.codomain.dtype} cannot be factored; use float32, or lg.CG.")
    if m * m * width > most_bytes:
        raise ValueError(
            f"GramSolve: the Gram matrix of {m} outputs would take {m * m * width:.3g} bytes, more than most_bytes="
            f"{most_bytes}. Take a smaller batch, pass solver=lg.CG(rtol=1e-6), or use lg.CG on the GGN."
        )
    if keeps_rows(rows, m, n):
        W = ops.cast(root.rows(), root.codomain.dtype)
        return W, W @ W.T
    return None, Gram.of(root).matmat(ops.identity(m, root.codomain.zeros()))


def solve_with(ops: Backend, operator: LinearOperator, f: Factored, solver: Any, r: Vector) -> tuple[Vector, Any]:
    """(G + shift I)^-1 r, and the products that it took."""
    root, _ = _root(operator)
    t, q = (_like_columns(ops, v, r) for v in (f.t, f.q))
    alpha = ops.divide(ops.dot(t, r), f.tt)
    e = ops.axpy(-alpha, t, ops.copy(r))
    large = ops.dot(e, e) > (_ROUNDING * ops.eps(r)) ** 2 * ops.dot(r, r)
    e = ops.mask(large, e)
    inverse = ops.divide(1.0, f.shift)
    rhs = ops.axpby(alpha, q, -inverse, _push(root, f.rows, e))
    spent: Any = 0 if f.rows is not None else 1
    if f.factor is not None:
        y = ops.cholesky_solve(f.factor, rhs)
    else:
        K = Damped(Gram.of(root), f.shift)
        given = solver.preconditioner
        linear = LinearProblem(K, rhs, None, given(K) if isinstance(given, Recipe) else given)
        inner = inner_solve(ops, solver, linear)
        y, spent = inner.x, spent + inner.products
    return ops.axpy(inverse, e, _pull(root, f.rows, y)), spent


def _root(operator: LinearOperator) -> tuple[Root, Scalar]:
    inner, damping = undamped(operator)
    made: Any = inner.prepare()
    return root_of(made.pieces, made.scale, made.domain), damping


def _push(root: Root, rows: Array | None, v: Vector) -> Vector:
    """W v."""
    return root.apply(v) if rows is None else rows @ root.backend.cast(v, root.codomain.dtype)


def _pull(root: Root, rows: Array | None, u: Vector) -> Vector:
    """W^T u."""
    if rows is not None:
        made: Vector = root.backend.cast(rows.T @ u, root.domain.dtype)
        return made
    return root.rmatvec(u) if len(u.shape) == 1 else root.rmatmat(u)


def _like_columns(ops: Backend, v: Vector, like: Vector) -> Vector:
    """A vector (m,), or so many copies of it side by side."""
    if len(like.shape) == 1:
        return v
    return ops.copy(ops.namespace().broadcast_to(v[:, None], (v.shape[0], like.shape[1])))
