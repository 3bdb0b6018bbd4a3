r"""The residuals linearised at a point, and the damped step that they ask for: two ways, factored and by products.

With W = S^T J the root of the Gauss-Newton operator, q the gradient on its side, and a diagonal D, both solve

    min_y |A y - b|^2 + lambda |y|^2,    A = W D^-1

for b = -q, and for the right-hand sides of corrections.

* :class:`Triangle` factors A = Q R by Householder's method, and for each lambda [R; sqrt(lambda) I], which is small.
* :class:`MatrixFree` takes products with W and W^T and holds a few vectors of n and m numbers. It divides each column
  of [A; sqrt(lambda) I] by its norm, which is Jacobi's preconditioner, and calls a solver: one for square systems
  gets the normal equations, whose diagonal is then 1; LSMR gets the two blocks themselves.

What the second promises is known to the accuracy of a solve only. In the scaled variables z, with K = C W^T W C of
unit diagonal, a residual rho = -C W^T q - (K + tau I) z bounds what z leaves to be gained,

    max_z' m(z') <= m(z) + |rho|^2 / (2 tau),    m(z) = 1/2 |q|^2 - 1/2 |W C z + q|^2,

over all that is not so flat that its curvature is below tau, beside 1: that bound is the promise that is told.

The norms of W's columns are exact where the Jacobian is an array or a sparse matrix and S is diagonal, or where there
are few columns (a product for each). Otherwise they are estimated with random signs s, E (W^T s)^2 = norms^2, and kept
above |g_j| / |q|, which no norm is below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..curvature.gram import Root, root_gradient, root_of
from ..curvature.losses.hessians import Diagonal, Weighted
from ..curvature.point import Point
from ..draws import counter, signs
from ..operators.base import LinearOperator
from ..protocols import Array, Backend, Scalar, Vector
from ..records import record, replace
from ..solvers.base import Solver
from ..solvers.cg import CG
from ..solvers.least_squares import LeastSquares
from ..solvers.lsmr import LSMR
from ..solvers.problem import LinearProblem, Recipe
from ..solvers.served import inner_solve
from ..spaces import Space
from .problem import MinimizeProblem

__all__ = ["MatrixFree", "Triangle", "few", "linear_at", "matrix_free", "root_at", "slack"]

_FEW = 256
"""Columns whose norms take a product each."""
_PROBES = 16
_MOST = 50_000_000
"""Entries of W, where the covariance takes all of it."""
_MANY, _LARGE, _SMALL = 1000, 10_000_000, 10_000
"""W is factored with up to so many columns, and entries; a sparse one with so many entries."""
_STEPS = 10_000
"""At most, of a solve for what is promised."""


class Triangle(NamedTuple):
    """A = Q R, with ``offset`` -Q^T q; Q is None for streamed data."""

    Q: Any
    R: Array
    offset: Vector

    @classmethod
    def of(cls, ops: Backend, W: Array, q: Vector) -> Triangle:
        """From W itself; D = 1."""
        xp, W, q = ops.namespace(), ops.gathered(W), ops.gathered(q)
        known = ops.isfinite(ops.max_abs(xp.reshape(W, (-1,))))
        Q, R = xp.linalg.qr(ops.select(known, W, xp.ones_like(W)))
        return cls(Q, ops.select(known, R, R + float("nan")), ops.scale(-1.0, Q.T @ q))

    def squares_of(self, ops: Backend) -> Vector:
        """The squared norms of the columns of A."""
        return ops.namespace().sum(self.R * self.R, axis=0)

    def over(self, ops: Backend, D: Vector, sound: Scalar) -> Triangle:
        """A D^-1; ones where not ``sound``."""
        return self._replace(R=ops.select(sound, self.R / D, ops.namespace().ones_like(self.R)))

    def factor(self, D: Vector, weights: Vector) -> Array:
        """The triangle of W diag(weights)."""
        return self.R * (D * weights)

    def push(self, ops: Backend, y: Vector) -> Vector:
        """A y, among the columns of Q."""
        return self.R @ y

    def outward(self, v: Vector) -> Vector:
        """Q v."""
        return self.Q @ v

    def inward(self, u: Vector) -> Vector:
        """Q^T u."""
        return self.Q.T @ u

    def solving(
        self, ops: Backend, free: Vector | None, damping: Scalar, solver: Any
    ) -> Callable[[Vector], tuple[Vector, Scalar]]:
        """The step y of the free parameters as a function of Q^T b, and the products that it took."""
        xp, R = ops.namespace(), self._freed(free)
        eye = ops.scale(ops.sqrt(damping), ops.identity(R.shape[1], R))
        Q, upper = xp.linalg.qr(xp.concat([R, eye], axis=0))
        return lambda b: (ops.upper_solve(upper, Q[: R.shape[0], :].T @ b), 0)

    def promise(
        self, ops: Backend, free: Vector | None, unit: Scalar, target: Scalar, solver: Any
    ) -> tuple[Scalar, Vector, Scalar]:
        """What an undamped step gains on the free parameters; the step; products."""
        xp, squares = ops.namespace(), self.squares_of(ops)
        norms = xp.sqrt(xp.where(squares > 0, squares, xp.ones_like(squares)))
        even = self._replace(R=self.R / norms)  # whatever the units, nearly the best condition there is
        y, _ = even.solving(ops, free, ops.eps(self.offset) ** 1.5, None)(self.offset)
        v = even._freed(free) @ y
        return ops.dot(self.offset, v) - 0.5 * ops.dot(v, v), y / norms, 0

    def unseen(self, ops: Backend, free: Vector | None, y: Vector) -> Vector:
        """The part of y that A takes to zero, to rounding."""
        xp, squares = ops.namespace(), self.squares_of(ops)
        norms = xp.sqrt(xp.where(squares > 0, squares, xp.ones_like(squares)))
        y, even = y if free is None else y * free, self._replace(R=self.R / norms)
        return y - even.solving(ops, free, ops.eps(y) ** 1.5, None)(self.R @ y)[0] / norms

    def _freed(self, free: Vector | None) -> Array:
        return self.R if free is None else self.R * free


class MatrixFree(NamedTuple):
    """A = W D^-1 by products; ``offset`` is -q, ``squares`` the squared norms of A's columns."""

    root: Root
    offset: Vector
    squares: Vector
    D: Vector

    def squares_of(self, ops: Backend) -> Vector:
        """The squared norms of the columns of A."""
        return ops.copy(self.squares)

    def over(self, ops: Backend, D: Vector, sound: Scalar) -> MatrixFree:
        """A D^-1."""
        squares = ops.select(sound, self.squares / (D * D), ops.namespace().ones_like(D))
        return self._replace(squares=squares, D=self.D * D)

    def factor(self, D: Vector, weights: Vector) -> LinearOperator:
        """diag(weights) W^T W diag(weights)."""
        return Normal(self.root, weights, 0.0 * weights)

    def push(self, ops: Backend, y: Vector) -> Vector:
        """A y."""
        return self.root.apply(y / self.D)

    def outward(self, v: Vector) -> Vector:
        """v."""
        return v

    def inward(self, u: Vector) -> Vector:
        """u."""
        return u

    def solving(
        self, ops: Backend, free: Vector | None, damping: Scalar, solver: Any
    ) -> Callable[[Vector], tuple[Vector, Scalar]]:
        """The step y of the free parameters as a function of b, and the products that it took."""
        size = self._sizes(ops, damping)
        weights = size / self.D if free is None else size / self.D * free

        def solve(b: Vector) -> tuple[Vector, Scalar]:
            inner = solver
            if isinstance(inner, LeastSquares):  # relative to W^T b: W and b are nearly orthogonal at an end
                g = weights * self.root.rapply(b)
                cosine = ops.divide(ops.sqrt(ops.dot(g, g)), ops.sqrt(ops.dot(b, b)))
                inner = replace(inner, atol=inner.atol * ops.where(ops.isfinite(cosine), cosine, 1.0), btol=0.0)
            z, products = self._solved(ops, inner, weights, damping * size * size, b)
            return size * z, products + (inner is not solver)

        return solve

    def promise(
        self, ops: Backend, free: Vector | None, unit: Scalar, target: Scalar, solver: Any
    ) -> tuple[Scalar, Vector, Scalar]:
        """At most this is gained by an undamped step, if the solver gets ``target`` near it; the step; products."""
        xp, eps = ops.namespace(), max(ops.eps(self.offset), ops.eps(self.D))
        tau = eps if eps < 1e-10 else eps**1.5  # in single precision more would stay unseen than 1e-4 of the value
        size = self._sizes(ops, 0.0)
        weights = size / self.D if free is None else size / self.D * free
        shifts, least = tau * xp.ones_like(size), ops.sqrt(2.0 * tau * target)
        exact: Solver = CG(rtol=0.0, atol=least, max_steps=_STEPS)
        if not solver.square:
            length = ops.sqrt(ops.dot(self.offset, self.offset))
            exact = LSMR(atol=0.3 * ops.divide(least, length), btol=0.0, conlim=None, max_steps=_STEPS)
        z, products = self._solved(ops, exact, weights, shifts, self.offset)
        v = self.root.apply(weights * z)
        rho = ops.axpy(-tau, z, weights * self.root.rapply(ops.axpby(1.0, self.offset, -1.0, ops.copy(v))))
        gained = ops.dot(self.offset, v) - 0.5 * ops.dot(v, v)
        return gained + 0.5 * ops.dot(rho, rho) / tau, size * z, products + 2

    def _sizes(self, ops: Backend, damping: Scalar) -> Vector:
        """1 / the norms of the columns of [A; sqrt(damping) I]."""
        xp, square = ops.namespace(), self.squares + damping
        return 1.0 / xp.sqrt(xp.where(square > 0, square, xp.ones_like(square)))

    def _solved(
        self, ops: Backend, solver: Solver, weights: Vector, shifts: Vector, b: Vector
    ) -> tuple[Vector, Scalar]:
        if solver.square:
            K: LinearOperator = Normal(self.root, weights, shifts)
            rhs = weights * self.root.rapply(b)
        else:
            K = Stacked(self.root, weights, ops.namespace().sqrt(shifts))
            rhs = ops.namespace().concat([b, ops.zeros_like(weights)])
        given = solver.preconditioner
        M = given(K) if isinstance(given, Recipe) else given
        found = inner_solve(ops, solver, LinearProblem(K, rhs, None, M))
        return found.x, found.products + 1


