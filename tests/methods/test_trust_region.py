"""Trust regions on problems of Moré, Garbow and Hillstrom as scalar functions, beside SciPy's trust-krylov."""

import mgh
import numpy as np
import pytest
import scipy.optimize

import linop_gn as lg

D = lg.descents
NAMES = ("Rosenbrock", "Beale", "Kowalik-Osborne")
PROBLEMS = {problem.name: problem for problem in mgh.problems() if problem.name in NAMES}


class Scalar:
    """f = 1/2 |r|^2: the gradient by complex steps, products with the Hessian by differences of it."""

    def __init__(self, problem, units=1.0, weight=1.0):
        self.problem, self.units, self.weight, self.products = problem, units, weight, 0

    def value(self, x):
        r = self.problem.fun(np, x / self.units)
        return 0.5 * self.weight**2 * float(r @ r)

    def gradient(self, x):
        z, eye = x / self.units, 1e-30j * np.eye(x.size)
        J = np.stack([self.problem.fun(np, z + step).imag / 1e-30 for step in eye], axis=1)
        return self.weight**2 * (J.T @ self.problem.fun(np, z)) / self.units

    def hvp(self, x, v):
        self.products += 1
        t = 1e-5 / max(np.linalg.norm(v / self.units), 1e-300)
        return (self.gradient(x + t * v) - self.gradient(x - t * v)) / (2 * t)

    def objective(self):
        return lg.Objective.from_function(self.value, gradient=self.gradient, hvp=self.hvp)

    def is_solved(self, value):
        return self.problem.is_solved(2 * value / self.weight**2)


def until_solved(case, values, products):
    """Products until the value first is that of a minimum."""
    return next(p for f, p in zip(values, products, strict=True) if case.is_solved(f))


def test_products_to_a_minimum_are_no_more_than_those_of_trust_krylov():
    ours, theirs = [], []
    for problem in PROBLEMS.values():
        case = Scalar(problem)
        fit = lg.minimize(case.objective(), problem.start, lg.TrustRegion(), max_steps=100)
        assert fit.succeeded
        assert fit.status is not lg.Status.UNEXPLORED  # it has looked at the curvature
        ours.append(until_solved(case, fit.history["value"], fit.history["products"]))
        peer, seen = Scalar(problem), []

        def look(x, peer=peer, seen=seen):
            seen.append((peer.value(x), peer.products))

        given = {"jac": peer.gradient, "hessp": peer.hvp, "method": "trust-krylov", "callback": look}
        scipy.optimize.minimize(peer.value, problem.start, options={"gtol": 1e-6, "maxiter": 100}, **given)
        theirs.append(until_solved(peer, *zip(*seen, strict=True)))
    assert np.median(ours) <= np.median(theirs)
    assert sum(ours) <= sum(theirs)


@pytest.mark.parametrize(
    "method", [lg.TrustRegion(x_scale="start"), lg.NewtonCG(x_scale="start")], ids=["TrustRegion", "NewtonCG"]
)
def test_units_from_1e_minus_9_to_1e9_change_nothing(method):
    problem, k = PROBLEMS["Kowalik-Osborne"], 2.0**30
    runs = []
    for units, weight in ((np.ones(4), 1.0), (np.array([k, 1 / k, k, 1 / k]), 1.0), (np.full(4, k), 1 / k)):
        fit = lg.minimize(Scalar(problem, units, weight).objective(), problem.start * units, method, max_steps=40)
        assert problem.is_solved(2 * fit.value / weight**2)
        runs.append((fit.params / units, fit.steps, fit.products))
    for run in runs[1:]:  # powers of two: but for the differences in hvp, not even rounding
        np.testing.assert_allclose(run[0], runs[0][0], rtol=1e-7)
        assert run[1:] == runs[0][1:]


def test_a_promise_that_rounding_may_hide_is_asked_for_in_full():
    """A step along the stiff direction alone meets the tolerance, and promises 5e-11 of 1; the soft one 1e-3."""
    stiffness = np.array([1e8, 1e-4])
    bowl = lg.Objective.from_function(
        lambda p: 1.0 + 0.5 * float(p @ (stiffness * p)),
        gradient=lambda p: stiffness * p,
        hvp=lambda p, v: stiffness * v,
    )
    fit = lg.minimize(bowl, np.array([1e-9, 5.0]), lg.TrustRegion(radius=1e4), max_steps=1)
    assert fit.value == pytest.approx(1.0, rel=1e-9)
    assert fit.products <= 4


def test_a_step_that_rounding_swallows_ends_the_run():
    """1 + |p - 1| from its minimum, with a gradient of rounding: only a length of nothing is no worse."""
    sharp = lg.Objective.from_function(
        lambda p: 1.0 + float(abs(p - 1.0).sum()), gradient=lambda p: np.array([1.5e-7]), hvp=lambda p, v: 10.0 * v
    )
    fit = lg.minimize(sharp, np.ones(1), lg.NewtonCG(), max_steps=20)
    assert fit.steps < 20
    assert fit.value == 1.0


def test_a_region_never_shrinks_to_nothing():
    wall = lg.Objective.from_function(
        lambda p: 0.0 if p[0] == 0 else np.inf, gradient=lambda p: np.ones(1), hvp=lambda p, v: 1.0 * v
    )
    fit = lg.minimize(wall, np.zeros(1), lg.TrustRegion(radius=1e-200, stopping=None), max_steps=220)
    assert fit.history["refused"][-1] == 220
    assert fit.history["radius"][-1] == pytest.approx(1e-230)
