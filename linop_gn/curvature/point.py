"""An objective at given parameters: value, gradient and outputs from one linearisation.

A :class:`Point` snapshots the parameters as a flat vector when it is made, so
that an optimiser that updates them in place later changes no operator. It
linearises once, at the first thing asked of it, and everything else at the same
parameters (gradient, value, Gauss-Newton products) comes from that same pass.

With terms L_b over batches b and weights w_b,

    L = (sum_b L_b) / W,    g = (sum_b J_b^T dL_b/dz) / W,    W = sum_b w_b  (or 1 for reduction "sum"),

one division at the end, whatever the sizes of the batches.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeAlias

from ..protocols import Array, Scalar, Vector
from ..records import record, replace, static
from ..spaces import Space
from .batches import Batch
from .checks import require_counted
from .pieces import Curve, Piece
from .term import Term, outputs_of
from .terms import Terms

__all__ = ["Curved", "Linearized", "Point", "Summary"]

Sums: TypeAlias = tuple[Any, Any, Any]
"""Sums over batches: value, gradient (or a product), weight; None where there is none."""

_SHARED = ("_linearized", "_curved", "_sums", "_value", "_hessian")


@record
class Summary:
    """Value and gradient over all batches, normalised by ``scale``; ``weight`` is that of all examples together."""

    value: Scalar
    gradient: Vector | None
    weight: Scalar | None
    scale: Scalar


@record
class Linearized(Summary):
    """The outcome of linearising the model over all batches in memory."""

    pieces: tuple[Piece, ...]


@record
class Curved(Summary):
    """The outcome of linearising the gradient over all batches in memory."""

    curves: tuple[Curve, ...]


@record
class Point:
    """An objective at flat parameters ``x`` (n,) of ``space``. Made by :meth:`Objective.at`."""

    objective: Terms
    x: Vector
    space: Space = static()

    @property
    def host(self) -> bool:
        """Whether data are streamed from the host."""
        return self.objective.host

    def share(self, other: Point) -> None:
        """Have what is linearised here or at ``other``, a point at the same values, serve both."""
        twins = other.__dict__.setdefault("_twins", weakref.WeakSet([other]))  # weak: no cycle keeps a graph alive
        twins.add(self)
        kept = {key: value for key, value in other.__dict__.items() if key in _SHARED}
        self.__dict__.update(kept, _twins=twins)

    def comes_from(self, leaves: list[Array] | None) -> bool:
        """Whether the parameters were detached from these very leaves, or from none that a graph is recorded of.

        Derivatives of what is made here go to the leaves that it was made from, not to others of equal values.
        """
        own = self.__dict__.get("_origins")
        if own is None or leaves is None:
            return own is leaves
        return all(a is b for a, b in zip(own["x"][1], leaves, strict=True))

    # what operators ask

    def linearized(self) -> Linearized:
        """The model linearised here, once."""
        return self._once("_linearized", lambda: self._call(_linearize))  # type: ignore[no-any-return]

    def curved(self) -> Curved:
        """The gradient linearised here, once."""
        return self._once("_curved", lambda: self._call(_curve))  # type: ignore[no-any-return]

    def expect_hessian(self) -> Point:
        """Note that a Hessian will be asked for, so that the gradient comes from its linearisation."""
        self.__dict__["_hessian"] = True
        return self

    def stream(self, part: Callable[..., Sums], *shared: Any) -> Summary:
        """The sums of ``part(term, x, *shared)`` over one pass of streamed batches (``gradient``: their vector)."""
        ops, totals = self.space.backend, None
        for term in self.objective.streamed(self.space, self.x):
            sums = ops.call(part, term, self.x, *shared)
            totals = sums if totals is None else _add(self, totals, sums)
        assert totals is not None
        return Summary(*_normalised(self, totals))

    def abroad(self) -> Point:
        """The point in the framework that differentiates: itself unless that is another one."""
        if not self.objective.is_bridged(self.space):
            return self
        terms, crossing = self.objective.abroad(self.space)
        with crossing.precision():
            return Point(terms, crossing.parameters(self.x), crossing.away)

    def precision(self) -> Any:
        """Where the framework that differentiates has the dtypes of this point."""
        bridged = self.objective.is_bridged(self.space)
        return self.objective.abroad(self.space)[1].precision() if bridged else nullcontext()

    def check_data(self) -> None:
        """Raise for data that the loss cannot take, where a compiler would not see their values."""
        for term in self.objective.in_memory(self.space):
            term.check_ahead(self.x)

    def summary(self) -> Summary:
        """Value and gradient from the linearisation there is, or will be."""
        if self.host:
            return self._once("_sums", lambda: self.stream(_gradient_sums))  # type: ignore[no-any-return]
        if "_linearized" in self.__dict__:
            return self.linearized()
        if "_hessian" in self.__dict__:
            return self.curved()
        if self.objective.loss is None:
            return self._once("_sums", lambda: self._call(_plain_gradient))  # type: ignore[no-any-return]
        return self.linearized()

    def _once(self, key: str, make: Callable[[], Any]) -> Any:
        kept = self.__dict__.get(key)
        if kept is None:
            kept = make()
            if self.space.backend.lives_with(kept, self.x):
                for point in self.__dict__.get("_twins", (self,)):
                    point.__dict__[key] = kept
        return kept

    def _call(self, function: Callable[[Point], Any]) -> Any:
        self.check_data()
        made = self.space.backend.call(function, self)
        if len(self.objective.batches) > 1 or any(batch.stacked for batch in self.objective.batches):
            _require_counted(self, made.weight)
        return made

    # what users ask

    @property
    def value(self) -> Scalar:
        """The objective: a 0-d array."""
        if {"_curved", "_linearized", "_sums"} & self.__dict__.keys():
            return self.summary().value
        if self.host:
            return self._once("_value", lambda: self.stream(_value_sums)).value
        return self._once("_value", lambda: self._call(_evaluate)).value

    @property
    def gradient(self) -> Vector:
        """The gradient, flat (n,): a new array."""
        return self.space.backend.copy(self.summary().gradient)

    @property
    def outputs(self) -> Array:
        """The model's outputs, for data of one batch."""
        term = self.objective.single(self.space, "an array of outputs")
        kept = self.__dict__.get("_linearized")
        if kept is not None:
            return kept.pieces[0].outputs
        return self.space.backend.call(outputs_of, term, self.x)


