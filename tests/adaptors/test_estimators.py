"""Estimators held to scikit-learn's own checks, and to its estimators that minimise the same."""

import pickle

import numpy as np
import pytest

import linop_gn as lg

pytest.importorskip("sklearn")
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.linear_model import LinearRegression, LogisticRegression  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import estimator_checks_generator  # noqa: E402


@pytest.mark.parametrize("made", [lg.LMRegressor(), lg.NewtonClassifier()], ids=["LMRegressor", "NewtonClassifier"])
def test_scikit_learns_checks(made):
    failed = []
    for estimator, check in estimator_checks_generator(made):
        try:
            check(estimator)
        except Exception as error:
            if type(error).__name__ not in ("SkipTest", "Skipped"):
                failed.append((check, repr(error)[:600]))
    assert failed == []
