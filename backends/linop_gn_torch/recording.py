"""What has to be in force again when a recorded graph is run backward.

Most graphs hold all they need. One that saves tensors through hooks, as
activation checkpointing does, may not: it runs parts of the model's forward
again, and that must meet the same kernels as the first time. torch's checkpoints
put the process's random generators back while they do so, so such graphs are run
by one thread at a time.

A forward is first tried with such hooks forbidden, and made anew where it has
any: plain graphs pay nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from threading import RLock
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, disable_saved_tensors_hooks, get_gradient_edge
from torch.utils.checkpoint import CheckpointFunction
from torch.utils.hooks import RemovableHandle

from .advice import REENTRANT, require_differentiable, snapshot, unwritten
from .safe_ops import twice_differentiable
from .tracking import constant, tracking

__all__ = ["Recording", "apart", "backward", "current", "edges", "filled", "keeping"]

R = TypeVar("R")

_FORBIDDEN = "linop_gn: the forward saves tensors through hooks"
_again = RLock()

current: ContextVar[Recording | None] = ContextVar("current", default=None)
"""The recording that is being made, for those who have something to add to it."""


class Recording:
    """How one graph is recorded and run; ``kernels`` is the context that chooses its operations."""

    def __init__(self, kernels: Callable[[], AbstractContextManager[None]] = twice_differentiable) -> None:
        self.kernels = kernels
        self.has_hooks = False
        self.is_watched = False
        """Whether hooks on tensors or operations were registered: they see, may change and may hold what goes back."""

    @classmethod
    def of(
        cls, function: Callable[[list[Tensor]], Tensor], params: Sequence[Tensor], scalar: bool = False, **kernels: Any
    ) -> tuple[Recording, list[Tensor], Tensor]:
        """The graph of ``function``: what it takes to go through it, its leaves, and its outputs."""
        recording, leaves = cls(**kernels), snapshot(params)
        with torch.enable_grad(), unwritten(leaves):
            outputs = recording.make(lambda: function(leaves))
            require_differentiable(outputs, scalar)
        return recording, leaves, outputs

    def make(self, thunk: Callable[[], R]) -> R:
        """Run ``thunk``, which records a graph."""
        token, known = current.set(self), RemovableHandle.next_id
        try:
            with self.kernels():
                try:
                    with disable_saved_tensors_hooks(_FORBIDDEN):
                        return thunk()
                except RuntimeError as error:
                    if _FORBIDDEN not in str(error):
                        raise
                self.has_hooks = True
                return thunk()
        finally:
            current.reset(token)
            self.is_watched = RemovableHandle.next_id != known  # each hook has a number; torch keeps no list of them

    def expect_hooks(self) -> None:
        """Start anew if hooks are forbidden: for those who know already that there will be some."""
        if not self.has_hooks:
            raise RuntimeError(_FORBIDDEN)

    def resume(self, thunk: Callable[[], R], records: bool = False) -> R:
        """Run ``thunk``, which goes through the graph (and records another, if ``records``)."""
        if not (self.has_hooks or records):
            return thunk()
        with _again if self.has_hooks else nullcontext(), self.kernels():
            return thunk()


_checkpointed = CheckpointFunction.forward


def _seen(*args: Any) -> Any:
    """The forward of a reentrant checkpoint, refused where a graph is recorded.

    Its parameters are in no graph. Where its inputs depend on no parameter it is in none itself, so that nothing else
    tells: the parameters inside would get zeros, and those that the model also uses outside a part of their gradient.
    """
    if current.get() is not None:
        raise NotImplementedError(REENTRANT)
    return _checkpointed(*args)


CheckpointFunction.forward = staticmethod(_seen)


def edges(recorded: Sequence[Tensor | None]) -> list[GradientEdge | None]:
    """The places of what was recorded in its graph, which go without its values; None for what has no graph."""
    return [None if x is None or not x.requires_grad else get_gradient_edge(x) for x in recorded]


def backward(
    outputs: Sequence[Tensor | GradientEdge], inputs: Sequence[Any], cotangents: Sequence[Tensor | None], **options: Any
) -> list[Tensor | None]:
    """``torch.autograd.grad`` on the outputs that have a graph; None for inputs that none of them depends on."""
    pairs = [(z, u) for z, u in zip(outputs, cotangents, strict=True) if isinstance(z, GradientEdge) or z.requires_grad]
    if not pairs or not inputs:
        return [None] * len(inputs)
    live, seeds = zip(*pairs, strict=True)
    return list(torch.autograd.grad(live, inputs, seeds, allow_unused=True, **options))


def filled(gradients: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Zeros like ``like`` where there is none."""
    return [
        torch.zeros_like(x) if g is None else constant(g.to_dense() if g.is_sparse else g)
        for g, x in zip(gradients, like, strict=True)
    ]


def apart(given: Sequence[Tensor]) -> bool:
    """Whether each of these has memory of its own, and all of that, in order."""
    own = {}
    for x in given:
        if type(x) is not Tensor or x.requires_grad or not x.is_contiguous():
            return False
        memory = x.untyped_storage()
        if memory.nbytes() != x.nbytes:
            return False
        own[memory.data_ptr()] = x
    return len(own) == len(given)


def keeping() -> dict[str, bool]:
    """How a product goes backward through a graph that is needed again."""
    return {"create_graph": True} if tracking.get() else {"retain_graph": True}
