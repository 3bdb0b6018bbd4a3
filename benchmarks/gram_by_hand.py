"""A Gram step written out for one net, dense layers with ReLU: as little as a step can take, gradient and all.

With inputs A_l (N, d_l) of the layers, and S_l (N C, o_l) the derivatives of the outputs, times the root of the loss's
Hessian, in what layer l makes,

    K = sum_l (A_l A_l^T + 1) o (S_l S_l^T) / N,    (K + lambda) y = q,    x_l = sum_nc y_nc S_l,nc A_l,n^T / N,

and a product J^T H J x, which does not know of the layers, tells the residual. The right-hand side is the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["jax_step", "torch_step"]


def torch_step(net: Any, x: Any, y: Any, damping: float) -> Callable[[], tuple[list[Any], float]]:
    """What returns the step, and the residual over the gradient's norm."""
    import torch
    from torch.nn.functional import one_hot

    params, (first, *rest) = list(net.parameters()), [m for m in net if hasattr(m, "weight")]
    N, C = len(x), rest[-1].out_features

    def step() -> tuple[list[Any], float]:
        z = net(x)
        p, hot = torch.softmax(z.detach(), 1), one_hot(y, C)
        u = ((p - hot) / N).requires_grad_()
        gradient = torch.autograd.grad(z, params, u, create_graph=True)
        with torch.no_grad():
            A = [x]
            for layer in (first, *rest[:-1]):
                A.append(layer(A[-1]).relu_())
            s = p.sqrt()
            S = [(torch.diag_embed(s) - s[:, :, None] * p[:, None, :]).reshape(N * C, C)]
            for layer, a in zip(rest[::-1], A[:0:-1], strict=True):
                S.append((S[-1] @ layer.weight).view(N, C, -1).mul_((a > 0)[:, None]).view(N * C, -1))
            K = torch.zeros(N, C, N, C)
            for a, b in zip(A, S[::-1], strict=True):
                K += (b @ b.T).view(N, C, N, C).mul_((a @ a.T).add_(1)[:, None, :, None])
            K = K.view(N * C, N * C).div_(N)
            K.diagonal().add_(damping)
            q = torch.where(hot > 0, p - hot, p) / s
            Y = torch.cholesky_solve(q.reshape(-1, 1), torch.linalg.cholesky_ex(K)[0]).div_(N).view(N, 1, C)
            made: list[Any] = []
            for a, b in zip(A, S[::-1], strict=True):
                d = torch.bmm(Y, b.view(N, C, -1))[:, 0]
                made += [d.T @ a, d.sum(0)]
        (v,) = torch.autograd.grad(gradient, u, made, retain_graph=True)
        h = p * v
        product = torch.autograd.grad(z, params, (h - p * h.sum(1, keepdim=True)) / N)
        given = [g.detach() for g in gradient]
        left = [Gx.add_(x, alpha=damping).sub_(g) for Gx, x, g in zip(product, made, given, strict=True)]
        return made, (_square(torch.dot, left) / _square(torch.dot, given)) ** 0.5

    return step


def _square(dot: Callable[..., Any], parts: Sequence[Any]) -> float:
    return sum(dot(t.reshape(-1), t.reshape(-1)).item() for t in parts)


def jax_step(model: Callable[..., Any], damping: float) -> Callable[..., Any]:
    """A program of layers ``{"w", "b"}``, inputs and classes: the step, the gradient, and their residual's square."""
    import jax
    import jax.numpy as jnp

    def step(params: Any, x: Any, y: Any) -> Any:
        z, push = jax.linearize(lambda params: model(params, x), params)
        pull = jax.linear_transpose(push, params)
        N, C = z.shape
        A = [x]
        for layer in params[:-1]:
            A.append(jax.nn.relu(A[-1] @ layer["w"] + layer["b"]))
        p, hot = jax.nn.softmax(z), jax.nn.one_hot(y, C)
        s = jnp.sqrt(p)
        S = [(s[:, :, None] * jnp.eye(C) - s[:, :, None] * p[:, None, :]).reshape(N * C, C)]
        for layer, a in zip(params[:0:-1], A[:0:-1], strict=True):
            S.append(((S[-1] @ layer["w"].T).reshape(N, C, -1) * (a > 0)[:, None]).reshape(N * C, -1))
        K = sum(
            (b @ b.T).reshape(N, C, N, C) * (a @ a.T + 1)[:, None, :, None] for a, b in zip(A, S[::-1], strict=True)
        )
        K = K.reshape(N * C, N * C) / N + damping * jnp.eye(N * C)
        (gradient,) = pull((p - hot) / N)
        factor = jnp.linalg.cholesky(K, symmetrize_input=False)
        Y = jax.scipy.linalg.cho_solve((factor, True), ((p - hot) / s).reshape(-1)).reshape(N, C) / N
        made = []
        for a, b in zip(A, S[::-1], strict=True):
            d = jnp.einsum("nc,nco->no", Y, b.reshape(N, C, -1))
            made.append({"w": a.T @ d, "b": d.sum(0)})
        v = push(made)
        (product,) = pull(p * (v - (p * v).sum(1, keepdims=True)) / N)
        left = jax.tree.map(lambda Gx, x, g: Gx + damping * x - g, product, made, gradient)
        return made, gradient, sum(jnp.vdot(t, t) for t in jax.tree.leaves(left))

    return jax.jit(step)
