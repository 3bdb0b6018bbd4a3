"""A few singular triplets of an operator: :func:`svds`, by :func:`~linop_gn.eigsh` of A^T A or A A^T.

The smaller of the two squares is taken, so that the basis is of the shorter vectors. A pair (theta, v) with
r = ||A^T A v - theta v|| belongs to a singular value within min(r / sqrt(theta), sqrt(r)) of sqrt(theta). The largest
ones are therefore found as well as by bidiagonalisation; those below sqrt(eps) ||A|| are not, and have a bound that
says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..draws import check_seed
from ..operators.base import LinearOperator
from ..protocols import Array, Scalar
from ..records import record, static
from ..run.loop import Watcher
from ..run.solution import Outcome
from ..spaces import Space
from .eigsh import Eigenpairs, eigsh, table, told
from .estimate import require_operator, squared

__all__ = ["SingularTriplets", "svds"]


@record
class SingularTriplets(Outcome):
    """Of :func:`svds`: k singular triplets, the largest first.

    Attributes
    ----------
    values
        The singular values (k,).
    left, right
        Columns (m, k) and (n, k) with A right = left * values; ``left_vector(i)`` and ``right_vector(i)`` have the
        formats of the operator's spaces. The column that belongs to a value of zero is zero where it is not unique.
    bounds
        A singular value of A lies no farther from each.
    met
        Whether the eigenpair of the square met rtol.
    products
        Each one with A and one with A^T; one more of A told its scale.
    """

    values: Array = None
    left: Array = None
    right: Array = None
    bounds: Array = None
    met: Array = None
    block: int = static(default=1)
    spaces: tuple[Space, Space] = static(default=None)

    def left_vector(self, i: int) -> Any:
        """Left singular vector i, in the format of what the operator returns."""
        return self.spaces[1].unpack(self.spaces[1].backend.copy(self.left[:, i]))

    def right_vector(self, i: int) -> Any:
        """Right singular vector i, in the format of what the operator takes."""
        return self.spaces[0].unpack(self.spaces[0].backend.copy(self.right[:, i]))

    @property
    def sentence(self) -> str:
        """What was looked for, what happened, and what to do about it."""
        return told(self.status, self.met, self.block, "singular value")

    def _lines(self) -> list[str]:
        return [*table(self._headline(), "singular value", self.values, self.bounds, self.met), self.sentence]


def svds(
    A: LinearOperator,
    k: int = 6,
    *,
    rtol: Scalar | None = None,
    block: int = 1,
    basis: int | None = None,
    max_products: int | None = None,
    seed: int = 0,
    watch: Sequence[Watcher] = (),
    every: int | None = None,
) -> SingularTriplets:
    """The k largest singular values of an operator, with their vectors and a bound for each.

    Parameters
    ----------
    A
        Any operator with an adjoint, such as ``lg.Jacobian(objective, params)``.
    k, rtol, block, basis, max_products, seed, watch, every
        As of :func:`~linop_gn.eigsh`, for A^T A or A A^T: ``rtol`` is of ||A||^2.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Dense(np.diag([3.0, 2.0, 1.0])[:, :2])
    >>> top = lg.svds(A, k=1)
    >>> top.values.round(6), abs(top.left[:, 0]).round(6)
    (array([3.]), array([1., 0., 0.]))

    Raises
    ------
    TypeError, ValueError
        For an operator without an adjoint, or a k that the smaller space has not.
    """
    require_operator("svds", A)
    check_seed("svds", seed)
    square, scale = squared(A, seed)
    options: dict[str, Any] = {"rtol": rtol, "block": block, "basis": basis, "max_products": max_products, "seed": seed}
    found = eigsh(square, k, "LA", watch=watch, every=every, **options)
    return _triplets(A, found, scale)


def _triplets(A: LinearOperator, found: Eigenpairs, scale: Scalar) -> SingularTriplets:
    ops, xp, tall = A.backend, A.backend.small_namespace(), A.domain.size <= A.codomain.size
    theta, r = xp.maximum(xp.asarray(found.values), 0.0), xp.asarray(found.bounds)
    values = xp.sqrt(theta)
    bounds = xp.minimum(xp.where(values > 0, r / xp.where(values > 0, values, 1.0), xp.inf), xp.sqrt(r))
    inverse = xp.where(values > 0, 1.0 / xp.where(values > 0, values, 1.0), 0.0)
    other = ops.scale(ops.divide(1.0, scale), (A if tall else A.T).matmat(found.columns))
    other = ops.scale(inverse, other)
    columns = (other, found.columns) if tall else (found.columns, other)
    inherited = {name: getattr(found, name) for name in ("code", "steps", "products", "rows", "names", "method")}
    return SingularTriplets(
        **inherited,
        values=values * scale,
        left=columns[0],
        right=columns[1],
        bounds=bounds * scale,
        met=found.met,
        block=found.block,
        spaces=(A.domain, A.codomain),
    )
