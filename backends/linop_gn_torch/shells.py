"""Copies of a module to run with other tensors, whose modules are nobody else's.

Tensors and modules are found in attributes, in containers, bound methods and
partial functions there, and in what functions there close over. A forward that
reaches a parameter in another way is refused (:class:`~.draws.OwnDraws`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from itertools import chain
from types import CellType, FunctionType, MethodType
from typing import Any

import optree
import torch
from torch import Tensor, nn

__all__ = ["MEMBERS", "Shells"]

MEMBERS = ("_parameters", "_buffers", "_modules")


class Shells:
    """Makes shells of a module: copies of all modules in its tree, with other tensors in place of theirs."""

    def __init__(self, module: nn.Module) -> None:
        self._root = module
        self._scripted = [m for m in module.modules() if isinstance(m, torch.jit.ScriptModule)]
        inside = {id(part) for m in self._scripted for part in m.modules()}
        self._wrapped = [m for m in module.modules() if "_orig_mod" in m._modules]  # by torch.compile
        self._plain = [m for m in module.modules() if id(m) not in inside and m not in self._wrapped]
        probe: dict[int, Any] = {
            id(x): object() for x in chain(module.modules(), module.parameters(), module.buffers())
        }
        self._moving = [[k for k, v in vars(m).items() if _replaced(v, probe) is not v] for m in self._plain]

    def __call__(self, tensors: Mapping[int, Tensor]) -> Any:
        """A shell with ``tensors`` in place of those that have these ids, and clones of the other buffers."""
        memo: dict[int, Any] = {id(b): b.clone() for b in self._root.buffers()} | dict(tensors)
        memo |= {id(m): _scripted(m, memo) for m in self._scripted}
        memo |= {id(m): object.__new__(type(m)) for m in self._plain}
        memo |= {id(m): memo[id(m._modules["_orig_mod"])] for m in self._wrapped}
        for m, moving in zip(self._plain, self._moving, strict=True):
            held = vars(memo[id(m)])
            held.update(vars(m), _compiled_call_impl=None)
            held.update({k: _replaced(vars(m)[k], memo) for k in moving})
            held.update({kind: dict(held[kind]) for kind in MEMBERS})
        return memo[id(self._root)]


def _replaced(value: Any, memo: Mapping[int, Any]) -> Any:
    """``value`` with what ``memo`` has for the ids of things in it; itself if there is nothing."""
    leaves, structure = optree.tree_flatten(value)
    made = [_moved(leaf, memo) for leaf in leaves]
    same = all(new is old for new, old in zip(made, leaves, strict=True))
    return value if same else optree.tree_unflatten(structure, made)


def _moved(leaf: Any, memo: Mapping[int, Any]) -> Any:
    if isinstance(leaf, MethodType):
        owner = _moved(leaf.__self__, memo)
        return leaf if owner is leaf.__self__ else MethodType(leaf.__func__, owner)
    if isinstance(leaf, partial):
        parts = leaf.func, leaf.args, leaf.keywords
        made = _replaced(parts, memo)
        return leaf if made is parts else partial(made[0], *made[1], **made[2])
    if isinstance(leaf, FunctionType) and leaf.__closure__:
        held = [None if cell == CellType() else cell.cell_contents for cell in leaf.__closure__]
        moved = [_moved(content, memo) for content in held]
        if any(new is not old for new, old in zip(moved, held, strict=True)):
            cells = zip(leaf.__closure__, moved, held, strict=True)
            closure = tuple(cell if new is old else CellType(new) for cell, new, old in cells)
            leaf = FunctionType(leaf.__code__, leaf.__globals__, leaf.__name__, leaf.__defaults__, closure)
    return memo.get(id(leaf), leaf)


def _scripted(module: nn.Module, memo: Mapping[int, Any]) -> nn.Module:
    """A copy of a scripted module, whose attributes only a copy of everything gives."""
    made = copy.deepcopy(module)
    for ours, theirs in zip(made.modules(), module.modules(), strict=True):
        for mine, tensors in ((ours._parameters, theirs._parameters), (ours._buffers, theirs._buffers)):
            for name, tensor in list(tensors.items()):
                mine[name] = memo.get(id(tensor), tensor)
    return made
