"""Sums, products, multiples and adjoints of operators, and what stays known about them.

Rules: a sum is symmetric (PSD) if both terms are; ``c A`` is PSD if A is and c
is known to be at least 0; a product is symmetric (PSD) if it reads the same
from both ends, B^T M B with symmetric (PSD) M. So J^T H J + c I is known to
be PSD, which a solver or a Cholesky factorisation may rely on.
"""

from __future__ import annotations

import math
from typing import Any

from ..arguments import known_float
from ..protocols import Scalar, Vector
from ..records import record, static
from ..spaces import Space
from .base import LinearOperator
from .partition import LeafBlock, Partition

__all__ = ["Adjoint", "Modified", "Product", "Scaled", "Sum"]


@record
class Sum(LinearOperator):
    """A + B."""

    left: LinearOperator
    right: LinearOperator

    @property
    def domain(self) -> Space:
        return _richer(self.left.domain, self.right.domain)

    @property
    def codomain(self) -> Space:
        return _richer(self.left.codomain, self.right.codomain)

    @property
    def symmetric(self) -> bool:
        return self.left.symmetric and self.right.symmetric

    @property
    def psd(self) -> bool:
        return self.left.psd and self.right.psd

    def matvec(self, v: Vector) -> Vector:
        return self.backend.axpy(1.0, self.left.apply(v), self.right.apply(v))

    def rmatvec(self, u: Vector) -> Vector:
        return self.backend.axpy(1.0, self.left.rapply(u), self.right.rapply(u))

    matmat, rmatmat = matvec, rmatvec

    @property
    def leaf_blocks(self) -> tuple[LeafBlock, ...] | None:
        return self.left.leaf_blocks if self.left.leaf_blocks == self.right.leaf_blocks else None

    @property
    def partition(self) -> Partition | None:
        return self.left.partition if self.left.partition == self.right.partition else None

    def known_diagonal(self) -> Vector | None:
        left = self.left.known_diagonal()
        right = None if left is None else self.right.known_diagonal()
        return None if right is None else self.backend.axpy(1.0, left, right)


@record
class Modified(LinearOperator):
    """An operator with the spaces, the symmetry and the partition of the one that it is made of."""

    operator: LinearOperator

    @property
    def domain(self) -> Space:
        return self.operator.domain

    @property
    def codomain(self) -> Space:
        return self.operator.codomain

    @property
    def symmetric(self) -> bool:
        return self.operator.symmetric

    @property
    def leaf_blocks(self) -> tuple[LeafBlock, ...] | None:
        return self.operator.leaf_blocks

    @property
    def partition(self) -> Partition | None:
        return self.operator.partition


@record
class Scaled(Modified):
    """c A; the scalar is data."""

    scalar: Scalar
    nonnegative: bool = static(default=False)

    @property
    def psd(self) -> bool:
        return self.nonnegative and self.operator.psd

    def matvec(self, v: Vector) -> Vector:
        return self.backend.scale(self.scalar, self.operator.apply(v))

    def rmatvec(self, u: Vector) -> Vector:
        return self.backend.scale(self.scalar, self.operator.rapply(u))

    matmat, rmatmat = matvec, rmatvec

    def known_diagonal(self) -> Vector | None:
        inner = self.operator.known_diagonal()
        return None if inner is None else self.backend.scale(self.scalar, inner)

    def known_frobenius_norm(self) -> Scalar | None:
        inner = self.operator.known_frobenius_norm()
        return None if inner is None else abs(self.backend.item(self.scalar)) * inner

    def known_logdet(self, damping: Scalar) -> Scalar | None:
        """n log c + log det (A + damping / c), where c is known not to be negative."""
        c, ops = self.scalar, self.backend
        if not self.nonnegative or (ops.is_concrete(c) and known_float(c) == 0):
            return None
        inner = self.operator.known_logdet(damping / c)
        if inner is None:
            return None
        return inner + self.domain.size * ops.item(ops.namespace().log(c * self.domain.one))