@record
class Shifted(LinearOperator):
    """Base of what is made of W C, C = diag(weights), and diag(shifts)."""

    root: Root
    weights: Vector
    shifts: Vector

    @property
    def domain(self) -> Space:
        return self.root.domain


@record
class Normal(Shifted):
    """C W^T W C + diag(shifts)."""

    psd = True

    def triangle(self) -> Array:
        """The triangle of W C, for which W is formed, n products with it.

        Raises
        ------
        ValueError
            Where that would take too much memory.
        """
        ops, (m, n) = self.backend, self.root.shape
        if m * n > _MOST:
            raise ValueError(
                f"the covariance of {n} parameters would need the Jacobian ({m}, {n}) as an array. Solve for the "
                "columns that you want: lg.solve(lg.GGN(objective, x), unit vector, lg.CG()), times 2 cost / (m - n)."
            )
        return ops.namespace().linalg.qr(self.root.apply(ops.identity(n, self.weights)) * self.weights)[1]

    def matvec(self, v: Vector) -> Vector:
        return self.weights * self.root.rapply(self.root.apply(self.weights * v)) + self.shifts * v


@record
class Stacked(Shifted):
    """[W C; diag(shifts)]."""

    @property
    def codomain(self) -> Space:
        return Space.flat(sum(self.root.shape), self.weights)

    def matvec(self, v: Vector) -> Vector:
        return self.backend.namespace().concat([self.root.apply(self.weights * v), self.shifts * v])

    def rmatvec(self, u: Vector) -> Vector:
        m = self.root.shape[0]
        return self.weights * self.root.rapply(u[:m]) + self.shifts * u[m:]


