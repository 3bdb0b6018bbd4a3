"""The door of least squares against NIST's certified values, SciPy, and its own promises."""

import re
import warnings

import mgh
import nist
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import scipy.stats
from systems import FULL, in_full

import linop_gn as lg

IN_CI_ON_JAX = ("test_trees_come_back_as_they_are", "test_curve_fit_on_frameworks")

STARTS = [(name, i) for name in nist.MODELS for i in (0, 1)]
NEAR = [pytest.param(name, i, marks=in_full if i == 0 else ()) for name, i in STARTS]
COMPILED = {("MGH10", 1)}
FEW = [pytest.param(*start, marks=() if start in COMPILED else in_full) for start in STARTS]


def load(name):
    pytest.importorskip(name)
    return lg.load(name)


@pytest.fixture(scope="module", params=["numpy", "torch", "jax"])
def ops(request):
    return load(request.param)


def certified(ops, name, start):
    made = nist.problem(name)
    fit = nist.fit(ops, made, made.starts[start])
    b, total = ops.to_numpy(fit.x), nist.sum_at(made, ops.to_numpy(fit.x))
    assert fit.success, fit
    np.testing.assert_allclose(b, made.certified, rtol=1e-4)
    if nist.is_exact(made):
        assert total < 1e-20
    else:
        assert total == pytest.approx(made.sum_of_squares, rel=1e-6)
    errors = ops.to_numpy(fit.standard_errors())
    np.testing.assert_allclose(errors, made.deviations, rtol=1e-2 if nist.is_exact(made) else 1e-4)
    assert int(fit.steps) <= 500
    return fit


@pytest.mark.parametrize(("name", "start"), STARTS)
def test_nist(name, start):
    certified(lg.load("numpy"), name, start)


@pytest.mark.parametrize(("name", "start"), NEAR)
def test_nist_on_torch(name, start):
    certified(load("torch"), name, start)


@pytest.mark.parametrize(("name", "start"), FEW)
def test_nist_on_jax(name, start):
    certified(load("jax"), name, start)


def test_nist_in_single_precision():
    """Two digits of the parameters in 47 or 48 of 54, by BLAS's kernel, and nothing told that is not so."""
    ops, right = lg.load("numpy"), 0
    for name, start in STARTS:
        made = nist.problem(name)
        fit = nist.fit(ops, made, made.starts[start], "float32")
        assert fit.x.dtype == np.float32
        right += bool((abs(fit.x / made.certified - 1) < 1e-2).all())
        assert not nist.is_false(made, fit), name
    assert right >= 47


def test_more_garbow_hillstrom():
    """From their standard starts all 25 are solved, and no end is called a success that is none."""
    for problem in mgh.problems():
        is_right(problem, lg.least_squares(lambda x, p=problem: p.fun(np, x), problem.start, problem.jacobian))


def test_more_garbow_hillstrom_on_torch():
    torch = pytest.importorskip("torch")
    xp = lg.load("torch").namespace()
    for problem in mgh.problems(lambda a: torch.tensor(np.asarray(a, float)))[:: 1 if FULL else 3]:
        is_right(problem, lg.least_squares(lambda x, p=problem: p.fun(xp, x), torch.tensor(problem.start)))


def is_right(problem, fit):
    assert problem.is_solved(2 * float(fit.cost)), (problem.name, fit)
    # Of a minimum far above zero the last digits hang on rounding: then no decrease is left, and that is told.
    ended = fit.status.name == "NO_DECREASE" and fit.cost > 1e-3 and problem.name.startswith("Chebyquad")
    assert fit.success or ended, (problem.name, fit)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_units_change_nothing_but_rounding(unit, scale):
    t, y = np.linspace(0, 3, 20), 2 * np.exp(-0.7 * np.linspace(0, 3, 20)) + 0.1 * np.cos(9 * np.linspace(0, 3, 20))

    def fit(unit, scale):
        x = t * unit
        return lg.least_squares(
            lambda p: p[0] * np.exp(-p[1] * x) - y * scale,
            np.array([scale, 1 / unit]),
            lambda p: np.stack([np.exp(-p[1] * x), -p[0] * x * np.exp(-p[1] * x)], axis=1),
        )

    here, plain = fit(unit, scale), fit(1.0, 1.0)
    assert here.success
    assert here.steps == plain.steps
    np.testing.assert_allclose(here.x, plain.x * [scale, 1 / unit], rtol=1e-10)


T = np.linspace(0, 4, 15)
Y = 2 * np.exp(-0.5 * T) + 0.05 * np.cos(7 * T)
Y[4] += 0.5


def residuals(p):
    return p[0] * np.exp(-p[1] * T) + p[2] - Y


def slope(p):
    e = np.exp(-p[1] * T)
    return np.stack([e, -p[0] * T * e, np.ones_like(T)], axis=1)


