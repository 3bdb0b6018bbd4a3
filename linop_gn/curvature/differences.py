"""Jacobians by finite differences, for functions that nothing can differentiate: at the doors of fits only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..protocols import Array, Backend, Tree, Vector
from ..spaces import Space

__all__ = ["Differences", "Remembered", "sparsity"]


class Differences:
    """The Jacobian by finite differences, forward or central, with steps relative to x, or to x0 where that is larger.

    Where a bound is in the way both look inwards: (f(x + h) - f(x)) / h, and (4 f(x + h) - f(x + 2 h) - 3 f(x)) / 2 h.
    With ``structure``, a csc_array of what may differ from zero, columns that share no row are moved at once (Curtis,
    Powell and Reid, 1974): so many evaluations as groups, and a sparse Jacobian.
    """

    def __init__(
        self,
        space: Space,
        function: Callable[..., Array],
        central: bool,
        step: float | None,
        box: Any,
        structure: Any = None,
    ) -> None:
        self.space, self.function, self.central, self.step = space, function, central, step
        self.structure = structure
        self.groups: Any = None if structure is None else _groups(structure)
        self.start, self.lower, self.upper = box

    def __call__(self, x: Tree, *data: Any) -> Any:
        space, ops = self.space, self.space.backend
        xp, flat = ops.namespace(), space.pack(x)
        one, zero = xp.ones_like(flat), xp.zeros_like(flat)

        def at(step: Vector) -> Vector:  # a copy: the function may write all that it returns into one buffer
            return ops.copy(xp.reshape(self.function(space.unpack(flat + step), *data), (-1,)))

        base = at(zero)
        # In float32 a function of a float64 x does not see steps of float64.
        relative = self.step or max(ops.eps(flat), ops.eps(base)) ** (1 / 3 if self.central else 1 / 2)
        size = xp.where(abs(flat) > abs(self.start), abs(flat), abs(self.start))
        h, inward = relative * xp.where(size > 0, size, one), zero != zero
        if self.lower is not None:
            above, below = self.upper - flat, flat - self.lower
            inward = (h > above) | (h > below)
            room = xp.where(above > below, above, below) * (0.5 if self.central else 1.0)
            h = xp.where(h > room, room, h) * xp.where(above < below, -one, one)
        eye, columns = ops.identity(space.size, flat), []
        if self.groups is not None:
            return self._grouped(at, base, flat, h, inward)
        for j in range(space.size):
            step = eye[j, :] * h
            taken = float(xp.sum((flat + step) - flat))  # what is left of it once it is added
            if taken == 0:  # there is no room
                columns.append(0.0 * base)
            elif not self.central:
                columns.append((at(step) - base) / taken)
            elif bool(inward[j]):
                columns.append((4.0 * at(step) - at(2.0 * step) - 3.0 * base) / (2.0 * taken))
            else:
                columns.append((at(step) - at(-step)) / (2.0 * taken))
        return xp.stack(columns, axis=1)

    def _grouped(self, at: Callable[[Vector], Vector], base: Array, flat: Array, h: Array, inward: Array) -> Any:
        S, made = self.structure, np.empty(len(self.structure.indices))
        if len(base) != S.shape[0]:
            raise ValueError(f"least_squares: jac_sparsity has {S.shape[0]} rows for {len(base)} residuals.")
        columns = np.repeat(np.arange(S.shape[1]), np.diff(S.indptr))
        taken = (flat + h) - flat  # what is left of it once it is added
        for group in range(self.groups.max() + 1):
            here = self.groups[columns] == group
            i, j, step = S.indices[here], columns[here], np.where(self.groups == group, h, 0.0)
            if self.central:
                one, two = at(step), at(np.where(inward, 2.0, -1.0) * step)
                change = 0.5 * np.where(inward[j], (4.0 * one - 3.0 * base)[i] - two[i], one[i] - two[i])
            else:
                change = (at(step) - base)[i]
            made[here] = np.where(taken[j] != 0, change / np.where(taken[j] != 0, taken[j], 1.0), 0.0)
        return type(S)((made, S.indices, S.indptr), shape=S.shape).tocsr()


def sparsity(structure: Any, space: Space) -> Any:
    """``structure`` (m, n), an array or a sparse matrix, as a csc_array.

    Raises
    ------
    ValueError
        For another number of columns than of parameters, or arrays that are not NumPy's.
    """
    if space.backend.name != "numpy":
        raise ValueError(
            f"least_squares: jac_sparsity is for finite differences of NumPy arrays, got {space.backend.name}."
        )
    from scipy.sparse import csc_array  # here, since it takes longer to import than linop_gn

    made = csc_array(structure)
    if made.ndim != 2 or made.shape[1] != space.size:
        raise ValueError(
            f"least_squares: jac_sparsity has shape {made.shape}; expected (residuals, {space.size}): a row for each "
            "residual and a column for each parameter."
        )
    made.sum_duplicates()
    made.eliminate_zeros()
    return made


def _groups(structure: Any) -> Any:
    """A group for each column, so that no two of a group share a row: greedily, fullest columns first."""
    counts = np.diff(structure.indptr)
    groups, left = np.full(len(counts), -1), np.argsort(-counts, kind="stable").tolist()
    while left:
        used, later, group = np.zeros(structure.shape[0], bool), [], groups.max() + 1
        for j in left:
            rows = structure.indices[structure.indptr[j] : structure.indptr[j + 1]]
            if used[rows].any():
                later.append(j)
            else:
                used[rows], groups[j] = True, group
        left = later
    return groups


class Remembered:
    """A function that is not called twice in a row at the same x: a trial, and then its derivatives."""

    def __init__(self, ops: Backend, function: Callable[..., Array]) -> None:
        self.ops, self.function = ops, function
        self.kept: tuple[Any, Any] | None = None

    def __call__(self, x: Tree, *data: Any) -> Array:
        leaves = self.ops.flatten(x)[1]
        same = self.ops.namespace().all
        if self.kept is None or not all(bool(same(old == new)) for old, new in zip(self.kept[0], leaves, strict=True)):
            self.kept = [self.ops.copy(leaf) for leaf in leaves], self.ops.copy(self.function(x, *data))
        return self.ops.copy(self.kept[1])
