"""Solve a linear system: the door to all solvers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from .arguments import whole
from .distributed.agreed import require_alike
from .distributed.watching import telling, together, told_to_all
from .foreign import advised
from .operators.base import LinearOperator, require_operator
from .protocols import Carry
from .records import Partial, rebuild, replace
from .run.loop import Look, Reached, Watcher, drive, looks, watchers_of
from .run.solution import Solution
from .run.status import Code, is_one_of
from .solvers import CG, LinearProblem
from .solvers.base import Solver, require_solver
from .solvers.options import scaled_rhs, unfit_status
from .solvers.problem import require_fit
from .solvers.served import served

__all__ = ["solve", "steps"]


def steps(A: LinearOperator, b: Any, method: Solver | None = None, *, x0: Any = None, every: int = 1) -> Iterator[Look]:
    """The same run as :func:`solve`, handed to the caller a look at a time: the caller owns the loop.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Diagonal(np.array([1.0, 2.0, 3.0]))
    >>> [look.step for look in lg.steps(A, np.ones(3), lg.CG(steps=2))]
    [0, 1, 2]
    """
    with telling(getattr(A, "reduction", None)):
        solver, problem, _ = _linear(A, b, method, x0, getattr(A, "reduction", None))
    every = whole("steps", "every", every, 1)
    for look, _ in looks(A.backend, served(solver, problem), problem, solver.limit(problem), every, solver.title):
        yield look


@told_to_all
@advised
def solve(
    A: LinearOperator,
    b: Any,
    method: Solver | None = None,
    *,
    x0: Any = None,
    watch: Sequence[Watcher] = (),
    every: int | None = None,
) -> Solution:
    """Solve A x = b, or the least-squares problem that the method says.

    Parameters
    ----------
    A
        Operator (m, n); a method may ask for more (CG: symmetric).
    b
        Right-hand side, a vector of the codomain in any format: tree, flat (m,), columns (m, k).
    method
        Solver; ``CG()`` by default.
    x0
        Starting point, a vector of the domain with as many columns as b; None is zero and costs no product.
    watch
        Watchers, such as ``lg.ProgressBar()``; they are shown a look every ``every`` ticks: 1, or 25 where a tick is
        part of a compiled program, unless you say so.

    Returns
    -------
    Solution
        ``x`` in the format of ``A.T @ b`` (that of b where A is square), ``status``, ``steps``, ``products``,
        ``residual``, ``model``, ``history``; ``iterates`` where the method kept any.

    >>> import numpy as np, linop_gn as lg
    >>> step = lg.solve(lg.Diagonal(np.array([1.0, 4.0])), np.array([1.0, 2.0]), lg.CG(rtol=1e-8))
    >>> step.status.name, step.x
    ('CONVERGED', array([1. , 0.5]))

    Raises
    ------
    TypeError, ValueError
        For vectors of another framework, shape, dtype or device, an operator that the
        method does not take, or watchers inside a compiled function.
    Exception
        What a product, a watcher or Ctrl-C raises on the way leaves with the solution so far as its attribute
        ``result``; not where the run is one compiled program. Its residual and model, and the last row of its history,
        are those of its ``x``, by one more product, for the step that was broken off may have moved x already.
    """
    reduction = getattr(A, "reduction", None)
    solver, problem, leave = _linear(A, b, method, x0, reduction, lent=True)
    shown = together(reduction, A.backend, problem.rhs, watchers_of(watch))
    backend, domain = A.backend, A.domain  # what outlives a trace holds no operator

    def run(solver: Solver, problem: LinearProblem) -> tuple[Any, Solution]:
        method = served(solver, problem)

        def told(carry: Carry, ended: bool) -> tuple[Any, Solution]:
            state, rows = carry
            partition = solver.partition(problem)
            ops = backend if partition is None else solver.arithmetic(backend, problem)
            with np.errstate(over="ignore", invalid="ignore"), backend.unguarded():  # the status tells
                row = method.observe(state)
                x = method.answer(backend, problem, state)
                products = state.products
                if not ended and isinstance(rows, list):  # a step that was broken off may have written over x already
                    with suppress(BaseException):  # what broke the run off may do so again
                        row, looks = solver.recomputed(ops, problem, x, row)
                        products = products + looks
                    del rows[int(np.max(state.steps)) :]
                    rows.append(row)
                end = problem.rhs, x, state.status, row.residual, row.model
                held = backend.call(Partial(_held_finite, ops), *end) if ops is backend else _held_finite(ops, *end)
                x, code, residual, model, small = held
                if ended and small is not False and backend.is_concrete((x, code)):  # else it were in every program
                    code, residual, looks = _held_small(ops, solver, problem, x, code, residual, small)
                    products = products + looks
                iterates = method.iterates(backend, problem, state, x)
            parts = {
                "code": code,
                "steps": state.steps,
                "products": products,
                "rows": rows if not isinstance(rows, list) else backend.rows(carry, 0, len(rows)),
                "names": type(row)._fields,
                "method": solver.title,
                "x": None,
                "residual": residual,
                "model": model,
                "iterates": iterates,
                "blocks": None if partition is None else tuple(block.name for block in partition),
            }
            return x, rebuild(Solution, parts)  # a constructor sets each by itself

        advice = "error.result has the latest x" + ", to go on from (x0=)." * solver.solves_system
        with Reached(lambda carry: leaving(*told(carry, False)), advice):
            carry = drive(backend, method, problem, solver.limit(problem), shown, every, solver.title)
        return told(carry, True)

    def leaving(x: Any, solution: Solution) -> Solution:
        made = rebuild(Solution, vars(solution) | {"x": leave(x, domain)})
        if solution.iterates is None:
            return made
        return replace(made, iterates=solution.iterates.leave(lambda v: leave(v, domain)))

    return leaving(*backend.implicit(run, solver, problem, A))


CLAIMS = (Code.CONVERGED, Code.LEAST_SQUARES, Code.INVARIANT, Code.UNEXPLORED)
"""Successes that say something of the residual."""


def _held_finite(ops: Any, b: Any, x: Any, status: Any, residual: Any, model: Any) -> tuple[Any, ...]:
    """An answer out of its dtype's range is no answer: zero then, the residual there, and a status that says so.

    The last value says whether parts of x are so small beside the largest that they may have underflown.
    """
    if type(status) is int and status != Code.NONFINITE_INPUT:  # where work is eager
        square = ops.dot(x, x)  # takes half as long as the largest entry, of which it says enough nearly always
        if type(square) is float and 1e-32 * x.shape[0] < square < math.inf and ops.eps(x) < 1e-6:
            return x, status, residual, model, False
    largest = ops.max_abs(x)
    small = ops.logical_not(unfit_status(ops, largest, ops.eps(x) ** 3, x)[0])
    plain = (largest > 0) & (largest < math.inf)
    if getattr(plain, "shape", ()) != getattr(status, "shape", ()):
        return x, status, ops.where(status == Code.NONFINITE_INPUT, math.nan, residual), model, small

    def replace(status: Any, residual: Any, model: Any) -> tuple[Any, ...]:
        r, scale, *_ = scaled_rhs(ops, b)
        norm = ops.where(plain, residual, scale * ops.sqrt(ops.dot(r, r)))
        status = ops.where(is_one_of(status, CLAIMS) & (norm > 1.001 * residual), Code.STAGNATED, status)
        return ops.where(plain | (largest == 0), status, Code.NONFINITE), norm, ops.where(plain, model, 0.0)

    held = status, residual, model
    status, residual, model = ops.branch(ops.any(ops.logical_not(plain)), replace, lambda *held: held, *held)
    unknown = status == Code.NONFINITE_INPUT
    small = small & ops.logical_not(unknown)
    return ops.mask(plain, x), status, ops.where(unknown, math.nan, residual), model, small


def _held_small(
    ops: Any, solver: Solver, problem: LinearProblem, x: Any, status: Any, residual: Any, small: Any
) -> tuple[Any, ...]:
    """Of an answer so small that parts of it may have underflown: status, the residual of what is left, products."""
    b = problem.rhs
    alone = x.shape[1:] == b.shape[1:]  # or one b has many answers, and their solver says what of
    known = alone or type(solver).defect is not Solver.defect
    alike = getattr(small, "shape", ()) == getattr(status, "shape", ())
    if not (known and alike and ops.read(ops.any(small))):
        return status, residual, 0
    r, scale, inverse, *_ = scaled_rhs(ops, b)
    norm = scale * ops.sqrt(ops.dot(r, r))
    defect = solver.defect if solver.square else partial(Solver.defect, solver)  # without the damping
    r = defect(problem.operator, r, ops.scale(inverse, ops.copy(x)))
    left = scale * ops.sqrt(ops.dot(r, r))
    risky = small if solver.square else small & (left > residual)  # damping may be in the residual that was told
    tolerance = getattr(solver, "rtol", getattr(solver, "btol", ops.eps(x) ** 0.5))
    atol = getattr(solver, "atol", 0.0) if solver.square else 0.0  # that of LSQR is relative
    missed = left > ops.maximum(tolerance * norm, ops.maximum(atol, 1.001 * residual))
    status = ops.where(risky & missed & is_one_of(status, CLAIMS), Code.STAGNATED, status)
    looks = ops.where(small, 1, 0)
    return status, ops.where(risky, left, residual), looks if alone else looks.sum()


def _linear(
    A: LinearOperator, b: Any, method: Solver | None, x0: Any, reduction: Any, lent: bool = False
) -> tuple[Solver, LinearProblem, Callable[..., Any]]:
    require_operator("solve", A)
    method = CG() if method is None else method
    require_solver("solve", method, "a solver such as lg.CG() as its third argument")
    method.check(A)
    rhs, leave = A.codomain.enter(b, "right-hand side", lent)
    columns = tuple(rhs.shape[1:])
    if 0 in columns:
        raise ValueError(f"the right-hand side of shape {tuple(rhs.shape)} has no columns: there is nothing to solve.")
    for name in ("rtol", "atol", "btol", "conlim"):
        tolerance = getattr(method, name, 0.0)
        if type(tolerance) is float:
            continue
        shape = tuple(np.shape(tolerance))
        if shape not in ((), columns if "columns" in method.supports else ()):
            raise ValueError(
                f"{type(method).__name__}: {name} has shape {shape}, and b {tuple(rhs.shape)}: give one number, or one "
                "for each column."
            )
    start = None
    if x0 is not None:
        start, _ = A.domain.enter(x0, "starting point x0")
        if tuple(start.shape[1:]) != tuple(rhs.shape[1:]):
            raise ValueError(f"x0 has shape {tuple(start.shape)} but b has {tuple(rhs.shape)}; give them alike.")
    require_alike(reduction, "solve", A.domain, (A, method), right_hand_side=rhs, starting_point=start)
    inner = method.preconditioner
    with A.backend.unguarded():
        if inner is not None:
            inner = inner if isinstance(inner, LinearOperator) else inner(A)
            require_fit(inner, A)
            method = replace(method, preconditioner=None)  # the problem has it now
        problem = LinearProblem(method.prepared(A), rhs, start, inner)
        ready = inner is None and type(method).prepared is Solver.prepared
        return method, problem if ready else problem.prepare(), leave
