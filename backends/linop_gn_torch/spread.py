"""What belongs to several processes or devices: refused, with a recipe that works.

A module is looked at with all modules in it. A plain function may close over such a module, name one
among its globals, or hold one as a partial function or a bound method does; whether it *calls* it shows when it runs:
``functional_call(ddp.module, ...)`` is the recipe, ``functional_call(ddp, ...)`` the fault. So a function that
can reach one is run with a hook on it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from inspect import getattr_static
from types import CodeType, FunctionType, MethodType
from typing import Any
from weakref import WeakValueDictionary

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["batch_norm_in_training", "gathers_dtensors", "guarded", "modules_of", "require_local", "unwrapped"]

_REDUCE = (
    "give each process the plain module and its part of the data, and let lg.distributed.DataParallel(objective) "
    "all-reduce value, gradient and products, as docs/many_devices.md shows."
)
SPREAD = {
    "DistributedDataParallel": "it averages the gradients of backward() over processes, and nothing else, so that "
    f"each process would have an operator of its own. Take its .module: {_REDUCE}",
    "DataParallel": "its replicas on other devices would not take the parameters given here. Take its .module.",
    "FullyShardedDataParallel": "each process has a part of its parameters, which it gathers as it runs, where no "
    f"product follows. Gather them, by a full state dict: {_REDUCE}",
    "FSDPModule": "it gathers its parameters as it runs, where no product follows. Let the model be the same module "
    "without fully_shard, and give the parameters of this one, which are DTensors: they are gathered here, and "
    "products come back as they lie (docs/many_devices.md).",
    "DTensor": "each process has a part of it. Gather it, on all of them: x.full_tensor().",
}
"""What belongs to several processes, by the name of its class, and what to do about it."""


def _kind(thing: Any) -> str | None:
    return next((kind.__name__ for kind in type(thing).__mro__ if kind.__name__ in SPREAD), None)


def gathers_dtensors(module: Any) -> bool:
    """Whether ``fully_shard`` was applied to it."""
    return _kind(module) == "FSDPModule"


def require_local(thing: Any, what: str) -> None:
    """Raise for a module or a tensor that is spread over several processes."""
    kind = _kind(thing)
    if kind is not None:
        raise TypeError(f"{what} is a {type(thing).__name__}: {SPREAD[kind]}")


_looked: WeakValueDictionary[int, Any] = WeakValueDictionary()
"""By the identity of a function, what is called in its place: itself, or the function guarded."""


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, or if it can reach what is spread, one that raises where it is called; looked for once."""
    found = _looked.get(id(function))
    if found is None:
        spread = [m for m in modules_of(function) if _kind(m) is not None]
        found = _Guarded(function, spread) if spread else function
        try:
            _looked[id(function)] = found
        except TypeError:  # there are callables without weak references
            return found
    return found  # type: ignore[no-any-return]


class _Guarded:
    def __init__(self, function: Callable[..., Any], spread: list[nn.Module]) -> None:
        self.function, self.spread = function, spread

    def __call__(self, *arguments: Any) -> Any:
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)

        def refuse(module: nn.Module, args: Any) -> None:
            require_local(module, f"a module that the model {name} calls")

        with ExitStack() as stack:
            for module in self.spread:
                stack.callback(module.register_forward_pre_hook(refuse, prepend=True).remove)
            return self.function(*arguments)


def unwrapped(model: Any) -> tuple[Any, Any]:
    """The module inside of those that average gradients over processes, and the group; else what is given, and None."""
    inside, found, group = model, model, None
    while isinstance(inside, nn.Module):
        if _kind(inside) == "DistributedDataParallel":
            group = inside.process_group if group is None else group
            found = inside = inside.module
        elif isinstance(compiled := getattr(inside, "_orig_mod", None), nn.Module):
            inside = compiled
        else:
            break
    return found, group


def modules_of(function: Any) -> Iterator[nn.Module]:
    """The modules that a function can reach by a few names, or those in a module."""
    level, seen = [function], set[int]()
    for _ in range(5):
        level = [x for x in level if id(x) not in seen and not seen.add(id(x))]  # type: ignore[func-returns-value]
        for thing in level:
            if isinstance(thing, nn.Module):
                yield from thing.modules()
        level = [held for thing in level if not isinstance(thing, nn.Module) for held in _held(thing)]


def batch_norm_in_training(model: Any) -> nn.Module | None:
    """A layer that normalises by the examples that come at a time, so that these depend on each other."""
    norms = (module for module in modules_of(model) if isinstance(module, _BatchNorm))
    return next((module for module in norms if module.training or module.running_mean is None), None)


def _held(thing: Any) -> Iterator[Any]:
    """What a function, a bound method, a partial function, an object that is called, or a container has at hand."""
    if isinstance(thing, FunctionType):
        for cell in thing.__closure__ or ():
            with suppress(ValueError):  # of a name that is not bound yet
                yield cell.cell_contents
        yield from (thing.__defaults__ or (), thing.__kwdefaults__ or {}, vars(thing))
        if not (thing.__module__ or "").startswith(("torch", "numpy")):
            yield from (thing.__globals__[name] for name in _names(thing.__code__) if name in thing.__globals__)
    elif isinstance(thing, MethodType):
        yield from (thing.__self__, thing.__func__)
    elif isinstance(thing, functools.partial):
        yield from (thing.func, thing.args, thing.keywords)
    elif isinstance(thing, (list, tuple, dict)):  # more are data
        yield from () if len(thing) > 100 else thing.values() if isinstance(thing, dict) else thing
    elif isinstance(called := getattr_static(type(thing), "__call__", None), FunctionType):
        yield from (called, vars(thing) if hasattr(thing, "__dict__") else ())


def _names(code: CodeType) -> Iterator[str]:
    """The names that a function's code has, with those of functions within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
