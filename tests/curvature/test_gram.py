"""The root W and the Gram operator W W^T against the dense Gauss-Newton matrix W^T W."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.curvature.gram import root_gradient
from linop_gn.testing import dense as matrix_of

from .cases import Case, Streamed, cases, dense, host, objective, put
from .networks import close


def check(case, backend):
    made, params = objective(case, backend), put(backend, case.params())
    K, want = lg.Gram(made, params), dense(case)
    W = matrix_of(K.root)
    m = len(W)
    assert K.shape == (m, m) == (len(want.J), len(want.J))
    assert (K.psd, K.prepare().psd) == (True, True)
    close(W.T @ W, want.G, 1e-11, max(float(abs(want.G).max()), 1e-12))
    close(matrix_of(K), W @ W.T, 1e-12, max(float(abs(W @ W.T).max()), 1e-12))
    u = np.random.default_rng(case.seed).standard_normal((m, 2))
    close(backend.to_numpy(K.root.T @ put(backend, u)), W.T @ u, 1e-12, float((abs(W).T @ abs(u)).max()) + 1e-12)
    close(backend.to_numpy(K.root.rows()), W, 1e-12, float(abs(W).max()) + 1e-12)
    scale = float(made.at(params).linearized().scale)
    q = backend.to_numpy(root_gradient(K.root))
    close(np.sqrt(scale) * W.T @ q, want.gradient, 1e-10, max(want.gradient_size, 1e-12))


@given(cases())
def test_in_torch(torch, case):
    check(case, lg.load("torch"))


@given(cases())
def test_where_derivatives_are_supplied(numpy_backend, case):
    check(case, numpy_backend)


@settings(max_examples=4)
@given(cases(networks=("mlp", "single")))
def test_on_spoiled_and_on_foreign_arrays(backend, case):
    if backend.name in ("poison", "array_api_strict"):
        check(case, backend)


def test_in_jax(jax):
    for seed in range(2):
        check(Case("mlp", "softmax", "mean", seed, "weights", sizes=(2, 2, 1)), lg.load("jax"))


@settings(max_examples=5)
@given(st.integers(0, 99))
def test_across_a_bridge(torch, numpy_backend, seed):
    case = Case("mlp", "softmax", "mean", seed, "weights", sizes=(3, 2))
    made, params = objective(case, numpy_backend), put(numpy_backend, case.params())
    bridged = lg.Objective(case.net.model, made.loss, list(made.batches), derivatives="torch")
    K, L = lg.Gram(made, params), lg.Gram(bridged, params)
    np.testing.assert_allclose(K.to_dense(), L.to_dense(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(root_gradient(K.root), root_gradient(L.root), rtol=1e-9, atol=1e-12)


def test_vectors_have_the_shape_of_the_outputs(backend):
    case = Case("single", "squared", "sum", 0)
    made, params = objective(case, backend), put(backend, case.params())
    K = lg.Gram(made, params)
    u = put(backend, np.ones((5, 2)))
    assert tuple((K @ u).shape) == (5, 2)
    assert tuple((K.root.T @ u).shape) == np.shape(case.params())
    batches = lg.Gram(objective(case._replace(sizes=(3, 2)), backend), params)
    assert batches.shape == (10, 10)
    close(host(backend, K.to_dense()), host(backend, batches.to_dense()), 1e-12)


def test_errors_say_what_to_do(torch):
    x, p = torch.ones((2, 3), dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    own = lg.Objective(lambda p, x: x @ p, lambda z, y: (z - y) ** 2, (x, torch.ones(2)))
    with pytest.raises(ValueError, match=r"lg\.Gram needs a root S .* FromFunction has no closed forms.*lg\.CG"):
        lg.Gram(own, p)
    streamed = lg.Objective(lambda p, x: x @ p, lg.losses.SquaredError(), Streamed([(x, torch.ones(2))]))
    with pytest.raises(ValueError, match="streamed: hold them in a list"):
        lg.Gram(streamed, p)
    with pytest.raises(ValueError, match="plain scalar function"):
        lg.Gram(lg.Objective.from_function(lambda p: p @ p), p)
