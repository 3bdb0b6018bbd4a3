"""Gradients and residuals in the leaves that a backward pass made: right, nobody else's, and seldom packed."""

import contextlib

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.curvature import unpacked

torch = pytest.importorskip("torch")
Mm = pytest.importorskip("custom_functions").Mm
TorchDispatchMode = pytest.importorskip("torch.utils._python_dispatch").TorchDispatchMode
LONG = 200  # squared, more entries than leaves need to have


class Kept(Mm):
    """A product that remembers the gradients that it returned, as something for a log does."""

    held: list = []  # noqa: RUF012

    @staticmethod
    def backward(ctx, u):
        down, made = Mm.backward(ctx, u)
        with contextlib.suppress(RuntimeError):  # several columns in one, which have no memory
            Kept.held.append((made, made.clone(), made.data_ptr()))
        return down, made


def seen(x):
    """With a hook that remembers the gradients."""
    if x.requires_grad:
        x.register_hook(lambda g: Kept.held.append((g, g.clone(), g.data_ptr())))
    return x


MODELS = {
    "layers": lambda p, x: torch.tanh(x @ p["a"]) @ p["b"],
    "one gradient for two leaves": lambda p, x: x @ (p["a"] + p["b"]),
    "a gradient that is repeated": lambda p, x: x @ p["a"] + p["b"].sum(),
    "a leaf that it ignores": lambda p, x: x @ p["a"],
    "a Function that remembers": lambda p, x: Kept.apply(torch.tanh(x @ p["a"]), p["b"]),
    "a hook on a leaf": lambda p, x: torch.tanh(x @ seen(p["a"])) @ p["b"],
    "a hook on a sum": lambda p, x: x @ seen(p["a"] + p["b"]),
    "the parameters themselves": lambda p, x: torch.stack([p["a"].sum(0), p["b"].sum(0)]) * x[:2],
}


def problem(name, dtype=torch.float64):
    torch.manual_seed(0)
    params = {k: torch.randn(LONG, LONG, dtype=dtype) / LONG for k in "ab"}
    x, y = torch.randn(2, LONG, dtype=dtype), torch.randn(2, LONG, dtype=dtype)
    return lg.Objective(MODELS[name], lg.losses.SquaredError(), (x, y)), params


@pytest.mark.parametrize("name", MODELS)
def test_gradient_and_step_are_those_of_packed_vectors(name, monkeypatch):
    def solved():
        objective, params = problem(name)
        point = objective.at(params)
        A = lg.Damped(lg.GGN(point), 1e-2)
        step = lg.solve(A, -point.gradient, lg.GramSolve(rtol=1e-10))
        assert step.status is lg.Status.CONVERGED
        left = A @ step.x + point.gradient
        assert left.norm() <= 2e-10 * point.gradient.norm()
        return point.gradient, step.x, step.residual, step.model

    ours = solved()
    monkeypatch.setattr(unpacked, "_LONG", 1 << 40)
    for got, want in zip(ours, solved(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-11)
    assert all(torch.equal(held, copy) for held, copy, _ in Kept.held)  # nobody wrote to what it returned


def test_refinements_go_on_from_a_residual_in_leaves():
    objective, params = problem("layers", torch.float32)
    A = lg.Damped(lg.GGN(objective, params), 1e-5)
    b = torch.randn(A.domain.size)  # which is no gradient
    step = lg.solve(A, b, lg.GramSolve(rtol=1e-5))
    assert step.steps > 1
    assert abs((A @ step.x - b).norm() - step.residual) <= 0.2 * step.residual + 1e-6 * b.norm()


def test_what_is_verified_is_the_operator_with_all_its_dampings():
    """In float32 an l2 of .2 and a damping of .3 have another sum."""
    objective, params = problem("layers")
    (batch,) = objective.batches
    decayed = lg.Objective(objective.model, objective.loss, (batch.inputs, batch.targets), l2=0.2)
    A, b = lg.Damped(lg.GGN(decayed, params), torch.tensor(0.3)), objective.at(params).gradient
    step = lg.solve(A, b, lg.GramSolve(rtol=1e-10))
    assert step.status is lg.Status.CONVERGED
    assert (A @ step.x - b).norm() <= 1e-9 * b.norm()


def test_gradients_are_the_users():
    objective, params = problem("layers")
    first = objective.gradient(params)
    kept = {k: v.clone() for k, v in first.items()}
    for leaf in first.values():
        leaf.zero_()
    again, flat = objective.gradient(params), objective.at(params).gradient
    assert all(torch.equal(again[k], kept[k]) for k in kept)
    assert torch.equal(flat, torch.cat([kept[k].reshape(-1) for k in "ab"]))


def test_an_l2_and_other_batches_are_added():
    objective, params = problem("layers")
    (batch,) = objective.batches
    whole = objective.at(params).gradient
    halves = lg.Objective(
        objective.model, objective.loss, [(batch.inputs[i : i + 1], batch.targets[i : i + 1]) for i in range(2)]
    )
    assert torch.allclose(halves.at(params).gradient, whole)
    decayed = lg.Objective(objective.model, objective.loss, (batch.inputs, batch.targets), l2=0.5)
    assert torch.allclose(decayed.at(params).gradient, whole + 0.5 * objective.at(params).x)


class Long(TorchDispatchMode):
    """Counts the vectors of a length that are made, views left out."""

    def __init__(self, size):
        super().__init__()
        self.size, self.made = size, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        long = isinstance(made, torch.Tensor) and made.shape == (self.size,)
        if long and made.untyped_storage().data_ptr() not in given:
            self.made.append(str(function))
        return made

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # which would import the compiler


def test_a_gram_step_packs_parameters_and_gradient_and_lays_its_answer():
    objective, params = problem("layers", torch.float32)
    with Long(2 * LONG**2) as long:
        A, b = lg.Damped(lg.GGN(objective, params), 1e-2), objective.gradient(params)
        step = lg.solve(A, b, lg.GramSolve())
    assert (step.status, step.steps) == (lg.Status.CONVERGED, 1)
    assert len(long.made) == 3, long.made


def test_a_gram_step_under_autocast():
    """Factors of two dtypes are multiplied as autocast does it."""
    x, params = torch.ones(2, 3), {"a": torch.eye(3), "b": torch.ones(3, 2), "c": torch.zeros(2)}

    def model(p, x):
        return torch.tanh(x @ p["a"]) @ p["b"] + p["c"]

    with torch.autocast("cpu", torch.bfloat16):
        fit = lg.Objective(model, lg.losses.SquaredError(), (x, x[:, :2]))
        step = lg.solve(lg.Damped(lg.GGN(fit, params), 1.0), fit.gradient(params), lg.GramSolve(rtol=0.05))
    assert step.status is lg.Status.CONVERGED
    assert step.x["a"].dtype is torch.float32
