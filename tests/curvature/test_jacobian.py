"""The factors of the GGN: J and H_L, and what is composed of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import linop_gn as lg

from .cases import TOLERANCE, Case, Streamed, cases, dense, host, objective, put
from .networks import close, flat, like


def check(case, backend, dtype="float64"):
    want, tolerance = dense(case), TOLERANCE[dtype]
    made, params = objective(case, backend, dtype), put(backend, case.params(), dtype)
    J, H = lg.Jacobian(made, params), lg.LossHessian(made, params)
    rng = np.random.default_rng(case.seed)
    m, n = want.J.shape
    v, u = rng.standard_normal((n, 2)), rng.standard_normal((m, 2))
    assert (J.shape, H.shape, J.symmetric, H.symmetric, H.psd) == ((m, n), (m, m), False, True, True)

    def product(A, x):
        return backend.to_numpy(A @ put(backend, x, dtype))

    close(product(J, v), want.J @ v, tolerance, float((abs(want.J) @ abs(v)).max()))
    close(product(J.T, u), want.J.T @ u, tolerance, float((abs(want.J.T) @ abs(u)).max()))
    close(product(H, u), want.H @ u, tolerance, float((abs(want.H) @ abs(u)).max()))

    G = J.T @ H @ J
    size = float((abs(want.J).T @ abs(want.H) @ abs(want.J) @ abs(v)).max())
    assert (G.symmetric, G.psd, G.prepare().psd, (G + 0.1 * lg.Identity(G.domain)).psd) == (True, True, True, True)
    close(product(G, v), want.G @ v, tolerance, size)
    close(product(G, v), product(lg.GGN(made, params), v), tolerance, size)
    gram = J @ J.T
    assert gram.psd
    close(product(gram, u), want.J @ want.J.T @ u, tolerance, float((abs(want.J) @ abs(want.J.T) @ abs(u)).max()))
    return made, params, want


ONE = ((5,), (3,))


@given(cases(splits=ONE), st.sampled_from(["float64", "float32"]))
def test_factors_in_torch(torch, case, dtype):
    check(case, lg.load("torch"), dtype)


@settings(max_examples=8)
@given(cases(splits=ONE))
def test_factors_where_derivatives_are_supplied(backend, case):
    if backend.calculus is None:
        check(case, backend)


@pytest.mark.parametrize("loss", ["softmax", "squared"])
def test_factors_in_jax(jax, loss):
    for seed in range(2):
        check(Case("mlp", loss, "mean", seed, "weights"), lg.load("jax"))


def test_formats(backend):
    case = Case("mlp", "squared", "mean", 2)
    made, params = objective(case, backend), put(backend, case.params())
    want = dense(case)
    J = lg.Jacobian(made, params)
    v, u = np.arange(31.0), np.arange(15.0)
    z = J @ put(backend, like(case.params(), v))
    assert tuple(z.shape) == (5, 3)
    close(host(backend, z), want.J @ v, 1e-12)
    assert tuple((J @ put(backend, v)).shape) == (15,)
    back = J.T @ put(backend, u.reshape(5, 3))
    assert back.keys() == {"fc1", "fc2"}
    close(host(backend, back), want.J.T @ u, 1e-12)
    assert tuple((J.T @ put(backend, u)).shape) == (31,)
    H = lg.LossHessian(made, params)
    assert tuple((H @ put(backend, u.reshape(5, 3))).shape) == (5, 3)
    assert flat(case.params()).size == J.shape[1]


def test_outputs_of_another_precision_than_the_parameters(torch, jax):
    for name in ("torch", "jax"):
        backend = lg.load(name)
        x = put(backend, np.ones((2, 3)), "float64")

        def model(w, x):
            return x @ lg.backend_of(x).cast(w, "float64")

        made = lg.Objective(model, lg.losses.SquaredError(), (x, put(backend, np.ones(2))))
        J = lg.Jacobian(made, put(backend, np.ones(3), "float32"))
        assert (J.domain.dtype, J.codomain.dtype) == ("float32", "float64")
        product = J.T @ (J @ put(backend, np.ones(3), "float32"))
        assert backend.describe(product)[1] == "float32"
        close(backend.to_numpy(product), [6.0, 6.0, 6.0], 1e-6)


def test_not_for_several_batches(numpy_backend):
    case = Case("mlp", "squared", "mean", 2, sizes=(3, 2))
    for hold in (list, Streamed):
        made = objective(case, numpy_backend, hold=hold)
        for kind in (lg.Jacobian, lg.LossHessian):
            with pytest.raises(ValueError, match=rf"lg\.{kind.__name__} exists for data of one batch only.*with_data"):
                kind(made, case.params())
        with pytest.raises(ValueError, match="outputs exists for data of one batch only"):
            made.outputs(case.params())
    f = lg.Objective.from_function(lambda p: p @ p, gradient=lambda p: 2 * p)
    with pytest.raises(ValueError, match=r"lg\.Jacobian needs to know the model and the loss apart"):
        lg.Jacobian(f, np.ones(2))
