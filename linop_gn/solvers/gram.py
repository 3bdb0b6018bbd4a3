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
recomputed with a product, meets the tolerance. Whether anything remains is told by
inner products, ||e||^2 = ||b||^2 - alpha t.b, to the root of a round-off: an e below
that is left to the first refinement, which finds it in the residual.

K = W W^T is formed layer by layer from what the layers are given and the derivatives
in what they make (:mod:`linop_gn.curvature.layers`): as many passes backward as an
example has outputs. It is made once for a point, whatever dampings are tried there;
and so are products with W and W^T, one matrix product a layer each, where it is known
by then that examples are apart. What is verified is verified by a product of the
operator, which knows nothing of layers. Where a model has no such layers, or its
examples enter each other's outputs, K is formed from the rows of W, m products with
J^T and a matrix product of 2 m^2 n flops, or column by column, m products with
J^T and J: that takes less as soon as there are several classes, and never holds m n
numbers; the first is quicker where all is small. Or K is not formed, and a solver
takes its products.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar, NamedTuple

from ..arguments import known_float, whole
from ..curvature.at_point import GGN, Products, WithDiagonal, with_l2
from ..curvature.gram import Gram, Root, gram_by_layers, keeps_rows, require_root
from ..curvature.layers.root import LayerRoot
from ..curvature.layers.rows import told_at
from ..curvature.pieces import ggn
from ..curvature.unpacked import Unpacked, dots, has_long_leaves, packed, residual
from ..operators.base import LinearOperator
from ..operators.damped import Damped, undamped
from ..operators.dense import Dense
from ..operators.low_rank import LowRank
from ..protocols import Array, Backend, Scalar, Vector, unchanged
from ..records import fields, rebuild, record, static
from ..run.status import Code, verdict
from .base import Cost, Solver, bytes_each, each
from .options import LEAST, check_tolerances, require_inner, scaled_rhs
from .problem import LinearProblem, Recipe, Row
from .rooted import WithGram, gradient_of, gram_matrix, inner_of, known_gram, pull, push, rooted, slope_of
from .served import inner_solve

__all__ = ["GramSolve", "GramState"]


_ROUNDING = 64.0
"""Round-offs in the square of what is left of a right-hand side beside the gradient's multiple: less is left out."""


_SLOWEST = 0.9
"""What a refinement must leave of the residual at most. A solve in float32 leaves eps ||G|| / damping of it, and a bit;
where that is near one, steps are slow, and still reach what the product's rounding allows."""


class Factored(NamedTuple):
    """What all right-hand sides share."""

    rows: Array | None
    """W (m, n), where it is kept."""
    factor: Any
    """Of K + shift I; None where a solver takes its products."""
    shift: Scalar
    """The damping, or what rounding in K needs, if that is more: refinement makes up for the difference."""
    q: Vector
    t: Vector | None
    """W^T q; None where the operator holds the gradient, which is sqrt(c) times that."""
    tt: Scalar