@pytest.mark.parametrize("loss", ["linear", "huber", "soft_l1", "cauchy", "arctan"])
@pytest.mark.parametrize(
    "bounds", [(-np.inf, np.inf), ([0, 0, 0.1], [9, 9, 9]), ([0, 0, -9], [1.5, 9, 9]), ([1.0, 0.7, -9], [9, 9, 0.5])]
)
def test_bounds_and_losses_as_scipy_has_them(loss, bounds):
    start = np.array([1.2, 0.8, 0.3])
    options = {"loss": loss, "f_scale": 0.2, "bounds": bounds}
    ours = lg.least_squares(residuals, start, slope, **options)
    theirs = scipy.optimize.least_squares(residuals, start, slope, ftol=1e-15, xtol=1e-15, gtol=1e-15, **options)
    assert ours.success
    assert ours.cost <= theirs.cost * (1 + 1e-9)
    if ours.cost >= theirs.cost * (1 - 1e-6):  # not another minimum
        np.testing.assert_allclose(ours.x, theirs.x, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(ours.active_mask, theirs.active_mask)
        np.testing.assert_allclose(ours.fun, theirs.fun, atol=1e-6)
        np.testing.assert_allclose(ours.grad, theirs.grad, atol=1e-6)
    lower, upper = (np.broadcast_to(b, 3) for b in bounds)
    assert ((lower <= ours.x) & (ours.x <= upper)).all()


def test_every_trial_is_within_the_bounds():
    seen = []

    def fun(p):
        seen.append(p.copy())
        return residuals(p)

    for jac in (slope, "2-point", "3-point"):
        for lower, upper in (([0, 0, 0.1], [1.5, 9, 9]), ([1.5, 0, 0.1], [1.5, 9, 0.1 + 1e-12])):
            fit = lg.least_squares(fun, [1.5, 0.8, 0.1], jac, bounds=(lower, upper))
            assert (np.array(seen) >= lower).all(), jac
            assert (np.array(seen) <= upper).all(), jac
            exact = lg.least_squares(residuals, [1.5, 0.8, 0.1], slope, bounds=(lower, upper))
            np.testing.assert_allclose(fit.x, exact.x, rtol=1e-6)
            seen.clear()


def test_a_fixed_parameter_stays():
    fit = lg.least_squares(residuals, [1.0, 0.5, 0.3], slope, bounds=([-9, 0.5, -9], [9, 0.5, 9]))
    assert fit.success
    assert fit.x[1] == 0.5
    A = slope([1.0, 0.5, 0.0])[:, [0, 2]]
    best = np.linalg.lstsq(A, Y, rcond=None)[0]
    np.testing.assert_allclose(fit.x[[0, 2]], best, rtol=1e-9, atol=1e-8)
    s2 = 2 * fit.cost / (len(T) - 2)
    np.testing.assert_allclose(fit.covariance()[np.ix_([0, 2], [0, 2])], s2 * np.linalg.inv(A.T @ A), rtol=1e-9)
    assert (fit.covariance()[1] == 0).all()


def test_differences_are_told_and_taken_only_where_nothing_differentiates():
    exact = lg.least_squares(residuals, [1.0, 1.0, 0.0], slope)
    for jac, digits in ((None, 1e-6), ("2-point", 1e-6), ("3-point", 1e-9)):
        fit = lg.least_squares(residuals, [1.0, 1.0, 0.0], jac)
        assert fit.success
        assert "finite differences" in fit.message
        np.testing.assert_allclose(fit.x, exact.x, rtol=digits)
    assert "finite" not in exact.message
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="torch differentiates fun"):
        lg.least_squares(lambda p: p, torch.ones(2), "2-point")


def test_arguments_as_scipy_has_them():
    calls = []

    def fun(p, a, *, shift):
        return p[0] * np.exp(-p[1] * a) - shift

    options = {"args": (T,), "kwargs": {"shift": Y}}
    fit = lg.least_squares(fun, [1, 1], callback=lambda x: calls.append(x), **options)
    assert len(calls) == fit.steps
    np.testing.assert_array_equal(calls[-1], fit.x)
    jac = lambda p, a, *, shift: slope([*p, 0.0])[:, :2]  # noqa: E731
    np.testing.assert_allclose(lg.least_squares(fun, [1, 1], jac, **options).x, fit.x, rtol=1e-6)

    def stop(intermediate_result):
        if intermediate_result.nit == 2:
            raise StopIteration

    stopped = lg.least_squares(fun, [1, 1], callback=stop, **options)
    assert (stopped.status, stopped.scipy_status, stopped.steps) == (lg.Status.STOPPED, -2, 2)
    limited = lg.least_squares(fun, [1, 1], max_nfev=5, **options)
    assert (limited.status, limited.scipy_status) == (lg.Status.MAX_STEPS, 0)
    assert limited.nfev <= 6
    sparse = lg.least_squares(residuals, [1.0, 1.0, 0.0], lambda p: scipy.sparse.csr_array(slope(p)))
    np.testing.assert_allclose(sparse.x, lg.least_squares(residuals, [1.0, 1.0, 0.0], slope).x, rtol=1e-9)
    assert lg.least_squares(lambda x: (x - 3) * 2, 5).x == pytest.approx([3.0])
    assert lg.least_squares(lambda x: [x[0] - 3, x[1] + 1.0], [5, 5]).x == pytest.approx([3.0, -1.0])


@pytest.mark.parametrize("scale", [None, "jac", 1.0, [2.0, 0.5, 1.0]])
def test_scales(scale):
    fit = lg.least_squares(residuals, [1.0, 1.0, 0.1], slope, x_scale=scale)
    assert fit.success
    np.testing.assert_allclose(fit.x, lg.least_squares(residuals, [1.0, 1.0, 0.1], slope).x, rtol=1e-6)


def test_tolerances_and_ends():
    start = [1.0, 1.0, 0.1]
    best = lg.least_squares(residuals, start, slope)
    again = lg.least_squares(residuals, best.x, slope)
    assert again.success
    assert again.steps <= 1
    for name, status, code in (("ftol", "DECREASE_SMALL", 2), ("xtol", "STEP_SMALL", 3), ("gtol", "GRADIENT_SMALL", 1)):
        others = {other: 0.0 for other in ("ftol", "xtol", "gtol") if other != name}
        fit = lg.least_squares(residuals, start, slope, **{name: 1e-3}, **others)
        assert (fit.status.name, fit.scipy_status) == (status, code)
        assert fit.steps < best.steps
        assert fit.cost <= best.cost * (1 + 2e-3)
    wrong = lg.least_squares(residuals, start, lambda p: -slope(p))
    assert wrong.status is lg.Status.NO_DECREASE
    flat = lg.least_squares(
        lambda p: np.stack([np.exp(-p[0]), 1.0]), [1.0], lambda p: np.array([[-np.exp(-p[0])], [0]])
    )
    assert flat.status is lg.Status.DIVERGING
    outside = lg.least_squares(lambda p: np.log(p), [-1.0, 2.0], lambda p: np.diag(1 / p))
    assert outside.status is lg.Status.NONFINITE_INPUT
    hollow = lg.least_squares(lambda x: (x - 3) ** 2 + 1, 1.0)  # its Jacobian is zero at the minimum
    assert hollow.success
    assert hollow.x == pytest.approx([3.0], abs=1e-6)


