"""Derivatives of solutions, in JAX: one rule over the run, and one more solve in it.

The run is the primal function of a ``jax.custom_jvp``, so that a program that
is not differentiated holds the operator once, as before. The rule takes the
tangent h of the defect b - A x at the solution, which is one product
differentiated in the operator's data, and solves A dx = h by
``lax.custom_linear_solve``: linear in h, hence transposed by JAX (``grad``,
``jacrev``: one solve with A^T) without either loop being passed through,
batched by ``vmap``, and differentiated again.

Neither the starting point nor the preconditioner has a derivative: they change
the way to the solution, not the solution.

A compiled program can neither raise nor warn about a solve that nobody sees.
Where the one for a derivative failed, or the one that it belongs to, the
derivative is NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax, tree_util
from jax.custom_derivatives import SymbolicZero, zero_from_primal

from linop_gn.backend import Scalar, Vector
from linop_gn.implicit import require_implicit, tangent, tangent_solve, trusted
from linop_gn.operators.base import LinearOperator
from linop_gn.operators.function import FunctionOperator
from linop_gn.run.solution import Solution

__all__ = ["constant", "implicit"]

T = TypeVar("T")

Run = Callable[[Any, Any], tuple[Vector, Solution]]

_no_tangent = functools.partial(zero_from_primal, symbolic_zeros=True)


def implicit(
    ops: Any, run: Callable[[Any, Any], tuple[Vector, Solution]], method: Any, problem: Any
) -> tuple[Vector, Solution]:
    """See :meth:`linop_gn.protocols.Loops.implicit`."""
    data, structure = tree_util.tree_flatten((method, problem))

    @jax.custom_jvp
    def solved(*data: Any) -> tuple[Vector, Solution]:
        return run(*tree_util.tree_unflatten(structure, data))

    def rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
        method, problem = tree_util.tree_unflatten(structure, primals)
        _require_data(problem.operator)
        x, told = solved(*primals)
        h = _defect_tangent(method, problem, tree_util.tree_unflatten(structure, tangents), x)
        dx = _no_tangent(x) if h is None else _tangent_solve(ops, method, problem, told.code, h)
        return (x, told), (dx, tree_util.tree_map(_no_tangent, told))

    solved.defjvp(rule, symbolic_zeros=True)
    return solved(*data)


def constant(tree: T, advice: str) -> T:
    """See :meth:`linop_gn.protocols.Loops.constant`."""
    leaves, structure = tree_util.tree_flatten(tree)
    traced = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.core.Tracer)]

    if not traced:
        return tree

    @jax.custom_jvp
    def same(*values: Any) -> tuple[Any, ...]:
        return values

    def rule(primals: Any, tangents: Any) -> Any:
        raise NotImplementedError(advice)

    same.defjvp(rule)
    for i, value in zip(traced, same(*(leaves[i] for i in traced)), strict=True):
        leaves[i] = value
    return tree_util.tree_unflatten(structure, leaves)  # type: ignore[no-any-return]


def _defect_tangent(method: Any, problem: Any, tangents: tuple[Any, Any], x: Vector) -> Vector | None:
    """The derivative of the defect at a fixed x, along the tangents of method and problem; None for an exact zero."""
    require_implicit(method, problem, x)
    data, structure = tree_util.tree_flatten((method, problem.operator, problem.rhs))
    along = tree_util.tree_leaves((tangents[0], tangents[1].operator, tangents[1].rhs))
    moving = [i for i, tangent in enumerate(along) if not isinstance(tangent, SymbolicZero)]
    if not moving:
        return None

    def at(*values: Any) -> Vector:
        whole = list(data)
        for i, value in zip(moving, values, strict=True):
            whole[i] = value
        method, operator, rhs = tree_util.tree_unflatten(structure, whole)
        return method.defect(operator, rhs, x)  # type: ignore[no-any-return]

    return jax.jvp(at, tuple(data[i] for i in moving), tuple(along[i] for i in moving))[1]  # type: ignore[no-any-return]


def _require_data(operator: LinearOperator) -> None:
    """Refuse functions that close over what is being traced, which no rule sees."""
    for child in operator._children():
        _require_data(child)
    if not isinstance(operator, FunctionOperator):
        return
    for function in (operator.function, operator.adjoint_function):
        for cell in getattr(function, "__closure__", None) or ():
            held = tree_util.tree_leaves(cell.cell_contents)
            if any(isinstance(leaf, jax.core.Tracer) for leaf in held):
                name = getattr(function, "__qualname__", repr(function))
                raise NotImplementedError(
                    f"{name} closes over arrays that are traced, so that the derivative of a solution would leave them "
                    "out. Hand them to the operator: lg.FunctionOperator(..., args=(array,))."
                )


def _tangent_solve(ops: Any, method: Any, problem: Any, code: Scalar, h: Vector) -> Vector:
    """A^-1 h, linear in h, for a solution whose status is ``code``."""
    A, inner = tangent(method, problem.operator)
    M = problem.preconditioner

    def solver(A: LinearOperator, M: LinearOperator | None) -> Callable[..., Vector]:
        def solve(_: Any, h: Vector) -> Vector:
            x, reached = tangent_solve(ops, inner, problem, A, M, h)
            failed = ~(_is_trusted(code, method, h) & _is_trusted(reached, inner, h))
            return jnp.where(failed & jnp.any(h != 0, axis=0), jnp.nan, x)

        return solve

    if A.symmetric:
        return lax.custom_linear_solve(A.apply, h, solver(A, M), symmetric=True)  # type: ignore[no-any-return]
    transposed = solver(A.T, None if M is None else M.T)
    return lax.custom_linear_solve(A.apply, h, solver(A, M), transposed)  # type: ignore[no-any-return]


def _is_trusted(code: Scalar, method: Any, h: Vector) -> Scalar:
    """Whether a status, or each column's, is that of a solution."""
    good = functools.reduce(jnp.logical_or, [jnp.equal(code, status) for status in trusted(method)])
    return good if good.shape == h.shape[1:] else jnp.all(good)  # one for each block of a vector
