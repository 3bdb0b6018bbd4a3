"""PyTorch's loss modules in closed form, and the functions that they call.

What they mean by a mean is kept: ``CrossEntropyLoss`` divides by the weights of the classes that occur, the others by
the number of outputs, whatever their weights. Those that have no closed form here are refused by name.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any, ClassVar

from torch.nn import functional
from torch.nn.modules import loss as modules

from linop_gn.backend import Array
from linop_gn.curvature.losses import BinaryCrossEntropy, CrossEntropy, Loss, Poisson, SquaredError
from linop_gn.records import record

__all__ = ["translated"]


@record
class MSELoss(SquaredError):  # noqa: N818
    """(z - y)^2, every output an example."""

    example_axes: ClassVar[int | None] = None
    targets_optional: ClassVar[bool] = False

    scale: float | Array = 1.0


@record
class CrossEntropyLoss(CrossEntropy):
    """Of outputs (N, C) or (C,): of more axes torch has the classes second, where ours are last.

    ``ignore_index`` has no meaning for probabilities, and is not looked at there.
    """

    second_derivative: ClassVar[bool] = True  # what is written anew below are checks alone

    def _check_targets(self, backend: Any, shape: tuple[int, ...], *rest: Any) -> Any:
        _require_no_axes(shape)
        return super()._check_targets(backend, shape, *rest)

    def _are_indices(self, outputs: tuple[int, ...], targets: tuple[int, ...], integral: bool, dtype: str) -> bool:
        _require_no_axes(outputs)
        return not (targets == outputs and not integral) and super()._are_indices(outputs, targets, integral, dtype)


def _require_no_axes(outputs: tuple[int, ...]) -> None:
    """Raise for outputs with axes behind the classes."""
    if len(outputs) > 2:
        raise ValueError(
            f"CrossEntropyLoss takes the second axis of outputs {outputs} for the classes, and curvature the last: "
            "move that axis last in the model, and give lg.losses.CrossEntropy()."
        )


@record
class BCEWithLogitsLoss(BinaryCrossEntropy):
    """w ((1 - y) log(1 + e^z) + c y log(1 + e^-z)), w and c broadcast to the outputs."""

    second_derivative: ClassVar[bool] = True

    weight: Array | None = None
    pos_weight: Array | None = None

    def value(self, xp: Any, z: Array, y: Array) -> Array:
        no, yes, zero = *self._shares(xp, z, y), xp.zeros_like(z)
        return no * xp.logaddexp(zero, z) + yes * xp.logaddexp(zero, -z)

    def slope(self, xp: Any, z: Array, y: Array) -> Array:
        no, yes, zero = *self._shares(xp, z, y), xp.zeros_like(z)
        return no * xp.exp(-xp.logaddexp(zero, -z)) - yes * xp.exp(-xp.logaddexp(zero, z))

    def curvature(self, xp: Any, z: Array, y: Array) -> Array:
        no, yes = self._shares(xp, z, y)
        return (no + yes) * super().curvature(xp, z, y)

    def _shares(self, xp: Any, z: Array, y: Array) -> tuple[Array, Array]:
        """What a no and a yes weigh, like z."""
        w, c = (1.0 if x is None else xp.astype(x, z.dtype, copy=False) for x in (self.weight, self.pos_weight))
        return w * (1 - y), w * c * y


_MODULES = {
    functional.cross_entropy: modules.CrossEntropyLoss,
    functional.mse_loss: modules.MSELoss,
    functional.binary_cross_entropy_with_logits: modules.BCEWithLogitsLoss,
    functional.poisson_nll_loss: modules.PoissonNLLLoss,
}
"""Of a function of torch that has averaged already: the module of the same defaults."""


def _module_of(loss: Any) -> Any:
    """The module that one of these functions is, alone or in a ``functools.partial``; anything else as it is."""
    function, options = (loss.func, loss.keywords) if isinstance(loss, partial) and not loss.args else (loss, {})
    for known, module in _MODULES.items():
        if function is known and options.get("reduction") != "none":  # whose losses are for each example
            with suppress(TypeError):  # an option that the function has alone
                return module(**options)
    return loss


def translated(loss: Any) -> Loss | None:
    """The closed form of a loss module of torch, or of the function that it calls; None for anything else.

    Raises
    ------
    TypeError
        For a loss module that has none, or no reduction, saying what to give instead.
    """
    loss = _module_of(loss)
    kind = type(loss)
    if kind.__module__ != modules.__name__:
        return None
    name, reduction = kind.__name__, loss.reduction
    if reduction == "none":
        raise TypeError(
            f"{name}(reduction='none') does not say what becomes of the examples' losses: write reduction='mean' or "
            "'sum'. The framework differentiates lg.losses.FromFunction(loss, reduction='mean'), whose mean is over "
            "examples, by their weights where the data have some."
        )
    if name == "CrossEntropyLoss":
        options = {"ignore_index": loss.ignore_index, "label_smoothing": loss.label_smoothing, "weight": loss.weight}
        return CrossEntropyLoss(reduction=reduction, **options)
    if name == "MSELoss":
        return MSELoss(reduction=reduction)
    if name == "BCEWithLogitsLoss":
        if loss.weight is None and loss.pos_weight is None:
            return BinaryCrossEntropy(reduction=reduction)
        return BCEWithLogitsLoss(reduction=reduction, weight=loss.weight, pos_weight=loss.pos_weight)
    if name == "PoissonNLLLoss" and loss.log_input and not loss.full:
        return Poisson(reduction=reduction)
    what = f"{name}(log_input={loss.log_input}, full={loss.full})" if name == "PoissonNLLLoss" else name
    raise TypeError(
        f"{what} has no closed form here. The framework differentiates lg.losses.FromFunction(loss, per_example=False, "
        f"reduction={reduction!r}), whose mean is over examples. Closed forms: CrossEntropyLoss, MSELoss, "
        "BCEWithLogitsLoss, PoissonNLLLoss() of log-rates, and lg.losses.Huber for residuals with outliers."
    )
