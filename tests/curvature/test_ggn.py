"""GGN products, gradients and values against dense J^T H_L J, on every framework and between them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.testing.losses import LOSSES

from .cases import SPLITS, TOLERANCE, Case, Streamed, cases, dense, host, objective, put
from .networks import NETWORKS, close, flat, leaves, like

HOLDERS = st.sampled_from([list, tuple, Streamed])

# One program is compiled for each of these, and data are drawn.
COMPILED = [
    Case("mlp", "softmax", "mean", 0, sizes=(2, 2, 1)),
    Case("mlp", "squared", "sum", 0, "leading"),
    Case("convolutional", "binary", "mean", 0, "weights", sizes=(1, 3, 1)),
    Case("attention", "softmax smoothed", "mean", 0, "weights", ignore=True),
    Case("residual", "poisson", "mean", 0, "mask", sizes=(4, 1)),
    Case("single", "softmax", "sum", 0, "none", sizes=(1, 1, 1, 1, 1), ignore=True),
    Case("decay", "softmax of probabilities", "mean", 0, "mask"),
]


def check(case, backend, hold=list, dtype="float64", damping=0.3, derivatives=None):
    """Everything that a case has to be, on one backend."""
    want, tolerance = dense(case), TOLERANCE[dtype]
    made, params = objective(case, backend, dtype, hold, derivatives), put(backend, case.params(), dtype)
    G = lg.GGN(made, params)
    n = flat(case.params()).size
    v = np.random.default_rng(case.seed).standard_normal((n, 3))
    size = float((abs(want.J).T @ abs(want.H) @ abs(want.J) @ abs(v)).max())

    assert (G.shape, G.symmetric, G.psd) == ((n, n), True, True)
    columns = put(backend, v, dtype)
    product = G @ columns
    close(backend.to_numpy(product), want.G @ v, tolerance, size)
    assert backend.describe(product) == backend.describe(columns)
    close(host(backend, made.value(params)), [want.value], tolerance, abs(want.value) + want.gradient_size)
    close(host(backend, made.gradient(params)), want.gradient, tolerance, want.gradient_size)
    tree = put(backend, like(case.params(), v[:, 0]), dtype)
    product = lg.Damped(G, damping) @ tree
    close(host(backend, product), want.G @ v[:, 0] + damping * v[:, 0], tolerance, size + damping * abs(v).max())
    assert [backend.describe(leaf) for leaf in leaves(product)] == [backend.describe(leaf) for leaf in leaves(tree)]
    return want


@given(cases(), HOLDERS, st.sampled_from(["float64", "float32"]), st.floats(-6, 3))
def test_products_where_derivatives_are_supplied(numpy_backend, case, hold, dtype, damping):
    check(case, numpy_backend, hold, dtype, 10.0**damping)


@settings(max_examples=10)
@given(cases(), HOLDERS)
def test_products_on_spoiled_and_on_foreign_arrays(backend, case, hold):
    if backend.name in ("poison", "array_api_strict"):
        check(case, backend, hold)


@given(cases(), HOLDERS, st.sampled_from(["float64", "float32"]), st.floats(-6, 3))
def test_products_in_torch(torch, case, hold, dtype, damping):
    check(case, lg.load("torch"), hold, dtype, 10.0**damping)


@settings(max_examples=15)
@given(cases(), HOLDERS, st.sampled_from(["float64", "float32"]))
def test_products_of_numpy_arrays_differentiated_in_torch(torch, numpy_backend, case, hold, dtype):
    check(case, numpy_backend, hold, dtype, derivatives="torch")


@settings(max_examples=15)
@given(cases(), HOLDERS, st.sampled_from(["float64", "float32"]))
def test_products_of_numpy_arrays_differentiated_by_autograd(numpy_backend, case, hold, dtype):
    pytest.importorskip("autograd")
    check(case, numpy_backend, hold, dtype, derivatives="autograd")


@settings(max_examples=8)
@given(cases(), HOLDERS)
def test_products_of_arrays_off_the_host_differentiated_in_torch(torch, case, hold):
    pytest.importorskip("array_api_strict")
    from linop_gn.testing.strict import strict_backend

    check(case, strict_backend, hold, derivatives="torch")


@pytest.mark.parametrize("case", COMPILED[::2], ids=lambda case: f"{case.network}-{case.loss}")
def test_products_of_numpy_arrays_differentiated_in_jax(jax, numpy_backend, case):
    for seed in range(2):
        check(case._replace(seed=seed), numpy_backend, list, derivatives="jax")


@pytest.mark.parametrize("case", COMPILED, ids=lambda case: f"{case.network}-{case.loss}")
def test_products_in_jax(jax, case):
    for seed in range(3):
        check(case._replace(seed=seed), lg.load("jax"), list)


def test_products_in_single_precision_and_streamed_in_jax(jax):
    check(COMPILED[1], lg.load("jax"), list, "float32")
    check(COMPILED[0], lg.load("jax"), Streamed)


@pytest.mark.parametrize("network", ["mlp", "convolutional", "attention", "residual"])
def test_frameworks_agree(torch, jax, network):
    case = Case(network, "softmax" if network == "attention" else "squared", "mean", 7, sizes=(4, 1))
    v = np.random.default_rng(0).standard_normal(flat(case.params()).size)
    results = {}
    for name in ("numpy", "torch", "jax"):
        backend = lg.load(name)
        made, params = objective(case, backend), put(backend, case.params())
        tree = put(backend, like(case.params(), v))
        results[name] = host(backend, lg.GGN(made, params) @ tree), host(backend, made.gradient(params))
    for name in ("torch", "jax"):
        for got, want in zip(results[name], results["numpy"], strict=True):
            close(got, want, 1e-12)


def cosh(z, y):
    xp = lg.namespace(z)
    return xp.sum(xp.log(xp.exp(z - y) + xp.exp(y - z)), axis=-1)


def cosine(z, y):
    xp = lg.namespace(z)
    return xp.sum(1.0 - xp.cos(z - y), axis=-1)


def cosh_mean(z, y):
    return lg.namespace(z).mean(cosh(z, y))


def cosh_sum(z, y):
    return lg.namespace(z).sum(cosh(z, y))


USERS = {
    "a callable": (cosh, "mean"),
    "not convex": (lg.losses.FromFunction(cosine), "mean"),
    "summed": (lg.losses.FromFunction(cosh, reduction="sum", convex=True), "sum"),
    "a mean of its own": (lg.losses.FromFunction(cosh_mean, per_example=False), "mean"),
    "a sum of its own": (lg.losses.FromFunction(cosh_sum, per_example=False, reduction="sum"), "sum"),
}


@pytest.mark.parametrize("name", ["torch", "jax"])
@pytest.mark.parametrize("kind", USERS)
def test_losses_of_the_users_own(request, name, kind):
    request.getfixturevalue(name)
    backend, (loss, reduction) = lg.load(name), USERS[kind]
    case = Case("mlp", "squared", reduction, 5, sizes=(2, 2, 1) if name == "torch" else (3, 1))
    batches, params = case.batches(), case.params()
    made = lg.Objective(case.net.model, loss, [tuple(put(backend, part) for part in batch[:2]) for batch in batches])
    J = dense(case).J
    r = np.concatenate([case.net.model(params, b.inputs) - b.targets for b in batches]).reshape(-1)
    slope, curvature = (np.sin(r), np.cos(r)) if kind == "not convex" else (np.tanh(r), 1 - np.tanh(r) ** 2)
    value = np.sum(1 - np.cos(r) if kind == "not convex" else np.log(2 * np.cosh(r)))
    scale = 1 / sum(case.sizes) if reduction == "mean" else 1.0

    at = put(backend, params)
    G = lg.GGN(made, at)
    close(backend.to_numpy(G.to_dense()), scale * (J.T * curvature) @ J, 1e-12)
    close(host(backend, made.gradient(at)), scale * J.T @ slope, 1e-12)
    close(host(backend, made.value(at)), [scale * value], 1e-12)
    assert G.psd is (kind == "summed")
    assert lg.Damped(G, 1.0).psd is (kind == "summed")


def test_psd_is_what_the_loss_promises(numpy_backend):
    for loss in LOSSES:
        made = objective(Case("single", loss, "mean", 0), numpy_backend)
        G = lg.GGN(made, NETWORKS["single"].params(0))
        assert G.psd
        assert G.prepare().psd


def test_a_loss_record_of_the_users_own_runs_without_derivatives(numpy_backend):
    @lg.record
    class Quartic(lg.losses.Loss):
        convex = True

        example_axes = 1

        def value(self, xp, z, y):
            return (z - y) ** 4

        def slope(self, xp, z, y):
            return 4 * (z - y) ** 3

        def curvature(self, xp, z, y):
            return 12 * (z - y) ** 2

    case = Case("mlp", "squared", "mean", 5, sizes=(4, 1))
    base = objective(case, numpy_backend)
    made = lg.Objective(base.model, Quartic(), [b[:2] for b in case.batches()], jacobian=base.supplied.jacobian)
    J, params = dense(case).J, case.params()
    r = np.concatenate([case.net.model(params, b.inputs) - b.targets for b in case.batches()]).reshape(-1)
    close(lg.GGN(made, params).to_dense(), (J.T * (12 * r**2)) @ J / 5, 1e-12)
    close(flat(made.gradient(params)), J.T @ (4 * r**3) / 5, 1e-12)


def test_no_objective_no_operator():
    assert len(SPLITS) > 3
    with pytest.raises(TypeError, match=r"lg\.GGN needs an lg\.Objective, got function"):
        lg.GGN(cosh, np.ones(2))
