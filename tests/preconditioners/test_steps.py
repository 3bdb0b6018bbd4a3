"""Every recipe cuts the steps of CG on an ill-conditioned problem, alone and inside Levenberg-Marquardt."""

import functools

import numpy as np
import pytest
from systems import FULL, host, in_full, with_spectrum

import linop_gn as lg
from linop_gn.preconditioners import BlockJacobi, EmpiricalFisher, Jacobi, Nystrom, SquaredGradient
from linop_gn.testing.strategies import array

IN_CI_ON_JAX = ("test_fewer_steps",)

ROWS, SIZE = 80, 60


@functools.cache
def problem(kind):
    """A design matrix (80, 60) with badly scaled columns, or with a few large singular values; the right answer."""
    rng = np.random.default_rng(0)
    if kind == "scaled":
        X = rng.standard_normal((ROWS, SIZE)) * 10.0 ** np.linspace(-2, 2, SIZE)
    else:
        U = np.linalg.qr(rng.standard_normal((ROWS, SIZE)))[0]
        X = U @ with_spectrum(np.r_[10.0 ** np.linspace(3, 0.1, 20), np.full(SIZE - 20, 0.3)], 1)
    return X, X @ rng.standard_normal(SIZE) + rng.standard_normal(ROWS)


def least_squares(backend, kind):
    """1/2 |X w - y|^2 with w in a tree of two leaves, and its gradient at zero."""
    X, y = (array(backend, x) for x in problem(kind))
    xp = backend.namespace()

    def residuals(w):
        return X @ xp.concat([w["a"], w["b"]]) - y

    given = {} if backend.calculus is not None else {"jacobian": lambda w: X}
    start = {"a": array(backend, np.zeros(20)), "b": array(backend, np.zeros(SIZE - 20))}
    objective = lg.Objective.from_residuals(residuals, **given)
    return objective, start


RECIPES = [
    (Jacobi(), "scaled", 5),
    (Jacobi("estimate", probes=40), "scaled", 2.5),
    (EmpiricalFisher(), "scaled", 4),
    (EmpiricalFisher(probes=None), "scaled", 4),
    (SquaredGradient(), "scaled", 2.5),
    (BlockJacobi(), "scaled", 8),
    (BlockJacobi(dense=30, rank=35), "scaled", 7),
    (Nystrom(30), "spiked", 5),
]
COMPILED = (6,)  # enough of them to compile


@pytest.mark.parametrize("which", range(len(RECIPES)), ids=lambda i: f"{type(RECIPES[i][0]).__name__}-{i}")
def test_fewer_steps(backend, which):
    if backend.name == "poison" or ("compiled" in backend.capabilities and which not in COMPILED):
        pytest.skip("others tell")
    recipe, kind, times = RECIPES[which]
    objective, start = least_squares(backend, kind)
    A = lg.Damped(lg.GGN(objective, start), 1e-3)
    b = objective.gradient(start)
    plain = lg.solve(A, b, lg.CG(rtol=1e-8, max_steps=2000))
    better = lg.solve(A, b, lg.CG(rtol=1e-8, max_steps=2000, preconditioner=recipe))
    assert plain.succeeded
    assert better.succeeded  # which CG says of a residual that it has recomputed
    assert int(plain.steps) >= times * int(better.steps), (int(plain.steps), int(better.steps))


class Counted:
    """Residuals with a supplied Jacobian, counted; its products are counted by ``products``."""

    def __init__(self):
        self.jacobians = self.products = 0

    def residuals(self, p):
        return np.stack([10 * (p[1] - p[0] * p[0]), 1 - p[0], 0.1 * p[0] * p[1]])

    def matrix(self, p):
        return np.array([[-20 * p[0], 10.0], [-1.0, 0.0], [0.1 * p[1], 0.1 * p[0]]])

    def jvp(self, p, v):
        self.products += 1
        return self.matrix(p) @ v

    def vjp(self, p, u):
        return self.matrix(p).T @ u


KEPT = [
    (Jacobi("exact"), 2),
    (Jacobi("estimate", probes=3), 3),
    (Nystrom(2), 2),
    (BlockJacobi(), 2),
    (EmpiricalFisher(probes=2), 0),
    (SquaredGradient(), 0),
]


