"""Products with diagonal blocks by layers equal those on the graph, and take few flops."""

from itertools import pairwise
from unittest import mock

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.curvature import at_point
from linop_gn.curvature.layers import blocks as room

from ..cases import Case, objective, put
from ..networks import close


def always(blocks, made):
    return True


def compare(made, params, backend, blocks, others=False):
    """By layers, whatever that costs, and on the graph."""
    with mock.patch.multiple(at_point, _LAYERS=1, pays=always):
        B = lg.BlockGGN(made, params, blocks=blocks)
        ready = B.prepare()
    graph = lg.BlockGGN(made, params, blocks=blocks)
    with mock.patch.object(at_point, "_LAYERS", 1 << 30):
        graph = graph.prepare()
    assert isinstance(ready, room.LayerBlocks)
    assert not isinstance(graph, room.LayerBlocks)
    assert (ready.others is not None) == others
    want = backend.to_numpy(graph.to_dense())
    close(backend.to_numpy(ready.to_dense()), want, 1e-12, float(abs(want).max()))
    assert ready.partition == graph.partition
    assert ready.psd
    return B


@pytest.mark.parametrize("blocks", ["leaf", "layer"])
def test_modules(torch, blocks):
    from .models import BY_LAYERS
    from .models import objective as of

    for name in BY_LAYERS:
        compare(*of(name), lg.load("torch"), blocks)
    compare(*of("in part"), lg.load("torch"), blocks, others=True)


@pytest.mark.parametrize("entries", [1, 1 << 22])
def test_rows_and_sides_are_the_same(torch, monkeypatch, entries):
    monkeypatch.setattr(room, "_ENTRIES", entries)
    monkeypatch.setattr(room, "_MULTIPLE", 0)
    ops = lg.load("torch")
    for network in ("mlp", "convolutional", "attention"):
        case = Case(network, "softmax", "mean", 2, "weights", (3, 2))
        compare(objective(case, ops), put(ops, case.params()), ops, "layer")


def test_in_jax_inside_and_outside_of_a_program(jax):
    ops = lg.load("jax")
    case = Case("mlp", "softmax", "mean", 0)
    made, params = objective(case, ops), put(ops, case.params())
    B = compare(made, params, ops, "layer")
    v = jax.numpy.linspace(-1, 1, B.shape[1])
    with mock.patch.multiple(at_point, _LAYERS=1, pays=always):
        inside = jax.jit(lambda p, v: lg.BlockGGN(made, p, blocks="layer") @ v)(params, v)
    np.testing.assert_allclose(inside, B @ v, rtol=1e-10, atol=1e-13)


def test_examples_that_mix_are_left_to_the_graph(torch):
    from .models import MIXED
    from .models import objective as of

    with mock.patch.multiple(at_point, _LAYERS=1, pays=always):
        for name in MIXED:
            assert isinstance(lg.BlockGGN(*of(name), blocks="leaf").prepare(), at_point.Products)


def test_a_model_that_draws_at_each_call_is_left_to_the_graph(torch):
    """Else products are of other draws than the gradient."""

    def model(p, x):
        return ((x @ p["a"]) * torch.rand(5, 4).double()) @ p["b"]

    p = {"a": torch.ones(3, 4).double(), "b": torch.ones(4, 2).double()}
    point = lg.Objective(model, lg.losses.SquaredError(), (torch.ones(5, 3).double(), torch.ones(5, 2).double())).at(p)
    with mock.patch.multiple(at_point, _LAYERS=1, pays=always):
        assert isinstance(lg.BlockGGN(point, blocks="leaf").prepare(), at_point.Products)


def test_where_it_pays(torch):
    """Nine blocks, not three; and then a product takes four flops for each weight and example, and what was pulled."""
    from torch.utils.flop_counter import FlopCounterMode

    def made(depth, outputs=3):
        widths = [20] * depth + [outputs]
        net = torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in pairwise(widths)))
        fit = lg.Objective(net, lg.losses.CrossEntropy(), (torch.randn(8, 20), torch.arange(8) % 3))
        return lg.BlockGGN(fit, dict(net.named_parameters()), blocks="layer").prepare()

    assert isinstance(made(3), at_point.Products)
    assert isinstance(made(9, outputs=400), at_point.Products)
    nine = made(9)
    assert isinstance(nine, room.LayerBlocks)
    with FlopCounterMode(display=False) as counter:
        nine.matvec(nine.domain.random(0))
    weights, results = 8 * 400 + 60, 8 * 20 + 3
    assert counter.get_total_flops() == 4 * 8 * weights + 4 * 8 * 3 * results
