"""An ``nn.Module`` as a plain function ``(params, inputs) -> outputs`` of what the module is now.

:func:`adapt` takes a snapshot: a shell of the module, that is copies of all
modules in the tree (tied and shared ones stay so), with the flags, hooks and
other attributes that they have (of containers and NumPy arrays copies), and with
clones of buffers and of parameters that nobody will give. While the module stays the same, so does the function.

Each call runs a shell of its own, whose parameters are those given and whose
buffers are clones: BatchNorm's running statistics (or spectral norm's vectors)
stay what they are, threads do not meet, the module itself is never touched, and
what is recomputed in a backward (checkpointing) meets the same parameters. It
gives the same outputs each time: a module that draws random numbers (dropout, in
whatever form) draws from one seed. A curvature operator is then that of the
sub-network drawn.

Plain functions that close over a module are called as
they are, whatever the module has become.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import optree
import torch
from torch import Tensor, nn

from linop_gn.given import the_array

from .draws import OwnDraws, fixed_draws, states
from .recording import current
from .shards import whole
from .shells import MEMBERS, Shells
from .spread import gathers_dtensors, guarded, require_local, unwrapped
from .trees import flatten_tree

__all__ = ["AdaptedModule", "adapt", "load_into", "own_names", "trainable"]

_adapted: WeakValueDictionary[tuple[int, tuple[str, ...] | None, int], AdaptedModule] = WeakValueDictionary()
_COMPILED, _PARALLEL = "_orig_mod.", "module."
COPIED = np.ndarray, set
EMBEDDINGS = nn.Embedding, nn.EmbeddingBag
INTERNAL = frozenset(vars(nn.Module()))
"""Attributes that every module has."""


def adapt(model: Any, names: Sequence[str] | None = None, seed: int = 0) -> Callable[[Any, Any], Tensor]:
    """A plain function ``(params, inputs) -> outputs`` from an ``nn.Module``; other callables as they are.

    ``names`` are those of the parameters that will be given (of a list, the positions), by default all trainable ones:
    the module's others are constants, as they are now. A compiled module is taken as what ``torch.compile`` was given,
    which has no double backward. ``seed`` says which random numbers a module that draws some will draw at every
    evaluation. The same function comes for the same arguments, while somebody holds it and the module stays the same.

    >>> import torch
    >>> model = torch.nn.Linear(3, 1)
    >>> function = adapt(model)
    >>> function({"bias": torch.ones(1), "weight": torch.zeros(1, 3)}, torch.zeros(2, 3)).flatten().tolist()
    [1.0, 1.0]
    >>> adapt(model) is function, adapt(model.eval()) is function
    (True, False)
    """
    if not isinstance(model, nn.Module):
        if not callable(model):
            raise TypeError(f"a model is an nn.Module or a callable (params, inputs) -> outputs, not {type(model)}")
        return guarded(model)
    model = uncompiled(model)
    key = id(model), None if names is None else tuple(names), seed
    found = _adapted.get(key)
    if found is None or not found.is_current():
        found = _adapted[key] = AdaptedModule(model, names, seed)
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
    module, _ = unwrapped(module)  # the parameters of all processes are the module's own
    for name, m in module.named_modules():
        if not gathers_dtensors(m):  # between its runs they are as it was given them
            require_local(m, name or "the module")
    found: dict[str, Tensor] = {name: p for name, p in uncompiled(module).named_parameters() if p.requires_grad}
    for name, parameter in found.items():
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"parameter {name!r} has no shape yet: run the module once on some inputs first")
    if not found:
        raise ValueError(
            f"{type(module).__name__} has no trainable parameter: call requires_grad_(True), or pass a dict by name"
        )
    return found


@dataclass
class Known:
    """What runs have shown of a module."""

    draws: bool | None = None
    """Whether it draws random numbers."""
    hooked: bool = False
    """Whether its forward saves tensors through hooks, as checkpointing does."""


class AdaptedModule:
    """The function that :func:`adapt` makes. Call it with a tree of parameters and the inputs.

    The parameters may be a tree whose paths, joined by dots, are names of parameters (all of them or some: the others
    are the module's own, constant), or a list in the order of ``module.parameters()``. A tuple of inputs is passed as
    positional arguments, a mapping as keyword arguments if its keys are names that ``forward`` takes; anything else,
    and any other mapping, is one positional argument.
    """

    def __init__(self, source: nn.Module, names: Sequence[str] | None = None, seed: int = 0) -> None:
        self.source, self.names, self.seed = source, names, seed
        for name, m in source.named_modules():
            require_local(m, name or "the model")
            if isinstance(m, EMBEDDINGS) and m.max_norm is not None:
                raise ValueError(
                    f"{name or 'the model'} is a {type(m).__name__}(max_norm={m.max_norm}), which writes to its "
                    "weights as it runs, so that no derivative belongs to them: set its max_norm to None, and scale "
                    "the rows yourself between steps, or in the model."
                )
        self._seen = [(m, _frozen(vars(m)), [dict(getattr(m, kind)) for kind in MEMBERS]) for m in source.modules()]
        own = _named(source, remove_duplicate=False)
        given = [n for n, p in own.items() if p.requires_grad] if names is None else own_names(source, own, names)
        varying = {id(own[name]) for name in given if name in own}
        constant = [p for p in source.parameters() if id(p) not in varying]
        dense = [b for b in source.buffers() if b.layout is torch.strided]
        self._versions = [(t, _version(t)) for t in chain(constant, source.buffers()) if all(t is not b for b in dense)]
        with torch.inference_mode(False), torch.no_grad():  # what is made in there could not be differentiated out here
            copies = {id(t): whole(t.detach()).clone() for t in chain(source.buffers(), constant)}
        self._buffers = [(b, copies[id(b)]) for b in dense]
        self.module = Shells(source)(copies)
        for m in self.module.modules():  # nobody writes into these
            vars(m).update(_frozen(vars(m)))
            if isinstance(m, EMBEDDINGS):
                m.scale_grad_by_freq = False  # what is divided by counts is no derivative
        self._own, self._shells = _named(self.module, remove_duplicate=False), Shells(self.module)
        if isinstance(source, torch.jit.ScriptModule):
            schema = source.forward.schema.arguments[1:]
            self._keywords, self._any_keyword = {a.name for a in schema}, False
            self._needed = sum(not a.has_default_value() for a in schema)
        else:
            arguments = inspect.signature(source.forward).parameters.values()
            self._keywords = {a.name for a in arguments if a.kind in (a.POSITIONAL_OR_KEYWORD, a.KEYWORD_ONLY)}
            self._any_keyword = any(a.kind is a.VAR_KEYWORD for a in arguments)
            positional = [a for a in arguments if a.kind in (a.POSITIONAL_OR_KEYWORD, a.POSITIONAL_ONLY)]
            self._needed = sum(a.default is a.empty for a in positional)
        self._devices = sorted({p.device.index for p in source.parameters() if p.device.type == "cuda"})
        self._known = Known()

    def __repr__(self) -> str:
        return f"adapt({type(self.source).__name__}, seed={self.seed})"

    def drawing(self, seed: int) -> AdaptedModule:
        """The same function with the random numbers of another seed; it shares what it was made of, and has learnt."""
        made = copy(self)
        made.seed = seed
        return made

    def arguments(self, inputs: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Positional and keyword arguments of ``forward``."""
        if type(inputs) is tuple or (type(inputs) is list and len(inputs) == self._needed > 1):
            return tuple(inputs), {}
        named = isinstance(inputs, Mapping) and inputs and all(isinstance(key, str) for key in inputs)
        if named and (self._any_keyword or self._keywords.issuperset(inputs)):
            return (), inputs
        return (inputs,), {}

    def is_current(self) -> bool:
        """Whether the module is still what it was: mode, attributes, buffers, and parameters that are not given."""
        modules = list(self.source.modules())
        return (
            len(modules) == len(self._seen)
            and all(
                m is seen and _same(vars(m), held) and all(map(_same, (getattr(m, k) for k in MEMBERS), members))
                for m, (seen, held, members) in zip(modules, self._seen, strict=True)
            )
            and all(_version(t) == version for t, version in self._versions)
            and _equal(self._buffers)
        )

    def __call__(self, params: Any, inputs: Any) -> Tensor:
        args, kwargs = self.arguments(inputs)
        given = self._given(params)
        outputs = self._reproducibly(given, lambda shell: shell(*args, **kwargs))
        outputs = outputs if isinstance(outputs, Tensor) else the_array(outputs)
        if not isinstance(outputs, Tensor):
            inside = "['logits']" if isinstance(outputs, dict) else ".logits"
            pick = "[0]" if isinstance(outputs, (tuple, list)) else inside
            raise TypeError(
                f"{type(self.source).__name__} returned a {type(outputs).__qualname__}, and a model's outputs are one "
                "tensor. Wrap it in a module whose forward returns the entry that matters, such as "
                f"self.model(inputs){pick}."
            )
        return outputs

    # parameters

    def _given(self, params: Any) -> dict[int, Tensor]:
        """What stands for each of the snapshot's tensors in a call: the one given, or a constant."""
        if isinstance(params, nn.Module):
            params = trainable(params)
        own, kind = self._own, type(self.source).__name__
        names, leaves, _ = flatten_tree(params)
        names = own_names(self.source, own, names, isinstance(params, (list, tuple)))
        if unknown := [name for name in names if name not in own]:
            buffers = dict(self.source.named_buffers(remove_duplicate=False))
            if all(name in buffers for name in unknown):
                raise ValueError(
                    f"{unknown} are buffers, not parameters, of {kind}: pass named_parameters() as a dict, or the model"
                )
            raise ValueError(f"{kind} has no parameters {unknown}; it has {list(own)}.")
        owner: dict[int, str] = {}
        given: dict[int, Tensor] = {}
        for name, leaf in zip(names, leaves, strict=True):
            if leaf.shape != own[name].shape:
                raise ValueError(
                    f"parameter {name!r} has shape {tuple(leaf.shape)}; the module's has {tuple(own[name].shape)}."
                )
            other = owner.setdefault(id(own[name]), name)
            if other != name:
                raise ValueError(f"parameters {other!r} and {name!r} are one tied tensor in {kind}: give one.")
            given[id(own[name])] = leaf
        return {id(p): p.detach() for p in own.values() if p.requires_grad and id(p) not in given} | given

    # running

    def _reproducibly(self, given: dict[int, Tensor], run: Callable[[Any], Any]) -> Any:
        """``run`` a shell; if that draws random numbers, with those of the seed."""
        recording = current.get()
        if recording is not None:
            if self._known.hooked:
                recording.expect_hooks()
            self._known.hooked = recording.has_hooks
        if self._known.draws is False:
            before = states(self._devices)
            outputs = run(self._shells(given))
            if all(map(torch.equal, before, states(self._devices))):
                return outputs  # else something has drawn after all: here, or in another thread
        theirs = {id(p) for p in self.source.parameters() if p.requires_grad} - {id(t) for t in given.values()}
        own, shell = OwnDraws(self.seed, theirs), self._shells(given)
        if not self._known.draws:
            with own:
                outputs = run(shell)
            self._known.draws = own.drew
            if not (own.drew and self._known.hooked):
                return outputs
            shell = self._shells(given)
        # What is recomputed in a backward draws from the process's generators, where torch's checkpoints put them back.
        with fixed_draws(self._devices, self.seed) if self._known.hooked else own:
            return run(shell)


def own_names(
    module: nn.Module, own: Mapping[str, Tensor], names: Sequence[str], ordered: bool | None = None
) -> list[str]:
    """The names that the module has, in ``own``, for parameters called ``names`` in a tree, or numbered in a list."""
    names = [_unprefixed(name.replace(_COMPILED, ""), own) for name in names]
    ordered = names == [str(i) for i in range(len(names))] if ordered is None else ordered
    if not ordered or own.keys() >= set(names):
        return names
    every = _named(module)
    for chosen in (list(every), [name for name, p in every.items() if p.requires_grad]):
        if len(chosen) == len(names):
            return chosen
    raise ValueError(
        f"{len(names)} parameters in a list, but {type(module).__name__} has {len(every)}: pass a dict by name"
    )


def load_into(module: Any, params: Any) -> Any:
    """Write ``params``, a tree as :class:`AdaptedModule` takes, over the module's own, in place; returns the module."""
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"load_into writes into a torch.nn.Module, got a {type(module).__qualname__}: go on with result.params."
        )
    inside = uncompiled(unwrapped(module)[0])
    own = _named(inside, remove_duplicate=False)
    names, leaves, _ = flatten_tree(params)
    names = own_names(inside, own, names, isinstance(params, (list, tuple)))
    kind = type(inside).__name__
    if unknown := [name for name in names if name not in own]:
        raise ValueError(
            f"{kind} has no parameters called {', '.join(sorted(unknown))}: was the run one of this module?"
        )
    if other := [n for n, leaf in zip(names, leaves, strict=True) if leaf.shape != own[n].shape]:
        raise ValueError(f"{kind} has parameters of other shapes: {', '.join(other)}. Was the run one of this module?")
    with torch.no_grad():
        for name, leaf in zip(names, leaves, strict=True):
            own[name].copy_(leaf)
    return module


