"""Kernels that can be differentiated twice, and rightly, put in place of those that cannot.

A curvature product differentiates a backward pass. Some things that torch runs
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
* ``cdist`` has none for most shapes: the norms of the differences are taken.
* ``sinc`` at 0, ``mish`` of large arguments and ``logaddexp`` of distant ones
  have a NaN for their second derivative, the first also for J v: they are
  written so that each part of each derivative is finite.
* Embeddings with ``sparse=True`` have sparse gradients, which nothing here adds
  or packs: they are dense. Those with ``scale_grad_by_freq=True`` have gradients
  divided by counts, which are no derivatives: they are not divided. One with
  ``max_norm`` writes to its weights, and is refused. ``embedding_bag`` has no
  double backward: rows are looked up and added.
* ``float(x)``, ``x.item()`` and ``x.tolist()`` of what has a derivative lose it, which is told.
* A convolution's double backward computes all three of its terms whichever are
  asked for, which doubles what a linearised J v costs: see
  :mod:`linop_gn_torch.convolution`.

Entering costs about 5 microseconds, and 2 for each torch call inside.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator, ExitStack, contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from . import convolution

__all__ = ["both_ways", "math_attention", "once_differentiable", "step_by_step", "twice_differentiable"]


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """``g v / ||v||`` with the norm taken over all axes but ``dim`` (all of them for -1), op by op."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002  (torch's name for it)
    """``relu6(x + 3) / 6``."""
    return nn.functional.relu6(input + 3) / 6


def sinc(input: Tensor) -> Tensor:  # noqa: A002
    """sin(y) / y, y = pi x; by its series where |y| < 1, which leaves nothing to divide by."""
    y = torch.pi * input
    near = y.abs() < 1
    square, far = torch.where(near, y, 0.5) ** 2, torch.where(near, 1.0, y)
    series = torch.ones_like(square)
    for k in range(10, 0, -1):  # 1 - y^2 / (2 3) (1 - y^2 / (4 5) (...))
        series = 1 - square / (2 * k * (2 * k + 1)) * series
    return torch.where(near, series, far.sin() / far)