def test_what_the_residuals_do_not_determine_is_named():
    fit = lg.least_squares(lambda p: (p["a"] - 1) * T + 0 * p["b"] - 1, {"a": np.array(3.0), "b": np.array([2.0])})
    assert fit.success
    assert "Without effect on the residuals: b[0]." in fit.message
    with pytest.warns(UserWarning, match=re.escape("do not determine b[0]")):
        errors = fit.standard_errors()
    assert np.isinf(errors["b"]).all()
    assert np.isfinite(errors["a"])
    assert "b[0]" in fit.summary()


def test_covariance_is_that_of_curve_fit():
    sigma = 0.1 + 0.1 * T

    def weighted(p):
        return residuals(p) / sigma

    fit = lg.least_squares(weighted, [1.0, 1.0, 0.0], lambda p: slope(p) / sigma[:, None])
    for absolute in (True, False):
        _, expected = scipy.optimize.curve_fit(
            lambda t, a, b, c: a * np.exp(-b * t) + c,
            T,
            Y,
            [1, 1, 0],
            sigma=sigma,
            absolute_sigma=absolute,
            jac=lambda t, *p: slope(p),
            xtol=1e-14,
            ftol=1e-14,
            gtol=1e-14,
        )
        np.testing.assert_allclose(fit.covariance(absolute), expected, rtol=1e-6)
    C = fit.covariance()
    np.testing.assert_allclose(fit.correlations(), C / np.sqrt(np.outer(np.diag(C), np.diag(C))), rtol=1e-12)


def test_bands_of_a_line_are_the_textbook_s(ops):
    """b +- t s sqrt(1 / Sxx), and at new inputs s sqrt(1 / m + (t - mean)^2 / Sxx), with 1 + under the root of data."""
    t, new = ops.asarray(T, "float64"), np.array([0.5, 2.0, 9.0])
    y = ops.asarray(1 + 2 * T + 0.1 * np.cos(9 * T), "float64")
    start = {"a": ops.asarray(1.0, "float64"), "b": ops.asarray([1.0], "float64")}

    def line(p, t):
        return p["a"] + p["b"] * t

    jac = {"jac": lambda p: {"a": np.ones((15, 1))[:, 0], "b": T[:, None]}} if ops.calculus is None else {}
    fit = lg.least_squares(lambda p: line(p, t) - y, start, **jac)
    b = np.polynomial.polynomial.polyfit(T, ops.to_numpy(y), 1)
    s2 = np.sum((ops.to_numpy(y) - b[0] - b[1] * T) ** 2) / 13
    spread = np.sum((T - T.mean()) ** 2)
    quantile = scipy.stats.t.ppf(0.95, 13)
    errors = np.sqrt(s2 * np.array([1 / 15 + T.mean() ** 2 / spread, 1 / spread]))
    ends = fit.confidence_intervals(0.9)
    for end, sign in zip(ends, (-1, 1), strict=True):
        found = [float(end["a"]), float(end["b"][0])]
        np.testing.assert_allclose(found, b + sign * quantile * errors, rtol=1e-6)
    for kind, own in (("confidence", 0.0), ("prediction", 4.0)):
        band = fit.predict(line, ops.asarray(new, "float64"), level=0.9, kind=kind, sigma=2.0)
        error = np.sqrt(s2 * (own + 1 / 15 + (new - T.mean()) ** 2 / spread))
        np.testing.assert_allclose(ops.to_numpy(band.value), b[0] + b[1] * new, rtol=1e-6)
        np.testing.assert_allclose(ops.to_numpy(band.error), error, rtol=1e-6)
        np.testing.assert_allclose(ops.to_numpy(band.lower), b[0] + b[1] * new - quantile * error, rtol=1e-6)
        np.testing.assert_allclose(ops.to_numpy(band.upper), b[0] + b[1] * new + quantile * error, rtol=1e-6)
    many = fit.predict(line, ops.asarray(new[:1], "float64"))
    one = fit.predict(lambda p: p["a"] + p["b"][0] * float(new[0]))
    assert [tuple(part.shape) for part in one] == [()] * 4
    np.testing.assert_allclose([float(part) for part in one], [float(part[0]) for part in many], rtol=1e-9)
    np.testing.assert_allclose(
        [float(fit.x["a"] if name == "a" else fit.x["b"][0]) for name in fit.entry_names],
        [b["ab".index(name[0])] for name in fit.entry_names],
        rtol=1e-6,
    )


