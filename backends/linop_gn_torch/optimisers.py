"""Optimisers of torch, as optimisers of linop_gn.

>>> import torch, linop_gn as lg
>>> from linop_gn_torch.optimisers import TorchOptimiser
>>> bowl = lg.Objective.from_residuals(lambda p: p - 3.0)
>>> lg.minimize(bowl, torch.zeros(2), lg.FirstOrder(TorchOptimiser(torch.optim.SGD), rate=0.5), max_steps=2).params
tensor([2.2500, 2.2500])
"""

from __future__ import annotations

from copy import deepcopy
from inspect import Parameter, signature
from typing import Any

import torch

from linop_gn.backend import Backend, Scalar, Vector
from linop_gn.methods.optimisers import Optimiser
from linop_gn.records import fill, record, static
from linop_gn.spaces import Space

__all__ = ["TorchOptimiser"]

_CLOSURE = Parameter("closure", Parameter.KEYWORD_ONLY, default=None)


@record
class TorchOptimiser(Optimiser):
    """A class of ``torch.optim``, or one like them, with its options but ``lr``, which is the method's rate.

    ``TorchOptimiser(torch.optim.AdamW, betas=(0.9, 0.95))``. One that takes some leaves only, as ``torch.optim.Muon``
    takes matrices, goes into ``lg.optimisers.Groups``.

    Each step makes an optimiser on copies of the leaves and hands it its state, and what it counts for all of them (in
    ``param_groups``), so that what is kept is a tree of tensors that no step writes over. One that calls a closure
    again, as ``LBFGS`` does, is refused.
    """

    kind: Any = static()
    options: tuple[tuple[str, Any], ...] = static()

    def __init__(self, kind: type[torch.optim.Optimizer], **options: Any) -> None:
        if not (isinstance(kind, type) and hasattr(kind, "step")):
            raise TypeError(f"TorchOptimiser needs a class such as torch.optim.AdamW, got {kind!r:.100}.")
        if "lr" in options:
            raise TypeError("TorchOptimiser: the rate is the method's, lg.FirstOrder(..., rate=1e-3): leave lr= out.")
        if signature(kind.step).parameters.get("closure", _CLOSURE).default is Parameter.empty:
            raise TypeError(f"TorchOptimiser: {kind.__name__} evaluates a closure several times a step: take another.")
        fill(self, kind=kind, options=tuple(sorted(options.items())))

    def init(self, ops: Backend, space: Space, x: Vector) -> tuple[int, Any]:
        """0 steps, and a state of the structure that the first step will leave, whose numbers mean nothing."""
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"TorchOptimiser moves torch's tensors, and these parameters are {ops.name}'s.")
        return 0, self._stepped(space, torch.zeros_like(x), (0, ()), x, 0.0)[1]

    def update(
        self, ops: Backend, space: Space, gradient: Vector, kept: Any, x: Vector, rate: Scalar
    ) -> tuple[Vector, Any]:
        moved, state = self._stepped(space, gradient, kept, x, float(rate))
        return ops.axpy(-1.0, x, moved), (1, state)

    def _stepped(self, space: Space, gradient: Vector, kept: Any, x: Vector, rate: float) -> tuple[Vector, Any]:
        leaves = [leaf.clone() for leaf in space.split(x)]
        for leaf, slope in zip(leaves, space.split(gradient), strict=True):
            leaf.grad = slope
        optimiser = self.kind(leaves, lr=rate, **dict(self.options))
        group, (begun, before) = optimiser.param_groups[0], kept
        if begun:  # torch fills an empty state at the first step
            counts, states = deepcopy(before)
            group.update(counts)
            for leaf, state in zip(leaves, states, strict=True):
                optimiser.state[leaf] = state
        optimiser.step()
        counts = {k: v for k, v in group.items() if k != "params" and k not in optimiser.defaults}
        return space.join(leaves), (counts, tuple(dict(optimiser.state[leaf]) for leaf in leaves))
