"""Which numbers a program combines over the axes of a mesh: what enters its collectives.

A program inside ``jax.shard_map`` is read from its inputs to its outputs. Each number is known by marks, those of its
inputs: the axes along which these may differ, and :data:`OTHER` where what is no input had a part in it, the data of
a device or the place of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from .linear import inner_programs, jaxpr_of

__all__ = ["OTHER", "Combined", "combined"]

Marks = frozenset[str]

OTHER = ""
"""The mark of data, which no axis is called."""


class Combined(NamedTuple):
    """A collective that combines numbers over an axis along which these may differ."""

    axis: str
    name: str
    alone: bool
    """Whether nothing but inputs had a part in these numbers."""


def combined(closed: core.ClosedJaxpr, inputs: Sequence[Marks]) -> list[Combined]:
    """What a program combines of its inputs, each of which has marks; in order, each once."""
    reading = _Reading()
    reading.run(closed, inputs)
    return list(dict.fromkeys(reading.found))


class _Reading:
    def __init__(self) -> None:
        self.found: list[Combined] = []

    def run(self, program: Any, given: Sequence[Marks]) -> list[Marks]:
        """The marks of a program's outputs."""
        jaxpr, consts = (program.jaxpr, program.consts) if isinstance(program, core.ClosedJaxpr) else (program, ())
        known = dict(zip(jaxpr.invars, given, strict=True))
        for v, const in zip(jaxpr.constvars, consts, strict=False):
            known[v] = Marks({OTHER} if isinstance(const, jax.core.Tracer) else ())

        def read(atom: Any) -> Marks:
            return Marks() if isinstance(atom, core.Literal) else known.get(atom, Marks())

        for eqn in jaxpr.eqns:
            made = self._made(eqn, [read(atom) for atom in eqn.invars])
            known.update(zip(eqn.outvars, made, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _made(self, eqn: core.JaxprEqn, given: list[Marks]) -> list[Marks]:
        p, name, every = eqn.params, eqn.primitive.name, Marks().union(*given)
        if name == "scan":
            first, last = p["num_consts"], p["num_consts"] + p["num_carry"]
            return self._repeated(p["jaxpr"], given[:first], given[first:last], given[last:])
        if name == "while":
            tested, looped = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
            made = self._repeated(p["body_jaxpr"], given[tested:looped], given[looped:], [])
            self.run(p["cond_jaxpr"], [*given[:tested], *made])
            return made
        if inner := list(inner_programs(p)):
            arguments = given[1:] if name == "cond" else given
            made = [Marks(given[0]) if name == "cond" else Marks() for _ in eqn.outvars]
            for program in inner:
                inputs = jaxpr_of(program).invars
                fitting = arguments if len(inputs) == len(arguments) else [every] * len(inputs)
                outputs = self.run(program, fitting)
                outputs = outputs if len(outputs) == len(made) else [every] * len(made)
                made = [a | b for a, b in zip(made, outputs, strict=True)]
            return made
        axes = Marks() if name in _CASTS else _named(p.get("axis_name", p.get("axes", ())))
        self.found += [Combined(axis, name, OTHER not in marks) for marks in given for axis in sorted(axes & marks)]
        if name == "stop_gradient" or (axes and not given):  # what is not differentiated; the place of the device
            every = Marks({OTHER})
        return [every if _is_differentiated(v) else Marks({OTHER}) for v in eqn.outvars]

    def _repeated(self, body: Any, consts: list[Marks], carry: list[Marks], rows: list[Marks]) -> list[Marks]:
        """Of a loop, until no number of its carry has more marks than before."""
        while True:
            made = self.run(body, [*consts, *carry, *rows])
            after = [a | b for a, b in zip(carry, made, strict=False)]
            if after == carry:
                return made
            carry = after


_CASTS = "pvary", "pcast"
"""They name axes, and send nothing."""


def _is_differentiated(v: Any) -> bool:
    return bool(jnp.issubdtype(v.aval.dtype, jnp.inexact))


def _named(axes: Any) -> Marks:
    return Marks(x for x in (axes if isinstance(axes, (tuple, list)) else [axes]) if isinstance(x, str))
