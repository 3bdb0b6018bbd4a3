"""Which models have rows by layers, and that examples which enter each other's outputs are found out."""

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.curvature.layers.rows import layers_at

from ..cases import Case, put
from ..cases import objective as drawn_objective


def test_every_layer_is_found_and_examples_that_mix_are_told(torch):
    from .models import BY_LAYERS, objective

    for name in BY_LAYERS:
        found = layers_at(lg.GGN(*objective(name)).point)
        assert (bool(found.apart), found.left, found.looked) == (True, (), name == "recurrent"), name
        assert found.passes == 2 + found.looked
    found = layers_at(lg.GGN(*objective("in part")).point)
    assert (bool(found.apart), len(found.left), found.rest.shape) == (True, 1, (12, 2))
    assert not layers_at(lg.GGN(*objective("batch norm by hand")).point).apart
    assert layers_at(lg.GGN(*objective("batch norm")).point) is None  # torch names it


def drawn(torch, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).double()


def hidden(p, x):
    """What one output has of other examples is the opposite of what the others have, times 3/2."""
    z = x @ p["w"]
    h = (z - z.mean(0)).tanh() @ p["v"]
    return z.new_tensor([3.0, -2.0]) * h[:, None]


def slightly(p, x):
    z = x @ p["w"]
    return (z - 1e-6 * z.mean(0)).tanh() @ p["v"][:, None]


@pytest.mark.parametrize("model", [hidden, slightly])
def test_mixing_is_not_hidden_by_whole_numbers_nor_by_being_slight(torch, model):
    p, x = {"w": drawn(torch, 3, 2), "v": drawn(torch, 2)}, drawn(torch, 5, 3)
    G = lg.GGN(lg.Objective(model, lg.losses.SquaredError(), (x, model(p, x) + 1.0)), p)
    assert not layers_at(G.point).apart
    np.testing.assert_allclose(lg.diagonal(G, "exact").value, G.to_dense().diagonal(), rtol=1e-10)


def test_mixing_among_examples_that_count_little(torch):
    """The mean over the last four only, in single precision, and a first one that counts a million times as much."""

    def model(p, x):
        z = x @ p["w"]
        return torch.cat([z[:1], z[1:] - z[1:].mean(0)]).tanh() @ p["v"]

    p, x = {"w": drawn(torch, 3, 2).float(), "v": drawn(torch, 2, 2).float()}, drawn(torch, 5, 3).float()
    weights = torch.tensor([1e12, 1.0, 1.0, 1.0, 1.0])
    fit = lg.Objective(model, lg.losses.SquaredError(), (x, model(p, x) + 1.0, weights))
    assert not layers_at(fit.at(p)).apart


def test_leaves_in_no_layer_have_no_rows_where_these_take_much_memory(torch, monkeypatch):
    from linop_gn.curvature.layers import rows as room

    def model(p, x):
        return (x @ p["w"]) * p["rest"].exp().mean()

    def found(n):
        p, x = {"w": drawn(torch, 3, 2), "rest": drawn(torch, n)}, drawn(torch, 50, 3)
        return layers_at(lg.Objective(model, lg.losses.SquaredError(), (x, x[:, :2])).at(p))

    monkeypatch.setattr(room, "_ENTRIES", 1)
    assert found(1000) is None  # 100 outputs x 1000 numbers
    assert found(3).rest.shape == (100, 3)


def test_what_has_no_layers_has_none(torch, numpy_backend):
    x, w = torch.ones(4, 3).double(), torch.ones(3).double()
    supplied = lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), (x, x[:, 0]), jacobian=lambda w, x: x)
    streamed = lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), iter_again([(x, x[:, 0])]))
    assert layers_at(supplied.at(w)) is layers_at(streamed.at(w)) is None
    case = Case("mlp", "softmax", "mean", 0)
    assert layers_at(drawn_objective(case, numpy_backend).at(put(numpy_backend, case.params()))) is None


class iter_again:  # noqa: N801
    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return iter(self.data)


def test_passes_do_not_grow_with_the_examples(torch, monkeypatch):
    from linop_gn_torch.uses import TorchUses

    calls = []
    pull = TorchUses.pull
    monkeypatch.setattr(TorchUses, "pull", lambda self, *given: calls.append(1) or pull(self, *given))
    monkeypatch.setattr("linop_gn_torch.columns._at_once", lambda *given: None)  # one pass for each column
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    for examples in (5, 50):
        calls.clear()
        x = torch.randn(examples, 3).double()
        fit = lg.Objective(net, lg.losses.SquaredError(), (x, x[:, :2]))
        found = layers_at(fit.at(dict(net.named_parameters())))
        assert len(calls) == found.passes == 2


def test_a_model_that_is_linearised_is_not_run_again(torch):
    """Its graph tells; of one with operations in the place of others the parameters are read in a graph of its own."""

    class Net(torch.nn.Sequential):
        calls = 0

        def forward(self, x):
            Net.calls += 1
            return super().forward(x)

    x = torch.randn(5, 3).double()
    for middle, calls in (
        (torch.nn.Tanh(), 1),
        (torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 4)), 2),
    ):
        net = Net(torch.nn.Linear(3, 4), middle, torch.nn.Linear(4, 2)).double()
        params = dict(net.named_parameters())
        fit = lg.Objective(net, lg.losses.CrossEntropy(), (x, torch.tensor([0, 1, 1, 0, 1])))
        Net.calls = 0
        step = lg.solve(lg.Damped(lg.GGN(fit, params), 1.0), fit.gradient(params), lg.GramSolve())
        assert (step.status.name, int(step.steps), Net.calls) == ("CONVERGED", 1, calls)
        K = lg.Gram(fit, params)
        np.testing.assert_allclose(K.known_matrix(), K.to_dense(), atol=1e-14)


@pytest.mark.parametrize("sizes", [(4, 2), (2, 2, 2)])
def test_batches_are_joined_in_order(torch, sizes):
    ops = lg.load("torch")
    case = Case("mlp", "softmax", "mean", 1, "weights", sizes)
    made, params = drawn_objective(case, ops), put(ops, case.params())
    whole = drawn_objective(case._replace(sizes=(6,)), ops)
    one, other = layers_at(whole.at(params)), layers_at(made.at(params))
    for a, b in zip((*one.moving, *one.fixed), (*other.moving, *other.fixed), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-14)


def test_in_jax_new_data_are_the_same_program(jax):
    ops = lg.load("jax")
    case = Case("mlp", "softmax", "mean", 0)
    made, params = drawn_objective(case, ops), put(ops, case.params())
    assert bool(layers_at(made.at(params)).apart)
    before = ops.compilations()
    layers_at(drawn_objective(case._replace(seed=1), ops).at(put(ops, case._replace(seed=2).params())))
    assert ops.compilations() == before

    def mixing(p, x):
        z = x @ p["fc1"]["weight"]
        return (z - z.mean(0)) @ p["fc2"]["weight"]

    x = case.batches()[0]
    other = lg.Objective(mixing, lg.losses.CrossEntropy(), (put(ops, x.inputs), put(ops, x.targets)))
    assert not layers_at(other.at(params)).apart