def test_bands_know_bounds_units_and_what_is_not_determined():
    fit = lg.least_squares(residuals, [1.2, 0.8, 0.3], slope, bounds=([0, 0, 0.1], [9, 9, 9]))
    assert fit.active_mask.tolist() == [0, 0, -1]

    def model(p, t):
        return p[0] * np.exp(-p[1] * t) + p[2]

    J = slope(fit.x)[:, :2]
    C = 2 * fit.cost / 13 * np.linalg.inv(J.T @ J)  # the third parameter counts as known
    np.testing.assert_allclose(fit.predict(model, T).error, np.sqrt(np.einsum("ij,jk,ik->i", J, C, J)), rtol=1e-6)
    low, high = fit.confidence_intervals(absolute_sigma=True)
    assert low[2] == high[2] == 0.1
    wide = scipy.stats.norm.ppf(0.975) * np.sqrt(np.diag(np.linalg.inv(J.T @ J)))
    np.testing.assert_allclose(high[:2] - low[:2], 2 * wide, rtol=1e-6)
    assert "held by a bound" in fit.summary()
    given = fit.predict(lambda p, t: np.outer(model(p, t), [1, 2]), T, jac=lambda p, t: np.kron(slope(p), [[1], [2]]))
    np.testing.assert_allclose(given.error[:, 0] * 2, given.error[:, 1], rtol=1e-12)
    np.testing.assert_allclose(given.error[:, 0], fit.predict(model, T).error, rtol=1e-8)

    alone = fit.predict(lambda p: model(p, T[3]), jac=lambda p: slope(p)[3])
    np.testing.assert_allclose([*alone], [part[3] for part in fit.predict(model, T)], rtol=1e-8)

    loose = lg.least_squares(lambda p: (p[0] - 1) * T + 0 * p[1] - 1, [3.0, 2.0])
    assert np.isfinite(loose.predict(lambda p, t: p[0] * t, T).error).all()
    with pytest.warns(UserWarning, match="do not determine 1 of the values"):
        assert np.isinf(loose.predict(lambda p, t: p[0] + p[1] * t, np.array([0.0, 1.0])).error).tolist() == [0, 1]
    exact = lg.least_squares(lambda p: p - np.array([1.0, 2.0]), [3.0, 3.0])
    with pytest.warns(UserWarning, match="not more residuals than parameters"):
        assert np.isinf(exact.predict(lambda p: p).error).all()
    np.testing.assert_allclose(exact.predict(lambda p: p, absolute_sigma=True).error, 1.0, rtol=1e-6)
    with pytest.raises(ValueError, match="'prediction'"):
        fit.predict(model, T, kind="both")
    with pytest.raises(ValueError, match="between 0 and 1"):
        fit.confidence_intervals(95)


@in_full
def test_bands_hold_what_they_say():
    """Of 1000 data sets with normal errors, each interval and each band has the truth as often as it says."""
    rng, truth, new = np.random.default_rng(0), np.array([2.0, 0.5, 0.1]), np.array([0.3, 2.0, 5.0])
    exact, inside = residuals(truth) + Y, np.zeros((3, 3))

    def model(p, t):
        return p[0] * np.exp(-p[1] * t) + p[2]

    for _ in range(1000):
        y = exact + 0.02 * rng.standard_normal(15)
        fit = lg.least_squares(lambda p, y=y: residuals(p) + Y - y, [1.5, 1.0, 0.0], slope)
        low, high = fit.confidence_intervals(0.9)
        inside[0] += (low <= truth) & (truth <= high)
        seen = model(truth, new) + 0.02 * rng.standard_normal(3)
        for row, (kind, at) in enumerate({"confidence": model(truth, new), "prediction": seen}.items(), 1):
            band = fit.predict(model, new, level=0.9, kind=kind)
            inside[row] += (band.lower <= at) & (at <= band.upper)
    assert (abs(inside / 1000 - 0.9) < 4 * np.sqrt(0.09 / 1000)).all(), inside


def test_trees_come_back_as_they_are(ops):
    t, y = ops.asarray(T, "float64"), ops.asarray(Y, "float64")
    xp = ops.namespace()
    start = {"amplitude": ops.asarray(1.0, "float64"), "rate": ops.asarray([1.0], "float64")}
    fit = lg.least_squares(
        lambda p: p["amplitude"] * xp.exp(-p["rate"] * t) - y, start, bounds=(0.0, 9.0), loss="huber"
    )
    assert fit.success
    assert set(fit.x) == set(fit.standard_errors()) == set(fit.active_mask) == {"amplitude", "rate"}
    assert tuple(fit.x["rate"].shape) == (1,)
    assert ops.is_array(fit.covariance())
    assert "rate[0]" in fit.summary()
    assert float(start["amplitude"]) == 1.0


def test_many_fits_at_once():
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    t = jnp.asarray(T)

    def fit(y):
        return lg.least_squares(lambda p, y: p[0] * jnp.exp(-p[1] * t) - y, jnp.ones(2), args=(y,))

    rates = jnp.array([0.5, 1.0, jnp.nan])
    found = jax.jit(jax.vmap(fit))(2 * jnp.exp(-rates[:, None] * t))
    np.testing.assert_allclose(found.x[:2], [[2, 0.5], [2, 1]], rtol=1e-6)
    assert [status.succeeded for status in found.status] == [True, True, False]
    assert (found.scipy_status[2], found.success) == (-1, False)
    assert "1 nonfinite_input" in repr(found)
    for ask in (found.covariance, found.confidence_intervals, found.summary, found.plot):
        with pytest.raises(TypeError, match=r"of one run, and these are 3. Choose one, jax.tree.map"):
            ask()
    if FULL:
        assert bool(jax.jit(fit)(2 * jnp.exp(-t)).succeeded)


def test_a_derivative_of_a_run_is_refused_and_no_other():
    jax = pytest.importorskip("jax")
    load("jax")
    jnp, t = jax.numpy, jax.numpy.asarray(T)

    def fit(y):
        return lg.least_squares(lambda p, y: p[0] * jnp.exp(-p[1] * t) - y, jnp.ones(2), args=(y,)).x

    def found(y):
        objective = lg.Objective.from_residuals(lambda p: p[0] * jnp.exp(-p[1] * t) - y)
        return lg.minimize(objective, jnp.ones(2)).params

    def from_y(y):
        return lg.minimize(lg.Objective.from_residuals(lambda p: p - 1.0), y).params

    y, wrong = jnp.exp(-t), pytest.raises(NotImplementedError, match="one step of Newton's method at the solution")
    for transform in jax.jacrev, jax.jacfwd, lambda f: jax.jit(jax.jacrev(f)), lambda f: jax.jacfwd(jax.jit(f)):
        for function in fit, from_y:
            with wrong:
                transform(function)(y)
    with wrong:
        jax.jacfwd(found)(y)  # what a function closes over is seen in the answer
    slopes = jax.grad(lambda y: jnp.sum(y * fit(jax.lax.stop_gradient(y))[0]))(y)
    np.testing.assert_allclose(slopes, 1.0)


