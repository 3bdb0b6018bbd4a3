"""Linear functions as programs: transposed, restricted to some inputs, and compared by what they compute.

``jax.linearize`` gives the linear part of a function, J v, as a jaxpr over
*residuals* (what the forward pass saved) and a tangent. :class:`LinearProgram`
holds that jaxpr alone, so that the residuals are ordinary data and the program
is structure: a linearisation is a pytree, crosses ``jit``, is stacked by
``scan``, and is carried by ``while_loop``.

Everything else follows from the one jaxpr, without another forward pass:

====================  ========================================================
J^T u                 its transpose
J_l v_l               linearised once more, in the inputs l: what the other,
                      zero, inputs feed is known, and drops out
J_l^T u               the transpose of that
====================  ========================================================

``jax.linearize`` returns a new function object each time, so a loop whose step
linearises again would see its carry change structure. Programs are therefore
interned: two with the same operations are the same object.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import ad, partial_eval

from .sums import in_blocks, pays

__all__ = ["LinearProgram", "contains", "inner_jaxprs", "inner_programs", "jaxpr_of", "largest", "without_dead_code"]

_RULED = "custom_vjp_call"
"""A function with a custom vjp among the operations of a transpose: linear, and transposed by its rules alone."""

Avals = tuple[Any, ...]
"""Shape, dtype, and how arrays are laid out over devices: their sharding, and the axes along which they vary."""


def without_dead_code(closed: core.ClosedJaxpr, wanted: Sequence[bool] | None = None) -> core.ClosedJaxpr:
    """The same inputs and the wanted outputs (all), with only the operations that these need."""
    used = [True] * len(closed.jaxpr.outvars) if wanted is None else list(wanted)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, used, instantiate=True)
    return core.ClosedJaxpr(jaxpr, closed.consts)


class LinearProgram:
    """A linear function of the last arguments: ``(residuals, inputs) -> outputs``, all lists of arrays.

    Make it with :meth:`trace`. Compared by identity; interned.
    """

    def __init__(self, closed: core.ClosedJaxpr, n_residuals: int) -> None:
        self.closed = closed
        self.residuals: Avals = tuple(closed.in_avals[:n_residuals])
        self.inputs: Avals = tuple(closed.in_avals[n_residuals:])
        self.outputs: Avals = tuple(closed.out_avals)
        self._derived: dict[Any, LinearProgram] = {}

    @classmethod
    def trace(
        cls, function: Callable[[list[Any], list[Any]], Sequence[Any]], residuals: Sequence[Any], inputs: Sequence[Any]
    ) -> LinearProgram:
        """The program of ``function(residuals, inputs)``, without what its outputs don't need."""
        closed = jax.make_jaxpr(lambda r, v: list(function(list(r), list(v))))(tuple(residuals), tuple(inputs))
        made = cls(without_dead_code(closed), len(residuals))
        if contains(made.closed.jaxpr, _RULED):  # what its rules say is part of what it is; their tables are made anew
            traced = jax.make_jaxpr(lambda r, u: list(made._pull(list(r), list(u))))(made.residuals, made.outputs)
            back = made._derived["T"] = cls(without_dead_code(traced), len(residuals))
            back._derived["T"] = made
            key = len(residuals), *(_fingerprint(program.closed, _value) for program in (made, back))
        else:
            key = len(residuals), _fingerprint(made.closed)
        return _interned.setdefault(key, made)

    def __call__(self, residuals: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """The outputs; inside a trace this adds the program's operations to it."""
        made = core.jaxpr_as_fun(self.closed)(*residuals, *inputs)
        return list(map(jnp.asarray, made))  # zeros of scalars may be literals of the program, which are no arrays

    @property
    def only_transposes(self) -> bool:
        """Whether it goes through a function with a custom vjp, which has no forward derivative."""
        return contains(self.closed.jaxpr, "custom_lin")

    def transpose(self) -> LinearProgram:
        """``(residuals, cotangents of the outputs) -> cotangents of the inputs``."""
        return self._keep("T", lambda: LinearProgram.trace(self._pull, self.residuals, self.outputs))

    def _pull(self, residuals: list[Any], cotangents: list[Any]) -> Sequence[Any]:
        def product(v: list[Any]) -> list[Any]:
            return self(residuals, v)

        if contains(self.closed.jaxpr, _RULED):
            return jax.vjp(product, [ad.zeros_like_aval(a) for a in self.inputs])[1](cotangents)[0]
        return jax.linear_transpose(product, list(self.inputs))(cotangents)[0]

    def in_blocks(self) -> LinearProgram:
        """The same function with less memory, where that is known; no program to transpose."""
        if not pays(self.closed):
            return self
        return self._keep("blocks", lambda: LinearProgram.trace(self._blocks, self.residuals, self.inputs))

    def _blocks(self, residuals: list[Any], inputs: list[Any]) -> list[Any]:
        return in_blocks(self.closed, *residuals, *inputs)

    def at_inputs(self, only: tuple[int, ...]) -> LinearProgram:
        """The function of these inputs alone, the others being zero; nothing is computed from those."""

        def block(residuals: list[Any], inputs: list[Any]) -> Sequence[Any]:
            def embedded(chosen: list[Any]) -> list[Any]:
                full = [ad.zeros_like_aval(a) for a in self.inputs]
                for index, value in zip(only, chosen, strict=True):
                    full[index] = value
                return self(residuals, full)

            return jax.linearize(embedded, [jnp.zeros_like(v) for v in inputs])[1](inputs)

        inputs = [self.inputs[i] for i in only]
        return self._keep(("in", only), lambda: LinearProgram.trace(block, self.residuals, inputs))

    def at_outputs(self, only: tuple[int, ...]) -> LinearProgram:
        """Some of the outputs; nothing is computed for the others."""

        def block(residuals: list[Any], inputs: list[Any]) -> Sequence[Any]:
            outputs = self(residuals, inputs)
            return [outputs[i] for i in only]

        return self._keep(("out", only), lambda: LinearProgram.trace(block, self.residuals, self.inputs))

    def _keep(self, key: Hashable, make: Callable[[], LinearProgram]) -> LinearProgram:
        if key not in self._derived:
            self._derived[key] = make()
        return self._derived[key]


_interned: weakref.WeakValueDictionary[Hashable, LinearProgram] = weakref.WeakValueDictionary()


def inner_programs(value: Any) -> Iterator[core.Jaxpr | core.ClosedJaxpr]:
    """The programs among an operation's parameters: bodies of loops, branches, inner functions."""
    if isinstance(value, (core.Jaxpr, core.ClosedJaxpr)):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from inner_programs(item)


def jaxpr_of(program: core.Jaxpr | core.ClosedJaxpr) -> core.Jaxpr:
    """The program without the constants that it may have."""
    return program.jaxpr if isinstance(program, core.ClosedJaxpr) else program


def inner_jaxprs(value: Any) -> Iterator[core.Jaxpr]:
    """:func:`inner_programs`, without their constants."""
    return map(jaxpr_of, inner_programs(value))


_largest: weakref.WeakKeyDictionary[core.Jaxpr, int] = weakref.WeakKeyDictionary()


def largest(closed: core.ClosedJaxpr) -> int:
    """The size of the largest array in a program; remembered for as long as the program is."""

    def within(jaxpr: core.Jaxpr) -> int:
        own = (getattr(var.aval, "size", 0) for eqn in jaxpr.eqns for var in eqn.outvars)
        inner = (within(part) for eqn in jaxpr.eqns for part in inner_jaxprs(eqn.params))
        return max([0, *own, *inner])

    if closed.jaxpr not in _largest:
        _largest[closed.jaxpr] = max([within(closed.jaxpr), *map(np.size, closed.consts)])
    return _largest[closed.jaxpr]


def contains(jaxpr: core.Jaxpr, primitive: str) -> bool:
    """Whether a program, or one inside it, has an operation of that name."""

    def within(eqn: core.JaxprEqn) -> bool:
        return any(contains(inner, primitive) for inner in inner_jaxprs(eqn.params))

    return any(eqn.primitive.name == primitive or within(eqn) for eqn in jaxpr.eqns)


def _fingerprint(value: Any, constant: Callable[[Any], Hashable] = id) -> Hashable:
    """A key that is equal only for equal programs; unhashable parameters count by identity, as constants do."""
    if isinstance(value, core.ClosedJaxpr):
        return "closed", _fingerprint(value.jaxpr, constant), tuple(map(constant, value.consts))
    if isinstance(value, core.Jaxpr):
        return _fingerprint_jaxpr(value, constant)
    if isinstance(value, (tuple, list)):
        return type(value), tuple(_fingerprint(item, constant) for item in value)
    if isinstance(value, dict):
        return dict, tuple((name, _fingerprint(value[name], constant)) for name in sorted(value))
    if _tells_nothing(value):
        value = None
    try:
        hash(value)
    except TypeError:
        return "object", id(value)
    return type(value), value


def _fingerprint_jaxpr(jaxpr: core.Jaxpr, constant: Callable[[Any], Hashable]) -> Hashable:
    numbers: dict[Any, int] = {}

    def binder(var: Any) -> Hashable:
        numbers[var] = len(numbers)
        return _kind(var.aval)

    def atom(var: Any) -> Hashable:
        if isinstance(var, core.Literal):
            return _kind(var.aval), _value(var.val)
        return numbers[var]

    def operation(eqn: core.JaxprEqn) -> Hashable:
        inputs, params = tuple(map(atom, eqn.invars)), _fingerprint(_params(eqn), constant)
        return eqn.primitive, inputs, params, tuple(map(binder, eqn.outvars))

    head = tuple(map(binder, (*jaxpr.constvars, *jaxpr.invars)))
    return len(jaxpr.constvars), head, tuple(map(operation, jaxpr.eqns)), tuple(map(atom, jaxpr.outvars))


def _kind(aval: Any) -> Hashable:
    """The type of an array; without its sharding where that tells nothing."""
    return aval.update(sharding=None) if _tells_nothing(getattr(aval, "sharding", None)) else aval  # type: ignore[no-any-return]


def _tells_nothing(sharding: Any) -> bool:
    """Whether it names a mesh whose axes are all Auto, and no place on it.

    What comes of arrays that were put nowhere has none, and after a step on sharded examples it has.
    """
    mesh = getattr(sharding, "mesh", None)
    return isinstance(mesh, jax.sharding.AbstractMesh) and {*mesh.axis_types} == {jax.sharding.AxisType.Auto}


def _params(eqn: core.JaxprEqn) -> dict[str, Any]:
    """An operation's parameters; of a custom vjp without its rules, which are other objects in each trace."""
    if eqn.primitive.name != _RULED:
        return eqn.params  # type: ignore[no-any-return]
    return {name: value for name, value in eqn.params.items() if isinstance(value, (core.ClosedJaxpr, int, str))}


def _value(constant: Any) -> Hashable:
    if isinstance(constant, jax.core.Tracer):
        return id(constant)
    value = np.asarray(constant)
    return value.dtype.str, value.shape, value.tobytes()