def mish(input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002
    """``x tanh(softplus(x))``."""
    return input * nn.functional.softplus(input).tanh()


def _apart(input: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:  # noqa: A002
    """The larger one, and how much it is larger by; branches, not abs, for the derivatives at a tie."""
    first = input >= other
    gap = torch.where(first, input - other, other - input)
    return torch.where(first, input, other), torch.where((input == other) & input.isinf(), 0.0, gap)


def logaddexp(input: Tensor, other: Tensor) -> Tensor:  # noqa: A002
    """``a + log1p(exp(b - a))``, a the larger."""
    top, gap = _apart(input, other)
    return top + (-gap).exp().log1p()


def logaddexp2(input: Tensor, other: Tensor) -> Tensor:  # noqa: A002
    """The same of powers of 2."""
    top, gap = _apart(input, other)
    return top + (-gap).exp2().log1p() / math.log(2)


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    """The norms of all differences of rows."""
    return torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, dim=-1)


def embedding(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """With dense gradients that are not divided by counts."""
    _require_no_max_norm(max_norm)
    return nn.functional.embedding(input, weight, padding_idx)


def _require_no_max_norm(max_norm: float | None) -> None:
    if max_norm is not None:
        raise ValueError(
            f"the model calls an embedding with max_norm={max_norm}, which writes to its weights as it runs, so that "
            "no derivative belongs to them: leave it out, and scale the rows yourself between steps, or in the model."
        )


def embedding_bag(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Rows of ``weight`` added up bag by bag; the largest of each bag, and offsets that are none, are torch's."""
    given = mode, False, per_sample_weights, include_last_offset, padding_idx
    _require_no_max_norm(max_norm)
    if mode == "max" or (input.dim() != 2 and offsets is None):
        return nn.functional.embedding_bag(input, weight, offsets, None, 2, scale_grad_by_freq, *given)
    indices, n = input.reshape(-1), len(input)
    if offsets is None:
        bags = torch.arange(n, device=input.device).repeat_interleave(input.shape[1])
    else:
        n = len(offsets) - include_last_offset
        bags = torch.searchsorted(offsets[:n], torch.arange(len(indices), device=input.device), right=True) - 1
    counted = (indices != (-1 if padding_idx is None else padding_idx % len(weight))).to(weight.dtype)
    each = counted if per_sample_weights is None else counted * per_sample_weights.reshape(-1)
    rows = nn.functional.embedding(input, weight).reshape(len(indices), -1) * each[:, None]
    sums = weight.new_zeros(n, weight.shape[1]).index_add(0, bags, rows)
    if mode == "sum":
        return sums
    return sums / weight.new_zeros(n).index_add(0, bags, counted).clamp(min=1)[:, None]


class _Switch(ContextDecorator):
    """Settings of the whole process, as ``enter`` makes them while any thread is inside."""

    def __init__(self, enter: Callable[[ExitStack], None]) -> None:
        self._enter, self._lock, self._inside, self._undo = enter, Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._enter(self._undo)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._undo.close()


def _no_cudnn(undo: ExitStack) -> None:
    undo.callback(setattr, torch.backends.cudnn, "enabled", torch.backends.cudnn.enabled)
    torch.backends.cudnn.enabled = False


def _no_fused_steps(undo: ExitStack) -> None:
    _no_cudnn(undo)
    undo.callback(torch._C._set_mkldnn_enabled, torch._C._get_mkldnn_enabled())
    torch._C._set_mkldnn_enabled(False)


def _plain_attention(undo: ExitStack) -> None:
    undo.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
    torch.backends.mha.set_fastpath_enabled(False)
    undo.enter_context(sdpa_kernel(SDPBackend.MATH))


math_attention = _Switch(_plain_attention)
"""Attention by the math kernel, encoder layers by their ordinary path."""
_without_cudnn = _Switch(_no_cudnn)
_without_fused_steps = _Switch(_no_fused_steps)


def _attention(*args: Any, **kwargs: Any) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):  # whatever the model has chosen
        return nn.functional.scaled_dot_product_attention(*args, **kwargs)


def _taken_out(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """A method that makes a Python number of a tensor, which says what becomes of the derivative."""

    def number(x: Tensor) -> Any:
        if x.requires_grad:
            warnings.warn(
                "linop_gn: the model takes a Python number out of a tensor that has a derivative (math.exp(p), "
                "float(p), .item(), .tolist()), and what it computes with that has none: gradient and products would "
                "be wrong. Write it with torch's own functions (torch.exp); if it is meant, x.detach() says so.",
                stacklevel=3,
            )
        return function(x.detach())

    return number


_TAKEN_OUT = {method: _taken_out(method) for method in (Tensor.__float__, Tensor.item, Tensor.tolist)}
_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
_EMBEDDINGS = {nn.functional.embedding: embedding, nn.functional.embedding_bag: embedding_bag}
_REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    **_TAKEN_OUT,
    torch._weight_norm: weight_norm,
    nn.functional.scaled_dot_product_attention: _attention,
    nn.functional.hardsigmoid: hardsigmoid,
    nn.functional.mish: mish,
    torch.cdist: cdist,
    **_EMBEDDINGS,
    **dict.fromkeys((torch.sinc, torch.special.sinc, Tensor.sinc), sinc),
    **dict.fromkeys((torch.logaddexp, Tensor.logaddexp), logaddexp),
    **dict.fromkeys((torch.logaddexp2, Tensor.logaddexp2), logaddexp2),
    **{layer: _without_cudnn(layer) for layer in _RECURRENT},
    **convolution.REPLACEMENTS,
}


class _Replace(TorchFunctionMode):
    def __init__(self, replacements: dict[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self._replacements = replacements

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._replacements.get(function, function)(*args, **(kwargs or {}))


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Inside, models are built of operations whose second derivatives exist and are right."""
    with math_attention, _Replace(_REPLACEMENTS):
        yield


@contextmanager
def once_differentiable() -> Iterator[None]:
    """Inside, operations are torch's own, but for those whose gradient is no derivative, and attention's kernel."""
    with math_attention, _Replace(_EMBEDDINGS):
        yield


@contextmanager
def both_ways() -> Iterator[None]:
    """Inside, operations are torch's own where these have forward mode: for one pass forward and one back."""
    with math_attention, _Replace(_EMBEDDINGS | _TAKEN_OUT | {torch._weight_norm: weight_norm}):
        yield


@contextmanager
def step_by_step() -> Iterator[None]:
    """As :func:`once_differentiable`, with recurrent layers made of the products that they compute."""
    with math_attention, _Replace(_EMBEDDINGS | {layer: _without_fused_steps(layer) for layer in _RECURRENT}):
        yield
