"""One batch linearised at a point, as data, and the products that are made of it.

A :class:`Piece` holds the model linearised and the loss's Hessian H_L at its
outputs; a :class:`Curve` holds the gradient linearised. Both are unnormalised.
``stacked`` ones hold several batches of one shape, with a leading axis over
them on every array.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from ..arguments import called
from ..protocols import Array, Backend, Linearization, Scalar, Vector
from ..records import Partial, record, replace, static
from ..spaces import Space
from .losses import Loss, OutputHessian
from .losses.parts import in_parts
from .supplied import Supplied

__all__ = ["Curve", "Differentiated", "Piece", "added", "applied", "by_columns", "each_block", "flat_outputs", "ggn"]
__all__ += ["hessian", "jvp", "kept", "like_outputs", "linearised_gradient", "loss_hessian", "multiple", "of_batch"]
__all__ += ["one_block", "scaled", "together", "vjp"]


_COLUMNS, _ENTRIES = 64, 1 << 22
"""Columns in one pass at most, and entries of their vectors and outputs: what is between these takes more."""
_MANY = 16
"""More blocks than that are a loop over all leaves in a compiled program, which would hold a copy of the model for each
of them, and one pass elsewhere where the vectors are short. Of fewer outputs than blocks all of J is made instead."""


class OfOneBatch:
    """The base of pieces and curves."""

    leafwise: ClassVar[bool] = True
    """Whether products take tuples of leaves too."""
    recomputes: ClassVar[bool] = False
    """Whether each call of :meth:`apply` linearises anew, so that columns had better share one."""

    value: Array | None
    gradient: Any
    weight: Array | None

    def parted(self) -> tuple[Any, Any]:
        """(value, gradient, weight), to be summed over batches, and the piece without them."""
        rest = replace(self, value=None, gradient=None, weight=None)  # type: ignore[type-var]
        return (self.value, self.gradient, self.weight), rest

    def apply(self, function: Callable[..., Vector], *arguments: Any) -> Vector:
        """``function(self, *arguments)``, for a function of this module."""
        return function(self, *arguments)


@record
class Piece(OfOneBatch):
    """The model of one batch linearised at a point: J through ``linearization``, H_L at ``outputs``."""

    loss: Loss
    targets: Array | None
    weights: Array | None
    linearization: Linearization
    bent: OutputHessian
    """H_L at ``outputs``, without these."""
    value: Array | None
    gradient: Vector | None
    weight: Array | None
    space: Space = static()
    stacked: bool = static(default=False)
    root: Any = None
    """S with S S^T = H_L, once :meth:`rooted`."""

    @property
    def outputs(self) -> Array:
        """The model's outputs, which the linearisation holds: a program would return them once more for each holder."""
        return self.linearization.outputs

    @property
    def hessian(self) -> OutputHessian:
        """H_L at ``outputs``."""
        return self.bent.with_outputs(self.outputs)

    def rooted(self) -> Piece:
        """The piece with the root of H_L."""
        return replace(self, root=self.hessian.root(self.space.backend.namespace()))

    def loss_hessian(self, v: Array) -> Array:
        """H_L v."""
        return self.hessian.product(self.space.backend.namespace(), v)

    def slope(self, z: Array) -> Array:
        """dL/dz at outputs z, which need not be ``outputs``."""
        ops, data = self.space.backend, (self.targets, self.weights)
        if not self.loss.autodiff:
            return in_parts(ops, self.loss, z).gradient(ops.namespace(), z, *data)
        assert ops.calculus is not None
        return ops.calculus.gradient(lambda z: self.loss.total(ops.namespace(), z[0], *data), [z])[1][0]

    def ggn(self, v: list[Array], only: tuple[int, ...] | None = None, scale: Scalar | None = None) -> list[Array]:
        """J^T H_L J v; with ``only`` J has the columns of these leaves, and ``v`` their tangents; times ``scale``."""
        lin, ops = self.linearization, self.space.backend
        product = self.hessian.consuming if lin.fresh else self.hessian.product
        u = product(ops.namespace(), lin.jvp(v, only))
        if scale is not None:
            u = ops.scale(scale, ops.copy(u))
        return (lin.pull if lin.fresh else lin.vjp)(u, only)