class GramState(NamedTuple):
    """x and r are in units of ``scale``."""

    x: Vector | None
    """None for zero where work is eager."""
    r: Vector | None
    """None for the right-hand side as it was given, and of what has ended, where nobody asks for it."""
    along: Scalar | None
    """t.r, where it was taken beside."""
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

    Of U M U^T + damping I (:class:`lg.LowRank`) W is M^(1/2) U^T, which is there: no product makes K.

    K is formed layer by layer where the model has layers, which takes a pass backward for each number that an example
    puts out; it belongs to the operator then, and is made once for all dampings and right-hand sides. Else forming K
    takes a product for each output (example x class): that pays where CG would take more steps than the batch has
    outputs, or where several right-hand sides share it. ``lg.cost`` tells. With ``solver=lg.CG()`` there are as many
    products as CG on G takes, and shorter vectors.

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
        None: K is formed layer by layer, where that can be. Otherwise, True: from the rows of W, which are then kept,
        (m, n); False: column by column; and None takes rows where m n <= 2^22.
    most_bytes
        Memory for K (m, m), which is otherwise refused.

    Notes
    -----
    ``products`` counts a pair of products with J and J^T, or one with J^T alone, as one. A K that is formed layer by
    layer is part of the operator, as its linearisation is, and is not counted.

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
        For other operators, a damping of zero (an l2 that is one number counts), a loss without a root, streamed data,
        or more outputs than fit.
    """

    rtol: Scalar = 1e-5
    atol: Scalar = 0.0
    max_steps: int = static(default=10)
    solver: Any = None
    rows: bool | None = static(default=None)
    most_bytes: int = static(default=2**31)

    supports: ClassVar[frozenset[str]] = frozenset({"x0", "columns", "report"})
    ends_soon: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_tolerances(self, "rtol", "atol")
        for name in ("max_steps", "most_bytes"):
            object.__setattr__(self, name, whole("GramSolve", name, getattr(self, name)))
        if self.solver is not None:  # None is Cholesky
            require_inner(self, self.solver)

    def check(self, operator: LinearOperator) -> None:
        """Raise unless the operator is a damped GGN that has a Gram form."""
        operator.domain.require_together("GramSolve")
        inner, units, damping = inner_of(operator)
        if isinstance(inner, LowRank):
            if not inner.psd or len(getattr(inner.middle, "shape", ())) == 2:
                raise ValueError(
                    f"GramSolve takes U M U^T with a diagonal M that is known to be psd, and {operator!r} has another: "
                    "use lg.CG or lg.MINRES."
                )
            self._check_damping(operator, damping)
            return
        known = inner.point.objective if isinstance(inner, GGN) else None
        l2 = known.l2_in(inner.domain) if known else None
        if len(getattr(l2, "shape", ())) or isinstance(inner, WithDiagonal) or (units is not None and l2 is not None):
            raise ValueError(
                "GramSolve adds an l2 that is one number to the damping, and takes none for each parameter, nor any "
                "where parameters are in other units: use lg.CG."
            )
        damping = damping if l2 is None else damping + l2
        if not isinstance(inner, (GGN, Products)) or inner.product is not ggn:
            raise ValueError(
                f"GramSolve needs lg.Damped(lg.GGN(objective, params), damping), got {operator!r}: of other operators "
                "only lg.LowRank has a Gram form. Use lg.CG."
            )
        if inner.reduction is not None:
            raise ValueError(
                "GramSolve needs all outputs at once, and these are shared out over processes: use lg.CG, or an "
                "objective of all data in one process (without reduce=)."
            )
        if inner.host:
            raise ValueError("GramSolve needs all outputs at once, and the data are streamed: hold them in a list.")
        self._check_damping(operator, damping)
        require_root(inner.pieces[0].loss if known is None else known.loss, "GramSolve")

    def _check_damping(self, operator: LinearOperator, damping: Scalar) -> None:
        if operator.backend.is_concrete(damping) and not known_float(damping) > 0:
            raise ValueError(
                "GramSolve needs a positive damping: without it the system has no unique solution wherever there are "
                "more parameters than outputs. Use lg.Damped(G, damping), or lg.MINRES for the undamped system."
            )

    def prepared(self, operator: LinearOperator) -> LinearOperator:
        """With K, where the model's layers make it."""
        if isinstance(operator, Damped):
            return rebuild(Damped, fields(operator) | {"operator": self.prepared(operator.operator)})
        made = operator.prepare()
        inner = undamped(made)[0]
        if not (self._asks_layers(operator) and isinstance(operator, GGN) and isinstance(inner, Products)):
            return made
        m = sum(math.prod(piece.outputs.shape) for piece in inner.pieces)
        known = None if m * m * bytes_each(operator) > self.most_bytes else gram_by_layers(operator, operator.point)
        if known is None:
            return made
        l2 = operator.point.objective.l2_in(operator.domain)
        return with_l2(rebuild(WithGram, fields(inner) | {"gram": known}), l2)

    def _asks_layers(self, operator: LinearOperator) -> bool:
        """Whether K is to be formed layer by layer, if the model has layers."""
        if self.solver is not None or self.rows is not None or not isinstance(operator, GGN) or operator.host:
            return False
        loss = operator.point.objective.loss
        return loss is not None and not loss.autodiff and loss.convex and operator.reduction is None

    def _by_layers(self, operator: LinearOperator) -> Any:
        return told_at(operator.point) if self._asks_layers(operator) and isinstance(operator, GGN) else None

    def cost(self, operator: LinearOperator, steps: int) -> Cost:
        ready: Any = undamped(inner_of(operator)[0].prepare())[0]
        n, width = operator.domain.size, bytes_each(operator)
        if isinstance(ready, LowRank):
            m = ready.factor.shape[1]
            if self.solver is None:
                factors = each(operator, int(ready.middle is not None), 2)
                rest = each(operator, max(3 * n + 2 * m * m, 2 * n + 3 * m * m), 5 * n + 3 * m * m)
                memory, flops = (factors * n * m + rest) * width, 2.0 * m * m * n + m**3 / 3.0
                return Cost("GramSolve, Cholesky", 1, int(memory), flops, f"rank {m}")
        else:
            m = sum(math.prod(p.outputs.shape) for p in ready.pieces)
        if self.solver is not None:
            k = self.solver.planned(steps)
            memory = int(each(operator, 5 * m + 4 * n, 9 * m + 7 * n)) * width
            return Cost("GramSolve, CG", k + 4, memory, 10.0 * m * k, f"{k} steps with {m} outputs")
        cholesky, square = m**3 / 3.0, m * m
        told = self._by_layers(inner_of(operator)[0])
        if told is not None:
            held = told.numbers + 4 * square + each(operator, 4, 6) * n
            flops, note = 2.0 * square * told.width + cholesky, f"{m} outputs; by layers"
            return Cost("GramSolve, Cholesky", told.passes + 3, int(held) * width, flops, note)
        at_once = 0 if operator.backend.calculus is None else min(m, ready.together) * n  # columns of J^T
        if keeps_rows(self.rows, m, n):
            held = each(operator, max(2 * m * n + square, m * n + 3 * square), 2 * m * n + at_once + square) + 2 * n
            flops, note = 2.0 * square * n + cholesky, f"{m} outputs; J^T alone"
            return Cost("GramSolve, Cholesky", m + 1, int(held) * width, flops, note)
        eager, compiled = max(2 * at_once + square, 3 * square) + 4 * n, at_once + 3 * square + 2 * n
        held = int(each(operator, eager, compiled)) * width
        return Cost("GramSolve, Cholesky", m + 2, held, cholesky, f"{m} outputs; J and J^T")

    def init(self, ops: Backend, problem: LinearProblem) -> GramState:
        b = problem.rhs
        factored, good, spent = _factored_by(ops, problem.operator, self)
        t, along = _along(problem.operator, factored, b), None
        compiled = "compiled" in ops.capabilities
        plain = (compiled or "in_place" in ops.capabilities) and len(b.shape) == 1 and "16" not in ops.describe(b)[1]
        tt, bb, along = dots(ops, (t, t), (b, b), (t, b)) if plain else (0.0, 0.0, None)
        if plain and compiled:
            scale, size, finite, tt, bb, along = _in_range(ops, b, t, tt, bb, along)
            inverse = ops.divide(1.0, scale)
            r = ops.scale(inverse, ops.copy(b))
        elif LEAST**2 * b.shape[0] < bb < 1.0 / LEAST**2:  # so is the largest entry, which is not looked at
            r, scale, inverse, size, finite = b, 1.0, 1.0, 1.0, True
        else:
            r, scale, inverse, size, finite = scaled_rhs(ops, b, lent=True)
            (tt, bb), along = dots(ops, (t, t), (r, r)), None
        factored, good = factored._replace(tt=tt), good & ops.isfinite(tt)
        norm = ops.sqrt(bb)
        threshold = ops.maximum(self.rtol * norm, ops.divide(self.atol, scale))
        x: Any = ops.zeros_like(b) if compiled else None
        model, products = ops.scalar(0.0, b), 0
        if problem.x0 is not None:
            x = ops.scale(inverse, ops.copy(problem.x0))
            finite = finite & ops.isfinite(ops.max_abs(x))
            x = ops.mask(finite & (size != 0), x)
            r, norm, model, along = _judged(ops, problem, x, scale, t if plain and compiled else None)
            r, products = packed(r), 1
        status = verdict(
            ops,
            ops.scalar(Code.RUNNING if self.max_steps else Code.MAX_STEPS, b),
            (ops.logical_not(finite), Code.NONFINITE_INPUT),
            (norm <= threshold, Code.CONVERGED),
            (ops.logical_not(good), Code.NONFINITE),
        )
        counts = ops.scalar(0, b), ops.scalar(products + spent, b)
        return GramState(x, None if r is b else r, along, norm, model, threshold, scale, factored, status, *counts)

    def step(self, ops: Backend, problem: LinearProblem, s: GramState) -> GramState:
        running = s.status == Code.RUNNING
        left = problem.rhs if s.r is None else s.r
        d, spent = _solve_with(ops, problem.operator, s.factored, self.solver, left, s.norm, running, s.along)
        x = d if s.x is None else ops.axpy(1.0, s.x, d)
        beside = s.along is not None and "compiled" in ops.capabilities
        t = _along(problem.operator, s.factored, x) if beside else None
        r, norm, model, along = _judged(ops, problem, x, s.scale, t)
        sound = ops.isfinite(norm)
        better = running & sound & (norm < s.norm)
        steps = s.steps + running
        status = verdict(
            ops,
            s.status,
            (running & ops.logical_not(sound), Code.NONFINITE),
            (better & (norm <= s.threshold), Code.CONVERGED),
            (running & ops.logical_not(norm < _SLOWEST * s.norm), Code.STAGNATED),
            (running & (steps >= self.max_steps), Code.MAX_STEPS),
        )
        if isinstance(r, Unpacked):
            r = r.packed() if status == Code.RUNNING else None
        return s._replace(
            x=x if better is True else ops.select(better, x, _or_zeros(ops, s.x, x)),
            r=r,  # what has not become better ends here
            along=along,
            norm=ops.where(better, norm, s.norm),
            model=ops.where(better, model, s.model),
            status=status,
            steps=steps,
            products=s.products + ops.where(running, 1 + spent, 0),
        )

    def observe(self, state: GramState) -> Row:
        return Row(state.norm * state.scale, state.model * state.scale * state.scale)

    def answer(self, ops: Backend, problem: LinearProblem, state: GramState) -> Vector:
        return ops.scale(state.scale, _or_zeros(ops, state.x, problem.rhs))