def matrix_free(ops: Backend, root: Root, q: Vector, gradient: Vector, size: Scalar) -> MatrixFree:
    """W by its products, over D = 1, for q of norm ``size`` and its gradient W^T q."""
    xp = ops.namespace()
    squares = _exact_squares(root)
    if squares is None:
        few = root.shape[1] <= _FEW
        squares = ops.sum_over(_of_column, range(root.shape[1]), root) if few else _estimate(ops, root)
        least = (gradient * ops.divide(1.0, size)) ** 2
        squares = xp.where(squares > least, squares, least)
    else:
        squares = ops.scale(root.scale * root.scale, squares)
    return MatrixFree(root, ops.scale(-1.0, ops.copy(q)), squares, xp.ones_like(gradient))


def _exact_squares(root: Root) -> Vector | None:
    """The squared norms of the columns of W / sqrt(c), where the user's Jacobian tells them."""
    total, xp = None, root.backend.namespace()
    for piece in root.pieces:
        inner = piece.root.inner if isinstance(piece.root, Weighted) else piece.root
        squares = getattr(piece.linearization, "squares", None)
        if piece.stacked or squares is None or not isinstance(inner, Diagonal):
            return None
        sizes = xp.reshape(piece.root.transposed(xp, xp.ones_like(piece.outputs)), (-1,))
        part = squares(sizes * sizes)
        if part is None:
            return None
        total = part if total is None else total + part
    return total


