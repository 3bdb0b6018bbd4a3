"""Fits and classifiers as estimators of scikit-learn."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from ..arguments import called, require_number
from ..curvature.at_point import GGN
from ..curvature.losses import BinaryCrossEntropy, CrossEntropy
from ..curvature.objective import Objective
from ..least_squares import least_squares
from ..methods.named import TrustRegion
from ..minimize import minimize
from ..records import replace

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
except ImportError:  # estimators say so when they are made
    BaseEstimator, ClassifierMixin = object, type("Absent", (), {})
    RegressorMixin = ClassifierMixin

__all__ = ["LMRegressor", "NewtonClassifier"]


class _Estimator(BaseEstimator):  # type: ignore[misc]
    """What the two have in common."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if BaseEstimator is object:
            raise ImportError(
                f"{cls.__name__} is an estimator of scikit-learn, which is missing: pip install scikit-learn."
            )
        return super().__new__(cls)

    def _start(self, function: Any, start: Any) -> Any:
        if function is None and start is not None:
            raise ValueError(f"{type(self).__name__}: start= is for the parameters of a function=, and there is none.")
        if function is not None and start is None:
            raise ValueError(f"{type(self).__name__}: function= needs start=, a tree of arrays to begin at.")
        return start

    def _ended(self, result: Any) -> None:
        """Keep what the run says, and warn unless it is a success."""
        from sklearn.exceptions import ConvergenceWarning

        self.result_ = replace(result, state=None)
        self.n_iter_ = max(1, int(result.steps))
        if not result.succeeded:
            warnings.warn(f"{type(self).__name__}: {result.status.sentence}", ConvergenceWarning, stacklevel=3)

    def _inputs(self, X: Any) -> Any:
        from sklearn.utils.validation import check_is_fitted, validate_data

        check_is_fitted(self)
        return validate_data(self, X, reset=False, dtype=np.float64)


def _weights(X: Any, sample_weight: Any) -> Any:
    from sklearn.utils.validation import _check_sample_weight

    return _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)


def _line(p: Any, X: Any) -> Any:
    return X @ p["coef"] + p["intercept"]


