"""Objectives: a model and a loss over data, a plain scalar function, or residuals.

    L(p) = (1 / W) sum_b sum_i w_bi l(f(p, x_bi), y_bi)

``W`` is the total weight over all batches for a mean, 1 for a sum: the
normaliser belongs to the objective, once, not to each batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from numbers import Real
from typing import Any

from ..arguments import require_number, whole
from ..dispatch import imported, require_registered
from ..distributed.agreed import told_of
from ..distributed.reduction import as_reduction, mark_of
from ..distributed.watching import telling
from ..foreign import advised
from ..given import as_columns, as_start
from ..protocols import Array, Backend, Scalar, Tree, Vector
from ..records import Asked, fields, fill, memo, rebuild, record, replace
from ..spaces import Space
from .again import alone, are, holds, same_leaves
from .batches import Batch, Stream, as_batches, cut, stack, without_rows
from .checks import require_finite_parameters
from .losses import Loss, SquaredError, as_loss
from .point import Asking, Point, is_finite, slope_of, value_of
from .programs import Programs
from .supplied import Supplied
from .terms import Terms

__all__ = ["Objective"]

_UNLIKE = (
    "the processes do not have the same parameters (names, shapes, dtypes), not the same loss, or their data are "
    "streamed on some and held in memory on others: make all but the examples alike."
)

_NO_BATCH = (
    "a process has no batch, and parameters that lie over processes are gathered for each: give it one without rows, "
    "(x[:0], y[:0]). How many batches the processes have, and how many examples are in each, does not matter."
)


@record
class Objective(Terms):
    """A model, a loss and data.

    The latest linearisation is remembered: gradient, value and products at the same
    parameters come from one pass through the model.

    Parameters
    ----------
    model
        Function ``model(params, inputs) -> outputs`` (one array), or what the framework's
        adapter makes one of (an ``nn.Module``). ``params`` is any tree of arrays. A module is taken
        as it is when something is asked or an operator is made: mode, buffers, and parameters that
        are not in ``params``. What a plain function closes over is not watched.
    changing_data
        Whether streamed data are meant to change from pass to pass: else the second pass is refused if they did.
        Each product is then of another operator, and no solver meets a tolerance: give it ``steps=``.
    loss
        From ``lg.losses``, or any callable ``(outputs, targets) -> per-example losses``.
    data
        ``(inputs, targets)`` or ``(inputs, targets, weights)``; or an iterable of such
        batches, which is held in memory if it is a list and otherwise streamed on each pass.
        They are not copied: after writing into them, make a new objective.
    jvp, vjp, jacobian
        Derivatives of the model, for arrays whose framework has none: see
        :mod:`linop_gn.curvature.supplied`.
    derivatives
        The framework in which the model (and a callable loss) is written and differentiated, where
        that is not the arrays' own: ``"torch"``, ``"jax"``, ``"autograd"``. It is called with arrays of
        that framework, by DLPack; everything else stays in the arrays' own. See
        :mod:`linop_gn.curvature.bridge`.
    compile
        Whether products of the model are compiled: traced once for each shape of the data, with parameters and data as
        inputs, checked against the products as they are, and kept by the objective and what ``with_data`` makes of it.
        That takes seconds to minutes, once, and pays where many products follow. What the compiler cannot take is done
        as without, with a warning that says why. Where everything is compiled anyway it changes nothing. See
        ``docs/compiled.md``.
    reduce
        Where each of several processes has a share of the data: a function of a flat array that returns its sum over
        the processes, such as one around mpi4py's ``Allreduce``, or an ``lg.distributed.Reduction``. The objective,
        mean and all, is then that of all shares together. For torch's process groups there is
        ``lg.distributed.DataParallel``, and so for JAX inside ``shard_map``; outside of it JAX shards arrays.
    l2
        The lambda of a Gaussian prior: 1/2 lambda ||p||^2 is added to the mean or sum, lambda p to the gradient,
        lambda I to GGN and Hessian. A number, or a tree like the parameters of numbers and arrays: data.
    memory
        ``"kept"``: an operator keeps the model linearised, activations and all, and products are cheap. ``"low"``: it
        keeps parameters and data; each product linearises anew, batch by batch, at 1.5 to 2 times the work.
    microbatch
        How many examples go through the model at a time: batches are cut into parts of so many, the last of what is
        left, and values, gradients and products are summed over these, exactly. With ``memory="low"`` no more than the
        activations of one microbatch are ever held. The model must take each example by itself.

    >>> import numpy as np, linop_gn as lg
    >>> x, y = np.array([[1.0], [2.0]]), np.array([[1.0], [3.0]])
    >>> fit = lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), (x, y),
    ...                    jacobian=lambda w, x: x[:, :, None])
    >>> w = np.zeros((1, 1))
    >>> float(fit.value(w)), fit.gradient(w)
    (2.5, array([[-3.5]]))

    Raises
    ------
    TypeError, ValueError
        For data that cannot be iterated twice or are not tuples, and (at the first evaluation) for data that are
        empty, and targets, weights and inputs that do not fit; the messages say what would.
    """

    def __init__(
        self,
        model: Any,
        loss: Any,
        data: Any,
        *,
        jvp: Callable[..., Any] | None = None,
        vjp: Callable[..., Any] | None = None,
        jacobian: Callable[..., Any] | None = None,
        derivatives: str | None = None,
        l2: Any = None,
        changing_data: bool = False,
        reduce: Any = None,
        memory: str = "kept",
        microbatch: int | None = None,
        compile: bool = False,  # noqa: A002
    ) -> None:
        _require_function("the model must be a function (params, inputs) -> outputs", model)
        supplied = Supplied.given(jvp=jvp, vjp=vjp, jacobian=jacobian)
        held, sparing = _held(as_batches(data), changing_data), _sparing(memory, microbatch)
        if held["stream"] is not None:
            held["stream"].microbatch = sparing["microbatch"]
        made = _fields(model, as_loss(loss), derivatives, supplied, l2, reduce, compile)
        fill(self, **made, whole=False, **held, **sparing)

    @classmethod
    @advised
    def from_function(
        cls,
        function: Callable[..., Array],
        data: Any = None,
        *,
        gradient: Callable[..., Tree] | None = None,
        hvp: Callable[..., Tree] | None = None,
        derivatives: str | None = None,
        l2: Any = None,
        reduce: Any = None,
        memory: str = "kept",
        compile: bool = False,  # noqa: A002
    ) -> Objective:
        """An objective from a plain scalar function ``function(params)``, or ``function(params, data)``.

        It has a value, a gradient and a Hessian, but no Gauss-Newton operator: that
        needs to know which part is the model and which the loss. With ``reduce`` it is the sum of the processes' own.
        There is no ``microbatch``: nobody knows how the function is a sum over the data.
        """
        _require_function("the objective must be a function of the parameters", function)
        made = _fields(function, None, derivatives, Supplied.given(gradient=gradient, hvp=hvp), l2, reduce, compile)
        return rebuild(cls, made | _whole(data) | _sparing(memory, None))

    @classmethod
    @advised
    def from_residuals(
        cls,
        residuals: Callable[..., Array],
        data: Any = None,
        *,
        jvp: Callable[..., Any] | None = None,
        vjp: Callable[..., Any] | None = None,
        jacobian: Callable[..., Any] | None = None,
        derivatives: str | None = None,
        l2: Any = None,
        reduce: Any = None,
        memory: str = "kept",
        microbatch: int | None = None,
        compile: bool = False,  # noqa: A002
    ) -> Objective:
        """Nonlinear least squares 1/2 ||r(params)||^2, with r(params) or r(params, data); its GGN is J^T J.

        ``microbatch`` is for residuals of some rows of the data that do not depend on the other rows.
        """
        _require_function("the residuals must be a function of the parameters", residuals)
        supplied = Supplied.given(jvp=jvp, vjp=vjp, jacobian=jacobian)
        made = _fields(residuals, SquaredError(reduction="sum"), derivatives, supplied, l2, reduce, compile)
        if microbatch is not None and data is None:
            raise ValueError(
                "microbatch= cuts the data, and these residuals are a function of the parameters alone: hand the data "
                "over, Objective.from_residuals(residuals, data, ...), as the second argument of the residuals."
            )
        return rebuild(cls, made | _whole(data) | _sparing(memory, microbatch))

    def with_data(self, data: Any) -> Objective:
        """The same model and loss on other data (a new batch): the same compiled program, or copy of a torch module.

        ``data`` are what the constructor takes: ``(inputs, targets)`` for a model and a loss,
        and for a function or residuals whatever they are called with.
        """
        changing = self.stream is not None and self.stream.changing
        held = _whole(data) if self.whole else _held(as_batches(data), changing)
        if held["stream"] is not None:
            held["stream"].microbatch = self.microbatch
        made = rebuild(type(self), fields(self) | held)
        memo(made).asked = self._asked
        return made

    def at(self, params: Tree) -> Point:
        """The objective at ``params``, which are copied; the same point again while model and parameters are equal."""
        self._asked.points = True
        with telling(self.reduce):
            return self._looked_at(self._at(params))

    def _at(self, params: Tree) -> Point:
        asked = self._asked
        space, leaves = asked.space, asked.space and asked.space.again(params)
        if leaves is None:
            space, leaves = Space.entered(as_start(params))
            asked.space = space
        ops, latest = space.backend, memo(self).latest
        apart = space.in_leaves and not self.is_bridged(space) and not self.host
        known = latest is not None and not apart and self.reduce is None and latest.space == space
        known = known and space.layout is None and ops.is_concrete(leaves)
        known = known and latest.objective is self.now(space, latest.x)
        equal = known and holds(latest, leaves)
        if equal and same_leaves(latest, leaves, alone(ops, leaves)):  # nothing is packed
            return latest  # type: ignore[no-any-return]
        packed = tuple(leaves) if apart else space.join(leaves)  # nobody can write to a compiled framework's leaves
        x = ops.detach(packed)
        terms = self.now(space, x)
        if not ops.is_concrete(x):
            point = Point(terms, x, space)
            memo(point).checked = True
            return point
        again = latest is not None and latest.objective is terms and latest.space == space
        if again and apart and are(latest.where, x):
            return latest  # type: ignore[no-any-return]
        point = Point(terms, x, space)
        memo(point).origin = None if packed is x else (packed, leaves)
        if again and not apart and (equal if known else holds(latest, leaves)):
            if same_leaves(latest, leaves, packed is x):
                return latest  # type: ignore[no-any-return]
            point.share(latest)
        if not (apart and self._asked.before):  # a model that has not been asked yet may fail at anything
            self._looked_at(point)
        memo(self).latest = point  # the latest one's graph goes before another is recorded
        return point

    def _at_once(self, params: Tree, *, slope: bool = False) -> tuple[Scalar, Any] | None:
        """The value by a program of plain arguments, where a compiled framework is asked again; None where it cannot.

        With ``slope`` the gradient's leaves too, unless the model has been asked for points: then products will follow,
        which take the linearisation that the gradient comes from. No point is made here: for a small model that takes
        as long as the program, and a loop asks at each step.
        """
        asked, held = self._asked, memo(self)
        if not (asked.before and asked.at_once) or asked.space is None or len(self.batches) != 1:
            return None
        space, ops = asked.space, asked.space.backend
        if not space.in_leaves or self.reduce is not None or self.derivatives is not None or self.l2 is not None:
            return None
        if self.microbatch is not None or self.batches[0].stacked:
            return None
        if (self.loss is not None and self.loss.has_arrays) or not ops.calculus:
            return None
        if slope and asked.points:
            return None
        leaves = space.again(params)
        if leaves is None or not ops.is_concrete((leaves, self.batches)):
            return None
        if not slope and held.answer is not None and are(held.answer[0], leaves):
            return held.answer[1], None
        if held.latest is not None:
            if are(held.latest.where, leaves):
                return None  # which has been asked already
            held.latest = None
        self.require_fitting(space)
        asking = Asking(ops.calculus.adapt(self.model, space.names), self.supplied, self.whole, space)
        with suppress(Exception):  # what does not fit is refused below in other words
            way = slope_of if slope else value_of
            value, gradient, seen = ops.call(way, asking, tuple(leaves), self.batches, self.loss)
            if seen is not None and is_finite(ops, value):
                held.answer = leaves, value  # and no gradient, whose memory is its receiver's
                return value, gradient
            asked.at_once = seen is not None
        return None

    @property
    def _asked(self) -> Asked:
        """Shared with copies of other data: a loop asks a copy at each step, and may never ask the first objective."""
        found = memo(self).asked
        if found is None:
            found = memo(self).asked = Asked()
        return found  # type: ignore[no-any-return]

    def _looked_at(self, point: Point) -> Point:
        """The point, once its parameters are known to be finite: while a compiled program is running, if it can be."""
        if not memo(point).checked:
            try:
                if not point.objective.host:
                    point.objective.in_memory(point.space)  # data that do not fit are refused here
                require_finite_parameters(point.space, point.where)
                if self.loss is not None and self.loss.autodiff and not self._asked.before:
                    point.check_data()  # a function's values, which a compiler hides: they may be of a known loss
            except ValueError:
                memo(self).latest = None
                raise
            memo(point).checked = self._asked.before = True
        return point

    def now(self, space: Space, x: Vector) -> Terms:
        """What points hold: these terms with the model as it is now, and in a compiled program equal batches as one."""
        ops, guest = space.backend, self.differentiating(space.backend)
        if self.reduce is not None:
            self._require_alike(space, x)
        model = self.model if guest.calculus is None else guest.calculus.adapt(self.model, space.names)
        self._asked.model = model
        terms: Terms | None = memo(self).terms
        together = self.reduce is not None and space.layout is not None and memo(self).most is None
        if terms is None or terms.model is not model or together:
            if self.reduce is not None:
                self.reduce.check_model(self.model)  # in the mode that it has now
            programs = None if self.programs is None else self.programs.of(guest)
            terms, batches = rebuild(Terms, fields(self) | {"model": model, "programs": programs}), self._parts(space)
            batches = self._as_many(space, x, batches)
            if len(batches) > 1 and "compiled" in ops.capabilities:
                for term in terms.in_memory(space):
                    term.check_ahead(x)
                batches = stack(batches, ops)
            terms = terms if batches is self.batches else replace(terms, batches=batches)
            if self.reduce is not None:
                told = self.l2, self.loss, self.reduce.told_of_model(self.model, space.names)
                memo(terms).mark = mark_of(told_of(self.reduce, told))
            if ops.is_concrete((terms.batches, x)):
                memo(self).terms, memo(terms).asked = terms, self._asked
        return terms

    def _parts(self, space: Space) -> tuple[Batch, ...]:
        """The batches in memory, cut where there is a ``microbatch``."""
        if self.microbatch is None:
            return self.batches
        calculus = self.differentiating(space.backend).calculus
        coupling = None if calculus is None else calculus.coupling(self.model)
        if coupling is not None:
            raise ValueError(
                f"microbatch={self.microbatch}: the model has a {coupling} in training mode, which normalises by all "
                "examples that come at a time, so that the parts of a batch are of another model. Use its running "
                "statistics (model.eval(), or .eval() of these layers), or GroupNorm or LayerNorm, which see one "
                "example at a time."
            )
        self.require_fitting(space)
        return tuple(part for i, batch in enumerate(self.batches) for part in cut(batch, self.microbatch, i))

    def _as_many(self, space: Space, x: Vector, own: tuple[Batch, ...]) -> tuple[Batch, ...]:
        """The batches, and some without rows where other processes have more and each gathers the parameters."""
        if self.reduce is None or space.layout is None:
            return own
        most = memo(self).most
        if most is None:
            numbers = self.reduce.numbers(space.backend, x, len(own))
            if min(numbers) == 0 < max(numbers):
                raise ValueError(_NO_BATCH)
            most = memo(self).most = max(numbers)
        return (*own, *(without_rows(own[-1]) for _ in range(most - len(own))))

    def _require_alike(self, space: Space, x: Vector) -> None:
        """Raise where no process can sum, or the processes have other parameters or losses than each other."""
        assert self.reduce is not None
        space.backend.apart(x, self.reduce)
        loss = None if self.loss is None else (type(self.loss).__qualname__, self.loss.reduction)
        told = self.host, loss, space.names, space.shapes, space.dtypes, space.dtype
        empty = not (self.host or self.batches)
        self.reduce.short |= self.reduce.require_known(space.backend, x, told, _UNLIKE, empty)
        if space.layout is not None and self.host:
            raise ValueError(
                "parameters that lie over processes are gathered for each batch, by all processes, and how many a "
                "stream has is not known before its end: hold the batches in a list."
            )

    # what users ask

    def value(self, params: Tree) -> Scalar:
        """The objective at ``params``: a 0-d array."""
        with telling(self.reduce):
            known = self._at_once(params)
            if known is not None:
                return known[0]
            point = self._at(params)
            value = point.value
            return _own(self._looked_at(point).space.backend, value)

    def gradient(self, params: Tree) -> Tree:
        """The gradient, in the format of ``params``."""
        return self.value_and_gradient(params)[1]

    def value_and_gradient(self, params: Tree) -> tuple[Scalar, Tree]:
        """Both from one pass."""
        with telling(self.reduce):
            known = self._at_once(params, slope=True)
            if known is not None:
                space = self._asked.space
                return known[0], space.backend.unflatten(space.structure, known[1])
            point = self._at(params)
            value, gradient = point.summary().value, point.gradient_tree
            return _own(self._looked_at(point).space.backend, value), gradient

    def outputs(self, params: Tree) -> Array:
        """The model's outputs, for data of one batch: with ``reduce``, of this process's."""
        point = self.at(params)
        outputs = point.outputs if self.microbatch is None or len(self.batches) != 1 else point.all_outputs
        return _own(point.space.backend, outputs)

    def __repr__(self) -> str:
        name = getattr(self.model, "__qualname__", type(self.model).__qualname__)
        what = "scalar function" if self.loss is None else repr(self.loss)
        data = "streamed" if self.stream is not None else f"{len(self.batches)} batch{'es' * (len(self.batches) != 1)}"
        rest = ", compiled" * (self.programs is not None)
        rest += ("" if self.l2 is None else ", l2") + ("" if self.reduce is None else f", {self.reduce!r}")
        rest += "" if self.memory == "kept" else f", memory={self.memory!r}"
        rest += "" if self.microbatch is None else f", microbatch={self.microbatch}"
        return f"Objective({name}, {what}, {data}{rest})"


def _require_function(what: str, given: Any) -> None:
    is_loss = isinstance(given, Loss) or any(backend.loss_of(given) is not None for backend in imported())
    if is_loss or not callable(given):
        order = " The order is lg.Objective(model, loss, data)." if is_loss else ""
        raise TypeError(f"{what}, got {type(given).__qualname__}.{order}")


def _fields(
    model: Any,
    loss: Loss | None,
    derivatives: str | None,
    supplied: Supplied | None,
    l2: Any,
    reduce: Any,
    compile: bool,  # noqa: A002
) -> dict[str, Any]:
    """All fields of an objective but its data."""
    if derivatives is not None:
        require_registered(derivatives)
        if supplied is not None:
            raise ValueError(f"derivatives={derivatives!r} was given beside functions that supply them: choose.")
    if compile and supplied is not None:
        raise ValueError(
            "compile=True was given beside functions that supply derivatives, which run as they are: choose."
        )
    for value in l2.values() if isinstance(l2, Mapping) else (l2,):
        if isinstance(value, (int, float)):
            require_number("Objective", "l2", value)
    l2 = None if isinstance(l2, Real) and l2 == 0 else l2
    made = {"model": model, "loss": loss, "supplied": supplied, "derivatives": derivatives, "l2": l2}
    return {**made, "reduce": as_reduction(reduce), "programs": Programs() if compile else None}


def _sparing(memory: str, microbatch: int | None) -> dict[str, Any]:
    """What an objective does where memory is short."""
    if memory not in ("kept", "low"):
        raise ValueError(
            f"memory must be 'kept' (operators keep the model linearised) or 'low' (each product linearises anew), got "
            f"{memory!r}."
        )
    if microbatch is not None:
        microbatch = whole("Objective", "microbatch", microbatch, 1)
    return {"memory": memory, "microbatch": microbatch}


def _held(batches: tuple[Batch, ...] | Stream, changing: bool = False) -> dict[str, Any]:
    if not isinstance(batches, Stream):
        return {"batches": batches, "stream": None}
    batches.changing = changing
    return {"batches": (), "stream": batches}


def _whole(data: Any) -> dict[str, Any]:
    """The data of a function that takes them as they are."""
    return {"whole": True, **_held((Batch(inputs=as_columns(data)),))}


def _own(ops: Backend, x: Array) -> Array:
    """``x`` in memory of its own, where the caller could otherwise write into what the operators use."""
    return ops.copy(x) if "in_place" in ops.capabilities else x
