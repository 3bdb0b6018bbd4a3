"""K by layers equals W W^T, and takes as many flops as it says."""

import numpy as np
import pytest
from hypothesis import given, settings

import linop_gn as lg
from linop_gn.curvature.layers import gram as room
from linop_gn.testing import dense as matrix_of

from ..cases import Case, cases, objective, put
from ..networks import close


def check(made, params, backend):
    K = lg.Gram(made, params)
    W = matrix_of(K.root)
    close(backend.to_numpy(K.to_dense()), W @ W.T, 1e-12, max(float(abs(W @ W.T).max()), 1e-12))


@settings(max_examples=12)
@given(cases())
def test_in_torch(torch, case):
    ops = lg.load("torch")
    check(objective(case, ops), put(ops, case.params()), ops)


def test_in_jax(jax):
    ops = lg.load("jax")
    for case in (Case("convolutional", "softmax", "mean", 0, "weights"), Case("attention", "squared", "sum", 1)):
        check(objective(case, ops), put(ops, case.params()), ops)


def test_modules(torch):
    from .models import BY_LAYERS, MIXED
    from .models import objective as of

    for name in (*BY_LAYERS, *MIXED, "in part"):
        check(*of(name), lg.load("torch"))


@pytest.mark.parametrize("entries", [1, 1 << 24])
def test_both_forms_are_the_same(torch, monkeypatch, entries):
    from .models import objective as of

    monkeypatch.setattr(room, "_ENTRIES", entries)
    for pays in (lambda *sides: True, lambda *sides: False):
        monkeypatch.setattr(room, "_pairs_pay", pays)
        for name in ("norm", "convolutional"):
            check(*of(name), lg.load("torch"))


def test_flops(torch):
    from torch.utils.flop_counter import FlopCounterMode

    net = torch.nn.Sequential(torch.nn.Linear(100, 80), torch.nn.Tanh(), torch.nn.Linear(80, 3))
    x = torch.randn(20, 100)
    K = lg.Gram(lg.Objective(net, lg.losses.CrossEntropy(), (x, torch.arange(20) % 3)), dict(net.named_parameters()))
    with FlopCounterMode(display=False) as counter:
        K.to_dense()
    forward = 2 * 20 * (100 * 80 + 80 * 3)
    backward = 4 * 2 * 20 * 80 * 3  # the columns and the look, above the first layer
    products = 2 * 60**2 * 83 + 2 * 20**2 * 182
    assert counter.get_total_flops() <= 1.02 * (forward + backward + products)


def test_solvers_take_it(torch):
    from .models import objective as of

    made, params = of("norm")
    K = lg.Gram(made, params)
    u = torch.randn(12).double()
    dense = K.to_dense() + 0.1 * torch.eye(12).double()
    step = lg.solve(lg.Damped(K, 0.1), u.reshape(6, 2), lg.Cholesky())
    np.testing.assert_allclose(step.x.reshape(-1), torch.linalg.solve(dense, u), rtol=1e-9)
    inverse = lg.inverse(lg.Damped(K, 0.1), lg.Cholesky())
    np.testing.assert_allclose((inverse @ u.reshape(6, 2)).reshape(-1), torch.linalg.solve(dense, u), rtol=1e-9)
