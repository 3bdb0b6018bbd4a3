"""H_L at given outputs, as data: what products with it share, and its root.

The Hessian of a loss in the outputs has one small block for each example. The
root S of it, H_L = S S^T, is what the Gauss-Newton operator needs on the side
of the outputs, W = S^T J (:mod:`linop_gn.curvature.gram`). A diagonal's root is
diag(h)^(1/2); that of blocks comes from their eigendecomposition,

    H = V diag(l) V^T,    S = V diag(l)^(1/2),    S^T S = diag(l).

Its columns, one after the other for all examples at once, are what Kronecker factors are made of: :class:`Columns`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ...protocols import Array, Scalar
from ...records import record
from .weighting import counter, keep, real

__all__ = [
    "MOST_COLUMNS",
    "Blocks",
    "Columns",
    "Diagonal",
    "OutputHessian",
    "OutputRoot",
    "Weighted",
    "as_hessian",
    "divided",
    "unit",
]


MOST_COLUMNS = 64
"""More columns than these of an example with several axes are those of the last axis, for all of the others at once."""


class Columns(NamedTuple):
    """u_c, like the outputs, with sum_c u_c u_c^T = H_L for each of the examples along the first ``apart`` axes.

    Where the columns of several examples are added up with random signs, products of two of them cancel in the mean.
    """

    number: int
    apart: int
    column: Callable[[Scalar], Array]


def unit(xp: Any, like: Array, shape: tuple[int, ...], first: int, index: Scalar) -> Array:
    """True at number ``index`` of the entries along the axes from ``first`` on; it broadcasts to ``shape``."""
    inside = shape[first:]
    return xp.reshape(counter(xp, math.prod(inside), like) == index, (1,) * first + inside)


@record
class OutputRoot:
    """S with S S^T = H_L, square: vectors on both sides are like the outputs."""

    def product(self, xp: Any, u: Array) -> Array:
        """S u."""
        raise NotImplementedError(f"{type(self).__name__} does not define product")

    def transposed(self, xp: Any, v: Array) -> Array:
        """S^T v."""
        raise NotImplementedError(f"{type(self).__name__} does not define transposed")

    def solve(self, xp: Any, r: Array) -> Array:
        """q with S q = r, for a gradient r of the loss; zero where S has no inverse."""
        raise NotImplementedError(f"{type(self).__name__} does not define solve")


@record
class OutputHessian:
    """H_L at the outputs of one batch."""

    def product(self, xp: Any, v: Array) -> Array:
        """H_L v."""
        raise NotImplementedError(f"{type(self).__name__} does not define product")

    def consuming(self, xp: Any, v: Array) -> Array:
        """H_L v, for a ``v`` that may be written over."""
        return self.product(xp, v)

    def root(self, xp: Any) -> OutputRoot:
        """S with H_L = S S^T."""
        raise NotImplementedError(f"{type(self).__name__} does not define root")

    def whole(self, xp: Any) -> OutputHessian:
        """The same of all examples at once, where it was in parts."""
        return self

    def without_outputs(self) -> OutputHessian:
        """Itself, without the outputs if it needs them."""
        return self

    def with_outputs(self, outputs: Array) -> OutputHessian:
        """The inverse of :meth:`without_outputs`."""
        return self

    def columns(self, xp: Any, outputs: Array) -> Columns:
        """The columns of the root: all of an example's where they are few, else those of its last axis."""
        shape, root = tuple(outputs.shape), self.root(xp)
        apart = min(1, len(shape)) if math.prod(shape[1:]) <= MOST_COLUMNS else len(shape) - 1

        def column(index: Scalar) -> Array:
            here = xp.broadcast_to(unit(xp, outputs, shape, apart, index), shape)
            return root.product(xp, xp.astype(here, outputs.dtype))

        return Columns(math.prod(shape[apart:]), apart, column)


