"""What a linearisation promises beyond its numbers: zeros, pruning, one forward, errors that advise."""

from __future__ import annotations

import pytest
import torch
from linop_gn_torch import backend, cotangents
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

calculus = backend.calculus


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(*shape, dtype=torch.float64) for shape in shapes]


def zero(leaves: list[Tensor]) -> bool:
    return all(bool((leaf == 0).all()) for leaf in leaves)


W, B, V = tensors((2, 3), (2,), (4, 2))
X = torch.randn(5, 3, dtype=torch.float64)


def dense(p: list[Tensor]) -> Tensor:
    return torch.tanh(X @ p[0].T + p[1]) @ p[2].T


@pytest.mark.parametrize(
    "function",
    [
        lambda p: (X @ p[0].T).sum() + p[1].sum(),
        lambda p: (X @ p[0].T).relu().sum() - p[1].abs().sum(),
        lambda p: torch.nn.functional.leaky_relu(p[0]).max() + p[1].sum(),
        lambda p: p[1].round().sum() + 0 * p[0].sum(),
    ],
    ids=["linear", "relu", "max", "round"],
)
def test_hessians_of_piecewise_linear_functions_are_exact_zeros(function):
    at = calculus.linearize_gradient(function, [W, B, V])
    product = at.hvp(tensors((2, 3), (2,), (4, 2)))
    assert zero(product)
    assert [h.shape for h in product] == [W.shape, B.shape, V.shape]
    assert zero([at.gradient[2]])


def test_what_a_function_ignores_has_zero_derivatives():
    at = calculus.linearize(lambda p: p[0].exp(), [W, B], torch.ones_like)
    assert zero([at.gradient[1], at.vjp(torch.ones_like(W))[1], at.jvp([torch.zeros_like(W), torch.ones_like(B)])])
    constant = calculus.linearize(lambda p: X.sum(0), [W, B], torch.ones_like)
    assert zero([*constant.gradient, constant.jvp([W, B]), *constant.vjp(torch.ones(3, dtype=torch.float64))])
    assert zero(calculus.linearize_gradient(lambda p: X.sum(), [W, B]).hvp([W, B]))
    assert zero(calculus.gradient(lambda p: X.sum(), [W, B])[1])
    assert zero(calculus.jacobian_rows(lambda p: p[0].exp(), [W, B], [3])[0][1:])


def test_the_identity():
    at = calculus.linearize(lambda p: p[0], [B], torch.sin)
    v = torch.randn_like(B)
    assert torch.equal(at.gradient[0], B.sin())
    assert torch.equal(at.jvp([v]), v)
    assert torch.equal(at.vjp(v)[0], v)


def test_the_function_runs_once():
    calls = []

    def counted(p):
        calls.append(1)
        return dense(p)

    at = calculus.linearize(counted, [W, B, V], torch.cos)
    for _ in range(3):
        at.vjp(at.jvp([W, B, V]))
    curved = calculus.linearize_gradient(lambda p: counted(p).sum(), [W, B, V])
    curved.hvp([W, B, V])
    assert len(calls) == 2


def test_products_are_the_same_each_time_and_record_nothing():
    at = calculus.linearize(dense, [W, B, V], torch.cos)
    curved = calculus.linearize_gradient(lambda p: dense(p).sin().sum(), [W, B, V])
    v = [torch.randn_like(p).requires_grad_() for p in (W, B, V)]
    first = [at.outputs, *at.gradient, at.jvp(v), *at.vjp(at.jvp(v)), curved.value, *curved.hvp(v), *curved.gradient]
    again = [at.outputs, *at.gradient, at.jvp(v), *at.vjp(at.jvp(v)), curved.value, *curved.hvp(v), *curved.gradient]
    assert not any(x.requires_grad for x in first)
    assert all(map(torch.equal, first, again))


def test_parameters_are_neither_copied_nor_touched():
    p = nn.Parameter(W.clone())
    seen = []
    calculus.linearize(lambda leaves: seen.append(leaves[0].data_ptr()) or leaves[0].sin(), [p], torch.cos)
    assert seen == [p.data_ptr()]
    assert p.grad is None
    assert p.requires_grad


