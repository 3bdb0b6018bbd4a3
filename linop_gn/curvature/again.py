"""Whether parameters are those that a point was made of: loops ask for gradient, operator and value in turn.

Arrays of eager frameworks may have been written to, so that their values tell; and derivatives of what a point makes go
to the leaves that it was given, so that equal leaves are not enough where somebody records.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..protocols import Array, Backend
from ..records import memo
from .point import Point

__all__ = ["alone", "are", "holds", "same_leaves"]


def same_leaves(point: Point, leaves: list[Array], unrecorded: bool) -> bool:
    """Whether its parameters were detached from these leaves, to which derivatives go; or none, if ``unrecorded``."""
    origin = memo(point).origin
    return unrecorded if origin is None else not unrecorded and are(origin[1], leaves)


def holds(point: Point, leaves: list[Array]) -> bool:
    """Whether its parameters are equal to these leaves, and numbers."""
    ops, space = point.space.backend, point.space
    if space.in_parts:
        return float(ops.read(ops.max_abs(point.where - ops.detach(space.join(leaves))))) == 0
    return all(map(ops.same, space.split(point.where), leaves))


def are(these: Iterable[Array], those: Iterable[Array]) -> bool:
    """Whether they are the same arrays."""
    return all(a is b for a, b in zip(these, those, strict=True))


def alone(ops: Backend, leaves: list[Array]) -> bool:
    """Whether nobody records what is made of these leaves."""
    bare = ops.pack([ops.namespace().reshape(leaf, (-1,))[:0] for leaf in leaves], ops.describe(leaves[0])[1])
    return ops.detach(bare) is bare
