"""Vectors in the leaves that a backward pass made, before they are packed.

To pack a long vector is to write it once more, into memory that has to be found for it. Where its leaves are long,
inner products are taken of these, and where nobody else has them they are written over.
"""

from __future__ import annotations

from typing import Any

from ..operators.base import LinearOperator
from ..operators.damped import undamped
from ..protocols import Array, Backend, Scalar, Vector
from ..records import record, replace, static
from ..spaces import Space
from .pieces import Piece, ggn

__all__ = ["Unpacked", "dots", "has_long_leaves", "own", "packed", "residual", "unpacked"]

_LONG = 1 << 15
"""Entries of a leaf, in the mean, from which on a call for each takes less time than to copy them."""


@record
class Unpacked:
    """``scale`` times the vector (n,) whose leaves these are."""

    leaves: tuple[Array, ...]
    scale: Scalar
    space: Space = static()

    def packed(self) -> Vector:
        """The vector, new."""
        return self.space.backend.scale(self.scale, self.space.join(list(self.leaves)))


def packed(v: Any) -> Any:
    """``v`` itself, or the vector that is unpacked."""
    return v.packed() if isinstance(v, Unpacked) else v


def own(ops: Backend, v: Any) -> Vector:
    """A copy of a vector that may be unpacked."""
    return v.packed() if isinstance(v, Unpacked) else ops.copy(v)


def unpacked(space: Space, linearization: Any, leaves: list[Array]) -> Unpacked | None:
    """What a linearisation of the space's parameters made, unpacked; None where that had better be packed."""
    fit = has_long_leaves(space) and linearization.owns(leaves)
    return Unpacked(tuple(leaves), 1.0, space) if fit else None


def has_long_leaves(space: Space) -> bool:
    """Whether to pack the space's leaves takes longer than a call for each of them."""
    alike = space.layout is None and {space.dtype} == {*space.dtypes}
    return alike and space.size >= _LONG * len(space.shapes)


def dots(ops: Backend, *pairs: tuple[Any, Any]) -> tuple[Scalar, ...]:
    """The inner product of each pair of vectors, of which some may be unpacked: those of (n,) then."""
    held = {id(x): x for pair in pairs for x in pair}
    spaces = [x.space for x in held.values() if isinstance(x, Unpacked)]
    if not spaces:
        return ops.dots(*pairs)
    xp, space = ops.namespace(), spaces[0]
    leaves = {key: x.leaves if isinstance(x, Unpacked) else space.split(x) for key, x in held.items()}
    flat = {key: [xp.reshape(leaf, (-1,)) for leaf in parts] for key, parts in leaves.items()}
    each = [ops.dots(*((flat[id(x)][i], flat[id(y)][i]) for x, y in pairs)) for i in range(len(space.shapes))]
    sizes = {key: ops.item(ops.detach(x.scale)) if isinstance(x, Unpacked) else 1.0 for key, x in held.items()}
    sums = (sum(of) for of in zip(*each, strict=True))
    return tuple(sizes[id(x)] * sizes[id(y)] * total for (x, y), total in zip(pairs, sums, strict=True))


def residual(ops: Backend, operator: LinearOperator, x: Vector, b: Vector, inverse: Scalar) -> Any:
    """``inverse`` b - A x; unpacked where A is a damped Gauss-Newton operator of one batch, and leaves are long."""
    (inner, damping), space = undamped(operator), operator.domain
    pieces: Any = getattr(inner, "pieces", ()) if getattr(inner, "product", None) is ggn else ()
    of_one = len(pieces) == 1 and isinstance(pieces[0], Piece) and not pieces[0].stacked and inner.reduction is None
    # Several dampings may have been added in less precision than a product adds them.
    exact = type(damping) is float or getattr(operator, "operator", None) is inner
    if not (of_one and exact and len(x.shape) == 1 and "in_place" in ops.capabilities and has_long_leaves(space)):
        return ops.axpby(inverse, b, -1.0, operator.apply(x))
    at = space.split(x)
    made = pieces[0].ggn(at, scale=inner.scale)  # type: ignore[attr-defined]
    found = unpacked(space, pieces[0].linearization, made)
    if found is None:
        return ops.axpby(inverse, b, -1.0, ops.axpy(damping, x, space.join(made)))
    each = zip(made, at, space.split(b), strict=True)
    r = (ops.axpby(inverse, given, -1.0, ops.axpy(damping, part, leaf)) for leaf, part, given in each)
    return replace(found, leaves=tuple(r))
