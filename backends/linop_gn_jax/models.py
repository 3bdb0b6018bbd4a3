"""Models that users have as plain functions ``(params, inputs) -> outputs``, and modules as parameters.

A flax ``linen`` module is a function already, behind ``apply``. Equinox modules are trees that hold functions and flags
beside their arrays: :class:`Partitioned` takes the arrays for leaves and the rest for structure, so that a module is a
vector like any other tree, and what comes back is a module. flax ``nnx`` modules share arrays, count and keep
statistics, which ``nnx.split`` tells from what is trained: the errors show how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from traceback import walk_tb
from typing import Any

import jax
import jax.numpy as jnp
from jax import tree_util

__all__ = ["Partitioned", "adapt", "explained", "parameters_of", "variables_of"]

Model = Callable[[Any, Any], Any]

# By identity, because a module with a list among its fields cannot be hashed; it is held, so the number stays its own.
# A method goes by itself: it is another object whenever it is asked for, and equal to itself by the module's identity.
_adapted: dict[Any, tuple[Any, Model]] = {}

_LIBRARIES = "equinox", "flax.nnx", "flax.linen"
_SPLIT = (
    "graph, params, rest = nnx.split(module, nnx.Param, ...), with params as the parameters, and as the model lambda "
    "params, x: nnx.merge(graph, params, rest, copy=True)(x). (The copy is what BatchNorm and Dropout may write to.)"
)

_APPLY = (
    "A flax linen module that trains writes statistics and draws: params = variables.pop('params'), with params as the "
    "parameters, and as the model lambda params, x: module.apply({'params': params, **variables}, x, "
    "mutable=list(variables), rngs={'dropout': key})[0]. (For what it does otherwise: use_running_average=True, "
    "deterministic=True.)"
)
_COMBINE = (
    "the model meets None in an equinox module: equinox.filter(module, equinox.is_array) leaves None where functions "
    "and flags were. Write the model for what was filtered: params, static = equinox.partition(module, "
    "equinox.is_inexact_array), with params as the parameters and lambda params, x: "
    "jax.vmap(equinox.combine(params, static))(x) as the model. Or hand over the module whole wherever parameters are "
    "asked for, to_optax's init and update as well."
)
_NOTES = {
    "TraceContextError": f"The model writes to a module of flax nnx that lives outside of it. Split it: {_SPLIT}",
    **dict.fromkeys(("ModifyScopeVariableError", "InvalidRngError", "ScopeCollectionNotFound"), _APPLY),
}
"""What to do about errors of flax."""


@cache
def _library(kind: type) -> str:
    """Which library of modules a type comes from, if any."""
    names = [base.__module__ + "." for base in kind.__mro__]
    return next((lib for lib in _LIBRARIES if any(name.startswith(lib + ".") for name in names)), "")


def adapt(model: Any, names: Sequence[str] | None = None) -> Model:
    """``model`` itself if it is a function of parameters and inputs; a flax ``linen`` module's ``apply``.

    The same module gives the same function again. Parameters of a flax module
    are its variables ``{"params": ...}`` or what is inside ``params``; a tuple
    of inputs is passed as positional arguments. ``module.apply`` itself, bare or in
    ``partial``, ``jit`` and their like, is a function as it is; only variables beside ``params`` are refused it, too.

    Raises
    ------
    TypeError
        For modules that hold their own parameters, and for what cannot be called.
    """
    name, library = type(model).__qualname__, _library(type(model))
    if library == "flax.linen":
        return _adapted.setdefault(id(model), (model, _linen(model)))[1]
    if library == "flax.nnx":
        raise TypeError(f"{name} is a flax nnx module, which has its own parameters. Split it: {_SPLIT}")
    if library == "equinox":
        raise TypeError(
            f"{name} is an equinox module, which holds its own parameters. Give it as the parameters, whose floating-"
            "point arrays are trained, and as the model lambda module, x: jax.vmap(module)(x). To train some of them, "
            "params, static = equinox.partition(module, which), with equinox.combine(params, static) in the model."
        )
    if not callable(model):
        raise TypeError(f"the model is a {name}, which cannot be called; give a function (params, inputs) -> outputs.")
    if _library(type(module := _bound_to(model))) == "flax.linen":
        return _adapted.setdefault(model, (model, _only_params(module, model)))[1]
    return model  # type: ignore[no-any-return]


def _bound_to(function: Any) -> Any:
    """What a method is bound to, through ``partial``, ``jax.jit`` and what else wraps a function; None of others."""
    while (bound := getattr(function, "__self__", None)) is None:  # first, as a method wraps what its function does
        function = getattr(function, "func" if isinstance(function, partial) else "__wrapped__", None)
        if function is None:
            return None
    return bound


def _linen(module: Any) -> Model:
    def apply(params: Any, inputs: Any) -> Any:
        variables = params if _holds_params(params) else {"params": params}
        return module.apply(variables, *(inputs if isinstance(inputs, tuple) else (inputs,)))

    return _only_params(module, apply)


def _only_params(module: Any, model: Model) -> Model:
    """``model``, which refuses what the module keeps beside its parameters; its own errors come first."""

    def apply(params: Any, inputs: Any) -> Any:
        outputs = model(params, inputs)
        if _holds_params(params) and (other := sorted(params.keys() - {"params"})):
            raise TypeError(
                f"the parameters, variables of the flax linen module {type(module).__qualname__}, hold "
                f"{', '.join(other)} beside what is trained. Keep them apart: params = variables.pop('params'), with "
                "params as the parameters, and as the model lambda params, x: module.apply({'params': params, "
                "**variables}, x)."
            )
        return outputs

    apply.__qualname__ = type(module).__qualname__
    return apply


def _holds_params(tree: Any) -> bool:
    return isinstance(tree, Mapping) and "params" in tree


# modules as parameters


class Partitioned:
    """A tree with equinox modules in it whose leaves are its floating-point arrays; all else is structure.

    Taken apart and put together again, it is the tree itself.
    """

    def __init__(self, tree: Any) -> None:
        self.tree = tree

    def parts(self) -> tuple[tuple[tuple[Any, Any], ...], Any]:
        """The arrays by name, and the rest."""
        pairs, structure = tree_util.tree_flatten_with_path(self.tree)
        fixed = tuple(None if _is_variable(leaf) else (leaf,) for _, leaf in pairs)
        for (path, leaf), kept in zip(pairs, fixed, strict=True):
            if kept is not None and hasattr(leaf, "dtype"):
                where = tree_util.keystr(path, simple=True, separator=".")
                raise TypeError(
                    f"leaf {where!r} of the parameters, in a tree with equinox modules, is no floating-point array of "
                    "JAX. Keep it apart: params, static = equinox.partition(module, equinox.is_inexact_array), with "
                    "params as the parameters and equinox.combine(params, static) in the model."
                )
        named = tuple(
            (tree_util.DictKey(tree_util.keystr(path, simple=True, separator=".")), leaf)
            for path, leaf in pairs
            if _is_variable(leaf)
        )
        return named, (structure, fixed)

    @staticmethod
    def joined(rest: Any, arrays: Any) -> Any:
        """The tree from :meth:`parts`."""
        structure, fixed = rest
        leaves = iter(arrays)
        return structure.unflatten([next(leaves) if kept is None else kept[0] for kept in fixed])


tree_util.register_pytree_with_keys(Partitioned, Partitioned.parts, Partitioned.joined)


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and _is_inexact(leaf.dtype)


@cache
def _is_inexact(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.inexact))


def parameters_of(tree: Any) -> Any:
    """``tree``, or its floating-point arrays and the rest where it holds equinox modules.

    Raises
    ------
    TypeError
        For modules and states of flax ``nnx`` that hold more than parameters.
    """
    if _library(type(tree)) == "flax.nnx":
        _require_parameters(tree)
    if all(map(_is_variable, tree_util.tree_leaves(tree))):
        return tree
    held = tree_util.tree_leaves(tree, is_leaf=lambda x: _library(type(x)) == "equinox")
    return Partitioned(tree) if any(_library(type(x)) == "equinox" for x in held) else tree


def variables_of(tree: Any) -> Any:
    """``tree`` with None for what :func:`parameters_of` takes for structure, as ``equinox.apply_updates`` wants it."""
    return tree_util.tree_map(lambda leaf: leaf if _is_variable(leaf) else None, tree)


def _require_parameters(tree: Any) -> None:
    """Raise if variables of ``nnx`` are there that are no ``nnx.Param``: statistics, counts, keys."""
    from flax import nnx

    held = tree_util.tree_leaves(tree, is_leaf=lambda x: isinstance(x, nnx.Variable))
    kinds = {type(x) for x in held if isinstance(x, nnx.Variable)}
    other = sorted(kind.__name__ for kind in kinds if not issubclass(kind, nnx.Param))
    if other:
        raise TypeError(
            f"the parameters, a flax nnx {type(tree).__qualname__}, hold {', '.join(other)} beside what is trained. "
            f"Split the module: {_SPLIT}"
        )


@contextmanager
def explained() -> Iterator[None]:
    """Add to an error of a model what to do, where that is known."""
    try:
        yield
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(
            "the model calls a function of NumPy on arrays of JAX, as np.exp(p): write it with jax.numpy's (jnp.exp), "
            "or with those of lg.namespace(params), which are the arrays' own in every framework."
        ) from error
    except Exception as error:
        if "'NoneType'" in str(error) and _met_equinox(error):
            raise TypeError(_COMBINE) from error
        if note := _NOTES.get(type(error).__name__) if type(error).__module__.startswith("flax.") else None:
            error.add_note(note)
        raise


def _met_equinox(error: Exception) -> bool:
    """Whether a function that was running had an equinox module in hand."""
    found = (value for frame, _ in walk_tb(error.__traceback__) for value in frame.f_locals.values())
    return any(_library(type(value)) == "equinox" for value in found)
