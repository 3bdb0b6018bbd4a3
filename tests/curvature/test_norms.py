"""Norms of the examples' gradients, held against a dense Jacobian."""

import numpy as np
from hypothesis import given, settings

import linop_gn as lg
from linop_gn.testing.losses import expected

from .cases import Case, Streamed, cases, full_weights, objective, put
from .networks import close, jacobian


def norms(case):
    found = []
    for batch in case.batches():
        z = np.asarray(case.net.model(case.params(), batch.inputs))
        w = full_weights(case, batch, z)
        y = np.where(batch.targets == -100, 0, batch.targets) if case.ignore else batch.targets
        u = expected(case.loss, z, y, w).gradient.reshape(len(z), -1)
        J = jacobian(case.net.model, case.params(), batch.inputs).reshape(*u.shape, -1)
        found.append(np.linalg.norm(np.einsum("ncp,nc->np", J, u), axis=1))
    return np.concatenate(found)


def check(case, backend, hold=list):
    want = norms(case)
    got = lg.gradient_norms(objective(case, backend, hold=hold), put(backend, case.params()))
    close(backend.to_numpy(got), want, 1e-10, max(float(want.max()), 1e-9))


@settings(max_examples=12)
@given(cases())
def test_in_torch(torch, case):
    check(case, lg.load("torch"))
    check(case, lg.load("torch"), Streamed)


@settings(max_examples=8)
@given(cases(networks=("mlp", "convolutional", "single")))
def test_where_derivatives_are_supplied(numpy_backend, case):
    check(case, numpy_backend)


def test_in_jax(jax):
    check(Case("convolutional", "softmax", "mean", 0, "weights", (2, 2, 1)), lg.load("jax"))


def test_modules(torch):
    """One after the other they are the norms of gradients, where examples mix as well."""
    from .layers.models import BY_LAYERS, MIXED, drawn

    for name in (*BY_LAYERS, *MIXED, "in part"):
        net, x = drawn(name)
        params, y = dict(net.named_parameters()), torch.arange(6) % 2
        want = []
        for i in range(6):
            value = torch.nn.functional.cross_entropy(net(x)[i], y[i])
            made = torch.autograd.grad(value, list(params.values()), allow_unused=True)
            want.append(float(sum((g * g).sum() for g in made if g is not None)) ** 0.5)
        got = lg.gradient_norms(lg.Objective(net, lg.losses.CrossEntropy(), (x, y), l2=3.0), params)
        np.testing.assert_allclose(got, want, rtol=1e-9)


def test_across_a_bridge_and_at_a_point(torch, numpy_backend):
    case = Case("mlp", "softmax", "mean", 1, "weights", (3, 2))
    made = objective(case, numpy_backend)
    bridged = lg.Objective(case.net.model, made.loss, list(made.batches), derivatives="torch")
    point = bridged.at(put(numpy_backend, case.params()))
    np.testing.assert_allclose(lg.gradient_norms(point), norms(case), rtol=1e-9)


def test_no_gradient_in_a_parameter_is_formed(torch):
    from torch.utils.flop_counter import FlopCounterMode

    net = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.Tanh(), torch.nn.Linear(40, 3))
    fit = lg.Objective(net, lg.losses.CrossEntropy(), (torch.randn(10, 30), torch.arange(10) % 3))
    point = fit.at(dict(net.named_parameters()))
    with FlopCounterMode(display=False) as counter:
        lg.gradient_norms(point)
    forward, backward = 2 * 10 * (30 * 40 + 40 * 3), 2 * 10 * 40 * 3
    assert counter.get_total_flops() <= forward + 2 * backward + 2 * 10 * (30 + 40 + 40 + 3 + 2)
