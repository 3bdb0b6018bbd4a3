"""An objective at given parameters: value, gradient and outputs from one linearisation.

A :class:`Point` holds the parameters as a flat vector, detached, and the model
as it was when the point was made. It linearises once, at the first thing asked
of it; gradient, value and Gauss-Newton products come from that same pass.

With terms L_b over batches b and weights w_b,

    L = (sum_b L_b) / W,    g = (sum_b J_b^T dL_b/dz) / W,    W = sum_b w_b  (or 1 for reduction "sum"),

one division at the end, whatever the sizes of the batches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeAlias

from ..distributed.reduction import mark_of
from ..distributed.watching import telling
from ..protocols import Array, Backend, Scalar, Tree, Vector
from ..records import Partial, memo, record, replace, static
from ..spaces import Space
from .anew import Anew
from .batches import Batch
from .checks import require_counted
from .pieces import added, scaled
from .term import Term, outputs_of
from .terms import Terms
from .unpacked import Unpacked, own, packed

__all__ = ["Asking", "Point", "Summary", "Sums", "is_finite", "slope_of", "value_of"]

Sums: TypeAlias = tuple[Any, Any, Any]
"""Sums over batches: value, gradient (or a product), weight; None where there is none."""
_DRIFTED = (
    "the parameters are not the same on all processes, so that a sum over these is no derivative of anything. Begin "
    "from one seed, or send those of the first process to all (torch.distributed.broadcast(p.data, 0) for each "
    "parameter; DistributedDataParallel does so when it is made)."
)
_OTHER_TERMS = (
    "the objectives of the processes differ in more than their examples: in l2, in the loss's numbers or weights, in "
    "the model's mode (train or eval), the options of its layers, its buffers or the parameters that are not trained. "
    "Make all of these alike, as from one seed and one file, or send those of the first process to all."
)
_OTHERWISE = (
    "the layers enter the model otherwise on one process than on another, by the shapes of their data: give all of "
    "them examples of one shape."
)
Visit: TypeAlias = Callable[[Term, Vector], tuple[Sums, Any]]
"""visit(term, x) -> (sums, piece) of one batch."""


@record
class Summary:
    """Value L and gradient g over all batches, ``weight`` (sum_b w_b), ``scale`` (1 / W).

    ``pieces``: one for each batch in memory that was linearised.
    """

    value: Scalar
    gradient: Any
    """A vector, a tuple of leaves, or :class:`~.unpacked.Unpacked`."""
    weight: Scalar | None
    scale: Scalar
    pieces: tuple[Any, ...] = ()


@dataclasses.dataclass(slots=True)
class _Made:
    """The summaries of a point, once made."""

    linearized: Summary | None = None
    """With the model linearised."""
    curved: Summary | None = None
    """With the gradient linearised."""
    sums: Summary | None = None
    """Value and gradient."""
    value: Summary | None = None
    """The value."""
    hessian: bool = False
    """Whether a Hessian will be asked for."""


@record
class Point:
    """An objective at flat parameters ``x`` (n,) of ``space``. Made by :meth:`Objective.at`."""

    objective: Terms
    where: Vector | tuple[Array, ...]
    """x, or its leaves where a compiled program had better be given these."""
    space: Space = static()

    def __repr__(self) -> str:
        return repr(self.space).replace("Space", "Point", 1)

    @property
    def x(self) -> Vector:
        """The parameters, flat (n,)."""
        if not isinstance(self.where, tuple):
            return self.where
        slots = memo(self)
        if slots.packed is None:
            made = self.space.join(list(self.where))
            if not self.may_keep(made):
                return made
            slots.packed = made
        return slots.packed

    @property
    def host(self) -> bool:
        """Whether data are streamed from the host."""
        return self.objective.host

    @property
    def _made(self) -> _Made:
        slots = memo(self)
        slots.made = slots.made or _Made()
        return slots.made  # type: ignore[no-any-return]

    @property
    def own(self) -> Vector | tuple[Array, ...]:
        """x where it is differentiated: what comes of it is of this process alone, until it is summed, once."""
        reduction = self.objective.reduce
        return self.where if reduction is None else self.space.backend.apart(self.where, reduction)

    def share(self, other: Point) -> None:
        """Use the summaries of ``other``, a point at the same values, and make them for it."""
        memo(self).made = other._made

    def anew(self, objective: Terms | None = None, x: Vector | None = None) -> Point:
        """A new point of other terms, or at other parameters."""
        objective = replace(self.objective) if objective is None else objective
        made = Point(objective, self.where if x is None else x, self.space)
        return made.expect_hessian() if self._made.hessian else made

    # what operators ask

    def linearized(self) -> Summary:
        """Value, gradient and the model linearised, as :class:`~.pieces.Piece` s; made once."""
        return self._anew("linearized") if self.objective.low else self._once("linearized", _linearize)

    @property
    def is_linearized(self) -> bool:
        """Whether the model has been linearised here."""
        return self._made.linearized is not None

    def curved(self) -> Summary:
        """Value, gradient and the gradient linearised, as :class:`~.pieces.Curve` s; made once."""
        return self._anew("curved") if self.objective.low else self._once("curved", _curve)

    def expect_hessian(self) -> Point:
        """Take the gradient from :meth:`curved` from now on; returns the point."""
        self._made.hessian = True
        return self

    def stream(self, part: Callable[..., Sums], *shared: Any) -> Summary:
        """sum_b part(term_b, x, *shared) over one pass of streamed batches, normalised."""
        ops, totals = self.space.backend, None
        with telling(self.objective.reduce):
            for term in self.objective.streamed(self.space, self.x):
                sums = ops.call(part, term, self.x, *shared)
                totals = sums if totals is None else _add(self, totals, sums)
                del sums, term
            assert totals is not None
            return Summary(*_normalised(self, totals))

    def gathered(self, function: Callable[..., tuple[Sums, Any]], *shared: Array) -> Summary:
        """The normalised sums of ``function(term, x, *shared)`` over all batches, without an l2, and its pieces.

        Its sums are arrays in a tuple, which the ``gradient`` is then.
        """
        bare = self if self.objective.l2 is None else self.anew(replace(self.objective, l2=None))
        with telling(self.objective.reduce):
            return bare._gathered(function, *shared)

    def _gathered(self, function: Callable[..., tuple[Sums, Any]], *shared: Array) -> Summary:
        visit, ops = Partial(_gathered, function), self.space.backend
        if not self.host:
            self.check_data()
            made: Summary = ops.call(Partial(_over_memory, visit), self, *shared)
            return made
        totals, pieces = None, []
        for term in self.objective.streamed(self.space, self.x):
            sums, piece = ops.call(visit, term, self.x, *shared)
            totals = sums if totals is None else _add(self, totals, sums)
            pieces.append(piece)
        assert totals is not None
        return Summary(*_normalised(self, totals), tuple(pieces))

    def abroad(self) -> Point:
        """The same point in the framework that differentiates."""
        if not self.objective.is_bridged(self.space):
            return self
        terms, crossing = self.objective.abroad(self.space)
        with crossing.precision():
            return Point(terms, crossing.parameters(self.x), crossing.away)

    def precision(self) -> Any:
        """A context in which the framework that differentiates has the dtypes of this point."""
        bridged = self.objective.is_bridged(self.space)
        return self.objective.abroad(self.space)[1].precision() if bridged else nullcontext()

    def check_data(self) -> None:
        """Raise for data in memory that the loss cannot take."""
        for term in self.objective.in_memory(self.space):
            term.check_ahead(self.where)

    def summary(self) -> Summary:
        """Value and gradient, from a linearisation if there is one or will be."""
        if self.host:
            return self._once("sums", _linearize)
        if not self.is_linearized and self._made.hessian:
            return self.curved()
        if not self.is_linearized and self.objective.loss is None:
            return self._once("sums", _differentiate)
        return self.linearized()

    def slope(self) -> Summary:
        """Value and gradient, by a gradient alone where nothing has been linearised: for methods that want no more."""
        made = self._made
        return made.curved or made.linearized or self._once("sums", _differentiate)

    def may_keep(self, made: Any) -> bool:
        """Whether ``made``, computed from the parameters just now, may be used wherever they may."""
        where = self.where[0] if isinstance(self.where, tuple) else self.where
        return self.space.backend.lives_with(made, where)

    def _once(self, slot: str, visit: Visit) -> Summary:
        made: Summary | None = getattr(self._made, slot)
        if made is None:
            with telling(self.objective.reduce):
                made = _with_l2(self, self.stream(Partial(_sums_of, visit))) if self.host else self._in_memory(visit)
            if self.may_keep(made):
                setattr(self._made, slot, made)
        return made

    def _anew(self, slot: str) -> Summary:
        """Value and gradient, and each batch in memory as what is to be linearised for each product."""
        made: Summary | None = getattr(self._made, slot)
        if made is None:
            made = self.slope()
            terms, where = self.objective.in_memory(self.space), self.own
            made = replace(made, pieces=tuple(Anew.made(term, where, slot == "curved") for term in terms))
            if self.may_keep(made):
                setattr(self._made, slot, made)
        return made

    def _in_memory(self, visit: Visit) -> Summary:
        asked, ops = memo(self.objective).asked, self.space.backend
        known = "compiled" in ops.capabilities and asked is not None and asked.before
        told = "compiled" in ops.capabilities and ops.is_concrete(self.where)
        if not known:
            self.check_data()
        plain = Partial(_over_memory, visit)
        try:
            made: Summary
            made, seen = ops.call(Partial(_and_fits, visit), self) if told else (ops.call(plain, self), None)
        except Exception:
            self.objective.in_memory(self.space)  # data that do not fit are refused in other words
            raise
        good = seen is not None and is_finite(ops, made.value)
        if known and not (good and self._passed()):
            self.check_data()
        if seen is not None and not good:  # the value may be that of a refusal without a reason
            made = ops.call(plain, self)
        if len(self.objective.batches) > 1 or any(batch.stacked for batch in self.objective.batches):
            require_counted(self.space.backend, made.weight)
        return made

    def _passed(self) -> bool:
        """Note that the program has seen good parameters and data; False where it cannot see all that a loss holds."""
        if self.objective.loss is not None and self.objective.loss.has_arrays:
            return False
        self.objective.require_fitting(self.space)
        memo(self).checked = True
        self.objective.passed(self.space)
        return True

    # what users ask

    @property
    def value(self) -> Scalar:
        """The objective: a 0-d array."""
        made = self._made
        known = made.curved or made.linearized or made.sums
        return (known or self._once("value", _evaluate)).value

    @property
    def gradient(self) -> Vector:
        """The gradient, flat (n,): a new array."""
        made = self.summary().gradient
        return self.space.join(list(made)) if isinstance(made, tuple) else own(self.space.backend, made)

    @property
    def gradient_tree(self) -> Tree:
        """The gradient, in the format of the parameters."""
        made, space = self.summary().gradient, self.space
        whole = isinstance(made, tuple)
        return space.backend.unflatten(space.structure, made) if whole else space.unpack(own(space.backend, made))

    @property
    def outputs(self) -> Array:
        """The model's outputs, for data of one batch."""
        if self.is_linearized and len(self.objective.batches) == 1:
            return self.linearized().pieces[0].outputs
        term = self.objective.single(self.space, "an array of outputs")
        return self.space.backend.call(outputs_of, term, self.where)

    @property
    def all_outputs(self) -> Array:
        """The model's outputs of all batches in memory, in order, one after the other."""
        ops, parts = self.space.backend, []
        xp = ops.namespace()
        for term in self.objective.in_memory(self.space):
            if term.batch.stacked:
                z = ops.scan_over(_outputs_of_slice, term.batch, term, self.where)[1]
                parts.append(xp.reshape(z, (-1, *z.shape[2:])))
            else:
                parts.append(ops.call(outputs_of, term, self.where))
        return xp.concat(parts, axis=0)


