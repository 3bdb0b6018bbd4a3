"""Levenberg-Marquardt against dense algebra, certified results and its own promises."""

import copy
import weakref

import curves
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import FULL, spare

import linop_gn as lg

IN_CI_ON_JAX = (
    "test_follows_the_dense_method_step_by_step",
    "test_an_objective_that_is_not_finite_at_the_start_computes_nothing",
    "test_single_precision_and_blocks",
)

EXACT = lg.CG(rtol=1e-13, max_steps=200)


@pytest.fixture(scope="module", params=["numpy", "torch", "jax"])
def ops(request):
    return load(request.param)


def load(name):
    pytest.importorskip(name)
    return lg.load(name)


def host(ops, x):
    return ops.to_numpy(x)


@pytest.mark.parametrize("model", ["undamped", "damped"])
@settings(max_examples=8)
@given(st.integers(0, 2**31), st.floats(-3, 3))
def test_follows_the_dense_method_step_by_step(ops, model, seed, log_damping):
    spare(ops, model == "undamped")
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 2, 12)
    y = 2 * np.exp(-0.7 * t) + 0.05 * rng.standard_normal(12)
    start, damping = np.array([1.0, 0.2]) + 0.3 * rng.standard_normal(2), 10.0**log_damping

    method = lg.LevenbergMarquardt(solver=EXACT, damping=damping, model=model, ftol=0.0, rtol=0.0)
    run = lg.minimize(curves.exponential(ops, t, y), ops.asarray(start, "float64"), method, max_steps=6)
    p, values, dampings, decreases = curves.dense_lm(
        lambda p: p[0] * np.exp(p[1] * t) - y,
        lambda p: np.stack([np.exp(p[1] * t), p[0] * t * np.exp(p[1] * t)], axis=1),
        start,
        6,
        damping,
        model,
    )
    np.testing.assert_allclose(run.history["value"], values, rtol=1e-8)
    # The gain ratio, of which the damping is made, has an error of eps value / predicted.
    known = 1 + int(np.argmax(np.append(decreases < 1e-8 * values[:-1], True)))
    np.testing.assert_allclose(run.history["damping"][:known], dampings[:known], rtol=1e-5)
    np.testing.assert_allclose(host(ops, run.params), p, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("start", [(5.0, 0.1), (2.5, 0.5)])
def test_reaches_the_certified_values_of_misra1a(ops, start):
    fit = lg.minimize(curves.misra(ops), ops.asarray(np.array(start), "float64"), lg.LevenbergMarquardt(solver=EXACT))
    assert fit.status in (lg.Status.DECREASE_SMALL, lg.Status.AT_PRECISION)
    found = host(ops, fit.params) * np.array([1e2, 1e-3])
    np.testing.assert_allclose(found, curves.MISRA_CERTIFIED, rtol=1e-7)
    assert 2 * float(fit.value) == pytest.approx(curves.MISRA_SUM_OF_SQUARES, rel=1e-9)


def test_damping_may_be_wrong_by_ten_orders_of_magnitude(ops):
    spare(ops, FULL)
    for damping in (1e-10, 1e10):
        method = lg.LevenbergMarquardt(damping=damping, solver=EXACT, rtol=1e-9)  # an error of 1e-6
        fit = lg.minimize(curves.rosenbrock(ops), ops.asarray(np.array([-1.2, 1.0]), "float64"), method, max_steps=200)
        assert fit.succeeded
        np.testing.assert_allclose(host(ops, fit.params), [1.0, 1.0], rtol=1e-4)


def test_the_value_never_rises_and_a_refused_step_changes_only_the_damping(ops):
    spare(ops, FULL)
    start = ops.asarray(np.array([-1.2, 1.0]), "float64")
    fit = lg.minimize(
        curves.rosenbrock(ops),
        start,
        lg.LevenbergMarquardt(damping=1e-3, solver=EXACT, rule=lg.Marquardt()),
        max_steps=60,
    )
    value, ratio, damping = (fit.history[name] for name in ("value", "ratio", "damping"))
    refused = ratio[1:] <= 1e-4
    assert refused.any()
    assert (np.diff(value) <= 0).all()
    assert (np.diff(value)[refused] == 0).all()
    np.testing.assert_allclose((damping[1:] / damping[:-1])[refused], 1.5)


def test_a_refused_step_linearises_nothing():
    ops, calls = lg.load("numpy"), {"model": 0, "jacobian": 0}

    def residuals(p):
        calls["model"] += 1
        return np.stack([10 * (p[1] - p[0] * p[0]), 1 - p[0]])

    def jacobian(p):
        calls["jacobian"] += 1
        return np.array([[-20 * p[0], 10.0], [-1.0, 0.0]])

    objective = lg.Objective.from_residuals(residuals, jacobian=jacobian)
    method = lg.LevenbergMarquardt(damping=1e-3, solver=EXACT, rule=lg.Marquardt(), rtol=1e-3)
    fit = lg.minimize(objective, ops.asarray(np.array([-1.2, 1.0]), "float64"), method, max_steps=60)
    refused = int((fit.history["ratio"][1:] <= 1e-4).sum())
    assert refused > 0
    assert calls["jacobian"] == int(fit.steps) - refused + 1
    assert calls["model"] == 2 * int(fit.steps) - refused + 1  # a trial each, a linearisation where it was taken


@pytest.mark.parametrize("name", ["torch", "jax"])
@pytest.mark.parametrize("curvature", [lg.GGN, lg.Hessian])
def test_model_runs_are_counted_alike(name, curvature):
    """A trial for each step, a linearisation for each one taken: 37 model runs of 26 steps, 16 of them refused."""
    framework = pytest.importorskip(name)
    ops, runs = lg.load(name), []
    xp = ops.namespace()

    def residuals(p):
        if name == "jax":
            framework.debug.callback(lambda: runs.append(1))  # at each run of the compiled program
        else:
            runs.append(1)
        return xp.stack([10 * (p[1] - p[0] * p[0]), 1 - p[0]])

    method = lg.LevenbergMarquardt(
        curvature, damping=1e-3, solver=lg.CG(rtol=1e-8, max_steps=200), rule=lg.Marquardt(), rtol=1e-3
    )
    start = ops.asarray(np.array([-1.2, 1.0]), "float64")
    fit = lg.minimize(lg.Objective.from_residuals(residuals), start, method, max_steps=60)
    if name == "jax":
        framework.effects_barrier()
    refused = int((fit.history["ratio"][1:] <= 1e-4).sum())
    assert refused > 0
    assert len(runs) == 2 * int(fit.steps) - refused + 1


def test_no_graph_but_that_of_the_accepted_point_is_kept(monkeypatch):
    torch = pytest.importorskip("torch")
    from linop_gn_torch.calculus import TorchLinearization

    kept, alive, keep = [], [], TorchLinearization.without_gradient

    def remembered(self):
        bare = keep(self)
        kept.append(weakref.ref(bare))
        return bare

    def residuals(p):
        alive.append(sum(made() is not None for made in kept))
        return torch.stack([10 * (p[1] - p[0] * p[0]), 1 - p[0]])

    monkeypatch.setattr(TorchLinearization, "without_gradient", remembered)
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    fit = lg.minimize(
        lg.Objective.from_residuals(residuals), start, lg.LevenbergMarquardt(damping=1e-3, rtol=0.0), max_steps=12
    )
    assert len(kept) < int(fit.steps)  # some were refused
    assert alive == [0] + [1] * (len(alive) - 1)


@pytest.mark.parametrize("name", ["numpy", "jax"])
def test_a_state_that_went_to_the_host_and_back_goes_on(name):
    ops = load(name)
    point = curves.exponential(ops, np.linspace(0, 2, 12), 2 * np.exp(-0.7 * np.linspace(0, 2, 12))).at(
        ops.asarray(np.array([1.0, 0.2]), "float64")
    )
    problem = lg.methods.MinimizeProblem(point.objective, point.x, point.space, 9)
    method = lg.LevenbergMarquardt(damping=0.1)
    whole = ops.advance(method, problem, ops.begin(method, problem, 9), 5).state
    carry = ops.advance(method, problem, ops.begin(method, problem, 9), 2)
    if name == "jax":
        jax = pytest.importorskip("jax")
        carry = jax.tree.map(jax.numpy.asarray, jax.device_get(carry))
    else:
        carry = copy.deepcopy(carry)
    gone_on = ops.advance(method, problem, carry, 3).state
    for field in ("x", "value", "level", "steps"):
        np.testing.assert_array_equal(np.asarray(getattr(gone_on, field)), np.asarray(getattr(whole, field)))


def test_a_trial_with_a_value_and_no_gradient_is_refused():
    torch = pytest.importorskip("torch")
    objective = lg.Objective.from_residuals(lambda b: torch.cat([1 / (1 + torch.exp(b)), 1e-6 * b]))
    start = torch.tensor([-10.0], dtype=torch.float64)  # the first trial lies where exp overflows
    fit = lg.minimize(objective, start, lg.LevenbergMarquardt(damping=1e-9), max_steps=60)
    assert fit.history["ratio"][1] == -np.inf
    assert bool(torch.isfinite(objective.gradient(fit.params)).all())
    assert float(fit.value) < 0.5


def test_a_trial_outside_the_domain_is_refused(ops):
    xp = ops.namespace()

    def residuals(p):
        return xp.log(p) * 3.0 + p  # not finite for p <= 0, where a first step from 8 would land

    objective = lg.Objective.from_residuals(
        residuals, jacobian=(lambda p: np.diag(3.0 / p + 1.0)) if ops.calculus is None else None
    )
    with np.errstate(invalid="ignore"):
        fit = lg.minimize(objective, ops.asarray(np.array([0.2, 30.0]), "float64"), lg.LevenbergMarquardt(damping=1e-6))
    assert fit.succeeded
    assert (fit.history["ratio"] == -np.inf).any()
    assert float(fit.value) < 1e-20


def test_statuses(ops):
    solved = ops.asarray(np.array([1.0, 1.0]), "float64")
    away = ops.asarray(np.array([-1.2, 1.0]), "float64")
    objective = curves.rosenbrock(ops)
    at_once = lg.minimize(objective, solved)
    assert (at_once.status, int(at_once.steps), int(at_once.products)) == (lg.Status.GRADIENT_SMALL, 0, 0)
    assert lg.minimize(objective, away, max_steps=2).status is lg.Status.MAX_STEPS
    nothing = lg.minimize(objective, away, max_steps=0)
    assert (nothing.status, int(nothing.steps)) == (lg.Status.MAX_STEPS, 0)
    np.testing.assert_array_equal(host(ops, nothing.params), [-1.2, 1.0])
    stopped = lg.minimize(objective, away, watch=[lg.stop_when(lambda look: look.step == 3)])
    assert (stopped.status, int(stopped.steps)) == (lg.Status.STOPPED, 3)
    assert "watcher" in repr(stopped)


def test_a_gradient_that_is_not_the_objectives_ends_without_decrease():
    objective = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: -np.eye(2))
    fit = lg.minimize(objective, np.zeros(2), max_steps=500)
    assert fit.status is lg.Status.NO_DECREASE
    assert "lg.validate" in repr(fit)
    np.testing.assert_array_equal(fit.params, np.zeros(2))


