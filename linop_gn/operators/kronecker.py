"""Block-diagonal operators whose blocks are Kronecker products: what K-FAC makes of a curvature.

The blocks are those of :mod:`linop_gn.operators.factored`, each at its place among the parameters
(:mod:`linop_gn.operators.places`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..arguments import known_float
from ..dispatch import backend_of
from ..protocols import Array, Scalar, Vector, View
from ..records import memo, record, replace, static
from ..spaces import Space, wide
from .base import LinearOperator
from .checks import array_of, require_damping, symmetric_enough, values_of
from .factored import Factored, Spectral
from .norms import root_of_squares
from .partition import Partition
from .places import Place, assembled, partition_of_places

__all__ = ["KroneckerBlocks"]


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
    """What there is to say of each block, and, after these, of all of them."""
    rest: Scalar = 0.0
    estimated: int = static(default=0)
    """How many blocks are estimates."""
    dampings: tuple[Scalar, ...] | None = None
    """Of an inverse: what was added to each block."""
    psd = True

    @classmethod
    def of(cls, left: Array, right: Array) -> KroneckerBlocks:
        """L (x) R for symmetric matrices (m, m) and (n, n): on the rows of V (m, n) one after the other.

        A factor may be the vector of its diagonal. Raises TypeError and ValueError for what is no symmetric matrix, or
        has a negative diagonal; that a factor has no negative eigenvalue is seen where these are computed.
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
        made = assembled(space, parts, self.rest * rows if self.missing else rows)
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
    def partition(self) -> Partition | None:
        """The blocks, and what is in none of them; None where a weight is cut out of a leaf across its rows."""
        return partition_of_places(self.domain, self.places)

    @property
    def missing(self) -> int:
        """How many entries are in no block."""
        return self.domain.size - sum(math.prod(place.sizes) for place in self.places)

    def trace(self) -> Scalar:
        """The trace."""
        return self.backend.item(
            sum((b.trace(self.backend) for b in self.blocks), self.domain.one * (self.missing * self.rest))
        )

    def frobenius_norm(self) -> Scalar:
        """The Frobenius norm."""
        rest = self.backend.item(self.domain.one * (math.sqrt(self.missing) * self.rest))
        return root_of_squares(self.backend, rest, *(block.norm(self.backend) for block in self.blocks))

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

    def root(self) -> KroneckerBlocks:
        """The symmetric psd R with R R = this operator: of an inverse, R z has it for covariance where z ~ N(0, I).

        >>> import numpy as np, linop_gn as lg
        >>> M = lg.KroneckerBlocks.of(np.array([[2.0, 1.0], [1.0, 2.0]]), np.diag([1.0, 2.0])).inverse(0.1)
        >>> bool(np.allclose((M.root() @ M.root()).to_dense(), M.to_dense()))
        True
        """
        made, xp = self.spectral(), self.backend.namespace()
        blocks = tuple(block.root(xp) for block in made.blocks)
        rest = self.backend.item(xp.sqrt(self.domain.one * self.rest))
        return KroneckerBlocks(blocks, self.places, self.domain, self.notes, rest, self.estimated)

    def report(self) -> str:
        """A table of the blocks: names, entries, factors, and what is not as one might expect."""
        count = len(self.places)
        names, shapes, notes = ["block"], ["factors"], [""]
        for block, place, note in zip(self.blocks, self.places, self.notes[:count] or ("",) * count, strict=True):
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
        return "\n".join([*rows, *self.notes[count:]])

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}; {self.described()})"

    def described(self) -> str:
        """How many blocks there are, how many of them are estimated, and at which damping an inverse is."""
        count = len(self.blocks)
        made = f"{count} block{'s' * (count != 1)}" + f", {self.estimated} estimated" * (self.estimated > 0)
        if self.dampings is None:
            return made
        batched = any(len(getattr(level, "shape", ())) for level in self.dampings)
        if batched or not self.dampings or not self.backend.is_concrete(self.dampings):
            return f"{made}, inverse"
        low, high = (f"{side(map(known_float, self.dampings)):.3g}" for side in (min, max))
        return f"{made}, inverse at damping {low}" + f" to {high}" * (low != high)

    def logdet(self, damping: Any = 0.0, relative: str | None = None) -> Scalar:
        """log det of the operator, damped as in :meth:`inverse`; minus infinity where it is singular."""
        return self.logdet_at(self.levels(damping, relative))

    def logdet_at(self, levels: list[Scalar]) -> Scalar:
        """:meth:`logdet` with these added to the blocks, and to entries in none."""
        made, xp, one, (*levels, rest) = self.spectral(), self.backend.namespace(), self.domain.one, levels
        with np.errstate(divide="ignore"):
            logs = [xp.sum(xp.log(b.values + level)) for b, level in zip(made.blocks, levels, strict=True)]
            logs += [self.missing * xp.log(one * (self.rest + rest))] if self.missing else []
        return self.backend.item(sum(logs, 0.0 * one))

    def known_logdet(self, damping: Scalar) -> Scalar:
        """:meth:`logdet`."""
        return self.logdet(damping)

    def known_frobenius_norm(self) -> Scalar:
        """:meth:`frobenius_norm`."""
        return self.frobenius_norm()

    def inverse(self, damping: Any = 0.0, rule: str = "exact", relative: str | None = None) -> KroneckerBlocks:
        """(K + damping I)^-1, by eigendecompositions of the factors.

        Parameters
        ----------
        damping
            A number >= 0, or a mapping with one for each block's name (see :meth:`report`); entries in no block have
            the number, and none of a mapping.
        rule
            ``"exact"``, or ``"heuristic"``: the factors damped apart, L + sqrt(damping) / pi and R + sqrt(damping) pi.
        relative
            ``"block"``: in multiples of the block's mean eigenvalue; ``"all"``: of the mean of all n of them.

        Where nothing is damped, directions without curvature have zeros, as in the pseudo-inverse, and a warning names
        the blocks that have such. Eigenvectors that cannot be found in float32 are looked for in float64, with a
        warning.

        Raises
        ------
        TypeError, ValueError
            For another rule, a damping that is no finite number >= 0 or misses a block, the heuristic rule for
            eigenvalues that are no products, and factors with negative eigenvalues.
        """
        return self.inverse_at(self.levels(damping, relative), rule, tell=True)

    def inverse_at(self, levels: list[Scalar], rule: str, tell: bool = False) -> KroneckerBlocks:
        """:meth:`inverse` with these added to the blocks, and to entries in none; ``tell``: with its warning."""
        if rule not in ("exact", "heuristic"):
            raise ValueError(f"rule must be 'exact' or 'heuristic', got {rule!r}.")
        made, xp, (*levels, rest) = self.spectral(), self.backend.namespace(), levels
        if rule == "heuristic" and any(block.left_values is None for block in made.blocks):
            raise ValueError(
                "rule='heuristic' damps the factors of a Kronecker product, and the eigenvalues of this operator "
                "(lg.EKFAC) are no products: take rule='exact'."
            )
        if tell:
            made._warn_where_singular(levels)
        blocks = tuple(block.inverse(xp, level, rule) for block, level in zip(made.blocks, levels, strict=True))
        rest = self.domain.one * (self.rest + rest)
        rest = xp.where(rest > 0, 1.0 / xp.where(rest > 0, rest, xp.ones_like(rest)), 0.0 * rest)
        return replace(self, blocks=blocks, rest=rest, dampings=tuple(levels))

    def _warn_where_singular(self, levels: list[Scalar]) -> None:
        """Of entries in no block nothing is said: they are zero whatever the data are, and the report has them."""
        ops, found = self.backend, []
        for block, place, level in zip(self.blocks, self.places, levels, strict=True):
            if ops.is_concrete((block.values, level)) and known_float(level) == 0 and 0 not in block.values.shape:
                xp = ops.namespace()
                zeros = int(xp.sum(xp.where(block.values > 0, 0.0 * block.values, xp.ones_like(block.values))))
                found += [f"{place.name or 'the only one'} ({zeros} of {math.prod(place.sizes)})"] * (zeros > 0)
        if found:
            warnings.warn(
                f"inverse without damping: blocks have eigenvalues of zero, {', '.join(found)}, where the inverse is "
                "zero, as the pseudo-inverse is; give a damping.",
                RuntimeWarning,
                stacklevel=4,
            )

    def levels(self, damping: Any, relative: str | None = None) -> list[Scalar]:
        """The damping of each block, and that of entries in none."""
        if relative not in (None, "block", "all"):
            raise ValueError(f"relative must be None, 'block' or 'all', got {relative!r}.")
        names = [place.name for place in self.places]
        if isinstance(damping, Mapping):
            if set(damping) != set(names):
                raise ValueError(
                    f"damping names {list(damping)}; expected one for each of the blocks {names}: "
                    "{name: default for name in names} | damping has a default for the others."
                )
            given = [*(self._number(damping[name]) for name in names), 0.0]
        else:
            given = [self._number(damping)] * (len(names) + 1)
        if relative is None:
            return given
        if relative == "all":
            mean = self.trace() / self.domain.size
            return [level * mean for level in given]
        means = [
            self.backend.item(block.trace(self.backend)) / max(1, math.prod(place.sizes))
            for block, place in zip(self.blocks, self.places, strict=True)
        ]
        return [level * mean for level, mean in zip(given, [*means, self.rest], strict=True)]

    def _number(self, damping: Any) -> Scalar:
        """A damping as one number of Python's or of the operator's own framework."""
        ops = self.backend
        require_damping(ops, damping, "A mapping has one for each block's name: see report().")
        if isinstance(damping, (int, float, np.number, np.ndarray)):
            return float(damping)
        if not ops.is_array(damping):
            kind = f"{type(damping).__module__}.{type(damping).__qualname__}"
            raise TypeError(f"damping is a {kind}, and the operator one of {ops.name}: write float(damping).")
        return ops.cast(ops.namespace().reshape(damping, ()), wide(self.dtype))


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
