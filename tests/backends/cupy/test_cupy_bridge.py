"""CuPy's arrays, a model in torch or JAX: the way that memory takes, with the stand-in's memory on the host."""

import importlib

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.testing import dense


def network(array):
    rng = np.random.default_rng(0)
    data = array(rng.standard_normal((9, 3))), array(rng.standard_normal((9, 2)))
    return data, {"a": array(rng.standard_normal((3, 4))), "b": array(rng.standard_normal((4, 2)))}


def model(p, x):
    return lg.namespace(x).tanh(x @ p["a"]) @ p["b"]


@pytest.mark.parametrize("guest", ["torch", "jax"])
@pytest.mark.parametrize("curvature", [lg.GGN, lg.Hessian])
def test_a_model_of_another_framework_is_differentiated_there(stand_in, guest, curvature):
    pytest.importorskip(guest)
    ops, there = lg.load("cupy"), lg.load(guest)
    loss = lg.losses.SquaredError()
    data, params = network(lambda x: ops.asarray(x, "float64"))
    A = curvature(lg.Objective(model, loss, data, derivatives=guest), params)
    data, params = network(lambda x: there.asarray(x, "float64"))
    B = curvature(lg.Objective(model, loss, data), params)
    product = A @ A.domain.random(0)
    assert A.backend is ops
    assert ops.describe(product) == ((20,), "float64", "cuda:0")
    np.testing.assert_allclose(ops.to_numpy(product), there.to_numpy(B @ B.domain.random(0)), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dense(A), dense(B), rtol=1e-12, atol=1e-12)


def test_a_fit_stays_in_cupy(stand_in):
    pytest.importorskip("torch")
    ops = lg.load("cupy")
    data, params = network(lambda x: ops.asarray(x, "float64"))
    objective = lg.Objective(model, lg.losses.SquaredError(), data, derivatives="torch")
    fit = lg.minimize(objective, params, max_steps=5)
    assert all(type(leaf) is importlib.import_module("cupy").ndarray for leaf in fit.params.values())
    assert float(fit.value) < float(objective.value(params))
