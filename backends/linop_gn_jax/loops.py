"""Methods as compiled loops, with their history on the device.

``begin``, ``advance``, ``run`` and ``iterate`` are each one program whose
arguments are the method and the problem, as data: other parameters, another
batch, damping or tolerance run the same program. The carry of ``advance`` is
donated, so that a step writes over the vectors of the one before.

Rows are observed into a preallocated array (capacity + 1, fields[, k]) of the
state's float dtype, at least float32 (integers are exact there up to 2^24).

A problem that draws its data from the host (``problem.host``) cannot be traced.
Its loop runs in Python, on scalars that stay on the device until the loop asks
whether the method still runs; what is inside a step is compiled on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, tree_util

from linop_gn.eager import EagerLoops
from linop_gn.protocols import Array, Carry, Method, Vector
from linop_gn.status import Status

from .compiled import compiled, tracing

__all__ = ["JaxLoops"]

R = TypeVar("R")


def _is_running(state: Any) -> Array:
    return jnp.any(jnp.equal(state.status, int(Status.RUNNING)))


def _keys(tree: Any) -> list[tuple[str, Any]]:
    return [(tree_util.keystr(path), leaf) for path, leaf in tree_util.tree_flatten_with_path(tree)[0]]


def _settle(tree: Any) -> Any:
    """Every leaf an array of its own, of a dtype that further arithmetic does not widen."""
    return tree_util.tree_map(lambda leaf: jnp.copy(lax.convert_element_type(leaf, jnp.result_type(leaf))), tree)


def _like(before: Any, after: Any, method: Method) -> Any:
    """The state ``after`` a step in the dtypes of the one ``before``.

    Raises
    ------
    TypeError
        If the step changed the structure, a shape, or the kind of number.
    """
    step = f"{type(method).__name__}.step"
    if tree_util.tree_structure(before) != tree_util.tree_structure(after):
        raise TypeError(
            f"{step} returned a state of another structure than it was given: {tree_util.tree_structure(after)} "
            f"instead of {tree_util.tree_structure(before)}. A state keeps its fields, None where it had None; what "
            "a step computes anew must have its place in init already."
        )
    settled = []
    for (key, old), (_, new) in zip(_keys(before), _keys(after), strict=True):
        if np.shape(old) != np.shape(new):
            raise TypeError(
                f"{step} changed the shape of state{key} from {np.shape(old)} to {np.shape(new)}; a scalar that differs "
                "from column to column starts as ops.scalar(value, like=vector) in init."
            )
        if not np.can_cast(jnp.result_type(new), jnp.result_type(old), "same_kind"):
            raise TypeError(
                f"{step} turned state{key} from {jnp.result_type(old)} into {jnp.result_type(new)}, which would be "
                "rounded; give it the wider kind of number in init (0.0 instead of 0)."
            )
        settled.append(lax.convert_element_type(new, jnp.result_type(old)))
    return tree_util.tree_unflatten(tree_util.tree_structure(before), settled)


def _stepper(ops: Any, method: Method, problem: Any) -> Callable[[Any], Any]:
    return lambda state: _like(state, method.step(ops, problem, state), method)


def _row(method: Method, state: Any, dtype: Any) -> Array:
    fields = list(method.observe(state))
    return jnp.stack([jnp.asarray(x, dtype) for x in jnp.broadcast_arrays(*map(jnp.asarray, fields))])


def _row_dtype(method: Method, state: Any) -> Any:
    return jnp.result_type(jnp.float32, *[x for x in method.observe(state) if jnp.issubdtype(jnp.result_type(x), jnp.floating)])


def _begin(ops: Any, method: Method, problem: Any, capacity: int) -> Carry:
    state = _settle(method.init(ops, problem))
    first = _row(method, state, _row_dtype(method, state))
    values = jnp.zeros((capacity + 1, *first.shape), first.dtype).at[0].set(first)
    return Carry(state, values)


def _tick(ops: Any, method: Method, problem: Any) -> Callable[[Carry], Carry]:
    step = _stepper(ops, method, problem)

    def tick(carry: Carry) -> Carry:
        state = step(carry.state)
        row = _row(method, state, carry.rows.dtype)
        return Carry(state, lax.dynamic_update_index_in_dim(carry.rows, row, jnp.max(state.steps), 0))

    return tick


def _advance(ops: Any, method: Method, problem: Any, carry: Carry, steps: Any) -> Carry:
    tick = _tick(ops, method, problem)

    def go_on(counted: tuple[Any, Carry]) -> Array:
        return (counted[0] < steps) & _is_running(counted[1].state)

    return lax.while_loop(go_on, lambda counted: (counted[0] + 1, tick(counted[1])), (jnp.int32(0), carry))[1]


def _run(ops: Any, method: Method, problem: Any, capacity: int) -> Carry:
    carry = _begin(ops, method, problem, capacity)
    return lax.while_loop(lambda c: _is_running(c.state), _tick(ops, method, problem), carry)


def _iterate(ops: Any, method: Method, problem: Any) -> Any:
    return lax.while_loop(_is_running, _stepper(ops, method, problem), _settle(method.init(ops, problem)))


def _scan_over(function: Callable[..., tuple[Any, Any]], stacked: Any, shared: tuple[Any, ...]) -> tuple[Any, Any]:
    first = tree_util.tree_map(lambda leaf: leaf[0], stacked)
    part, _ = jax.eval_shape(lambda x, s: function(x, *s), first, shared)

    def add(total: Any, x: Any) -> tuple[Any, Any]:
        part, kept = function(x, *shared)
        return tree_util.tree_map(jnp.add, total, part), kept

    return lax.scan(add, tree_util.tree_map(lambda a: jnp.zeros(a.shape, a.dtype), part), stacked)


def _sum_over(function: Callable[..., R], stacked: Any, shared: tuple[Any, ...]) -> R:
    return _scan_over(lambda *arguments: (function(*arguments), None), stacked, shared)[0]


def _slice(values: Array, start: Any, size: int) -> Array:
    return lax.dynamic_slice_in_dim(values, start, size)


_rows = compiled(_slice, static=(2,), label=lambda *_: "rows")


def _streams(problem: Any) -> bool:
    return bool(getattr(problem, "host", False))


class JaxLoops(EagerLoops):
    """The part of the backend that runs methods; falls back to the Python loops for data on the host."""

    def __init__(self) -> None:
        def named(action: str) -> Callable[..., str]:
            return lambda ops, method, *rest: f"{action} {type(method).__name__}"

        self._programs: dict[tuple[str, Any], Callable[..., Any]] = {}
        self._begin = compiled(_begin, static=(0, 3), label=named("begin"))
        self._advance = compiled(_advance, static=(0,), donate=(3,), label=named("advance"), loops=True)
        self._run = compiled(_run, static=(0, 3), label=named("run"), loops=True)
        self._iterate = compiled(_iterate, static=(0,), label=named("iterate"), loops=True)

    def _program(self, action: str, function: Callable[..., Any], body: Callable[..., Any] | None = None) -> Any:
        """The compiled form of ``function``, or of ``body(function, ...)``: made once."""
        if (action, function) not in self._programs:
            name = f"{action} {getattr(function, '__qualname__', repr(function))}"
            target = function if body is None else lambda *arguments: body(function, *arguments)
            self._programs[action, function] = compiled(target, label=lambda *_: name)
        return self._programs[action, function]

    def call(self, function: Callable[..., R], *records: Any) -> R:
        if any(map(_streams, records)):
            return function(*records)
        return self._program("call", function)(*records)  # type: ignore[no-any-return]

    def begin(self, method: Method, problem: Any, capacity: int) -> Carry:
        if _streams(problem):
            return super().begin(method, problem, capacity)
        return self._begin(self, method, problem, capacity)

    def advance(self, method: Method, problem: Any, carry: Carry, steps: int) -> Carry:
        if _streams(problem):
            return super().advance(method, problem, carry, steps)
        return self._advance(self, method, problem, carry, steps)

    def run(self, method: Method, problem: Any, capacity: int) -> Carry:
        if _streams(problem):
            return super().run(method, problem, capacity)
        return self._run(self, method, problem, capacity)

    def iterate(self, method: Method, problem: Any) -> Any:
        if _streams(problem):
            return super().iterate(method, problem)
        return self._iterate(self, method, problem)

    def rows(self, carry: Carry, start: int, stop: int) -> Any:
        if isinstance(carry.rows, list):
            return super().rows(Carry(carry.state, jax.device_get(carry.rows[start:stop])), 0, stop - start)
        values = carry.rows
        # A few sizes only, so that few programs are compiled; the rest is cut off on the host.
        size = min(1 << max(0, stop - start - 1).bit_length(), values.shape[0])
        first = min(start, values.shape[0] - size)
        return np.asarray(_rows(values, first, size))[start - first : stop - first]

    def sum_over(self, function: Callable[..., R], stacked: Any, *shared: Any) -> R:
        return self._program("sum", function, _sum_over)(stacked, shared)  # type: ignore[no-any-return]

    def scan_over(self, function: Callable[..., tuple[Any, Any]], stacked: Any, *shared: Any) -> tuple[Any, Any]:
        return self._program("scan", function, _scan_over)(stacked, shared)  # type: ignore[no-any-return]

    def shape_of(self, function: Callable[..., Array], *records: Any) -> tuple[int, ...]:
        return tuple(jax.eval_shape(function, *records).shape)

    def over_columns(self, function: Callable[[Vector], Vector], columns: Vector) -> Vector:
        if tracing():
            return lax.map(function, columns.T).T
        return super().over_columns(function, columns)