@record
class Diagonal(OutputHessian, OutputRoot):
    """diag(h), for h like the outputs, or a number."""

    values: Any

    def product(self, xp: Any, v: Array) -> Array:
        return self.values * v

    transposed = product

    def consuming(self, xp: Any, v: Array) -> Array:
        v *= self.values
        return v

    def root(self, xp: Any) -> Diagonal:
        return Diagonal(self.values**0.5)

    def solve(self, xp: Any, r: Array) -> Array:
        return divided(xp, r, self.values + xp.zeros_like(r))


@record
class Blocks(OutputHessian, OutputRoot):
    """Blocks (..., C, C) over the last axis of the outputs (..., C); a root has orthogonal columns."""

    values: Array

    def product(self, xp: Any, v: Array) -> Array:
        return xp.matmul(self.values, v[..., None])[..., 0]

    def transposed(self, xp: Any, v: Array) -> Array:
        return xp.matmul(xp.matrix_transpose(self.values), v[..., None])[..., 0]

    def root(self, xp: Any) -> Blocks:
        sizes, vectors = xp.linalg.eigh(self.values)
        return Blocks(vectors * xp.where(sizes > 0, sizes, 0.0 * sizes)[..., None, :] ** 0.5)

    def solve(self, xp: Any, r: Array) -> Array:
        sizes = xp.sum(self.values * self.values, axis=-2)
        rounding = 4 * r.shape[-1] * xp.finfo(r.dtype).eps * xp.max(sizes, axis=-1, keepdims=True)
        return divided(xp, self.transposed(xp, r), xp.where(sizes > rounding, sizes, 0.0 * sizes))


@record
class Weighted(OutputHessian, OutputRoot):
    """w H for the weights of examples, or sqrt(w) S for their root; v is not looked at where they are not counted."""

    inner: Any
    weights: Array
    counted: Array | None = None

    def product(self, xp: Any, v: Array) -> Array:
        return self.weights * self.inner.product(xp, keep(xp, self.counted, v))

    def consuming(self, xp: Any, v: Array) -> Array:
        made = self.inner.consuming(xp, keep(xp, self.counted, v))
        made *= self.weights
        return made

    def transposed(self, xp: Any, v: Array) -> Array:
        return self.weights * self.inner.transposed(xp, keep(xp, self.counted, v))

    def root(self, xp: Any) -> Weighted:
        return Weighted(self.inner.root(xp), self.weights**0.5, self.counted)

    def columns(self, xp: Any, outputs: Array) -> Columns:
        size = self.weights**0.5
        made: Columns = self.inner.columns(xp, outputs)
        return made._replace(column=lambda index: size * keep(xp, self.counted, made.column(index)))

    def solve(self, xp: Any, r: Array) -> Array:
        return self.inner.solve(xp, divided(xp, r, self.weights + xp.zeros_like(r)))


def as_hessian(xp: Any, made: Any, outputs: Array, weights: Array | None) -> OutputHessian:
    """What a loss's ``curvature`` returned (a diagonal, blocks over the last axis, or a record), with weights."""
    counted, plain = None if weights is None else weights != 0, real(made)
    if plain is None and not isinstance(made, OutputHessian):
        blocks = len(made.shape) > len(outputs.shape)
        used = counted[..., None] if blocks and counted is not None else counted
        made = (Blocks if blocks else Diagonal)(keep(xp, used, xp.astype(made, outputs.dtype, copy=False)))
    made = made if plain is None else Diagonal(plain)
    if weights is None:
        return made  # type: ignore[no-any-return]
    if isinstance(made, Weighted):
        made, weights = made.inner, made.weights * weights
    return Weighted(made, weights, counted)


def divided(xp: Any, x: Array, sizes: Array) -> Array:
    """``x / sizes`` where that is positive, and zero elsewhere."""
    good = sizes > 0
    return xp.where(good, x / xp.where(good, sizes, xp.ones_like(sizes)), xp.zeros_like(x))
