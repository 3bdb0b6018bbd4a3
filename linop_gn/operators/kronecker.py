"""Block-diagonal operators whose blocks are Kronecker products: what K-FAC makes of a curvature.

On the matrices V (outputs, inputs) of a block, the weight of a layer,

    Factored    V -> L V R                                   the matrix  L (x) R
    Spectral    V -> U ((U^T V W) * values) W^T              (U (x) W) diag(values) (U (x) W)^T

with L, R symmetric positive semi-definite, and U, W their eigenvectors. A factor may be a diagonal, whose eigenvectors
are the unit vectors. The inverse of a damped block is spectral,

    exact       1 / (l_i r_j + damping)
    heuristic   1 / ((l_i + sqrt(damping) / pi) (r_j + sqrt(damping) pi)),   pi^2 = (tr R / dim R) / (tr L / dim L),

the second the inverse of a Kronecker product again (Martens and Grosse, *Optimizing neural networks with
Kronecker-factored approximate curvature*, 2015, section 6.3), which damps more than it says.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from ..arguments import require_number
from ..dispatch import backend_of
from ..protocols import Array, Backend, Scalar, Vector, View
from ..records import memo, record, replace, static
from ..spaces import Space
from .base import LinearOperator
from .checks import array_of, symmetric_enough, values_of
from .places import Place, assembled

__all__ = ["Factored", "KroneckerBlocks", "Spectral", "positive", "traces"]


@record
class Factored:
    """L (x) R for each group: factors (groups, n, n), or their diagonals (groups, n)."""

    left: Array
    right: Array

    def product(self, xp: Any, V: Array) -> Array:
        """L V R."""
        return _times_right(xp, _times_left(xp, self.left, V), self.right)

    def trace(self, xp: Any) -> Array:
        """The sum over groups of tr L tr R."""
        return xp.sum(traces(xp, self.left) * traces(xp, self.right))

    def square(self, xp: Any) -> Array:
        """The square of the Frobenius norm."""
        return xp.sum(_squares(xp, self.left) * _squares(xp, self.right))

    def diagonal(self, xp: Any) -> Array:
        """The diagonal, as matrices."""
        return _diagonals(xp, self.left)[:, :, None] * _diagonals(xp, self.right)[:, None, :]

    def spectral(self, ops: Backend) -> Spectral:
        """The same by eigenvectors; eigenvalues that rounding cannot tell from zero are zero."""
        (l, U), (r, W) = _eigen(ops, self.left), _eigen(ops, self.right)
        return Spectral(U, W, l[:, :, None] * r[:, None, :], l, r)


@record
class Spectral:
    """(U (x) W) diag(values) (U (x) W)^T for each group; eigenvectors None are the unit vectors."""

    left: Array | None
    right: Array | None
    values: Array
    """(groups, outputs, inputs)."""
    left_values: Array | None = None
    right_values: Array | None = None
    """The eigenvalues of the factors, where ``values`` are their products."""

    def product(self, xp: Any, V: Array) -> Array:
        """U ((U^T V W) * values) W^T."""
        inside = self.values * self.in_basis(xp, V)
        if self.left is not None:
            inside = xp.matmul(self.left, inside)
        return inside if self.right is None else xp.matmul(inside, xp.matrix_transpose(self.right))

    def in_basis(self, xp: Any, V: Array) -> Array:
        """U^T V W."""
        if self.left is not None:
            V = xp.matmul(xp.matrix_transpose(self.left), V)
        return V if self.right is None else xp.matmul(V, self.right)

    def trace(self, xp: Any) -> Array:
        """The sum of the values."""
        return xp.sum(self.values)

    def square(self, xp: Any) -> Array:
        """The square of the Frobenius norm."""
        return xp.sum(self.values * self.values)

    def diagonal(self, xp: Any) -> Array:
        """The diagonal, as matrices."""
        made = self.values
        if self.left is not None:
            made = xp.matmul(self.left * self.left, made)
        return made if self.right is None else xp.matmul(made, xp.matrix_transpose(self.right * self.right))

    def spectral(self, ops: Backend) -> Spectral:
        """Itself."""
        return self

    def inverse(self, xp: Any, damping: Scalar, rule: str) -> Spectral:
        """The inverse of it, damped; zero where there is nothing to invert."""
        if rule == "heuristic":
            assert self.left_values is not None
            assert self.right_values is not None
            l, r = self.left_values, self.right_values
            means = [xp.mean(side, axis=-1, keepdims=True) for side in (l, r)]
            known = (means[0] > 0) & (means[1] > 0)
            pi = xp.where(known, xp.where(known, means[1], 1.0) / xp.where(known, means[0], 1.0), 1.0) ** 0.5
            root = damping**0.5
            sums = (l + root / pi)[:, :, None] * (r + root * pi)[:, None, :]
        else:
            sums = self.values + damping
        good = sums > 0
        return Spectral(self.left, self.right, xp.where(good, 1.0 / xp.where(good, sums, 1.0), 0.0 * sums))


@record
class KroneckerBlocks(LinearOperator):
    """A block-diagonal operator of Kronecker products, symmetric and positive semi-definite.

    ``blocks`` are :class:`Factored` or :class:`Spectral`, each at its place; on entries in none of them it is ``rest``.
    What :class:`~linop_gn.KFAC` is made into; of matrices of one's own, :meth:`of`.

    >>> import numpy as np, linop_gn as lg
    >>> L, R = np.array([[2.0, 1.0], [1.0, 2.0]]), np.diag([1.0, 2.0, 3.0])
    >>> K = lg.KroneckerBlocks.of(L, R)
    >>> bool(np.allclose(K.to_dense(), np.kron(L, R))), K.trace(), K.inverse(damping=1.0).psd
    (True, 24.0, True)
    """

    blocks: tuple[Any, ...]
    places: tuple[Place, ...] = static()
    domain: Space = static(default=None)
    notes: tuple[str, ...] = static(default=())
    """What there is to say of each block."""
    rest: Scalar = 0.0
    psd = True

    @classmethod
    def of(cls, left: Array, right: Array) -> KroneckerBlocks:
        """L (x) R for symmetric matrices (m, m) and (n, n): on the rows of V (m, n) one after the other.

        A factor may be the vector of its diagonal. Raises TypeError and ValueError for what is no symmetric matrix, or
        has a negative diagonal.
        """
        backend = backend_of(left)
        for name, factor in (("the left factor", left), ("the right factor", right)):
            shape = array_of(backend, factor, (1, 2), name)
            if len(set(shape)) > 1:
                raise ValueError(f"{name} has shape {shape}; expected (n, n), or (n,) for a diagonal.")
            Space.flat(shape[0], factor)  # refuses what is no real floating point
            host = values_of(backend, factor, name)
            if host is not None and len(shape) == 2:
                symmetric_enough(host, backend.eps(factor), name, "psd=True")
            if host is not None and ((host if len(shape) == 1 else host.diagonal()) < 0).any():
                raise ValueError(f"{name} has negative entries on its diagonal, so that it is not psd.")
        m, n = left.shape[0], right.shape[0]
        place = Place("", View(0, 0, (1, m, n), (0, n, 1)), 1)
        return cls((Factored(left[None, ...], right[None, ...]),), (place,), Space.flat(m * n, left))

    def matvec(self, v: Vector) -> Vector:
        xp, space = self.backend.namespace(), self.domain
        rows = v if len(v.shape) == 1 else v.T
        parts = []
        for block, place in zip(self.blocks, self.places, strict=True):
            V = place.read(space, rows)
            made = block.product(xp, self.backend.cast(V, self.backend.describe(_array(block))[1]))
            parts += place.written(space, self.backend.cast(made, space.dtype))
        made = assembled(space, parts, self.rest * rows)
        return made if len(v.shape) == 1 else made.T

    matmat = matvec

    def known_diagonal(self) -> Vector:
        """The diagonal (n,)."""
        parts = []
        for block, place in zip(self.blocks, self.places, strict=True):
            diagonal = block.diagonal(self.backend.namespace())
            parts += place.written(self.domain, self.backend.cast(diagonal, self.domain.dtype))
        return assembled(self.domain, parts, self.rest + self.domain.zeros())

    @property
    def missing(self) -> int:
        """How many entries are in no block."""
        return self.domain.size - sum(math.prod(place.sizes) for place in self.places)

    def trace(self) -> Scalar:
        """The trace."""
        return self._total("trace", self.rest)

    def frobenius_norm(self) -> Scalar:
        """The Frobenius norm."""
        return self.backend.sqrt(self._total("square", self.rest * self.rest))

    def _total(self, what: str, rest: Scalar) -> Scalar:
        xp = self.backend.namespace()
        zero = xp.sum(self.domain.zeros())
        return self.backend.item(sum((getattr(block, what)(xp) for block in self.blocks), zero + self.missing * rest))

    def spectral(self) -> KroneckerBlocks:
        """The same operator with its blocks by eigenvectors, which are computed once for all dampings."""
        slots = memo(self)
        if slots.made is None:
            blocks = tuple(block.spectral(self.backend) for block in self.blocks)
            made = replace(self, blocks=blocks)
            if not self.backend.is_concrete(made):
                return made
            slots.made = made
        return slots.made  # type: ignore[no-any-return]

    def report(self) -> str:
        """A table of the blocks: names, entries, factors, and what is not as one might expect."""
        names, shapes, notes = ["block"], ["factors"], [""]
        for block, place, note in zip(self.blocks, self.places, self.notes or ("",) * len(self.places), strict=True):
            names.append(place.name)
            shapes.append(_shape_of(block, place))
            notes.append(note)
        widths = [max(map(len, column)) for column in (names, shapes)]
        rows = [
            f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {note}".rstrip()
            for name, shape, note in zip(names, shapes, notes, strict=True)
        ]
        if self.missing:
            rows.append(f"{self.missing} entries that the outputs do not depend on are in no block.")
        return "\n".join(rows)

    def logdet(self, damping: Any = 0.0, relative: str | None = None) -> Scalar:
        """log det of the operator, damped as in :meth:`inverse`; minus infinity where it is singular."""
        made, xp = self.spectral(), self.backend.namespace()
        *levels, rest = made._levels(damping, relative)
        zero = xp.sum(self.domain.zeros())
        logs = [xp.sum(xp.log(b.values + level)) for b, level in zip(made.blocks, levels, strict=True)]
        logs += [self.missing * xp.log(zero + self.rest + rest)] if self.missing else []
        return self.backend.item(sum(logs, zero))

    def inverse(self, damping: Any = 0.0, rule: str = "exact", relative: str | None = None) -> KroneckerBlocks:
        """(K + damping I)^-1, by eigendecompositions of the factors.

        Parameters
        ----------
        damping
            A number >= 0, or a dict with one for each block's name (see :meth:`report`); entries in no block have the
            number, and none of a dict.
        rule
            ``"exact"``, or ``"heuristic"``: the factors damped apart, L + sqrt(damping) / pi and R + sqrt(damping) pi.
        relative
            ``"block"``: in multiples of the block's mean eigenvalue; ``"all"``: of the mean of all n of them.

        Where nothing is damped, directions without curvature have zeros, as in the pseudo-inverse. Eigenvectors that
        cannot be found in float32 are looked for in float64, with a warning.

        Raises
        ------
        TypeError, ValueError
            For another rule, a damping that is no finite number >= 0 or misses a block, and the heuristic rule for
            eigenvalues that are no products.
        """
        if rule not in ("exact", "heuristic"):
            raise ValueError(f"rule must be 'exact' or 'heuristic', got {rule!r}.")
        made, xp = self.spectral(), self.backend.namespace()
        if rule == "heuristic" and any(block.left_values is None for block in made.blocks):
            raise ValueError(
                "rule='heuristic' damps the factors of a Kronecker product, and the eigenvalues of this operator "
                "(lg.EKFAC) are no products: take rule='exact'."
            )
        *levels, rest = made._levels(damping, relative)
        blocks = tuple(block.inverse(xp, level, rule) for block, level in zip(made.blocks, levels, strict=True))
        rest = xp.sum(self.domain.zeros()) + self.rest + rest
        rest = xp.where(rest > 0, 1.0 / xp.where(rest > 0, rest, xp.ones_like(rest)), 0.0 * rest)
        return replace(self, blocks=blocks, rest=rest)

    def _levels(self, damping: Any, relative: str | None) -> list[Scalar]:
        """The damping of each block, and that of entries in none."""
        if relative not in (None, "block", "all"):
            raise ValueError(f"relative must be None, 'block' or 'all', got {relative!r}.")
        names = [place.name for place in self.places]
        if isinstance(damping, Mapping):
            if set(damping) != set(names):
                raise ValueError(f"damping names {sorted(damping)}; expected one for each of the blocks {names}.")
            given = [*(damping[name] for name in names), 0.0]
        else:
            given = [damping] * (len(names) + 1)
        for level in given:
            require_number("inverse", "damping", level)
        if relative is None:
            return given
        xp = self.backend.namespace()
        if relative == "all":
            mean = self._total("trace", self.rest) / self.domain.size
            return [level * mean for level in given]
        means = [
            block.trace(xp) / math.prod(place.sizes) for block, place in zip(self.blocks, self.places, strict=True)
        ]
        return [level * mean for level, mean in zip(given, [*means, self.rest], strict=True)]


def _shape_of(block: Any, place: Place) -> str:
    groups, outputs, inputs = place.sizes
    if isinstance(block, Factored):
        sides = [len(side.shape) == 3 for side in (block.left, block.right)]
    else:
        sides = [side is not None for side in (block.left, block.right)]
    made = f"{outputs}" if sides[0] else f"diagonal {outputs}"
    if inputs > 1 or sides[1]:
        made += f" x {inputs}" if sides[1] else f" x diagonal {inputs}"
    return made if groups == 1 else f"{groups} of {made}"


def _array(block: Any) -> Array:
    return block.values if isinstance(block, Spectral) else block.left


def _times_left(xp: Any, L: Array, V: Array) -> Array:
    return L[:, :, None] * V if len(L.shape) == 2 else xp.matmul(L, V)


def _times_right(xp: Any, V: Array, R: Array) -> Array:
    return V * R[:, None, :] if len(R.shape) == 2 else xp.matmul(V, R)


def _diagonals(xp: Any, factor: Array) -> Array:
    return factor if len(factor.shape) == 2 else xp.linalg.diagonal(factor)


def traces(xp: Any, factor: Array) -> Array:
    """The trace of each group (groups,)."""
    return xp.sum(_diagonals(xp, factor), axis=-1)


def _squares(xp: Any, factor: Array) -> Array:
    return xp.sum(xp.sum(factor * factor, axis=-1), axis=tuple(range(1, len(factor.shape) - 1)))


def _eigen(ops: Backend, factor: Array) -> tuple[Array, Array | None]:
    """Eigenvalues (groups, n) and eigenvectors (groups, n, n); of a diagonal itself, and None."""
    xp = ops.namespace()
    if len(factor.shape) == 2:
        return xp.where(factor > 0, factor, 0.0 * factor), None
    values, vectors = _of_groups(ops, 0.5 * (factor + xp.matrix_transpose(factor)))
    return positive(ops, values), vectors


def positive(ops: Backend, values: Array) -> Array:
    """The eigenvalues of each group (groups, ...), those that rounding cannot tell from zero as zeros."""
    xp, axes = ops.namespace(), tuple(range(1, len(values.shape)))
    least = max(values.shape[1:]) * ops.eps(values) * xp.max(values, axis=axes, keepdims=True)
    return xp.where(values > least, values, 0.0 * values)


def _of_groups(ops: Backend, factor: Array) -> tuple[Array, Array]:
    """Those of all groups at once where there are several, unless that fails for one of them."""
    xp = ops.namespace()
    if factor.shape[0] > 1:
        with suppress(RuntimeError, np.linalg.LinAlgError):  # of torch, of NumPy
            values, vectors = xp.linalg.eigh(factor)
            if not ops.is_concrete(values) or ops.all_finite(xp.reshape(values, (-1,))):
                return values, vectors
    pairs = [_eigh(ops, factor[i, ...]) for i in range(factor.shape[0])]
    values, vectors = (xp.stack(list(side)) for side in zip(*pairs, strict=True))
    return values, vectors


def _eigh(ops: Backend, matrix: Array) -> tuple[Array, Array]:
    values, vectors, found = ops.eigh(matrix)
    if ops.is_concrete(found) and not bool(found):
        host = np.asarray(ops.to_numpy(matrix), np.float64)
        if not np.isfinite(host).all():
            raise ValueError(
                "a Kronecker factor holds NaN or infinity: the model's gradients are not finite at these parameters, "
                "or squares of them overflow."
            )
        warnings.warn(
            f"the eigenvectors of a factor of {matrix.shape[0]} x {matrix.shape[0]} were not found in "
            f"{ops.describe(matrix)[1]}, and were computed in float64.",
            RuntimeWarning,
            stacklevel=2,
        )
        _, dtype, device = ops.describe(matrix)
        values, vectors = (ops.asarray(x, dtype, device) for x in np.linalg.eigh(host))
    return values, vectors
