"""What comes after the last product entry by entry: found where it may be, the same numbers, and less memory."""

import pytest
import torch
from linop_gn_torch import cotangents, tail
from linop_gn_torch.tail import Tail

import linop_gn as lg
from linop_gn.curvature.losses import parts

from ...support.peaks import allocations

SIGNS = torch.tensor([1.0, 0.0, -1.0, 2.0, 1.0], dtype=torch.float64)
X, Y = torch.randn(2, 3, 4, dtype=torch.float64), torch.randint(5, (2, 3))


def capped(z):
    return 3 * torch.tanh(z / 3)


TAILS = {
    "scale": (lambda y, p: 0.5 * y, True),
    "division": (lambda y, p: (1 - y) / 8, True),
    "cap": (lambda y, p: capped(y), True),
    "cap of some": (lambda y, p: capped(y) * SIGNS, True),
    "both": (lambda y, p: y * y, False),
    "learned": (lambda y, p: capped(p["t"] * y), True),
    "of a leaf": (lambda y, p: capped(p["z"]), False),
    "broadcast": (lambda y, p: capped(p["z"][:, :, :1]).exp() * (1 + 0 * X[..., :1]) * SIGNS, False),
    "view": (lambda y, p: capped(y).flatten(0, 1).unflatten(0, (2, 3)), False),
}


@pytest.mark.parametrize("name", TAILS)
def test_it_is_the_same(name, monkeypatch):
    end, is_found = TAILS[name]
    torch.manual_seed(0)
    params = {key: torch.randn(shape, dtype=torch.float64) for key, shape in SHAPES.items()}
    found, of = [], Tail.of.__func__
    monkeypatch.setattr(Tail, "of", classmethod(lambda cls, outputs: found.append(of(cls, outputs)) or found[-1]))

    def everything(many):
        for module in (tail, cotangents, parts):
            monkeypatch.setattr(module, "MANY", many)
        fit = lg.Objective(lambda p, x: end(torch.tanh(x @ p["A"]) @ p["W"].T, p), lg.losses.CrossEntropy(), (X, Y))
        kinds = (lg.GGN, lg.Hessian, lg.EmpiricalFisher, lg.BlockGGN, lg.KFAC)
        made = [fit.gradient(params)[key] for key in params]
        return [*made, *(kind(fit, params).to_dense() for kind in kinds), lg.Jacobian(fit, params).to_dense()]

    got = everything(1)
    assert any(one is not None for one in found) == is_found
    for a, b in zip(got, everything(1 << 22), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


SHAPES = {"A": (4, 4), "W": (5, 4), "t": (), "z": (2, 3, 5)}


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


@pytest.mark.parametrize(("end", "most"), [(capped, 3.6), (lambda z: z / 8, 2.6)], ids=["cap", "scale"])
def test_memory(end, most, monkeypatch):
    """The outputs, f', and J v, which becomes what goes backward. It was seven."""
    for module in (tail, cotangents, parts):
        monkeypatch.setattr(module, "MANY", 1)
    monkeypatch.setattr(parts, "FEW", 1 << 12)
    x, y, size = torch.randn(64, 4), torch.randint(4096, (64,)), 4 * 64 * 4096
    params = {"A": torch.randn(4, 4), "W": torch.randn(4096, 4)}
    fit = lg.Objective(lambda p, x: end(torch.tanh(x @ p["A"]) @ p["W"].T), lg.losses.CrossEntropy(), (x, y))
    peak, kept, G = allocations(lambda: lg.GGN(fit, params).prepare())
    assert peak < 4.3 * size
    assert kept + allocations(lambda: G @ params)[0] < most * size
