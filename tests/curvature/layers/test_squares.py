"""Diagonals by layers, held against dense matrices; norms of gradients are in ``test_norms``."""

import numpy as np
import pytest
from hypothesis import given, settings

import linop_gn as lg
from linop_gn.curvature.layers import squares as room
from linop_gn.curvature.squares import diagonal_by_layers, squared_gradients

from ..cases import Case, cases, dense, objective, put
from ..networks import close


def check(case, backend, method="auto"):
    made, params, want = objective(case, backend), put(backend, case.params()), np.diag(dense(case).G)
    found = lg.diagonal(lg.GGN(made, params), method)
    assert found.exact
    close(backend.to_numpy(found.value), want, 1e-11, max(float(want.max()), 1e-12))
    return found


@settings(max_examples=12)
@given(cases())
def test_in_torch(torch, case):
    check(case, lg.load("torch"), "exact")


def test_in_jax(jax):
    case = Case("convolutional", "softmax", "mean", 0, "weights")
    found = check(case, lg.load("jax"))
    assert (found.method, found.products) == ("layers of the model", 5)  # three classes, and two passes for the look


def test_modules(torch):
    from .models import BY_LAYERS, MIXED
    from .models import objective as of

    for name in (*BY_LAYERS, *MIXED, "in part"):
        G = lg.GGN(*of(name))
        found = lg.diagonal(G, "exact")
        np.testing.assert_allclose(found.value, G.to_dense().diagonal(), atol=1e-13)
        assert (found.method == "layers of the model") == (name in BY_LAYERS)
        looked = 2 * (name == "recurrent")  # of others torch's operations tell
        assert found.products == (2 + looked if name in BY_LAYERS else 12)
        assert (diagonal_by_layers(G.point) is None) == (name not in BY_LAYERS)


def test_of_the_empirical_fisher_matrix(torch):
    """One pass for all examples, and the weight of each once."""
    from .models import BY_LAYERS, MIXED, drawn

    for name in (*BY_LAYERS, *MIXED):
        net, x = drawn(name)
        w = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 1.0]).double()
        fit = lg.Objective(net, lg.losses.CrossEntropy(), (x, torch.arange(6) % 2, w))
        point = fit.at(dict(net.named_parameters()))
        want = lg.EmpiricalFisher(fit, dict(net.named_parameters())).to_dense().diagonal()
        np.testing.assert_allclose(squared_gradients(point, None), want, atol=1e-13)


@pytest.mark.parametrize("entries", [1, 50])
def test_a_few_examples_at_a_time(torch, monkeypatch, entries):
    monkeypatch.setattr(room, "_ENTRIES", entries)
    check(Case("convolutional", "softmax", "mean", 0, "weights"), lg.load("torch"))


def test_norms_of_gradients_are_looked_at_only_where_nobody_tells(torch, monkeypatch):
    """By a second pass: of what mixes, and of what may."""
    from linop_gn_torch.uses import TorchUses

    from .models import drawn

    calls, pull = [], TorchUses.pull
    monkeypatch.setattr(TorchUses, "pull", lambda self, *given: calls.append(1) or pull(self, *given))
    for name, passes in (("deep", 1), ("convolutional", 1), ("recurrent", 2), ("batch norm by hand", 2)):
        net, x = drawn(name)
        fit = lg.Objective(net, lg.losses.CrossEntropy(), (x, torch.arange(6) % 2))
        calls.clear()
        lg.gradient_norms(fit, dict(net.named_parameters()))
        assert len(calls) == passes, name
