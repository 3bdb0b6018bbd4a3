"""An ``nn.Module`` as a plain function ``(params, inputs) -> outputs``.

The function changes nothing: buffers are cloned for every call, so that
BatchNorm's running statistics (or spectral norm's vectors) stay what they are,
and it gives the same outputs each time: a module that draws random numbers
(dropout, in whatever form) draws from one seed, with the caller's generators
put back afterwards. A curvature operator is then that of the sub-network drawn.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor, nn

from .draws import cuda_devices, fixed_draws, undrawn
from .recording import current
from .trees import flatten_tree

__all__ = ["AdaptedModule", "adapt", "trainable"]

_adapted: WeakValueDictionary[tuple[int, int], AdaptedModule] = WeakValueDictionary()
_traits: WeakKeyDictionary[nn.Module, _Traits] = WeakKeyDictionary()


@dataclass
class _Traits:
    """What has been found out about a module, kept for as long as it lives."""

    keywords: frozenset[str]
    any_keyword: bool
    draws: bool = False
    has_hooks: bool = False

    @classmethod
    def of(cls, module: nn.Module) -> _Traits:
        if module not in _traits:
            arguments = inspect.signature(module.forward).parameters.values()
            named = frozenset(a.name for a in arguments if a.kind in (a.POSITIONAL_OR_KEYWORD, a.KEYWORD_ONLY))
            _traits[module] = cls(named, any(a.kind is a.VAR_KEYWORD for a in arguments))
        return _traits[module]


def adapt(model: Any, seed: int = 0) -> Callable[[Any, Any], Tensor]:
    """A plain function ``(params, inputs) -> outputs`` from an ``nn.Module``; other callables as they are.

    A compiled module is taken as what ``torch.compile`` was given, which has no double backward. ``seed`` says which
    random numbers a module that draws some will draw at every evaluation. The same module and seed give the same
    object, for as long as somebody holds it.

    >>> import torch
    >>> model = torch.nn.Linear(3, 1)
    >>> function = adapt(model)
    >>> function({"bias": torch.ones(1)}, torch.zeros(2, 3)).flatten().tolist()
    [1.0, 1.0]
    >>> adapt(model) is function
    True
    """
    if not isinstance(model, nn.Module):
        if not callable(model):
            raise TypeError(f"a model is an nn.Module or a callable (params, inputs) -> outputs, not {type(model)}")
        function: Callable[[Any, Any], Tensor] = model
        return function
    model = uncompiled(model)
    found = _adapted.get((id(model), seed))
    if found is None:
        found = _adapted[id(model), seed] = AdaptedModule(model, seed)
    return found


def uncompiled(module: nn.Module) -> nn.Module:
    """What ``torch.compile`` was given, if anything was."""
    inner = getattr(module, "_orig_mod", module)
    return inner if isinstance(inner, nn.Module) else module


def trainable(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that require gradients, by the names of ``named_parameters`` (tied ones once).

    >>> list(trainable(torch.nn.Linear(3, 1)))
    ['weight', 'bias']
    """
    found: dict[str, Tensor] = {name: p for name, p in uncompiled(module).named_parameters() if p.requires_grad}
    for name, parameter in found.items():
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"parameter {name!r} has no shape yet: run the module once on some inputs first")
    if not found:
        raise ValueError(
            f"{type(module).__name__} has no trainable parameter: call requires_grad_(True) on those that are to vary, "
            "or pass a dict of parameters by name"
        )
    return found