def test_an_objective_that_is_not_finite_at_the_start_computes_nothing(ops):
    xp = ops.namespace()
    objective = lg.Objective.from_residuals(
        lambda p: xp.log(p), jacobian=(lambda p: np.diag(1 / p)) if ops.calculus is None else None
    )
    with np.errstate(invalid="ignore"):
        fit = lg.minimize(objective, ops.asarray(np.array([-1.0, 2.0]), "float64"))
    assert (fit.status, int(fit.products)) == (lg.Status.NONFINITE_INPUT, 0)
    np.testing.assert_array_equal(host(ops, fit.params), [-1.0, 2.0])


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_indefinite_hessians_are_damped_until_they_descend(name):
    pytest.importorskip(name)
    ops = lg.load(name)
    xp = ops.namespace()
    saddle = lg.Objective.from_function(lambda p: xp.sum(p**4) / 4 - xp.sum(p**2) / 2 + p[0] / 10)
    start = ops.asarray(np.array([0.01, -0.02, 0.03]), "float64")
    method = lg.LevenbergMarquardt(curvature=lg.Hessian, damping=1e-3, rtol=1e-8)
    fit = lg.minimize(saddle, start, method)
    assert fit.succeeded
    assert float(fit.value) < -0.7
    H = ops.to_numpy(lg.Hessian(saddle, fit.params).to_dense())
    assert np.linalg.eigvalsh(H).min() > 0