def test_under_no_grad():
    with torch.no_grad():
        at = calculus.linearize(dense, [W, B, V], torch.cos)
        product = at.vjp(at.jvp([W, B, V]))
        hessian = calculus.linearize_gradient(lambda p: dense(p).sin().sum(), [W, B, V]).hvp([W, B, V])
        value, _ = calculus.gradient(lambda p: dense(p).sum(), [W, B, V])
    outside = calculus.linearize(dense, [W, B, V], torch.cos)
    assert all(map(torch.equal, product, outside.vjp(outside.jvp([W, B, V]))))
    assert not zero(hessian)
    assert torch.equal(value, dense([W, B, V]).sum())


def test_evaluation_records_nothing_but_lets_a_model_differentiate():
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)

    def slope(p):
        return torch.autograd.grad((p[0] @ x).sin().sum(), x, create_graph=True)[0]

    with torch.no_grad():
        result = calculus.evaluate(lambda p: {"slope": slope(p), "name": "s"}, [W])
    assert result["name"] == "s"
    assert torch.allclose(result["slope"], W.T @ (W @ x).cos())
    assert not result["slope"].requires_grad


def test_settings_are_put_back():
    def settings():
        flags = torch.backends.cuda
        return (
            flags.flash_sdp_enabled(),
            flags.mem_efficient_sdp_enabled(),
            flags.math_sdp_enabled(),
            torch.backends.mha.get_fastpath_enabled(),
            torch.backends.cudnn.enabled,
            torch.is_grad_enabled(),
        )

    def fails(p):
        nn.LSTM(2, 2, dtype=torch.float64)(p[0].reshape(3, 2))
        raise KeyError("from the model")

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        before = settings()
        with pytest.raises(KeyError, match="from the model"):
            calculus.linearize(fails, [W], torch.cos)
        calculus.linearize(dense, [W, B, V], torch.cos).jvp([W, B, V])
        assert settings() == before


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_run_without_cudnn(layer):
    """cuDNN's have no double backward; the flag is what torch decides by, with a GPU or without."""
    enabled = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            enabled.append(torch.backends.cudnn.enabled)
            return function(*args, **(kwargs or {}))

    recurrent = layer(3, 2, dtype=torch.float64)

    def function(p):
        x = p[0] + 1
        with Watch():
            return recurrent(x)[0]

    calculus.linearize(function, [W], torch.cos)
    assert False in enabled
    assert torch.backends.cudnn.enabled


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


class LeavesTorch(OnceOnly):
    @staticmethod
    def backward(ctx, g):
        x = ctx.saved_tensors[0].detach().numpy()
        return torch.from_numpy(3 * x**2 * g.detach().numpy())


class ForgetsItsArgument(OnceOnly):
    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g.detach()


def flexible(x):
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(*[x[None, None]] * 3)


UNSUPPORTED = [
    (OnceOnly.apply, r"computed, but not recorded.*\(OnceOnly\).*@once_differentiable"),
    (LeavesTorch.apply, r"\(LeavesTorch\).*leaves torch"),
    (ForgetsItsArgument.apply, r"\(ForgetsItsArgument\).*detaches"),
    (lambda x: x.exp() + OnceOnly.apply(x), r"\(OnceOnly\)"),
    (lambda x: x.exp() + LeavesTorch.apply(x), r"\(LeavesTorch\)"),
    (lambda x: x.exp() * ForgetsItsArgument.apply(x), r"\(ForgetsItsArgument\)"),
    (lambda x: nn.functional.multi_margin_loss(x, torch.tensor([0, 1]), p=2), "multi_margin_loss_backward, has no"),
    (lambda x: checkpoint(torch.sin, x, use_reentrant=True), "use_reentrant=False"),
    (flexible, "calls flex_attention.*scaled_dot_product_attention"),
]


@pytest.mark.parametrize(("operation", "message"), UNSUPPORTED)
def test_what_cannot_be_differentiated_twice(operation, message):
    def products():
        at = calculus.linearize(lambda p: operation(p[0] + 1), [W], torch.cos)
        at.jvp([W])

    with pytest.raises(NotImplementedError, match=message):
        products()
    with pytest.raises(NotImplementedError, match=message):
        calculus.linearize_gradient(lambda p: operation(p[0] + 1).sin().sum(), [W]).hvp([W])


