"""W and its transpose by layers equal those by a linearisation, and a solve by K takes nothing else of the model."""

import pytest

import linop_gn as lg
from linop_gn.curvature.gram import gram_by_layers
from linop_gn.testing import dense as matrix_of

from ..cases import Case, objective, put
from ..networks import close


def check(made, params, backend):
    K = lg.Gram(made, params)
    found = gram_by_layers(K, K.source)
    W = matrix_of(K.root)
    size = max(float(abs(W).max()), 1e-12)
    close(matrix_of(found.root), W, 1e-12, size)
    close(matrix_of(found.root.T), W.T, 1e-12, size)
    g = made.at(params).gradient
    t = backend.to_numpy(found.root.rmatvec(found.root.gradient))
    close(t, backend.to_numpy(g) / float(found.root.scale), 1e-11, 1.0)


@pytest.mark.parametrize("name", ["deep", "norm", "convolutional", "recurrent", "in part"])
def test_modules(torch, name):
    from .models import objective as of

    check(*of(name), lg.load("torch"))


def test_several_batches_and_weights(torch):
    ops = lg.load("torch")
    case = Case("convolutional", "softmax", "mean", 3, "weights", sizes=(2, 3))
    check(objective(case, ops), put(ops, case.params()), ops)


def test_in_a_program_that_finds_out_whether_examples_are_apart(jax):
    ops = lg.load("jax")
    case = Case("single", "softmax", "mean", 1)
    made, params = objective(case, ops), put(ops, case.params())
    W = lg.Gram(made, params).root
    v = W.domain.random(0)

    def product(params, v):
        root = gram_by_layers(lg.Gram(made, params), made.at(params)).root
        return root.rapply(root.apply(v))

    close(ops.to_numpy(jax.jit(product)(params, v)), ops.to_numpy(W.rapply(W.apply(v))), 1e-11, 1.0)


def test_where_examples_mix_products_are_on_the_graph(torch):
    from .models import MIXED
    from .models import objective as of

    made, params = of(MIXED[1])
    G = lg.GGN(made, params)
    assert gram_by_layers(lg.Gram(made, params), G.point).root is None
    step = lg.solve(lg.Damped(G, 0.1), made.gradient(params), lg.GramSolve(rtol=1e-9))
    assert step.succeeded


def test_flops_of_a_step(torch):
    """The gradient, a forward, a backward for each column and the look, K, one of W and three of W^T; no R-operator."""
    from torch.utils.flop_counter import FlopCounterMode

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(100, 80), torch.nn.Tanh(), torch.nn.Linear(80, 3))
    x, params = torch.randn(20, 100), dict(net.named_parameters())
    fit = lg.Objective(net, lg.losses.CrossEntropy(), (x, torch.arange(20) % 3))
    with FlopCounterMode(display=False) as counter:
        step = lg.solve(lg.Damped(lg.GGN(fit, params), 1e-2), fit.at(params).gradient, lg.GramSolve())
    assert (step.succeeded, int(step.products)) == (True, 3)
    first, last = 2 * 20 * 100 * 80, 2 * 20 * 80 * 3
    gradient, columns = 2 * first + 3 * last, first + last + 4 * last
    K = 2 * 60**2 * 83 + 2 * 20**2 * 182
    products = 4 * (first + last + 2 * 20 * 3 * 83)
    solving = 60**3  # a factorisation and two triangular solves, which are not counted
    assert counter.get_total_flops() <= 1.02 * (gradient + columns + K + products + solving)
