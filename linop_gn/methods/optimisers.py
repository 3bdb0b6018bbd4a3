r"""First-order optimisers in the backend's arithmetic: a step made of a gradient and of what is kept from step to step.

=================  =========================================================================================
:class:`SGD`        d = g, with momentum of Polyak's or Nesterov's kind
:class:`Adam`       d = m^ / (sqrt(v^) + eps) (Kingma and Ba, 2015), weights decayed beside it
                   (Loshchilov and Hutter, 2019)
:class:`Clip`       another, for gradients no longer than a norm
:class:`Groups`     another for each group of leaves
=================  =========================================================================================

They run on every framework, alone in :class:`~linop_gn.FirstOrder` and inside of
:class:`~linop_gn.InnerGaussNewton`. Those of optax and torch come in by
``linop_gn_jax.optimisers.Optax`` and ``linop_gn_torch.optimisers.TorchOptimiser``.

Averages are divided by what their weights sum to, a running sum: 1 - b^t, without its cancellation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, NamedTuple

from ..arguments import require_instance, require_number
from ..curvature.partition import partition
from ..operators.partition import LeafBlock
from ..protocols import Array, Backend, Scalar, Vector
from ..records import record, static
from ..run.returned import require_pair, require_vector
from ..spaces import Space

__all__ = ["SGD", "Adam", "Clip", "Groups", "Optimiser"]


@record
class Optimiser(ABC):
    """Base of optimisers: a subclass is a record with ``init`` and ``update``.

    Vectors are flat, of ``space``, which knows the leaves: ``space.split(x)``. What is kept is a tree of arrays and
    numbers, or None, of one structure from the first to the last step.

    >>> import linop_gn as lg
    >>> @lg.record
    ... class Sign(lg.optimisers.Optimiser):
    ...     def init(self, ops, space, x):
    ...         return None
    ...     def update(self, ops, space, gradient, kept, x, rate):
    ...         return ops.scale(-rate, ops.namespace().sign(gradient)), kept
    """

    @abstractmethod
    def init(self, ops: Backend, space: Space, x: Vector) -> Any:
        """What is kept before the first step."""

    @abstractmethod
    def update(
        self, ops: Backend, space: Space, gradient: Vector, kept: Any, x: Vector, rate: Scalar
    ) -> tuple[Vector, Any]:
        """The step to be added to x, a new vector, and what is kept then. Consumes ``kept`` and nothing else."""


def updated(
    optimiser: Optimiser, ops: Backend, space: Space, gradient: Vector, kept: Any, x: Vector, rate: Scalar
) -> tuple[Vector, Any]:
    """The optimiser's step and what it keeps, looked at."""
    made = optimiser.update(ops, space, gradient, kept, x, rate)
    step, after = require_pair(optimiser, "update", made, "(step, kept)")
    require_vector(f"{type(optimiser).__qualname__}.update must return, for the step,", ops, step, tuple(x.shape), x)
    return step, after


@record
class SGD(Optimiser):
    """x <- x - rate d with d = g; with momentum b <- momentum b + g, and d = b, or g + momentum b (Nesterov).

    ``weight_decay`` x is added to the gradient before all else. The rules of ``torch.optim.SGD``.
    """

    momentum: Scalar | None = None
    nesterov: bool = static(default=False)
    weight_decay: Scalar | None = None

    def __post_init__(self) -> None:
        require_number("SGD", "momentum", self.momentum, below=1.0, optional=True)
        require_number("SGD", "weight_decay", self.weight_decay, optional=True)
        if self.nesterov and self.momentum is None:
            raise ValueError("SGD: nesterov=True looks ahead along the momentum: give momentum=0.9 beside it.")

    def init(self, ops: Backend, space: Space, x: Vector) -> Vector | None:
        """b = 0."""
        return None if self.momentum is None else ops.zeros_like(x)

    def update(
        self, ops: Backend, space: Space, gradient: Vector, kept: Any, x: Vector, rate: Scalar
    ) -> tuple[Vector, Any]:
        """-rate d, and b."""
        d = ops.copy(gradient) if self.weight_decay is None else ops.axpy(self.weight_decay, x, ops.copy(gradient))
        if self.momentum is not None:
            kept = ops.axpby(1.0, d, self.momentum, kept)
            d = ops.axpy(self.momentum, kept, d) if self.nesterov else ops.copy(kept)
        return ops.scale(-rate, d), kept


