"""Derivatives of solutions, in JAX: one rule over the run, and further solves in it.

The run is a function with rules of its own (:mod:`.rules`), so that a program that
is not differentiated holds the operator once, as before. A tangent of the solution
follows from that h of the defect b - A x at the solution, which is one product
differentiated in the operator's data: dx = A^-1 h, or the derivative of the
solution of least norm (:mod:`linop_gn.implicit`). The solves in it have the same
rules, and are linear in h, hence transposed (``grad``, ``jacrev``, ``linear_transpose``:
solves with A^T), differentiated again, and batched by ``vmap``.

Neither the starting point nor the preconditioner has a derivative: they change
the way to the solution, not the solution.

A compiled program can neither raise nor warn about a solve that nobody sees.
Where the one for a derivative failed, or the one that it belongs to, the
derivative is NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import tree_util

from linop_gn.backend import Scalar, Vector
from linop_gn.implicit import require_implicit, tangent, tangent_solve, trusted
from linop_gn.operators.base import LinearOperator
from linop_gn.operators.function import FunctionOperator
from linop_gn.records import replace
from linop_gn.run.solution import Solution
from linop_gn.solvers.problem import LinearProblem

from .rules import CLOSES, Rule, apply

__all__ = ["constant", "implicit"]

T = TypeVar("T")

Tangents = Sequence[Any]


def implicit(
    ops: Any, run: Callable[[Any, Any], tuple[Vector, Solution]], method: Any, problem: Any
) -> tuple[Vector, Solution]:
    """See :meth:`linop_gn.protocols.Loops.implicit`."""
    data, structure = tree_util.tree_flatten((method, problem.operator))
    way, way_structure = tree_util.tree_flatten((problem.x0, problem.preconditioner))
    told, n, aside = structure, len(data), len(way)
    bare = replace(problem, operator=None, x0=None, preconditioner=None, rhs=None)  # rules outlive the trace

    def given(arguments: Sequence[Any]) -> tuple[Any, Any]:
        method, operator = tree_util.tree_unflatten(structure, arguments[:n])
        x0, inverse = tree_util.tree_unflatten(way_structure, arguments[n:-1])
        return method, replace(bare, operator=operator, x0=x0, preconditioner=inverse, rhs=arguments[-1])

    def call(*arguments: Any) -> list[Any]:
        nonlocal told
        leaves, told = tree_util.tree_flatten(run(*given(arguments)))
        return leaves

    def moved(arguments: Sequence[Any], tangents: Tangents, x: Vector, trust: Any) -> Vector | None:
        method, problem = given(arguments)
        if (name := _closing(problem.operator)) is not None:
            raise NotImplementedError(f"{name} {CLOSES}")
        require_implicit(method, problem, x)
        system = _System(ops, method, problem.operator, problem.preconditioner, problem.rhs, trust)
        return system.tangent(problem.rhs, x, tangents[:n], tangents[-1])

    def jvp(arguments: Sequence[Any], tangents: Tangents, values: Sequence[Any]) -> Tangents:
        x, solution = tree_util.tree_unflatten(told, values)
        trust = _is_trusted(solution.code, given(arguments)[0], arguments[-1])
        return [moved(arguments, tangents, x, trust), *[None] * (len(values) - 1)]

    def transpose(arguments: Sequence[Any], cotangents: Tangents) -> Tangents:
        if any(x is None for x in arguments[:n]):
            raise NotImplementedError(
                "a solution is linear in its right-hand side alone: jax.linear_transpose takes no derivative in the "
                "operator. Use jax.vjp."
            )
        u, operator = cotangents[0], tree_util.tree_unflatten(structure, arguments[:n])[1]
        nothing = jnp.zeros((operator.codomain.width, *u.shape[1:]), operator.codomain.dtype)
        still = [None] * (n + aside)

        def along(rhs: Vector) -> Vector | None:
            return moved([*arguments[:-1], nothing], [*still, rhs], jnp.zeros_like(u), True)

        return [*still, jax.linear_transpose(along, nothing)(u)[0]]

    rule = Rule((structure, way_structure), call, jvp, transpose)
    values = apply(rule, [*data, *way, problem.rhs], _closing(problem.operator) is not None)
    return tree_util.tree_unflatten(told, values)  # type: ignore[no-any-return]


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


def _closing(operator: LinearOperator) -> str | None:
    """The name of a function among the operator's parts that closes over what is being traced; None for none."""
    for child in operator._children():
        if (name := _closing(child)) is not None:
            return name
    functions = (operator.function, operator.adjoint_function) if isinstance(operator, FunctionOperator) else ()
    for function in functions:
        for cell in getattr(function, "__closure__", None) or ():
            held = tree_util.tree_leaves(cell.cell_contents)
            if any(isinstance(leaf, jax.core.Tracer) for leaf in held):
                return getattr(function, "__qualname__", repr(function))
    return None


