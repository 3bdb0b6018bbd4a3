"""What users ask of an objective: constructors, other data, formats in and out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import FULL, spare

import linop_gn as lg
from linop_gn.testing import finite_difference_gradient, finite_difference_jacobian

from .cases import Case, dense, host, objective, put
from .networks import NETWORKS, close, flat, leaves, like

IN_CI_ON_JAX = ("test_every_format_goes_in_and_comes_out", "test_nonlinear_least_squares")


def residuals(p, data=None):
    t = np.linspace(0.0, 1.0, 4) if data is None else data["t"]
    xp = lg.namespace(p[0])
    t = t if data is not None or lg.backend_of(p[0]).name == "numpy" else lg.backend_of(p[0]).asarray(t, "float64")
    return p[0] * xp.exp(p[1] * t) - 1.0


@pytest.mark.parametrize("with_data", [True, False])
def test_nonlinear_least_squares(backend, with_data):
    if backend.name in ("poison", "array_api_strict") and not with_data:
        pytest.skip("the constant in the residuals is NumPy's")
    t, at = np.array([0.0, 0.5, 1.0]) if with_data else np.linspace(0.0, 1.0, 4), np.array([1.5, -0.7])

    def jac(p, data=None):
        p = host(backend, p)
        return put(backend, np.stack([np.exp(p[1] * t), p[0] * t * np.exp(p[1] * t)], axis=1))

    data = ({"t": put(backend, t)},) if with_data else ()
    given = {} if backend.calculus is not None else {"jacobian": jac}
    made = lg.Objective.from_residuals(residuals, *data, **given)
    params = [put(backend, at[0]), put(backend, at[1])]
    r = at[0] * np.exp(at[1] * t) - 1
    J = host(backend, [jac(params)]).reshape(-1, 2)
    close(host(backend, made.value(params)), [r @ r / 2], 1e-13)
    close(host(backend, made.gradient(params)), J.T @ r, 1e-12)
    G = lg.GGN(made, params)
    assert G.psd
    close(backend.to_numpy(G.to_dense()), J.T @ J, 1e-12)
    close(host(backend, made.outputs(params)), r, 1e-13)
    if with_data:
        # Other data are given as the first were: whole.
        other = made.with_data({"t": put(backend, np.zeros(2))})
        close(host(backend, other.outputs(params)), [0.5, 0.5], 1e-13)
        assert other.loss is made.loss


def test_a_line_is_fitted_by_one_gauss_newton_step(backend):
    rng = np.random.default_rng(0)
    x, y, w = rng.standard_normal((6, 3)), rng.standard_normal(6), rng.standard_normal(3)
    given = {} if backend.calculus is not None else {"jacobian": lambda w, x: x}
    made = lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), (put(backend, x), put(backend, y)), **given)
    at = put(backend, w)
    step = lg.solve(lg.GGN(made, at), put(backend, -host(backend, made.gradient(at))), lg.CG(rtol=1e-13))
    close(host(backend, step.x) + w, np.linalg.lstsq(x, y, rcond=None)[0], 1e-10)


def test_other_data_same_model(backend):
    first, second = Case("mlp", "softmax", "mean", 1), Case("mlp", "softmax", "mean", 2, "weights", sizes=(3, 2))
    made, params = objective(first, backend), put(backend, first.params())
    batches = [tuple(put(backend, part) for part in batch) for batch in second.batches()]
    other = made.with_data(batches)
    want = dense(second, first.params())
    close(host(backend, other.gradient(params)), want.gradient, 1e-12)
    close(host(backend, made.gradient(params)), dense(first).gradient, 1e-12)
    with pytest.raises(TypeError, match="data must be a tuple"):
        made.with_data(batches[0][0])


def test_values_and_gradients_together(backend):
    case = Case("residual", "squared", "sum", 1, "leading", sizes=(3, 2))
    made, params, want = objective(case, backend), put(backend, case.params()), dense(case)
    value, gradient = made.value_and_gradient(params)
    assert backend.is_array(value)
    assert tuple(value.shape) == ()
    close(host(backend, value), [want.value], 1e-12)
    close(host(backend, gradient), want.gradient, 1e-12)
    assert [backend.describe(leaf) for leaf in leaves(gradient)] == [backend.describe(leaf) for leaf in leaves(params)]


@pytest.mark.parametrize("network", ["decay", "single", "residual", "mlp"])
def test_every_format_goes_in_and_comes_out(backend, network):
    spare(backend, FULL or network in ("single", "residual"))
    case = Case(network, "squared", "mean", 4)
    made, params, want = objective(case, backend), put(backend, case.params()), dense(case)
    operators = [lg.GGN(made, params), lg.BlockGGN(made, params, blocks=lambda name: "all")]
    n = want.G.shape[0]
    v = np.random.default_rng(0).standard_normal(n)
    for A in operators:
        tree = A @ put(backend, like(case.params(), v))
        close(host(backend, tree), want.G @ v, 1e-12)
        assert type(tree) is type(params)
        assert [tuple(leaf.shape) for leaf in leaves(tree)] == [np.shape(leaf) for leaf in leaves(case.params())]
        if n > 1:
            vector = A @ put(backend, v)
            assert tuple(vector.shape) == (n,)
            close(backend.to_numpy(vector), want.G @ v, 1e-12)
        columns = A @ put(backend, np.stack([v, 2 * v, v], axis=1))
        close(backend.to_numpy(columns), np.stack([want.G @ v, 2 * want.G @ v, want.G @ v], axis=1), 1e-12)
        # Trees as right-hand sides: the solution is a tree as well.
        step = lg.solve(lg.Damped(A, 10.0), put(backend, like(case.params(), v)), lg.CG(rtol=1e-12))
        close(host(backend, step.x), np.linalg.solve(want.G + 10 * np.eye(n), v), 1e-10)
        assert type(step.x) is type(params)


def test_inputs_may_be_any_tree_and_hold_numbers(torch, jax):
    x = np.random.default_rng(0).standard_normal((4, 3))
    for name in ("torch", "jax"):
        backend = lg.load(name)

        def model(w, inputs):
            return inputs["scale"] * (inputs["pair"][0] + inputs["pair"][1]) @ w

        data = ({"pair": (put(backend, x), put(backend, 2 * x)), "scale": 2.0}, put(backend, np.ones(4)))
        G = lg.GGN(lg.Objective(model, lg.losses.SquaredError(reduction="sum"), [data, data]), put(backend, np.ones(3)))
        close(backend.to_numpy(G.to_dense()), 72 * x.T @ x, 1e-12)


def test_gradients_and_jacobians_against_differences(numpy_backend):
    case = Case("mlp", "binary", "mean", 5, "weights", sizes=(3, 2))
    made, at = objective(case, numpy_backend), case.params()
    got = finite_difference_gradient(lambda p: float(made.value(like(at, p))), flat(at))
    close(flat(made.gradient(at)), got, 1e-7)
    one = made.with_data((made.batches[0].inputs, made.batches[0].targets))
    J = finite_difference_jacobian(lambda p: one.outputs(like(at, p)).reshape(-1), flat(at))
    close(lg.Jacobian(one, at).to_dense(), J, 1e-7)


@given(st.integers(0, 2**16))
def test_value_is_the_taylor_series_of_its_gradient_and_hessian(torch, seed):
    case = Case("convolutional", "softmax", "mean", seed, "weights", sizes=(2, 1))
    backend = lg.load("torch")
    made, params = objective(case, backend), put(backend, case.params())
    v = np.random.default_rng(seed).standard_normal(flat(case.params()).size)
    h = 1e-2 / np.linalg.norm(v)
    ahead, behind = (put(backend, like(case.params(), flat(case.params()) + s * h * v)) for s in (1, -1))
    slope = float(host(backend, made.gradient(params)) @ v)
    bend = float(v @ backend.to_numpy(lg.Hessian(made, params) @ put(backend, v)))
    up, down, here = (float(made.value(p)) for p in (ahead, behind, params))
    assert (up - down) / 2 == pytest.approx(h * slope, abs=2e-5)
    assert (up + down) / 2 - here == pytest.approx(h * h * bend / 2, abs=2e-7)


def test_how_it_reads(numpy_backend):
    made = objective(Case("mlp", "softmax", "mean", 0, sizes=(3, 2)), numpy_backend)
    assert repr(made).startswith("Objective(mlp, CrossEntropy(")
    assert repr(made).endswith("2 batches)")
    assert "scalar function, 1 batch)" in repr(lg.Objective.from_function(lambda p: p @ p))
    G = lg.GGN(made, NETWORKS["mlp"].params(0))
    assert repr(G) == "GGN(31 x 31, psd, numpy float64)"
