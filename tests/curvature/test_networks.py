"""The oracles themselves: two derivations of each, so that nothing is compared with a mistake of its own judge."""

import numpy as np
import pytest
from hypothesis import given, settings

from linop_gn.testing import finite_difference_gradient, finite_difference_hessian, finite_difference_jacobian

from .cases import Case, cases, dense, put
from .hessians import hessian
from .networks import NETWORKS, close, flat, jacobian, like


@pytest.mark.parametrize("name", NETWORKS)
def test_jacobians_against_central_differences(name):
    net = NETWORKS[name]
    params, x = net.params(0), net.inputs(np.random.default_rng(1), 2)
    J = jacobian(net.model, params, x)
    z = np.asarray(net.model(params, x))
    assert z.shape == (2, *net.outputs)
    assert J.shape == (z.size, flat(params).size)
    close(finite_difference_jacobian(lambda p: net.model(like(params, p), x).reshape(-1), flat(params)), J, 1e-7)


@settings(max_examples=10)
@given(cases(networks=("mlp", "residual", "single", "decay")))
def test_gradients_against_central_differences(case):
    at = case.params()
    want = dense(case)
    got = finite_difference_gradient(lambda p: dense(case, like(at, p)).value, flat(at))
    close(got, want.gradient, 1e-6, want.gradient_size + abs(want.value))


@settings(max_examples=6)
@given(cases(networks=("mlp", "residual", "single", "decay")))
def test_hessians_against_central_differences_of_gradients(torch, case):
    at = case.params()
    want = hessian(case)
    got = finite_difference_hessian(lambda p: dense(case, like(at, p)).gradient, flat(at))
    close(got, want, 1e-6)


def test_networks_are_the_same_in_every_framework(backend):
    for name in NETWORKS:
        case = Case(name, "squared", "mean", seed=3)
        (batch,) = case.batches()
        z = backend.call(case.net.model, put(backend, case.params()), put(backend, batch.inputs))
        close(backend.to_numpy(z), case.net.model(case.params(), batch.inputs), 1e-14)