def test_other_data_and_starts_compile_nothing():
    pytest.importorskip("jax")
    from linop_gn_jax import compilations

    ops = lg.load("jax")
    xp, t = ops.namespace(), ops.asarray(T, "float64")

    def fun(p, y):
        return p[0] * xp.exp(-p[1] * t) - y

    counts = []
    for i in range(3):
        y = ops.asarray((2 + i) * np.exp(-T), "float64")
        lg.least_squares(fun, ops.asarray([1.0 + i, 1.0], "float64"), args=(y,), ftol=10.0 ** -(9 + i))
        counts.append(sum(compilations().values()))
    assert counts[0] == counts[-1]


def test_a_fit_goes_on_from_a_state_or_a_file(ops, tmp_path):
    xp, t, y = ops.namespace(), ops.asarray(T, "float64"), ops.asarray(Y, "float64")
    start = ops.asarray([9.0, 9.0], "float64")  # half of the steps are refused

    def fun(p):
        return p[0] * xp.exp(-p[1] * t) - y

    whole = lg.least_squares(fun, start)
    begun = lg.least_squares(fun, start, max_steps=3, checkpoint=tmp_path / "fit")
    assert begun.status is lg.Status.MAX_STEPS
    state = begun.state
    ended = lg.least_squares(fun, None, state=state, max_steps=100)
    assert ended.success
    assert (int(ended.first), int(ended.steps)) == (3, int(whole.steps))
    np.testing.assert_allclose(ops.to_numpy(ended.x), ops.to_numpy(whole.x), rtol=1e-12)
    read = lg.least_squares(fun, start, checkpoint=tmp_path / "fit")
    for fit in (ended, read):
        assert np.array_equal(ops.to_numpy(fit.x), ops.to_numpy(whole.x)) or "compiled" in ops.capabilities
        np.testing.assert_allclose(fit.history["value"], whole.history["value"][3:], rtol=1e-6)
        np.testing.assert_allclose(
            ops.to_numpy(fit.standard_errors()), ops.to_numpy(whole.standard_errors()), rtol=1e-6
        )
    assert int(state.steps) == 3  # as it was
    again = lg.least_squares(fun, None, state=ended.state)
    assert again.success
    assert int(again.steps) <= int(ended.steps) + 1


def test_what_is_raised_leaves_with_the_state():
    def broken(look):
        if look.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        lg.least_squares(residuals, [1.0, 1.0, 0.1], slope, watch=[broken])
    error = caught.value
    assert "lg.least_squares(..., state=error.state)" in error.__notes__[0]
    assert isinstance(error.result, lg.LeastSquaresResult)
    assert error.result.steps == 2
    went_on = lg.least_squares(residuals, None, slope, state=error.state)
    assert went_on.success
    assert np.array_equal(went_on.x, lg.least_squares(residuals, [1.0, 1.0, 0.1], slope).x)
    state = lg.start(lg.LevenbergMarquardt(), lg.Objective.from_residuals(residuals, jacobian=slope), np.ones(3))
    for other in (state, 3):
        with pytest.raises(TypeError, match=r"state= is what fit\.state or error\.state gave"):
            lg.least_squares(residuals, None, slope, state=other)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"jac": "4-point"}, "'2-point', '3-point' or None"),
        ({"loss": "l2"}, "'soft_l1'"),
        ({"f_scale": 0.0}, "f_scale"),
        ({"bounds": (1.0, 0.0)}, "at most the upper"),
        ({"bounds": (2.0, 3.0)}, "x0 lies outside"),
        ({"bounds": 3.0}, "a pair"),
        ({"x_scale": "start"}, "x_scale"),
        ({"x_scale": [1.0, 2.0]}, "2 numbers for 3 parameters"),
        ({"x_scale": 0.0}, "positive and finite"),
        ({"bounds": (np.inf, -np.inf)}, "at most the upper"),
        ({"max_steps": 1.5}, "whole number"),
        ({"diff_step": -1.0}, "diff_step"),
    ],
)
def test_errors_are_advice(arguments, words):
    with pytest.raises(ValueError, match=words):
        lg.least_squares(residuals, [1.0, 1.0, 0.1], **arguments)
    with pytest.raises(TypeError, match="function of x"):
        lg.least_squares(np.ones(3), [1.0])


@pytest.mark.parametrize("start", [1e2, 1e6, 1e8, 1e9])
def test_a_step_that_is_small_beside_a_far_start_is_no_end(start):
    fit = lg.least_squares(lambda x: np.log(x) + 18.0, [start], lambda x: 1 / x[:, None])
    assert not fit.success or fit.cost <= 1e-9  # from 1e8 it was 3.4


@pytest.mark.parametrize("offset", [1e5, 1e7, 1e8])
def test_a_line_far_from_its_origin(offset):
    # Of two columns that are nearly one, what the damping allows was hidden by rounding of the value: an end, at 3.7.
    t = np.linspace(0.0, 1.0, 20)
    J = np.stack([t + offset, np.ones(20)], axis=1)
    fit = lg.least_squares(lambda p: J @ p - 2 * t, [1.0, 1.0], lambda p: J)
    assert fit.success is (offset < 1e8)
    assert fit.cost < 1e-15 or not fit.success