@record
class Rows:
    """J of few outputs, by a pass backward for each of them, as J^T (n, m): what blocks have of it is then cut out."""

    columns: Array
    piece: Piece
    space: Space = static()

    fresh: ClassVar[bool] = True

    @classmethod
    def of(cls, piece: Piece, size: int) -> Rows:
        """Those of a piece with ``size`` outputs."""
        ops, like = piece.space.backend, flat_outputs(piece, piece.outputs)
        unit = ops.identity(size, like)
        return cls(ops.over_columns(lambda u: vjp(piece, u), unit, together((piece,), piece.space)), piece, piece.space)

    @property
    def outputs(self) -> Array:
        """The model's."""
        return self.piece.outputs

    def _of(self, only: tuple[int, ...] | None) -> tuple[Array, list[Any], list[Any]]:
        """The rows of J^T for these leaves, their shapes and dtypes."""
        space, xp = self.space, self.space.backend.namespace()
        if only is None:
            return self.columns, list(space.shapes), list(space.dtypes)
        places = list(space.slices.values())
        rows = [self.columns[places[i]] for i in only]
        made = rows[0] if len(rows) == 1 else xp.concat(rows)
        return made, [space.shapes[i] for i in only], [space.dtypes[i] for i in only]

    def jvp(self, tangents: list[Array], only: tuple[int, ...] | None = None) -> Array:
        """J v."""
        ops, v = self.space.backend, self.space.join(tangents)
        return like_outputs(self.piece, ops.namespace().sum(self._of(only)[0] * v[:, None], axis=0))

    def vjp(self, cotangent: Array, only: tuple[int, ...] | None = None) -> list[Array]:
        """J^T u."""
        ops, (rows, shapes, dtypes) = self.space.backend, self._of(only)
        return ops.split(ops.namespace().sum(rows * flat_outputs(self.piece, cotangent), axis=1), shapes, dtypes)

    pull = vjp


@record
class Differentiated(OutputHessian):
    """H_L by the framework's derivatives: the gradient of the loss, linearised at the outputs."""

    linearization: Any

    def product(self, xp: Any, v: Array) -> Array:
        return self.linearization.hvp([v])[0]


@record
class Curve(OfOneBatch):
    """The gradient of one batch's loss linearised at a point."""

    linearization: Any
    """Made by the framework; None if H v is the user's ``hvp(*arguments, v)``."""
    arguments: tuple[Any, ...]
    value: Array | None
    gradient: Vector | None
    weight: Array | None
    supplied: Supplied | None = static()
    space: Space = static()
    stacked: bool = static(default=False)

    def hessian(self, v: list[Array]) -> list[Array]:
        """H v."""
        if self.linearization is not None:
            return self.linearization.hvp(v)  # type: ignore[no-any-return]
        assert self.supplied is not None
        assert self.supplied.hvp is not None
        ops = self.space.backend
        made = called(
            "hvp=", "(params[, data], v)", self.supplied.hvp, *self.arguments, ops.unflatten(self.space.structure, v)
        )
        return self.space.leaves(ops.detach(made), "result of the supplied hvp")


