"""The gradient of a scalar function with its graph, and products with the Hessian: backward over backward.

Of a loss behind a model the gradient is recorded from the outputs on, with the loss's own derivatives; behind steps
that go entry by entry (:mod:`.tail`), from where these begin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from linop_gn.backend import Composed, LinearizationDefaults, Outer

from .advice import custom_functions, explained, require_linear
from .alone import ALONE, Alone
from .columns import in_columns
from .cotangents import Slope
from .nan import has_nan, operation_of_nan, tell_of_nan
from .recording import Recording, backward, edges, filled, keeping
from .tail import Tail
from .tracking import constant, tracking

__all__ = ["TorchGradientLinearization"]

Leaves = Sequence[Tensor]


class _Bent(NamedTuple):
    """An outer function L behind a tail: L'(z) as it comes to the tail's places, which is given there."""

    tail: Tail
    outer: Outer
    hessian: Any
    z: Tensor
    seeds: list[Tensor]

    @classmethod
    def of(cls, tail: Tail, outer: Outer, z: Tensor) -> _Bent:
        """At outputs z."""
        seeds = tail.pull(outer.slope(z), True)
        return cls(tail, outer, outer.hessian(z), z, [s.detach().requires_grad_() for s in seeds])

    def completed(self, made: list[Tensor], along: list[Tensor | None], leaves: Leaves) -> list[Tensor]:
        """H v, from what comes to the leaves for constant seeds, and what comes to the seeds."""
        first, *others = along
        first = torch.zeros_like(self.seeds[0]) if first is None else first.clone()
        seeds = [s.detach() for s in self.seeds[1:]]
        bent = self.tail.bend(self.outer, self.hessian, self.z, first, others, seeds)
        more = backward(self.tail.places, leaves, bent, **keeping())
        return [a if b is None else a + b for a, b in zip(made, more, strict=True)]


def _gradient(
    ends: Sequence[Any], leaves: Leaves, outer: Any, seeds: list[Tensor], **options: bool
) -> list[Tensor | None]:
    """That of the loss, as it was recorded."""
    return backward(ends, leaves, seeds or [outer.slope(z.detach()) for z in ends], **options)


class TorchGradientLinearization(LinearizationDefaults):
    """A scalar function's gradient with its graph. See :class:`linop_gn.protocols.GradientLinearization`."""

    def __init__(self, function: Callable[[list[Tensor]], Tensor], params: Leaves, way: Alone = ALONE) -> None:
        self._way = way
        outer: Outer | None = None

        def begun(leaves: list[Tensor]) -> Tensor:
            nonlocal outer
            if not isinstance(function, Composed) or tracking.get():
                return function(leaves)
            z = function.inner(leaves)
            outer = function.outer if function.outer.known(z) else None
            return function.outer.total(z) if outer is None else z

        with torch.enable_grad(), explained():
            self._recording, self._leaves, root = Recording.of(begun, params, scalar=not isinstance(function, Composed))
            # With a seed that requires gradients, what has no graph is zero, or comes from a backward that lost it.
            self._bent: _Bent | None = None
            custom = custom_functions(root)
            if outer is None:
                self.value, seed = constant(root), torch.ones_like(root.detach(), requires_grad=True)
            else:
                plain = not (custom or self._recording.has_hooks or self._recording.is_watched) and way is ALONE
                self.value, tail = outer.value(constant(root)), Tail.of(root) if plain else None
                if tail is None or tail.is_linear:
                    seed = Slope.apply(root, outer)  # type: ignore[no-untyped-call]
                else:
                    self._bent = _Bent.of(tail, outer, constant(root))
            ends, seeds = ([root], [seed]) if self._bent is None else (self._bent.tail.places, self._bent.seeds)
            recorded = self._recording.resume(
                lambda: backward(ends, self._leaves, seeds, create_graph=True), records=True
            )
            self._recording.resume(lambda: require_linear(recorded, seeds[0], custom, way))
        # The slope at the outputs is made again for who looks for a NaN: the graph may hold what came of it alone.
        kept = seeds if outer is None or self._bent is not None else []
        self._gradient = partial(_gradient, ends, self._leaves, outer, kept)
        self.gradient, self._recorded = filled(recorded, self._leaves), edges(recorded)
        if self._bent is not None:  # what is added to the outputs gets the seeds themselves
            own = {s.untyped_storage().data_ptr() for s in self._bent.seeds}
            self.gradient = [g.clone() if g.untyped_storage().data_ptr() in own else g for g in self.gradient]
        self._told = False

    def hvp(self, tangents: Sequence[Tensor]) -> list[Tensor]:
        """H v, by one backward through the gradient's graph."""
        pairs = [(r, v) for r, v in zip(self._recorded, tangents, strict=True) if r is not None]
        places = [] if self._bent is None else self._bent.seeds
        product = partial(backward, [r for r, _ in pairs], [*self._leaves, *places], [v for _, v in pairs])
        with explained():
            result = self._recording.resume(lambda: product(**keeping()), records=tracking.get())
            made = filled(result[: len(self._leaves)], self._leaves)
            if self._bent is not None:
                made = self._bent.completed(made, result[len(self._leaves) :], self._leaves)
        if not (self._told or tracking.get() or in_columns.get()):
            self._told = True
            (bad,) = self._way.any(has_nan(made))
            if bad and not self._way.any(has_nan(tangents))[0]:
                (first,) = self._way.any(has_nan(self.gradient))
                at_fault = self._gradient if first else product
                name = self._recording.resume(lambda: operation_of_nan(at_fault, retain_graph=True))
                tell_of_nan(name, "H v", None, "first" if first else "second")
        return made
