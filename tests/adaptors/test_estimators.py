"""Estimators held to scikit-learn's own checks, and to its estimators that minimise the same."""

import pickle
import warnings

import numpy as np
import pytest

import linop_gn as lg

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

rng = np.random.default_rng(0)
X = 3.0 + rng.standard_normal((30, 3))
LABELS = (X @ [1.0, -1.0, 0.5] + rng.standard_normal(30)).round() % 3
WEIGHTS = rng.integers(0, 4, 30).astype(float)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # of one class alone there is no minimum
@pytest.mark.parametrize("made", [lg.LMRegressor(), lg.NewtonClassifier(max_steps=40)], ids=["fit", "classes"])
def test_scikit_learns_checks(made):
    failed, done = [], 0
    for estimator, check in estimator_checks_generator(made):
        try:
            check(estimator)
            done += 1
        except Exception as error:
            if type(error).__name__ not in ("SkipTest", "Skipped"):
                failed.append((check, repr(error)[:600]))
    assert failed == []
    assert done > 40


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["", "weights"])
@pytest.mark.parametrize("many", [2, 3])
def test_logistic_regression_is_scikit_learns(many, weights):
    y = np.array(["a", "b", "c"])[LABELS.astype(int) % many]
    ours = lg.NewtonClassifier(C=0.7).fit(X, y, weights)
    theirs = LogisticRegression(C=0.7, tol=1e-12, max_iter=9999, solver="newton-cg").fit(X, y, weights)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-6)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    assert ours.decision_function(X).shape == theirs.decision_function(X).shape
    assert ours.result_.succeeded
    assert many == 2 or abs(ours.intercept_.mean()) < 1e-12


def test_linear_regression_is_scikit_learns():
    y = X @ [1.0, 2.0, 3.0] + 1e3 + rng.standard_normal(30)
    for weights in (None, WEIGHTS):
        ours, theirs = lg.LMRegressor().fit(X, y, weights), LinearRegression().fit(X, y, weights)
        np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-8)
        np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=1e-8)
        np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-10)
    assert ours.result_.succeeded
    some = WEIGHTS > 0
    alone = lg.LMRegressor().fit(X[some], y[some], WEIGHTS[some])
    errors, expected = (fit.result_.standard_errors() for fit in (lg.LMRegressor().fit(X, y, WEIGHTS), alone))
    np.testing.assert_allclose(errors["coef"], expected["coef"], rtol=1e-8)


def decay(p, X):
    return p["a"] * np.exp(-p["k"] * X[:, 0])


START = {"a": np.array(1.0), "k": np.array(1.0)}


def test_a_function_with_bounds_weights_and_a_robust_loss():
    t = np.linspace(0, 4, 25)[:, None]
    y = 2.0 * np.exp(-0.5 * t[:, 0])
    y[3] = 50.0
    weights = np.ones(25)
    weights[3] = 0.0
    for made, w in (
        (lg.LMRegressor(decay, START, loss="cauchy", f_scale=0.01), None),
        (lg.LMRegressor(decay, START), weights),
    ):
        fit = clone(made).fit(t, y, w)
        np.testing.assert_allclose([fit.params_["a"], fit.params_["k"]], [2.0, 0.5], atol=1e-3)
    fit = lg.LMRegressor(decay, START, bounds=(0.0, 1.5)).fit(t, y, weights)
    assert fit.params_["a"] == 1.5
    again = pickle.loads(pickle.dumps(fit))
    np.testing.assert_array_equal(again.predict(t), fit.predict(t))


def test_functions_of_another_framework():
    anp = pytest.importorskip("autograd.numpy")

    def logits(p, X):
        return anp.tanh(X @ p["w"]) @ p["v"]

    start = {"w": rng.standard_normal((3, 4)), "v": rng.standard_normal((4, 3))}
    made = lg.NewtonClassifier(logits, start, derivatives="autograd", C=10.0, max_steps=60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of a small network the minimum is far away
        fit = made.fit(X - 3.0, LABELS)
    assert fit.result_.value < 0.9 * 30 * np.log(3)
    assert fit.predict_proba(X).shape == (30, 3)
    two = lg.NewtonClassifier(lambda p, X: X @ p, np.zeros(3), derivatives="autograd").fit(X - 3.0, LABELS > 0)
    theirs = LogisticRegression(fit_intercept=False, tol=1e-10).fit(X - 3.0, LABELS > 0)
    np.testing.assert_allclose(two.params_, theirs.coef_[0], atol=1e-4)
    with pytest.raises(ValueError, match=r"logits \(N, 3\) of 3 classes, got \(N,\)"):
        two.fit(X, LABELS)
    line = lg.LMRegressor(lambda p, X: X @ p, np.zeros(3), derivatives="autograd").fit(X, X @ [1.0, 2.0, 3.0])
    np.testing.assert_allclose(line.params_, [1.0, 2.0, 3.0], rtol=1e-8)


def test_in_pipelines_and_searches():
    search = GridSearchCV(
        make_pipeline(StandardScaler(), lg.NewtonClassifier()), {"newtonclassifier__C": [0.1, 1.0]}, cv=2
    )
    assert 0.3 < search.fit(X, LABELS > 0).best_score_ <= 1.0


def test_what_cannot_be_used_is_refused_and_no_minimum_is_told():
    with pytest.raises(ValueError, match="function= needs start="):
        lg.LMRegressor(decay).fit(X, LABELS)
    with pytest.raises(ValueError, match="there is none"):
        lg.NewtonClassifier(start=np.zeros(3)).fit(X, LABELS)
    with pytest.raises(ValueError, match=r"function must return \(30,\), got \(30, 3\)"):
        lg.LMRegressor(lambda p, X: p * X, np.ones(3)).fit(X, LABELS)
    with pytest.raises(ValueError, match="C"):
        lg.NewtonClassifier(C=-1.0).fit(X, LABELS)
    with pytest.warns(ConvergenceWarning, match="limit on steps"):
        lg.NewtonClassifier(max_steps=1).fit(X, LABELS)
