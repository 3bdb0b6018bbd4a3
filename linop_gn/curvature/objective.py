"""Objectives: a model and a loss over data, a plain scalar function, or residuals.

    L(p) = (1 / W) sum_b sum_i w_bi l(f(p, x_bi), y_bi)

``W`` is the total weight over all batches for a mean, 1 for a sum: the
normaliser belongs to the objective, once, not to each batch.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

from ..dispatch import backend_of
from ..protocols import Array, Scalar, Tree
from ..records import record, static
from ..spaces import Space
from .batches import Batch, Stream, as_batches, stack
from .losses import Loss, SquaredError, as_loss
from .point import Point, is_single
from .supplied import Supplied
from .term import Term

__all__ = ["Objective"]


@record
class Objective:
    """A model, a loss and data.

    Parameters
    ----------
    model
        Function ``model(params, inputs) -> outputs`` (one array), or what the framework's
        adapter makes one of (an ``nn.Module``). ``params`` is any tree of arrays.
    loss
        From ``lg.losses``, or any callable ``(outputs, targets) -> per-example losses``.
    data
        ``(inputs, targets)`` or ``(inputs, targets, weights)``; or an iterable of such
        batches, which is held in memory if it is a list and otherwise streamed on each pass.
    jvp, vjp, jacobian
        Derivatives of the model, for arrays whose framework has none: see
        :mod:`linop_gn.curvature.supplied`.

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
        For data that cannot be iterated twice, are empty or not tuples, and (at the first
        evaluation) for targets, weights and inputs that do not fit; the messages say what would.
    """

    loss: Loss | None
    batches: tuple[Batch, ...]
    stream: Stream | None
    model: Any = static()
    supplied: Supplied | None = static(default=None)

    def __init__(
        self,
        model: Any,
        loss: Any,
        data: Any,
        *,
        jvp: Callable[..., Any] | None = None,
        vjp: Callable[..., Any] | None = None,
        jacobian: Callable[..., Any] | None = None,
    ) -> None:
        if not callable(model):
            raise TypeError(f"the model must be a function (params, inputs) -> outputs, got {type(model).__qualname__}.")
        batches = as_batches(data)
        given = any(item is not None for item in (jvp, vjp, jacobian))
        self._fill(model, as_loss(loss), batches, Supplied(jvp, vjp, jacobian) if given else None)

    def _fill(self, model: Any, loss: Loss | None, batches: tuple[Batch, ...] | Stream, supplied: Supplied | None) -> None:
        streamed = isinstance(batches, Stream)
        fields = {
            "model": model,
            "loss": loss,
            "batches": () if streamed else batches,
            "stream": batches if streamed else None,
            "supplied": supplied,
        }
        self.__dict__.update(fields)

    @classmethod
    def _make(cls, *fields: Any) -> Objective:
        made = object.__new__(cls)
        made._fill(*fields)
        return made

    @classmethod
    def from_function(
        cls,
        function: Callable[..., Array],
        data: Any = None,
        *,
        gradient: Callable[..., Tree] | None = None,
        hvp: Callable[..., Tree] | None = None,
    ) -> Objective:
        """An objective from a plain scalar function ``function(params)``, or ``function(params, data)``.

        It has a value, a gradient and a Hessian, but no Gauss-Newton operator: that
        needs to know which part is the model and which the loss.
        """
        given = gradient is not None or hvp is not None
        supplied = Supplied(gradient=gradient, hvp=hvp) if given else None
        return cls._make(function, None, (Batch(inputs=data),), supplied)

    @classmethod
    def from_residuals(
        cls,
        residuals: Callable[..., Array],
        data: Any = None,
        *,
        jvp: Callable[..., Any] | None = None,
        vjp: Callable[..., Any] | None = None,
        jacobian: Callable[..., Any] | None = None,
    ) -> Objective:
        """Nonlinear least squares 1/2 ||r(params)||^2, with r(params) or r(params, data); its GGN is J^T J."""
        given = any(item is not None for item in (jvp, vjp, jacobian))
        supplied = Supplied(jvp, vjp, jacobian) if given else None
        return cls._make(residuals, SquaredError(reduction="sum"), (Batch(inputs=data),), supplied)

    def with_data(self, data: Any) -> Objective:
        """The same model and loss on other data (a new batch): the same compiled program."""
        return self._make(self.model, self.loss, as_batches(data), self.supplied)

    # what points and operators ask

    def term(self, space: Space, batch: Batch) -> Term:
        """The part of one batch, unnormalised; kept for each batch, so that its data are checked once."""
        terms: dict[Any, Term] = self.__dict__.setdefault("_terms", {})
        key = (id(batch), space)
        if self.stream is not None or key not in terms:
            made = Term(self.loss, batch, self.model, space, self.supplied)
            if self.stream is not None:
                return made
            terms[key] = made
        return terms[key]

    def scale(self, weight: Scalar) -> Scalar:
        """What the sums over all batches are multiplied by."""
        if self.loss is None or self.loss.reduction == "sum":
            return 1.0
        return 1.0 / weight

    def stream_batches(self, space: Space) -> Iterator[Batch]:
        """One pass over streamed batches."""
        assert self.stream is not None
        for batch in self.stream:
            _check_backend(space, batch)
            yield batch

    def single_batch(self, what: str) -> Batch:
        """The one batch there is; an error that names ``what`` for several."""
        if self.stream is not None or not is_single(self.batches):
            raise ValueError(
                f"{what} exist for data of one batch only; make an objective for one batch with with_data(batch)."
            )
        return self.batches[0]

    def at(self, params: Tree) -> Point:
        """The objective at ``params``, which are copied; the same point again while it is alive and they are equal."""
        ops = backend_of(params)
        tree = ops.normalize(params)
        space = self._space(tree)
        x = space.pack(tree, "parameters")
        if not ops.is_concrete(x):
            return Point(self._stacked(space), x, space)
        size = ops.max_abs(x)
        if not bool(ops.isfinite(size)):
            bad = [
                name
                for name, part in space.blocks.items()
                if not bool(ops.isfinite(ops.max_abs(x[part])))
            ]
            raise ValueError(f"the parameters hold NaN or infinity in {bad}; nothing can be computed there.")
        previous = self.__dict__.get("_last", lambda: None)()
        if previous is not None and previous.space == space and _equal(ops, previous.x, x):
            return previous  # type: ignore[no-any-return]
        point = Point(self._stacked(space), x, space)
        self.__dict__["_last"] = weakref.ref(point)
        return point

    def _space(self, tree: Tree) -> Space:
        space = Space.of(tree)
        for batch in self.batches:
            _check_backend(space, batch)
        return space

    def _stacked(self, space: Space) -> Objective:
        """This objective with equal batches stacked, where that makes one program of them."""
        if len(self.batches) < 2 or "compiled" not in space.backend.capabilities:
            return self
        kept = self.__dict__.get("_stack")
        if kept is None:
            _check_each(self, space)
            made = self._make(self.model, self.loss, stack(self.batches, space.backend), self.supplied)
            kept = made
            if space.backend.is_concrete(self.batches):
                self.__dict__["_stack"] = kept
        return kept  # type: ignore[no-any-return]

    # what users ask

    def value(self, params: Tree) -> Scalar:
        """The objective at ``params``: a 0-d array (or a number)."""
        return self.at(params).value

    def gradient(self, params: Tree) -> Tree:
        """The gradient, in the format of ``params``."""
        point = self.at(params)
        return point.space.unpack(point.gradient)

    def value_and_gradient(self, params: Tree) -> tuple[Scalar, Tree]:
        """Both from one pass."""
        point = self.at(params)
        gradient = point.space.unpack(point.gradient)
        return point.value, gradient

    def outputs(self, params: Tree) -> Array:
        """The model's outputs, for data of one batch."""
        return self.at(params).outputs

    def __repr__(self) -> str:
        name = getattr(self.model, "__qualname__", type(self.model).__qualname__)
        what = "scalar function" if self.loss is None else repr(self.loss)
        data = "streamed" if self.stream is not None else f"{len(self.batches)} batch{'es' * (len(self.batches) != 1)}"
        return f"Objective({name}, {what}, {data})"