class LMRegressor(RegressorMixin, _Estimator):  # type: ignore[misc]
    """Nonlinear regression by :func:`linop_gn.least_squares`; without a function, a linear one.

    Parameters
    ----------
    function
        ``function(params, X)``: predictions (N,). None: ``X @ coef + intercept``.
    start
        Where the parameters begin: an array or a tree of arrays.
    bounds, loss, f_scale, solver, max_steps, derivatives
        As for :func:`linop_gn.least_squares`. ``derivatives=`` is the name of the framework that the function is
        written in; without it finite differences are taken.

    Attributes
    ----------
    params_
        The parameters found, like ``start``; of the linear one a dict of ``coef`` and ``intercept``.
    coef_, intercept_
        Of the linear one, (n,) and a number.
    result_
        The :class:`~linop_gn.LeastSquaresResult`, with ``standard_errors()`` and ``covariance()``.
    n_iter_, n_features_in_

    >>> import numpy as np, linop_gn as lg
    >>> t = np.linspace(0.0, 3.0, 20)[:, None]
    >>> y = 2.0 * np.exp(-0.5 * t[:, 0])
    >>> decay = lg.LMRegressor(lambda p, X: p[0] * np.exp(-p[1] * X[:, 0]), np.array([1.0, 1.0]))
    >>> decay.fit(t, y).params_.round(6), decay.predict(t[:2]).round(3)
    (array([2. , 0.5]), array([2.   , 1.848]))
    """

    def __init__(
        self,
        function: Any = None,
        start: Any = None,
        *,
        bounds: Any = (-np.inf, np.inf),
        loss: Any = "linear",
        f_scale: float = 1.0,
        solver: Any = None,
        max_steps: int = 500,
        derivatives: str | None = None,
    ) -> None:
        self.function, self.start, self.bounds, self.loss = function, start, bounds, loss
        self.f_scale, self.solver, self.max_steps, self.derivatives = f_scale, solver, max_steps, derivatives

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LMRegressor:
        """Minimise the weighted squares of ``function(params, X) - y``, or a robust loss of them."""
        from sklearn.utils.validation import validate_data

        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        root = np.sqrt(_weights(X, sample_weight))
        counts = root > 0
        if counts.any() and not counts.all():  # samples that do not count are no degrees of freedom of standard errors
            X, y, root = X[counts], y[counts], root[counts]
        function, start = self.function, self._start(self.function, self.start)
        extra: dict[str, Any] = {"derivatives": self.derivatives}
        if function is None:
            # The columns are centred, so that the intercept is found beside any of them.
            total = np.sum(root**2)
            middle = (root**2 @ X) / total if total > 0 else np.zeros(X.shape[1])
            moved = X - middle
            found = least_squares(
                lambda p: (_line(p, moved) - y) * root,
                {"coef": np.zeros(X.shape[1]), "intercept": np.zeros(())},
                lambda p: {"coef": root[:, None] * moved, "intercept": root},
                x_scale="jac",
                **self._settings(),
            )
            self.params_ = {"coef": found.x["coef"], "intercept": found.x["intercept"] - middle @ found.x["coef"]}
            self.coef_, self.intercept_ = self.params_["coef"], float(self.params_["intercept"])
        else:

            def residuals(p: Any, X: Any, y: Any, root: Any) -> Any:
                z = called("function", "(params, X)", function, p, X)
                if tuple(z.shape) != tuple(y.shape):
                    raise ValueError(f"LMRegressor: function must return {tuple(y.shape)}, got {tuple(z.shape)}.")
                return (z - y) * root

            found = least_squares(residuals, start, args=(X, y, root), **extra, **self._settings())
            self.params_ = found.x
        self._ended(found)
        return self

    def _settings(self) -> dict[str, Any]:
        names = ("bounds", "loss", "f_scale", "solver", "max_steps")
        return {name: getattr(self, name) for name in names}

    def predict(self, X: Any) -> Any:
        """The predictions (N,), a NumPy array."""
        X = self._inputs(X)
        return _line(self.params_, X) if self.function is None else _called(self, self.params_, X)


