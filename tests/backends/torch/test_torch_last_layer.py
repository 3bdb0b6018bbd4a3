"""J v of last layers with its terms written over one another: found where it may be, and the same numbers."""

import pytest
import torch
from linop_gn_torch import cotangents, last_layer
from linop_gn_torch.last_layer import LastLayer
from torch import nn

import linop_gn as lg
from linop_gn.curvature.losses import parts

from ...support.peaks import peak


class Tied(nn.Module):
    """Words in, scores of words out, by one table."""

    def __init__(self):
        super().__init__()
        self.table, self.inner = nn.Embedding(7, 4), nn.Linear(4, 4)

    def forward(self, words):
        return torch.tanh(self.inner(self.table(words))) @ self.table.weight.T


def dense(bias=True, frozen=()):
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 7, bias=bias))
    for name in frozen:
        net.get_parameter(name).requires_grad_(False)
    return net


class Summed(nn.Module):
    """Scores by an einsum, which is no product of matrices, or scores of several layers."""

    def __init__(self, einsum):
        super().__init__()
        self.inner, self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 7), nn.Linear(4, 7, bias=False)
        self.einsum = einsum

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        if self.einsum:
            return torch.einsum("btd,vd->btv", h, self.first.weight)
        return self.first(h) + self.second(x)


@pytest.fixture
def found(monkeypatch):
    """What was found, in order."""
    made, of = [], LastLayer.of.__func__

    def look(cls, recorded, place):
        made.append(of(cls, recorded, place))
        return made[-1]

    monkeypatch.setattr(LastLayer, "of", classmethod(look))
    return made