def together(pieces: tuple[Any, ...], space: Space) -> int:
    """How many columns go through one pass with these pieces: as many as take little memory, 64 at most."""
    outputs = [getattr(piece, "outputs", None) for piece in pieces]
    size = space.size + max((math.prod(z.shape) for z in outputs if z is not None), default=0)
    return max(1, min(_COLUMNS, _ENTRIES // size))


def kept(function: Callable[..., Any], piece: Any, *vectors: Vector) -> tuple[tuple[()], Any]:
    """A function whose results are stacked by ``scan_over``, and nothing summed."""
    return (), piece.apply(function, *vectors)


def applied(function: Callable[..., Vector], piece: Any, *vectors: Vector) -> Vector:
    """``function`` of the piece and vectors, by the way of the piece: for loops over a stack."""
    made: Vector = piece.apply(function, *vectors)
    return made


def by_columns(function: Callable[..., Vector], piece: Any, v: Vector) -> Vector:
    """``function`` of the piece and each column of v, one by one: no more memory than one of them takes."""
    made: Vector = piece.space.backend.over_columns(Partial(function, piece), v)
    return made


def jvp(piece: Piece, v: Vector) -> Vector:
    """J v, flat."""
    return flat_outputs(piece, piece.linearization.jvp(piece.space.split(v)))


def vjp(piece: Piece, u: Vector) -> Vector:
    """J^T u, flat."""
    return piece.space.join(piece.linearization.vjp(like_outputs(piece, u)))


def loss_hessian(piece: Piece, v: Vector) -> Vector:
    """H_L v, flat."""
    return flat_outputs(piece, piece.loss_hessian(like_outputs(piece, v)))


def flat_outputs(piece: Piece, z: Array) -> Vector:
    """``z``, an array like the outputs, as a flat vector."""
    ops = piece.space.backend
    return ops.pack([z], ops.describe(z)[1])


def like_outputs(piece: Piece, u: Vector) -> Array:
    """``u``, a flat vector, as an array like the outputs."""
    shape, dtype, _ = piece.space.backend.describe(piece.outputs)
    return piece.space.backend.split(u, [shape], [dtype])[0]


def ggn(piece: Piece, v: Vector) -> Vector:
    """J^T H_L J v, flat."""
    return piece.space.like(v, piece.ggn(piece.space.split(v)))


def hessian(curve: Curve, v: Vector) -> Vector:
    """H v, flat."""
    return curve.space.like(v, curve.hessian(curve.space.split(v)))


def each_block(blocks: tuple[tuple[int, ...], ...], piece: Piece, v: Vector) -> Vector:
    """blockdiag(J_l^T H_L J_l) v, flat; ``blocks`` holds the leaves of each block l."""
    return _by_block(_ggn_of, blocks, piece, v)


def linearised_gradient(blocks: tuple[tuple[int, ...], ...] | None, whole: bool, piece: Piece, v: Vector) -> Vector:
    """The gradient in v of the loss of the model linearised, L(z + J v), or of its expansion to the second order.

    J^T dL/dz(z + J v) where the ``whole`` loss is meant, else J^T (dL/dz(z) + H_L J v), flat. With ``blocks``, for each
    block l with J_l for J and the others' v zero.
    """
    gradient = Partial(_gradient_of, whole)
    if blocks is None:
        return piece.space.join(gradient(piece, piece.space.split(v)))
    return _by_block(gradient, blocks, piece, v)


def _ggn_of(piece: Piece, v: list[Array], only: tuple[int, ...] | None = None) -> list[Array]:
    return piece.ggn(v, only)


def _gradient_of(whole: bool, piece: Piece, v: list[Array], only: tuple[int, ...] | None = None) -> list[Array]:
    Jv, z = piece.linearization.jvp(v, only), piece.outputs
    u = piece.slope(z + Jv) if whole else piece.slope(z) + piece.loss_hessian(Jv)
    return piece.linearization.vjp(u, only)


def _by_block(
    function: Callable[..., list[Array]], blocks: tuple[tuple[int, ...], ...], piece: Piece, v: Vector
) -> Any:
    """``function(piece, leaves of v in the block, block)`` of each block, put together."""
    space, ops, count = piece.space, piece.space.backend, len(blocks)
    compiled, at_once = "compiled" in ops.capabilities, together((piece,), space)
    outputs = math.prod(piece.outputs.shape)
    few = _MANY < count > outputs and outputs * space.size <= _ENTRIES and space.layout is None
    if few:
        piece = replace(piece, linearization=Rows.of(piece, outputs))
    if count > _MANY and (compiled or (at_once == _COLUMNS and not few and space.layout is None)):
        member = np.array([[i in block for i in range(len(space.names))] for block in blocks], float)
        shares, masked = ops.asarray(member, space.dtype, space.device), Partial(_of_one, function)
        if compiled:
            return ops.sum_over(masked, shares, piece, v)
        parts = (shares[i : i + at_once].T for i in range(0, count, at_once))
        made = (ops.over_columns(lambda share: masked(share, piece, v), part, at_once) for part in parts)
        return sum(ops.namespace().sum(part, axis=1) for part in made)
    return space.like(v, _one_by_one(function, blocks, piece, space.split(v)))


def _one_by_one(
    function: Callable[..., list[Array]],
    blocks: tuple[tuple[int, ...], ...],
    piece: Piece,
    leaves: list[Array],
) -> list[Array]:
    found: list[Any] = [None] * len(leaves)
    for block in blocks:
        for i, leaf in zip(block, function(piece, [leaves[i] for i in block], block), strict=True):
            found[i] = leaf
    zeros = piece.space.backend.namespace().zeros_like  # of leaves that are in none of these blocks
    return [zeros(leaf) if made is None else made for made, leaf in zip(found, leaves, strict=True)]


def _of_one(function: Callable[..., list[Array]], share: Vector, piece: Piece, v: Vector) -> Vector:
    """``function(piece, leaves of v)`` of the block whose leaves have a ``share`` of 1, by products with all leaves."""
    space = piece.space
    made = function(piece, [share[i] * leaf for i, leaf in enumerate(space.split(v))])
    return space.like(v, [share[i] * leaf for i, leaf in enumerate(made)])


def one_block(leaves: tuple[int, ...], piece: Piece, v: Vector) -> Vector:
    """J_l^T H_L J_l v_l, vectors of the space of the block's ``leaves``."""
    space = piece.space.part(leaves)
    return space.like(v, piece.ggn(space.split(v), leaves))


def of_batch(product: Callable[..., Vector], term: Any, x: Vector, v: Any) -> tuple[None, Vector, Array | None]:
    """(None, product, weight) of one streamed batch, which is linearised for it."""
    made = term.linearize_gradient(x) if product is hessian else term.once(x)
    return None, made.apply(product, v), made.weight


def multiple(product: Callable[[Any, Vector], Vector], piece: Any, v: Vector, scale: Scalar) -> Vector:
    """scale * product(piece, v): one program, so that the product's last copy is fused with the scaling."""
    space: Space = piece.space

    def few(outputs: Array) -> bool:
        # Not where leaves lie over processes: these add up what they have pulled, and must all scale the same.
        short = space.layout is None and math.prod(outputs.shape) < space.size
        return short and "16" not in space.backend.describe(outputs)[1]

    if product is ggn and few(piece.outputs):  # what is shorter is scaled
        return space.like(v, piece.ggn(space.split(v), scale=scale))
    return scaled(space.backend, scale, product(piece, v))


def scaled(ops: Backend, a: Scalar, x: Any) -> Any:
    """a x of a vector, or of a tuple of leaves; consumes x."""
    return tuple(ops.scale(a, leaf) for leaf in x) if isinstance(x, tuple) else ops.scale(a, x)


def added(ops: Backend, x: Any, y: Any) -> Any:
    """x + y of vectors, or of tuples of leaves; consumes y."""
    if isinstance(x, tuple):
        return tuple(ops.axpy(1.0, a, b) for a, b in zip(x, y, strict=True))
    return ops.axpy(1.0, x, y)