def _or_zeros(ops: Backend, x: Vector | None, like: Vector) -> Vector:
    return ops.zeros_like(like) if x is None else x


def _judged(
    ops: Backend, problem: LinearProblem, x: Vector, scale: Scalar, t: Any = None
) -> tuple[Any, Scalar, Scalar, Scalar | None]:
    """r = b - A x in units of ``scale``, its norm, the model -1/2 x^T (r + b), and t.r: one product."""
    inverse = ops.divide(1.0, scale)
    r = residual(ops, problem.operator, x, problem.rhs, inverse)
    rr, xr, xb, *along = dots(ops, (r, r), (x, r), (x, problem.rhs), *([] if t is None else [(t, r)]))
    return r, ops.sqrt(rr), -0.5 * (xr + inverse * xb), along[0] if along else None


def _in_range(
    ops: Backend, b: Vector, t: Vector, tt: Scalar, bb: Scalar, along: Scalar
) -> tuple[Scalar, Scalar, Scalar, Scalar, Scalar, Scalar]:
    """The scale of b, its size, whether it is finite, and t.t, b.b, t.b in its units: one where squares are in range.

    Then nothing looks at the largest entry.
    """

    def scaled(*_: Scalar) -> tuple[Scalar, ...]:
        r, scale, _, size, finite = scaled_rhs(ops, b, lent=True)
        return (scale, size, finite, *dots(ops, (t, t), (r, r), (t, r)))

    one, true = ops.scalar(1.0, b), ops.scalar(True, b)
    plain = (bb > LEAST**2 * b.shape[0]) & (bb < 1.0 / LEAST**2)
    made: Any = ops.branch(ops.logical_not(plain), scaled, unchanged, one, one, true, tt, bb, along)
    return made  # type: ignore[no-any-return]