@pytest.mark.parametrize(
    ("make", "shape", "terms"),
    [
        (Tied, None, 2),
        (dense, (3, 2, 4), 3),
        (dense, (6, 4), 3),
        (lambda: dense(bias=False), (6, 4), 2),
        (lambda: dense(frozen=["2.weight", "2.bias"]), (6, 4), 1),
        (lambda: dense(frozen=["0.weight", "0.bias", "2.weight"]), (6, 4), None),  # a bias alone
        (lambda: nn.Linear(4, 7), (3, 2, 4), 2),
        (lambda: Summed(False), (6, 4), 4),
        (lambda: Summed(True), (3, 2, 4), None),
    ],
)
def test_products_are_those_of_autograd(make, shape, terms, found, monkeypatch):
    torch.manual_seed(0)
    net = make().double()
    x = torch.randint(7, (3, 2)) if shape is None else torch.randn(shape, dtype=torch.float64)
    y = torch.randint(7, x.shape if shape is None else x.shape[:-1])
    params = {name: p for name, p in net.named_parameters() if p.requires_grad}
    v = [torch.randn(sum(p.numel() for p in params.values()), dtype=torch.float64) for _ in range(2)]
    v[1][: len(v[1]) // 2] = 0

    def products():
        fit = lg.Objective(net, lg.losses.CrossEntropy(), (x, y))
        G, B = lg.GGN(fit, params), lg.BlockGGN(fit, params, blocks="leaf")
        return [G @ v[0], G @ v[1], B @ v[0]]

    wanted = products()
    assert not found
    monkeypatch.setattr(cotangents, "MANY", 1)
    torch.testing.assert_close(products(), wanted, rtol=1e-12, atol=1e-13)
    (one,) = found
    assert (None if one is None else len(one._terms)) == terms


def test_parameters_that_were_written_to_are_an_error(monkeypatch):
    monkeypatch.setattr(cotangents, "MANY", 1)
    x, W = torch.randn(6, 4), torch.randn(4, 7)
    fit = lg.Objective(lambda p, x: torch.tanh(x @ p) @ W, lg.losses.CrossEntropy(), (x, torch.zeros(6).long()))
    G = lg.GGN(fit, torch.eye(4)).prepare()
    G @ torch.eye(4)
    W.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        G @ torch.eye(4)


def test_one_number_for_all_outputs(monkeypatch):
    """Its gradient is a sum over all of u, which was an error of torch."""
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(7, (6,))
    params = {"W": torch.randn(4, 7, dtype=torch.float64), "c": torch.tensor(0.5, dtype=torch.float64)}

    def matrix():
        fit = lg.Objective(lambda p, x: torch.tanh(x @ p["W"]) + p["c"], lg.losses.CrossEntropy(), (x, y))
        return lg.GGN(fit, params).to_dense()

    wanted = matrix()
    monkeypatch.setattr(cotangents, "MANY", 1)
    torch.testing.assert_close(matrix(), wanted, rtol=1e-12, atol=1e-13)


HEADS = {
    "module": dense,
    "without a bias": lambda: dense(bias=False),
    "part": lambda: dense(frozen=["2.weight", "2.bias"]),
    "bias alone": lambda: dense(frozen=["0.weight", "0.bias", "2.weight"]),
    "product": lambda: lambda p, x: torch.tanh(x @ p["0"]) @ p["1"].T,
}


@pytest.mark.parametrize("name", HEADS)
def test_forward_mode_term_by_term(name, monkeypatch):
    """Of products that linearise anew."""
    torch.manual_seed(0)
    net = HEADS[name]()
    x, y = torch.randn(3, 2, 4, dtype=torch.float64), torch.randint(7, (3, 2))
    params = {"0": torch.randn(4, 4), "1": torch.randn(7, 4)}
    if isinstance(net, nn.Module):
        params = {key: p for key, p in net.double().named_parameters() if p.requires_grad}
    params = {key: p.double() for key, p in params.items()}
    v, made, dual = {key: torch.cos(p.detach()) for key, p in params.items()}, [], last_layer._dual
    monkeypatch.setattr(last_layer, "_dual", lambda *given: made.append(dual(*given)) or made[-1])

    def product():
        return lg.GGN(lg.Objective(net, lg.losses.CrossEntropy(), (x, y), memory="low"), params) @ v

    wanted = product()
    assert made
    assert all(one is None for one in made)
    monkeypatch.setattr(last_layer, "MANY", 1)
    torch.testing.assert_close(product(), wanted, rtol=1e-12, atol=1e-13)
    assert all(one is not None for one in made[len(made) // 2 :])


def test_memory_where_products_linearise_anew(monkeypatch):
    """The outputs twice, and J v: the two products and their sum were three more."""
    monkeypatch.setattr(last_layer, "MANY", 1)
    monkeypatch.setattr(parts, "MANY", 1)
    monkeypatch.setattr(parts, "FEW", 1 << 12)
    x, y, size = torch.randn(64, 4), torch.randint(4096, (64,)), 4 * 64 * 4096
    params = {"A": torch.randn(4, 4), "W": torch.randn(4096, 4)}

    def model(p, x):
        return torch.tanh(x @ p["A"]) @ p["W"].T

    G = lg.GGN(lg.Objective(model, lg.losses.CrossEntropy(), (x, y), memory="low"), params).prepare()
    assert peak("torch", lambda: G @ params) < 3.7 * size


ADDED = {
    "as it is": (lambda y, f: y + f, (6, 7)),
    "turned": (lambda y, f: y + f.t(), (7, 6)),
    "in another shape": (lambda y, f: y + f.view(6, 7), (42,)),
    "among others": (lambda y, f: (y[None] + f)[0], (1, 6, 7)),
}


@pytest.mark.parametrize("name", ADDED)
def test_a_parameter_that_is_added_to_the_outputs_counts(name, monkeypatch):
    """Its part of J v is its tangent, which no operation makes."""
    end, shape = ADDED[name]
    torch.manual_seed(0)
    x, v, params = torch.randn(6, 4), torch.randn(28 + 42), {"w": torch.randn(4, 7), "f": torch.randn(shape)}

    def product():
        fit = lg.Objective(lambda p, x: end(x @ p["w"], p["f"]), lg.losses.SquaredError(), (x, torch.zeros(6, 7)))
        return lg.GGN(fit, params).apply(v)

    expected = product()
    monkeypatch.setattr(cotangents, "MANY", 1)
    torch.testing.assert_close(product(), expected)
