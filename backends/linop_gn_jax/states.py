"""What a loop carries: states whose leaves keep their shape and dtype, and the rows observed of them.

A compiled loop wants the same types at its end as at its start. Methods are
written carelessly about Python numbers, so a step's result is cast back to what
``init`` made, unless that would round it or change its shape: those are errors.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, tree_util

from linop_gn.backend import Array, Iteration

from .arithmetic import floats_like
from .compiled import tracing

__all__ = ["like", "numbers_as_arrays", "observed", "row_dtype", "settle"]


def numbers_as_arrays(method: Any, problem: Any) -> Any:
    """``method`` with its Python floats as arrays of the dtype of ``problem.like``.

    A Python float and an array are two types to the compiler. A damping that is first
    a number and then, taken from a result, an array would compile twice.
    """
    return method if tracing() else floats_like(method, getattr(problem, "like", None))


def _keys(tree: Any) -> list[tuple[str, Any]]:
    return [(tree_util.keystr(path), leaf) for path, leaf in tree_util.tree_flatten_with_path(tree)[0]]


def _cast(leaf: Any, dtype: Any) -> Array:
    """``leaf`` in exactly this dtype; a weakly typed one would change its type at the next operation."""
    return leaf if jnp.issubdtype(dtype, jax.dtypes.extended) else lax.convert_element_type(leaf, dtype)


def settle(state: Any, problem: Any) -> Any:
    """Every leaf of an initial state an array of its own, so that it can be donated; Python's integers are int32."""

    def settled(leaf: Any) -> Array:
        dtype = jnp.result_type(leaf)
        counts = jnp.issubdtype(dtype, jnp.integer) and getattr(leaf, "weak_type", isinstance(leaf, int))
        return jnp.copy(_cast(leaf, jnp.int32 if counts else dtype))

    return tree_util.tree_map(settled, floats_like(state, getattr(problem, "like", None)))


def like(before: Any, after: Any, method: Iteration) -> Any:
    """The state ``after`` a step in the dtypes of the one ``before``.

    Raises
    ------
    TypeError
        If the step changed the structure, a shape, or the kind of number.
    """
    step = f"{getattr(method, 'title', type(method).__name__)}.step"
    if tree_util.tree_structure(before) != tree_util.tree_structure(after):
        raise TypeError(
            f"{step} returned a state of another structure than it was given: {tree_util.tree_structure(after)} "
            f"instead of {tree_util.tree_structure(before)}. A state keeps its fields, None where it had None; what "
            "a step computes anew must have its place in init already."
        )
    pairs = zip(_keys(before), _keys(after), strict=True)
    leaves = [_like_leaf(f"{step} turned state{key}", old, new) for (key, old), (_, new) in pairs]
    return tree_util.tree_unflatten(tree_util.tree_structure(before), leaves)


def _like_leaf(what: str, old: Any, new: Any) -> Array:
    if np.shape(old) != np.shape(new):
        raise TypeError(
            f"{what} from shape {np.shape(old)} into shape {np.shape(new)}; a scalar that differs from column to "
            "column starts as ops.scalar(value, like=vector) in init."
        )
    have, need = jnp.result_type(new), jnp.result_type(old)
    if have != need and not np.can_cast(have, need, "same_kind"):
        raise TypeError(
            f"{what} from {need} into {have}, which would be rounded; give it the wider kind of number in init "
            "(0.0 instead of 0)."
        )
    return _cast(new, need)


def observed(method: Iteration, state: Any, dtype: Any) -> Array:
    """The row (fields[, k]) of the history that belongs to ``state``."""
    fields = list(method.observe(state))
    return jnp.stack([jnp.asarray(x, dtype) for x in jnp.broadcast_arrays(*map(jnp.asarray, fields))])


def row_dtype(method: Iteration, state: Any) -> Any:
    """The widest float dtype in a row, at least float32."""
    dtypes = map(jnp.result_type, method.observe(state))
    return jnp.result_type(jnp.float32, *[dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)])
