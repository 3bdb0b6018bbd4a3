"""The damped Gauss-Newton system solved in the space of the outputs.

With G = W^T W and K = W W^T (:mod:`linop_gn.curvature.gram`), for any right-hand
side b, any vector q of outputs and t = W^T q,

    b = alpha t + e,    (K + lambda I) y = alpha q - W e / lambda,    (G + lambda I)^-1 b = W^T y + e / lambda.

For alpha = 0 this is the formula of Sherman, Morrison and Woodbury. It subtracts
nearly equal numbers when lambda is small beside ||G||: in float32, at lambda =
1e-5 ||G||, it leaves a residual of 1.5e-2 ||b||. The right-hand side that
matters is the gradient, and of that a q is known in closed form: S q = dL/dz.
Then e is rounding and is dropped, and what is left is the direction of EGN
(arXiv 2405.14402), whose residual is 4e-5 there. So alpha is the best multiple,
e is what remains, and steps of iterative refinement follow until the residual,
recomputed with a product, meets the tolerance.

The work is in :mod:`linop_gn.solvers.gram_space`.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

from ..arguments import whole
from ..curvature.at_point import GGN, Products
from ..curvature.gram import require_root
from ..curvature.pieces import ggn
from ..operators.base import LinearOperator
from ..operators.damped import undamped
from ..protocols import Backend, Scalar, Vector
from ..records import record, static
from ..run.status import Code, verdict
from .base import Cost, Solver, bytes_each
from .gram_space import Factored, factored_by, keeps_rows, solve_with
from .options import check_tolerances, require_solver, scaled_rhs
from .problem import LinearProblem, Row

__all__ = ["GramSolve", "GramState"]


class GramState(NamedTuple):
    """x and r are in units of ``scale``."""

    x: Vector
    r: Vector
    norm: Scalar
    model: Scalar
    threshold: Scalar
    scale: Scalar
    factored: Factored
    status: Scalar
    steps: Scalar
    products: Scalar


@record
class GramSolve(Solver):
    """(G + damping I)^-1 b in the space of the outputs, for ``lg.Damped(lg.GGN(objective, params), damping)``.

    Forming K takes a product for each output (example x class): it pays where CG would take more steps than the
    batch has outputs, or where several right-hand sides share it. ``lg.cost`` tells. With ``solver=lg.CG()`` there
    are as many products as CG on G takes, and shorter vectors.

    Parameters
    ----------
    rtol, atol
        Converged when ||b - A x||_2 <= max(rtol ||b||_2, atol), recomputed with a product.
    max_steps
        Limit on solves: the first, and refinements.
    solver
        None: Cholesky factorisation of the matrix K. Otherwise a solver for products with K, such as
        ``lg.CG(rtol=1e-6)``.
    rows
        Whether K is formed from the rows of W, which are then kept, (m, n), rather than column by column. None: where
        m n <= 2^22. Rows suit models whose products cost much more than 4 n flops an example (convolutions).
    most_bytes
        Memory for K (m, m), which is otherwise refused.

    Notes
    -----
    ``products`` counts a pair of products with J and J^T, or one with J^T alone, as one.

    >>> import numpy as np, linop_gn as lg
    >>> x = np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 6.0]])
    >>> line = lg.Objective.from_residuals(lambda w: x @ w - 1.0, jacobian=lambda w: x)
    >>> w = np.zeros(3)
    >>> A = lg.Damped(lg.GGN(line, w), 1.0)
    >>> step = lg.solve(A, -line.gradient(w), lg.GramSolve())
    >>> step.status.name, step.x.round(4), bool(np.allclose(A @ step.x, -line.gradient(w)))
    ('CONVERGED', array([-0.1011,  0.1124,  0.1685]), True)

    Raises
    ------
    ValueError
        For other operators, a damping of zero, a loss without a root, streamed data, or more outputs than fit.
    """

    rtol: Scalar = 1e-5
    atol: Scalar = 0.0
    max_steps: int = static(default=10)
    solver: Any = None
    rows: bool | None = static(default=None)
    most_bytes: int = static(default=2**31)

    supports: ClassVar[frozenset[str]] = frozenset({"x0", "columns", "report"})

    def __post_init__(self) -> None:
        check_tolerances(self, "rtol", "atol")
        for name in ("max_steps", "most_bytes"):
            object.__setattr__(self, name, whole("GramSolve", name, getattr(self, name)))
        if self.solver is not None:  # None is Cholesky
            require_solver(self, self.solver)

    def check(self, operator: LinearOperator) -> None:
        """Raise unless the operator is a damped GGN that has a Gram form."""
        inner, damping = undamped(operator)
        if not isinstance(inner, (GGN, Products)) or inner.product is not ggn:
            raise ValueError(
                f"GramSolve needs lg.Damped(lg.GGN(objective, params), damping), got {operator!r}: other operators "
                "have no Gram form. Use lg.CG."
            )
        if inner.host:
            raise ValueError("GramSolve needs all outputs at once, and the data are streamed: hold them in a list.")
        if operator.backend.is_concrete(damping) and not float(operator.backend.detach(damping)) > 0:
            raise ValueError(
                "GramSolve needs a positive damping: without it the system has no unique solution wherever there are "
                "more parameters than outputs. Use lg.Damped(G, damping), or lg.MINRES for the undamped system."
            )
        require_root(inner.point.objective.loss if isinstance(inner, GGN) else inner.pieces[0].loss, "GramSolve")

    def cost(self, operator: LinearOperator, steps: int) -> Cost:
        ready: Any = undamped(operator)[0].prepare()
        m, n, width = sum(math.prod(p.outputs.shape) for p in ready.pieces), operator.domain.size, bytes_each(operator)
        if self.solver is not None:
            k = self.solver.planned(steps)
            return Cost("GramSolve, CG", k + 4, (7 * m + 6 * n) * width, 10.0 * m * k, f"{k} steps with {m} outputs")
        factor = m**3 / 3.0
        if keeps_rows(self.rows, m, n):
            memory, flops = (2 * m * n + 3 * m * m + 4 * n) * width, 2.0 * m * m * n + factor
            return Cost("GramSolve, Cholesky", m + 1, memory, flops, f"{m} outputs; J^T alone")
        return Cost("GramSolve, Cholesky", m + 2, (5 * m * m + 6 * n) * width, factor, f"{m} outputs; J and J^T")

    def init(self, ops: Backend, problem: LinearProblem) -> GramState:
        b = problem.rhs
        r, scale, inverse, size, finite = scaled_rhs(ops, b)
        norm = ops.sqrt(ops.dot(r, r))
        threshold = ops.maximum(self.rtol * norm, ops.divide(self.atol, scale))
        x, model, products = ops.zeros_like(b), ops.scalar(0.0, b), 0
        if problem.x0 is not None:
            x = ops.scale(inverse, ops.copy(problem.x0))
            finite = finite & ops.isfinite(ops.max_abs(x))
            x = ops.mask(finite & (size != 0), x)
            r, norm, model = _judged(ops, problem, x, scale)
            products = 1
        factored, good, spent = factored_by(ops, problem.operator, self.solver is None, self.rows, self.most_bytes)
        status = verdict(
            ops,
            ops.scalar(Code.RUNNING if self.max_steps else Code.MAX_STEPS, b),
            (ops.logical_not(finite), Code.NONFINITE_INPUT),
            (norm <= threshold, Code.CONVERGED),
            (ops.logical_not(good), Code.NONFINITE),
        )
        return GramState(
            x=x,
            r=r,
            norm=norm,
            model=model,
            threshold=threshold,
            scale=scale,
            factored=factored,
            status=status,
            steps=ops.scalar(0, b),
            products=ops.scalar(products + spent, b),
        )

    def step(self, ops: Backend, problem: LinearProblem, s: GramState) -> GramState:
        running = s.status == Code.RUNNING
        d, spent = solve_with(ops, problem.operator, s.factored, self.solver, ops.mask(running, s.r))
        x = ops.axpy(1.0, s.x, d)
        r, norm, model = _judged(ops, problem, x, s.scale)
        sound = ops.isfinite(norm)
        better = running & sound & (norm < s.norm)
        steps = s.steps + running
        status = verdict(
            ops,
            s.status,
            (running & ops.logical_not(sound), Code.NONFINITE),
            (better & (norm <= s.threshold), Code.CONVERGED),
            (running & ops.logical_not(norm < 0.5 * s.norm), Code.STAGNATED),
            (running & (steps >= self.max_steps), Code.MAX_STEPS),
        )
        return s._replace(
            x=ops.select(better, x, s.x),
            r=ops.select(better, r, s.r),
            norm=ops.where(better, norm, s.norm),
            model=ops.where(better, model, s.model),
            status=status,
            steps=steps,
            products=s.products + ops.where(running, 1 + spent, 0),
        )

    def observe(self, state: GramState) -> Row:
        return Row(state.norm * state.scale, state.model * state.scale * state.scale)

    def answer(self, ops: Backend, problem: LinearProblem, state: GramState) -> Vector:
        return ops.scale(state.scale, state.x)


def _judged(ops: Backend, problem: LinearProblem, x: Vector, scale: Scalar) -> tuple[Vector, Scalar, Scalar]:
    """b - A x in units of ``scale``, its norm, and the model -1/2 x^T (b + r): one product."""
    inverse = ops.divide(1.0, scale)
    r = ops.axpby(inverse, problem.rhs, -1.0, problem.operator.apply(x))
    both = ops.axpby(inverse, problem.rhs, 1.0, ops.copy(r))
    return r, ops.sqrt(ops.dot(r, r)), -0.5 * ops.dot(x, both)
