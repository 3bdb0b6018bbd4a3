"""The identity, and damping: A + lambda I with lambda as data.

Levenberg (1944) and Tikhonov damping. A solver that reuses one Krylov basis for
many dampings looks for :class:`Damped` and takes ``operator`` and ``damping``
apart; preconditioners are given the damped operator, so they see the live
damping.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..arguments import known_float
from ..protocols import Scalar, Vector
from ..records import record, static
from ..spaces import Space, wide
from .algebra import Modified, Scaled, Sum
from .base import LinearOperator, require_operator
from .checks import require_damping
from .norms import norm_with_diagonal
from .partition import LeafBlock, Partition

__all__ = ["Damped", "Identity", "leaf_blocks_of", "partition_of", "shifted", "undamped"]


@record
class Identity(LinearOperator):
    """I on a space.

    >>> import numpy as np, linop_gn as lg
    >>> lg.Identity(lg.Space.of(np.zeros(2))) @ np.array([1.0, 2.0])
    array([1., 2.])
    """

    space: Space = static()

    @property
    def domain(self) -> Space:
        return self.space

    @property
    def psd(self) -> bool:
        return True

    def matvec(self, v: Vector) -> Vector:
        return self.backend.copy(v)

    matmat = matvec

    def known_diagonal(self) -> Vector | None:
        made: Vector = self.backend.namespace().ones_like(self.space.zeros())
        return made

    def known_frobenius_norm(self) -> Scalar | None:
        return math.sqrt(self.space.size)


@record
class Damped(Modified):
    """A + damping * I, for a square operator and damping >= 0 (a number or 0-d array: data, not program).

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Damped(lg.Diagonal(np.array([1.0, 2.0])), 0.5)
    >>> A @ np.array([1.0, 1.0]), A.psd
    (array([1.5, 2.5]), True)

    Raises
    ------
    ValueError
        For an operator that is not square, or a damping that is negative or not finite.
    """

    damping: Scalar

    def __post_init__(self) -> None:
        require_operator("Damped", self.operator)
        if not self.operator.domain.agrees(self.operator.codomain):
            raise ValueError(f"only a square operator can be damped, got {self.operator!r}.")
        advice = "For several of them there are lg.krylov and lg.MultiShiftCG; for one an unknown, add a lg.Diagonal."
        require_damping(self.operator.backend, self.damping, advice)

    @property
    def psd(self) -> bool:
        return self.operator.psd

    def matvec(self, v: Vector) -> Vector:
        return self.backend.axpy(self.damping, v, self.operator.apply(v))

    def rmatvec(self, u: Vector) -> Vector:
        return self.backend.axpy(self.damping, u, self.operator.rapply(u))

    matmat, rmatmat = matvec, rmatvec

    def known_diagonal(self) -> Vector | None:
        inner = self.operator.known_diagonal()
        ones = self.backend.namespace().ones_like
        return None if inner is None else self.backend.axpy(self.damping, ones(inner), inner)

    def known_frobenius_norm(self) -> Scalar | None:
        """Of a psd operator whose norm and diagonal are known."""
        inner = self.operator.known_frobenius_norm() if self.psd else None
        diagonal = None if inner is None else self.operator.known_diagonal()
        if diagonal is None:
            return None
        diagonal = self.backend.cast(diagonal, wide(self.dtype))
        added = self.backend.scale(self.damping, self.backend.namespace().ones_like(diagonal))
        return norm_with_diagonal(self.backend, inner, diagonal, added)

    def known_logdet(self, damping: Scalar) -> Scalar | None:
        return self.operator.known_logdet(_sum(self.operator, damping, self.damping))


def undamped(operator: LinearOperator) -> tuple[LinearOperator, Scalar]:
    """``(A, damping)`` for A + damping * I however it was written; ``(operator, 0.0)`` where nothing was added.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Diagonal(np.array([1.0, 2.0]))
    >>> undamped(lg.Damped(A + 0.5 * lg.Identity(A.domain), 1.0)) == (A, 1.5)
    True
    """
    if isinstance(operator, Damped):
        inner, damping = undamped(operator.operator)
        return inner, _sum(inner, damping, operator.damping)
    if isinstance(operator, Sum):
        for one, other in ((operator.left, operator.right), (operator.right, operator.left)):
            added = _multiple_of_identity(other)
            if added is not None:
                inner, damping = undamped(one)
                return inner, _sum(inner, damping, added)
    return operator, 0.0


def shifted(operator: LinearOperator) -> tuple[LinearOperator, Scalar]:
    """:func:`undamped`, with a number where it is known: it is added to small arrays, which may be the host's."""
    inner, damping = undamped(operator)
    return inner, known_float(damping) if operator.backend.is_concrete(damping) else damping


def _sum(operator: LinearOperator, one: Scalar, other: Scalar) -> Scalar:
    """Of two dampings, to the digits that products have: they add both, in the operator's dtype."""

    def precise(damping: Any) -> Any:
        if isinstance(damping, (int, float)):
            return damping
        if isinstance(damping, (np.ndarray, np.generic)):
            return damping.item()
        return damping + 0.0 * operator.backend.cast(damping, operator.dtype)  # in the wider of both dtypes

    return one + other if isinstance(one, float) and one == 0 else precise(one) + precise(other)


def partition_of(operator: LinearOperator) -> Partition | None:
    """The operator's blocks, damped or not; None where it knows of none."""
    known = operator.partition
    return undamped(operator)[0].partition if known is None else known


def leaf_blocks_of(operator: LinearOperator) -> tuple[LeafBlock, ...] | None:
    """The operator's blocks of whole leaves, damped or not, in the order of their first ones; None: none known."""
    known = operator.leaf_blocks
    known = undamped(operator)[0].leaf_blocks if known is None else known
    return known and tuple(sorted((b for b in known if b.space.size), key=lambda block: min(block.leaves)))


def _multiple_of_identity(operator: LinearOperator) -> Any:
    if isinstance(operator, Identity):
        return 1.0
    if isinstance(operator, Scaled) and isinstance(operator.operator, Identity):
        return operator.scalar
    return None