class Moments(NamedTuple):
    """m and v, and what their weights sum to."""

    mean: Vector
    square: Vector
    weights: tuple[Scalar, Scalar]


@record
class Adam(Optimiser):
    """m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2; x <- x - rate (m^ / (sqrt(v^) + eps) + weight_decay x).

    With ``weight_decay``, decoupled from the gradient, this is AdamW.
    """

    b1: Scalar = 0.9
    b2: Scalar = 0.999
    eps: Scalar = 1e-8
    weight_decay: Scalar | None = None

    def __post_init__(self) -> None:
        for name, below in (("b1", 1.0), ("b2", 1.0), ("eps", math.inf), ("weight_decay", math.inf)):
            require_number("Adam", name, getattr(self, name), below=below, optional=name == "weight_decay")

    def init(self, ops: Backend, space: Space, x: Vector) -> Moments:
        """m = v = 0."""
        zero = ops.scalar(0.0, x)
        return Moments(ops.zeros_like(x), ops.zeros_like(x), (zero, zero))

    def update(
        self, ops: Backend, space: Space, gradient: Vector, kept: Moments, x: Vector, rate: Scalar
    ) -> tuple[Vector, Moments]:
        """The step, and the moments."""
        m = ops.axpby(1.0 - self.b1, gradient, self.b1, kept.mean)
        v = ops.axpby(1.0 - self.b2, gradient * gradient, self.b2, kept.square)
        w = self.b1 * kept.weights[0] + (1.0 - self.b1), self.b2 * kept.weights[1] + (1.0 - self.b2)
        root = ops.scale(ops.divide(1.0, ops.sqrt(w[1])), ops.namespace().sqrt(v))
        step = ops.scale(ops.divide(-rate, w[0]), m / (root + self.eps))
        if self.weight_decay is not None:
            step = ops.axpy(-rate * self.weight_decay, x, step)
        return step, Moments(m, v, w)


@record
class Clip(Optimiser):
    """``optimiser`` for the gradient shortened to the length ``norm``, where it is longer.

    The length is that of all leaves together, or of a group where it stands in :class:`Groups`.
    """

    optimiser: Optimiser
    norm: Scalar = 1.0

    def __post_init__(self) -> None:
        require_optimiser("Clip", self.optimiser)
        require_number("Clip", "norm", self.norm, positive=True)

    def init(self, ops: Backend, space: Space, x: Vector) -> Any:
        """The optimiser's."""
        return self.optimiser.init(ops, space, x)

    def update(
        self, ops: Backend, space: Space, gradient: Vector, kept: Any, x: Vector, rate: Scalar
    ) -> tuple[Vector, Any]:
        """The optimiser's."""
        length = ops.sqrt(ops.dot(gradient, gradient))
        factor = ops.where(length > self.norm, ops.divide(self.norm, length), 1.0)
        return updated(self.optimiser, ops, space, ops.scale(factor, ops.copy(gradient)), kept, x, rate)