@pytest.mark.parametrize("curvature", [lg.GGN, lg.BlockGGN])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_single_precision_and_blocks(ops, curvature, dtype):
    spare(ops, (curvature is lg.GGN) == (dtype == "float32"))
    t = np.linspace(0, 2, 12)
    objective = curves.exponential(ops, t, 2 * np.exp(-0.7 * t), dtype)
    if dtype == "float32" and ops.calculus is None:
        ta = t.astype(np.float32)
        objective = lg.Objective.from_residuals(
            objective.model,
            jacobian=lambda p: np.stack([np.exp(p[1] * ta), p[0] * ta * np.exp(p[1] * ta)], axis=1),
        )
    start = ops.asarray(np.array([1.0, 0.0]), dtype)
    rtol = 1e-8 if dtype == "float64" else 1e-5
    fit = lg.minimize(objective, start, lg.LevenbergMarquardt(curvature=curvature, damping=0.01, rtol=rtol))
    assert fit.succeeded
    assert ops.describe(fit.params)[1] == dtype
    np.testing.assert_allclose(host(ops, fit.params), [2.0, -0.7], rtol=1e-5 if dtype == "float64" else 1e-3)
    np.testing.assert_array_equal(host(ops, start), [1.0, 0.0])


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="'undamped' or 'damped'"):
        lg.LevenbergMarquardt(model="both")
    with pytest.raises(ValueError, match="damping must be a finite number"):
        lg.LevenbergMarquardt(damping=-1.0)
    with pytest.raises(TypeError, match=r"needs an lg\.Objective"):
        lg.minimize(lambda p: p, np.zeros(2))
    with pytest.raises(ValueError, match="whole number"):
        lg.minimize(curves.rosenbrock(lg.load("numpy")), np.zeros(2), max_steps=1.5)


