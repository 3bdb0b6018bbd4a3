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

import functools
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, tree_util

from linop_gn.backend import Array, Carry, EagerLoops, Iteration, Vector
from linop_gn.run.status import Code

from .compiled import EFFORTS, advised, can_be_quick, compiled, tracing
from .implicit import constant, implicit
from .linear import contains, largest
from .mapped import steady
from .parts import by_rows
from .scanning import scan_over
from .states import like, numbers_as_arrays, observed, row_dtype, settle

__all__ = ["JaxLoops"]

R = TypeVar("R")
T = TypeVar("T")


def _is_running(state: Any) -> Array:
    return jnp.any(jnp.equal(state.status, Code.RUNNING))


def _stepper(ops: Any, method: Iteration, problem: Any) -> Callable[[Any], Any]:
    return lambda state: like(state, method.step(ops, problem, state), method)


MOST_ROWS = 2**23
"""Numbers that a history has room for."""


def _begin(ops: Any, method: Iteration, problem: Any, capacity: int) -> Carry:
    state = settle(method.init(ops, problem), problem)
    first = observed(method, state, row_dtype(method, state))
    capacity = min(capacity, max(MOST_ROWS // max(first.size, 1), 10_000))  # of more steps the last row is the latest
    values = jnp.zeros((capacity + 1, *first.shape), first.dtype).at[0].set(first)
    return Carry(state, values)


def _tick(ops: Any, method: Iteration, problem: Any) -> Callable[[Carry], Carry]:
    step = _stepper(ops, method, problem)

    def tick(carry: Carry) -> Carry:
        state = step(carry.state)
        row = observed(method, state, carry.rows.dtype)
        return Carry(state, lax.dynamic_update_index_in_dim(carry.rows, row, jnp.max(state.steps), 0))

    return tick


def _advance(ops: Any, method: Iteration, problem: Any, carry: Carry, steps: Any) -> Carry:
    tick = _tick(ops, method, problem)

    def go_on(counted: tuple[Any, Carry]) -> Array:
        return (counted[0] < steps) & _is_running(counted[1].state)

    return lax.while_loop(go_on, *steady(lambda counted: (counted[0] + 1, tick(counted[1])), (jnp.int32(0), carry)))[1]


def _run(ops: Any, method: Iteration, problem: Any, capacity: int) -> Carry:
    carry = _begin(ops, method, problem, capacity)
    tick = _tick(ops, method, problem)
    if getattr(method, "ends_soon", False):  # what goes into a loop is written down first
        carry = tick(carry)
    return lax.while_loop(lambda c: _is_running(c.state), *steady(tick, carry))


def _iterate(ops: Any, method: Iteration, problem: Any) -> Any:
    state = settle(method.init(ops, problem), problem)
    return lax.while_loop(_is_running, *steady(_stepper(ops, method, problem), state))


_rows = compiled(lax.dynamic_slice_in_dim, static=(2,), label=lambda *_: "rows")


_SMALL, _TINY = 2_000, 250
"""Numbers in a method and its problem together, and in each array that the model makes or closes over."""

_NOT_LEAST = "while", "scan", "reduce_max", "reduce_min", "eq", "ne"

_shaped = functools.cache(jax.jit)  # which remembers shapes: 28 microseconds, and 170 for jax.eval_shape


def _streams(problem: Any) -> bool:
    return bool(getattr(problem, "host", False))


def _effort_for(given: tuple[Iteration, Any]) -> str:
    """What compiling a loop is worth, as far as sizes tell how soon it is over.

    XLA's older code for the CPU compiles in half the time; it ran at .8 to 1.2 of the time of the newer for exp, nets,
    Gaussian processes and an ODE of up to 2,000 numbers, at 1.4 for a softmax, at 2 for a chain of 30 ``where``.
    Without optimisations it compiles in half of that again (a fit of three parameters: 2.8, 1.7, .9 s of CPU) and runs
    at twice the time, so that only what is tiny and without a loop of its own is compiled so. What a stretch's state
    holds is not counted: the residuals of a linearisation are many beside a fit's data.

    Without optimisations one fusion rounds a product and a sum otherwise than the next, and no entry equals the
    largest: the derivative of ``max`` is 0/0 then, and what compares is not compiled so either.
    """
    begun = getattr(given[0], "served", given[0]), given[1]
    size = sum(getattr(leaf, "size", 1) for leaf in tree_util.tree_leaves(begun))
    evaluated = getattr(given[1], "evaluated", None)
    if size > _SMALL:
        return "full"
    if evaluated is None:
        return "less"
    made = [_shaped(function).trace(*arguments).jaxpr for function, *arguments in evaluated]
    size = max([size, *map(largest, made)])
    tiny = size <= _TINY and not any(contains(jaxpr.jaxpr, name) for jaxpr in made for name in _NOT_LEAST)
    return "least" if tiny else "less" if size <= _SMALL else "full"


class JaxLoops(EagerLoops):
    """The part of the backend that runs methods; falls back to the Python loops for data on the host."""

    def __init__(self) -> None:
        def named(action: str) -> Callable[..., str]:
            return lambda ops, method, *rest: f"{action} {getattr(method, 'title', type(method).__name__)}"

        self._programs: dict[tuple[str, Any], Callable[..., Any]] = {}
        self._shapes: dict[Any, tuple[tuple[int, ...], str, Hashable]] = {}

        def made(effort: str) -> dict[str, Callable[..., Any]]:
            loop = functools.partial(compiled, loops=True, effort=effort)
            return {
                "begin": compiled(_begin, static=(0, 3), label=named("begin"), effort=effort),
                "advance": loop(_advance, static=(0,), donate=(3,), label=named("advance")),
                "run": loop(_run, static=(0, 3), label=named("run")),
                "iterate": loop(_iterate, static=(0,), label=named("iterate")),
            }

        self._loops = {effort: made(effort) for effort in EFFORTS}

    def _loop(self, action: str, method: Iteration, problem: Any) -> Callable[..., Any]:
        """The program of an action: for small problems one that is compiled sooner."""
        effort = "full" if tracing() or not can_be_quick() else _effort_for((method, problem))
        return self._loops[effort][action]

    def _program(self, action: str, function: Callable[..., Any], body: Callable[..., Any] | None = None) -> Any:
        """The compiled form of ``function``, or of ``body(function, ...)``: made once."""
        made = self._programs.get((action, function))
        if made is None:
            name = f"{action} {getattr(function, '__qualname__', repr(function))}"
            target = function if body is None else lambda *arguments: body(function, *arguments)
            made = self._programs[action, function] = compiled(target, label=lambda *_: name)
        return made

    def call(self, function: Callable[..., R], *records: Any) -> R:
        if any(map(_streams, records)) or tracing():
            return function(*records)
        return self._program("call", function)(*records)  # type: ignore[no-any-return]

    def begin(self, method: Iteration, problem: Any, capacity: int) -> Carry:
        if _streams(problem):
            return super().begin(method, problem, capacity)
        return self._loop("begin", method, problem)(self, numbers_as_arrays(method, problem), problem, capacity)

    def advance(self, method: Iteration, problem: Any, carry: Carry, steps: int) -> Carry:
        if _streams(problem):
            return super().advance(method, problem, carry, steps)
        return self._loop("advance", method, problem)(self, numbers_as_arrays(method, problem), problem, carry, steps)

    def run(self, method: Iteration, problem: Any, capacity: int) -> Carry:
        if _streams(problem):
            return super().run(method, problem, capacity)
        return self._loop("run", method, problem)(self, numbers_as_arrays(method, problem), problem, capacity)

    def iterate(self, method: Iteration, problem: Any) -> Any:
        if _streams(problem):
            return super().iterate(method, problem)
        return self._loop("iterate", method, problem)(self, method, problem)

    def implicit(
        self, run: Callable[[Any, Any], tuple[Vector, R]], method: Any, problem: Any, operator: Any
    ) -> tuple[Vector, R]:
        if _streams(problem) or self.is_concrete((method, problem)):  # type: ignore[attr-defined]
            return run(method, problem)
        return implicit(self, run, method, problem)  # type: ignore[arg-type, return-value]

    def constant(self, tree: T, advice: str) -> T:
        return constant(tree, advice)

    def rows(self, carry: Carry, start: int, stop: int) -> Any:
        if isinstance(carry.rows, list):
            return super().rows(Carry(carry.state, jax.device_get(carry.rows[start:stop])), 0, stop - start)
        values = carry.rows
        # A few sizes only, so that few programs are compiled; the rest is cut off on the host.
        size = min(1 << max(0, stop - start - 1).bit_length(), values.shape[0])
        first = min(start, values.shape[0] - size)
        if size == values.shape[0]:
            return np.asarray(values)[start:stop]
        return np.asarray(_rows(values, first, size))[start - first : stop - first]

    def scan_over(self, function: Callable[..., tuple[Any, Any]], stacked: Any, *shared: Any) -> tuple[Any, Any]:
        if any(map(_streams, shared)):
            return super().scan_over(function, stacked, *shared)
        if isinstance(stacked, range):
            stacked = jnp.arange(len(stacked), dtype=jnp.int32)
        if tracing():  # the function may close over tracers: it must not be cached
            return scan_over(function, stacked, shared)
        return self._program("scan", function, scan_over)(stacked, shared)  # type: ignore[no-any-return]

    def by_parts(self, function: Callable[..., Array], size: int, x: Array, *data: Any) -> Array:
        if jax.device_count() > 1:  # which may share the rows: a loop over these would gather them
            return function(x, *data)

        return by_rows(lambda xs, data: ([function(*xs, *data)], ()), size, [x], data)[0][0]

    def afresh(self, x: T, arguments: R) -> tuple[T, R]:
        return lax.optimization_barrier((x, arguments)) if tracing() else (x, arguments)  # type: ignore[no-any-return]

    def describe_of(self, function: Callable[..., Array], *records: Any) -> tuple[tuple[int, ...], str, Hashable]:
        """Remembered here: JAX takes 40 microseconds to find what it remembers."""
        leaves, structure = tree_util.tree_flatten(records)
        key = function, structure, tuple((type(x), getattr(x, "shape", x), getattr(x, "dtype", None)) for x in leaves)
        if key not in self._shapes:
            if len(self._shapes) == 256:  # models are held with them
                self._shapes.clear()
            self._shapes[key] = self._described(function, records)
        return self._shapes[key]

    @staticmethod
    def _described(function: Callable[..., Array], records: Any) -> tuple[tuple[int, ...], str, Hashable]:
        with advised():
            made = _shaped(function).eval_shape(*records)
        return tuple(made.shape), str(made.dtype), None

    def over_columns(self, function: Callable[[Vector], Vector], columns: Vector, together: int = 1) -> Vector:
        count = columns.shape[1]
        if 1 < count <= together:
            return jax.vmap(function, 1, 1)(columns)
        if tracing():
            return lax.map(function, columns.T, batch_size=together if together > 1 else None).T
        if together > 1:
            parts = [columns[:, i : i + together] for i in range(0, count, together)]
            return jnp.concatenate([jax.vmap(function, 1, 1)(part) for part in parts], axis=1)
        return super().over_columns(function, columns)

    def over_rows(self, function: Callable[[Vector], list[Array]], rows: Array, together: int = 1) -> list[Array]:
        if rows.shape[0] <= together:
            return jax.vmap(function)(rows)  # type: ignore[no-any-return]
        return lax.map(function, rows, batch_size=together if together > 1 else None)  # type: ignore[no-any-return]
