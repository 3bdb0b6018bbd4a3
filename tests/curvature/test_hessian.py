"""Hessian products against dense Hessians, rows by reverse over reverse in plain torch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import linop_gn as lg

from .cases import TOLERANCE, Case, Streamed, cases, dense, host, objective, put
from .hessians import hessian
from .networks import close, leaves, like

COMPILED = [
    Case("mlp", "softmax", "mean", 0, "weights", sizes=(2, 2, 1), ignore=True),
    Case("attention", "softmax", "sum", 0),
    Case("decay", "poisson", "mean", 0, "mask"),
]


def check(case, backend, hold=list, dtype="float64"):
    want, tolerance, first = hessian(case), TOLERANCE[dtype], dense(case)
    made, params = objective(case, backend, dtype, hold), put(backend, case.params(), dtype)
    H = lg.Hessian(made, params)
    v = np.random.default_rng(case.seed).standard_normal((len(want), 3))
    size = float((abs(want) @ abs(v)).max()) + first.gradient_size
    assert (H.shape, H.symmetric, H.psd) == (want.shape, True, False)
    close(backend.to_numpy(H @ put(backend, v, dtype)), want @ v, tolerance, size)
    # Value and gradient come from the gradient's own linearisation here.
    close(host(backend, made.value(params)), [first.value], tolerance, abs(first.value) + first.gradient_size)
    close(host(backend, made.gradient(params)), first.gradient, tolerance, first.gradient_size)
    tree = put(backend, like(case.params(), v[:, 0]), dtype)
    product = H @ tree
    close(host(backend, product), want @ v[:, 0], tolerance, size)
    assert [backend.describe(leaf) for leaf in leaves(product)] == [backend.describe(leaf) for leaf in leaves(tree)]


@given(cases(), st.sampled_from([list, Streamed]), st.sampled_from(["float64", "float32"]))
def test_products_in_torch(torch, case, hold, dtype):
    check(case, lg.load("torch"), hold, dtype)


@pytest.mark.parametrize("case", COMPILED, ids=lambda case: f"{case.network}-{case.loss}")
def test_products_in_jax(torch, jax, case):
    for seed in range(2):
        check(case._replace(seed=seed), lg.load("jax"))


def test_streamed_products_in_jax(torch, jax):
    check(COMPILED[2]._replace(sizes=(3, 2)), lg.load("jax"), Streamed)


@settings(max_examples=10)
@given(st.integers(0, 2**16))
def test_supplied_products_of_a_scalar_function(backend, seed):
    rng = np.random.default_rng(seed)
    at, v, M = rng.standard_normal(4), rng.standard_normal(4), rng.standard_normal((4, 4))
    M = put(backend, M + M.T)

    def function(p):
        return backend.namespace().sum(p["w"] * (M @ p["w"])) / 2 + p["c"] ** 3

    def gradient(p):
        return {"c": 3 * p["c"] ** 2, "w": M @ p["w"]}

    def hvp(p, v):
        return {"c": 6 * p["c"] * v["c"], "w": M @ v["w"]}

    made = lg.Objective.from_function(function, gradient=gradient, hvp=hvp)
    params = put(backend, {"c": at[0], "w": at})
    dense_M = np.asarray(backend.to_numpy(M))
    H = lg.Hessian(made, params)
    close(host(backend, H @ put(backend, {"c": v[0], "w": v})), np.append(6 * at[0] * v[0], dense_M @ v), 1e-12)
    close(host(backend, made.gradient(params)), np.append(3 * at[0] ** 2, dense_M @ at), 1e-12)
    value = at @ dense_M @ at / 2 + at[0] ** 3
    close(host(backend, made.value(params)), [value], 1e-12, abs(at) @ abs(dense_M) @ abs(at))
    with pytest.raises(ValueError, match=r"plain scalar function.*lg\.Hessian works"):
        lg.GGN(made, params)


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_plain_function_of_parameters_and_of_data(request, name):
    request.getfixturevalue(name)
    backend = lg.load(name)
    xp = backend.namespace()
    made = lg.Objective.from_function(lambda p, data: xp.sum(xp.sin(data["a"] * p)) + data["b"] * p[0] ** 2, {
        "a": put(backend, np.array([1.0, 2.0])), "b": 3.0,
    })  # fmt: skip
    p = np.array([0.3, 0.5])
    at = put(backend, p)
    dense_H = np.diag(-np.sin([0.3, 1.0]) * [1.0, 4.0]) + np.diag([6.0, 0.0])
    close(backend.to_numpy(lg.Hessian(made, at).to_dense()), dense_H, 1e-14)
    close(host(backend, made.gradient(at)), [np.cos(0.3) + 6 * 0.3, 2 * np.cos(1.0)], 1e-14)
    other = made.with_data({"a": put(backend, np.array([1.0, 0.0])), "b": 0.0})
    close(backend.to_numpy(lg.Hessian(other, at).to_dense()), np.diag([-np.sin(0.3), 0.0]), 1e-14)
    with pytest.raises(ValueError, match="must be a scalar"):
        lg.Objective.from_function(lambda p: p**2).gradient(at)


def test_parameters_that_are_not_used_have_zero_curvature(torch, jax):
    whole = jax.__version_info__ >= (0, 9)  # jax.linearize of 0.8 lets the tracer of such a tangent escape
    for name in ("torch", "jax")[: 1 + whole]:
        backend = lg.load(name)
        made = lg.Objective.from_function(lambda p: p["a"][0] ** 3 + 0 * p["a"][1])
        at = put(backend, {"a": np.array([2.0, 1.0]), "b": np.ones(2)})
        close(backend.to_numpy(lg.Hessian(made, at).to_dense()), np.diag([12.0, 0, 0, 0]), 1e-14)
        close(host(backend, made.gradient(at)), [12.0, 0, 0, 0], 1e-14)
