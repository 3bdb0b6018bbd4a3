"""Direct solvers, for systems small enough to hold their matrix, and as the oracles of the others.

========================  ===================================================
:class:`Cholesky`         L L^T, for positive definite operators
:class:`LU`               P L U, for regular ones of any kind
:class:`Eigh`             V diag(d) V^T, for symmetric ones of any inertia, the
                          pseudo-inverse where they are singular
========================  ===================================================

The matrix is read off the operator by n products (by blocks where the operator
has blocks: :mod:`linop_gn.solvers.dense`), factored once for all columns of the
right-hand side, and the solution is refined once with the residual, which costs
no product. Golub and Van Loan, *Matrix Computations* (2013), chapters 3, 4, 8.

What differs from ``scipy.linalg.solve`` and its like: a matrix that cannot be
factored is a status, not an exception; ``CONVERGED`` says that the residual is
at most sqrt(eps) ||b||, recomputed with the matrix. A starting point is of no
use here, and ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from ..arguments import whole
from ..operators.base import LinearOperator
from ..protocols import Array, Backend, Scalar, Vector
from ..records import record, static
from ..run.status import Code, verdict
from .base import Cost, Solver, bytes_each, each
from .dense import blocks_of, cut, join, largest_block, matrices, with_matrices
from .options import check_tolerances, scaled_rhs, unfit_status
from .problem import LinearProblem, Row

__all__ = ["LU", "Cholesky", "Direct", "Eigh"]


class DirectState(NamedTuple):
    """The answer once there is one; ``norm`` of the residual."""

    x: Vector
    norm: Scalar
    model: Scalar
    status: Scalar
    steps: Scalar
    products: Scalar
    """In all: columns share the matrix."""


class Factored(NamedTuple):
    """A block's matrix, factored."""

    solve: Callable[[Vector], Vector]
    code: Scalar
    """``RUNNING``, or why what ``solve`` gives is of no use."""
    left: Callable[[Vector], Vector] | None
    """The part of a vector that is out of reach, where the matrix is singular."""


