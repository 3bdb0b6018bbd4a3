"""Steps of which no scalar is read: what a solve waits for is counted, on the CPU, as if a read were dear there."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from linop_gn_torch import deferred
from torch.utils._python_dispatch import TorchDispatchMode

import linop_gn as lg

N = 60


class Reads(TorchDispatchMode):
    """Counts the numbers that are read from tensors, each of which would wait for a device."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@contextmanager
def dear(monkeypatch, reads=True):
    """Inside, to read a number is dear, and it is told how often it was done; ``reads=False``: as on the CPU."""
    told, read = SimpleNamespace(at_once=0, single=0), deferred.Deferred.read

    def counted(self, rows):
        told.at_once += 1
        return read(self, rows)

    with monkeypatch.context() as patch, Reads() as one_by_one:
        patch.setattr(deferred, "_is_dear", lambda like: reads)
        patch.setattr(deferred.Deferred, "read", counted)
        yield told
    told.single = one_by_one.count


def system(dtype="float64", lowest=1.0):
    kind = getattr(torch, dtype)
    d = torch.tensor(np.linspace(lowest, 1e3, N), dtype=kind)
    return lg.Diagonal(d, psd=True) if lowest > 0 else lg.Dense(torch.diag(d), symmetric=True), torch.ones(
        N, dtype=kind
    )


def both(monkeypatch, A, b, method):
    found = []
    for reads in (False, True):
        with dear(monkeypatch, reads) as told:
            found.append(lg.solve(A, b, method))
    return *found, told


def fixed(solver, steps, **options):
    return solver(steps, **options) if solver is lg.Lanczos else solver(steps=steps, **options)


WAYS = {
    "CG": (lg.CG, {}),
    "MINRES": (lg.MINRES, {}),
    "Lanczos": (lg.Lanczos, {"reorthogonalise": "none"}),
    "full": (lg.Lanczos, {"reorthogonalise": "full"}),
}
each_way = pytest.mark.parametrize("way", WAYS)


@each_way
def test_a_run_of_fixed_steps_waits_no_oftener_the_longer_it_is(monkeypatch, way):
    (A, b), (solver, options) = system(), WAYS[way]
    waits = []
    for steps in (4, 10, 30):
        with dear(monkeypatch) as told:
            assert lg.solve(A, b, fixed(solver, steps, **options)).steps == steps
        waits.append((told.single, told.at_once))
    assert waits[0] == waits[1] == waits[2], waits
    assert waits[0][0] <= (9 if solver is lg.CG else 17), "before the first steps, and to judge the last"
    with dear(monkeypatch, reads=False) as told:
        lg.solve(A, b, fixed(solver, 30, **options))
    assert told.single > 60, "two a step and more on the CPU"


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@each_way
def test_it_is_the_same_run(monkeypatch, way, dtype, preconditioned):
    (A, b), (solver, options) = system(dtype), WAYS[way]
    if preconditioned:
        if solver is lg.Lanczos:
            pytest.skip("takes no preconditioner")
        options = {"preconditioner": lg.Diagonal(torch.linspace(1.0, 2.0, N, dtype=b.dtype), psd=True)}
    known = b.clone(), A.values.clone()
    plain, ahead, told = both(monkeypatch, A, b, fixed(solver, 45, **options))
    assert told.at_once == 2
    assert (ahead.status, ahead.steps, ahead.products) == (plain.status, plain.steps, plain.products)
    tolerance = 1e-10 if dtype == "float64" else 2e-2  # of late residuals, which amplify rounding
    for name in ("residual", "model"):
        theirs = plain.history[name]
        floor = 1e-6 * np.max(np.abs(theirs)) if dtype == "float32" else 0.0
        np.testing.assert_allclose(ahead.history[name], theirs, rtol=tolerance, atol=floor)
    torch.testing.assert_close(ahead.x, plain.x, rtol=1e-3, atol=1e-6)
    assert torch.equal(known[0], b)
    assert torch.equal(known[1], A.values)