@dataclass
class _System:
    """A solved system: the derivatives of its solution. ``rhs`` and ``trust`` are those of the first of a chain."""

    ops: Any
    method: Any
    operator: Any
    inverse: Any
    rhs: Vector
    trust: Scalar

    def tangent(self, rhs: Vector, x: Vector, data: Tangents, along: Any) -> Vector | None:
        """dx, for tangents of the leaves of method and operator, and of the right-hand side; None for an exact zero."""
        leaves, structure = tree_util.tree_flatten((self.method, self.operator))
        moving = [i for i, tangent in enumerate(data) if tangent is not None]
        if not moving and along is None:
            return None
        A, inner = tangent(self.method, self.operator)
        solve = functools.partial(_solve, self, inner)
        least = moving and not inner.square
        z, r = (solve(A.T, None, x), self.method.defect(self.operator, rhs, x)) if least else (None, None)

        def at(rhs: Vector, *values: Any) -> tuple[Vector, ...]:
            whole = list(leaves)
            for i, value in zip(moving, values, strict=True):
                whole[i] = value
            method, operator = tree_util.tree_unflatten(structure, whole)
            defect = method.defect(operator, rhs, x)
            if not least:
                return (defect,)
            A = tangent(method, operator)[0]
            return defect, A.rapply(z), A.rapply(r)

        along = jnp.zeros_like(rhs) if along is None else along
        primals, tangents = (rhs, *(leaves[i] for i in moving)), (along, *(data[i] for i in moving))
        h, *normal = jax.jvp(at, primals, tangents)[1]
        if not least:
            return solve(A, self.inverse, h)
        g, s = normal
        w = solve(A.T, None, s)
        return solve(A, None, h + w - A.apply(g)) + g


def _solve(system: _System, method: Any, A: LinearOperator, inverse: LinearOperator | None, h: Vector) -> Vector:
    """A^-1 h, or A^+ h, linear in h: NaN where the solve failed."""
    ops = system.ops
    leaves, structure = tree_util.tree_flatten((method, A))
    way, way_structure = tree_util.tree_flatten((inverse, system.rhs, system.trust))
    n = len(leaves)

    def given(arguments: Sequence[Any]) -> tuple[Any, ...]:
        method, A = tree_util.tree_unflatten(structure, arguments[:n])
        inverse, rhs, trust = tree_util.tree_unflatten(way_structure, arguments[n:-1])
        return _System(ops, method, A, inverse, rhs, trust)

    def call(*arguments: Any) -> list[Any]:
        system, h = given(arguments), arguments[-1]
        problem = LinearProblem(system.operator, system.rhs)
        x, reached = tangent_solve(ops, system.method, problem, system.operator, system.inverse, h)
        failed = ~(system.trust & _is_trusted(reached, system.method, h))
        return [jnp.where(failed & jnp.any(h != 0, axis=0), jnp.nan, x)]

    def jvp(arguments: Sequence[Any], tangents: Tangents, values: Sequence[Any]) -> Tangents:
        return [given(arguments).tangent(arguments[-1], values[0], tangents[:n], tangents[-1])]

    def transpose(arguments: Sequence[Any], cotangents: Tangents) -> Tangents:
        at = given(arguments)
        M = at.inverse if at.inverse is None else at.inverse.T
        return [*[None] * (len(arguments) - 1), _solve(at, at.method, at.operator.T, M, cotangents[0])]

    return apply(Rule((structure, way_structure), call, jvp, transpose), [*leaves, *way, h])[0]


def _is_trusted(code: Scalar, method: Any, h: Vector) -> Scalar:
    """Whether a status, or each column's, is that of a solution."""
    good = functools.reduce(jnp.logical_or, [jnp.equal(code, status) for status in trusted(method)])
    return good if good.shape == h.shape[1:] else jnp.all(good)  # one for each block of a vector