@pytest.mark.parametrize("recipe", [recipe for recipe, _ in KEPT], ids=lambda r: type(r).__name__)
def test_a_refused_step_of_levenberg_marquardt_prepares_nothing(numpy_backend, recipe):
    made = Counted()
    objective = lg.Objective.from_residuals(made.residuals, jvp=made.jvp, vjp=made.vjp)
    method = lg.LevenbergMarquardt(damping=1e-3, solver=lg.CG(rtol=1e-10, preconditioner=recipe), rule=lg.Marquardt())
    fit = lg.minimize(objective, np.array([-1.2, 1.0]), method, max_steps=60)
    refused = int((fit.history["ratio"][1:] <= 1e-4).sum())
    assert refused > 0
    assert fit.succeeded
    each = next(products for known, products in KEPT if known is recipe)
    assert made.products == int(fit.products) + each * (int(fit.steps) - refused + 1)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("torch", Jacobi()),
        ("torch", Nystrom(2)),
        ("jax", Nystrom(2)),
        pytest.param("jax", EmpiricalFisher(probes=2), marks=in_full),
    ],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_levenberg_marquardt_with_a_recipe_goes_the_same_way_everywhere(request, name, recipe):
    request.getfixturevalue(name)

    def fit(ops):
        xp, scale = ops.namespace(), ops.asarray(np.array([1.0, 1e3]), "float64")

        def residuals(q):
            p = q * scale
            return xp.stack([10 * (p[1] - p[0] * p[0]), 1 - p[0], 0.1 * p[0] * p[1]])

        def jacobian(q):
            return Counted().matrix(q * scale) * scale

        made = lg.Objective.from_residuals(residuals, jacobian=jacobian if ops.calculus is None else None)
        method = lg.LevenbergMarquardt(damping=1e-3, solver=lg.CG(rtol=1e-10, preconditioner=recipe))
        return lg.minimize(made, ops.asarray(np.array([-1.2, 1e-3]), "float64"), method, max_steps=60)

    here, there = fit(lg.load(name)), fit(lg.load("numpy"))
    assert here.succeeded
    assert here.status == there.status
    np.testing.assert_allclose(host(lg.load(name), here.params), there.params, rtol=1e-6)
    assert int(here.steps) == int(there.steps)
    np.testing.assert_allclose(here.history["damping"], there.history["damping"], rtol=1e-4)


def test_a_function_is_asked_again_for_each_damping(numpy_backend):
    seen = []

    def inverse(A):
        seen.append(float(A.damping))
        return lg.Diagonal(1 / (1 + A.damping + np.zeros(2)))

    made = Counted()
    objective = lg.Objective.from_residuals(made.residuals, jvp=made.jvp, vjp=made.vjp)
    method = lg.LevenbergMarquardt(damping=1e-3, solver=lg.CG(rtol=1e-10, preconditioner=inverse))
    fit = lg.minimize(objective, np.array([-1.2, 1.0]), method, max_steps=60)
    assert fit.succeeded
    np.testing.assert_allclose(seen, fit.history["damping"][:-1])


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_streamed_data_give_the_same_preconditioners(request, name):
    request.getfixturevalue(name)
    ops = lg.load(name)
    X, y = (ops.asarray(x, "float64") for x in problem("scaled"))
    batches = [(X[:50], y[:50]), (X[50:], y[50:])]

    class Loader:
        def __iter__(self):
            return iter(batches)

    held, streamed = (lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), data) for data in (batches, Loader()))
    w = ops.asarray(np.zeros(SIZE), "float64")
    recipes = EmpiricalFisher(probes=2), SquaredGradient(), Jacobi("estimate", probes=2)
    for recipe in recipes[: 3 if FULL or name == "torch" else 1]:
        one, other = (host(ops, recipe(lg.Damped(lg.GGN(of, w), 0.1)).values) for of in (held, streamed))
        np.testing.assert_allclose(one, other, rtol=1e-9)
    one, other = (host(ops, Nystrom(3).prepare(lg.GGN(of, w))[1]) for of in (held, streamed))
    np.testing.assert_allclose(one, other, rtol=1e-9)
    if name == "torch":
        method = lg.LevenbergMarquardt(solver=lg.CG(rtol=1e-8, preconditioner=recipe))
        one, other = (lg.minimize(of, w, method, max_steps=2) for of in (held, streamed))
        np.testing.assert_allclose(one.history["value"], other.history["value"], rtol=1e-6)


def test_under_vmap_seed_and_damping_have_lanes(jax):
    ops = lg.load("jax")
    matrix = with_spectrum(10.0 ** np.linspace(0, 3, 12), 0)
    A, B = lg.Dense(array(ops, matrix), psd=True), np.random.default_rng(0).standard_normal((3, 12))

    def steps(damping, seed, b):
        recipes = (Jacobi("estimate", probes=3, seed=seed), Nystrom(4, seed=seed), BlockJacobi())
        ways = [lg.CG(rtol=1e-10, max_steps=200, preconditioner=recipe) for recipe in recipes]
        return [lg.solve(lg.Damped(A, damping), b, way).x for way in ways]

    dampings = np.array([0.1, 1.0, 10.0])
    want = [np.linalg.solve(matrix + d * np.eye(12), b) for d, b in zip(dampings, B, strict=True)]
    for got in jax.jit(jax.vmap(steps))(array(ops, dampings), np.arange(3), array(ops, B)):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("recipe", [Jacobi("estimate"), Nystrom(5), BlockJacobi()], ids=lambda r: type(r).__name__)
def test_half_precision(numpy_backend, recipe):
    A = lg.Damped(lg.Diagonal(np.linspace(1, 5, 30).astype("float16")), 0.5)
    step = lg.solve(A, np.ones(30, "float16"), lg.CG(rtol=1e-2, preconditioner=recipe))
    assert step.succeeded
    assert step.x.dtype == np.float16