def _outputs_of_slice(batch: Batch, term: Term, x: Vector) -> tuple[tuple[()], Array]:
    return (), outputs_of(replace(term, batch=batch), x)


def _linearize(term: Term, x: Vector) -> tuple[Sums, Any]:
    return term.linearize(x).parted()


def _curve(term: Term, x: Vector) -> tuple[Sums, Any]:
    return term.linearize_gradient(x).parted()


def _differentiate(term: Term, x: Vector) -> tuple[Sums, Any]:
    return term.value_and_gradient(x), None


def _evaluate(term: Term, x: Vector) -> tuple[Sums, Any]:
    value, weight = term.evaluate(x)
    return (value, None, weight), None


def _gathered(function: Callable[..., Any], term: Term, x: Vector, *shared: Array) -> tuple[Sums, Any]:
    return term.gathered(function, x, *shared)


def _sums_of(visit: Visit, term: Term, x: Vector) -> Sums:
    """The sums of one streamed batch."""
    return visit(term, x)[0]


def _over_memory(visit: Callable[..., tuple[Sums, Any]], point: Point, *shared: Array) -> Summary:
    """The sums over all batches in memory, and the piece of each; stacked batches go through one loop."""
    totals, pieces, where = None, [], point.own
    for term in point.objective.told_linear(point.space, point._made.linearized):
        if term.batch.stacked:
            sums, piece = point.space.backend.scan_over(Partial(_of_slice, visit), term.batch, term, where, *shared)
            piece = None if piece is None else replace(piece, stacked=True)
        else:
            sums, piece = visit(term, where, *shared)
        pieces.append(piece)
        totals = sums if totals is None else _add(point, totals, sums)
        del sums, piece  # which would be held while the next are made
    totals = _of_no_batch(visit, point) if totals is None else totals
    return _with_l2(point, Summary(*_normalised(point, totals), tuple(pieces)))