@pytest.mark.parametrize(("way", "keep"), [("none", True), ("none", False), ("full", True)])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_basis_is_the_same_and_goes_on(monkeypatch, dtype, way, keep):
    A, b = system(dtype)
    found = []
    for reads in (False, True):
        with dear(monkeypatch, reads) as told:
            K = lg.krylov(A, b, 12, reorthogonalise=way, keep=keep)
            found += [K, K.extend(15)]
            assert told.at_once == 2 * reads
    for plain, ahead in zip(found[:2], found[2:], strict=True):
        assert (plain.status, plain.steps, plain.products) == (ahead.status, ahead.steps, ahead.products)
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == "float32" else {"rtol": 1e-10, "atol": 1e-12}
        for part in ("alphas", "betas", "basis"):
            ours, theirs = getattr(ahead.state, part), getattr(plain.state, part)
            rows = slice(0, plain.steps + (part == "basis")) if keep else slice(0, 2)
            np.testing.assert_allclose(ours[rows], theirs[rows], **tolerance)
        torch.testing.assert_close(ahead.solve(1.0).x, plain.solve(1.0).x)


def troubled(kind):
    """An operator and b with which something happens amid a run of 40 steps."""
    A, b = system(lowest=-5.0)
    if kind == "indefinite":
        return A, b
    if kind == "few eigenvalues":
        return lg.Diagonal(torch.arange(6.0, dtype=b.dtype).repeat(N // 6) + 1.0, psd=True), b
    b = torch.zeros_like(b)
    b[0] = 1.0  # so that the eighth direction is the first with an eighth entry, or one along it

    def tridiagonal(v):
        product = 2.5 * v
        product[1:] += v[:-1]
        product[:-1] += v[1:]
        if kind == "not finite" and v[7] != 0:
            product[7] = float("nan")
        if kind == "not symmetric":
            product[0] += v[7]
        return product

    return lg.FunctionOperator(tridiagonal, A.domain, symmetric=True), b


@pytest.mark.parametrize("kind", ["indefinite", "few eigenvalues", "not finite", "not symmetric"])
@each_way
def test_what_is_no_ordinary_step_is_judged_as_ever(monkeypatch, way, kind):
    """And the products of the steps that were taken past it are told."""
    solver, options = WAYS[way]
    plain, ahead, told = both(monkeypatch, *troubled(kind), fixed(solver, 40, **options))
    assert plain.status is ahead.status
    assert ahead.steps == plain.steps
    assert plain.products <= ahead.products <= plain.products + 32 * (told.at_once > 0)
    np.testing.assert_allclose(ahead.x, plain.x, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ahead.history["model"], plain.history["model"], rtol=1e-9)


@pytest.mark.parametrize(("way", "spent"), [("CG", 32), ("full", 29)])
def test_of_a_kept_basis_only_what_came_after_is_lost(monkeypatch, way, spent):
    solver, options = WAYS[way]
    plain, ahead, _ = both(monkeypatch, *troubled("few eigenvalues"), fixed(solver, 40, **options))
    assert plain.steps == 6
    assert ahead.products == plain.products + spent


def test_what_the_next_step_does_may_be_decided_by_this_one(monkeypatch):
    with dear(monkeypatch) as told:
        assert lg.krylov(*system(), 30).steps == 30
    assert told.at_once == 0


def test_a_tolerance_is_looked_at_each_step(monkeypatch):
    A, b = system()
    plain, same, told = both(monkeypatch, A, b, lg.CG(rtol=1e-3))
    assert told.at_once == 0
    assert same.products == plain.products
    assert torch.equal(same.x, plain.x)


def test_a_method_whose_inner_solver_takes_fixed_steps(monkeypatch):
    x = torch.linspace(-1, 1, 12, dtype=torch.float64)
    fit = lg.Objective.from_residuals(lambda p: p["a"] * torch.exp(p["b"] * x) - torch.exp(0.5 * x))
    start = {"a": torch.tensor(0.5, dtype=torch.float64), "b": torch.tensor(0.0, dtype=torch.float64)}
    for reads in (False, True):
        with dear(monkeypatch, reads) as told:
            found = lg.minimize(fit, start, lg.LevenbergMarquardt(solver=lg.CG(steps=2)), max_steps=8)
        assert float(found.params["a"]) == pytest.approx(1.0, abs=1e-4)
        assert (told.at_once > 0) == reads


def test_what_a_product_raises_leaves_with_the_steps_before(monkeypatch):
    A, b = system()
    products = []

    def product(v):
        products.append(1)
        if len(products) == 40:
            raise KeyboardInterrupt
        return A.matvec(v)

    F = lg.FunctionOperator(product, A.domain, psd=True)
    with dear(monkeypatch), pytest.raises(KeyboardInterrupt) as raised:
        lg.solve(F, b, lg.CG(steps=50))
    assert raised.value.result.steps == 32
    assert raised.value.result.residual == pytest.approx(float((b - A.matvec(raised.value.result.x)).norm()), rel=1e-6)
