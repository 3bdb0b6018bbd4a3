"""Leaves of which a process has a shard: tensors without memory that are gathered by the operations that take them.

A :class:`Whole` has the shape of a leaf, or of a view of one. Autograd records operations on it as on any tensor, and
what it saves of it for the way back is no more than that: so no graph holds a leaf. Each operation on numbers, also one
in a backward, gathers what it takes, and lets go of it.

    Gather     shards -> whole leaves, which are not gathered yet
    Scatter    whole leaves -> the shards of their sum over the processes that have shares of the data

are each other's transposes, so that a model of ``Gather(shards)`` has its derivatives in shards, of any order and mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import optree
import torch
from torch import Tensor
from torch.autograd import Function

from .advice import written

__all__ = ["Gather", "Scatter", "Shards", "Whole", "in_full"]


_AT_ONCE = 1 << 62
"""A backward goes on with the node of the highest number: a whole gradient does not wait for those of other leaves."""


class Shards(Protocol):
    """What a process has of some leaves, with the way to the others, which have the rest."""

    leaves: tuple[int, ...]
    parts: Sequence[Tensor]

    def shape(self, leaf: int) -> tuple[int, ...]:
        """Of a whole leaf."""

    def of(self, parts: Sequence[Tensor | None]) -> Shards:
        """Others of the same leaves, those of a tangent; None for zeros."""

    def gathered(self) -> dict[int, Tensor]:
        """The whole leaves, contiguous."""

    def scattered(self, wholes: Sequence[Tensor | None], recorded: bool) -> list[Tensor]:
        """The shards of this process of the sum of what processes have of the leaves; None for zeros.

        They have memory of their own where that is ``recorded``.
        """


class Whole(Tensor):
    """A leaf in full, or a view of it, that is in no memory."""

    shards: Shards
    leaf: int
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, shards: Shards, leaf: int, like: Tensor, device: torch.device) -> Whole:
        """``like`` is of the memory of a leaf, without any."""
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, like.shape, like.stride(), like.storage_offset(), dtype=like.dtype, device=device
        )
        made.shards, made.leaf = shards, leaf
        return made  # type: ignore[no-any-return]

    def __repr__(self, **_: Any) -> str:
        return f"Whole(leaf={self.leaf}, shape={tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function.is_view and isinstance(args[0], Whole):
            made = _view(function, *args, **kwargs)
            if made is not None:
                return made
        if function._schema.is_mutable:
            for i, declared in enumerate(function._schema.arguments):
                if declared.alias_info is not None and declared.alias_info.is_write:
                    given = args[i] if i < len(args) else kwargs.get(declared.name)
                    for x in given if isinstance(given, (list, tuple)) else [given]:
                        if isinstance(x, Whole):
                            raise written(x.leaf, x.shards.shape(x.leaf))
        found: dict[int, dict[int, Tensor]] = {}

        def gathered(x: Any) -> Any:
            if not isinstance(x, Whole):
                return x
            key = id(x.shards)
            if key not in found:
                found[key] = x.shards.gathered()
            memory = found[key][x.leaf]
            return memory.as_strided(x.shape, x.stride(), memory.storage_offset() + x.storage_offset())

        args, kwargs = optree.tree_map(gathered, (args, kwargs))  # type: ignore[arg-type]
        return function(*args, **kwargs)


def _view(function: Callable[..., Any], x: Whole, *args: Any, **kwargs: Any) -> Any:
    """A view of a leaf as one that is not gathered yet, or several; None where it reads numbers otherwise."""
    at = torch.empty(0, dtype=x.dtype, device="meta").as_strided(x.shape, x.stride(), x.storage_offset())
    made = function(at, *args, **kwargs)
    views = [made] if isinstance(made, Tensor) else made
    if any(view.dtype != x.dtype or view.is_conj() or view.is_neg() for view in views):
        return None
    wholes = [Whole(x.shards, x.leaf, view, x.device) for view in views]
    return wholes[0] if isinstance(made, Tensor) else wholes


def in_full(x: Any) -> Any:
    """A leaf that is in no memory in memory; anything else as it is."""
    return x.clone() if isinstance(x, Whole) else x


class Gather(Function):
    """Whole leaves of the parts in ``shards``."""

    @staticmethod
    def forward(ctx: Any, shards: Shards, *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.shards = shards
        ctx.set_materialize_grads(False)
        ctx._set_sequence_nr(_AT_ONCE)
        return _wholes(shards)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        return None, *Scatter.apply(ctx.shards, torch.is_grad_enabled(), *cotangents)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Any:
        made = _wholes(ctx.shards.of(tangents))
        return tuple(None if v is None else whole for v, whole in zip(tangents, made, strict=True))


class Scatter(Function):
    """Shards of whole leaves."""

    @staticmethod
    def forward(ctx: Any, shards: Shards, recorded: bool, *wholes: Tensor | None) -> tuple[Tensor, ...]:
        ctx.shards = shards
        ctx.set_materialize_grads(False)
        full = [in_full(x) for x in wholes]
        return tuple(shards.scattered([x.to_dense() if x is not None and x.is_sparse else x for x in full], recorded))

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor | None) -> Any:
        shards = ctx.shards.of(tangents)
        return None, None, *Gather.apply(shards, *shards.parts)


def _wholes(shards: Shards) -> tuple[Tensor, ...]:
    made = []
    for leaf, part in zip(shards.leaves, shards.parts, strict=True):
        like = torch.empty(shards.shape(leaf), dtype=part.dtype, device="meta")
        made.append(Whole(shards, leaf, like, part.device))
    return tuple(made)