def _of_no_batch(visit: Callable[..., tuple[Sums, Any]], point: Point) -> Sums:
    """What a process adds whose share has no batch."""
    if isinstance(visit, Partial):
        raise ValueError(
            "a process whose data hold no batch does not know what of the layers is summed: give it a batch without "
            "rows, (x[:0], y[:0])."
        )
    zero, space = 0.0 * point.space.one, point.space
    vector = None if visit is _evaluate else space.zeros()
    return zero, tuple(space.split(vector)) if isinstance(point.where, tuple) and vector is not None else vector, zero


def _and_fits(visit: Visit, point: Point) -> tuple[Summary, tuple[()] | None]:
    """:func:`_over_memory`, with NaN as its value where parameters or data are such as the checks at the door refuse.

    Its second value is None where the program cannot tell. To hand over an array takes 3 microseconds, to read one 9:
    the value, which callers want anyway, is the only one for that.
    """
    made, xp = _over_memory(visit, point), point.space.backend.namespace()
    if visit is _evaluate and len(point.objective.batches) == 1 and not point.objective.batches[0].stacked:
        made = replace(made, weight=None, scale=None)  # nobody asks
    fits = [term.fits(point.where) for term in point.objective.in_memory(point.space)]
    if any(one is None for one in fits):
        return made, None
    return replace(made, value=xp.where(xp.all(xp.stack(fits)), made.value, math.nan)), ()


