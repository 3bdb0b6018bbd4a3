"""What a fit tells: the parameters, how certain they are, and why the run ended.

Linearised at x, with s^2 = 2 cost / (m - n) and the Gauss-Newton matrix J^T H J = R^T R, the covariance of the
parameters is C = s^2 (R^T R)^-1, of which the factor R is all that is kept. A function z of the parameters, linearised
there too, has the covariance Z C Z^T (the delta method), and an observation of it s^2 sigma^2 more. Intervals are
these errors times the quantile of Student's t of m - n degrees of freedom; each holds for itself, not all at once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..arguments import called
from ..curvature.at_point import Jacobian
from ..curvature.differences import Differences
from ..curvature.objective import Objective
from ..protocols import Array, Backend, Scalar, Tree, Vector
from ..records import Partial, record, static
from ..run.solution import Result, brief
from ..run.status import Status
from ..spaces import Space

__all__ = ["LeastSquaresResult", "Prediction"]

_SCIPY = {
    "GRADIENT_SMALL": 1,
    "DECREASE_SMALL": 2,
    "AT_PRECISION": 2,
    "STEP_SMALL": 3,
    "NONFINITE_INPUT": -1,
    "BREAKDOWN": -1,
    "STOPPED": -2,
}


class Prediction(NamedTuple):
    """Of a model at the fitted parameters; arrays of the shape of its values."""

    value: Array
    error: Array
    """The standard error."""
    lower: Array
    upper: Array


@record
class LeastSquaresResult(Result):
    """Of :func:`linop_gn.least_squares`: ``x`` in the user's format, and what the fit knows of it.

    Inside a compiled program ``code`` stands for the status; ``covariance`` and what follows from it are arrays of the
    framework of x. ``state`` is what ``lg.least_squares(..., state=)`` goes on from.
    """

    fun: Array = None
    """The residuals at x, as the function returns them."""
    grad: Any = None
    """The gradient of the cost, like x."""
    active_mask: Any = None
    """Like x: -1 at a lower bound, 1 at an upper one, 0 between."""
    nfev: Scalar = None
    """Evaluations of the residuals at trials, without those that derivatives take."""
    njev: Scalar = None
    """Linearisations."""
    factor: Any = None
    """R with R^T R = J^T H J in scaled parameters, of those that no bound holds; or the operator R^T R, by products."""
    sizes: Vector = None
    """Of the parameters, by which R is scaled."""
    free: Vector = None
    """1 for parameters that no bound holds, else 0."""
    effects: Vector = None
    """What each parameter changes in the residuals, relative to them."""
    space: Space = static(default=None)
    derivatives: str = static(default="")
    """How the Jacobian came about, where it was by finite differences."""
    weighted: bool = static(default=False)
    """Whether ``lg.curve_fit`` divided the residuals by sigma; what a function does by itself nobody knows."""

    @property
    def x(self) -> Any:
        """The parameters, like x0."""
        return self.params

    @property
    def cost(self) -> Scalar:
        """The objective at x."""
        return self.value

    @property
    def optimality(self) -> Scalar:
        """Largest entry of the gradient, of parameters that no bound holds."""
        return self.gradient_norm

    @property
    def success(self) -> Any:
        """Whether the status is a success; of many fits, whether all are."""
        return self.succeeded

    @property
    def message(self) -> str:
        """What happened, and what to do about it."""
        return " ".join([*self._sentences(), *self._remarks()])

    @property
    def scipy_status(self) -> Any:
        """SciPy's number for the status: 1 to 3 for its tests, 0 for a limit, -1 for input, -2 for a stop, else 0."""
        numbers = [_SCIPY.get(status.name, 0) for status in self._statuses()]
        return numbers if np.ndim(self.code) else numbers[0]

    @property
    def entry_names(self) -> tuple[str, ...]:
        """The names of the numbers in x, in the order of the covariance's rows, such as ``a[0]``."""
        return tuple(
            f"{name or 'x'}{list(index) if shape else ''}"
            for name, shape in zip(self.space.names, self.space.shapes, strict=True)
            for index in np.ndindex(shape)
        )

    def covariance(self, absolute_sigma: bool = False) -> Array:
        """The covariance (n, n) of the parameters, linearised at x: s^2 (J^T H J)^-1; row i is ``entry_names[i]``.

        Of a dict, JAX and NumPy sort the keys, and torch takes them as they stand.
        s^2 is 2 cost / (m - n) for n parameters that no bound holds, or 1 with ``absolute_sigma``, where residuals are
        in units of their standard deviations. A parameter that a bound holds is taken as known: its rows are zero. For
        a robust loss, H is the loss's second derivative as :mod:`linop_gn.curvature.losses.robust` has it, and s^2
        measures the loss.
        Where the residuals do not determine a parameter its rows are infinite, with a warning.
        """
        xp, (kept, lengths, V) = self.space.backend.namespace(), self._directions()
        half = V * lengths
        unseen = self.space.ordered(xp.sum(xp.where(kept, 0.0 * V, V * V), axis=1))  # what of each cannot be seen
        lost = unseen > math.sqrt(self.space.backend.eps(self.free))
        size, few = self._variance(absolute_sigma)
        names = self._names_of(self._told(lost))
        self._warn(few, f"{', '.join(names)}: their covariance is" if names else "", "fit more data")
        half = self.space.ordered(half * (self.sizes * self.free)[:, None])
        found = size * (half @ half.T)
        return xp.where(lost[:, None] | lost[None, :] | few, xp.zeros_like(found) + math.inf, found)

    def standard_errors(self, absolute_sigma: bool = False) -> Tree:
        """The square roots of the covariance's diagonal, like x."""
        xp = self.space.backend.namespace()
        return self.space.tree_of(xp.sqrt(xp.linalg.diagonal(self.covariance(absolute_sigma))))

    def correlations(self) -> Array:
        """The covariance (n, n) with a diagonal of ones; NaN for what a bound holds or nothing determines."""
        xp, C = self.space.backend.namespace(), self.covariance(True)
        size = xp.sqrt(xp.linalg.diagonal(C))
        with np.errstate(invalid="ignore"):
            return C / (size[:, None] * size[None, :])

    def confidence_intervals(self, level: float = 0.95, absolute_sigma: bool = False) -> tuple[Tree, Tree]:
        """Lower and upper ends like x, between which each parameter lies with the probability ``level``.

        Student's t of m - n degrees of freedom times the standard errors; the normal distribution's quantile with
        ``absolute_sigma``. Bounds don't cut an interval, and what a bound holds has none: both ends are its value.
        """
        error, x = self.space.pack(self.standard_errors(absolute_sigma)), self.space.pack(self.x)
        wide = self._quantile(level, absolute_sigma) * error
        return self.space.unpack(x - wide), self.space.unpack(x + wide)

    def predict(
        self,
        model: Callable[..., Array],
        *args: Any,
        level: float = 0.95,
        kind: str = "confidence",
        sigma: Any = None,
        jac: Callable[..., Any] | None = None,
        absolute_sigma: bool = False,
    ) -> Prediction:
        """``model(x, *args)`` at the fitted parameters, with a band for each of its values, by the delta method.

        Parameters
        ----------
        model
            A function of parameters like x, and of new inputs: one array of any shape, a single number too.
        level
            Probability that a value lies in its band; each for itself.
        kind
            ``"confidence"``: of the model's value; ``"prediction"``: of an observation of it, with an error of its own.
        sigma
            Standard deviation of these observations, where the residuals fitted were divided by those of theirs (also
            up to a factor): a number, or one for each. None: 1, as where they were not; a ``"prediction"`` of a fit
            whose residuals were divided is wrong by that scale, of which a fit by ``lg.curve_fit`` warns.
        jac
            ``jac(x, *args)``: the derivative of model, as for :func:`linop_gn.least_squares`. None: the framework's;
            for NumPy and CuPy ``"3-point"`` differences.
        absolute_sigma
            As for :meth:`covariance`, whose remarks on bounds and robust losses hold here too. For a robust loss the
            band is that of observations that are no outliers, as far as the loss measures their spread.

        >>> import numpy as np, linop_gn as lg
        >>> t = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
        >>> line = lambda p, t: p[0] + p[1] * t
        >>> fit = lg.least_squares(lambda p: line(p, t) - np.array([0.1, 0.9, 2.2, 2.8, 4.0]), [1.0, 1.0])
        >>> band = fit.predict(line, np.array([2.0, 9.0]))
        >>> band.value.round(3), band.lower.round(3), band.upper.round(3)
        (array([2.  , 8.79]), array([1.752, 7.538]), array([ 2.248, 10.042]))

        Raises
        ------
        TypeError, ValueError
            For another kind or level, and inside a compiled program, where the degrees of freedom are not known.
        """
        if kind not in ("confidence", "prediction"):
            raise ValueError(f"predict: kind must be 'confidence' or 'prediction', got {kind!r}.")
        quantile = self._quantile(level, absolute_sigma)
        ops, space, xp = self.space.backend, self.space, self.space.backend.namespace()
        shape = tuple(getattr(called("model", "(x, *args)", model, self.x, *args), "shape", ()))
        entered: Callable[..., Any] = _at_inputs if shape else Partial(_alone, ops)
        function: Any = Partial(entered, model)
        if jac is not None:
            jac = Partial(entered, jac)
        elif ops.calculus is None:
            jac = Differences(space, function, True, None, (space.pack(self.x), None, None))
        point = Objective.from_residuals(function, args, jacobian=jac).at(self.x)
        value = xp.reshape(point.outputs, shape)
        kept, lengths, V = self._directions()
        P = Jacobian(point).prepare().apply(V * (self.sizes * self.free)[:, None])
        squares, weights = xp.sum(xp.where(kept, 0.0 * P, P * P), axis=1), xp.sum(P * P, axis=1)
        lost = squares > ops.eps(self.free) * weights
        size, few = self._variance(absolute_sigma)
        which = int(np.sum(self._told(lost)))
        self._warn(few, f"{which} of the values: their bands are" if which else "", "predict others, or fit more data")
        variance = xp.reshape(
            xp.where(lost | few, weights + math.inf, size * xp.sum((P * lengths) ** 2, axis=1)), value.shape
        )
        if kind == "prediction":
            if sigma is None and self.weighted:
                warnings.warn(
                    "predict: the residuals were divided by sigma, and the bands are for observations with sigma = 1: "
                    "give theirs, predict(..., kind='prediction', sigma=...).",
                    stacklevel=2,
                )
            variance = variance + size * (1.0 if sigma is None else sigma * sigma)
        error = xp.sqrt(variance)
        return Prediction(ops.copy(value), error, value - quantile * error, value + quantile * error)

    def summary(self, level: float = 0.95, absolute_sigma: bool = False) -> str:
        """A table of the parameters with standard errors and confidence intervals, and how the run ended."""
        space = self.space
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trees = self.x, self.standard_errors(absolute_sigma), *self.confidence_intervals(level, absolute_sigma)
        columns = [np.asarray(space.in_order(space.pack(tree)), float) for tree in trees]
        names = self._names_of(np.ones(len(columns[0]), bool))
        width = max(map(len, names))
        head = f"{'':{width}}  {'value':>13}  {'std. error':>13}  {f'{100 * level:g} % interval':>29}"
        rows = [
            f"{name:{width}}  {v:13.6g}  {e:13.6g}  {low:13.6g} .. {high:<13.6g}".rstrip()
            if free
            else f"{name:{width}}  {v:13.6g}  {'held by a bound':>15}"
            for name, free, v, e, low, high in zip(names, space.in_order(self.free), *columns, strict=True)
        ]
        total = f"{entries(self.fun)} residuals, cost {float(self.cost):.6g}, {int(self.nfev)} evaluations"
        return "\n".join([self._headline(), head, *rows, total, self.message])

    def _directions(self) -> tuple[Array, Array, Array]:
        """Of R V = U S, in scaled parameters: which of S are seen, 1 / S of these and 0 of others, and V."""
        self._require_one("a covariance, or what follows from it,")
        ops, xp = self.space.backend, self.space.backend.namespace()
        R = self.factor if ops.is_array(self.factor) else self.factor.triangle()
        R = xp.concat([R, ops.identity(self.free.shape[0], self.free) * (1.0 - self.free)], axis=0)
        _, S, Vt = xp.linalg.svd(R, full_matrices=False)
        kept = R.shape[1] * ops.eps(self.free) * xp.max(S) < S
        return kept, xp.where(kept, 1.0 / xp.where(kept, S, xp.ones_like(S)), xp.zeros_like(S)), Vt.T

    def _variance(self, absolute_sigma: bool) -> tuple[Scalar, Any]:
        """s^2, and whether there are too few residuals to tell."""
        xp = self.space.backend.namespace()

        freedom = entries(self.fun) - xp.sum(self.space.ordered(self.free))
        size = 2.0 * self.cost / xp.where(freedom > 0, freedom, xp.ones_like(freedom))
        return (1.0 if absolute_sigma else size), (freedom <= 0) & (not absolute_sigma)

    def _quantile(self, level: float, absolute_sigma: bool) -> float:
        from scipy.special import ndtri, stdtrit  # here, since it takes longer to import than linop_gn

        self._require_one("an interval")
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level!r}.")
        if not self.space.backend.is_concrete(self.free):
            raise TypeError(
                "intervals take the degrees of freedom, which are not known while a program is being traced: take "
                "standard_errors() there, and intervals of what the program returns."
            )
        freedom = entries(self.fun) - float(np.sum(self.space.in_order(self.free)))
        if absolute_sigma or freedom <= 0:  # then errors are infinite
            return float(ndtri(0.5 + level / 2))
        return float(stdtrit(freedom, 0.5 + level / 2))

    def _told(self, lost: Array) -> Any:
        """``lost`` on the host; nothing where a program is being traced."""
        ops = self.space.backend
        return ops.to_numpy(lost) if ops.is_concrete(lost) else np.zeros(lost.shape, bool)

    def _warn(self, few: Any, lost: str, advice: str) -> None:
        """Say what is infinite."""
        ops = self.space.backend
        if lost:
            warnings.warn(f"the residuals do not determine {lost} infinite. Fix parameters, or {advice}.", stacklevel=3)
        elif ops.is_concrete(few) and bool(few):
            warnings.warn(
                "there are not more residuals than parameters: what follows from their spread is infinite.",
                stacklevel=3,
            )

    def _listed(self, x: Array) -> np.ndarray[Any, Any]:
        """A vector, or those of many fits, on the host in the order of the leaves."""
        return self.space.in_order(x) if len(x.shape) == 1 else self.space.in_order(x.T).T

    def _names_of(self, chosen: Any) -> list[str]:
        """The names of the entries of x that are chosen."""
        return [name for name, wanted in zip(self.entry_names, chosen, strict=True) if wanted]

    def _remarks(self) -> list[str]:
        lost: Any = (self._listed(self.effects) < 1e-6) & (self._listed(self.free) > 0)
        lost = np.atleast_2d(lost).any(axis=0)  # of many fits: in any of them
        unknown = self.status in (Status.NONFINITE_INPUT, Status.BREAKDOWN)  # nothing is known then
        lost &= not unknown
        remarks = [f"Without effect on the residuals: {', '.join(self._names_of(lost))}."] if lost.any() else []
        if unknown and (float(self.cost) < 1e-300 or float(self.cost) == math.inf):
            remarks.append("Squares of the residuals overflow or vanish: scale these.")
        limit = getattr(getattr(self.state, "method", None), "max_nfev", None)
        if self.status is Status.MAX_STEPS and limit is not None and int(self.nfev) >= limit:
            remarks.append("The limit was max_nfev.")
        if self.derivatives:
            remarks.append(f"Derivatives are finite differences ({self.derivatives}); jac= is more accurate.")
        return remarks

    def _headline(self) -> str:
        if np.ndim(self.code):
            return f"{super()._headline()}; cost {brief(self.cost)}"
        return f"least_squares: {self.status.name.lower()} after {int(self.steps)} steps; cost {float(self.cost):.6g}"

    def _lines(self) -> list[str]:
        return [self._headline(), *self._table(), *self._sentences(), *self._remarks()]


def _at_inputs(function: Callable[..., Any], x: Tree, args: tuple[Any, ...]) -> Any:
    return function(x, *args)


def _alone(ops: Backend, function: Callable[..., Any], x: Tree, args: tuple[Any, ...]) -> Any:
    """What ``function`` returns, with an axis in front: of one value, or of its derivative."""
    _, leaves, structure = ops.flatten(function(x, *args))
    xp = ops.namespace()
    return ops.unflatten(structure, [xp.reshape(leaf, (1, *getattr(leaf, "shape", ()))) for leaf in leaves])


def entries(x: Array) -> int:
    """How many numbers x has."""
    return math.prod(tuple(x.shape))
