"""First and second derivatives, where a framework has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from .types import Array, Tree
from .uses import Uses

__all__ = ["Calculus", "Compiled", "Composed", "GradientLinearization", "Linearization", "Outer"]


@runtime_checkable
class Linearization(Protocol):
    """A function of parameters, linearised once. All methods take and return *lists of leaves*.

    ``only`` restricts to some leaves, by index: then ``jvp`` takes tangents of
    those leaves alone (the others are zero), ``vjp`` returns cotangents of those
    alone, and no work is done for the rest.
    """

    outputs: Array
    """The function's value: one array."""
    gradient: list[Array] | None
    """J^T u for the cotangent u asked for at construction (the loss gradient, hence the name)."""
    seed: Array | None
    """That u, where it is held for products anyway."""
    fresh: bool
    """Whether what ``jvp`` returns may be written over: it is new, its entries apart, and no derivative wants it."""

    def without_gradient(self) -> Linearization:
        """The same linearisation, without ``gradient``: all that products need."""

    def jvp(self, tangents: Sequence[Array], only: tuple[int, ...] | None = None) -> Array:
        """J v: an array like ``outputs``."""

    def vjp(self, cotangent: Array, only: tuple[int, ...] | None = None) -> list[Array]:
        """J^T u: leaves like the parameters (exact zeros where the function ignores one)."""

    def pull(self, cotangent: Array, only: tuple[int, ...] | None = None) -> list[Array]:
        """:meth:`vjp` for a ``cotangent`` that may be written over."""

    def owns(self, leaves: Sequence[Array]) -> bool:
        """Whether these, which ``vjp`` made, may be written over; False if in doubt.

        Each has memory of its own then, all of it in order, which nobody else reads.
        """

    def uses(self) -> Uses | None:
        """What :meth:`Calculus.uses` makes of the function, from what was recorded; None where that tells not all."""


@runtime_checkable
class GradientLinearization(Protocol):
    """A scalar function's gradient, linearised once."""

    value: Array
    gradient: list[Array]

    def hvp(self, tangents: Sequence[Array]) -> list[Array]:
        """H v: leaves like the parameters (exact zeros where the gradient ignores one)."""


class Outer(Protocol):
    """A scalar function of one array z, whose derivatives are known: a record."""

    def total(self, z: Array) -> Array:
        """Its value, by operations that can be differentiated."""

    def known(self, z: Array) -> bool:
        """Whether the derivatives below had better be taken than those of :meth:`total`: they hold less memory."""

    def value(self, z: Array) -> Array:
        """Its value, which is not differentiated."""

    def slope(self, z: Array, numbers: tuple[Array, ...] = ()) -> Array:
        """Its gradient, like z."""

    def hessian(self, z: Array, numbers: tuple[Array, ...] = ()) -> Any:
        """What products with its Hessian at z need: a record."""

    def product(self, hessian: Any, v: Array) -> Array:
        """H v, for a record that :meth:`hessian` returned."""

    def through(self, hessian: Any, z: Array, v: Array, way: Callable[..., Array]) -> None:
        """Write ``way(place, v[place], slope, product)`` over each ``v[place]`` of parts of the outputs.

        ``slope`` is the gradient at z, and ``product(u)`` is H u, both of the part.
        """

    def leading(self, z: Array) -> int:
        """How many of the first axes of z count rows that say nothing of each other, where it is :meth:`known`."""

    def parted(self, z: Array) -> tuple[int, Outer, Any]:
        """How many of these rows a part has; what all share; and data with one axis for rows, a tree of arrays."""

    def numbers(self, z: Array) -> tuple[Array, ...]:
        """What :meth:`slope` and :meth:`hessian` may be told of rows (m, ...), to be cheap: arrays (m, 1)."""

    def of_part(self, data: Any) -> Outer:
        """The function of some rows (m, ...), for their part of the data, where what all rows share is asked."""


@dataclass(frozen=True)
class Composed:
    """The scalar function ``outer.total(inner(leaves))``, for those who call it or ask for its parts.

    With z = ``inner(leaves)``, its Jacobian J, and the gradient u and the Hessian H of ``outer`` at z, its Hessian is
    J^T H J + sum_i u_i d^2 z_i: the derivative of J^T u, in which that of u is H J.
    """

    inner: Callable[[list[Array]], Array]
    outer: Outer

    def __call__(self, leaves: list[Array]) -> Array:
        return self.outer.total(self.inner(leaves))


