"""What a loss is: a sum over examples, its derivatives in the outputs, and who divides by what.

For outputs z, targets y and weights w,

    L(z) = sum_i w_i l(z_i, y_i),

where the index i runs over the *example axes*, the leading axes that each loss
names: all but the classes for cross-entropy (so the positions of a language
model are examples), the first alone for squared error, all of them for the
losses of one number. Weights have the shape of the example axes or one that
broadcasts to it *from the left*: with examples (B, T), weights (B,) or (B, 1)
weigh whole sequences. A mask is a weight that is 0 or 1. What has no weight is
not looked at: its output and its target may be anything, NaN included, and its
value, gradient and Hessian are exactly zero.

A subclass says what l, dl/dz and d^2l/dz^2 are; sums, weights, masks and errors
are here. All that is made of them is an *unnormalised sum*. The mean divides by
the total weight over **all** batches, which only the objective sees; dividing
batch by batch is the commonest way of getting a silently wrong curvature, since
batches with few counted examples then weigh too much. :meth:`Loss.weight_sum`
is the number that each batch adds to that total.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn

import numpy as np

from ...arguments import known
from ...protocols import Array, Backend
from ...records import data_fields, record, static
from . import door
from .hessians import Blocks, OutputHessian, Weighted, as_hessian
from .weighting import count, finite, fit_weights, grand_total, keep, real

__all__ = ["Elementwise", "Loss"]


@record
class Loss:
    """Base class of losses; subclasses are records.

    A loss of your own defines :meth:`value`, :meth:`slope` and :meth:`curvature`, as functions of
    outputs and targets of one dtype, and says whether it is ``convex``. With :meth:`value` alone the
    framework differentiates it.

    Parameters
    ----------
    reduction : {"mean", "sum"}
        What the objective makes of the sum over all examples of all batches:
        divides it by their total weight, or leaves it.

    Notes
    -----
    ``xp`` is an array-API namespace; ``outputs`` are floating; results have the
    dtype and device of ``outputs``, whatever the dtypes of targets and weights.
    Nothing writes into its arguments or looks at values (except :meth:`check`),
    so that a compiler can trace all of it.

    >>> import numpy as np, linop_gn as lg
    >>> @lg.record
    ... class PseudoHuber(lg.losses.Loss):
    ...     convex = True
    ...     width: float = 1.0
    ...     def value(self, xp, z, y):
    ...         return self.width**2 * (xp.sqrt(1 + ((z - y) / self.width) ** 2) - 1)
    ...     def slope(self, xp, z, y):
    ...         return (z - y) / xp.sqrt(1 + ((z - y) / self.width) ** 2)
    ...     def curvature(self, xp, z, y):
    ...         return (1 + ((z - y) / self.width) ** 2) ** -1.5
    >>> z, y, w = np.array([0.0, 3.0**0.5]), np.zeros(2), np.array([0, 1])
    >>> float(PseudoHuber().total(np, z, y, w).round(6)), PseudoHuber().gradient(np, z, y, w).round(3)
    (1.0, array([0.   , 0.866]))
    """

    name: ClassVar[str] = "loss"
    convex: ClassVar[bool] = False
    """Whether H_L is positive semidefinite at every output."""
    example_axes: ClassVar[int | None] = None
    """Which leading axes of the outputs count examples, as the end of a slice: None all, 1 the first, -1 all but the
    last."""
    second_derivative: ClassVar[bool] = True
    """Whether :meth:`curvature` is that, and not something in its place; :func:`linop_gn.validate` holds it to it.

    Where a class says so itself, beside its ``curvature``, Hessians of many outputs are made of it."""
    by_rows: ClassVar[bool] = False
    """Whether the loss of an example depends on that example alone, so that many may be taken a few at a time."""
    slope_of_known: ClassVar[bool] = False
    """Whether :meth:`slope` takes what is :meth:`known` as a fourth argument, too."""
    of_known: ClassVar[bool] = False
    """Whether :meth:`curvature` is made of what is :meth:`known` alone, which may be as large as the outputs."""
    targets_optional: ClassVar[bool] = False
    """Whether ``y`` may be None, for data without targets."""
    limits: ClassVar[Mapping[str, tuple[str, Callable[[float], bool]]]] = {}
    """What the numbers among the fields must be: in words, and as a function."""

    reduction: str = static(default="mean", kw_only=True)

    def __init_subclass__(cls) -> None:
        for gone in {"hessian_product", "factor_product", "shared"} & cls.__dict__.keys():
            raise TypeError(f"{cls.__name__} defines {gone}, which nothing would ask: define curvature instead.")

    def __post_init__(self) -> None:
        if self.reduction not in ("mean", "sum"):
            raise ValueError(
                f"{type(self).__name__}: reduction must be 'mean' or 'sum', got {self.reduction!r}. "
                "Per-example losses ('none') have no curvature; give weights to weigh the examples."
            )
        optional = {field.name for field in dataclasses.fields(self) if field.default is None}
        for field in self.limits:
            value = getattr(self, field)
            if known(type(self).__name__, field, value) is None and value is None and field not in optional:
                raise TypeError(f"{type(self).__name__}: {field} must be a number, got None: leave it out.")
        for field in data_fields(self):
            number = real(getattr(self, field))
            if number is not None:
                object.__setattr__(self, field, number)  # NumPy's would widen the outputs
                door.refuse_number(type(self).__name__, field, number, self.limits)

    # what a loss says

    def value(self, xp: Any, z: Array, y: Array) -> Array:
        """l(z, y): for each output, or summed over the axes of an example."""
        self._lacks("value")

    def slope(self, xp: Any, z: Array, y: Array) -> Array:
        """dl/dz, like z."""
        self._lacks("slope")

    def curvature(self, xp: Any, z: Array, y: Array) -> Any:
        """d^2l/dz^2: its diagonal, like z or a number, where outputs don't interact.

        Otherwise blocks (..., C, C) over the last axis of z, with ``example_axes = -1``, or an
        :class:`~linop_gn.curvature.losses.OutputHessian`, whose products and root are in closed form.
        """
        self._lacks("curvature")

    def known(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> tuple[Array, ...]:
        """Arrays (..., 1) of the examples that :meth:`curvature` takes as a fourth argument, to be cheap; none here."""
        return ()

    def score(self, xp: Any, z: Array, y: Array) -> tuple[Array, Array | None]:
        """The slope of each example as if it had the weight one, and the weight that the loss itself gives it, if any.

        The derivative of what :meth:`value` returns is their product.
        """
        return self.slope(xp, z, y), None

    def drawn_slope(self, xp: Any, z: Array, uniform: Callable[[int], Array]) -> Array:
        """The slope at targets drawn from the distributions whose -log this loss is, as if each had the weight one.

        ``uniform(k)`` are numbers in (0, 1) like z, others for each k. Its mean outer product is the curvature.
        """
        raise NotImplementedError(
            f"{type(self).__name__} is not known as the -log of a distribution to draw targets from: define "
            "drawn_slope, or take lg.GGN or lg.EmpiricalFisher."
        )

    def of_batch(self, place: Any) -> Loss:
        """The loss for the batch number ``place`` of a pass."""
        return self

    def of_part(self, shape: tuple[int, ...], first: int) -> Loss:
        """The loss for some of a batch's outputs, of this ``shape``: for those from entry number ``first`` on."""
        return self

    def refuse_targets(self, targets: np.ndarray[Any, Any], counted: np.ndarray[Any, Any]) -> None:
        """Raise if a finite target (float64, on the host) is none for this loss. ``counted`` broadcasts."""

    def are_targets(self, xp: Any, y: Array) -> Any:
        """Where finite targets are such as :meth:`refuse_targets` lets pass: True, or an array like ``y``."""
        return True

    # what is made of it

    @property
    def autodiff(self) -> bool:
        """Whether derivatives come from the framework, instead of from closed forms here."""
        return type(self).slope is Loss.slope

    @property
    def has_arrays(self) -> bool:
        """Whether an array is among the numbers that have a limit: these are looked at by :meth:`check`."""
        values = [getattr(self, field) for field in self.limits]
        return any(value is not None and real(value) is None for value in values)

    def total(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> Array:
        """The weighted sum over examples, a 0-d array; any automatic differentiation takes it, twice."""
        z, y, w = self._read(xp, outputs, targets, weights)
        made = self.value(xp, z, y)
        made = xp.reshape(made, made.shape + (1,) * (len(z.shape) - len(made.shape)))
        return grand_total(xp, _weighed(xp, w, made, z))

    def gradient(
        self,
        xp: Any,
        outputs: Array,
        targets: Array | None,
        weights: Array | None,
        known: tuple[Array, ...] = (),
    ) -> Array:
        """The derivative of :meth:`total` with respect to ``outputs``; ``known`` is that of :meth:`hessian`."""
        z, y, w = self._read(xp, outputs, targets, weights)
        return _weighed(xp, w, self.slope(xp, z, y, *([known] if known and self.slope_of_known else ())), z)

    def hessian(
        self,
        xp: Any,
        outputs: Array,
        targets: Array | None,
        weights: Array | None,
        known: tuple[Array, ...] = (),
    ) -> OutputHessian:
        """The second derivative H_L of :meth:`total`: a record with products and a root.

        ``known`` is what :meth:`known` returned of the same data, or nothing.
        """
        z, y, w = self._read(xp, outputs, targets, weights)
        made = as_hessian(xp, self.curvature(xp, z, y, *([known] if known else ())), z, w)
        if isinstance(made, Weighted) and isinstance(made.inner, Blocks) and made.weights.shape[-1] > 1:
            raise ValueError(
                f"{type(self).__name__}: its curvature couples the outputs along the last axis, which are one example "
                "then and have one weight: set example_axes = -1."
            )
        return made

    def hessian_product(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None, v: Array) -> Array:
        """H_L v, for ``v`` like outputs."""
        return self.hessian(xp, outputs, targets, weights).product(xp, v)

    def weight_sum(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> Array:
        """The total weight of the counted examples, a 0-d array in the outputs' dtype: what a mean divides by."""
        *_, w = self._read(xp, outputs, targets, weights)
        return count(xp, w, outputs, len(self._examples(tuple(outputs.shape), weights)))

    def check(
        self,
        backend: Backend,
        outputs_shape: tuple[int, ...],
        targets: Array | None,
        weights: Array | None,
        *,
        empty_ok: bool = False,
    ) -> None:
        """Raise TypeError or ValueError, saying what to do, if these arrays are no data for this loss.

        Reads values, so the arrays must be concrete. ``empty_ok`` accepts a
        batch in which no example counts, which is harmless beside others.
        """
        name, shape = type(self).__name__, tuple(outputs_shape)
        for field in self.limits:
            given = getattr(self, field)
            if backend.is_array(given) and backend.is_concrete(given):
                door.refuse_number(name, field, float(backend.to_numpy(given)), self.limits)
        counted = door.counted_examples(backend, name, weights, self._examples(shape, weights))
        counted = self._check_targets(backend, shape, targets, counted)
        if not empty_ok:
            door.refuse_empty(name, counted)

    def fits(
        self, xp: Any, shape: tuple[int, ...], targets: Array | None, weights: Array | None, *, empty_ok: bool = False
    ) -> Any:
        """Whether :meth:`check` lets these arrays pass, worked out beside the loss by its own program: a 0-d array.

        False where only :meth:`check` can tell: it looks at everything anew then, and says what is wrong. The loss's
        own numbers are data, so that :attr:`has_arrays` asks for them outside.
        """
        kind = type(self)
        own = kind.check is not Loss.check
        own = own or (kind.refuse_targets is not Loss.refuse_targets and kind.are_targets is Loss.are_targets)
        if own:
            return False
        counted, good = _weights_fit(xp, weights, self._examples(shape, weights))
        counted, fine = self._targets_fit(xp, shape, targets, counted)
        return good & fine & (empty_ok | xp.any(counted))

    # parts

    def _examples(self, shape: tuple[int, ...], weights: Array | None) -> tuple[int, ...]:
        """The shape of the examples in outputs of this shape."""
        if not shape and self.example_axes is not None:
            name = type(self).__name__
            raise ValueError(
                f"{name}: outputs of shape () have no example axis: return one for each example (residuals are not "
                "summed up); of one example, shape (1,)."
            )
        return shape[: self.example_axes]

    def _read(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> tuple[Array, Any, Any]:
        """Outputs, targets and weights in one dtype, zero where they do not count."""
        shape = tuple(outputs.shape)
        self._fit_targets(shape, None if targets is None else tuple(targets.shape))
        w = fit_weights(xp, type(self).__name__, weights, outputs, len(self._examples(shape, weights)))
        counted = None if w is None else w != 0
        y = None if targets is None else keep(xp, counted, xp.astype(targets, outputs.dtype, copy=False))
        return keep(xp, counted, outputs), y, w

    def _fit_targets(self, outputs: tuple[int, ...], targets: tuple[int, ...] | None) -> None:
        name = type(self).__name__
        if targets is None:
            if not self.targets_optional:
                raise TypeError(f"{name}: targets are missing; it needs an array of the outputs' shape {outputs}.")
        elif targets != outputs:
            hint = ""
            if [n for n in targets if n != 1] == [n for n in outputs if n != 1]:
                hint = " They differ in axes of length one only: reshape one of them."
            raise ValueError(f"{name}: targets must have the outputs' shape {outputs}, got {targets}.{hint}")

    def _check_targets(
        self, backend: Backend, shape: tuple[int, ...], targets: Array | None, counted: np.ndarray[Any, Any]
    ) -> np.ndarray[Any, Any]:
        """Which examples count, after looking at the targets."""
        if targets is None:
            self._fit_targets(shape, None)
            return counted
        name = type(self).__name__
        y = door.to_host(backend, name, "targets", targets, ("real", "integer", "bool"))
        self._fit_targets(shape, y.shape)
        y, used = y.astype(np.float64), counted.reshape(counted.shape + (1,) * (len(shape) - counted.ndim))
        door.refuse(name, ~np.isfinite(y) & used, y, "targets must be finite")
        self.refuse_targets(y, used)
        return counted

    def _targets_fit(self, xp: Any, shape: tuple[int, ...], targets: Array | None, counted: Array) -> tuple[Array, Any]:
        """Which examples count, and whether :meth:`_check_targets` lets the targets pass."""
        if targets is None:
            return counted, True
        if tuple(targets.shape) != shape or xp.isdtype(targets.dtype, "complex floating"):
            return counted, False
        used = xp.reshape(counted, counted.shape + (1,) * (len(shape) - len(counted.shape)))
        return counted, xp.all(~used | (finite(xp, targets) & self.are_targets(xp, targets)))

    def _lacks(self, what: str) -> NoReturn:
        name = type(self).__name__
        if self.autodiff and what != "value":
            raise NotImplementedError(
                f"{name} has no closed form for its {what}: differentiate its total with the backend's calculus, "
                "as lg.Objective does."
            )
        raise NotImplementedError(f"{name} does not define {what}.")


@record
class Elementwise(Loss):
    """A convex loss of each output by itself."""

    convex: ClassVar[bool] = True

    @property
    def by_rows(self) -> bool:  # type: ignore[override]
        """Unless it has arrays, which may belong to outputs."""
        return not any(getattr(getattr(self, name), "shape", ()) for name in data_fields(self))


def _weights_fit(xp: Any, weights: Array | None, examples: tuple[int, ...]) -> tuple[Array, Any]:
    """Which examples have a weight, and whether :func:`door.counted_examples` lets the weights pass."""
    if weights is None:
        return xp.ones(examples, dtype=xp.bool), True
    if xp.isdtype(weights.dtype, "complex floating"):
        return xp.ones(examples, dtype=xp.bool), False
    padded = xp.reshape(weights, weights.shape + (1,) * (len(examples) - len(weights.shape)))
    return xp.broadcast_to(padded != 0, examples), xp.all(finite(xp, weights) & (weights >= 0))


def _weighed(xp: Any, weights: Array | None, x: Array, like: Array) -> Array:
    x = xp.astype(x, like.dtype, copy=False)
    return x if weights is None else weights * keep(xp, weights != 0, x)
