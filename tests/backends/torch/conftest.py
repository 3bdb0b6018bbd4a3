"""Oracles for derivatives in torch, written without the package: plain first-order autograd on a copy of the module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import optree
import pytest
import torch
from linop_gn_torch import backend
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

calculus = backend.calculus


def twin(model: nn.Module) -> nn.Module:
    """A deep copy; the plain attributes that classic weight norm computes (not leaves) are not copied."""
    computed = [t for m in model.modules() for t in m.__dict__.values() if isinstance(t, Tensor) and not t.is_leaf]
    return copy.deepcopy(model, {id(t): t.detach() for t in computed})


def run(model: nn.Module, vector: Tensor, inputs: Any, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """Outputs of a copy of the model with its trainable parameters set to ``vector``, and those parameters."""
    model = twin(model)
    params = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        torch.nn.utils.vector_to_parameters(vector, params)
    with torch.random.fork_rng(), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        torch.manual_seed(seed)
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs), params


def flat(leaves: list[Tensor]) -> Tensor:
    return torch.cat([leaf.reshape(-1) for leaf in leaves])


def split(vector: Tensor, like: list[Tensor]) -> list[Tensor]:
    return [p.view_as(q) for p, q in zip(vector.split([q.numel() for q in like]), like, strict=True)]


def first_order(output: Tensor, params: list[Tensor]) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):  # again, for what is checkpointed
        gradients = torch.autograd.grad(output, params, allow_unused=True)
    return flat([torch.zeros_like(p) if g is None else g for g, p in zip(gradients, params, strict=True)]).detach()


def gradient(model: nn.Module, vector: Tensor, inputs: Any, loss: Callable[[Tensor], Tensor]) -> Tensor:
    outputs, params = run(model, vector, inputs)
    return first_order(loss(outputs), params)


def jacobian(model: nn.Module, vector: Tensor, inputs: Any) -> Tensor:
    """Dense (outputs, parameters), a row at a time, each from a forward of its own."""
    rows = []
    for i in range(run(model, vector, inputs)[0].numel()):
        outputs, params = run(model, vector, inputs)
        rows.append(first_order(outputs.reshape(-1)[i], params))
    return torch.stack(rows)


def hessian_product(
    model: nn.Module, vector: Tensor, inputs: Any, loss: Callable[[Tensor], Tensor], v: Tensor, h: float = 2e-5
) -> Tensor:
    """H v by central differences of gradients, extrapolated once (error h^4)."""

    def difference(step: float) -> Tensor:
        ahead = gradient(model, vector + step * v, inputs, loss)
        return (ahead - gradient(model, vector - step * v, inputs, loss)) / (2 * step)

    return (4 * difference(h / 2) - difference(h)) / 3


def relative(x: Tensor, y: Tensor) -> float:
    scale = max(float(x.abs().max()), float(y.abs().max()), 1e-30)
    return float((x - y).abs().max()) / scale


def loss(outputs: Tensor) -> Tensor:
    """A loss that is neither quadratic nor separable from its mean."""
    return (outputs**2).mean() + outputs.sin().sum()


def prepare(case: Callable[[], tuple[nn.Module, Any]]) -> SimpleNamespace:
    """The model of a case in float64, its function of leaves, and leaves that are *not* its own parameters.

    Nothing in a product may come from the parameters that the module happens to hold.
    """
    torch.set_default_dtype(torch.float64)
    try:
        model, inputs = case()
    finally:
        torch.set_default_dtype(torch.float32)
    _, own, structure = backend.flatten(backend.normalize(model))
    leaves = [p.detach() + 0.1 * torch.randn_like(p) for p in own]
    adapted = calculus.adapt(model)
    return SimpleNamespace(
        model=model,
        inputs=inputs,
        leaves=leaves,
        function=lambda p: adapted(backend.unflatten(structure, p), inputs),
    )


def check_linearisation(case: Callable[[], tuple[nn.Module, Any]], tolerance: float = 1e-12) -> None:
    """J v, J^T u and the gradient, against J built row by row from first-order gradients."""
    at = prepare(case)
    J = jacobian(at.model, flat(at.leaves), at.inputs)
    linear = calculus.linearize(at.function, at.leaves, torch.cos)
    assert linear.outputs.shape == run(at.model, flat(at.leaves), at.inputs)[0].shape
    v, u = torch.randn(J.shape[1], dtype=torch.float64), torch.randn_like(linear.outputs)
    assert relative(linear.jvp(split(v, at.leaves)).reshape(-1), J @ v) < tolerance
    assert relative(flat(linear.vjp(u)), J.T @ u.reshape(-1)) < tolerance
    assert relative(flat(linear.gradient), J.T @ linear.outputs.cos().reshape(-1)) < tolerance
    rows = calculus.jacobian_rows(at.function, at.leaves, [0, J.shape[0] - 1])
    assert relative(torch.stack([flat(row) for row in rows]), J[[0, -1]]) < 1e-12
    assert relative(calculus.evaluate(at.function, at.leaves), linear.outputs) < 1e-14


def check_hessian(case: Callable[[], tuple[nn.Module, Any]], tolerance: float = 1e-12) -> None:
    """H v against central differences of first-order gradients in float64."""
    at = prepare(case)
    x = flat(at.leaves)
    v = torch.randn_like(x)
    curved = calculus.linearize_gradient(lambda p: loss(at.function(p)), at.leaves)
    assert relative(flat(curved.gradient), gradient(at.model, x, at.inputs, loss)) < tolerance
    expected = hessian_product(at.model, x, at.inputs, loss, v)
    assert relative(flat(curved.hvp(split(v, at.leaves))), expected) < 1e-7
    value, plain = calculus.gradient(lambda p: loss(at.function(p)), at.leaves)
    assert relative(value, curved.value) < 1e-14  # other kernels: each is asked for what it can
    assert relative(flat(plain), flat(curved.gradient)) < tolerance


def single(tree: Any) -> Any:
    return optree.tree_map(lambda x: x.float() if x.is_floating_point() else x, tree)


def check_single_precision(case: Callable[[], tuple[nn.Module, Any]]) -> None:
    """Other kernels run in float32 (oneDNN's), so second derivatives are compared there too."""
    at = prepare(case)
    v = [torch.randn_like(p) for p in at.leaves]
    expected = calculus.linearize_gradient(lambda p: loss(at.function(p)), at.leaves).hvp(v)
    _, _, structure = backend.flatten(backend.normalize(at.model.float()))
    inputs, adapted = single(at.inputs), calculus.adapt(at.model)
    got = calculus.linearize_gradient(
        lambda p: loss(adapted(backend.unflatten(structure, p), inputs)), single(at.leaves)
    ).hvp(single(v))
    assert {g.dtype for g in got} == {torch.float32}
    assert relative(flat(got).double(), flat(expected)) < 2e-4


@pytest.fixture(scope="session")
def check() -> SimpleNamespace:
    return SimpleNamespace(
        linearisation=check_linearisation, hessian=check_hessian, single_precision=check_single_precision
    )


@pytest.fixture(scope="session")
def oracle() -> SimpleNamespace:
    return SimpleNamespace(
        gradient=gradient,
        jacobian=jacobian,
        hessian_product=hessian_product,
        relative=relative,
        flat=flat,
        split=split,
        loss=loss,
    )


def pytest_collectstart(collector):
    """Modules that a file makes when it is imported are the same in each run."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)
