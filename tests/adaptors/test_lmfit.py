"""Parameters of lmfit as start and bounds, against lmfit's own fit."""

import numpy as np
import pytest

import linop_gn as lg


class Parameter:
    """What is asked of a parameter, for where lmfit is not installed."""

    def __init__(self, name, value, vary=True, min=-np.inf, max=np.inf, expr=None):  # noqa: A002
        self.name, self.value, self.vary, self.min, self.max, self.expr = name, value, vary, min, max, expr


class Parameters(dict):
    def add(self, name, **given):
        self[name] = Parameter(name, **given)

    def valuesdict(self):
        return {name: p.value for name, p in self.items()}


@pytest.fixture(params=["lmfit", "alike"])
def parameters(request):
    kind = pytest.importorskip("lmfit").Parameters if request.param == "lmfit" else Parameters
    made = kind()
    made.add("a", value=1.0, min=0.0)
    made.add("k", value=1.0, min=0.0, max=5.0)
    made.add("c", value=0.3, vary=False)
    return made


t = np.linspace(0, 4, 20)
y = 2.0 * np.exp(-0.5 * t) + 0.3 + 0.01 * np.random.default_rng(0).standard_normal(20)


def by_name(p):
    return p["a"] * np.exp(-p["k"] * t) + p["c"] - y


def by_value(p):
    v = p.valuesdict()
    return v["a"] * np.exp(-v["k"] * t) + v["c"] - y


@pytest.mark.parametrize("residuals", [by_name, by_value])
def test_value_min_max_and_vary_are_start_and_bounds(parameters, residuals):
    fit = lg.least_squares(residuals, parameters)
    assert fit.success
    assert fit.x["c"] == 0.3
    assert fit.standard_errors()["c"] == 0.0
    same = lg.least_squares(
        lambda x: x[0] * np.exp(-x[1] * t) + 0.3 - y, [1.0, 1.0], bounds=([0.0, 0.0], [np.inf, 5.0])
    )
    np.testing.assert_allclose([fit.x["a"], fit.x["k"]], same.x, rtol=1e-6)
    assert {name: p.value for name, p in parameters.items()} == {"a": 1.0, "k": 1.0, "c": 0.3}
    parameters["a"].max = 1.8
    assert lg.least_squares(residuals, parameters).x["a"] == 1.8


def test_lmfit_finds_the_same(parameters):
    lmfit = pytest.importorskip("lmfit")
    if not isinstance(parameters, lmfit.Parameters):
        pytest.skip("not lmfit's")
    ours, theirs = lg.least_squares(by_value, parameters), lmfit.minimize(by_value, parameters).params
    for name in ("a", "k"):
        np.testing.assert_allclose(ours.x[name], theirs[name].value, rtol=1e-5)
        np.testing.assert_allclose(ours.standard_errors()[name], theirs[name].stderr, rtol=1e-3)


def test_what_cannot_be_used_is_refused(parameters):
    with pytest.raises(ValueError, match="leave bounds= out"):
        lg.least_squares(by_name, parameters, bounds=(0.0, 1.0))
    parameters.add("d", value=1.0, expr="2 * a")
    with pytest.raises(ValueError, match="'d' is an expression of others"):
        lg.least_squares(by_name, parameters)


def test_a_start_by_name_is_none_of_a_model_with_separate_arguments(parameters):
    for p0 in (parameters, {"a": 1.0, "k": 1.0}):
        with pytest.raises(TypeError, match=r"lg.least_squares\(lambda p: f\(xdata, \*\*p\) - ydata, p0\)"):
            lg.curve_fit(lambda t, a, k: a * np.exp(-k * t), t, y, p0)
    fit = lg.least_squares(lambda p: (lambda t, a, k, c: a * np.exp(-k * t) + c)(t, **p) - y, parameters)
    assert fit.x == lg.least_squares(by_name, parameters).x
