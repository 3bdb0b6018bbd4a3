"""One batch's part of an objective, as pure functions of the parameters.

A :class:`Term` is model, loss and one batch, all unnormalised: the objective
sums terms and divides once. Linearising a term gives a :class:`Piece`, which
holds all that products, value and gradient need.
"""

from __future__ import annotations

from typing import Any

from ..protocols import Array, Backend, Linearization, Vector
from ..records import record, static
from ..spaces import Space
from .batches import Batch
from .losses import Loss
from .supplied import MissingDerivativeError, Supplied

__all__ = ["Curve", "Piece", "Term"]


@record
class Term:
    """Model, loss and one batch on the space of the parameters. Without a loss the model itself is a scalar."""

    loss: Loss | None
    batch: Batch
    model: Any = static()
    space: Space = static()
    supplied: Supplied | None = static(default=None)

    @property
    def ops(self) -> Backend:
        """The framework."""
        return self.space.backend

    def arguments(self, leaves: list[Array]) -> tuple[Any, ...]:
        """What the model is called with."""
        params = self.ops.unflatten(self.space.structure, leaves)
        return (params,) if self.batch.inputs is None else (params, self.batch.inputs)

    def outputs(self, leaves: list[Array]) -> Array:
        """The model's outputs, or its scalar."""
        calculus = self.ops.calculus
        model = self.model if calculus is None else calculus.adapt(self.model)
        z = model(*self.arguments(leaves))
        if not self.ops.is_array(z):
            raise TypeError(
                f"the model returned a {type(z).__qualname__}, not one {self.ops.name} array. Wrap it, for example "
                "lambda params, x: model(params, x)['logits']."
            )
        return z

    def value(self, leaves: list[Array]) -> Array:
        """The unnormalised loss as a function of the parameters."""
        return self._value_of(self.outputs(leaves))

    def _value_of(self, z: Array) -> Array:
        if self.loss is not None:
            if self.ops.is_concrete((z, self.batch)):
                self.check(tuple(z.shape))
            return self.total(z)
        if tuple(z.shape) != ():
            raise ValueError(
                f"the function returned an array of shape {tuple(z.shape)}; a plain objective must be a scalar. Sum or "
                "average it, or use Objective.from_residuals for 1/2 ||r||^2."
            )
        return z

    def _data(self) -> tuple[Any, Any]:
        return self.batch.targets, self.batch.weights

    def total(self, z: Array) -> Array:
        """The unnormalised loss of outputs."""
        assert self.loss is not None
        return self.loss.total(self.ops.namespace(), z, *self._data())

    def weight(self, z: Array) -> Array:
        """What this batch adds to the normaliser."""
        assert self.loss is not None
        return self.loss.weight_sum(self.ops.namespace(), z, *self._data())

    def cotangent(self, z: Array) -> Array:
        """dL/dz."""
        assert self.loss is not None
        z = self.ops.detach(z)
        if self.ops.is_concrete((z, self.batch)):
            self.check(tuple(z.shape))
        if self.loss.autodiff:
            return self._require("the gradient of a user's loss").gradient(lambda zs: self.total(zs[0]), [z])[1][0]
        return self.loss.gradient(self.ops.namespace(), z, *self._data())

    def check(self, outputs_shape: tuple[int, ...]) -> None:
        """The errors at the door, once for each batch."""
        if self.__dict__.get("_checked") or self.loss is None:
            return
        _check_inputs(self.ops, self.batch.inputs)
        self.loss.check(self.ops, outputs_shape, *self._data())
        self.__dict__["_checked"] = True

    def _require(self, what: str) -> Any:
        if self.ops.calculus is None:
            raise MissingDerivativeError(what, self.ops.name)
        return self.ops.calculus

    def linearize(self, x: Vector) -> Piece:
        """The model linearised at x, with value and gradient from the same pass."""
        leaves = self.space.split(x)
        assert self.loss is not None
        if self.supplied is not None and self.supplied.first_order:
            z = self.outputs(leaves)
            lin: Any = self.supplied.linearize(self.space, self.arguments(leaves), z, self.cotangent)
        else:
            lin = self._require("a Gauss-Newton operator or a gradient").linearize(self.outputs, leaves, self.cotangent)
        z = self.ops.detach(lin.outputs)
        curve = None
        if self.loss.autodiff:
            curve = self._require("a user's loss").linearize_gradient(lambda zs: self.total(zs[0]), [z])
        gradient = self.space.join(lin.gradient)
        return Piece(self, lin.without_gradient(), curve, z, self.total(z), gradient, self.weight(z))

    def linearize_gradient(self, x: Vector) -> Curve:
        """The gradient of the loss linearised at x."""
        leaves = self.space.split(x)
        if self.supplied is not None and self.supplied.hvp is not None and self.loss is None:
            value, flat, _ = self.value_and_gradient(x)
            return Curve(self, x, None, value, flat, None)
        seen: list[tuple[Any, ...]] = []

        def value(leaves: list[Array]) -> Array:
            z = self.outputs(leaves)
            seen[:] = [self.ops.describe(z)]
            return self._value_of(z)

        curve = self._require("a Hessian").linearize_gradient(value, leaves)
        return Curve(self, x, curve, self.ops.detach(curve.value), self.space.join(curve.gradient), self._weight_of(*seen[0]))

    def _weight_of(self, shape: tuple[int, ...], dtype: str, device: Any) -> Array | None:
        """The normaliser for outputs of this shape: their values play no part in it."""
        if self.loss is None:
            return None
        zero = self.ops.asarray(0.0, dtype, self.space.device if device is None else device)
        return self.weight(self.ops.namespace().broadcast_to(zero, shape))

    def value_and_gradient(self, x: Vector) -> tuple[Array, Vector, Array | None]:
        """Unnormalised value, gradient and normaliser at x, nothing kept."""
        leaves = self.space.split(x)
        supplied = self.supplied
        if supplied is not None and supplied.gradient is not None:
            flat = self.space.pack(supplied.gradient(*self.arguments(leaves)), "result of the supplied gradient")
            return self._value_of(self.outputs(leaves)), flat, None
        value, gradient = self._require("a gradient").gradient(self.value, leaves)
        return value, self.space.join(gradient), None

    def _evaluate(self, function: Any, leaves: list[Array]) -> Any:
        calculus = self.ops.calculus
        return function(leaves) if calculus is None else calculus.evaluate(function, leaves)

    def evaluate(self, x: Vector) -> tuple[Array, Array | None]:
        """Unnormalised value and normaliser at x, without derivatives."""
        leaves = self.space.split(x)
        if self.loss is None:
            return self._evaluate(self.value, leaves), None
        z = self._evaluate(self.outputs, leaves)
        if self.ops.is_concrete((z, self.batch)):
            self.check(tuple(z.shape))
        return self.total(z), self.weight(z)