def _named(module: nn.Module, **options: bool) -> dict[str, Tensor]:
    """The parameters by name, without what ``torch.compile`` adds to names."""
    return {name.replace(_COMPILED, ""): p for name, p in module.named_parameters(**options)}


def _unprefixed(name: str, own: Mapping[str, Tensor]) -> str:
    """A name without what ``DistributedDataParallel`` puts before it."""
    while name not in own and name.startswith(_PARALLEL):
        name = name.removeprefix(_PARALLEL)
    return name


def _same(now: Mapping[str, Any], then: Mapping[str, Any]) -> bool:
    """Whether attributes are what they were: the same objects, and containers and NumPy arrays that hold the same."""
    if now.keys() != then.keys():
        return False
    if [*now] == [*then] and all(map(operator.is_, now.values(), then.values())):
        return True  # nearly always
    for name, value in now.items():
        if value is not then[name]:
            (leaves, structure), (others, other) = optree.tree_flatten(value), optree.tree_flatten(then[name])
            if structure != other or not all(map(_alike, leaves, others)):
                return False
    return True


def _alike(x: Any, y: Any) -> bool:
    return x is y or (isinstance(x, COPIED) and type(x) is type(y) and bool(np.all(x == y)))


def _frozen(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a module, with copies of containers and NumPy arrays, which can be written into."""
    own = {name: value for name, value in attributes.items() if name not in INTERNAL}
    copied = optree.tree_map(lambda x: x.copy() if isinstance(x, COPIED) else x, own)
    return {**attributes, **copied}


def _version(t: Tensor) -> tuple[int, int]:
    return 0 if t.is_inference() else t._version, t.data_ptr() if t.layout is torch.strided else 0


def _equal(pairs: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether buffers are what their clones are, in values: batch norm's kernels write without a new version."""
    groups: dict[Any, list[tuple[Tensor, Tensor]]] = {}
    for now, then in pairs:
        if (now.shape, now.dtype, now.device) != (then.shape, then.dtype, then.device):
            return False
        groups.setdefault((now.dtype, now.device), []).append((now, then))
    return all(
        torch.equal(*(torch.cat([t.reshape(-1) for t in side]) for side in zip(*group, strict=True)))
        for group in groups.values()
    )