@record
class Direct(Solver):
    """What direct solvers share."""

    double: bool = static(default=False)
    max_size: int = static(default=10_000)

    symmetric: ClassVar[bool] = True
    supports: ClassVar[frozenset[str]] = frozenset({"x0", "columns", "report"})  # a start is of no use
    copies: ClassVar[tuple[int, int]]
    """Dense matrices held at a time, unit vectors and products among them: where each operation is done as it is asked
    for, and in a compiled program. LAPACK's workspace counts, which for eigenvectors is two of them."""
    cubes: ClassVar[float]
    """Flops over n^3."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_size", whole(type(self).__name__, "max_size", self.max_size))

    def factor(self, ops: Backend, matrix: Array, eps: float) -> Factored:
        """The factored matrix; ``eps`` is the round-off of the operator's products."""
        raise NotImplementedError

    def check(self, operator: LinearOperator) -> None:
        """Raise for an operator that is too large, or of the wrong kind."""
        super().check(operator)
        operator.domain.require_even("a direct solver", spreads=True)
        n = largest_block(operator)
        if n > self.max_size:
            width = 8 if self.double or operator.dtype == "float64" else 4
            raise ValueError(
                f"{type(self).__name__} would form a matrix of {n} x {n} numbers ({n * n * width / 2**30:.3g} GiB) by "
                f"{n} products, more than max_size = {self.max_size} allows. Use an iterative solver (CG, MINRES, "
                "LSMR), or raise max_size if that is meant."
            )

    def prepared(self, operator: LinearOperator) -> LinearOperator:
        """With its matrix, where there is a shorter way to it than products."""
        return with_matrices(operator)

    def limit(self, problem: LinearProblem) -> int:
        """One step does it all."""
        return 1

    def cost(self, operator: LinearOperator, steps: int) -> Cost:
        sizes = [block.size for block in blocks_of(operator)]
        n, width = max(sizes), 8 if self.double else max(4, bytes_each(operator))
        blocks = f"{len(sizes)} blocks of up to {n}" if len(sizes) > 1 else ""
        copies = each(operator, *self.copies)
        memory = int((2 * n * operator.domain.size + (copies - 2) * sum(size * size for size in sizes)) * width)
        flops = self.cubes * sum(size**3 for size in sizes)
        return Cost(self.title, largest_block(operator), memory, flops, blocks)

    def init(self, ops: Backend, problem: LinearProblem) -> DirectState:
        b = problem.rhs
        scaled, scale, _, largest, finite = scaled_rhs(ops, b)
        status = ops.where(largest == 0, Code.CONVERGED, ops.scalar(Code.RUNNING, b))
        return DirectState(
            x=ops.zeros_like(b),
            norm=ops.sqrt(ops.dot(scaled, scaled)) * scale,
            model=ops.scalar(0.0, b),
            status=ops.where(finite, status, Code.NONFINITE_INPUT),
            steps=ops.scalar(0, b),
            products=0,
        )

    def step(self, ops: Backend, problem: LinearProblem, s: DirectState) -> DirectState:
        b, running = problem.rhs, s.status == Code.RUNNING
        scale = ops.power_of_two(ops.max_abs(b), b)
        rhs = ops.gathered(ops.scale(ops.divide(ops.scalar(1.0, b), scale), ops.mask(running, ops.copy(b))))
        found = matrices(ops, problem.operator, b, self.double)
        blocks = zip(found.blocks, cut(ops, rhs, found.partition), strict=True)
        parts, xs, rs, rests, codes = zip(*(self._block(ops, *block, ops.eps(b)) for block in blocks), strict=True)
        dtype, inverse = ops.describe(b)[1], ops.divide(ops.scalar(1.0, b), scale)

        def lost(x: Vector) -> Vector:
            """What of ``x`` is below the answer's range, beyond its rounding."""
            kept = ops.cast(ops.scale(inverse, ops.scale(scale, ops.cast(ops.copy(x), dtype))), ops.describe(x)[1])
            return ops.namespace().where(abs(kept - x) > 4.0 * ops.eps(b) * abs(x), x - kept, 0.0 * x)

        def fuller(*rs: Vector) -> tuple[Vector, ...]:
            """These residuals with what of b is lost."""
            products = [matrix @ lost(x) for matrix, x in zip(found.blocks, xs, strict=True)]
            return tuple(ops.axpy(1.0, p, ops.copy(r)) for p, r in zip(2 * products, rs, strict=True))

        whole = sum(ops.max_abs(lost(x)) for x in xs) == 0  # else the residual is that of another vector
        made = ops.branch(ops.any(ops.logical_not(whole)), fuller, lambda *rs: rs, *rs, *rests)
        rs, rests = made[: len(rs)], made[len(rs) :]

        def total(us: tuple[Vector, ...], vs: tuple[Vector, ...]) -> Scalar:
            return sum(ops.dot(u, v) for u, v in zip(us, vs, strict=True))

        norm, size, reached = (ops.sqrt(total(vs, vs)) for vs in (rs, parts, rests))
        energy, near = total(xs, parts) + total(xs, rs), math.sqrt(ops.eps(b))
        code = verdict(ops, ops.scalar(Code.RUNNING, b), *((code != Code.RUNNING, code) for code in codes))
        if problem.operator.psd:  # known to be, so that a negative pivot is rounding
            code = ops.where(code == Code.NEGATIVE_CURVATURE, Code.SINGULAR, code)
        x = join(ops, [ops.cast(x, ops.describe(b)[1]) for x in xs], found.partition)
        fits, unfit = unfit_status(ops, ops.max_abs(x), scale, b)
        finite = ops.isfinite(norm)
        status = verdict(
            ops,
            ops.scalar(Code.STAGNATED, b),
            (ops.logical_not(finite), Code.NONFINITE),
            (code != Code.RUNNING, code),
            (ops.logical_not(fits), unfit),
            (norm <= near * size, Code.CONVERGED),
            (reached <= near * size, Code.LEAST_SQUARES),
        )
        sound = running & finite & fits
        return DirectState(
            x=ops.select(sound, problem.operator.domain.from_whole(ops.scale(scale, x)), s.x),
            norm=ops.where(sound, norm * scale, s.norm),
            model=ops.where(sound, -0.5 * energy * scale * scale, s.model),
            status=ops.where(running, status, s.status),
            steps=s.steps + running,
            products=s.products + ops.where(ops.any(running), found.products, 0),
        )

    def _block(self, ops: Backend, matrix: Array, b: Vector, eps: float) -> tuple[Any, ...]:
        """b, solution, residual, that part of it that could have been smaller, and what is wrong (or ``RUNNING``)."""
        b = ops.cast(b, ops.describe(matrix)[1])
        unit = ops.identity(matrix.shape[0], matrix)
        sound = ops.logical_not(ops.any(ops.logical_not(ops.isfinite(ops.max_abs(matrix)))))
        factored = self.factor(ops, ops.select(sound, matrix, unit), eps)
        code = ops.where(sound, factored.code, Code.NONFINITE)

        def residual(x: Vector) -> Vector:
            return ops.subtract(b, matrix @ x)

        x = factored.solve(b)
        r = residual(x)
        refined = ops.axpy(1.0, x, factored.solve(r))
        again = residual(refined)
        better = ops.dot(again, again) < ops.dot(r, r)
        x, r = ops.select(better, refined, x), ops.select(better, again, r)
        # Nothing is better than something worse than nothing.
        helps = (code == Code.RUNNING) & (ops.dot(r, r) <= ops.dot(b, b))
        x, r = ops.mask(helps, x), ops.select(helps, r, b)
        rest = r if factored.left is None else ops.subtract(r, factored.left(r))
        return b, x, r, rest, code

    def observe(self, state: DirectState) -> Row:
        return Row(state.norm, state.model)

    def answer(self, ops: Backend, problem: LinearProblem, state: DirectState) -> Vector:
        return state.x


def _symmetrised(matrix: Array) -> Array:
    return matrix + 0.5 * (matrix.T - matrix)  # does not overflow, as a sum would


