"""Random expressions of operator algebra, each with the dense matrix that it stands for.

The matrix is computed beside the operator with plain NumPy, and so is ``bound``:
the same expression in absolute values. Rounding in a product is at most a small
multiple of eps times that bound, however much cancels in the matrix itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from ..operators import BlockDiagonal, Damped, Dense, Diagonal, FunctionOperator, Identity, LinearOperator, LowRank
from ..protocols import Backend, Vector
from ..spaces import Space
from .strategies import array, dampings, matrices, seeds, symmetric_matrices

__all__ = ["Expression", "expressions"]

NDArray = np.ndarray[Any, Any]

_EPS = {"float64": 1e-12, "float32": 1e-5}


class Expression(NamedTuple):
    """An operator and what it should be."""

    operator: LinearOperator
    matrix: NDArray
    bound: NDArray

    @property
    def tolerance(self) -> float:
        """How far an entry of a product with a vector of entries below one may be off."""
        return _EPS[self.operator.dtype] * max(1e-300, float(self.bound.sum(axis=1).max()))


def _multiply(v: Vector, matrix: Any) -> Vector:
    return matrix @ v


def _multiply_transposed(v: Vector, matrix: Any) -> Vector:
    return matrix.T @ v


@st.composite
def expressions(
    draw: st.DrawFn, backend: Backend, rows: int, cols: int, dtype: str = "float64", depth: int = 3
) -> Expression:
    """An operator (rows, cols) made of at most 2^depth parts."""
    kinds = ["dense", "function"]
    if rows == cols:
        kinds += ["symmetric", "diagonal", "low rank", "identity"]
    if depth > 0:
        kinds += ["sum", "difference", "scaled", "product", "adjoint"]
        kinds += ["damped", "gram", "sandwich"] if rows == cols else []
        kinds += ["blocks"] if min(rows, cols) > 1 else []
    kind = draw(st.sampled_from(kinds))
    if kind in ("dense", "function", "symmetric", "diagonal", "low rank", "identity"):
        return _leaf(draw, kind, backend, rows, cols, dtype)

    def part(m: int, n: int) -> Expression:
        return draw(expressions(backend, m, n, dtype, depth - 1))

    return _node(draw, kind, part, rows, cols)


def _leaf(draw: st.DrawFn, kind: str, backend: Backend, rows: int, cols: int, dtype: str) -> Expression:
    def give(matrix: NDArray) -> Any:
        return array(backend, matrix, dtype)

    def rounded(matrix: NDArray) -> NDArray:
        return matrix.astype(dtype).astype(np.float64)

    if kind == "dense":
        matrix = rounded(draw(matrices(rows, cols)))
        return Expression(Dense(give(matrix)), matrix, abs(matrix))
    if kind == "function":
        matrix = rounded(draw(matrices(rows, cols)))
        data = give(matrix)
        domain, codomain = Space.flat(cols, data), Space.flat(rows, data)
        operator = FunctionOperator(_multiply, domain, codomain, _multiply_transposed, args=(data,))
        return Expression(operator, matrix, abs(matrix))
    if kind == "symmetric":
        drawn = draw(symmetric_matrices(rows, scale=st.sampled_from([1e-2, 1.0, 1e2])))
        matrix = rounded(drawn.matrix)
        psd = drawn.kind in ("spd", "clustered")
        return Expression(Dense(give(matrix), symmetric=True, psd=psd), matrix, abs(matrix))
    if kind == "diagonal":
        values = rounded(draw(matrices(1, rows))[0])
        values = abs(values) if draw(st.booleans()) else values
        return Expression(Diagonal(give(values)), np.diag(values), np.diag(abs(values)))
    if kind == "low rank":
        return _low_rank(draw, rows, give, rounded)
    eye = np.eye(rows)
    return Expression(Identity(Space.flat(rows, give(eye))), eye, eye)


def _low_rank(draw: st.DrawFn, size: int, give: Any, rounded: Any) -> Expression:
    rank = draw(st.integers(1, max(1, size // 2)))
    U = rounded(draw(matrices(size, rank)))
    form = draw(st.sampled_from(["none", "diagonal", "matrix"]))
    if form == "none":
        return Expression(LowRank(give(U)), U @ U.T, abs(U) @ abs(U.T))
    if form == "diagonal":
        s = rounded(np.random.default_rng(draw(seeds())).standard_normal(rank))
        s = abs(s) if draw(st.booleans()) else s
        return Expression(LowRank(give(U), give(s)), (U * s) @ U.T, (abs(U) * abs(s)) @ abs(U.T))
    M = rounded(draw(symmetric_matrices(rank, scale=st.just(1.0))).matrix)
    return Expression(LowRank(give(U), give(M)), U @ M @ U.T, abs(U) @ abs(M) @ abs(U.T))


def _node(draw: st.DrawFn, kind: str, part: Any, rows: int, cols: int) -> Expression:
    if kind in ("sum", "difference"):
        a, b = part(rows, cols), part(rows, cols)
        if kind == "sum":
            return Expression(a.operator + b.operator, a.matrix + b.matrix, a.bound + b.bound)
        return Expression(a.operator - b.operator, a.matrix - b.matrix, a.bound + b.bound)
    if kind == "scaled":
        a, c = part(rows, cols), draw(st.sampled_from([-2.0, 0.0, 0.5, 3.0]))
        return Expression(c * a.operator, c * a.matrix, abs(c) * a.bound)
    if kind == "product":
        inner = draw(st.sampled_from(sorted({rows, cols})))
        a, b = part(rows, inner), part(inner, cols)
        return Expression(a.operator @ b.operator, a.matrix @ b.matrix, a.bound @ b.bound)
    if kind == "adjoint":
        a = part(cols, rows)
        return Expression(a.operator.T, a.matrix.T, a.bound.T)
    if kind == "damped":
        a, c, eye = part(rows, cols), draw(dampings()), np.eye(rows)
        return Expression(Damped(a.operator, c), a.matrix + c * eye, a.bound + c * eye)
    if kind == "gram":
        a = part(rows, cols)
        return Expression(a.operator.T @ a.operator, a.matrix.T @ a.matrix, a.bound.T @ a.bound)
    if kind == "sandwich":
        a, b = part(rows, cols), part(rows, rows)
        return Expression(
            a.operator.T @ b.operator @ a.operator,
            a.matrix.T @ b.matrix @ a.matrix,
            a.bound.T @ b.bound @ a.bound,
        )
    m, n = draw(st.integers(1, rows - 1)), draw(st.integers(1, cols - 1))
    a, b = part(m, n), part(rows - m, cols - n)
    like = a.operator.domain.zeros()
    domain, codomain = Space.flat(cols, like), Space.flat(rows, like)
    operator = BlockDiagonal((a.operator, b.operator), domain, codomain=codomain)
    return Expression(operator, _diagonal(a.matrix, b.matrix), _diagonal(a.bound, b.bound))


def _diagonal(a: NDArray, b: NDArray) -> NDArray:
    whole = np.zeros((a.shape[0] + b.shape[0], a.shape[1] + b.shape[1]))
    whole[: a.shape[0], : a.shape[1]] = a
    whole[a.shape[0] :, a.shape[1] :] = b
    return whole
