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

from typing import TYPE_CHECKING, Any

from ..protocols import Array, Scalar, Vector
from ..records import record, replace, static
from ..spaces import Space
from .batches import Batch
from .term import Curve, Piece, Term

if TYPE_CHECKING:
    from .objective import Objective

__all__ = ["Curved", "Linearized", "Point", "combine"]


@record
class Linearized:
    """The outcome of linearising the model over all batches in memory."""

    pieces: tuple[Piece, ...]
    value: Scalar
    gradient: Vector
    scale: Scalar


@record
class Curved:
    """The outcome of linearising the gradient over all batches in memory."""

    curves: tuple[Curve, ...]
    value: Scalar
    gradient: Vector
    scale: Scalar


def _linearize_point(point: Point) -> Linearized:
    return Linearized(*_gather(point, lambda term, x: term.linearize(x)))


def _curve_point(point: Point) -> Curved:
    return Curved(*_gather(point, lambda term, x: term.linearize_gradient(x)))


def _gather(point: Point, make: Any) -> tuple[tuple[Any, ...], Scalar, Vector, Scalar]:
    ops, kept, totals = point.space.backend, [], []
    for batch in point.objective.batches:
        term = point.objective.term(point.space, batch)
        if batch.stacked:
            part, piece = ops.scan_over(lambda b, t, x, make=make: _strip(make(replace(t, batch=b), x)), batch, term, point.x)
            kept.append(replace(piece, stacked=True))
            totals.append(part)
        else:
            part, piece = _strip(make(term, point.x))
            kept.append(piece)
            totals.append(part)
    value, gradient, weight = combine(point, totals)
    scale = point.objective.scale(weight)
    return tuple(kept), value * scale, ops.scale(scale, gradient), scale


def _strip(piece: Any) -> tuple[Any, Any]:
    """The sums that a piece contributes, and the piece without what was only summed."""
    return (piece.value, piece.gradient, piece.weight), replace(piece, value=None, gradient=None, weight=None)


def combine(point: Point, totals: list[Any]) -> tuple[Any, Any, Any]:
    """Sums of values, gradients and weights over batches."""
    ops = point.space.backend
    value, gradient, weight = totals[0]
    for more_value, more_gradient, more_weight in totals[1:]:
        value = value + more_value
        weight = weight + more_weight
        if gradient is not None:
            gradient = ops.axpy(1.0, more_gradient, gradient)
    return value, gradient, weight


def _value_of_point(point: Point) -> Array:
    totals = []
    ops = point.space.backend
    for batch in point.objective.batches:
        term = point.objective.term(point.space, batch)
        if batch.stacked:
            value, weight = ops.sum_over(lambda b, t, x: replace(t, batch=b).evaluate(x), batch, term, point.x)
        else:
            value, weight = term.evaluate(point.x)
        totals.append((value, None, weight))
    value, _, weight = combine(point, totals)
    return value * point.objective.scale(weight)


def _outputs_of_term(term: Term, x: Vector) -> Array:
    return term._evaluate(term.outputs, term.space.split(x))


def _gradient_sums(term: Term, x: Vector) -> Any:
    return _strip(term.linearize(x))[0]


def _plain_gradient(point: Point) -> Linearized:
    term = point.objective.term(point.space, point.objective.batches[0])
    value, gradient, _ = term.value_and_gradient(point.x)
    return Linearized((), value, gradient, 1.0)


def _term_value(term: Term, x: Vector) -> Any:
    value, weight = term.evaluate(x)
    return value, None, weight


@record
class Point:
    """An objective at flat parameters ``x`` (n,) of ``space``. Made by :meth:`Objective.at`."""

    objective: Objective
    x: Vector
    space: Space = static()

    @property
    def host(self) -> bool:
        """Whether data are streamed from the host."""
        return self.objective.stream is not None

    def _once(self, key: str, make: Any) -> Any:
        kept = self.__dict__.get(key)
        if kept is None:
            kept = make()
            if self.space.backend.is_concrete(kept):
                self.__dict__[key] = kept
        return kept

    def linearized(self) -> Linearized:
        """The model linearised here, once."""
        return self._once("_linearized", lambda: self._call(_linearize_point))  # type: ignore[no-any-return]

    def curved(self) -> Curved:
        """The gradient linearised here, once."""
        return self._once("_curved", lambda: self._call(_curve_point))  # type: ignore[no-any-return]

    def _call(self, function: Any) -> Any:
        self.check_data()
        return self.space.backend.call(function, self)

    def check_data(self) -> None:
        """Raise for data that the loss cannot take, where a compiler would not see their values."""
        ops = self.space.backend
        if "compiled" not in ops.capabilities or self.objective.loss is None:
            return
        for batch in self.objective.batches:
            if not batch.stacked and ops.is_concrete((batch, self.x)):
                term = self.objective.term(self.space, batch)
                if not term.__dict__.get("_checked"):
                    term.check(ops.shape_of(_outputs_of_term, term, self.x))

    def _streamed(self, sums: Any) -> Any:
        """Sums over one pass of the stream."""
        ops, totals = self.space.backend, None
        for batch in self.objective.stream_batches(self.space):
            part = ops.call(sums, self.objective.term(self.space, batch), self.x)
            totals = part if totals is None else combine(self, [totals, part])
        assert totals is not None
        value, gradient, weight = totals
        scale = self.objective.scale(weight)
        return Linearized((), value * scale, None if gradient is None else ops.scale(scale, gradient), scale)

    def expect_hessian(self) -> Point:
        """Note that a Hessian will be asked for, so that the gradient comes from its linearisation."""
        self.__dict__["_hessian"] = True
        return self

    def summary(self) -> Linearized | Curved:
        """Value and gradient from the linearisation there is, or will be."""
        if self.host:
            return self._once("_sums", lambda: self._streamed(_gradient_sums))  # type: ignore[no-any-return]
        if "_linearized" in self.__dict__:
            return self.linearized()
        if "_hessian" in self.__dict__:
            return self.curved()
        if self.objective.loss is None:
            return self._once("_sums", lambda: self._call(_plain_gradient))  # type: ignore[no-any-return]
        return self.linearized()

    @property
    def value(self) -> Scalar:
        """The objective: a 0-d array."""
        if {"_curved", "_linearized", "_sums"} & self.__dict__.keys():
            return self.summary().value
        if self.host:
            return self._once("_value", lambda: self._streamed(_term_value).value)
        return self._once("_value", lambda: self._call(_value_of_point))

    @property
    def gradient(self) -> Vector:
        """The gradient, flat (n,): a new array."""
        return self.space.backend.copy(self.summary().gradient)

    @property
    def outputs(self) -> Array:
        """The model's outputs, for data of one batch."""
        batch = self.objective.single_batch("outputs")
        kept = self.__dict__.get("_linearized")
        if kept is not None:
            return kept.pieces[0].outputs
        return self.space.backend.call(_outputs_of_term, self.objective.term(self.space, batch), self.x)


def is_single(batches: tuple[Batch, ...]) -> bool:
    """Whether the data are one batch."""
    return len(batches) == 1 and not batches[0].stacked
