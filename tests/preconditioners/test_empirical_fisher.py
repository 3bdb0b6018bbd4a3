"""Per-example squared gradients against dense float64 sums, with every way of weighing, masking and batching."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.draws import signs
from linop_gn.preconditioners import EmpiricalFisher, SquaredGradient
from linop_gn.testing.losses import expected

from ..curvature.cases import Case, Streamed, cases, dense, full_weights, host, objective, put
from ..curvature.networks import close, jacobian


def gradients(case):
    """For each batch the examples' gradients (B, n), times sqrt(w); and the normaliser."""
    made, weight = [], 0.0
    for batch in case.batches():
        z = np.asarray(case.net.model(case.params(), batch.inputs))
        w = full_weights(case, batch, z)
        y = np.where(batch.targets == -100, 0, batch.targets) if case.ignore else batch.targets
        u = expected(case.loss, z, y, np.sqrt(w)).gradient.reshape(len(z), -1)
        J = jacobian(case.net.model, case.params(), batch.inputs).reshape(len(z), u.shape[1], -1)
        made.append(np.einsum("bk,bkn->bn", u, J))
        weight += float(w.sum())
    return made, 1.0 / weight if case.reduction == "mean" else 1.0


def exact(case):
    made, scale = gradients(case)
    return scale * sum((g * g).sum(axis=0) for g in made)


def sampled(case, probes, seed):
    made, scale = gradients(case)
    total = 0.0
    for g in made:
        drawn = [signs(lg.Space.flat(len(g), np.zeros(1)), seed, i) for i in range(probes)]
        total = total + np.mean([(s @ g) ** 2 for s in drawn], axis=0)
    return scale * total


def check(case, backend, hold=list):
    made, params = objective(case, backend, hold=hold), put(backend, case.params())
    A = lg.Damped(lg.GGN(made, params), 0.5)
    for recipe, want in (
        (EmpiricalFisher(exponent=1.0, probes=None), exact(case)),
        (EmpiricalFisher(exponent=1.0, probes=3, seed=case.seed), sampled(case, 3, case.seed)),
        (SquaredGradient(exponent=1.0), dense(case).gradient ** 2),
    ):
        got = 1 / host(backend, recipe(A).values) - 0.5
        close(got, want, 1e-9, size=max(float(want.max()), 0.5))


@given(cases(), st.sampled_from([list, Streamed]))
def test_in_torch(torch, case, hold):
    check(case, lg.load("torch"), hold)


@given(cases(), st.sampled_from([list, Streamed]))
def test_where_derivatives_are_supplied(numpy_backend, case, hold):
    check(case, numpy_backend, hold)


@settings(max_examples=4)
@given(cases(networks=("mlp", "single")))
def test_on_spoiled_and_on_foreign_arrays(backend, case):
    if backend.name in ("poison", "array_api_strict"):
        check(case, backend)


@pytest.mark.parametrize(
    ("case", "hold"),
    [
        (Case("mlp", "softmax", "mean", 0, "weights", sizes=(2, 2, 1)), list),
        (Case("mlp", "softmax", "mean", 0, "mask", sizes=(3, 2)), Streamed),
    ],
    ids=["stacked", "streamed"],
)
def test_in_jax(jax, case, hold):
    for seed in range(2):
        check(case._replace(seed=seed), lg.load("jax"), hold)


@pytest.mark.parametrize("guest", ["torch", "jax"])
def test_across_a_bridge(request, numpy_backend, guest):
    request.getfixturevalue(guest)
    case = Case("mlp", "softmax", "mean", 3, "weights", sizes=(3, 2))
    made, params = objective(case, numpy_backend), put(numpy_backend, case.params())
    bridged = lg.Objective(case.net.model, made.loss, list(made.batches), derivatives=guest)
    for recipe in (EmpiricalFisher(probes=None), EmpiricalFisher(probes=2)):
        here, there = (recipe(lg.Damped(lg.GGN(of, params), 0.1)).values for of in (made, bridged))
        np.testing.assert_allclose(here, there, rtol=1e-10)


def test_a_loss_without_closed_forms(torch):
    x = torch.tensor(np.random.default_rng(0).standard_normal((5, 3)))
    w = torch.tensor(np.array([1.0, 0.0, 2.0, 0.5, 1.0]))
    y, p = torch.ones(5, dtype=torch.float64), torch.tensor(np.array([0.3, -0.2, 0.1]))
    losses = [lg.losses.SquaredError(), lambda z, y: 0.5 * (z - y) ** 2]
    a, b = (
        EmpiricalFisher(probes=None)(lg.GGN(lg.Objective(lambda p, x: x @ p, loss, (x, y, w)), p)) for loss in losses
    )
    torch.testing.assert_close(a.values, b.values)


def test_the_estimate_is_right_on_average(numpy_backend):
    case = Case("mlp", "softmax", "mean", 1, "weights")
    A = lg.GGN(objective(case, numpy_backend), put(numpy_backend, case.params()))
    got = 1 / EmpiricalFisher(exponent=1.0, probes=3000)(A).values
    want = exact(case)
    big = want > 1e-3 * want.max()
    assert abs(got / want - 1)[big].max() < 5 * np.sqrt(2 / 3000)


def test_the_exponent_and_the_damping(numpy_backend):
    case = Case("single", "squared", "mean", 1)
    A = lg.GGN(objective(case, numpy_backend), put(numpy_backend, case.params()))
    for recipe, d in ((EmpiricalFisher(probes=None), exact(case)), (SquaredGradient(), dense(case).gradient ** 2)):
        np.testing.assert_allclose(recipe(lg.Damped(A, 0.3)).values, (d + 0.3) ** -0.75, rtol=1e-10)
    half = EmpiricalFisher(exponent=0.5, probes=None)(A + 0.3 * lg.Identity(A.domain))
    np.testing.assert_allclose(half.values, (exact(case) + 0.3) ** -0.5, rtol=1e-10)


def test_it_is_found_inside_a_composition(numpy_backend):
    case = Case("single", "squared", "mean", 1)
    made, params = objective(case, numpy_backend), put(numpy_backend, case.params())
    J, H = lg.Jacobian(made, params), lg.LossHessian(made, params)
    for A in (J.T @ H @ J, 2.0 * lg.BlockGGN(made, params)):
        np.testing.assert_allclose(EmpiricalFisher(probes=None)(A).values, exact(case) ** -0.75, rtol=1e-10)


def test_errors_say_what_to_do(torch, numpy_backend):
    with pytest.raises(TypeError, match=r"EmpiricalFisher needs the model's gradients, and Diagonal.* Jacobi"):
        EmpiricalFisher()(lg.Diagonal(np.ones(2)))
    scalar = lg.Objective.from_function(lambda p: (p**4).sum())
    with pytest.raises(TypeError, match="plain scalar function"):
        EmpiricalFisher()(lg.Hessian(scalar, torch.ones(2)))
    assert SquaredGradient(exponent=1.0)(lg.Hessian(scalar, torch.ones(2))).values.tolist() == [1 / 16, 1 / 16]
    with pytest.raises(ValueError, match="exponent must be a finite number > 0, got 0"):
        EmpiricalFisher(exponent=0)
    with pytest.raises(ValueError, match="probes must be a whole number"):
        EmpiricalFisher(probes=0)
    steep = np.float32(1e30) * np.eye(2, dtype="float32")
    big = lg.Objective.from_residuals(lambda p: steep @ p, jacobian=lambda p: steep)
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="squares overflow its dtype"):
        EmpiricalFisher()(lg.GGN(big, np.ones(2, "float32")))
