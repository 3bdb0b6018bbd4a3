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


def test_a_run_of_fixed_steps_waits_no_oftener_the_longer_it_is(monkeypatch):
    A, b = system()
    waits = []
    for steps in (3, 10, 30):
        with dear(monkeypatch) as told:
            assert lg.solve(A, b, lg.CG(steps=steps)).steps == steps
        waits.append((told.single, told.at_once))
    assert waits[0] == waits[1] == waits[2], waits
    assert waits[0][0] <= 10, "before the first step, and to judge the last"
    with dear(monkeypatch, reads=False) as told:
        lg.solve(A, b, lg.CG(steps=30))
    assert told.single > 60, "two a step on the CPU"


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_it_is_the_same_run(monkeypatch, dtype, preconditioned):
    A, b = system(dtype)
    M = lg.Diagonal(torch.linspace(1.0, 2.0, N, dtype=b.dtype), psd=True) if preconditioned else None
    known = b.clone(), A.values.clone()
    plain, leapt, told = both(monkeypatch, A, b, lg.CG(steps=45, preconditioner=M))
    assert told.at_once == 2
    assert (leapt.status, leapt.steps, leapt.products) == (plain.status, plain.steps, plain.products)
    tolerance = 1e-10 if dtype == "float64" else 2e-2  # of late residuals, which amplify rounding
    for name in ("residual", "model"):
        np.testing.assert_allclose(leapt.history[name], plain.history[name], rtol=tolerance)
    torch.testing.assert_close(leapt.x, plain.x, rtol=1e-3, atol=1e-6)
    assert torch.equal(known[0], b)
    assert torch.equal(known[1], A.values)


def test_what_is_no_ordinary_step_is_judged_as_ever(monkeypatch):
    """And the products of the steps that were taken past it are told."""
    A, b = system(lowest=-5.0)
    plain, leapt, _ = both(monkeypatch, A, b, lg.CG(steps=40))
    assert plain.status is leapt.status is lg.Status.NEGATIVE_CURVATURE
    assert leapt.steps == plain.steps
    assert leapt.products == plain.products + 32
    assert torch.equal(leapt.x, plain.x)
    np.testing.assert_array_equal(leapt.history["model"], plain.history["model"])


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
