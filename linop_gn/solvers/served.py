"""What is done for a solver that does not do it by itself.

=========== ===================================================================
x0          A d = b - A x0 is solved, and x = x0 + d: one product; x0 is given up if zero is better
columns     are solved one by one, each to its own status
products    are counted where the state has none
residual    b - A x, by one product at the end, where the row lacks it or the model
model       1/2 x.(A x - 2 b), by the same product, where the row has none
claims      that the residual contradicts are told as ``STAGNATED``: CONVERGED above max(rtol ||b||, atol), if the
            solver has one of these fields and is ``square``; CONVERGED, LEAST_SQUARES, INVARIANT above ||b||
limit       a run that reaches it, or 4 limit + 100 calls of step, ends as ``MAX_STEPS`` or ``COMPLETED``
zero, NaN   in b end a run before its first step, as ``CONVERGED`` and ``NONFINITE_INPUT``
=========== ===================================================================

:func:`served` is the one place that says so: :func:`linop_gn.solve`, methods with an inner
solver and derivatives (:mod:`linop_gn.implicit`, by one more solve) go through it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import optree

from ..operators.algebra import Modified
from ..protocols import Backend, Scalar, Vector
from ..records import record, replace, static
from ..run.returned import require_row, require_state, require_vector, row_type
from ..run.status import Code, verdict
from .base import Solver
from .options import at_limit
from .problem import LinearProblem

__all__ = ["Inner", "inner_run", "inner_solve", "served"]


def served(solver: Solver, problem: LinearProblem) -> Solver:
    """``solver``, or an adapter around it that does for it what it does not declare, and ``problem`` asks.

    Of the adapter ``init``, ``step``, ``observe``, ``answer`` and ``iterates`` are to be used, all else of ``solver``.

    Raises
    ------
    ValueError
        For a start, where the answer is not that of A x = b.
    """
    columns, start = len(problem.rhs.shape) > 1, problem.x0 is not None and "x0" not in solver.supports
    if start and not solver.solves_system:
        raise ValueError(
            f"{solver.title} starts at zero, and its answer is not that of A x = b: give no x0 (or solve for the "
            "correction, with the right-hand side b - A x0)."
        )
    made = ServedSolver(solver) if start or "report" not in solver.supports else solver
    return OneByOne(made) if columns and "columns" not in solver.supports else made


class Inner(NamedTuple):
    """Of :func:`inner_solve`."""

    x: Vector
    status: Scalar
    """One for each column or block; the others are those of the whole."""
    steps: Scalar
    products: Scalar
    model: Scalar
    residual: Scalar


def inner_solve(ops: Backend, solver: Solver, problem: LinearProblem) -> Inner:
    """Solve ``problem`` inside another method's step, with any solver."""
    return inner_run(ops, solver, problem)[0]


def inner_run(ops: Backend, solver: Solver, problem: LinearProblem) -> tuple[Inner, Any]:
    """The same, and the iterates that the solver was asked to keep, or None."""
    made = served(solver, problem)
    state = ops.iterate(made, problem)
    row = made.observe(state)
    steps, products, model, residual = state.steps, state.products, row.model, row.residual
    if solver.partition(problem) is not None:  # blocks share their products, and take their steps at the same time
        whole = steps.max(), products.max(), model.sum(), (residual * residual).sum() ** 0.5
        steps, products, model, residual = (x.item() if isinstance(x, np.generic) else x for x in whole)
    x = made.answer(ops, problem, state)
    inner = Inner(x, state.status, steps, products, model, residual)
    return inner, made.iterates(ops, problem, state, x)


@record
class Counted(Modified):
    """An operator that notes each product."""

    note: Callable[[int], None] = static()

    @property
    def psd(self) -> bool:
        return self.operator.psd

    def matvec(self, v: Vector) -> Vector:
        self.note(1)
        return self.operator.apply(v)

    def rmatvec(self, u: Vector) -> Vector:
        self.note(1)
        return self.operator.rapply(u)

    matmat, rmatmat = matvec, rmatvec

    def known_diagonal(self) -> Vector | None:
        return self.operator.known_diagonal()


_FACTS = {"residual", "model"}


class ServedState(NamedTuple):
    """The solver's own state, and what is counted beside it."""

    inner: Any
    rhs: Vector
    """b - A x0; zero where that is not finite."""
    start: tuple[Vector, Scalar] | None
    """x0, and the model there."""
    residual: Scalar
    """That of x at the end, where the model is known too; until then what the row says."""
    model: Scalar
    status: Scalar
    steps: Scalar
    products: Scalar
    calls: Scalar
    """Of step; they end a run whose steps are not counted."""