def _equal(ops: Any, x: Any, y: Any) -> bool:
    return ops.max_abs(ops.axpy(-1.0, x, ops.copy(y))) == 0


def _check_backend(space: Space, batch: Batch) -> None:
    """Raise for data of another framework or device than the parameters."""
    ops = space.backend
    for what in ("inputs", "targets", "weights"):
        value = getattr(batch, what)
        for name, leaf in zip(*ops.flatten(value)[:2], strict=True) if value is not None else ():
            where = f"the {what}{f' ({name})' if name else ''}"
            if not ops.is_array(leaf):
                if isinstance(leaf, (int, float, bool, str)):
                    continue
                raise TypeError(
                    f"{where} belong to {type(leaf).__module__.partition('.')[0]} ({type(leaf).__qualname__}) but the "
                    f"parameters to {ops.name}; convert one of them."
                )
            device = ops.describe(leaf)[2]
            if None not in (device, space.device) and device != space.device:
                raise ValueError(f"{where} are on {device} but the parameters on {space.device}; move one of them.")


def _check_each(objective: Objective, space: Space) -> None:
    """The errors at the door for batches that are about to be stacked."""
    from .point import _outputs_of_term

    ops = space.backend
    for batch in objective.batches:
        if ops.is_concrete(batch) and objective.loss is not None:
            term = objective.term(space, batch)
            term.check(ops.shape_of(_outputs_of_term, term, space.zeros()))

