"""One batch's part of an objective, as pure functions of the parameters.

A :class:`Term` is model, loss and one batch, all unnormalised: the objective
sums terms and divides once. Linearising a term gives a
:class:`~linop_gn.curvature.pieces.Piece`, which holds all that products, value
and gradient need.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any, ClassVar

from ..arguments import called
from ..given import the_array
from ..protocols import Array, Backend, Calculus, Compiled, Composed, Vector
from ..records import Partial, memo, record, replace, static
from ..spaces import REAL, Space
from .batches import Batch
from .checks import require_finite_inputs
from .losses import Loss, OutputHessian
from .losses.outer import OuterLoss
from .losses.parts import in_parts
from .pairs import may_be_pairs, warn_of_pairs
from .pieces import Curve, Differentiated, Piece
from .supplied import MissingDerivativeError, Supplied
from .unpacked import unpacked

__all__ = ["Term", "joined", "outputs_of"]

_MODEL = "Supply them with the objective: jvp= and vjp=, or jacobian= (dense, sparse, or a linear operator)"
_SCALAR = "Supply gradient= and hvp= (Objective.from_function)"
_HESSIAN = "Use lg.GGN, which takes jvp= and vjp= or jacobian=; or Objective.from_function, with gradient= and hvp="
_LOSS = "Use one of lg.losses; or write the loss as a subclass of lg.losses.Loss with slope and curvature"


@record
class Term:
    """Model, loss and one batch on the space of the parameters. Without a loss the model itself is a scalar.

    ``alone`` says that there is no other batch, so that this one has to hold an example that counts.
    """

    loss: Loss | None
    batch: Batch
    model: Any = static()
    space: Space = static()
    supplied: Supplied | None = static(default=None)
    alone: bool = static(default=True)
    programs: Compiled | None = static(default=None)
    """What linearises by compiled programs, where that was asked for."""

    leafwise: ClassVar[bool] = True
    """Whether parameters and vectors may be tuples of leaves."""

    @property
    def ops(self) -> Backend:
        """The framework."""
        return self.space.backend

    # evaluating

    def arguments(self, leaves: list[Array]) -> tuple[Any, ...]:
        """What the model is called with."""
        params = self.ops.unflatten(self.space.structure, leaves)
        return (params,) if self.batch.inputs is None else (params, self.batch.inputs)

    def outputs(self, leaves: list[Array]) -> Array:
        """The model's outputs, or its scalar: in single precision at least where the parameters are."""
        z = called("the model", "(params[, inputs])", self.model, *self.arguments(leaves))
        if self.ops.calculus is None and isinstance(z, numbers.Real):
            z = self.ops.asarray(z, self.space.dtype, self.space.device)  # what NumPy makes of 0-d arrays
        if not self.ops.is_array(z):
            z = joined(self.ops, z) if self._are_residuals() else the_array(z)
        if not self.ops.is_array(z):
            entry = "[0]" if isinstance(z, (tuple, list)) else "['logits']"
            raise TypeError(
                f"the model returned a {type(z).__qualname__}, not one {self.ops.name} array. Wrap it, for example "
                f"lambda params, x: model(params, x){entry}."
            )
        dtype = self.ops.describe(z)[1]
        if dtype not in REAL:
            raise TypeError(
                f"the model returned an array of dtype {dtype}; derivatives need real floating-point outputs (scores "
                "rather than classes; complex ones by lg.as_real(model); float64 at most)."
            )
        memo(self).shape = tuple(z.shape)
        coarse = "16" in dtype and "16" not in self.space.dtype  # of a model that multiplies so: sums must not
        return self.ops.cast(z, "float32") if coarse else z

    def value(self, leaves: list[Array]) -> Array:
        """The unnormalised loss as a function of the parameters."""
        return self._value_of(self.outputs(leaves))

    def _value_of(self, z: Array) -> Array:
        if self.loss is not None:
            self.check_here(z)
            return self._total([z])
        if tuple(z.shape) != ():
            raise ValueError(
                f"the function returned an array of shape {tuple(z.shape)}; a plain objective must be a scalar. Sum or "
                "average it, or use Objective.from_residuals for 1/2 ||r||^2."
            )
        return z

    def _outputs_and_outer(self, leaves: list[Array]) -> tuple[Array, OuterLoss | None]:
        """The outputs, and the unnormalised loss as a function of them, if they are not the value themselves."""
        z, loss, data = self.outputs(leaves), self.loss, self.batch
        return z, None if loss is None else OuterLoss(loss, data.targets, data.weights, self.ops, whole=True)

    def _bare(self) -> Term:
        """What the functions of the parameters above depend on."""
        return replace(self, batch=replace(self.batch, place=None), programs=None)

    def _with_data(self, z: Array) -> tuple[Any, Array, Array | None, Array | None]:
        """What a loss's functions are called with."""
        return self.ops.namespace(), z, self.batch.targets, self.batch.weights

    def _asked(self, z: Array) -> Any:
        """The loss for outputs that no derivatives are taken through."""
        assert self.loss is not None
        return in_parts(self.ops, self.loss.of_batch(self.batch.place), z)

    def total(self, z: Array) -> Array:
        """The unnormalised loss of outputs that no derivatives are taken through."""
        made: Array = self._asked(z).total(*self._with_data(z))
        return made

    def weight(self, z: Array) -> Array:
        """What this batch adds to the normaliser."""
        made: Array = self._asked(z).weight_sum(*self._with_data(z))
        return made

    def hessian(self, z: Array) -> OutputHessian:
        """H_L at outputs, in closed form: in parts of many."""
        made: OutputHessian = self._asked(z).hessian(*self._with_data(z))
        return made

    def cotangent(self, z: Array) -> Array:
        """dL/dz."""
        z = self.ops.detach(z)
        self.check_here(z)
        assert self.loss is not None
        if self.loss.autodiff:
            return self._require("the gradient of a loss without closed forms", _LOSS).gradient(self._total, [z])[1][0]
        made: Array = self._asked(z).gradient(*self._with_data(z))
        return made

    def _total(self, z: list[Array]) -> Array:
        """The unnormalised loss, as a function of the outputs."""
        assert self.loss is not None
        return self.loss.total(*self._with_data(z[0]))

    def evaluate(self, x: Vector) -> tuple[Array, Array | None]:
        """Unnormalised value and normaliser at x, without derivatives."""
        leaves = self.space.split(x)
        if self.loss is None:
            return self._evaluate(self.value, leaves), None
        z = self._evaluate(self.outputs, leaves)
        self.check_here(z)
        return self.total(z), self.weight(z)

    def outputs_at(self, x: Vector) -> Array:
        """The model's outputs at x, without derivatives."""
        return self._evaluate(self.outputs, self.space.split(x))

    def _evaluate(self, function: Any, leaves: list[Array]) -> Any:
        calculus = self.ops.calculus
        return function(leaves) if calculus is None else self.ops.detach(calculus.evaluate(function, leaves))

    # errors at the door

    def check(self, outputs_shape: tuple[int, ...]) -> None:
        """Raise for data that the loss cannot take; looks once."""
        if self.loss is None or memo(self).checked:
            return
        require_finite_inputs(self.ops, self.batch.inputs)
        data = self.batch.targets, self.batch.weights
        self.loss.check(self.ops, outputs_shape, *data, empty_ok=not self.alone)
        memo(self).checked = True

    def check_here(self, z: Array) -> None:
        if self.ops.is_concrete((z, self.batch)) and not memo(self).checked:
            self.check(tuple(z.shape))
            if self._may_be_pairs(tuple(z.shape)):
                warn_of_pairs(self.ops, z)

    def _are_residuals(self) -> bool:
        """Whether the model's outputs are residuals."""
        return self.loss is not None and self.loss.targets_optional and self.batch.targets is None

    def _may_be_pairs(self, shape: tuple[int, ...]) -> bool:
        """Whether outputs of this shape are residuals that an unmeant broadcast may have made."""
        return self._are_residuals() and may_be_pairs(self.ops, shape, self.model, self.batch.inputs)

    def check_ahead(self, x: Vector) -> None:
        """:meth:`check` before a compiler hides the values; elsewhere that comes with the first evaluation."""
        if self.loss is None or memo(self).checked or "compiled" not in self.ops.capabilities:
            return
        if not self.batch.stacked and self.ops.is_concrete(self.batch):
            shape = self.ops.describe_of(outputs_of, self, x)[0]
            self.check(shape)
            if self._may_be_pairs(shape) and self.ops.is_concrete(x):
                warn_of_pairs(self.ops, self.ops.call(outputs_of, self, x))

    def fits(self, x: Vector | tuple[Array, ...]) -> Any:
        """Whether parameters and data pass :meth:`check` and its like, in the program that evaluated the outputs.

        A 0-d array, or None where only those can tell.
        """
        ops, shape, xp = self.ops, memo(self).shape, self.ops.namespace()
        if self.batch.stacked or (self.loss is not None and (shape is None or self._may_be_pairs(shape))):
            return None
        inputs = [] if self.loss is None else ops.flatten(self.batch.inputs)[1]
        floating = [leaf for leaf in inputs if ops.is_array(leaf) and "float" in ops.describe(leaf)[1]]
        good = True
        for part in (*(x if isinstance(x, tuple) else (x,)), *floating):
            good = good & _all_finite(xp, part)
        if self.loss is None:
            return good
        data = self.batch.targets, self.batch.weights
        return good & self.loss.fits(xp, shape, *data, empty_ok=not self.alone)

    def _require(self, what: str, ways: str) -> Calculus:
        if self.ops.calculus is None:
            raise MissingDerivativeError(what, self.ops.name, ways)
        return self.ops.calculus

    # derivatives

    def linearize(self, x: Vector) -> Piece:
        """The model linearised at x, with value and gradient from the same pass."""
        return self._linearized(x)

    def _linearized(self, x: Vector, once: bool = False) -> Piece:
        leaves = self.space.split(x)
        assert self.loss is not None
        if self.supplied is not None and self.supplied.first_order:
            z = self._evaluate(self.outputs, leaves)
            self.check_here(z)
            cotangent = None if once else self.cotangent
            lin: Any = self.supplied.linearize(self.space, self.arguments(leaves), z, cotangent)
        else:
            calculus, asked = self._require("a Gauss-Newton operator or a gradient", _MODEL), (leaves, self.cotangent)
            if self.programs is not None:
                lin = self.programs.linearize(self.outputs, *asked, Partial(Term.outputs, self._bare()))
            elif once:
                lin = calculus.linearize_once(self.outputs, *asked, self.model)
                self.check_here(self.ops.detach(lin.outputs))
            else:
                lin = calculus.linearize(self.outputs, *asked)
        z = self.ops.detach(lin.outputs)
        if self.loss.autodiff:
            calculus = self._require("the Hessian of a loss without closed forms", _LOSS)
            bent: Any = Differentiated(calculus.linearize_gradient(self._total, [z]))
        else:
            bent = self.hessian(z)
        data = self.batch.targets, self.batch.weights
        if once:
            return Piece(self.loss, *data, lin, bent.without_outputs(), None, None, self.weight(z), self.space)
        gradient: Any = unpacked(self.space, lin, lin.gradient) if self.alone else None  # others are added up
        gradient = self.space.like(x, lin.gradient) if gradient is None else gradient
        sums = self.total(z), gradient, self.weight(z)
        return Piece(self.loss, *data, lin.without_gradient(), bent.without_outputs(), *sums, self.space)

    def once(self, x: Vector) -> Piece:
        """The model linearised at x for one product, without value and gradient; what it held goes with the piece."""
        return self._linearized(x, once=True)

    def gathered(self, function: Callable[..., tuple[Any, Any]], x: Vector, *shared: Array) -> tuple[Any, Any]:
        """``function(self, x, *shared) -> (sums, piece)``, where the model is differentiated."""
        self._require("Kronecker factors", "Use lg.BlockGGN, whose blocks are not approximated")
        return function(self, x, *shared)

    def linearize_gradient(self, x: Vector) -> Curve:
        """The gradient of the loss linearised at x."""
        leaves = self.space.split(x)
        if self.supplied is not None and self.supplied.hvp is not None:
            value, flat, _ = self.value_and_gradient(x)
            return Curve(None, self.arguments(leaves), value, flat, None, self.supplied, self.space)
        seen: list[tuple[Any, ...]] = []  # the normaliser needs to know of the outputs what they are, not their values

        def look(z: Array) -> None:
            seen[:] = [self.ops.describe(z)]
            if self.loss is not None:
                self.check_here(z)

        def outputs(leaves: list[Array]) -> Array:
            z = self.outputs(leaves)
            look(z)
            return z if self.loss is not None else self._value_of(z)

        value_of: Callable[[list[Array]], Array] = outputs
        if self.loss is not None:
            value_of = Composed(outputs, OuterLoss(self.loss, self.batch.targets, self.batch.weights, self.ops))
        calculus, weight = self._require("a Hessian", _SCALAR if self.loss is None else _HESSIAN), None
        if self.programs is None:
            curve = calculus.linearize_gradient(value_of, leaves)
        else:
            program = Partial(Term._outputs_and_outer, self._bare())
            curve = self.programs.linearize_gradient(value_of, leaves, program, look)
        if self.loss is not None:
            (shape, dtype, device), ops = seen[0], self.ops
            zero = ops.asarray(0.0, dtype, self.space.device if device is None else device)
            weight = self.weight(ops.namespace().broadcast_to(zero, shape))
        value, gradient = self.ops.detach(curve.value), self.space.like(x, curve.gradient)
        return Curve(curve, (), value, gradient, weight, None, self.space)

    def value_and_gradient(self, x: Vector) -> tuple[Array, Vector, Array | None]:
        """Unnormalised value, gradient and normaliser; nothing is linearised, unless products with J are given."""
        leaves, supplied = self.space.split(x), self.supplied
        if supplied is not None and supplied.first_order:
            piece = self.linearize(x)
            return piece.value, piece.gradient, piece.weight
        if supplied is not None and supplied.gradient is not None:
            given = called("gradient=", "(params[, data])", supplied.gradient, *self.arguments(leaves))
            made = self.space.leaves(given, "result of the supplied gradient")
            return self._evaluate(self.value, leaves), self.ops.detach(self.space.like(x, made)), None
        calculus = self._require("a gradient", _SCALAR if self.loss is None else _MODEL)
        if self.loss is None:
            value, gradient = calculus.gradient(self.value, leaves)
            return value, self.space.like(x, gradient), None
        z, gradient = calculus.gradient(self.outputs, leaves, self.cotangent)
        return self.total(z), self.space.like(x, gradient), self.weight(z)


def joined(ops: Backend, z: Any) -> Any:
    """A tree of residuals as one flat array; what is no tree of arrays as it is."""
    leaves = ops.flatten(z)[1]
    if not leaves or leaves[0] is z or not all(map(ops.is_array, leaves)):
        return z
    return ops.pack(leaves, Space.of(leaves, "residuals").dtype)


def _all_finite(xp: Any, x: Array) -> Array:
    """Whether all of x is finite, as far as sums along the last axis tell: they may overflow, but not hide anything.

    On the CPU, XLA takes twice as long to look at the entries one by one.
    """
    return xp.all(xp.isfinite(xp.matmul(x, xp.ones(x.shape[-1], dtype=x.dtype)) if x.ndim else x))


def outputs_of(term: Any, x: Vector) -> Array:
    """The model's outputs at x, without derivatives."""
    return term.outputs_at(x)
