"""Derivatives that the user supplies: every form of them, and what is wrong with those that do not fit."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse.linalg import aslinearoperator

import linop_gn as lg
from linop_gn.curvature.supplied import Supplied

from .cases import ByComplexStep, Case, dense, host, objective, put
from .networks import close, fill, jacobian, leaves, like

CASE = Case("mlp", "softmax", "mean", 9, "weights", sizes=(2, 3))


def data_on(backend, case=CASE):
    return [tuple(put(backend, part) for part in batch) for batch in case.batches()]


def products(backend, model):
    """jvp= and vjp= by the complex step."""

    def J(params, x):
        return jacobian(model, fill(params, backend.to_numpy), np.asarray(backend.to_numpy(x)))

    def jvp(params, x, v):
        return put(backend, (J(params, x) @ host(backend, v)).reshape(x.shape[0], -1))

    def vjp(params, x, u):
        return put(backend, like(fill(params, backend.to_numpy), J(params, x).T @ host(backend, u)))

    return {"jvp": jvp, "vjp": vjp}


def check(backend, made, case=CASE):
    want, params = dense(case), put(backend, case.params())
    G = lg.GGN(made, params)
    close(backend.to_numpy(G.to_dense()), want.G, 1e-12)
    close(host(backend, made.gradient(params)), want.gradient, 1e-12)
    owner = np.repeat([0, 0, 1, 1], [np.size(leaf) for leaf in leaves(case.params())])
    B = lg.BlockGGN(made, params)
    close(backend.to_numpy(B.to_dense()), np.where(owner[:, None] == owner, want.G, 0), 1e-12)


@pytest.mark.parametrize("form", ["array", "tree", "products"])
def test_every_form_on_every_framework(backend, form):
    """They are used in place of the framework's own where it has some."""
    if backend.name == "jax":
        pytest.skip("the oracle runs on the host; JAX has a test of its own")
    model = CASE.net.model
    given = products(backend, model) if form == "products" else {"jacobian": ByComplexStep(model, backend, form)}
    check(backend, lg.Objective(model, CASE.make_loss(), data_on(backend), **given))


def test_supplied_products_inside_a_compiled_program(jax):
    backend, jnp = lg.load("jax"), jax.numpy
    traced = []

    def model(p, x):
        return jnp.tanh(x @ p["w"]) + p["b"]

    def jvp(p, x, v):
        traced.append("jvp")
        return (1 - jnp.tanh(x @ p["w"]) ** 2) * (x @ v["w"]) + v["b"]

    def vjp(p, x, u):
        return {"w": x.T @ ((1 - jnp.tanh(x @ p["w"]) ** 2) * u), "b": jnp.sum(u, axis=0)}

    rng = np.random.default_rng(0)
    params = put(backend, {"b": rng.standard_normal(2), "w": rng.standard_normal((3, 2))})
    data = [tuple(put(backend, rng.standard_normal(shape)) for shape in ((4, 3), (4, 2))) for _ in range(2)]
    ours, theirs = (lg.Objective(model, lg.losses.SquaredError(), data, **g) for g in ({}, {"jvp": jvp, "vjp": vjp}))
    v = lg.GGN(ours, params).domain.random(0)
    close(backend.to_numpy(lg.GGN(theirs, params) @ v), backend.to_numpy(lg.GGN(ours, params) @ v), 1e-12)
    close(host(backend, theirs.gradient(params)), host(backend, ours.gradient(params)), 1e-12)
    assert traced


def test_matrices_that_are_no_arrays(numpy_backend):
    rng = np.random.default_rng(0)
    M, y = rng.standard_normal((6, 4)) * (rng.random((6, 4)) < 0.5), rng.standard_normal(6)
    w = rng.standard_normal(4)
    for matrix in (sp.csr_array(M), sp.csr_matrix(M), aslinearoperator(M), M):
        made = lg.Objective.from_residuals(lambda w: M @ w - y, jacobian=lambda w, matrix=matrix: matrix)
        close(lg.GGN(made, w).to_dense(), M.T @ M, 1e-13)
        close(made.gradient(w), M.T @ (M @ w - y), 1e-13)
        tree = {"a": w[:1], "b": w[1:]}
        apart = lg.Objective.from_residuals(
            lambda p: M @ np.concatenate([p["a"], p["b"]]) - y, jacobian=lambda p, matrix=matrix: matrix
        )
        want = M.T @ M
        want[0, 1:] = want[1:, 0] = 0
        close(lg.BlockGGN(apart, tree, blocks="leaf").to_dense(), want, 1e-13)


def test_a_jacobian_and_a_model_may_use_buffers_of_their_own():
    """What they return is overwritten by the next call; the operator of the first point must not notice."""
    x, y = np.linspace(0.0, 1.0, 5), np.ones(5)
    J, z = np.empty((5, 2)), np.empty(5)

    def model(w, x):
        z[:] = w[0] * np.exp(w[1] * x)
        return z

    def in_place(w, x):
        J[:, 0], J[:, 1] = np.exp(w[1] * x), w[0] * x * np.exp(w[1] * x)
        return J

    made = lg.Objective(model, lg.losses.Poisson(), (x, y), jacobian=in_place)
    first = lg.GGN(made, np.array([1.0, 0.5]))
    before = first.to_dense()
    outputs = made.outputs(np.array([1.0, 0.5]))
    second = lg.GGN(made, np.array([2.0, -0.5])).to_dense()
    close(first.to_dense(), before, 0.0)
    close(outputs, np.exp(0.5 * x), 1e-14)
    assert abs(second - before).max() > 0.1