def _check_inputs(ops: Backend, inputs: Any) -> None:
    for name, leaf in zip(*ops.flatten(inputs)[:2], strict=True):
        if ops.is_array(leaf) and "float" in ops.describe(leaf)[1]:
            flat = ops.namespace().reshape(leaf, (-1,))
            if not bool(ops.isfinite(ops.max_abs(flat))):
                raise ValueError(f"the inputs{f' ({name})' if name else ''} hold NaN or infinity; clean the data first.")


@record
class Piece:
    """A term linearised at a point: J through ``lin``, H_L at ``outputs``."""

    term: Term
    lin: Linearization
    curve: Any
    outputs: Array
    value: Array
    gradient: Vector | None
    weight: Array
    stacked: bool = static(default=False)

    def loss_hessian(self, v: Array) -> Array:
        """H_L v, unnormalised."""
        if self.curve is not None:
            return self.curve.hvp([v])[0]
        loss = self.term.loss
        assert loss is not None
        xp = self.term.ops.namespace()
        return loss.hessian_product(xp, self.outputs, self.term.batch.targets, self.term.batch.weights, v)

    def ggn(self, v: Vector, only: tuple[int, ...] | None, sub: Space) -> Vector:
        """J^T H_L J v over the leaves ``only``, whose space is ``sub``; unnormalised."""
        tangent = self.lin.jvp(sub.split(v), only)
        return sub.join(self.lin.vjp(self.loss_hessian(tangent), only))


@record
class Curve:
    """A term's gradient linearised at a point."""

    term: Term
    x: Vector
    lin: Any
    value: Array
    gradient: Vector | None
    weight: Array | None
    stacked: bool = static(default=False)

    def hessian(self, v: Vector) -> Vector:
        """H v, unnormalised."""
        space = self.term.space
        if self.lin is not None:
            return space.join(self.lin.hvp(space.split(v)))
        supplied = self.term.supplied
        assert supplied is not None and supplied.hvp is not None
        arguments = self.term.arguments(space.split(self.x))
        return space.pack(supplied.hvp(*arguments, space.unpack(v)), "result of the supplied hvp")