def test_a_column_too_small_to_be_factored_still_has_a_gain():
    J = np.array([[1e6, 0.0], [1e6, 0.0], [0.0, 1.0]])
    fit = lg.least_squares(lambda p: J @ p - [1.0, 2.0, 0.0], [1e12, 1.0], lambda p: J)
    assert fit.success
    np.testing.assert_allclose(fit.cost, 0.25, rtol=1e-9)


@pytest.mark.parametrize("seed", range(200 if FULL else 40))
def test_a_success_of_a_line_of_any_condition_is_its_least(seed):
    """Neither a small gradient nor a Jacobian that looks singular passes for a minimum where lstsq goes lower."""
    rng = np.random.default_rng(seed)
    m, n, dtype = int(rng.integers(6, 25)), int(rng.integers(2, 6)), [np.float64, np.float32][seed % 2]
    U, V = np.linalg.qr(rng.standard_normal((m, n)))[0], np.linalg.qr(rng.standard_normal((n, n)))[0]
    J = U * np.geomspace(1, 10 ** -rng.uniform(0, 11 if dtype is np.float64 else 5), n) @ V.T
    J, true = J * 10 ** rng.uniform(-4, 4, n), rng.standard_normal(n) * 10 ** rng.uniform(-3, 3)
    y = (J @ true + rng.standard_normal(m) * 10 ** rng.uniform(-4, -1) * np.linalg.norm(J @ true)).astype(dtype)
    J, x0 = J.astype(dtype), (rng.standard_normal(n) * 10 ** rng.uniform(-2, 2)).astype(dtype)
    fit = lg.least_squares(lambda p: J @ p - y, x0, lambda p: J)
    A, wide = J.astype(float), y.astype(float)
    least, found = (np.sum((A @ x - wide) ** 2) for x in (np.linalg.lstsq(A, wide)[0], fit.x.astype(float)))
    rounding = np.sum((4 * np.finfo(dtype).eps * (abs(A) @ abs(fit.x.astype(float)))) ** 2)
    assert not fit.success or found <= least * (1 + 1e-4) + rounding, fit


def test_differences_of_residuals_in_single_precision():
    fit = lg.least_squares(lambda x: (x - 1).astype(np.float32), [3.0, 3.0])
    np.testing.assert_allclose(fit.x, 1.0, rtol=1e-6)


def test_a_success_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = lg.least_squares(residuals, [1.0, 1.0, 0.1], slope)
        fit.covariance()
        assert "95 % interval" in fit.summary()


def decay(t, a, k, c):
    return a * np.exp(-k * t) + c


