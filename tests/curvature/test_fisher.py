"""The empirical Fisher operator against sums over single gradients, on every framework."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.testing.losses import expected

from .cases import TOLERANCE, Case, Streamed, cases, full_weights, host, objective, put
from .networks import close, flat, jacobian, like

HOLDERS = st.sampled_from([list, tuple, Streamed])


def fisher(case):
    """sum_i w_i g_i g_i^T, divided once, and the gradients' size."""
    params = like(case.params(), flat(case.params()).astype(np.float64))
    made, weight = 0.0, 0.0
    for batch in case.batches():
        z = np.asarray(case.net.model(params, batch.inputs))
        w = full_weights(case, batch, z)
        y = np.where(batch.targets == -100, 0, batch.targets) if case.ignore else batch.targets
        slopes = expected(case.loss, z, y, np.ones(w.shape)).gradient.reshape(w.size, -1)
        rows = jacobian(case.net.model, params, batch.inputs).reshape(*slopes.shape, -1)
        each = np.einsum("ec,ecn->en", slopes, rows)
        made = made + np.einsum("e,en,em->nm", w.reshape(-1), each, each)
        weight += float(w.sum())
    return made / weight if case.reduction == "mean" else made


def check(case, backend, hold=list, dtype="float64"):
    F = lg.EmpiricalFisher(objective(case, backend, dtype, hold), put(backend, case.params(), dtype))
    want, n = fisher(case), flat(case.params()).size
    assert (F.shape, F.symmetric, F.psd) == ((n, n), True, True)
    v = np.random.default_rng(case.seed).standard_normal((n, 2))
    size = float((np.sqrt(np.outer(want.diagonal(), want.diagonal())) @ abs(v)).max())
    close(backend.to_numpy(F @ put(backend, v, dtype)), want @ v, 10 * TOLERANCE[dtype], size)


@given(cases(), HOLDERS, st.sampled_from(["float64", "float32"]))
def test_products_are_sums_over_gradients(numpy_backend, case, hold, dtype):
    check(case, numpy_backend, hold, dtype)


@settings(max_examples=8)
@given(cases(), HOLDERS)
def test_products_on_spoiled_arrays_and_in_torch(backend, case, hold):
    if "compiled" not in backend.capabilities:
        check(case, backend, hold)


@pytest.mark.parametrize("case", [Case("mlp", "softmax", "mean", 0, "weights", (2, 3))], ids=lambda case: case.loss)
def test_products_in_jax(jax, case):
    check(case, lg.load("jax"))


def test_value_and_gradient_are_the_losses_own(numpy_backend):
    case = Case("mlp", "softmax", "mean", 3, "weights")
    f, p = objective(case, numpy_backend), case.params()
    F = lg.EmpiricalFisher(f, p)
    np.testing.assert_allclose(F.point.value, f.value(p))
    np.testing.assert_allclose(F.point.gradient, host(numpy_backend, f.gradient(p)))


def test_class_weights_weigh_examples(numpy_backend):
    """The gradient of an example does not grow with its class's weight; the example counts as often."""
    rng = np.random.default_rng(0)
    x, w, y = rng.standard_normal((6, 3)), rng.standard_normal((3, 4)), np.array([0, 1, 2, 3, 1, 1])
    c = np.array([0.5, 2.0, 0.0, 1.0])
    jacobian = lambda p, x: np.einsum("ni,jk->njik", x, np.eye(4))  # noqa: E731
    weighted = lg.Objective(lambda p, x: x @ p, lg.losses.CrossEntropy(weight=c), (x, y), jacobian=jacobian)
    repeated = lg.Objective(lambda p, x: x @ p, lg.losses.CrossEntropy(), (x, y, c[y]), jacobian=jacobian)
    found, wanted = (lg.EmpiricalFisher(f, w).to_dense() for f in (weighted, repeated))
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-15)


def test_of_a_sequence_each_position_is_an_example_unless_the_loss_says_otherwise(numpy_backend):
    x = np.random.default_rng(1).standard_normal((5, 3, 2))
    y = (x.sum(-1) > 0).astype(float)
    jacobian = lambda p, x: x  # noqa: E731

    @lg.record
    class OfAnImage(lg.losses.BinaryCrossEntropy):
        example_axes = 1

    p = np.array([0.3, -0.2])
    slopes = (1 / (1 + np.exp(-x @ p)) - y)[..., None] * x
    for loss, rows, count in (
        (lg.losses.BinaryCrossEntropy(), slopes.reshape(15, 2), 15),
        (OfAnImage(), slopes.sum(axis=1), 5),
    ):
        F = lg.EmpiricalFisher(lg.Objective(lambda p, x: x @ p, loss, (x, y), jacobian=jacobian), p)
        np.testing.assert_allclose(F.to_dense(), rows.T @ rows / count, rtol=1e-12)


@pytest.mark.parametrize("loss", ["softmax", "squared", "binary"])
def test_on_the_side_of_the_outputs_it_is_the_same(numpy_backend, loss):
    case = Case("mlp", loss, "mean", 2, "weights")
    F = lg.EmpiricalFisher(objective(case, numpy_backend), case.params())
    b = np.random.default_rng(0).standard_normal(F.shape[0])
    x = lg.solve(lg.Damped(F, 0.1), b, lg.GramSolve()).x
    np.testing.assert_allclose(fisher(case) @ x + 0.1 * x, b, atol=1e-8)


def test_l2_is_added_and_losses_without_slopes_are_told():
    x, y = np.eye(3), np.arange(3.0)
    fit = lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), (x, y), jacobian=lambda w, x: x, l2=2.0)
    np.testing.assert_allclose(lg.EmpiricalFisher(fit, np.zeros(3)).to_dense(), np.diag(y**2) / 3 + 2 * np.eye(3))
    plain = lg.Objective(lambda w, x: x @ w, lambda z, y: (z - y) ** 2, (x, y), jacobian=lambda w, x: x)
    with pytest.raises(TypeError, match="value, slope and curvature"):
        lg.EmpiricalFisher(plain, np.zeros(3))
    scalar = lg.Objective.from_function(lambda p: p @ p, gradient=lambda p: 2 * p)
    with pytest.raises(ValueError, match="plain scalar function"):
        lg.EmpiricalFisher(scalar, np.zeros(3))
