"""Kernels that can be differentiated twice, and rightly, put in place of those that cannot.

A curvature product differentiates a backward pass. Five things that torch runs
by default do not survive that, and :func:`twice_differentiable` replaces them
while a model's forward runs (the forward is what picks the kernel):

* Fused attention (flash, memory-efficient, cuDNN) has neither forward mode nor
  a double backward: the math kernel is used. The fused fast path of
  ``nn.TransformerEncoderLayer`` is switched off too, so that an evaluation
  without gradients computes the same function (it writes zeros at padding).
* ``torch._weight_norm`` is *silently wrong* under backward over backward: its
  differentiable backward takes the saved norm for a constant, and the Hessian
  loses the terms through it. The explicit formula is used.
* cuDNN's recurrent layers have no double backward: torch's own are used.
* ``hardsigmoid`` has no double backward either; ``relu6(x + 3) / 6`` is the same.
* A convolution's double backward computes all three of its terms whichever are
  asked for, which doubles what a linearised J v costs: see
  :mod:`linop_gn_torch.convolution`.

Entering costs about 5 microseconds, and 2 for each torch call inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from . import convolution

__all__ = ["math_attention", "twice_differentiable"]


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """``g v / ||v||`` with the norm taken over all axes but ``dim`` (all of them for -1), op by op."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002  (torch's name for it)
    """``relu6(x + 3) / 6``."""
    return nn.functional.relu6(input + 3) / 6


def _unfused(recurrent: Callable[..., Any]) -> Callable[..., Any]:
    def layer(*args: Any, **kwargs: Any) -> Any:
        enabled = torch.backends.cudnn.enabled
        torch.backends.cudnn.enabled = False
        try:
            return recurrent(*args, **kwargs)
        finally:
            torch.backends.cudnn.enabled = enabled

    return layer


def _attention(*args: Any, **kwargs: Any) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return nn.functional.scaled_dot_product_attention(*args, **kwargs)


_REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    torch._weight_norm: weight_norm,
    nn.functional.scaled_dot_product_attention: _attention,
    nn.functional.hardsigmoid: hardsigmoid,
    **{layer: _unfused(layer) for layer in (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)},
    **convolution.REPLACEMENTS,
}


class _Replace(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _REPLACEMENTS.get(function, function)(*args, **(kwargs or {}))


@contextmanager
def math_attention() -> Iterator[None]:
    """Attention by the math kernel, encoder layers by their ordinary path."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Inside, models are built of operations whose second derivatives exist and are right."""
    with math_attention(), _Replace():
        yield