def is_finite(ops: Backend, value: Scalar) -> bool:
    """Whether a value is known, and finite."""
    return ops.is_concrete(value) and math.isfinite(float(ops.to_numpy(value)))


@record
class Asking:
    """What a program of :func:`value_of` and :func:`slope_of` is made of, beside its arguments."""

    model: Any = static()
    supplied: Any = static()
    whole: bool = static()
    space: Space = static()


def value_of(
    asking: Asking, where: tuple[Array, ...], batches: tuple[Batch, ...], loss: Any, visit: Visit = _evaluate
) -> tuple[Scalar, Any, Any]:
    """The value at leaves of parameters, NaN where these or the data are not good, and no gradient.

    The last of the three is None where the program cannot tell whether they are good.
    """
    terms = Terms(loss, batches, None, asking.model, asking.supplied, asking.whole)
    made, seen = _and_fits(visit, Point(terms, where, asking.space))
    return made.value, made.gradient, seen


def slope_of(
    asking: Asking, where: tuple[Array, ...], batches: tuple[Batch, ...], loss: Any
) -> tuple[Scalar, Any, Any]:
    """:func:`value_of` and the gradient's leaves: nothing is linearised, so that nothing has to be kept."""
    return value_of(asking, where, batches, loss, _differentiate)


def _with_l2(point: Point, made: Summary) -> Summary:
    """With the objective's 1/2 sum l2 x^2 added, and its gradient; consumes the one there is."""
    l2, ops = point.space.backend.detach(point.objective.l2_in(point.space)), point.space.backend
    if l2 is None:
        return made
    x, value = point.x, made.value
    pull = l2 * x
    if value is not None:
        value = value + ops.cast(ops.gathered(0.5 * ops.namespace().sum(pull * x)), ops.describe(value)[1])
    gradient = packed(made.gradient)
    if gradient is None:
        return replace(made, value=value)
    pulls = tuple(point.space.split(pull)) if isinstance(gradient, tuple) else pull
    return replace(made, value=value, gradient=added(ops, pulls, gradient))