def test_ten_steps_with_other_parameters_batch_and_damping_compile_once():
    jnp = pytest.importorskip("jax.numpy")
    from linop_gn_jax import compilations

    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.standard_normal((3, 2))), "b": jnp.zeros(2)}
    objective, damping, counts = None, 1.0, []
    for step in range(10):
        x, y = jnp.asarray(rng.standard_normal((8, 3))), jnp.asarray(rng.integers(0, 2, 8))
        if objective is None:
            objective = lg.Objective(lambda p, x: jnp.tanh(x @ p["w"] + p["b"]), lg.losses.CrossEntropy(), (x, y))
        objective = objective.with_data((x, y))
        method = lg.LevenbergMarquardt(
            damping=damping, rtol=10.0**-step, solver=lg.CG(rtol=0.1 / (step + 1), max_steps=9)
        )
        fit = lg.minimize(objective, params, method, max_steps=1)
        params, damping = fit.params, fit.damping
        counts.append(sum(compilations().values()))
    assert counts[1] == counts[-1]  # at rtol = 1 the first run takes no step


def test_inside_the_users_jit():
    jax = pytest.importorskip("jax")
    ops = lg.load("jax")
    objective = curves.rosenbrock(ops)

    @jax.jit
    def fit(start, damping):
        run = lg.minimize(objective, start, lg.LevenbergMarquardt(damping=damping, solver=EXACT), max_steps=40)
        return run

    start = ops.asarray(np.array([-1.2, 1.0]), "float64")
    inside, outside = (
        fit(start, 0.1),
        lg.minimize(objective, start, lg.LevenbergMarquardt(damping=0.1, solver=EXACT), max_steps=40),
    )
    assert inside.status is outside.status
    assert inside.succeeded
    np.testing.assert_allclose(np.asarray(inside.params), np.asarray(outside.params), rtol=1e-6)
    assert int(inside.steps) == int(outside.steps)
    with pytest.raises(TypeError, match="cannot be watched"):
        jax.jit(lambda p: lg.minimize(objective, p, watch=[lg.Recorder()]).params)(start)


def test_a_method_looks_at_the_solver_it_is_given(numpy_backend):
    t = np.linspace(0.0, 1.0, 5)
    objective = lg.Objective.from_residuals(
        lambda p: {"r": p["a"] * t - 1.0}["r"], jacobian=lambda p: {"a": t[:, None]}
    )
    start = {"a": np.ones(1)}
    for solver in (lg.Blockwise(lg.Eigh()), lg.Blockwise(lg.LSMR()), lg.Blockwise(lg.GLTR())):
        with pytest.raises(TypeError, match="side by side"):
            lg.minimize(objective, start, lg.LevenbergMarquardt(solver=solver))
    with pytest.raises(ValueError, match="needs an operator with blocks"):
        lg.minimize(objective, start, lg.LevenbergMarquardt(solver=lg.Blockwise(lg.CG())))
    wrong = lg.CG(preconditioner=lg.Diagonal(np.ones(3), psd=True))
    with pytest.raises(ValueError, match="does not fit"):
        lg.minimize(objective, start, lg.LevenbergMarquardt(solver=wrong))
    for solver in (lg.CG, lg.MultiShiftCG(dampings=[1.0]), lg.LSMR()):
        with pytest.raises(TypeError, match="one for square systems"):
            lg.GramSolve(solver=solver)