class NewtonClassifier(ClassifierMixin, _Estimator):  # type: ignore[misc]
    """Classification by cross-entropy and Gauss-Newton steps; without a function, logistic regression by Newton's.

    Minimises sum_i w_i loss(logits_i, y_i) + ||params||^2 / 2C; of the linear one without the intercept, as
    ``sklearn.linear_model.LogisticRegression`` does.

    Parameters
    ----------
    function
        ``function(params, X)``: logits (N, classes); of two classes also (N,), those of the second. None: linear.
    start
        Where the parameters begin: an array or a tree of arrays.
    C
        Inverse of the penalty; None: no penalty.
    method
        An :class:`~linop_gn.Method`; ``lg.TrustRegion(curvature=lg.GGN)``, which for linear logits is Newton's, by
        default.
    max_steps
        Limit on steps.
    derivatives
        The name of the framework that the function is written in, as for :class:`linop_gn.Objective`.

    Attributes
    ----------
    classes_, params_, result_, n_iter_, n_features_in_
        ``result_`` is the :class:`~linop_gn.Result`.
    coef_, intercept_
        Of the linear one, (1, n) and (1,) of two classes; of several, intercepts of mean zero.

    >>> import numpy as np, linop_gn as lg
    >>> X, y = np.array([[-2.0], [-1.0], [0.5], [2.0]]), np.array(["no", "no", "yes", "yes"])
    >>> lg.NewtonClassifier().fit(X, y).predict([[-3.0], [3.0]])
    array(['no', 'yes'], dtype='<U3')
    """

    def __init__(
        self,
        function: Any = None,
        start: Any = None,
        *,
        C: float | None = 1.0,
        method: Any = None,
        max_steps: int = 200,
        derivatives: str | None = None,
    ) -> None:
        self.function, self.start, self.C, self.method = function, start, C, method
        self.max_steps, self.derivatives = max_steps, derivatives

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> NewtonClassifier:
        """Minimise the penalised cross-entropy of the logits."""
        from sklearn.utils.multiclass import check_classification_targets
        from sklearn.utils.validation import validate_data

        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        require_number("NewtonClassifier", "C", self.C, positive=True, optional=True)
        weights = _weights(X, sample_weight)
        self.classes_, labels = np.unique(y, return_inverse=True)
        many = len(self.classes_)
        if many < 2:
            raise ValueError(
                f"NewtonClassifier needs samples of at least 2 classes, got one class: {self.classes_[0]}."
            )
        start = self._start(self.function, self.start)
        l2: Any = 0.0 if self.C is None else 1.0 / self.C
        if self.function is None:
            wide = () if many == 2 else (many,)
            start, l2 = (
                {"coef": np.zeros((X.shape[1], *wide)), "intercept": np.zeros(wide)},
                {"coef": l2, "intercept": 0.0},
            )
            logits: Any = _line
            ways: dict[str, Any] = {"jvp": _line_along, "vjp": _line_across}
            one = many == 2
        else:
            logits, ways = self.function, {"derivatives": self.derivatives}
            one = _called(self, start, X).ndim == 1
            if one and many > 2:
                raise ValueError(
                    f"NewtonClassifier: function must return logits (N, {many}) of {many} classes, got (N,)."
                )
        loss = BinaryCrossEntropy(reduction="sum") if one else CrossEntropy(reduction="sum")
        targets = labels.astype(np.float64) if one else labels
        objective = Objective(logits, loss, (X, targets, weights), l2=l2, **ways)
        method = TrustRegion(curvature=GGN) if self.method is None else self.method
        result = minimize(objective, start, method, max_steps=self.max_steps)
        self.params_ = result.params
        if self.function is None:
            intercept = result.params["intercept"]
            if many > 2:  # a number added to all of them changes nothing: rounding alone would tell which
                intercept = intercept - intercept.mean()
            self.params_ = {"coef": result.params["coef"], "intercept": intercept}
            self.coef_, self.intercept_ = np.atleast_2d(result.params["coef"].T), np.atleast_1d(intercept)
        self._ended(result)
        return self

    def decision_function(self, X: Any) -> Any:
        """The logits (N, classes); of two classes (N,): those of the second, less those of the first."""
        X = self._inputs(X)
        z = _line(self.params_, X) if self.function is None else _called(self, self.params_, X)
        return z[:, 1] - z[:, 0] if z.ndim == 2 and len(self.classes_) == 2 else z

    def predict_proba(self, X: Any) -> Any:
        """The probabilities (N, classes)."""
        z = self.decision_function(X)
        z = np.stack([np.zeros_like(z), z], axis=1) if z.ndim == 1 else z
        p = np.exp(z - z.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> Any:
        """The most probable class of each row."""
        z = self.decision_function(X)
        return self.classes_[(z > 0).astype(int) if z.ndim == 1 else z.argmax(axis=1)]


def _line_along(p: Any, X: Any, v: Any) -> Any:
    return _line(v, X)


def _line_across(p: Any, X: Any, u: Any) -> Any:
    return {"coef": X.T @ u, "intercept": np.asarray(u.sum(axis=0))}


def _called(estimator: Any, params: Any, X: Any) -> Any:
    """The outputs of the estimator's function as a NumPy array."""
    objective = Objective(
        estimator.function, CrossEntropy(), (X, np.zeros(len(X), int)), derivatives=estimator.derivatives
    )
    return np.asarray(objective.outputs(params), dtype=np.float64)