@pytest.mark.parametrize("sigma", [None, 0.1 + 0.1 * T, np.diag(0.1 + 0.1 * T) + 0.05])
@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("jac", [None, lambda t, *p: slope(p)])
def test_curve_fit_as_scipy_has_it(sigma, absolute, jac):
    tight = {"ftol": 1e-14, "xtol": 1e-14, "gtol": 1e-14}
    popt, pcov = lg.curve_fit(decay, T, Y, sigma=sigma, absolute_sigma=absolute, jac=jac)
    best, expected = scipy.optimize.curve_fit(
        decay, T, Y, sigma=sigma, absolute_sigma=absolute, jac=lambda t, *p: slope(p), **tight
    )
    np.testing.assert_allclose(popt, best, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(pcov, expected, rtol=1e-5)


def test_curve_fit_tells_of_data_that_come_last():
    y = 2.0 * T - 1.0
    with pytest.warns(UserWarning, match=r"'a' is the data here.*give lambda x, a, b: f\(a, b, x\)"):
        lg.curve_fit(lambda a, b, x: a * x + b, T, y)  # which is b + x * data: the two swapped
    with pytest.raises(TypeError, match=r"f is called as f\(xdata, \*params\), with 3 arguments"):
        lg.curve_fit(lambda t, p: p[0] * t + p[1], T, y, [1.0, 1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for line in (lambda x, a, t: a * x + t, lambda v, a, b: a * v + b):
            np.testing.assert_allclose(lg.curve_fit(line, T, y, [1.0, 1.0])[0], [2.0, -1.0], atol=1e-8)


def test_curve_fit_bounds_and_what_is_left_out():
    bounds = [0, 0, -9], [1.5, 9, 9]
    popt, _ = lg.curve_fit(decay, T, Y, bounds=bounds)
    best, _ = scipy.optimize.curve_fit(decay, T, Y, bounds=bounds, ftol=1e-14, xtol=1e-14, gtol=1e-14)
    np.testing.assert_allclose(popt, best, rtol=1e-5)
    with pytest.raises(ValueError, match=r"bounds are a pair .* tuple\(zip\(\*bounds\)\)"):
        lg.curve_fit(decay, T, Y, bounds=[(0, 1.5), (0, 9), (-9, 9)])
    broken = Y.copy()
    broken[3] = np.nan
    with pytest.raises(ValueError, match="nan_policy='omit'"):
        lg.curve_fit(decay, T, broken)
    popt, _, told, message, code = lg.curve_fit(decay, T, broken, nan_policy="omit", full_output=True)
    kept = np.isfinite(broken)
    np.testing.assert_array_equal(popt, lg.curve_fit(decay, T[kept], Y[kept])[0])
    assert told["fvec"].shape == (14,)
    assert code > 0
    assert message == told["result"].message
    with pytest.raises(RuntimeError, match="no optimal parameters"):
        lg.curve_fit(decay, T, Y, max_nfev=2)
    for sigma, words in ((0.0 * T, "not zero"), (-np.eye(15), "positive definite"), (np.ones((15, 15)), "definite")):
        with pytest.raises(ValueError, match=words):
            lg.curve_fit(decay, T, Y, sigma=sigma)
    pcov = [lg.curve_fit(decay, T, Y, sigma=sigma, absolute_sigma=True)[1] for sigma in (0.5, 0.5 + 0 * T)]
    np.testing.assert_array_equal(*pcov)
    with pytest.raises(ValueError, match="give p0"):
        lg.curve_fit(lambda t, *p: p[0] * t, T, Y)


def test_curve_fit_on_frameworks(ops):
    xp, t = ops.namespace(), ops.asarray(T, "float64")
    popt, pcov = lg.curve_fit(
        lambda t, a, k: a * xp.exp(-k * t), t, ops.asarray(Y, "float64"), sigma=ops.asarray(0.1 + T, "float64")
    )
    best, expected = scipy.optimize.curve_fit(
        lambda t, a, k: a * np.exp(-k * t), T, Y, sigma=0.1 + T, ftol=1e-14, xtol=1e-14, gtol=1e-14
    )
    assert ops.is_array(popt)
    np.testing.assert_allclose(ops.to_numpy(popt), best, rtol=1e-6)
    np.testing.assert_allclose(ops.to_numpy(pcov), expected, rtol=1e-4)


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    # It was taken for this run's: the old parameters came back, with the old cost, as a success.
    t = np.linspace(0.0, 3.0, 12)
    first, second = 2.0 * np.exp(-t) + 0.01 * np.sin(9 * t), 5.0 * np.exp(-0.2 * t)

    def fit(y):
        return lg.least_squares(lambda p: p[0] * np.exp(-p[1] * t) - y, [1.0, 1.0], checkpoint=tmp_path / "fit")

    cost = fit(first).cost
    assert fit(first).cost == cost
    with pytest.raises(ValueError, match=r"of another run: at its parameters the value was .*other data"):
        fit(second)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((lambda t, a: a * t, T, None), TypeError, "ydata an array"),
        ((None, T, T), TypeError, "f must be a function"),
        ((lambda t, a: a * t, [], []), ValueError, "there are no data"),
        ((lambda t, a: a * t, T, T + 0j), TypeError, "ydata are complex"),
        ((lambda t, a: a * t, T, T, None, np.eye(len(T)) + np.eye(len(T), k=1)), ValueError, "symmetric positive"),
        ((lambda t, a: a * t[:, None], T, T), ValueError, r"has shape \((\d+), \1\), and ydata"),
    ],
)
def test_curve_fit_names_what_it_cannot_use(arguments, error, says):
    with pytest.raises(error, match=says):
        lg.curve_fit(*arguments)
    assert np.allclose(lg.curve_fit(lambda t, a: a * t, list(T), list(2 * T))[0], 2.0)


def test_curve_fit_cannot_raise_within_a_program():
    jax = pytest.importorskip("jax")
    with pytest.raises(TypeError, match=r"call lg\.least_squares there"):
        jax.jit(lambda y: lg.curve_fit(lambda t, a: a * t, y, y))(jax.numpy.arange(4.0))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"method": "trf"}, TypeError, "got 'trf': leave SciPy's"),
        ({"loss": abs}, ValueError, "or one of lg.losses, such as"),
        ({"loss": lg.losses.Huber(), "f_scale": 0.1}, ValueError, "f_scale is for losses by name"),
        ({"bounds": ([0.0, 2.0], [3.0, 3.0])}, ValueError, "number 1 is 1, and its bounds are 2 and 3. Of a pair"),
        ({"bounds": [(0.0, 2.0)] * 3}, ValueError, r"tuple\(zip\(\*bounds\)\) makes \(lower"),
        ({"jac": np.eye(2)}, ValueError, "got a ndarray; if it is constant, lambda x: jac"),
        ({"loss": "huber", "f_scale": np.ones(2)}, ValueError, "f_scale is one number, .* divide the residuals"),
        ({"fun": lambda p: None}, TypeError, "fun must return an array of residuals, got None"),
        ({"fun": lambda p: "ab"}, TypeError, "fun must return an array of residuals, got .* dtype <U2"),
        ({"x0": np.ones(2, np.float16)}, TypeError, "float16 cannot be factored; use float32"),
        ({"fun": lambda p: p.astype(np.longdouble)}, TypeError, "float64 at most"),
        ({"diff_step": 1e-30}, ValueError, "lost in rounding beside x"),
    ],
)
def test_what_cannot_be_used_is_named(options, error, says):
    with pytest.raises(error, match=says):
        lg.least_squares(**{"fun": lambda p: p - 1.0, "x0": [1.0, 1.0], **options})


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_dicts_of_numbers_are_starts_bounds_and_sizes(name):
    ops = load(name)

    def residuals(p):
        return ops.namespace().stack([p["a"] - 3.0, p["b"] - p["a"]])

    def numbers(a, b):
        return {"a": a, "b": b}

    start = {name: ops.asarray(np.asarray(1.0), "float64") for name in "ab"}
    for x0 in (start, numbers(1.0, 1)) if ops.name == "numpy" else (start,):
        fit = lg.least_squares(
            residuals, x0, bounds=(numbers(0.0, -np.inf), numbers(2, 9.0)), x_scale=numbers(1.0, 2.0)
        )
        assert (float(fit.x["a"]), float(fit.active_mask["a"])) == (2.0, 1.0)
    with pytest.raises(ValueError, match=r"the upper bound is not a tree like .* missing \['b'\]"):
        lg.least_squares(residuals, start, bounds=(numbers(0.0, 0.0), {"a": 2.0}))