@record
class ServedSolver(Solver):
    """``solver`` with a start, a limit, its products counted, and its residual and model told."""

    solver: Solver

    @property
    def title(self) -> str:
        return self.solver.title

    def init(self, ops: Backend, problem: LinearProblem) -> ServedState:
        own, rhs, start = self.solver.arithmetic(ops, problem), ops.copy(problem.rhs), None
        none, nan = own.scalar(0, rhs), own.scalar(np.nan, rhs)
        sound = own.scalar(True, rhs)
        if problem.x0 is not None:  # one that is worse than zero is given up
            sound = own.isfinite(own.max_abs(problem.x0))
            r = own.axpby(1.0, rhs, -1.0, problem.operator.apply(problem.x0))
            worse = sound & own.logical_not(own.dot(r, r) <= own.dot(rhs, rhs))
            rhs, x0 = own.select(worse, rhs, r), own.mask(sound & own.logical_not(worse), ops.copy(problem.x0))
            start = x0, self._judged(own, problem.rhs, rhs, x0)[1]
        size = own.max_abs(rhs)
        finite, solved = sound & own.isfinite(size), (size == 0) & self.solver.solves_system
        status = own.where(finite, Code.RUNNING, Code.NONFINITE_INPUT) + none
        rhs, tally = own.mask(finite, rhs), list[int]()
        made = self.solver.init(ops, self._inner(problem, rhs, tally))
        inner = require_state(self.title, made, ("status", "steps"))
        inner = inner._replace(status=own.where(solved, Code.CONVERGED, inner.status))
        before = ServedState(inner, rhs, start, nan, nan, status, none, none + (start is not None), none)
        return self._looked(ops, problem, before, tally, 0)

    def step(self, ops: Backend, problem: LinearProblem, state: ServedState) -> ServedState:
        tally: list[int] = []
        before = state.inner.products if "products" in state.inner._fields else 0
        made = self.solver.step(ops, self._inner(problem, state.rhs, tally), state.inner)
        inner = require_state(self.title, made, before=state.inner)
        return self._looked(ops, problem, state._replace(inner=inner, calls=state.calls + 1), tally, before)

    def _inner(self, problem: LinearProblem, rhs: Vector, tally: list[int] | None) -> LinearProblem:
        """The system as the solver sees it."""
        operator = problem.operator if tally is None else Counted(problem.operator, tally.append)
        return replace(problem, operator=operator, rhs=rhs, x0=None)

    def _judged(self, ops: Any, b: Vector, r: Vector, x: Vector) -> tuple[Scalar, Scalar]:
        """The norm of r = b - A x, and the model: 1/2 x.(A x - 2 b), or 1/2 (r.r - b.b) of least squares."""
        square = ops.dot(r, r)
        model = -(ops.dot(x, b) + ops.dot(x, r)) if self.solver.square else square - ops.dot(b, b)
        return ops.sqrt(square), 0.5 * model + 0.0

    def _is_false(self, ops: Any, b: Vector, status: Scalar, residual: Scalar) -> Scalar:
        """Whether a status claims something of A x = b that the residual contradicts."""
        norm = ops.sqrt(ops.dot(b, b))
        kept = most = 1.01 * norm  # x = 0 does as well
        options = (getattr(self.solver, "rtol", None), norm), (getattr(self.solver, "atol", None), 1.0)
        asked = [tolerance * size for tolerance, size in options if tolerance is not None]
        if asked and self.solver.square:
            kept = ops.minimum(most, 1.01 * reduce(ops.maximum, asked) + 4.0 * ops.eps(b) * norm)
        other = (status == Code.LEAST_SQUARES) | (status == Code.INVARIANT)
        contradicted = ops.logical_not(residual <= ops.where(other, most, kept))
        return ((status == Code.CONVERGED) | other) & contradicted

    def _looked(
        self, ops: Backend, problem: LinearProblem, s: ServedState, tally: list[int], before: Scalar
    ) -> ServedState:
        """The state once the solver's own is new: whether it has ended, and then what is known of its end."""
        own, inner, running = self.solver.arithmetic(ops, problem), s.inner, s.status == Code.RUNNING
        seen = self._inner(problem, s.rhs, None)
        limit = self.solver.limit(problem)
        late = (inner.status == Code.RUNNING) & ((inner.steps >= limit) | (s.calls >= 4 * limit + 100))
        status = verdict(own, s.status, (running & late, at_limit(self.solver)), (running, inner.status))
        ended = running & (status != Code.RUNNING)
        spent = inner.products - before if "products" in inner._fields else own.where(running, len(tally), 0)
        row = require_row(self.title, self.solver.observe(inner), tuple(getattr(s.status, "shape", ())))

        def close(status: Scalar, residual: Scalar, model: Scalar, products: Scalar) -> tuple[Scalar, ...]:
            if not row.keys() >= _FACTS:
                own_copy = optree.tree_map(lambda x: ops.copy(x) if ops.is_array(x) else x, inner)  # to be consumed
                d = self._answer(ops, seen, own_copy)
                moved = own.logical_not(own.max_abs(d) == 0)  # zero takes no product
                zero = ops.zeros_like
                (Ad,) = ops.branch(own.any(moved), lambda d: (seen.operator.apply(d),), lambda d: (zero(seen.rhs),), d)
                x = d if s.start is None else ops.axpy(1.0, s.start[0], d)
                norm, value = self._judged(own, problem.rhs, own.axpby(1.0, seen.rhs, -1.0, Ad), x)
                products = products + own.where(ended & moved, 1, 0)
                residual, model = own.where(ended, norm, residual), own.where(ended, value, model)
            false = ended & self._is_false(own, seen.rhs, status, residual)
            return own.where(false, Code.STAGNATED, status), residual, model, products

        known = status, own.where(running, row.get("residual", s.residual), s.residual), s.model, s.products + spent
        status, residual, model, products = ops.branch(own.any(ended), close, lambda *known: known, *known)
        inner = inner._replace(status=status)  # so that a run that was ended stays so
        return ServedState(inner, s.rhs, s.start, residual, model, status, inner.steps, products, s.calls)

    def observe(self, state: ServedState) -> Any:
        told = self.solver.observe(state.inner)._asdict()
        if state.start is not None and "model" in told:
            told["model"] = told["model"] + state.start[1]
        looked = {} if told.keys() >= _FACTS else {"residual": state.residual}
        told = {"residual": state.residual, "model": state.model, **told, **looked}
        return row_type("ServedRow", tuple(told))(**told)

    def _answer(self, ops: Backend, problem: LinearProblem, state: Any) -> Vector:
        """The solver's own answer, once it is known to be one."""
        shape = (problem.operator.domain.width, *problem.rhs.shape[1:])
        answer = self.solver.answer(ops, problem, state)
        return require_vector(f"{self.title}.answer must return", ops, answer, shape, problem.rhs)

    def answer(self, ops: Backend, problem: LinearProblem, state: ServedState) -> Vector:
        x = self._answer(ops, self._inner(problem, state.rhs, None), state.inner)
        return x if state.start is None else ops.axpy(1.0, state.start[0], x)

    def iterates(self, ops: Backend, problem: LinearProblem, state: ServedState, x: Vector) -> Any:
        return self.solver.iterates(ops, problem, state.inner, x) if problem.x0 is None else None