def test_parameters_that_reentrant_checkpointing_hides():
    x = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)  # all that the checkpoint's own node knows of

    def model(p):
        return checkpoint(lambda x: (x * p[0]).tanh(), x, use_reentrant=True) * p[1]

    def total(p):
        return model(p).sum()

    ways = (
        lambda: calculus.linearize(model, [W, 2 * W], torch.cos),
        lambda: calculus.linearize_gradient(total, [W, 2 * W]),
        lambda: calculus.gradient(total, [W, 2 * W]),
        lambda: calculus.gradient(model, [W, 2 * W], torch.cos),
    )
    for way in ways:  # once zeros, for the first of the parameters
        with pytest.raises(NotImplementedError, match="use_reentrant=False"):
            way()
    data = torch.ones(2, 3, dtype=torch.float64)  # with these the checkpoint is in no graph

    def hidden(p):
        return checkpoint(lambda x: (x * p[0]).tanh(), data, use_reentrant=True) * p[1]

    def tied(p):  # no parameter lacks a gradient, and that of the first would be a part of it
        return model(p) * p[0].sum()

    for function in (hidden, tied):
        for way in (calculus.linearize, calculus.gradient):
            with pytest.raises(NotImplementedError, match="use_reentrant=False"):
                way(function, [W, 2 * W], torch.cos)
    assert checkpoint(torch.sin, x, use_reentrant=True).requires_grad  # of a loop of one's own


@pytest.mark.filterwarnings("ignore")
def test_compiled_functions():
    compiled = torch.compile(lambda x: torch.tanh(x) * x, backend="aot_eager")
    with pytest.raises(NotImplementedError, match=r"compiled by torch.compile.*uncompiled"):
        calculus.linearize(lambda p: compiled(p[0]), [W], torch.cos).jvp([W])


@pytest.mark.parametrize("many", [1, 100])
def test_parameters_changed_in_place_after_linearising(many, monkeypatch):
    monkeypatch.setattr(cotangents, "MANY", many)
    w = W.clone()
    at = calculus.linearize(lambda p: p[0] @ p[0].T, [w], torch.cos)
    curved = calculus.linearize_gradient(lambda p: p[0].sin().sum(), [w])
    w.add_(1)
    for product in (lambda: at.jvp([W]), lambda: at.vjp(at.outputs), lambda: curved.hvp([W])):
        with pytest.raises(RuntimeError, match="changed in place after the model was linearised"):
            product()


def test_inference_mode():
    with torch.inference_mode():
        made_inside = torch.ones(2, 3, dtype=torch.float64)
        with pytest.raises(RuntimeError, match=r"use torch.no_grad\(\)"):
            calculus.linearize(dense, [W, B, V], torch.cos)
    with pytest.raises(RuntimeError, match=r"parameter 0 .* clone\(\) it outside"):
        calculus.linearize(dense, [made_inside, B, V], torch.cos)
    with pytest.raises(RuntimeError, match=r"clone\(\) them outside"):
        calculus.linearize(lambda p: (p[0] * made_inside).sin(), [W], torch.cos)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda p: (p[0], p[1]), r"returned a tuple, not one tensor.*outputs\[0\]"),
        (lambda p: p[0].argmax(0), "returned torch.int64"),
        (lambda p: torch.complex(p[0], p[0]), "returned torch.complex128.*view_as_real"),
    ],
)
def test_outputs_that_have_no_derivatives(function, message):
    with pytest.raises(TypeError, match=message):
        calculus.linearize(function, [W, B], torch.cos)
    with pytest.raises(TypeError, match=message):
        calculus.linearize_gradient(function, [W, B])


def test_a_scalar_function_must_be_one():
    with pytest.raises(ValueError, match=r"scalar function is needed here, not outputs of shape \(2, 3\)"):
        calculus.linearize_gradient(lambda p: p[0], [W])
    with pytest.raises(TypeError, match=r"parameter 1 is torch\.int64"):
        calculus.gradient(lambda p: p[0].sum(), [W, torch.tensor([1])])
