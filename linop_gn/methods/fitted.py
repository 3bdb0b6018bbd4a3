"""What a fit tells: the parameters, how certain they are, and why the run ended.

Linearised at x, with s^2 = 2 cost / (m - n) and the Gauss-Newton matrix J^T H J = R^T R, the covariance of the
parameters is s^2 (R^T R)^-1, of which the factor R is all that is kept.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from ..protocols import Array, Scalar, Tree, Vector
from ..records import record, static
from ..run.solution import Outcome
from ..run.status import Status
from ..spaces import Space

__all__ = ["LeastSquaresResult"]

_SCIPY = {"GRADIENT_SMALL": 1, "DECREASE_SMALL": 2, "AT_PRECISION": 2, "STEP_SMALL": 3, "NONFINITE_INPUT": -1}


@record
class LeastSquaresResult(Outcome):
    """Of :func:`linop_gn.least_squares`: ``x`` in the user's format, and what the fit knows of it.

    Inside a compiled program ``code`` stands for the status; ``covariance`` and what follows from it are arrays of the
    framework of x.
    """

    x: Any = None
    cost: Scalar = None
    """The objective at x."""
    fun: Array = None
    """The residuals at x, as the function returns them."""
    grad: Any = None
    """The gradient of the cost, like x."""
    optimality: Scalar = None
    """Largest entry of the gradient, of parameters that no bound holds."""
    active_mask: Any = None
    """Like x: -1 at a lower bound, 1 at an upper one, 0 between."""
    nfev: Scalar = None
    """Evaluations of the residuals at trials, without those that derivatives take."""
    njev: Scalar = None
    """Linearisations."""
    factor: Array = None
    """R with R^T R = J^T H J in scaled parameters, of those that no bound holds."""
    sizes: Vector = None
    """Of the parameters, by which R is scaled."""
    free: Vector = None
    """1 for parameters that no bound holds, else 0."""
    effects: Vector = None
    """What each parameter changes in the residuals, relative to them."""
    space: Space = static(default=None)
    derivatives: str = static(default="")
    """How the Jacobian came about, where it was by finite differences."""

    @property
    def success(self) -> Any:
        """Whether the status is a success."""
        return self.succeeded

    @property
    def message(self) -> str:
        """What happened, and what to do about it."""
        return " ".join([*self._sentences(), *self._remarks()])

    @property
    def scipy_status(self) -> int:
        """SciPy's number for the status: 1 to 3 for its tests, 0 for a limit, -1 for input, -2 for a stop, else 0."""
        return -2 if self.status is Status.STOPPED else _SCIPY.get(self.status.name, 0)

    def covariance(self, absolute_sigma: bool = False) -> Array:
        """The covariance (n, n) of the parameters, linearised at x: s^2 (J^T H J)^-1, as a flat array.

        s^2 is 2 cost / (m - n) for n parameters that no bound holds, or 1 with ``absolute_sigma``, where residuals are
        in units of their standard deviations. A parameter that a bound holds is taken as known: its rows are zero. For
        a robust loss, H is the loss's second derivative as :mod:`linop_gn.curvature.losses.robust` has it, and s^2
        measures the loss.
        Where the residuals do not determine a parameter its rows are infinite, with a warning.
        """
        ops, xp = self.space.backend, self.space.backend.namespace()
        R = xp.concat([self.factor, ops.identity(self.free.shape[0], self.free) * (1.0 - self.free)], axis=0)
        _, S, Vt = xp.linalg.svd(R, full_matrices=False)
        kept = R.shape[1] * ops.eps(self.free) * xp.max(S) < S
        lengths = xp.where(kept, 1.0 / xp.where(kept, S, xp.ones_like(S)), xp.zeros_like(S))
        half = Vt.T * lengths * (self.sizes * self.free)[:, None]
        left = xp.sum(xp.where(kept[:, None], 0.0 * Vt, Vt * Vt), axis=0)  # what of each cannot be seen
        lost = left > math.sqrt(ops.eps(self.free))
        freedom = _entries(self.fun) - xp.sum(self.free)
        if ops.is_concrete(lost) and (bool(xp.any(lost)) or (not absolute_sigma and float(freedom) <= 0)):
            names = ", ".join(self._names_of(ops.to_numpy(lost)))
            warnings.warn(
                f"the residuals do not determine {names}: their covariance is infinite. Fix them, or fit more data."
                if names
                else "there are not more residuals than parameters: their covariance is infinite.",
                stacklevel=2,
            )
        few = (freedom <= 0) & (not absolute_sigma)
        size = 1.0 if absolute_sigma else 2.0 * self.cost / xp.where(freedom > 0, freedom, xp.ones_like(freedom))
        found = size * (half @ half.T)
        return xp.where(lost[:, None] | lost[None, :] | few, xp.zeros_like(found) + math.inf, found)

    def standard_errors(self, absolute_sigma: bool = False) -> Tree:
        """The square roots of the covariance's diagonal, like x."""
        xp = self.space.backend.namespace()
        return self.space.unpack(xp.sqrt(xp.linalg.diagonal(self.covariance(absolute_sigma))))

    def correlations(self) -> Array:
        """The covariance (n, n) with a diagonal of ones; NaN for what a bound holds or nothing determines."""
        xp, C = self.space.backend.namespace(), self.covariance(True)
        size = xp.sqrt(xp.linalg.diagonal(C))
        with np.errstate(invalid="ignore"):
            return C / (size[:, None] * size[None, :])

    def summary(self, level: float = 0.95) -> str:
        """A table of the parameters with standard errors and confidence intervals, and how the run ended."""
        from scipy.stats import t as student

        ops = self.space.backend
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x, error = (
                np.asarray(ops.to_numpy(self.space.pack(tree)), float) for tree in (self.x, self.standard_errors())
            )
        freedom = _entries(self.fun) - float(np.sum(ops.to_numpy(self.free)))
        wide = error * student.ppf(0.5 + level / 2, freedom) if freedom > 0 else np.full_like(error, np.inf)
        names = self._names_of(np.ones(len(x), bool))
        width = max(map(len, names))
        head = f"{'':{width}}  {'value':>13}  {'std. error':>13}  {f'{100 * level:g} % interval':>29}"
        rows = [
            f"{name:{width}}  {v:13.6g}  {e:13.6g}  {v - w:13.6g} .. {v + w:<13.6g}".rstrip()
            for name, v, e, w in zip(names, x, error, wide, strict=True)
        ]
        total = f"{_entries(self.fun)} residuals, cost {float(self.cost):.6g}, {int(self.nfev)} evaluations"
        return "\n".join([self._headline(), head, *rows, total, self.message])

    def _names_of(self, chosen: Any) -> list[str]:
        """The names of the entries of x that are chosen."""
        names = [
            f"{name or 'x'}{list(index) if shape else ''}"
            for name, shape in zip(self.space.names, self.space.shapes, strict=True)
            for index in np.ndindex(shape)
        ]
        return [name for name, wanted in zip(names, chosen, strict=True) if wanted]

    def _remarks(self) -> list[str]:
        lost = np.asarray(self.space.backend.to_numpy(self.effects)) < 1e-6
        remarks = [f"Without effect on the residuals: {', '.join(self._names_of(lost))}."] if lost.any() else []
        if self.derivatives:
            remarks.append(f"Derivatives are finite differences ({self.derivatives}); jac= is more accurate.")
        return remarks

    def _headline(self) -> str:
        return f"least_squares: {self.status.name.lower()} after {int(self.steps)} steps; cost {float(self.cost):.6g}"

    def __repr__(self) -> str:
        return "\n".join([self._headline(), *self._sentences(), *self._remarks()])


def _entries(x: Array) -> int:
    return math.prod(tuple(x.shape))
