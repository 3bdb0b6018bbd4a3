"""The cotangent at which ``J^T u`` is recorded: a place in a graph, whose values nothing needs afterwards.

``J^T u`` is linear in u, so what autograd makes of it along the parameters, J v, does not depend on u. A recorded graph
holds u nevertheless: as its leaf, and saved by the operations that it went through first, such as the product with the
weights of a last layer. That is one more array like the outputs, or 412 MB for the logits of 2048 tokens over a
vocabulary of 50304. Large ones are let go: the graph begins at a node in place of a leaf, and has a zero of the right
shape where it would have saved u.

Of a Hessian u is the gradient of the loss at the outputs z, and z is a leaf's no more than the parameters are: J^T u is
differentiated in both factors, in one pass, in which :class:`Slope` has H J v for the J v that comes back to u.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks

from linop_gn.backend import Outer

from .wholes import Whole

__all__ = ["MANY", "Slope", "forgotten", "marked"]

MANY = 1 << 22
"""Fewer entries than these may as well be held: hooks take a microsecond for each tensor that is saved."""

_CHANGED = "one of the variables needed for gradient computation has been modified by an inplace operation"
"""What torch says of tensors that it saves without hooks."""


def marked(u: Tensor) -> tuple[Tensor, Any]:
    """``u`` as the beginning of a graph, which does not hold a large one, and the place there.

    >>> u, place = marked(torch.tensor([1.0, 2.0]))
    >>> torch.autograd.grad((3 * u).sum(), [place])
    (tensor([3., 3.]),)
    """
    if u.numel() < MANY:
        return u.requires_grad_(), u
    u = u + torch.zeros((), dtype=u.dtype, device=u.device, requires_grad=True)
    return u, get_gradient_edge(u)


@contextmanager
def forgotten(u: Tensor) -> Iterator[None]:
    """Inside, graphs that are recorded do not hold a large ``u``."""
    if u.numel() < MANY:
        yield
        return
    own = u.untyped_storage().data_ptr()

    def pack(saved: Tensor) -> Any:
        if not isinstance(saved, Whole) and saved.untyped_storage().data_ptr() == own:
            saved = saved.new_zeros(()).expand(saved.shape)
        return saved, saved._version

    def unpack(held: Any) -> Tensor:
        saved, version = held
        if saved._version != version:
            raise RuntimeError(_CHANGED)
        return saved  # type: ignore[no-any-return]

    with saved_tensors_hooks(pack, unpack):
        yield


class Slope(torch.autograd.Function):
    """The gradient of an outer function at its argument z, whose derivative is known: no more of z than z is held."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, outer: Outer) -> Tensor:
        z = z.detach()
        ctx.outer, ctx.hessian = outer, outer.hessian(z)
        return outer.slope(z)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.outer.product(ctx.hessian, v), None
