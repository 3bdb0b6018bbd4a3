"""Convolution whose double backward computes only what is asked for.

With ``y = w * x`` (any stride, padding, dilation, groups, transposed or not),
the backward maps the cotangent g to ``gx = A_w^T g`` and ``gw = B_x^T g``, where
``A_w x = B_x w = w * x``. Differentiated along (vx, vw, vb), it gives

    for g:  A_w vx + B_x vw + vb      which is the linearised J v,
    for x:  the x-cotangent g of the convolution of x with vw,
    for w:  the w-cotangent g of the convolution of vx with w.

torch's own formula always computes all three: then J v costs twice the floor,
and a GGN product of a convolutional network 2.04 gradients rather than 1.31
(in floating-point operations). Neither does torch tell a Python Function which
inputs this backward pass is for (``needs_input_grad`` says what requires
gradients at all), so the engine is asked for each edge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import Function

__all__ = ["REPLACEMENTS"]

_convolution_backward = torch.ops.aten.convolution_backward


_Options: TypeAlias = tuple[Any, ...]
"""Stride, padding, dilation, transposed, output padding, groups: what torch's convolution takes, in its order."""


def _wanted(ctx: Any) -> list[bool]:
    """For each tensor input, whether the running backward pass is to reach it."""
    edges = zip(ctx.needs_input_grad, ctx.next_functions, strict=False)
    return [needed and _will_run(node) for needed, (node, _) in edges]


def _will_run(node: Any) -> bool:
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # the engine answers so for a leaf that is among the inputs asked for
        return True


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, options: _Options) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.options = options
        ctx.bias_shape = None if bias is None else list(bias.shape)
        return torch.convolution(x, w, bias, *options)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        mask = _wanted(ctx)
        mask += [False] * (3 - len(mask))
        if torch.is_grad_enabled():
            gradients = _ConvolutionBackward.apply(g, x, w, ctx.bias_shape, ctx.options, mask)  # type: ignore[no-untyped-call]
            return *gradients, None
        return *_convolution_backward(g, x, w, ctx.bias_shape, *ctx.options, mask), None


class _ConvolutionBackward(Function):
    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, w: Tensor, bias_shape: list[int] | None, options: _Options, mask: list[bool]
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(g, x, w)
        ctx.set_materialize_grads(False)
        ctx.options = options
        return tuple(_convolution_backward(g, x, w, bias_shape, *options, mask))

    @staticmethod
    def backward(ctx: Any, vx: Tensor | None, vw: Tensor | None, vb: Tensor | None) -> tuple[Tensor | None, ...]:
        g, x, w = ctx.saved_tensors
        for_g, for_x, for_w = _wanted(ctx)
        g_bar = x_bar = w_bar = None
        if for_g:
            terms = [torch.convolution(vx, w, None, *ctx.options)] if vx is not None else []
            terms += [torch.convolution(x, vw, None, *ctx.options)] if vw is not None else []
            terms += [vb.view(-1, *[1] * (g.ndim - 2)).expand_as(g)] if vb is not None else []
            g_bar = sum(terms[1:], terms[0]) if terms else None
        if for_x and vw is not None:
            x_bar = _convolution_backward(g, x, vw, None, *ctx.options, [True, False, False])[0]
        if for_w and vx is not None:
            w_bar = _convolution_backward(g, vx, w, None, *ctx.options, [False, True, False])[1]
        return g_bar, x_bar, w_bar, None, None, None


def _ordinary(x: Tensor) -> bool:
    known = type(x) in (Tensor, torch.nn.Parameter) and x.layout is torch.strided
    return known and x.is_floating_point() and not torch.is_autocast_enabled(x.device.type)


def _plain(*tensors: Tensor | None) -> bool:
    """Whether nothing but ordinary autograd is going on: no transform, no autocast, no subclass, real numbers."""
    return (
        torch.is_grad_enabled()
        and not torch._C._are_functorch_transforms_active()
        and not torch.compiler.is_compiling()
        and all(t is None or _ordinary(t) for t in tensors)
    )


def _spread(value: int | tuple[int, ...], n: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * n if len(values) == 1 else values


def _same_padding(w: Tensor, dilation: list[int]) -> list[int] | None:
    """Padding that keeps the size, or None where it is not the same on both sides."""
    total = [d * (k - 1) for d, k in zip(dilation, w.shape[2:], strict=True)]
    return None if any(t % 2 for t in total) else [t // 2 for t in total]


_DEFAULTS: dict[str, Any] = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
_ORDER = ("stride", "padding", "dilation", "groups")
_ORDER_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")


def _replacing(native: Callable[..., Tensor], n: int, transposed: bool) -> Callable[..., Tensor]:
    order = _ORDER_TRANSPOSED if transposed else _ORDER

    def convolve(
        input: Tensor,  # noqa: A002  (torch's name for it)
        weight: Tensor,
        bias: Tensor | None = None,
        *more: Any,
        **named: Any,
    ) -> Tensor:
        given = _DEFAULTS | dict(zip(order, more, strict=False)) | named
        dilation, padding = _spread(given["dilation"], n), given["padding"]
        if isinstance(padding, str):
            padding = _same_padding(weight, dilation) if padding == "same" else 0
        if padding is None or not _plain(input, weight, bias):
            return native(input, weight, bias, *more, **named)
        stride, padding, output_padding = (_spread(x, n) for x in (given["stride"], padding, given["output_padding"]))
        options = stride, padding, dilation, transposed, output_padding, given["groups"]
        batched = input if input.ndim == n + 2 else input.unsqueeze(0)
        y: Tensor = _Convolution.apply(batched, weight, bias, options)  # type: ignore[no-untyped-call]
        return y if batched is input else y.squeeze(0)

    return convolve


_NATIVE = (torch.conv1d, torch.conv2d, torch.conv3d)
_NATIVE_TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)

REPLACEMENTS: dict[Any, Callable[..., Tensor]] = {
    **{native: _replacing(native, n, False) for n, native in enumerate(_NATIVE, 1)},
    **{native: _replacing(native, n, True) for n, native in enumerate(_NATIVE_TRANSPOSED, 1)},
}
"""What stands in for each of torch's convolutions; anything unusual is handed to torch's own."""