def _factored_by(ops: Backend, operator: LinearOperator, solver: GramSolve) -> tuple[Factored, Scalar, int]:
    """What all right-hand sides share, but for inner products; whether it is finite; the products that it took."""
    root, damping = rooted(operator)
    shift, W, factor, spent = ops.item(ops.detach(damping)), None, None, 1
    good: Any = True
    if solver.solver is None:
        known = known_gram(operator)
        if known is None:
            W, K = gram_matrix(ops, root, solver.rows, solver.most_bytes)
        else:
            K = ops.copy(known.matrix)
        xp, m, spent = ops.namespace(), root.shape[0], 0 if isinstance(root, Dense) else root.shape[0]
        spent = spent if known is None else 1
        trace = ops.item(xp.sum(xp.linalg.diagonal(K)))
        shift = ops.maximum(shift, 2.0 * ops.eps(K) * trace)
        factor, good = ops.cholesky(ops.axpy(shift, ops.identity(m, K), K))
    q = root.codomain.zeros() if isinstance(root, Dense) else slope_of(root)
    t = pull(root, W, q) if gradient_of(root) is None else None
    return Factored(W, factor, shift, q, t, 0.0), good, spent


def _along(operator: LinearOperator, f: Factored, like: Vector) -> Any:
    """W^T q, or the gradient in its place: packed where right-hand sides are columns."""
    made = gradient_of(rooted(operator)[0]) if f.t is None else f.t
    return packed(made) if len(like.shape) > 1 else made


