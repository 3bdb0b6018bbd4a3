"""A[I, I]: a symmetric or square operator on some of its entries, the others held at zero.

Of a curvature it is that of the parameters that may move: a layer, the weights that are left after pruning, what
influences a prediction. A product is one of A, on a vector with zeros in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from ..protocols import Array, Vector
from ..records import fields, fill, rebuild, record, static
from ..spaces import Space
from .base import LinearOperator, require_operator

__all__ = ["Submatrix"]


@record
class Submatrix(LinearOperator):
    """Rows and columns of a square operator.

    Parameters
    ----------
    operator
        A, whose domain is its codomain.
    at
        Leaf names or shell patterns of them, one or several: vectors are then flat dicts of these leaves. Or entries of
        the flat vector: whole numbers, a mask (n,), a slice; vectors are flat arrays in that order.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Dense(np.arange(9.0).reshape(3, 3))
    >>> lg.Submatrix(A, [2, 0]).to_dense()
    array([[8., 6.],
           [2., 0.]])

    Raises
    ------
    TypeError, ValueError, IndexError
        For an operator that is not square, names that match no leaf, entries that are there twice or not at all.
    """

    operator: LinearOperator
    places: Array
    """Where each entry of the small vector comes from."""
    back: Array
    """Where each entry of the large vector comes from: the number after the last stands for zero."""
    domain: Space = static(default=None)

    def __init__(self, operator: Any, at: Any) -> None:
        require_operator("Submatrix", operator)
        space, ops = operator.domain, operator.backend
        if not space.agrees(operator.codomain):
            raise ValueError(f"Submatrix needs a square operator, got {operator!r}.")
        places, domain = _chosen(space, at)
        back = np.full(space.size, len(places))
        back[places] = np.arange(len(places))
        dtype = "int32" if space.size < 2**31 else "int64"
        index = {"places": places, "back": back}
        arrays = {name: ops.asarray(part.astype(dtype), dtype, space.device) for name, part in index.items()}
        fill(self, operator=operator, domain=domain, **arrays)

    def _prepare(self) -> LinearOperator:
        return rebuild(Submatrix, fields(self) | {"operator": self.operator.prepare()})

    @property
    def codomain(self) -> Space:
        return self.domain

    @property
    def symmetric(self) -> bool:
        return self.operator.symmetric

    @property
    def psd(self) -> bool:
        return self.operator.psd

    def matvec(self, v: Vector) -> Vector:
        return self._within(self.operator.apply(self._spread(v)))

    def rmatvec(self, u: Vector) -> Vector:
        return self._within(self.operator.rapply(self._spread(u)))

    matmat, rmatmat = matvec, rmatvec

    def known_diagonal(self) -> Vector | None:
        inner = self.operator.known_diagonal()
        return None if inner is None else self._within(inner)

    def _spread(self, v: Vector) -> Vector:
        xp = self.backend.namespace()
        return xp.take(xp.concat([v, xp.zeros_like(v[:1])]), self.back, axis=0)

    def _within(self, v: Vector) -> Vector:
        return self.backend.namespace().take(v, self.places, axis=0)


def _chosen(space: Space, at: Any) -> tuple[np.ndarray[Any, Any], Space]:
    """The entries, and the space of vectors of them."""
    if isinstance(at, str) or (isinstance(at, Sequence) and at and all(isinstance(name, str) for name in at)):
        patterns = [at] if isinstance(at, str) else list(at)
        for pattern in patterns:
            if not any(name == pattern or fnmatchcase(name, pattern) for name in space.names):
                raise ValueError(f"Submatrix: {pattern!r} matches no leaf; there are {list(space.names)}.")
        leaves = [i for i, name in enumerate(space.names) if any(name == p or fnmatchcase(name, p) for p in patterns)]
        where = [space.slices[space.names[i]] for i in leaves]
        return np.concatenate([np.arange(s.start, s.stop) for s in where]), space.part(tuple(leaves))
    space.require_whole("Submatrix: the place of an entry")
    entries = np.arange(space.size)
    try:
        index = at if isinstance(at, slice) else np.asarray(at)
        known = isinstance(index, slice) or (index.ndim == 1 and index.dtype.kind in "iub")
        chosen = entries[index] if known else None
    except IndexError as error:
        raise IndexError(f"Submatrix: {error}; the operator has {space.size} entries.") from None
    if chosen is None or not len(chosen):
        raise TypeError(
            f"Submatrix: at= takes leaf names, whole numbers, a mask of {space.size} entries or a slice, and something "
            f"of it; got {at!r}."
        )
    if len(np.unique(chosen)) < len(chosen):
        raise ValueError("Submatrix: an entry is there twice.")
    like = space.backend.asarray(np.zeros(1), space.dtype, space.device)
    return chosen, Space.flat(len(chosen), like)
