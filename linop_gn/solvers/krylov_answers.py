"""What a Krylov space answers, and how it reads."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..protocols import Array, Scalar
from ..records import record
from ..status import Status

__all__ = ["KrylovSteps", "QuadraticForm", "Ritz"]


class Ritz(NamedTuple):
    """Ritz values, ascending, in user's units; an eigenvalue of A lies within the bound of each.

    ``bounds`` is beta_k times the last entry of T's eigenvector: a residual norm. Inside a compiled program there
    are as many entries as the basis has room for, with NaN where no vector was made.
    """

    values: Array
    bounds: Array


class QuadraticForm(NamedTuple):
    """b.f(A) b by quadrature; ``lower`` and ``upper`` are None where no interval was given."""

    estimate: Scalar
    lower: Scalar | None
    upper: Scalar | None


@record
class KrylovSteps:
    """Solutions for one damping or radius, or for m of them.

    Attributes
    ----------
    x
        In the format of b; for m of them with a trailing axis of m.
    damping
        sigma of (A + sigma I) x = b: what was asked for, or the multiplier that belongs to the radius.
    residual
        ||b - (A + sigma I) x||_2, from the basis.
    model
        1/2 x.(A + sigma I) x - b.x for a damping, 1/2 x.A x - b.x for a radius.
    norm
        ||x||_2.
    used
        Basis vectors that x is made of: fewer than there are where A + sigma I is indefinite in the space.
    products
        Products that this answer took: 0, or those of the second pass where the basis was not kept.
    """

    x: Any
    code: Scalar
    damping: Scalar
    residual: Scalar
    model: Scalar
    norm: Scalar
    used: Scalar
    products: Scalar

    @property
    def status(self) -> Any:
        """Why this is the answer: a :class:`~linop_gn.Status`, or a list of them."""
        codes = np.asarray(self.code)
        return Status(int(codes)) if codes.ndim == 0 else [Status(int(code)) for code in codes]

    @property
    def succeeded(self) -> bool:
        """Whether every status is a success."""
        statuses = self.status if isinstance(self.status, list) else [self.status]
        return all(status.succeeded for status in statuses)

    def __repr__(self) -> str:
        statuses = self.status if isinstance(self.status, list) else [self.status]
        columns = [np.atleast_1d(np.asarray(value, dtype=float)) for value in (self.damping, self.residual, self.norm)]
        lines = [f"{'damping':>12} {'residual':>12} {'norm':>12}  status"]
        for status, damping, residual, norm in zip(statuses, *columns, strict=True):
            lines.append(f"{damping:12.6g} {residual:12.6g} {norm:12.6g}  {status.name.lower()}")
        taken = int(np.asarray(self.products))
        lines.append(f"{taken} products" if taken else "No product was taken.")
        return "\n".join([*lines, *dict.fromkeys(status.sentence for status in statuses)])