def test_numpy_scalars_are_arrays(numpy_backend):
    """``3 * x**2`` of a 0-d array is a NumPy scalar: parameters, derivatives and values may be such."""
    made = lg.Objective.from_function(
        lambda p: p["a"] ** 3 + float(p["b"] ** 2),
        gradient=lambda p: {"a": 3 * p["a"] ** 2, "b": 2 * p["b"]},
        hvp=lambda p, v: {"a": 6 * p["a"] * v["a"], "b": 2 * v["b"]},
    )
    p = {"a": np.float64(2.0), "b": np.array(3.0)}
    assert float(made.value(p)) == 17.0
    assert {key: float(value) for key, value in made.gradient(p).items()} == {"a": 12.0, "b": 6.0}
    close(lg.Hessian(made, p).to_dense(), np.diag([12.0, 2.0]), 0.0)
    line = lg.Objective.from_function(lambda p: float(p @ p), gradient=lambda p: 2 * p)
    assert float(line.value(np.ones(2))) == 2.0


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"jvp": len}, ValueError, r"jvp= was given without vjp="),
        ({"vjp": len}, ValueError, r"vjp= was given without jvp="),
        ({"jvp": len, "vjp": len, "jacobian": len}, ValueError, r"beside jacobian=, and only one would be used"),
        ({"hvp": len}, ValueError, r"hvp= was given without gradient="),
        ({"jacobian": np.ones(2)}, TypeError, r"jacobian= must be a function of the parameters, got ndarray"),
    ],
)
def test_derivatives_that_do_not_go_together(given, error, message):
    with pytest.raises(error, match=message):
        Supplied.given(**given)
    assert Supplied.given(jvp=None) is None


def mlp_with(**given):
    made = objective(CASE._replace(sizes=(5,)), lg.load("numpy"))
    return lg.Objective(made.model, made.loss, made.batches[0], **given)


def ones(*shape):
    return lambda *arguments: np.ones(shape)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"jacobian": ones(5, 3, 30)}, ValueError, r"supplied jacobian has shape \(5, 3, 30\); expected \(5, 3, 31\)"),
        # The shape of the first leaf alone is no Jacobian of a tree.
        ({"jacobian": ones(5, 3, 4)}, ValueError, r"supplied jacobian has shape \(5, 3, 4\); expected \(5, 3, 31\)"),
        (
            {"jacobian": lambda p, x: {"fc1": np.ones(3)}},
            ValueError,
            r"has leaves \['fc1'\]; expected .* leaves \['fc1\.bias'",
        ),
        (
            {"jacobian": lambda p, x: fill(p, lambda leaf: np.ones((5, 3, 2)))},
            ValueError,
            r"leaf 'fc1\.bias' of the supplied jacobian has shape \(5, 3, 2\); expected \(5, 3, 4\)",
        ),
        ({"jacobian": lambda p, x: sp.eye_array(3)}, ValueError, r"has a dia_array of shape \(3, 3\); expected an arr"),
        ({"jacobian": lambda p, x: None}, ValueError, r"the supplied jacobian has "),
        ({"jacobian": lambda p, x: np.ones((15, 31), complex)}, TypeError, r"jacobian has dtype complex128.*cast it"),
        ({"jvp": ones(5), "vjp": lambda p, x, u: p}, ValueError, r"supplied jvp returned float64 of shape \(5,\); exp"),
        ({"jvp": lambda *a: None, "vjp": lambda p, x, u: p}, ValueError, r"supplied jvp returned a NoneType"),
        (
            {"jvp": lambda *a: np.ones((5, 3), "float32"), "vjp": lambda p, x, u: p},
            ValueError,
            r"supplied jvp returned float32 of shape \(5, 3\); expected an array like the outputs, float64",
        ),
        ({"jvp": ones(5, 3), "vjp": ones(31)}, ValueError, "the result of the supplied vjp is not a tree like this"),
        (
            {"jvp": ones(5, 3), "vjp": lambda p, x, u: fill(p, lambda leaf: np.ones(7))},
            ValueError,
            r"leaf 'fc1\.bias' of the result of the supplied vjp has shape \(7,\), expected \(4,\)",
        ),
    ],
)
def test_derivatives_of_another_shape(given, error, message):
    G = lg.GGN(mlp_with(**given), CASE.params())
    with pytest.raises(error, match=message):
        G @ G.domain.random(0)


def test_gradients_and_hessians_of_another_shape():
    made = lg.Objective.from_function(lambda p: p @ p, gradient=lambda p: np.ones(3), hvp=lambda p, v: np.ones(3))
    with pytest.raises(ValueError, match=r"the result of the supplied gradient has shape \(3,\), expected \(2,\)"):
        made.gradient(np.ones(2))
    made = lg.Objective.from_function(lambda p: p @ p, gradient=lambda p: 2 * p, hvp=lambda p, v: np.ones(3))
    with pytest.raises(ValueError, match=r"the result of the supplied hvp has shape \(3,\), expected \(2,\)"):
        lg.Hessian(made, np.ones(2)) @ np.ones(2)


def test_supplied_functions_record_no_graph(torch):
    """A model or a Jacobian that closes over tensors with gradients leaves none of them in the results."""
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    x, y = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    made = lg.Objective(
        lambda w, x: scale * (x @ w),
        lg.losses.SquaredError(),
        (x, y),
        jvp=lambda w, x, v: scale * (x @ v),
        vjp=lambda w, x, u: scale * (x.T @ u),
    )
    w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    G = lg.GGN(made, w)
    for found in (made.value(w), made.gradient(w), made.outputs(w), G @ w, lg.LossHessian(made, w) @ y):
        assert not found.requires_grad
    v = torch.ones(2, dtype=torch.float64)
    close((G @ v).numpy(), (x.T @ x @ v / 4).numpy(), 1e-12)