class Compiled(Protocol):
    """Linearisations whose products are compiled programs, with those programs.

    Each method is that of :class:`Calculus`, asked for the same ``function`` of leaves once more as a ``program``, a
    :class:`linop_gn.records.Partial` of a function and a record: what is static in these is the program, the arrays in
    the record are given to it. So a new batch is the same program. What cannot be compiled, or gives other results
    compiled than as it is, is linearised as :class:`Calculus` does it, with a warning that says why.
    """

    def linearize(
        self,
        function: Callable[[list[Array]], Array],
        params: Sequence[Array],
        cotangent: Callable[[Array], Array],
        program: Callable[..., Array],
    ) -> Linearization:
        """Linearise ``function``, which is ``program`` of the same leaves."""
        ...

    def linearize_gradient(
        self,
        function: Callable[[list[Array]], Array],
        params: Sequence[Array],
        program: Callable[..., tuple[Array, Outer | None]],
        look: Callable[[Array], None],
    ) -> GradientLinearization:
        """Linearise the gradient of ``function``.

        ``program`` returns the model's outputs, and the function of them that is the value; None where they are.
        ``look`` is called with an array like the outputs, before a program runs. ``function`` calls it by itself.
        """
        ...


class Calculus(Protocol):
    """First and second derivatives of functions of a list of leaves."""

    def adapt(self, model: Any, names: Sequence[str] | None = None) -> Callable[[Tree, Any], Array]:
        """A plain function ``(params, inputs) -> outputs`` from what users have (an ``nn.Module``), as it is now.

        Plain functions are returned as they are. The result is the same object
        while the model stays the same, so that compiled code is found again and
        what was linearised still holds. ``names`` are those of the parameters
        that will be given; what else the model holds is constant.
        """

    def evaluate(self, function: Callable[[list[Array]], Any], params: Sequence[Array]) -> Any:
        """``function(list of params)`` without recording derivatives."""

    def linearize(
        self,
        function: Callable[[list[Array]], Array],
        params: Sequence[Array],
        cotangent: Callable[[Array], Array],
    ) -> Linearization:
        """Linearise ``function`` at ``params``; ``gradient`` is J^T applied to ``cotangent(outputs)``."""

    def linearize_once(
        self,
        function: Callable[[list[Array]], Array],
        params: Sequence[Array],
        cotangent: Callable[[Array], Array],
        model: Any,
    ) -> Linearization:
        """:meth:`linearize` for one product with J and J^T, in the memory of one pass backward; without a gradient.

        ``model`` is what ``function`` calls: the same object for batches and products of one operator.
        """

    def linearize_gradient(
        self, function: Callable[[list[Array]], Array], params: Sequence[Array]
    ) -> GradientLinearization:
        """Linearise the gradient of a scalar function at ``params``; it may be :class:`Composed` of two."""

    def gradient(
        self,
        function: Callable[[list[Array]], Array],
        params: Sequence[Array],
        cotangent: Callable[[Array], Array] | None = None,
    ) -> tuple[Array, list[Array]]:
        """Value and gradient of a scalar function, or J^T ``cotangent(value)`` of any; nothing is linearised."""

    def jacobian_rows(
        self, function: Callable[[list[Array]], Array], params: Sequence[Array], rows: Sequence[int]
    ) -> list[list[Array]]:
        """Rows of the Jacobian of the flattened output by plain first-order reverse mode: the validator's oracle."""

    def hessian_rows(
        self, function: Callable[[list[Array]], Array], params: Sequence[Array], rows: Sequence[int]
    ) -> list[list[Array]]:
        """Rows of the Hessian of a scalar function, over all its flattened parameters, by reverse over reverse mode.

        The validator's oracle: each row anew from the recorded gradient, whatever way the products take.
        """

    def compiled(self) -> Any:
        """A new :class:`Compiled`; this calculus itself where all is compiled anyway, None where nothing can be."""

    def uses(self, function: Callable[[list[Array]], Array], params: Sequence[Array]) -> Uses:
        """``function`` evaluated, and what each of its parameters is multiplied with: for Kronecker factors.

        What it returns belongs to the call, or the trace, that it was made in.
        """
        ...

    def coupling(self, model: Any) -> str | None:
        """The name of a layer whose outputs for one example depend on the others; None where none is known."""

    def as_double(self, model: Any) -> Any:
        """``model`` with the floating numbers that it holds itself in float64: a copy where it holds any.

        Plain functions are returned as they are: what they close over is out of reach.
        """

    def high_precision(self) -> Any:
        """A context manager inside which float64 can be used (JAX needs asking)."""