RULES = [lg.Marquardt(), lg.Nielsen(), lg.ConstantDamping()]
SOLVERS = [lg.CG(rtol=1e-8), lg.MINRES(rtol=1e-8), lg.LU(), lg.Eigh(), lg.Steihaug(radius=10.0), lg.GLTR(radius=10.0)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize(
    "start", [(1.3, 0.9), (0.1, 0.2), (0.1, 0.9), (-2.0, 0.3)], ids=["convex", "concave", "saddle", "far"]
)
def test_a_refused_step_never_lowers_the_damping(rule, solver, start):
    """f = sum (x^2 - 1)^2 / 4, minima at +-1; its Hessian is indefinite within 1/sqrt(3)."""
    wells = lg.Objective.from_function(
        lambda x: ((x**2 - 1) ** 2).sum() / 4, gradient=lambda x: x**3 - x, hvp=lambda x, v: (3 * x**2 - 1) * v
    )
    # A constant damping has to be larger than the curvature is negative.
    constant = isinstance(rule, lg.ConstantDamping)
    method = lg.LevenbergMarquardt(lg.Hessian, solver=solver, rule=rule, damping=4.0 if constant else 1e-2)
    fit = lg.minimize(wells, np.array(start), method, max_steps=100 if constant else 400)
    value, damping = fit.history["value"], fit.history["damping"]
    assert (damping[1:] >= damping[:-1])[value[1:] == value[:-1]][:-1].all()
    assert constant or fit.succeeded == (fit.value < 1e-6)
    stationary = abs(fit.params)  # a solver that follows no negative curvature may stop at a saddle, and says so
    np.testing.assert_allclose(stationary**3, stationary, atol=1e-6)
    if not isinstance(solver, (lg.MINRES, lg.LU, lg.Eigh)):
        np.testing.assert_allclose(stationary, 1.0, rtol=1e-6)


def test_what_is_no_minimum_is_no_success():
    """Misra1a from NIST's first start: 19.5 was called converged, where 0.1246 is certified."""
    x, y = curves.MISRA_X, curves.MISRA_Y
    misra = lg.Objective.from_residuals(
        lambda b: b[0] * (1 - np.exp(-b[1] * x)) - y,
        jacobian=lambda b: np.stack([1 - np.exp(-b[1] * x), b[0] * x * np.exp(-b[1] * x)], 1),
    )
    fit = lg.minimize(misra, np.array([500.0, 1e-4]), max_steps=500)
    assert fit.succeeded
    assert 2 * float(fit.value) == pytest.approx(curves.MISRA_SUM_OF_SQUARES, rel=1e-6)


@pytest.mark.parametrize("rate", [1e-6, 1.0, 1e6])
def test_units_make_no_false_success(rate):
    t = np.linspace(0, 1, 50) / rate
    y = 3 / rate * np.exp(-2 * rate * t)
    decay = lg.Objective.from_residuals(
        lambda p: p[0] * np.exp(-p[1] * t) - y,
        jacobian=lambda p: np.stack([np.exp(-p[1] * t), -p[0] * t * np.exp(-p[1] * t)], 1),
    )
    fit = lg.minimize(decay, np.array([1 / rate, rate]), max_steps=60)
    assert not fit.succeeded or float(fit.value) < 1e-20 * float(y @ y)
    assert fit.status is not lg.Status.NO_DECREASE


def test_what_ends_a_run():
    flat = lg.Objective.from_residuals(
        lambda p: np.stack([np.exp(-p[0]), np.ones(())]), jacobian=lambda p: np.array([[-np.exp(-p[0])], [0.0]])
    )
    assert lg.minimize(flat, np.array([1.0])).status is lg.Status.DIVERGING
    wells = curves.rosenbrock(lg.load("numpy"))
    away = np.array([-1.2, 1.0])
    assert lg.minimize(wells, away, lg.LevenbergMarquardt(rtol=1e-3)).status is lg.Status.REDUCED
    assert lg.minimize(wells, away, lg.LevenbergMarquardt(atol=1e-3)).status is lg.Status.GRADIENT_SMALL
    t = np.linspace(0, 2, 12)
    noisy = curves.exponential(lg.load("numpy"), t, 2 * np.exp(-0.7 * t) + 0.1 * np.cos(9 * t))
    fit = lg.minimize(noisy, np.array([1.0, 0.2]))
    assert fit.status is lg.Status.DECREASE_SMALL
    for status in (lg.Status.DECREASE_SMALL, lg.Status.STEP_SMALL):
        loose = {"ftol": 1e-3} if status is lg.Status.DECREASE_SMALL else {"xtol": 1e-2, "ftol": 0.0}
        assert lg.minimize(noisy, np.array([1.0, 0.2]), lg.LevenbergMarquardt(**loose)).status is status
    again = lg.minimize(noisy, fit.params)  # started at the optimum
    assert again.succeeded
    assert int(again.steps) <= 1