class OneByOneState(NamedTuple):
    """A state for each column, and what they say side by side."""

    each: tuple[Any, ...]
    row: Any
    status: Scalar
    steps: Scalar
    products: Scalar


@record
class OneByOne(Solver):
    """``solver`` on each column by itself; a compiled program holds it once for each."""

    solver: Solver

    def init(self, ops: Backend, problem: LinearProblem) -> OneByOneState:
        return self._told(ops, [self.solver.init(ops, column) for column in _columns(problem)])

    def step(self, ops: Backend, problem: LinearProblem, state: OneByOneState) -> OneByOneState:
        def next_of(column: LinearProblem, s: Any) -> Any:
            ended = ops.is_concrete(s.status) and s.status != Code.RUNNING
            return s if ended else self.solver.step(ops, column, s)

        return self._told(ops, list(map(next_of, _columns(problem), state.each)))

    def _told(self, ops: Backend, each: list[Any]) -> OneByOneState:
        rows = [self.solver.observe(s) for s in each]
        row = type(rows[0])(*map(ops.stack, zip(*rows, strict=True)))
        counts = zip(*((s.status, s.steps, s.products) for s in each), strict=True)
        return OneByOneState(tuple(each), row, *map(ops.stack, counts))

    def observe(self, state: OneByOneState) -> Any:
        return state.row

    def answer(self, ops: Backend, problem: LinearProblem, state: OneByOneState) -> Vector:
        found = [self.solver.answer(ops, *pair) for pair in zip(_columns(problem), state.each, strict=True)]
        stacked: Vector = ops.namespace().stack(found, axis=1)
        return stacked


def _columns(problem: LinearProblem) -> list[LinearProblem]:
    b, x0 = problem.rhs, problem.x0
    return [replace(problem, rhs=b[:, j], x0=None if x0 is None else x0[:, j]) for j in range(b.shape[1])]