@record
class Groups(Optimiser):
    """An optimiser for each group of leaves.

    Parameters
    ----------
    groups
        A dict from the name of a group to patterns of leaf names, where the first that fits a leaf has it: ``{"adamw":
        ["embed*", "head*"], "muon": "*"}``. ``"matrices"``: the group ``"matrices"`` of the leaves with two axes, and
        ``"others"``. Or what ``lg.BlockGGN`` takes: ``"layer"``, ``"leaf"``, a regular expression, a function.
    optimisers
        One for all groups, each with a state of its own; or a dict from the name of a group to its optimiser.

    >>> import linop_gn as lg
    >>> o = lg.optimisers
    >>> each = o.Groups("layer", o.Clip(o.Adam(), 1.0))  # clipped layer by layer
    >>> some = o.Groups({"still": "*.b", "moved": "*"}, {"still": o.SGD(), "moved": o.Adam(weight_decay=1e-3)})
    """

    groups: Any = static()
    optimisers: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", hashable(self.groups))
        for optimiser in self.optimisers.values() if isinstance(self.optimisers, Mapping) else (self.optimisers,):
            require_optimiser("Groups", optimiser)

    def _of(self, name: str) -> Optimiser:
        if not isinstance(self.optimisers, Mapping):
            return self.optimisers  # type: ignore[no-any-return]
        if name not in self.optimisers:
            raise ValueError(f"Groups: there is no optimiser for the group {name!r}, only for {[*self.optimisers]}.")
        return self.optimisers[name]  # type: ignore[no-any-return]

    def init(self, ops: Backend, space: Space, x: Vector) -> tuple[Any, ...]:
        """Each group's."""
        found = groups_of(space, self.groups)
        return tuple(self._of(b.name).init(ops, b.space, part) for b, (part,) in _cut(space, found, x))

    def update(
        self, ops: Backend, space: Space, gradient: Vector, kept: Any, x: Vector, rate: Scalar
    ) -> tuple[Vector, Any]:
        """Each group's, side by side."""
        found, made, new = groups_of(space, self.groups), [None] * len(space.names), []
        for (b, (g, part)), before in zip(_cut(space, found, gradient, x), kept, strict=True):
            step, after = updated(self._of(b.name), ops, b.space, g, before, part, rate)
            new.append(after)
            for i, leaf in zip(b.leaves, _leaves(b.space, step), strict=True):
                made[i] = leaf
        return space.join(made), tuple(new)


def require_optimiser(owner: str, given: Any) -> None:
    """Raise unless ``given`` is an optimiser."""
    advice = (
        "Those of torch.optim are linop_gn_torch.optimisers.TorchOptimiser(torch.optim.AdamW, ...), those of optax "
        "linop_gn_jax.optimisers.Optax(...); one of your own derives from lg.optimisers.Optimiser."
    )
    require_instance(owner, given, Optimiser, "an optimiser such as lg.optimisers.Adam()", advice)


def hashable(groups: Any) -> Any:
    """The same groups as a static field can hold them."""
    if not isinstance(groups, Mapping):
        return groups
    return tuple(
        (name, (patterns,) if isinstance(patterns, str) else tuple(patterns)) for name, patterns in groups.items()
    )


@lru_cache(maxsize=64)
def groups_of(space: Space, groups: Any) -> tuple[LeafBlock, ...]:
    """The leaves of ``space`` by groups, ``hashable`` ones."""
    if groups == "matrices":
        axes = {name: len(shape) for name, shape in zip(space.names, space.shapes, strict=True)}
        return partition(space, lambda name: "matrices" if axes[name] == 2 else "others")
    if not isinstance(groups, tuple):
        return partition(space, groups)
    found = partition(space, lambda leaf: next((n for n, ps in groups if any(fnmatchcase(leaf, p) for p in ps)), None))  # type: ignore[arg-type, return-value]
    empty = [name for name, _ in groups if name not in {block.name for block in found}]
    if empty:
        raise ValueError(
            f"Groups: no leaf is left for {empty}; there are {list(space.names)}, and the first fit counts."
        )
    return found


def _leaves(space: Space, v: Vector) -> list[Array]:
    """The leaves of v, all in the dtype of vectors."""
    dtypes = [space.dtype] * len(space.shapes)
    return space.backend.split(v, space.shapes, dtypes) if space.layout is None else space.layout.split(v, dtypes)


def _cut(space: Space, blocks: tuple[LeafBlock, ...], *vectors: Vector) -> list[tuple[LeafBlock, list[Vector]]]:
    """Each block with its part of each of the vectors, a new vector."""
    leaves = [_leaves(space, v) for v in vectors]
    return [(b, [b.space.join([of[i] for i in b.leaves]) for of in leaves]) for b in blocks]