@record
class Cholesky(Direct):
    """L L^T of a symmetric positive definite operator, by n products.

    Parameters
    ----------
    double
        Form and factor the matrix in float64 whatever the operator's dtype is. Sums and products of operators are
        formed in float64 from the matrices of their parts: ``lg.Damped(J.T @ J, c)`` keeps its definiteness.
    max_size
        Refuse larger matrices; of an operator with blocks, larger blocks.

    A matrix that is not positive definite ends as ``NEGATIVE_CURVATURE``, one that is so by less than rounding as
    ``SINGULAR``: x is zero (in the blocks where it happened). Blocks are those of ``BlockGGN`` and ``BlockDiagonal``,
    damped or not.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Dense(np.array([[2.0, 1.0], [1.0, 3.0]]), symmetric=True)
    >>> lg.solve(A, np.array([3.0, 4.0]), lg.Cholesky())
    Cholesky: converged after 1 steps, 2 products; residual ...
    The tolerance was met.
    >>> lg.solve(-1.0 * A, np.array([3.0, 4.0]), lg.Cholesky()).status.name
    'NEGATIVE_CURVATURE'
    """

    copies: ClassVar[tuple[int, int]] = 5, 4
    cubes: ClassVar[float] = 1 / 3

    def factor(self, ops: Backend, matrix: Array, eps: float) -> Factored:
        diagonal = ops.namespace().linalg.diagonal
        matrix = _symmetrised(matrix)
        lower, definite = ops.cholesky(matrix)
        lower = ops.select(definite, lower, ops.identity(matrix.shape[0], matrix))
        pivots = diagonal(lower)
        lost = ops.max_abs(diagonal(matrix) / (pivots * pivots)) * (matrix.shape[0] * ops.eps(matrix))
        code = ops.where(lost < 1, Code.RUNNING, Code.SINGULAR)  # a pivot that is what rounding left of its row
        code = ops.where(definite, code, Code.NEGATIVE_CURVATURE)
        return Factored(lambda b: ops.cholesky_solve(lower, b), code, None)


@record
class LU(Direct):
    """P L U of any square operator, by n products.

    Parameters
    ----------
    double, max_size
        As for :class:`Cholesky`.

    A zero pivot ends as ``SINGULAR`` with x = 0; a matrix that is nearly singular leaves a residual, which
    ends as ``STAGNATED`` if it is above sqrt(eps) ||b||.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Dense(np.array([[0.0, 1.0], [2.0, 3.0]]))
    >>> lg.solve(A, np.array([1.0, 5.0]), lg.LU()).x
    array([1., 1.])
    """

    symmetric: ClassVar[bool] = False
    copies: ClassVar[tuple[int, int]] = 3, 4
    cubes: ClassVar[float] = 2 / 3

    def factor(self, ops: Backend, matrix: Array, eps: float) -> Factored:
        made, regular = ops.lu(matrix)
        code = ops.where(regular, Code.RUNNING, Code.SINGULAR)

        def solve(b: Vector) -> Vector:
            return ops.mask(regular, ops.lu_solve(made, b))

        return Factored(solve, code, None)


@record
class Eigh(Direct):
    """Eigenvalues and eigenvectors of a symmetric operator, by n products: the pseudo-inverse.

    Parameters
    ----------
    rcond
        Eigenvalues with |d| <= rcond max|d| count as zero, and their eigenvectors are left out of x.
        None: n round-offs of the operator's dtype, or of float64 if ``double``.
    double, max_size
        As for :class:`Cholesky`.

    Where b has a part along eigenvectors that are left out, x is the least-squares solution of smallest
    norm: ``LEAST_SQUARES``.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Dense(np.array([[1.0, 1.0], [1.0, 1.0]]), symmetric=True)
    >>> solution = lg.solve(A, np.array([3.0, 1.0]), lg.Eigh())
    >>> solution.status.name, solution.x.round(6)
    ('LEAST_SQUARES', array([1., 1.]))
    """

    rcond: Scalar | None = None

    copies: ClassVar[tuple[int, int]] = 6, 5
    cubes: ClassVar[float] = 9.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tolerances(self, "rcond", optional=True)

    def factor(self, ops: Backend, matrix: Array, eps: float) -> Factored:
        xp = ops.namespace()
        values, vectors, found = ops.eigh(_symmetrised(matrix))
        sizes = xp.abs(values)
        rcond = matrix.shape[0] * (ops.eps(matrix) if self.double else eps) if self.rcond is None else self.rcond
        large = sizes > rcond * xp.max(sizes)
        inverse = xp.where(large, 1.0 / xp.where(large, values, xp.ones_like(values)), xp.zeros_like(values))
        lost = xp.where(large, xp.zeros_like(values), xp.ones_like(values))

        def through(weights: Array) -> Callable[[Vector], Vector]:
            def apply(b: Vector) -> Any:
                along = vectors.T @ b
                return vectors @ (weights * along if len(b.shape) == 1 else weights[:, None] * along)

            return apply

        return Factored(through(inverse), ops.where(found, Code.RUNNING, Code.BREAKDOWN), through(lost))
