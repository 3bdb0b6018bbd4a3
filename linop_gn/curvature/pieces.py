"""What linearising one batch leaves behind: data that products are made of.

Both are unnormalised, for one batch, or ``stacked`` for several of one shape,
with a leading axis over them on everything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ..protocols import Array, Backend, Linearization, Scalar, Vector
from ..records import record, replace, static
from ..spaces import Space
from .losses import Loss
from .supplied import Supplied

__all__ = [
    "Blockwise",
    "Curve",
    "Multiple",
    "OneBlock",
    "Piece",
    "ggn",
    "hessian",
    "jvp",
    "loss_hessian",
    "sum_products",
    "vjp",
]


@record
class Piece:
    """The model of one batch linearised at a point: J through ``lin``, H_L at ``outputs``."""

    loss: Loss
    targets: Array | None
    weights: Array | None
    lin: Linearization
    curve: Any
    """The loss's gradient linearised at the outputs, for losses without closed forms."""
    shared: Any
    """What products with H_L at these outputs have in common, for losses with closed forms."""
    outputs: Array
    value: Array | None
    gradient: Vector | None
    weight: Array | None
    space: Space = static()
    stacked: bool = static(default=False)

    def parted(self) -> tuple[Any, Piece]:
        """What is summed over batches (value, gradient, weight), and the rest, which is kept."""
        return (self.value, self.gradient, self.weight), replace(self, value=None, gradient=None, weight=None)

    def apply(self, function: Callable[..., Vector], *arguments: Any) -> Vector:
        """``function(piece, *arguments)``: one of those below, on flat vectors and numbers."""
        return function(self, *arguments)

    def loss_hessian(self, v: Array) -> Array:
        """H_L v."""
        if self.curve is not None:
            product: Array = self.curve.hvp([v])[0]
            return product
        kept = {} if self.shared is None else {"shared": self.shared}
        xp = self.space.backend.namespace()
        return self.loss.hessian_product(xp, self.outputs, self.targets, self.weights, v, **kept)

    def ggn(self, v: list[Array], only: tuple[int, ...] | None = None) -> list[Array]:
        """J^T H_L J v, or of the columns of J for the leaves ``only``, whose tangents ``v`` then are."""
        return self.lin.vjp(self.loss_hessian(self.lin.jvp(v, only)), only)


@record
class Curve:
    """The gradient of one batch's loss linearised at a point."""

    lin: Any
    """From the framework; None where the user's ``hvp`` is called with ``arguments``."""
    arguments: tuple[Any, ...]
    value: Array | None
    gradient: Vector | None
    weight: Array | None
    supplied: Supplied | None = static()
    space: Space = static()
    stacked: bool = static(default=False)

    def parted(self) -> tuple[Any, Curve]:
        """What is summed over batches (value, gradient, weight), and the rest, which is kept."""
        return (self.value, self.gradient, self.weight), replace(self, value=None, gradient=None, weight=None)

    def apply(self, function: Callable[..., Vector], *arguments: Any) -> Vector:
        """``function(curve, *arguments)``: one of those below, on flat vectors and numbers."""
        return function(self, *arguments)

    def hessian(self, v: list[Array]) -> list[Array]:
        """H v."""
        if self.lin is not None:
            product: list[Array] = self.lin.hvp(v)
            return product
        assert self.supplied is not None
        assert self.supplied.hvp is not None
        ops = self.space.backend
        made = self.supplied.hvp(*self.arguments, ops.unflatten(self.space.structure, v))
        return self.space.leaves(ops.detach(made), "result of the supplied hvp")


def jvp(piece: Piece, v: Vector) -> Vector:
    """J v, flat."""
    return _flat(piece, piece.lin.jvp(piece.space.split(v)))


def vjp(piece: Piece, u: Vector) -> Vector:
    """J^T u for flat u."""
    return piece.space.join(piece.lin.vjp(_like_outputs(piece, u)))


def loss_hessian(piece: Piece, v: Vector) -> Vector:
    """H_L v on flat vectors."""
    return _flat(piece, piece.loss_hessian(_like_outputs(piece, v)))


def _flat(piece: Piece, z: Array) -> Vector:
    ops = piece.space.backend
    return ops.pack([z], ops.describe(z)[1])


def _like_outputs(piece: Piece, u: Vector) -> Array:
    shape, dtype, _ = piece.space.backend.describe(piece.outputs)
    return piece.space.backend.split(u, [shape], [dtype])[0]


def ggn(piece: Piece, v: Vector) -> Vector:
    """J^T H_L J v on flat vectors."""
    return piece.space.join(piece.ggn(piece.space.split(v)))


def hessian(curve: Curve, v: Vector) -> Vector:
    """H v on flat vectors."""
    return curve.space.join(curve.hessian(curve.space.split(v)))


@dataclasses.dataclass(frozen=True)
class Blockwise:
    """diag(J_1^T H_L J_1, ...) v on flat vectors, for groups of leaves: equal ones are one compiled program."""

    groups: tuple[tuple[int, ...], ...]

    def __call__(self, piece: Piece, v: Vector) -> Vector:
        leaves = piece.space.split(v)
        product: list[Any] = [None] * len(leaves)
        for group in self.groups:
            for i, leaf in zip(group, piece.ggn([leaves[i] for i in group], group), strict=True):
                product[i] = leaf
        return piece.space.join(product)


@dataclasses.dataclass(frozen=True)
class OneBlock:
    """J_l^T H_L J_l v_l on flat vectors of one block's own space."""

    group: tuple[int, ...]

    def __call__(self, piece: Piece, v: Vector) -> Vector:
        space = piece.space
        shapes, dtypes = [space.shapes[i] for i in self.group], [space.dtypes[i] for i in self.group]
        return space.join(piece.ggn(space.backend.split(v, shapes, dtypes), self.group))


@dataclasses.dataclass(frozen=True)
class Multiple:
    """A product times a number. Compiled alone, the product would end in copies that are not fused with anything."""

    product: Callable[[Any, Vector], Vector]

    def __call__(self, piece: Any, v: Vector, factor: Scalar) -> Vector:
        return piece.space.backend.scale(factor, self.product(piece, v))


def sum_products(
    ops: Backend, pieces: tuple[Any, ...], product: Callable[[Any, Vector], Vector], v: Vector, factor: Scalar
) -> Vector:
    """``factor`` times the sum over pieces of ``product(piece, v)``."""
    total = None
    for piece in pieces:
        if piece.stacked:
            part = ops.scale(factor, ops.sum_over(product, piece, v))
        else:
            part = piece.apply(Multiple(product), v, factor)
        total = part if total is None else ops.axpy(1.0, part, total)
    return total
