"""J, H_L, J^T H_L J and the Hessian of an objective at a point, from its float64 twin.

    J        row by row by first-order reverse mode; column by column by central
             differences of the outputs where a framework has no derivatives
    H_L      row by row by reverse over reverse mode on the loss's *value* (not from
             its closed form); by central differences of its closed-form gradient there
    G        scale * sum over batches of J_b^T (H_L,b (J_b V)), multiplied in NumPy
    H        row by row by reverse over reverse mode

All of it is held as matrices while their entries are at most ``limit``. Beyond
that, products with a few vectors are worked out without any: J V from rows that
are dropped again or from differences along V, J^T U by one reverse pass for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np

from ..curvature.point import Point
from ..curvature.term import Term
from .differences import along
from .measure import DIFFERENCES, NotApplicableError, norm, relative
from .twin import Twin, twin_of

__all__ = ["Matrices"]

NDArray = np.ndarray[Any, Any]
Map = Callable[[NDArray], NDArray]
T = TypeVar("T")

MOST_ROWS = 4096
MOST_CHUNKS = 4


class Matrices:
    """Products with the derivatives of an objective at a point, for host arrays of columns."""

    def __init__(self, point: Point, limit: int) -> None:
        self.limit = limit
        self.twin: Twin
        self.twin, self.note = twin_of(point)
        self.n = point.space.size
        self.uncertainty = 0.0
        self._made: dict[Any, Any] = {}

    def _once(self, key: Any, make: Callable[[], T]) -> T:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]  # type: ignore[no-any-return]

    # the model

    def batches(self) -> list[tuple[Term, NDArray]]:
        """Each batch's term with its outputs."""
        return [(term, self.twin.outputs(term, self.twin.x)) for term in self.twin.terms()]

    @cached_property
    def rows(self) -> int:
        """Number of outputs on all batches."""
        return sum(z.size for _, z in self.batches())

    @property
    def holds_jacobian(self) -> bool:
        """Whether J is held."""
        return self.rows * self.n <= self.limit and max(self.rows, self.n) <= MOST_ROWS

    def jacobian(self, b: int, term: Term, z: NDArray) -> NDArray:
        """J of batch b, held."""
        return self._once(("J", b), lambda: self._jacobian(term, z))

    def _jacobian(self, term: Term, z: NDArray) -> NDArray:
        if self.twin.calculus is not None:
            return self._by_chunks(partial(self.twin.jacobian_rows, term), range(z.size))
        direction = self.twin.directions(np.random.default_rng(0).standard_normal((self.n, 1)))[:, 0]
        return self._by_columns(lambda x: self.twin.outputs(term, x).reshape(-1), self.twin.x, direction)

    def _by_columns(self, f: Map, x: NDArray, direction: NDArray) -> NDArray:
        """The Jacobian of f at x by differences of fourth order, whose error is measured against extrapolated ones."""
        made = np.stack([_partial(f, x, j, self.twin.eps) for j in range(x.size)], axis=1)
        better = along(f, x, direction, self.twin.eps)
        size = max(norm(better.value), norm(made @ direction))
        doubt = (norm(made @ direction - better.value) + better.uncertainty) / size if size else 0.0
        self.uncertainty = max(self.uncertainty, doubt, DIFFERENCES / 10)
        return made

    def _by_chunks(self, made_of: Callable[[Sequence[int]], NDArray], rows: Sequence[int]) -> NDArray:
        size = max(1, min(len(rows), self.limit // self.n))
        return np.concatenate([made_of(rows[i : i + size]) for i in range(0, len(rows), size)])

    def push(self, b: int, term: Term, z: NDArray, V: NDArray) -> NDArray:
        """J V on batch b."""
        if self.holds_jacobian:
            return self.jacobian(b, term, z) @ V
        if self.twin.calculus is not None and self.rows * self.n <= MOST_CHUNKS * self.limit:
            return self._by_chunks(lambda rows: self.twin.jacobian_rows(term, rows) @ V, range(z.size))
        return self._along(partial(self.twin.outputs, term), self.twin.x, V)

    def _along(self, f: Map, x: NDArray, V: NDArray) -> NDArray:
        """Derivatives of f at x along the columns of V, by extrapolated differences."""
        columns, reach = [], _size(x)
        for v in V.T:
            largest = float(np.abs(v).max(initial=0.0)) / reach or 1.0
            found = along(f, x, (v / largest).reshape(x.shape), self.twin.eps)
            self.uncertainty = max(self.uncertainty, found.relative if v.any() else 0.0)
            columns.append(found.value * largest)
        return np.stack(columns, axis=1)

    def pull(self, b: int, term: Term, z: NDArray, U: NDArray) -> NDArray:
        """J^T U on batch b."""
        if self.holds_jacobian:
            return self.jacobian(b, term, z).T @ U
        if self.twin.calculus is None:
            raise NotApplicableError(f"J, {self.rows} x {self.n}, is too large for differences; see dense_limit")
        return np.stack([self.twin.pullback(term, u.reshape(z.shape)) for u in U.T], axis=1)

    # the loss

    def bend(self, b: int, term: Term, z: NDArray, Z: NDArray) -> NDArray:
        """H_L Z on batch b, unnormalised."""
        if term.loss is not None and not term.loss.second_derivative:
            return np.stack([self.twin.loss_curvature(term, z, v).reshape(-1) for v in Z.T], axis=1)
        if z.size * z.size <= self.limit and z.size <= max(MOST_ROWS // 2, 4 * Z.shape[1]):
            return self._once(("H_L", b), lambda: self._loss_hessian(term, z)) @ Z
        return self._along(partial(self.twin.loss_gradient, term), z, Z)

    def _loss_hessian(self, term: Term, z: NDArray) -> NDArray:
        if self.twin.calculus is not None:
            return self._by_chunks(partial(self.twin.loss_hessian_rows, term, z), range(z.size))

        def gradient(at: NDArray) -> NDArray:
            return self.twin.loss_gradient(term, at.reshape(z.shape)).reshape(-1)

        return self._by_columns(gradient, z.reshape(-1), np.random.default_rng(0).standard_normal(z.size))

    # what they make

    def gauss_newton(self, V: NDArray) -> NDArray:
        """J^T H_L J V."""
        if self.twin.calculus is None:
            self._once("cancellation", self._measure_cancellation)
        total = np.zeros_like(V)
        for b, (term, z) in enumerate(self.batches()):
            total += self._bent(b, term, z, self.push(b, term, z, V))
        return self.twin.scale * total + self._l2_times(V)

    def _bent(self, b: int, term: Term, z: NDArray, Z: NDArray) -> NDArray:
        return self.pull(b, term, z, self.bend(b, term, z, Z))

    def _measure_cancellation(self) -> bool:
        """Errors that J^T H_L J magnifies (H_L may send J d to almost nothing): G d with other differences along d."""
        d = self.twin.directions(np.random.default_rng(1).standard_normal((self.n, 1)))
        products = np.zeros((3, *d.shape))
        for b, (term, z) in enumerate(self.batches()):
            pushed = self.push(b, term, z, d)
            products[0] += self._bent(b, term, z, pushed)
            products[1] += self._bent(b, term, z, self._along(partial(self.twin.outputs, term), self.twin.x, d))
            products[2] += self.pull(b, term, z, self._along(partial(self.twin.loss_gradient, term), z, pushed))
        self.uncertainty = max(self.uncertainty, *(relative(products[0], other) for other in products[1:]))
        return True

    def hessian(self, V: NDArray) -> NDArray:
        """H V."""
        if self.twin.calculus is None:
            return self._along(self.twin.gradient, self.twin.x, V)
        if self.n * self.n <= self.limit and self.n <= MOST_ROWS:
            return self._once("H", lambda: self._hessian_rows(range(self.n))) @ V + self._l2_times(V)
        used = np.flatnonzero(np.abs(V).sum(axis=1)).tolist()
        if len(used) <= V.shape[1]:
            return self._hessian_rows(used).T @ V[used] + self._l2_times(V)
        return self._along(self.twin.gradient, self.twin.x, V)

    def _l2_times(self, V: NDArray) -> NDArray:
        l2 = self.twin.l2
        made: NDArray = (l2[:, None] if np.ndim(l2) else l2) * V
        return made

    def _hessian_rows(self, rows: Sequence[int]) -> NDArray:
        found = (self._by_chunks(partial(self.twin.hessian_rows, term), rows) for term in self.twin.terms())
        return self.twin.scale * sum(found, np.zeros((len(rows), self.n)))


def _size(x: NDArray) -> float:
    """The root mean square, or 1 for zeros."""
    return float(np.sqrt(np.mean(x**2))) or 1.0


def _partial(f: Map, x: NDArray, j: int, eps: float) -> NDArray:
    """df/dx_j by differences of fourth order; of second order at a small step where that is another number.

    Which it is where f has a kink within the wider step.
    """
    size = _size(x)
    small, wide = float(eps ** (1 / 3)) / 5 * size, float(eps ** (1 / 5)) / 3 * size
    plain = _central(f, x, j, small)
    fine = (4 * _central(f, x, j, wide) - _central(f, x, j, 2 * wide)) / 3
    return fine if norm(fine - plain) <= 1e-6 * norm(plain) else plain


def _central(f: Map, x: NDArray, j: int, h: float) -> NDArray:
    ahead, behind = x.copy(), x.copy()
    ahead[j] += h
    behind[j] -= h
    change: NDArray = (f(ahead) - f(behind)) / (ahead[j] - behind[j])
    return change