@record
class Product(LinearOperator):
    """A_1 A_2 ... A_k, applied from the right."""

    factors: tuple[LinearOperator, ...]
    symmetric: bool = static(default=False)
    psd: bool = static(default=False)

    @property
    def domain(self) -> Space:
        return self.factors[-1].domain

    @property
    def codomain(self) -> Space:
        return self.factors[0].codomain

    def matvec(self, v: Vector) -> Vector:
        for factor in reversed(self.factors):
            v = factor.apply(v)
        return v

    def rmatvec(self, u: Vector) -> Vector:
        for factor in self.factors:
            u = factor.rapply(u)
        return u

    matmat, rmatmat = matvec, rmatvec


@record
class Adjoint(LinearOperator):
    """A^T."""

    operator: LinearOperator

    @property
    def domain(self) -> Space:
        return self.operator.codomain

    @property
    def codomain(self) -> Space:
        return self.operator.domain

    def matvec(self, v: Vector) -> Vector:
        return self.operator.rapply(v)

    def rmatvec(self, u: Vector) -> Vector:
        return self.operator.apply(u)

    matmat, rmatmat = matvec, rmatvec

    def known_diagonal(self) -> Vector | None:
        return self.operator.known_diagonal()

    def known_frobenius_norm(self) -> Scalar | None:
        return self.operator.known_frobenius_norm()


def add(left: LinearOperator, right: LinearOperator) -> LinearOperator:
    """A + B, for operators between the same spaces."""
    for side, a, b in (("domain", left.domain, right.domain), ("codomain", left.codomain, right.codomain)):
        if not a.agrees(b):
            raise ValueError(f"cannot add {left!r} and {right!r}: their {side}s differ, {a!r} and {b!r}.")
    return Sum(left, right)


def product(left: LinearOperator, right: LinearOperator) -> LinearOperator:
    """A B, where B's products are vectors that A takes."""
    if not left.domain.agrees(right.codomain):
        raise ValueError(
            f"cannot compose {left!r} @ {right!r}: the left one takes vectors of {left.domain!r}, "
            f"the right one gives vectors of {right.codomain!r}."
        )
    factors = (*_factors(left), *_factors(right))
    mirrored = all(_mirror(factors[i], factors[-1 - i]) for i in range(len(factors) // 2))
    middle = factors[len(factors) // 2] if len(factors) % 2 else None
    symmetric = mirrored and (middle is None or middle.symmetric)
    psd = mirrored and (middle is None or middle.psd)
    return Product(factors, symmetric, psd)


def scale(operator: LinearOperator, scalar: Scalar) -> Any:
    """c A for a real number or 0-d array c."""
    if not isinstance(scalar, (int, float)):
        if not operator.backend.is_array(scalar) and not hasattr(scalar, "__float__"):
            return NotImplemented
        shape = tuple(getattr(scalar, "shape", ()))
        if shape:
            raise ValueError(f"an operator can be multiplied by a number, not by an array of shape {shape}; use @.")
        if not operator.backend.is_concrete(scalar):
            return Scaled(operator, scalar)
    value = known_float(scalar)
    if not math.isfinite(value):
        raise ValueError(f"an operator cannot be multiplied by {value}.")
    return Scaled(operator, scalar, nonnegative=value >= 0)


def adjoint(operator: LinearOperator) -> LinearOperator:
    """A^T, undoing rather than stacking what is already there."""
    if operator.symmetric:
        return operator
    if isinstance(operator, Adjoint):
        return operator.operator
    if isinstance(operator, Product):
        return Product(tuple(adjoint(factor) for factor in reversed(operator.factors)))
    return Adjoint(operator)


def _factors(operator: LinearOperator) -> tuple[LinearOperator, ...]:
    return operator.factors if isinstance(operator, Product) else (operator,)


def _mirror(a: LinearOperator, b: LinearOperator) -> bool:
    if a is b:
        return a.symmetric
    return (isinstance(a, Adjoint) and a.operator is b) or (isinstance(b, Adjoint) and b.operator is a)


def _richer(a: Space, b: Space) -> Space:
    return b if a.is_flat and not b.is_flat else a


LinearOperator._sum, LinearOperator._product = add, product
LinearOperator._multiple, LinearOperator._adjoint = scale, adjoint
