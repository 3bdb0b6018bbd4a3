"""What comes after the last product entry by entry: found where it may be, the same numbers, and less memory."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from linop_gn_torch import cotangents, tail
from linop_gn_torch.tail import Tail

import linop_gn as lg
from linop_gn.curvature.losses import parts

from ...support.peaks import allocations

MASK = torch.tensor([False, False, True, False, False])
SIGNS = torch.tensor([1.0, 0.0, -1.0, 2.0, 1.0], dtype=torch.float64)
X, Y = torch.randn(2, 3, 4, dtype=torch.float64), torch.tensor([[0, 1, 3], [1, 0, 3]])


def capped(z):
    return 3 * torch.tanh(z / 3)


TAILS = {
    "scale": (lambda y, p: 0.5 * y, True),
    "division": (lambda y, p: (1 - y) / 8, True),
    "cap": (lambda y, p: capped(y), True),
    "cap of some": (lambda y, p: capped(y) * SIGNS, True),
    "both": (lambda y, p: y * y, False),
    "learned": (lambda y, p: capped(p["t"] * y), True),
    "learned temperature": (lambda y, p: capped(y) / p["t"], True),
    "of its logarithm": (lambda y, p: y * p["t"].exp() - y.new_tensor(2.0), True),
    "for each class": (lambda y, p: capped(p["c"] * y) / p["d"], True),
    "bias after a cap": (lambda y, p: torch.add(capped(y), p["c"], alpha=2) - p["t"], True),
    "taken from a bias": (lambda y, p: p["c"] - capped(y), True),
    "twice": (lambda y, p: capped(y / p["t"]) * p["t"], True),
    "caps of caps": (lambda y, p: torch.tanh(capped(y) * p["t"]), True),
    "t is y's too": (lambda y, p: y * p["A"][0, :1], True),
    "mask": (lambda y, p: capped(y).masked_fill(MASK, -1e9), True),
    "where": (lambda y, p: torch.where(MASK, -5.0, torch.where(~MASK, capped(y), y.new_tensor(1.0))), True),
    "where of two": (lambda y, p: torch.where(MASK, y, capped(y)), False),
    "integers": (lambda y, p: y * torch.tensor([1, 2, 0, 1, 1]) / 3, True),
    "shifted": (lambda y, p: (capped(y / p["t"]) * SIGNS)[:, 1:].reshape(-1, 5), True),
    "turned": (lambda y, p: capped(y).transpose(0, 1)[..., [4]].expand(3, 2, 5) + capped(y).transpose(0, 1), False),
    "turned round": (lambda y, p: p["t"] * capped(y.transpose(0, 1)).transpose(0, 1)[..., ::2].flip(-1), True),
    "some classes": (lambda y, p: capped(y * p["t"])[..., :4], True),
    "some for each class": (lambda y, p: capped(p["c"] * y)[..., :4], True),
    "split": (lambda y, p: capped(y).split([4, 1], -1)[0], True),
    "a reciprocal": (lambda y, p: p["t"] / (4 + capped(y)), False),
    "of a row": (lambda y, p: y * p["z"][:, :, :1], False),
    "of a leaf": (lambda y, p: capped(p["z"]), False),
    "broadcast": (lambda y, p: capped(p["z"][:, :, :1]).exp() * (1 + 0 * X[..., :1]) * SIGNS, False),
    "view": (lambda y, p: capped(y).flatten(0, 1).unflatten(0, (2, 3)), True),
}


def modelled(end, p, x):
    return end(torch.tanh(x @ p["A"]) @ p["W"].T, p)


@pytest.mark.parametrize("few", [1, 1 << 18], ids=["by rows", "at once"])
@pytest.mark.parametrize("name", TAILS)
def test_it_is_the_same(name, few, monkeypatch):
    end, is_found = TAILS[name]
    torch.manual_seed(0)
    params = {key: torch.randn(shape, dtype=torch.float64) for key, shape in SHAPES.items()}
    target = {"shifted": Y[:, 1:].reshape(-1), "turned": Y.T, "turned round": Y.clamp(max=2)}.get(name, Y)
    found, of = [], Tail.of.__func__
    monkeypatch.setattr(tail, "_FEW", 1)
    monkeypatch.setattr(parts, "FEW", few)
    monkeypatch.setattr(Tail, "of", classmethod(lambda cls, outputs: found.append(of(cls, outputs)) or found[-1]))

    def everything(many):
        for module in (tail, cotangents, parts):
            monkeypatch.setattr(module, "MANY", many)
        fit = lg.Objective(
            lambda p, x: end(torch.tanh(x @ p["A"]) @ p["W"].T, p), lg.losses.CrossEntropy(), (X, target)
        )
        kinds = (lg.GGN, lg.Hessian, lg.EmpiricalFisher, lg.BlockGGN, lg.KFAC)
        made = [fit.gradient(params)[key] for key in params]
        return [*made, *(kind(fit, params).to_dense() for kind in kinds), lg.Jacobian(fit, params).to_dense()]

    got = everything(1)
    assert any(one is not None for one in found) == is_found
    for a, b in zip(got, everything(1 << 22), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


SHAPES = {"A": (4, 4), "W": (5, 4), "t": (), "z": (2, 3, 5), "c": (5,), "d": (1, 5)}


WEIGHTS = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 1.0]], dtype=torch.float64)
LOSSES = {
    "smoothed": (lg.losses.CrossEntropy(label_smoothing=0.1), Y),
    "ignored": (lg.losses.CrossEntropy(ignore_index=3), Y),
    "of classes": (lg.losses.CrossEntropy(weight=torch.rand(5, dtype=torch.float64)), Y),
    "probabilities": (lg.losses.CrossEntropy(), torch.softmax(torch.randn(2, 3, 5, dtype=torch.float64), -1)),
    "binary": (lg.losses.BinaryCrossEntropy(), torch.rand(2, 3, 5, dtype=torch.float64)),
    "counts": (lg.losses.Poisson(), torch.randint(5, (2, 3, 5)).double()),
    "squares": (lg.losses.SquaredError(), torch.randn(2, 3, 5, dtype=torch.float64)),
    "robust": (lg.losses.SoftL1(), torch.randn(2, 3, 5, dtype=torch.float64)),
}


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["all", "weighted"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, weights, monkeypatch):
    """The Hessian beside plain derivatives: rows by reverse over reverse mode."""
    loss, target = LOSSES[name]
    weights = weights[:, 0] if weights is not None and name == "squares" else weights
    torch.manual_seed(0)
    params = {key: torch.randn(SHAPES[key], dtype=torch.float64) for key in ("A", "W", "t", "c")}
    monkeypatch.setattr(tail, "_FEW", 1)
    monkeypatch.setattr(parts, "FEW", 1)
    for module in (tail, cotangents, parts):
        monkeypatch.setattr(module, "MANY", 1)
    data = (X, target) if weights is None else (X, target, weights)
    model = partial(modelled, lambda y, p: capped(y * p["c"]) / p["t"] + p["c"])
    fit = lg.Objective(model, loss, data)
    H = lg.Hessian(fit, params)
    shapes = [p.shape for p in params.values()]

    def value(flat):
        leaves = flat.split([shape.numel() for shape in shapes])
        p = {key: x.reshape(shape) for key, x, shape in zip(params, leaves, shapes, strict=True)}
        return loss.total(lg.namespace(flat), model(p, X), target, weights)

    flat = torch.cat([p.reshape(-1) for p in params.values()])
    expected = torch.autograd.functional.hessian(value, flat)
    zeros = torch.zeros(2, 3, 5, dtype=torch.float64)
    expected = expected / loss.weight_sum(lg.namespace(flat), zeros, target, weights)
    torch.testing.assert_close(H.to_dense(), expected, rtol=1e-10, atol=1e-12)


STEPS = {
    "times t": lambda y, p: p["t"] * y,
    "over t": lambda y, p: y / p["t"],
    "times exp t": lambda y, p: y * p["t"].exp(),
    "times c": lambda y, p: y * p["c"],
    "over d": lambda y, p: y / p["d"],
    "plus c": lambda y, p: y + p["c"],
    "less t": lambda y, p: torch.sub(y, p["t"], alpha=3),
    "c less": lambda y, p: p["c"] - y,
    "tanh": lambda y, p: torch.tanh(y),
    "tanh in place": lambda y, p: (y * 1.0).tanh_(),
    "negative": lambda y, p: 1 - y,
    "mask": lambda y, p: y.masked_fill(MASK, -3.0),
    "row": lambda y, p: y * X[..., :1],
    "all": lambda y, p: y.new_tensor(1.0) - y * p["W"].detach().sum(-1),
    "view": lambda y, p: y.view(-1, 5).view(y.shape),
    "turned": lambda y, p: y.transpose(0, 2).transpose(0, 2),
    "sigmoid": lambda y, p: y.sigmoid(),  # is left to autograd, with what is before it
}


@given(
    names=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=5), seed=st.integers(0, 99), rows=st.booleans()
)
def test_any_steps(names, seed, rows):
    torch.manual_seed(seed)
    params = {key: torch.rand(SHAPES[key], dtype=torch.float64) + 0.5 for key in ("A", "W", "t", "c", "d")}

    def end(y, p):
        for name in names:
            y = STEPS[name](y, p)
        return y

    def products(many):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tail, "_FEW", 1)
            patch.setattr(parts, "FEW", 1 if rows else 1 << 18)
            for module in (tail, cotangents, parts):
                patch.setattr(module, "MANY", many)
            fit = lg.Objective(partial(modelled, end), lg.losses.CrossEntropy(), (X, Y))
            made = [kind(fit, params).prepare() for kind in (lg.GGN, lg.Hessian)]
            return [made @ made.domain.random(seed) for made in made] + [made.to_dense() for made in made]

    for got, expected in zip(products(1), products(1 << 30), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10 * (1 + float(expected.abs().max())))


@pytest.mark.parametrize("kind", [lg.GGN, lg.Hessian])
@pytest.mark.parametrize(("dtype", "eps"), [(torch.float32, 2e-5), (torch.bfloat16, 0.1)], ids=str)
def test_narrow_dtypes(dtype, eps, kind, monkeypatch):
    torch.manual_seed(0)
    params = {key: torch.randn(SHAPES[key]).to(dtype) for key in ("A", "W")} | {"t": torch.tensor(1.5, dtype=dtype)}
    model = partial(modelled, lambda y, p: capped(y) / p["t"])

    def product(dtype, many):
        for module in (tail, cotangents, parts):
            monkeypatch.setattr(module, "MANY", many)
        p = {key: x.to(dtype) for key, x in params.items()}
        made = kind(lg.Objective(model, lg.losses.CrossEntropy(), (X.to(dtype), Y)), p) @ p
        return torch.cat([x.double().reshape(-1) for x in made.values()])

    got, expected = product(dtype, 1), product(torch.float64, 1 << 22)
    assert torch.linalg.vector_norm(got - expected) < eps * torch.linalg.vector_norm(expected)


def test_derivatives_of_solutions(monkeypatch):
    """They go through f' as well, which is then no constant."""
    torch.manual_seed(0)
    p = {"A": torch.randn(4, 4, dtype=torch.float64), "W": torch.randn(5, 4, dtype=torch.float64)}

    def slope(many):
        for module in (tail, cotangents):
            monkeypatch.setattr(module, "MANY", many)
        given = X.clone().requires_grad_()
        fit = lg.Objective(lambda p, x: capped(x @ p["A"] @ p["W"].T), lg.losses.CrossEntropy(), (given, Y))
        x = lg.solve(lg.Damped(lg.GGN(fit, p), 1.0), p, lg.CG(rtol=1e-12, max_steps=60)).x
        return torch.autograd.grad(sum((x[key] * p[key]).sum() for key in p), [given])[0]

    torch.testing.assert_close(slope(1), slope(1 << 22), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", [lg.GGN, lg.Hessian])
def test_derivatives_of_products(kind, monkeypatch):
    """Along v, of an operator that is there."""
    torch.manual_seed(0)
    p = {key: torch.randn(SHAPES[key], dtype=torch.float64) for key in ("A", "W", "t")}
    for module in (tail, cotangents, parts):
        monkeypatch.setattr(module, "MANY", 1)
    model = partial(modelled, lambda y, p: capped(y) / p["t"])
    A = lg.Damped(kind(lg.Objective(model, lg.losses.CrossEntropy(), (X, Y)), p).prepare(), 3.0)
    dense, b = A.to_dense(), A.domain.join(list(p.values())).clone().requires_grad_()
    x = lg.solve(A, b, lg.MINRES(rtol=1e-12, max_steps=200)).x
    (slope,) = torch.autograd.grad(x.square().sum(), [b])
    expected = torch.linalg.solve(dense, 2 * torch.linalg.solve(dense, b.detach()))
    torch.testing.assert_close(slope, expected, rtol=1e-8, atol=1e-9)


def temperature(z, p):
    return z / p["t"]


MEMORY = {
    # the outputs, what a step has saved, and J v, which becomes what goes backward; of a Hessian what the slope became
    "scale": (lambda z, p: z / 8, 2.6, 4.9),
    "cap": (lambda z, p: capped(z), 3.6, 6.1),
    "temperature": (temperature, 3.6, 6.1),
    "both": (lambda z, p: temperature(capped(z), p), 4.6, 7.1),
    "mask": (lambda z, p: z.masked_fill(torch.arange(4096) < 100, -1e9), 2.6, 4.9),
    "few classes": (lambda z, p: z[..., :4000], 4.9, 4.9),
    "all but the last": (lambda z, p: capped(z)[:-1], 4.6, 7.1),
}


@pytest.mark.parametrize("name", MEMORY)
def test_memory(name, monkeypatch):
    """A cap took 7 in products with the GGN and 10.5 with the Hessian, a temperature 11 and 13.5, both 13 and 16.5."""
    end, *most = MEMORY[name]
    for module in (tail, cotangents, parts):
        monkeypatch.setattr(module, "MANY", 1)
    monkeypatch.setattr(parts, "FEW", 1 << 12)
    x, y, size = torch.randn(64, 4), torch.randint(4000, (64,)), 4 * 64 * 4096
    params = {"A": torch.randn(4, 4), "W": torch.randn(4096, 4), "t": torch.tensor(2.0)}
    y = y[:-1] if name == "all but the last" else y

    def model(p, x):
        return end(torch.tanh(x @ p["A"]) @ p["W"].T, p)

    for kind, limit in zip((lg.GGN, lg.Hessian), most, strict=True):
        fit = lg.Objective(model, lg.losses.CrossEntropy(), (x, y))
        peak, kept, A = allocations(lambda kind=kind, fit=fit: kind(fit, params).prepare())
        assert peak < 5.4 * size
        assert kept + allocations(lambda A=A: A @ params)[0] < limit * size