def _solve_with(
    ops: Backend,
    operator: LinearOperator,
    f: Factored,
    solver: Any,
    r: Vector,
    norm: Scalar,
    running: Scalar,
    along: Scalar | None,
) -> tuple[Vector, Any]:
    """(G + shift I)^-1 r for the running ones, and the products that it took; ``along``: t.r, where it is known."""
    root, _ = rooted(operator)
    r = r if solver is None else ops.mask(running, r)
    t, q = (_like_columns(ops, v, r) for v in (_along(operator, f, r), f.q))
    unit = ops.item(ops.detach(root.scale)) if f.t is None and isinstance(root, LayerRoot) else 1.0
    along = dots(ops, (t, r))[0] if along is None else along
    alpha = ops.divide(along, f.tt)
    # Above ||r||^2, too: where t.t is among the smallest numbers there are, alpha has few digits, or none.
    large = running & (abs(norm * norm - alpha * along) > _ROUNDING * ops.eps(r) * norm * norm)
    some, inverse = ops.any(large), ops.divide(1.0, f.shift)

    def rest() -> Vector:
        return ops.mask(large, ops.axpy(-alpha, packed(t), ops.copy(r)))

    def less(rhs: Vector) -> tuple[Vector]:
        return (ops.axpy(-inverse, push(root, f.rows, rest()), rhs),)

    (rhs,) = ops.branch(some, less, unchanged, ops.scale(alpha * unit, ops.copy(q)))
    spent: Any = int(f.rows is None)
    if f.factor is not None:
        y = ops.cholesky_solve(f.factor, rhs)
    else:
        K = Damped(Gram.of(root) if isinstance(root, Root) else root @ root.T, f.shift)
        given = solver.preconditioner
        linear = LinearProblem(K, rhs, None, given(K) if isinstance(given, Recipe) else given)
        inner = inner_solve(ops, solver, linear)
        y, spent = inner.x, spent + inner.products
    x = pull(root, f.rows, y)
    space = operator.domain
    # What goes into a branch is written down: in leaves where a compiler has these from W^T and for the next product.
    apart = "compiled" in ops.capabilities and len(r.shape) == 1 and has_long_leaves(space)

    def more(*parts: Array) -> tuple[Array, ...]:
        added = space.split(rest()) if apart else [rest()]
        return tuple(map(partial(ops.axpy, inverse), added, parts))

    parts = ops.branch(some, more, unchanged, *(space.split(x) if apart else [x]))
    return space.join(list(parts)) if apart else parts[0], spent


def _like_columns(ops: Backend, v: Vector, like: Vector) -> Vector:
    """A vector (m,), or so many copies of it side by side."""
    if len(like.shape) == 1:
        return v
    return ops.copy(ops.namespace().broadcast_to(v[:, None], (v.shape[0], like.shape[1])))