def _estimate(ops: Backend, root: Root) -> Vector:
    return ops.sum_over(_of_signs, range(_PROBES), root) / _PROBES


def _of_column(index: Scalar, root: Root) -> Vector:
    xp, zero = root.backend.namespace(), root.domain.zeros()
    unit = xp.where(counter(root.domain) == index, xp.ones_like(zero), zero)
    column = root.apply(unit)
    return unit * root.backend.dot(column, column)


def _of_signs(index: Scalar, root: Root) -> Vector:
    g = root.rapply(signs(root.codomain, 0, index))
    return g * g


def few(x: Vector) -> bool:
    """Whether a trial may cost a second solve, and the parameters are scaled one by one."""
    return bool(x.shape[0] <= _MANY)


def linear_at(
    ops: Backend, problem: MinimizeProblem, point: Point, solver: Any
) -> tuple[Triangle | MatrixFree, Any, Any, Scalar]:
    """W and -q at the point, unscaled; q and the factor of S, None where data are streamed; ||q||."""
    made, xp = point.summary(), ops.namespace()
    if problem.host:
        T = _streamed(ops, point)
        T, n = T * xp.sqrt(xp.zeros_like(T[0, 0]) + made.scale), T.shape[1] - 1
        size = ops.sqrt(ops.dot(T[:, n], T[:, n]))
        return Triangle(None, T[:, :n], ops.scale(-1.0, ops.copy(T[:, n]))), None, None, size
    root = root_of(made.pieces, made.scale, problem.space)
    q = ops.scale(root.scale, ops.copy(root_gradient(root)))
    size = ops.sqrt(ops.dot(q, q))
    if solver is None and _is_factored(root):
        problem.space.require_even("lg.least_squares, which factors the Jacobian of few parameters,")
        return Triangle.of(ops, root.apply(ops.identity(problem.space.size, point.x)), q), q, root.scale, size
    return matrix_free(ops, root, q, point.gradient, size), q, root.scale, size


def _is_factored(root: Root) -> bool:
    """Whether W has few columns and entries, and is no sparse matrix of more than some."""
    m, n = root.shape
    linear = [getattr(piece, "linearization", None) for piece in root.pieces]  # another framework's has none
    matrices = [getattr(one, "matrix", None) for one in linear]
    dense = all(matrix is None or root.backend.is_array(matrix) for matrix in matrices)
    return (n <= _MANY and m * n <= _LARGE) if dense else m * n <= _SMALL


def _streamed(ops: Backend, point: Point) -> Array:
    """The triangle of [W, q] over streamed batches, each factored with what those before it left; unnormalised."""
    T, xp = None, ops.namespace()
    for term in point.objective.streamed(point.space, point.x):
        rows = ops.call(_rows, term, point.x)
        T = xp.linalg.qr(rows if T is None else xp.concat([T, rows], axis=0))[1]
    return T


def _rows(term: Any, x: Vector) -> Array:
    """[W, q] of one batch, unnormalised."""
    ops = term.space.backend
    root = root_of((term.linearize(x),), 1.0, term.space)
    W, q = root.apply(ops.identity(term.space.size, x)), root_gradient(root)
    return ops.namespace().concat([W, q[:, None]], axis=1)


def root_at(problem: MinimizeProblem, outputs: Array) -> Any:
    """S of the one batch, for its outputs."""
    loss, batch, xp = problem.objective.loss, problem.objective.batches[0], problem.backend.namespace()
    assert loss is not None
    return loss.hessian(xp, outputs, batch.targets, batch.weights).root(xp)


def slack(ops: Backend, x: Vector) -> float:
    """What a solve by products leaves open of the value, relative to it."""
    return max(1e-12, 50.0 * ops.eps(x))
