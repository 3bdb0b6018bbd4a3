"""A product that autograd sees as one operation of the user's own."""

import torch

__all__ = ["Mm"]


class Mm(torch.autograd.Function):
    """A product that nobody sees, called as torch's own node."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, u):
        x, w = ctx.saved_tensors
        return u @ w.T, x.T @ u
