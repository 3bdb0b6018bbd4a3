"""Methods and solvers as gradient transformations of optax, by lg.to_optax."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import linop_gn as lg
from linop_gn.backend import Array, Scalar, Vector
from linop_gn.methods.state import told
from linop_gn.run.status import Code, status_of

from .models import parameters_of, variables_of

__all__ = ["MethodState", "SolverState", "solving", "stepping"]


class MethodState(NamedTuple):
    """A run of a method between two updates, without the operators, which the next one makes on its own data."""

    own: Any
    """The method's own state."""
    start: Vector
    """Where the run began, flat."""

    @property
    def value(self) -> Scalar:
        """The objective, on the data of the latest step."""
        return self.own.value

    @property
    def status(self) -> Any:
        """What the latest step says: an ``lg.Status``."""
        return status_of(self.own.status)

    @property
    def steps(self) -> Scalar:
        """Steps so far."""
        return self.own.steps

    @property
    def products(self) -> Scalar:
        """Products with the curvature so far; 0 of a method that has none."""
        return getattr(self.own, "products", 0)

    def __repr__(self) -> str:
        if isinstance(self.own.value, (jax.Array, np.ndarray, np.generic)):
            return told(lg.load("jax"), "to_optax", self.own)
        return f"{type(self).__name__}(own={self.own!r}, start={self.start!r})"  # mapped over: shapes, or shardings


class SolverState(NamedTuple):
    """What the latest solve says."""

    steps: Array
    """Updates so far."""
    code: Array
    products: Array
    """Of the latest solve."""

    @property
    def status(self) -> Any:
        """How the latest solve ended: an ``lg.Status``."""
        return status_of(self.code)


_OF_NEIGHBOURS = {"value", "grad", "value_fn", "grad_fn", "obj_fn", "loss", "key"}
"""What optax's own transformations are given beside the gradient, whatever the data are."""


def _asked(base: lg.Objective, objective: Any, data: Any, params: Any, others: dict[str, Any]) -> lg.Objective:
    unknown = sorted(others.keys() - _OF_NEIGHBOURS)
    if unknown and data is None and objective is None:  # optax hands on any keyword, a mistyped data= as well
        raise TypeError(
            f"to_optax: update was given {'=, '.join(unknown)}=, and neither data= nor objective=: it would go on "
            "with the data that the objective was made with. Write data=batch; where those data are meant, and the "
            "keyword is for another in the chain, objective=objective says so."
        )
    if params is None:
        raise ValueError(
            "to_optax: update needs the parameters as its third argument, update(updates, state, params): curvature is "
            "that of the objective there."
        )
    if not isinstance(objective, lg.Objective | None):
        raise TypeError(f"to_optax: objective= is an lg.Objective, got {type(objective).__qualname__}.")
    objective = base if objective is None else objective
    return objective if data is None else objective.with_data(data)


def _of_jax(state: Any) -> Any:
    """``state`` in arrays of JAX: checkpoints give back those of NumPy."""
    held = (np.ndarray, np.generic)
    return jax.tree_util.tree_map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, held) else leaf, state)


def _require_alike(start: Vector, x: Vector) -> None:
    """Raise where the parameters of an update are no longer those that ``init`` saw."""
    was, now = ([(leaf.shape, str(leaf.dtype)) for leaf in jax.tree_util.tree_leaves(v)] for v in (start, x))
    if was != now:
        raise ValueError(
            f"to_optax: the parameters of update are vectors of {_told(now)}, those that init was given of "
            f"{_told(was)}, which the state is of. Give update the parameters, in the dtype, that init was given, "
            "or call init again."
        )


def _told(leaves: list[tuple[tuple[int, ...], str]]) -> str:
    return " and ".join(f"{math.prod(shape)} {dtype}" for shape, dtype in leaves)


@contextmanager
def _masks_explained(params: Any) -> Iterator[None]:
    """Say what to do where the objective cannot take parameters of which ``optax.masked`` has hidden some."""
    try:
        yield
    except Exception as error:
        seen = jax.tree_util.tree_leaves(params, is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode))
        if any(isinstance(leaf, optax.MaskedNode) for leaf in seen):
            raise TypeError(
                "to_optax: optax.masked or optax.partition (multi_transform) hides parameters that the objective needs "
                "(they are MaskedNode here). Write an objective of the others, whose model puts the hidden ones in, as "
                "docs/with_optax.md shows."
            ) from error
        raise


def stepping(base: lg.Objective, method: lg.Method) -> optax.GradientTransformationExtraArgs:
    """Updates that are steps of ``method``."""

    def kept(state: lg.State) -> MethodState:
        bare = state.without_operators()
        return MethodState(bare.own, bare.start)

    def init(params: Any) -> MethodState:
        with _masks_explained(params):
            return kept(lg.start(method, base, params))

    def update(
        updates: Any, state: MethodState, params: Any = None, *, data: Any = None, objective: Any = None, **others: Any
    ) -> tuple[Any, MethodState]:
        asked, state = _asked(base, objective, data, params, others), _of_jax(state)
        space, leaves = lg.Space.entered(params)
        x = space.join(leaves)  # which others in the chain may have changed
        _require_alike(state.start, x)
        own = state.own._replace(x=x)
        with _masks_explained(params):
            made = lg.advance(method, asked, lg.State(own, state.start, method, space), fresh=True)
        step = jax.tree_util.tree_map(jnp.subtract, parameters_of(made.params), parameters_of(params))
        return variables_of(step), kept(made)

    return optax.GradientTransformationExtraArgs(init, update)


def solving(base: lg.Objective, curvature: Any, solver: Any, damping: Any) -> optax.GradientTransformationExtraArgs:
    """Updates that solve with a damped curvature."""
    curvature = lg.GGN if curvature is None else curvature

    def init(params: Any) -> SolverState:
        return SolverState(jnp.int32(0), jnp.int32(Code.RUNNING), jnp.int32(0))

    def update(
        updates: Any, state: SolverState, params: Any = None, *, data: Any = None, objective: Any = None, **others: Any
    ) -> tuple[Any, SolverState]:
        if updates is None:
            raise TypeError(
                "to_optax: a curvature with a solver solves with what comes in: update needs the gradient as its first "
                "argument, got None. A method, lg.SGN() for instance, takes the gradient from the objective."
            )
        state = _of_jax(state)
        level = damping(state.steps) if callable(damping) else damping
        with _masks_explained(params):
            A = curvature(_asked(base, objective, data, params, others).at(params))
            solved = lg.solve(lg.Damped(A, jnp.asarray(level, A.dtype)), updates, solver)
        told = SolverState(state.steps + 1, jnp.int32(solved.code), jnp.int32(solved.products))
        return variables_of(jax.tree_util.tree_map(jnp.negative, parameters_of(solved.x))), told

    return optax.GradientTransformationExtraArgs(init, update)