def _of_slice(visit: Callable[..., Any], batch: Batch, term: Term, x: Vector, *shared: Array) -> tuple[Sums, Any]:
    """``visit`` of one batch of a stack."""
    made: tuple[Sums, Any] = visit(replace(term, batch=batch), x, *shared)
    return made


def _add(point: Point, totals: Sums, more: Sums) -> Sums:
    """totals + more. Consumes the vector of ``totals``."""
    value, vector, weight = totals
    return (
        None if value is None else value + more[0],
        None if vector is None else added(point.space.backend, more[1], vector),
        None if weight is None else weight + more[2],
    )


def _normalised(point: Point, sums: Sums) -> tuple[Any, Any, Any, Any]:
    """value / W, vector / W, weight, 1 / W, of all processes. Consumes the vector."""
    (value, vector, weight), loss = _of_all_processes(point, sums), point.objective.loss
    require_counted(point.space.backend, weight)
    if loss is None or loss.reduction == "sum":
        return value, vector, weight, 1.0
    scale = 1.0 / weight
    value = None if value is None else value * scale
    if isinstance(vector, Unpacked):
        return value, replace(vector, scale=scale), weight, scale
    return value, None if vector is None else scaled(point.space.backend, scale, vector), weight, scale


def _of_all_processes(point: Point, sums: Sums) -> Sums:
    """The sums over all processes, where each has a share of the data: one collective, or two for several arrays."""
    reduction, ops = point.objective.reduce, point.space.backend
    value, vector, weight = sums
    if reduction is None:
        layout = point.space.layout
        value, weight = (x if x is None or layout is None else ops.agreed(layout, x) for x in (value, weight))
        return value, vector, weight
    vectors = vector if isinstance(vector, tuple) else () if vector is None else (vector,)
    if isinstance(vector, tuple):  # whose number and sizes may depend on the data
        reduction.require_same(ops, point.x, mark_of([ops.describe(x)[:2] for x in vectors]), _OTHERWISE)
    if value is not None and reduction.short:  # who has no batch does not know the dtype of outputs
        double = [ops.describe(x)[1] == "float64" for x in (value, weight) if x is not None]
        dtype = "float64" if reduction.any(ops, point.x, any(double)) else "float32"
        value, weight = (x if x is None else ops.cast(x, dtype) for x in (value, weight))
    parts = [part for part in (value, *vectors, weight) if part is not None]
    marks = {_DRIFTED: reduction.fingerprint(ops, point.x), _OTHER_TERMS: memo(point.objective).mark}
    found = iter(reduction.sum(ops, parts, marks))
    value = None if value is None else next(found)
    vectors = tuple(next(found) for _ in vectors)
    vector = vectors if isinstance(vector, tuple) else vectors[0] if vectors else None
    return value, vector, None if weight is None else next(found)
