r"""The root W of the Gauss-Newton operator, G = W^T W, from its rows by layers.

W v and W^T u are one product of matrices for each layer (:mod:`.blocks`), where a linearisation goes through the model,
twice for W v. With what K is made of at hand (:mod:`.gram`), a solve with K takes nothing else of the model.

A program that only finds out as it runs whether examples enter each other's outputs goes by the linearisation: W^T u
costs it a pass down the layers more, and a branch between both ways would copy vectors.
"""

from __future__ import annotations

import math
from typing import Any

from ...operators.base import LinearOperator
from ...operators.places import Place, assembled
from ...protocols import Array, Scalar, Vector, View
from ...records import Partial, record, static
from ...spaces import Space
from .blocks import block_factors, inner, outer
from .rows import Layers

__all__ = ["LayerRoot"]


@record
class LayerRoot(LinearOperator):
    """W = sqrt(c) S^T J (m, n) of a batch, or several. A vector of outputs holds all of them."""

    factors: tuple[tuple[Any, ...], ...]
    """For each place: what its rows are summed of."""
    rest: Array | None
    """The rows (m, n_left) of the leaves ``left``, which are in no layer; None where there are none."""
    slope: Array
    """(examples, columns): q with S q = dL/dz."""
    pulled: Any
    """The objective's gradient, sqrt(c) W^T q, which may be unpacked; None where it has other parts (an l2)."""
    scale: Scalar
    """sqrt(c)."""
    graph: LinearOperator | None
    """W by a linearisation, where it is not known whether examples enter each other's outputs; None if they do not."""
    places: tuple[Place, ...] = static()
    left: tuple[int, ...] = static()
    domain: Space = static(default=None)
    codomain: Space = static(default=None)

    @classmethod
    def of(cls, layers: Layers, root: Any, apart: bool, gradient: Any) -> LayerRoot:
        """Of rows by layers, and W by a linearisation of the same batches, with the gradient that this gave."""
        space, every = root.domain, tuple(range(len(layers.places)))
        (factors,) = root.backend.call(Partial(block_factors, space, (every,)), layers) if apart else ((),)
        known = layers.places, layers.left, space, root.codomain
        return cls(factors, layers.rest, layers.slope, gradient, root.scale, None if apart else root, *known)

    @property
    def gradient(self) -> Vector:
        """q (m,), of which W^T q is the gradient over sqrt(c)."""
        ops = self.backend
        return ops.cast(ops.namespace().reshape(self.slope, (-1,)), self.codomain.dtype)

    def matvec(self, v: Vector) -> Vector:
        return self._push(v) if self.graph is None else self.graph.matvec(v)

    def rmatvec(self, u: Vector) -> Vector:
        return self._pull(u) if self.graph is None else self.graph.rmatvec(u)

    def _push(self, v: Vector) -> Vector:
        ops, space = self.backend, self.domain
        made = ops.pack([inner(space, self.places, self.factors, v)], self.codomain.dtype)
        if self.rest is not None:
            leaves, kind = space.split(v), ops.describe(self.rest)[1]
            more = self.rest @ ops.pack([leaves[i] for i in self.left], kind)
            made = made + ops.cast(more, self.codomain.dtype)
        return ops.scale(self.scale, made)

    def _pull(self, u: Vector) -> Vector:
        ops, space, like = self.backend, self.domain, self.slope
        u = ops.scale(self.scale, ops.copy(u))
        r = ops.namespace().reshape(ops.cast(u, ops.describe(like)[1]), tuple(like.shape))
        parts = outer(space, self.places, self.factors, r, self.dtype)
        if self.rest is not None:
            shapes = [(math.prod(space.shapes[i]),) for i in self.left]
            made = ops.cast(u, ops.describe(self.rest)[1]) @ self.rest
            flat = ops.split(made, shapes, [space.dtype] * len(shapes))
            parts += [(View(i, 0, shape, (1,)), x) for i, shape, x in zip(self.left, shapes, flat, strict=True)]
        return assembled(space, parts, None)
