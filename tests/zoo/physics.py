"""Physics-informed networks, implicit layers, hypernetworks, and layers whose weights are normalised, in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.utils import parametrizations, parametrize

from .cases import Case
from .densities import mlp

F = nn.functional


def pinn() -> Case:
    """Poisson's equation on a square, with its border, as residuals of the parameters (Raissi et al., 2019)."""
    net = mlp(2, 8, 8, 1)
    inner, border = torch.rand(8, 2), torch.rand(6, 2)
    border[:, 0] = border[:, 0].round()

    def residuals(params: Any) -> Tensor:
        x = inner.clone().requires_grad_()
        u = functional_call(net, params, x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        second = [torch.autograd.grad(slope[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2)]
        source = torch.sin(torch.pi * inner).prod(-1)
        return torch.cat([sum(second) - source, 3.0 * functional_call(net, params, border)[:, 0]])

    return Case(net, None, None, residuals=residuals)


def inverse_pinn() -> Case:
    """A wave with an unknown speed, by torch.func's transforms inside of the residuals."""
    net = mlp(2, 6, 6, 1)
    net.register_parameter("speed", nn.Parameter(torch.tensor(0.7)))
    x = torch.rand(7, 2)

    def residuals(params: Any) -> Tensor:
        weights = {name: p for name, p in params.items() if name != "speed"}

        def u(x: Tensor) -> Tensor:
            return functional_call(net, {**weights, "speed": params["speed"]}, x)[0]

        H = vmap(jacrev(jacrev(u)))(x)
        return torch.cat([H[:, 0, 0] - params["speed"] ** 2 * H[:, 1, 1], vmap(u)(x) - x.prod(-1)])

    return Case(net, None, None, residuals=residuals)


class NeuralODE(nn.Module):
    """Dormand and Prince's fifth order, three steps, time among the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(3, 8, 2)

    def forward(self, x: Tensor) -> Tensor:
        table = ((1 / 5,), (3 / 40, 9 / 40), (44 / 45, -56 / 15, 32 / 9), (19372 / 6561, -25360 / 2187, 64448 / 6561))
        table += ((-212 / 729,),)
        times, h = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9), 1 / 3
        for i in range(3):
            k: list[Tensor] = []
            for row, c in zip(((), *table[:4]), times, strict=True):
                y = x + h * sum((a * f for a, f in zip(row, k, strict=False)), torch.zeros_like(x))
                k.append(self.net(torch.cat([y, torch.full_like(y[:, :1], h * (i + c))], -1)))
            x = x + h * (35 / 384 * k[0] + 500 / 1113 * k[2] + 125 / 192 * k[3] - 2187 / 6784 * k[4])
        return x


class Adjoint(torch.autograd.Function):
    """The adjoint equation, its gradients made under no_grad: what torchdiffeq's odeint_adjoint does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, net: nn.Module, *weights: Tensor) -> Tensor:
        with torch.no_grad():
            for _ in range(4):
                x = x + 0.25 * net(x)
        ctx.net = net
        ctx.save_for_backward(x, *weights)
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, a: Tensor) -> Any:
        x, *weights = ctx.saved_tensors
        total = [torch.zeros_like(w) for w in weights]
        for _ in range(4):
            with torch.enable_grad():
                y = x.detach().requires_grad_()
                f = ctx.net(y)
                da, *dw = torch.autograd.grad(f, (y, *weights), a)
            x, a = x - 0.25 * f.detach(), a + 0.25 * da
            total = [t + 0.25 * d for t, d in zip(total, dw, strict=True)]
        return (a, None, *total)


class ByAdjoint(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(2, 6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return Adjoint.apply(x, self.net, *self.net.parameters())


class Equilibrium(nn.Module):
    """A deep equilibrium (Bai et al., 2019): iterated without a graph, then a step of Newton with one."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.U, self.head = nn.Parameter(0.2 * torch.randn(3, 3)), nn.Linear(2, 3), nn.Linear(3, 2)

    def f(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ self.W + self.U(x))

    def forward(self, x: Tensor) -> Tensor:
        z = x.new_zeros(len(x), 3)
        with torch.no_grad():
            for _ in range(60):
                z = self.f(z, x)
        for _ in range(2):  # from the solution, these have its first two derivatives
            made = self.f(z, x)
            J = (1 - made.square())[:, :, None] * self.W.T
            z = z + torch.linalg.solve(torch.eye(3) - J, (made - z)[..., None])[..., 0]
        return self.head(z)


class Hyper(nn.Module):
    """A hypernetwork (Ha et al., 2017), and feature-wise modulation."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.film = mlp(2, 6, 20), nn.Linear(2, 8)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        w, b = self.make(c).split([16, 4], -1)
        h = torch.einsum("ni,nio->no", x, w.view(-1, 4, 4)) + b
        scale, shift = self.film(c).chunk(2, -1)
        return F.gelu(h * (1 + scale) + shift)


class Kolmogorov(nn.Module):
    """A KAN layer (Liu et al., 2024): cubic B-splines on every edge beside a SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.weight = nn.Linear(3, 2), nn.Parameter(torch.randn(3, 7, 2) / 3)
        self.register_buffer("knots", torch.linspace(-2.5, 2.5, 11))

    def forward(self, x: Tensor) -> Tensor:
        x, t = x.tanh()[..., None], self.knots
        basis = ((x >= t[:-1]) & (x < t[1:])).to(x.dtype)
        for k in range(1, 4):
            left = (x - t[: -k - 1]) / (t[k:-1] - t[: -k - 1]) * basis[..., :-1]
            basis = left + (t[k + 1 :] - x) / (t[k + 1 :] - t[1:-k]) * basis[..., 1:]
        return self.base(F.silu(x[..., 0])) + torch.einsum("nik,iko->no", basis, self.weight)


class Lagrangian(nn.Module):
    """Accelerations of a learnt Lagrangian (Cranmer et al., 2020): a Hessian in the model, and a solve."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(4, 8, 1, act=nn.Softplus)

    def forward(self, x: Tensor) -> Tensor:
        def L(q: Tensor, v: Tensor) -> Tensor:
            return self.net(torch.cat([q, v]))[0] + v @ v / 2

        def acceleration(q: Tensor, v: Tensor) -> Tensor:
            M = torch.func.hessian(L, 1)(q, v)
            return torch.linalg.solve(M, jacrev(L)(q, v) - jacrev(jacrev(L, 1))(q, v) @ v)

        return vmap(acceleration)(x[:, :2], x[:, 2:])


class Projection(nn.Module):
    """A layer that is a projection onto a simplex by sorting, as sparsemax is."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(3, 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        high = z.sort(-1, descending=True)[0]
        kept = (1 + torch.arange(1, 5) * high > high.cumsum(-1)).sum(-1, keepdim=True)
        tau = (high.cumsum(-1).gather(-1, kept - 1) - 1) / kept
        return (z - tau).clamp(min=0.0)


class Positive(nn.Module):
    """Weights by an exponential."""

    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


def monotone() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1))
    for layer in (net[0], net[2]):
        parametrize.register_parametrization(layer, "weight", Positive())
    return net


def normed(kind: Any, train: bool = False, d: int = 4) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        net = nn.Sequential(kind(nn.Linear(3, d)), nn.Tanh(), kind(nn.Linear(d, d)), nn.Tanh(), nn.Linear(d, 2))
        return net.train(train)

    return build


def lora() -> nn.Module:
    """A low-rank change of a frozen layer."""

    class LoRA(nn.Module):
        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            self.layer = layer.requires_grad_(False)
            self.A = nn.Parameter(torch.randn(2, layer.in_features))
            self.B = nn.Parameter(torch.randn(layer.out_features, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + x @ self.A.T @ self.B.T

    return nn.Sequential(LoRA(nn.Linear(3, 5)), nn.Tanh(), LoRA(nn.Linear(5, 2)))


def ternary() -> nn.Module:
    """Weights that are rounded straight through, as in training for quantisation."""

    class Ternary(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            scale = w.abs().mean().detach()
            return w + ((w / scale).round().clamp(-1, 1) * scale - w).detach()

    layer = nn.Linear(3, 5)
    parametrize.register_parametrization(layer, "weight", Ternary())
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(5, 2))


def rows(model: Callable[[], nn.Module], *widths: int, **options: Any) -> Callable[[], Case]:
    def build() -> Case:
        made, x = model(), tuple(torch.randn(6, width) for width in widths)
        z = made(*x)
        return Case(made, x if len(x) > 1 else x[0], torch.randn_like(z).detach(), "squares", **options)

    return build


CASES = {
    "PINN of Poisson's equation": pinn,
    "PINN with an unknown speed, torch.func": inverse_pinn,
    "Neural ODE, Dormand-Prince": rows(NeuralODE, 2),
    "Neural ODE, adjoint": rows(ByAdjoint, 2, refused="recorded, by a custom autograd.Function"),
    "Deep equilibrium, Newton": rows(Equilibrium, 2),
    "Hypernetwork and FiLM": rows(Hyper, 4, 2),
    "Kolmogorov-Arnold network": rows(Kolmogorov, 3),
    "Lagrangian network": rows(Lagrangian, 4),
    "Sparsemax": rows(Projection, 3),
    "Monotone network": rows(monotone, 3),
    "Weight norm": rows(normed(parametrizations.weight_norm), 3),
    "Orthogonal, matrix exponential": rows(normed(lambda m: parametrizations.orthogonal(m, "weight", "matrix_exp")), 3),
    "Orthogonal, Cayley": rows(normed(lambda m: parametrizations.orthogonal(m, "weight", "cayley")), 3),
    "Spectral norm": rows(normed(parametrizations.spectral_norm), 3),
    "Spectral norm, in training": rows(normed(parametrizations.spectral_norm, train=True), 3, surrogate=True),
    "LoRA": rows(lora, 3),
    "Rounded weights, straight through": rows(ternary, 3, surrogate=True),
}