class _Host(nn.Module):
    """Runs anything while ``module`` has other parameters: the part of a call that torch swaps them for."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, thunk: Callable[[], Any]) -> Any:
        return thunk()


class AdaptedModule:
    """The function that :func:`adapt` makes. Call it with a tree of parameters and the inputs.

    The parameters may be a tree whose paths, joined by dots, are names of parameters (all of them or some: the others
    are the module's own, constant), or a list in the order of ``module.parameters()``. A tuple of inputs is passed as
    positional arguments, a mapping as keyword arguments if its keys are names that ``forward`` takes; anything else,
    and any other mapping, is one positional argument.
    """

    def __init__(self, module: nn.Module, seed: int) -> None:
        self.module = module
        self.seed = seed
        self._host = _Host(module)
        self._traits = _Traits.of(module)

    def __repr__(self) -> str:
        return f"adapt({type(self.module).__name__}, seed={self.seed})"

    def __call__(self, params: Any, inputs: Any) -> Tensor:
        args, kwargs = self._arguments(inputs)
        given = self._by_name(params)
        outputs = self._reproducibly(lambda: self._recorded(given, lambda: self.module(*args, **kwargs)))
        if not isinstance(outputs, Tensor):
            raise TypeError(_wrap_advice(self.module, outputs))
        return outputs

    def _arguments(self, inputs: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        if type(inputs) is tuple:
            return inputs, {}
        named = isinstance(inputs, Mapping) and inputs and all(isinstance(key, str) for key in inputs)
        if named and (self._traits.any_keyword or self._traits.keywords.issuperset(inputs)):
            return (), inputs
        return (inputs,), {}

    # parameters

    def _by_name(self, params: Any) -> dict[str, Tensor]:
        """The tensors to swap in: those given, and the module's other parameters as constants."""
        if isinstance(params, nn.Module):
            params = trainable(params)
        own = dict(self.module.named_parameters(remove_duplicate=False))
        names, leaves, _ = flatten_tree(params)
        given = dict(zip(names, leaves, strict=True))
        if isinstance(params, (list, tuple)) and not own.keys() >= given.keys():
            given = self._in_order(leaves)
        unknown = [name for name in given if name not in own]
        if unknown:
            raise ValueError(self._unknown(unknown, own))
        owner: dict[int, str] = {}
        for name, leaf in given.items():
            if leaf.shape != own[name].shape:
                raise ValueError(
                    f"parameter {name!r} has shape {tuple(leaf.shape)}; the module's has {tuple(own[name].shape)}."
                )
            other = owner.setdefault(id(own[name]), name)
            if other != name:
                raise ValueError(
                    f"parameters {other!r} and {name!r} are one tied tensor in {type(self.module).__name__}: give one."
                )
        constants = {name: p.detach() for name, p in self.module.named_parameters() if id(p) not in owner}
        return given | constants

    def _in_order(self, leaves: list[Tensor]) -> dict[str, Tensor]:
        every = dict(self.module.named_parameters())
        for names in (list(every), [name for name, p in every.items() if p.requires_grad]):
            if len(names) == len(leaves):
                return dict(zip(names, leaves, strict=True))
        raise ValueError(
            f"{len(leaves)} parameters in a list, but {type(self.module).__name__} has {len(every)}: "
            "pass a dict by name for some of them."
        )

    def _unknown(self, unknown: list[str], own: Mapping[str, Tensor]) -> str:
        buffers = dict(self.module.named_buffers(remove_duplicate=False))
        if all(name in buffers for name in unknown):
            return (
                f"{unknown} are buffers, not parameters, of {type(self.module).__name__} (a state_dict has both): "
                "pass dict(model.named_parameters()), or the model itself."
            )
        return f"{type(self.module).__name__} has no parameters {unknown}; it has {list(own)}."

    # running

    def _recorded(self, given: dict[str, Tensor], thunk: Callable[[], Any]) -> Any:
        """Run the forward; have its parameters in place whenever the graph is run, too, if it recomputes."""
        tensors = {f"module.{name}": tensor for name, tensor in given.items()}
        tensors |= {f"module.{name}": buffer.clone() for name, buffer in self.module.named_buffers()}
        recording = current.get()
        if recording is not None:
            if self._traits.has_hooks:
                recording.expect_hooks()
            if recording.has_hooks:
                self._traits.has_hooks = True
                recording.surround(partial(self._swapped, tensors))
        return self._swapped(tensors, thunk)

    def _swapped(self, tensors: dict[str, Tensor], thunk: Callable[[], Any]) -> Any:
        """Run with ``tensors`` in place of the module's own."""
        with _kept_attributes(self.module):
            return torch.func.functional_call(self._host, tensors, (thunk,))

    def _reproducibly(self, thunk: Callable[[], Any]) -> Any:
        """Run; if that draws random numbers, with those of the seed."""
        devices = cuda_devices(self.module)
        if not self._traits.draws:
            outputs, done = undrawn(devices, thunk)
            if done:
                return outputs
            self._traits.draws = True
        with fixed_draws(devices, self.seed):
            return thunk()


@contextmanager
def _kept_attributes(module: nn.Module) -> Iterator[None]:
    """Undo what hooks of the classic ``weight_norm`` and ``spectral_norm`` write: the weight as a plain attribute."""
    hooked = [m for m in module.modules() if m._forward_pre_hooks]
    kept = [{k: v for k, v in m.__dict__.items() if isinstance(v, Tensor)} for m in hooked]
    try:
        yield
    finally:
        for m, attributes in zip(hooked, kept, strict=True):
            m.__dict__.update(attributes)


def _wrap_advice(module: nn.Module, outputs: Any) -> str:
    pick = "[0]" if isinstance(outputs, (tuple, list)) else "['logits']" if isinstance(outputs, dict) else ".logits"
    return (
        f"{type(module).__name__} returned a {type(outputs).__qualname__}, and a model's outputs are one tensor. Wrap "
        f"it in a module whose forward returns the entry that matters, such as self.model(inputs){pick}."
    )