@pytest.mark.parametrize(
    ("fun", "x0", "status"),
    [
        (lambda p: p[0] * p[1] * T - 1.0, [0.0, 0.0], "DIVERGING"),  # a maximum, or a function without its parameters
        (lambda p: np.floor(p) + 0.5, [3.3], "DIVERGING"),
        (lambda p: 1e-170 * (p - 1.0), [3.0], "BREAKDOWN"),  # the squares are zero
        (lambda p: np.float32(1e-25) * (p - 1), np.full(1, 3, np.float32), "BREAKDOWN"),
        (lambda p: 1e170 * (p - 1.0), [3.0], "NONFINITE_INPUT"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_a_start_that_tells_nothing_is_no_success(fun, x0, status):
    fit = lg.least_squares(fun, x0)
    assert (fit.status.name, fit.success, int(fit.steps)) == (status, False, 0)
    assert ("scale these" in fit.message) is (status != "DIVERGING")
    assert ("Without effect" in fit.message) is (status == "DIVERGING")


@pytest.mark.parametrize("jac", [None, "3-point"])
def test_a_function_may_return_one_buffer_each_time(jac):
    buffer = np.zeros(len(T))

    def fun(p):
        buffer[:] = residuals(p)
        return buffer

    fit = lg.least_squares(fun, [1.0, 1.0, 0.1], jac)
    np.testing.assert_array_equal(fit.x, lg.least_squares(residuals, [1.0, 1.0, 0.1], jac).x)


def test_what_a_bound_holds_is_not_called_without_effect():
    fit = lg.least_squares(residuals, [1.0, 1.0, 0.1], bounds=([-9, 1, -9], [9, 1, 9]))
    assert "Without effect" not in fit.message
    assert "max_nfev" in lg.least_squares(residuals, [1.0, 1.0, 0.1], max_nfev=2).message


def test_without_a_start():
    with pytest.raises(TypeError, match="give a start, or state="):
        lg.least_squares(lambda p: p - 1.0, None)


def test_a_loss_with_a_sum_is_the_one_by_its_name():
    t = np.linspace(0.0, 3.0, 12)
    y = 2.0 * t + np.where(t > 2.9, 5.0, 0.0)
    named, given = (
        lg.least_squares(lambda p: p[0] * t + p[1] - y, [1.0, 1.0], loss=loss, f_scale=scale)
        for loss, scale in (("huber", 0.1), (lg.losses.Huber(width=0.1, reduction="sum"), 1.0))
    )
    assert named.cost == given.cost


def test_arrays_of_numpy_and_a_function_of_torch():
    torch = pytest.importorskip("torch")
    t = torch.linspace(0.0, 3.0, 12, dtype=torch.float64)
    fit = lg.least_squares(lambda p: p[0] * torch.exp(-p[1] * t) - 2 * torch.exp(-t), [1.0, 0.5], derivatives="torch")
    assert fit.success
    assert np.allclose(fit.x, [2.0, 1.0])


def test_two_precisions_in_torch_are_named():
    torch = pytest.importorskip("torch")
    t = torch.linspace(0, 1, 20, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"torch.float64 and torch.float32 meet: .* one dtype"):
        lg.least_squares(lambda p: p[0] * torch.exp(-p[1] * t) - 1.0, torch.ones(2))


def test_a_prediction_of_a_weighted_fit_asks_for_the_weights():
    fit = lg.curve_fit(decay, T, Y, sigma=np.full(len(T), 0.01), full_output=True)[2]["result"]
    plain = lg.curve_fit(decay, T, Y, full_output=True)[2]["result"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = plain.predict(lambda p, t: decay(t, *p), T[:2], kind="prediction")
        told = fit.predict(lambda p, t: decay(t, *p), T[:2], kind="prediction", sigma=0.01)
        fit.predict(lambda p, t: decay(t, *p), T[:2])
    np.testing.assert_allclose(told.error, expected.error, rtol=1e-6)
    with pytest.warns(UserWarning, match=r"observations with sigma = 1: give theirs"):
        wrong = fit.predict(lambda p, t: decay(t, *p), T[:2], kind="prediction")
    assert (wrong.error > 20 * expected.error).all()


def test_the_covariance_says_whose_its_rows_are(backend):
    ops = backend
    start = {"b": ops.asarray(np.ones(2), "float64"), "a": ops.asarray(np.array(1.0), "float64")}
    goal = ops.asarray(np.zeros(3), "float64")
    fit = lg.least_squares(lambda p: ops.namespace().concat([p["b"], 4.0 * p["a"][None], p["b"]]) - goal[0], start)
    variance = dict(zip(fit.entry_names, np.diag(ops.to_numpy(fit.covariance(True))), strict=True))
    assert variance == pytest.approx({"b[0]": 0.5, "b[1]": 0.5, "a": 1 / 16})


def test_a_sum_of_squares_in_place_of_residuals_is_warned_of():
    with pytest.warns(UserWarning, match="one number for 2 parameters, and it is squared here"):
        lg.least_squares(lambda p: np.sum((p - 3.0) ** 2), [1.0, 1.0])
    with pytest.raises(ValueError, match="residuals are not summed up"):
        lg.minimize(lg.Objective.from_residuals(lambda p: np.sum(p**2), jacobian=lambda p: 2 * p), np.ones(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lg.least_squares(lambda p: p**2 - 2.0, 1.0).success  # a root of one equation


def test_a_pair_of_bounds_for_each_parameter_is_told_apart():
    with pytest.raises(ValueError, match=r"tuple\(zip\(\*bounds\)\) makes \(lower, upper\)"):
        lg.least_squares(lambda p: p - np.array([1.0, -1.0]), [1.0, -1.0], bounds=[(0, 5), (-2, 0)])


@pytest.mark.parametrize("framework", ["jax", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_function_of_another_framework_than_its_start_fits_and_is_told(framework, dtype):
    other = lg.load(framework)
    t = other.asarray(T, dtype)
    goal = other.asarray(2.0 * np.exp(-0.7 * T), dtype)
    xp = other.namespace()
    with pytest.warns(UserWarning, match=f"derivatives='{framework}'"):
        fit = lg.least_squares(lambda p: xp.exp(-float(p[1]) * t) * float(p[0]) - goal, [1.0, 1.0])
    np.testing.assert_allclose(fit.x, [2.0, 0.7], rtol=1e-4)  # steps of float64 would find no slope in float32
