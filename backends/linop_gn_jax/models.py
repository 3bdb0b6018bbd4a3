"""Plain functions ``(params, inputs) -> outputs`` from what users have.

A flax ``linen`` module is one already, behind ``apply``. Modules that hold
their own parameters (flax ``nnx``, equinox) have to be split by the user, who
alone knows which of their leaves are trained: the error shows how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["adapt"]

Model = Callable[[Any, Any], Any]

# By identity, because a module with a list among its fields cannot be hashed; it is held, so the number stays its own.
_adapted: dict[int, tuple[Any, Model]] = {}


def _comes_from(model: Any, module: str) -> bool:
    return any((base.__module__ + ".").startswith(module + ".") for base in type(model).__mro__)


def adapt(model: Any, names: Sequence[str] | None = None) -> Model:
    """``model`` itself if it is a function of parameters and inputs; a flax ``linen`` module's ``apply``.

    The same module gives the same function again. Parameters of a flax module
    are its variables ``{"params": ...}`` or what is inside ``params``; a tuple
    of inputs is passed as positional arguments.

    Raises
    ------
    TypeError
        For modules that hold their own parameters, and for what cannot be called.
    """
    if _comes_from(model, "flax.linen"):
        return _adapted.setdefault(id(model), (model, _linen(model)))[1]
    name = type(model).__qualname__
    if _comes_from(model, "flax.nnx"):
        raise TypeError(
            f"{name} is a flax nnx module, which has its own parameters. Split it: graph, params = nnx.split(module), "
            "and give the model as lambda params, x: nnx.merge(graph, params)(x), with params as the parameters "
            "(nnx.split(module, nnx.Param, ...) picks those that are trained)."
        )
    if _comes_from(model, "equinox"):
        raise TypeError(
            f"{name} is an equinox module, which holds its own parameters. Split it: "
            "params, static = equinox.partition(module, equinox.is_inexact_array), and give the model as "
            "lambda params, x: jax.vmap(equinox.combine(params, static))(x), with params as the parameters."
        )
    if not callable(model):
        raise TypeError(f"the model is a {name}, which cannot be called; give a function (params, inputs) -> outputs.")
    return model  # type: ignore[no-any-return]


def _linen(module: Any) -> Model:
    def apply(params: Any, inputs: Any) -> Any:
        variables = params if isinstance(params, Mapping) and "params" in params else {"params": params}
        return module.apply(variables, *inputs) if isinstance(inputs, tuple) else module.apply(variables, inputs)

    apply.__qualname__ = type(module).__qualname__
    return apply
