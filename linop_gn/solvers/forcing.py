"""Forcing terms: how accurately the next linear system of a Newton method deserves to be solved.

Inexact Newton methods solve G s = -g to ||g + G s|| <= eta ||g|| and choose eta
anew for each system. With the gradient norm before (n_0) and now (n), and the
residual norm e of the linear system that led from one to the other,

    choice 1:  eta = |n - e| / n_0                 (how well the linear model predicted n)
    choice 2:  eta = gamma (n / n_0)^alpha         (how fast the gradient falls)

hindered from falling too fast, while that would still be above a threshold, by
eta_before^((1 + sqrt 5) / 2) in choice 1 and gamma eta_before^alpha in choice 2.

Eisenstat and Walker, Choosing the forcing terms in an inexact Newton method
(1996), whose constants these are; the bound by the tolerance of the outer
method, against solving the last system too well, is Kelley's (1995).
"""

from __future__ import annotations

import math
from typing import Any

from ..arguments import require_number
from ..protocols import Backend, Scalar
from ..records import record, static

__all__ = ["EisenstatWalker"]

_GOLDEN = (1.0 + math.sqrt(5.0)) / 2.0
_LARGE = 1e6  # ratios beyond it end at the upper bound anyway, and their powers would overflow


@record
class EisenstatWalker:
    """Forcing terms after Eisenstat and Walker (1996), for the ``rtol`` of the next inner solve.

    Pure functions on the backend's scalars: they run in compiled loops, and the
    rtol of a solver is data, so that a new one is the same program.

    Parameters
    ----------
    choice
        1 or 2, as above.
    first
        eta of the first solve.
    most
        Upper bound, below 1.
    gamma, alpha
        Of choice 2: in (0, 1] and (1, 2].
    threshold
        The safeguard holds while it is above this.
    target
        Tolerance on the gradient norm at which the outer method ends (0: none): eta is at least half of
        what reaches it.

    >>> import numpy as np, linop_gn as lg
    >>> forcing, ops = lg.EisenstatWalker(), lg.load("numpy")
    >>> eta = forcing.first
    >>> method = lg.replace(lg.CG(max_steps=50), rtol=eta)
    >>> forcing.update(ops, eta, norm=0.2, before=1.0)
    0.225
    >>> forcing.update(ops, 0.225, norm=0.002, before=0.2)
    9e-05
    """

    choice: int = static(default=2)
    first: Scalar = 0.5
    most: Scalar = 0.9
    gamma: Scalar = 0.9
    alpha: Scalar = 2.0
    threshold: Scalar = 0.1
    target: Scalar = 0.0

    def __post_init__(self) -> None:
        if self.choice not in (1, 2):
            raise ValueError(f"EisenstatWalker: choice must be 1 or 2, got {self.choice!r}.")
        bounds = {"first": (0, 1), "most": (0, 1), "gamma": (0, 1), "alpha": (1, 2), "threshold": (0, 1)}
        for name, (low, high) in bounds.items():
            value: Any = getattr(self, name)
            require_number("EisenstatWalker", name, value)
            if isinstance(value, (int, float)) and not low <= value <= high:
                raise ValueError(f"EisenstatWalker: {name} must lie between {low} and {high}, got {value}.")
        require_number("EisenstatWalker", "target", self.target)
        if isinstance(self.most, (int, float)) and not 0 < self.most < 1:
            raise ValueError(f"EisenstatWalker: most must lie between 0 and 1, got {self.most}.")

    def update(self, ops: Backend, eta: Scalar, norm: Scalar, before: Scalar, residual: Scalar | None = None) -> Scalar:
        """The next forcing term.

        Parameters
        ----------
        eta
            The one that the last system was solved with.
        norm, before
            Gradient norms now and before the step.
        residual
            Residual norm ||g + G s|| of the last system; needed by choice 1.
        """
        if self.choice == 1:
            if residual is None:
                raise ValueError(
                    "EisenstatWalker: choice 1 compares with the residual norm of the last system; give it."
                )
            gap = norm - residual
            wanted = self._bounded(ops, ops.divide(ops.maximum(gap, -gap), before))
            safe = eta**_GOLDEN
        else:
            wanted = self.gamma * self._bounded(ops, ops.divide(norm, before)) ** self.alpha
            safe = self.gamma * eta**self.alpha
        wanted = ops.maximum(wanted, ops.where(safe > self.threshold, safe, 0.0))
        floor = ops.divide(0.5 * self.target, norm)
        wanted = ops.maximum(wanted, ops.where(ops.isfinite(floor), floor, 0.0))
        return ops.minimum(wanted, self.most)

    @staticmethod
    def _bounded(ops: Backend, ratio: Scalar) -> Scalar:
        return ops.where(ops.isfinite(ratio), ops.minimum(ratio, _LARGE), _LARGE)