def _linearize(point: Point) -> Linearized:
    pieces, sums = _gather(point, _linearize_term)
    return Linearized(*_normalised(point, sums), pieces)


def _curve(point: Point) -> Curved:
    curves, sums = _gather(point, _curve_term)
    return Curved(*_normalised(point, sums), curves)


def _evaluate(point: Point) -> Summary:
    _, sums = _gather(point, _evaluate_term)
    return Summary(*_normalised(point, sums))


def _plain_gradient(point: Point) -> Summary:
    (term,) = point.objective.in_memory(point.space)
    value, gradient = term.value_and_gradient(point.x)
    return Summary(value, gradient, None, 1.0)


def _linearize_term(term: Term, x: Vector) -> tuple[Sums, Any]:
    return term.linearize(x).parted()


def _curve_term(term: Term, x: Vector) -> tuple[Sums, Any]:
    return term.linearize_gradient(x).parted()


def _evaluate_term(term: Term, x: Vector) -> tuple[Sums, Any]:
    return _value_sums(term, x), None


def _gradient_sums(term: Term, x: Vector) -> Sums:
    return _linearize_term(term, x)[0]


def _value_sums(term: Term, x: Vector) -> Sums:
    value, weight = term.evaluate(x)
    return value, None, weight


def _gather(point: Point, visit: Callable[[Term, Vector], tuple[Sums, Any]]) -> tuple[tuple[Any, ...], Sums]:
    """What ``visit`` keeps of each batch in memory, and the sums over all; stacked batches go through one loop."""
    totals, kept = None, []
    for term in point.objective.in_memory(point.space):
        if term.batch.stacked:
            sums, piece = point.space.backend.scan_over(_Slice(visit), term.batch, term, point.x)
            piece = None if piece is None else replace(piece, stacked=True)
        else:
            sums, piece = visit(term, point.x)
        kept.append(piece)
        totals = sums if totals is None else _add(point, totals, sums)
    assert totals is not None
    return tuple(kept), totals


@dataclasses.dataclass(frozen=True)
class _Slice:
    """``visit`` of one slice of a stacked batch."""

    visit: Callable[[Term, Vector], tuple[Sums, Any]]

    def __call__(self, batch: Batch, term: Term, x: Vector) -> tuple[Sums, Any]:
        return self.visit(replace(term, batch=batch), x)


def _add(point: Point, totals: Sums, more: Sums) -> Sums:
    """The sums of two; vectors of the first are consumed."""
    value, vector, weight = totals
    return (
        None if value is None else value + more[0],
        None if vector is None else point.space.backend.axpy(1.0, more[1], vector),
        None if weight is None else weight + more[2],
    )


def _normalised(point: Point, sums: Sums) -> tuple[Any, Any, Any, Any]:
    """Value and vector divided by the normaliser, the weight, and the factor that did it."""
    (value, vector, weight), loss = sums, point.objective.loss
    _require_counted(point, weight)
    scale = 1.0 if loss is None or loss.reduction == "sum" else 1.0 / weight
    return (
        None if value is None else value * scale,
        None if vector is None else point.space.backend.scale(scale, vector),
        weight,
        scale,
    )


def _require_counted(point: Point, weight: Any) -> None:
    if weight is not None and point.space.backend.is_concrete(weight):
        require_counted(weight)
