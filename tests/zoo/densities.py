"""Densities and generators in torch: flows, variational and energy-based models, critics, mixtures, structures."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .cases import Case

F = nn.functional


def mlp(*sizes: int, act: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


class Glow(nn.Module):
    """Actnorm, an invertible linear map by LU, affine couplings; outputs are z and log |det|."""

    def __init__(self, d: int = 4) -> None:
        super().__init__()
        P, L, U = torch.linalg.lu(torch.linalg.qr(torch.randn(d, d))[0])
        self.register_buffer("P", P)
        self.lower, self.upper, self.log_s = (nn.Parameter(t) for t in (L, U, U.diagonal().abs().log()))
        self.scale, self.shift = nn.Parameter(0.1 * torch.randn(d)), nn.Parameter(torch.randn(d))
        self.net = mlp(d // 2, 6, d)

    def forward(self, x: Tensor) -> Tensor:
        x = (x + self.shift) * self.scale.exp()
        W = self.P @ (self.lower.tril(-1) + torch.eye(4)) @ (self.upper.triu(1) + torch.diag(self.log_s.exp()))
        a, b = (x @ W.T).chunk(2, -1)
        s, t = self.net(a).chunk(2, -1)
        total = s.tanh().sum(-1) + self.scale.sum() + self.log_s.sum()
        return torch.cat([a, b * s.tanh().exp() + t, total[:, None]], -1)


class Planar(nn.Module):
    """Rezende and Mohamed, 2015, with the term that keeps them invertible."""

    def __init__(self, d: int = 3) -> None:
        super().__init__()
        self.u, self.w, self.b = (nn.Parameter(torch.randn(4, *s)) for s in ((d,), (d,), ()))

    def forward(self, z: Tensor) -> Tensor:
        total = 0.0
        for u, w, b in zip(self.u, self.w, self.b, strict=True):
            u = u + (F.softplus(w @ u) - 1 - w @ u) * w / (w @ w)
            h = torch.tanh(z @ w + b)
            total = total + (1 + (1 - h**2) * (w @ u)).abs().log()
            z = z + h[:, None] * u
        return torch.cat([z, total[:, None]], -1)


class Spline(nn.Module):
    """Monotone rational-quadratic splines (Durkan et al., 2019), of one number given another; four bins."""

    def __init__(self, bins: int = 4) -> None:
        super().__init__()
        self.net, self.bins = mlp(1, 8, 3 * bins + 1), bins

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.sigmoid().chunk(2, -1)
        w, h, d = self.net(a).split([self.bins, self.bins, self.bins + 1], -1)
        w, h, d = w.softmax(-1), h.softmax(-1), F.softplus(d) + 1e-3
        left, low = F.pad(w.cumsum(-1), (1, 0)), F.pad(h.cumsum(-1), (1, 0))
        k = torch.searchsorted(left[:, 1:-1].detach().contiguous(), b)
        at, y0, width, height = (t.gather(-1, k) for t in (left[:, :-1], low[:, :-1], w, h))
        d0, d1, s = d.gather(-1, k), d.gather(-1, k + 1), height / width
        t = (b - at) / width
        below = s + (d1 + d0 - 2 * s) * t * (1 - t)
        y = y0 + height * (s * t**2 + d0 * t * (1 - t)) / below
        slope = s**2 * (d1 * t**2 + 2 * s * t * (1 - t) + d0 * (1 - t) ** 2) / below**2
        return torch.cat([a, y, slope.log()], -1)


class CNF(nn.Module):
    """A continuous flow (Grathwohl et al., 2019): divergence by derivatives inside of the model, Runge-Kutta."""

    def __init__(self, d: int = 2) -> None:
        super().__init__()
        self.net = mlp(d + 1, 6, d)

    def both(self, t: float, z: Tensor) -> tuple[Tensor, Tensor]:
        z = z if z.requires_grad else z.requires_grad_()
        f = self.net(torch.cat([z, torch.full_like(z[:, :1], t)], -1))
        parts = [torch.autograd.grad(f[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(z.shape[1])]
        return f, -sum(parts)

    def forward(self, x: Tensor) -> Tensor:
        z, total, h = x.detach().clone(), torch.zeros(len(x)), 0.5
        for t in (0.0, 0.5):
            k1, l1 = self.both(t, z)
            k2, l2 = self.both(t + h / 2, z + h / 2 * k1)
            z, total = z + h * k2, total + h * l2 + 0.0 * l1
        return torch.cat([z, total[:, None]], -1)


class VAE(nn.Module):
    """Kingma and Welling, 2014: its draw is part of the module; outputs are logits, mean and log-variance."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = mlp(5, 6, 4), mlp(2, 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        mean, logvar = self.encode(x).chunk(2, -1)
        z = mean + (logvar / 2).exp() * torch.randn_like(mean)
        return torch.cat([self.decode(z), mean, logvar], -1)


class VQ(nn.Module):
    """A vector-quantised autoencoder (van den Oord et al., 2017), straight through: .detach() is in the model."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode, self.codes = mlp(5, 6, 2), mlp(2, 6, 5), nn.Embedding(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encode(x)
        code = self.codes(torch.cdist(z, self.codes.weight).argmin(-1))
        return torch.cat([self.decode(z + (code - z).detach()), code - z.detach(), 0.5 * (z - code.detach())], -1)


class Penalised(nn.Module):
    """A critic with its gradient penalty (Gulrajani et al., 2017): outputs are its scores, and slopes less one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(3, 8, 8, 1, act=nn.Softplus)

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        score = self.net(x)
        (slope,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        return torch.cat([score, slope.norm(dim=-1, keepdim=True) - 1], -1)


class Generator(nn.Module):
    """A generator seen through a critic that is frozen and has spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        self.net = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
        self.critic = nn.Sequential(norm(nn.Linear(3, 5)), nn.LeakyReLU(0.2), norm(nn.Linear(5, 1)))
        self.critic.requires_grad_(False).eval()

    def forward(self, z: Tensor) -> Tensor:
        return self.critic(self.net(z))


class Mixture(nn.Module):
    """A mixture density network (Bishop, 1994): log-weights, means, log-scales of three normal laws."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(2, 8, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Score(nn.Module):
    """A diffusion model's denoiser (Ho et al., 2020), told of the time by sines and by scale and shift of a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.one, self.two = nn.Linear(4, 12), nn.Linear(3, 6), nn.Linear(6, 3)
        self.norm = nn.LayerNorm(6, elementwise_affine=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * torch.tensor([1.0, 10.0])
        scale, shift = self.time(torch.cat([angles.sin(), angles.cos()], -1)).chunk(2, -1)
        return self.two(F.silu(self.norm(self.one(x)) * (1 + scale) + shift))


class CRF(nn.Module):
    """A conditional random field on a recurrent layer: its output is the log-likelihood of the right sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.emit = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)
        self.move = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor, tags: Tensor) -> Tensor:
        scores = self.emit(self.rnn(x)[0])
        alpha = scores[:, 0]
        for emitted in scores[:, 1:].unbind(1):
            alpha = (alpha[:, :, None] + self.move).logsumexp(1) + emitted
        right = scores.gather(-1, tags[..., None])[..., 0].sum(-1) + self.move[tags[:, :-1], tags[:, 1:]].sum(-1)
        return right - alpha.logsumexp(-1)


class RBM(nn.Module):
    """Free energies of a restricted Boltzmann machine, of data and of what one step of Gibbs makes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.a, self.b = (nn.Parameter(0.5 * torch.randn(*s)) for s in ((5, 4), (5,), (4,)))

    def energy(self, v: Tensor) -> Tensor:
        return -v @ self.a - F.softplus(v @ self.W + self.b).sum(-1)

    def forward(self, v: Tensor) -> Tensor:
        h = torch.bernoulli((v @ self.W + self.b).sigmoid().detach())
        w = torch.bernoulli((h @ self.W.T + self.a).sigmoid().detach())
        return self.energy(v) - self.energy(w)


class Relaxed(nn.Module):
    """A Gumbel-softmax code (Jang et al., 2017), soft."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = mlp(5, 6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(F.gumbel_softmax(self.encode(x).view(-1, 2, 3), tau=0.7).flatten(1))


class Contrast(nn.Module):
    """Two views' normalised codes and a learnt temperature (CLIP): all pairs' logits."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.log_t = mlp(3, 6, 4), mlp(4, 6, 4), nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = F.normalize(self.one(x), dim=-1), F.normalize(self.two(y), dim=-1)
        return self.log_t.exp() * a @ b.T


def density(z: Tensor, y: Tensor) -> Tensor:
    """-log of a normal law at z, less log |det|, which is the last."""
    return z[..., :-1].square().sum(-1) / 2 - z[..., -1]


def elbo(z: Tensor, x: Tensor) -> Tensor:
    logits, mean, logvar = z[..., :5], z[..., 5:7], z[..., 7:]
    fit = (F.softplus(logits) - x * logits).sum(-1)
    return fit + 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(-1)


def mixture(z: Tensor, y: Tensor) -> Tensor:
    weight, mean, log_s = z.unflatten(-1, (3, 3)).unbind(-2)
    each = weight.log_softmax(-1) - log_s - ((y[..., None] - mean) / log_s.exp()).square() / 2
    return -each.logsumexp(-1) + math.log(2 * math.pi) / 2


def critic(z: Tensor, y: Tensor) -> Tensor:
    return y * z[..., 0] + 5.0 * z[..., 1].square()


def flow(model: Callable[[], nn.Module], d: int) -> Callable[[], Case]:
    return lambda: Case(model(), torch.randn(6, d), torch.zeros(6), density)


def code(model: Callable[[], nn.Module], loss: Any) -> Callable[[], Case]:
    return lambda: Case(model(), (x := (torch.rand(4, 5) > 0.5) * 1.0), x, loss)


def quantised() -> Case:
    x = torch.randn(6, 5)
    return Case(VQ(), x, torch.cat([x, torch.zeros(6, 4)], -1), "squares", surrogate=True)


CASES = {
    "Glow, LU": flow(Glow, 4),
    "Planar flow": flow(Planar, 3),
    "Neural spline flow": flow(Spline, 2),
    "Continuous flow, exact divergence": flow(CNF, 2),
    "VAE, its draw inside": code(VAE, elbo),
    "Gumbel-softmax code": code(Relaxed, "yes or no"),
    "VQ-VAE, straight through": quantised,
    "Critic with gradient penalty": lambda: Case(Penalised(), torch.randn(6, 3), torch.tensor([1.0, -1.0] * 3), critic),
    "Generator before a frozen critic": lambda: Case(Generator(), torch.randn(6, 2), torch.ones(6, 1), "yes or no"),
    "Mixture density network": lambda: Case(Mixture(), torch.randn(6, 2), torch.randn(6), mixture),
    "Diffusion's denoiser": lambda: Case(Score(), (torch.randn(5, 3), torch.rand(5)), torch.randn(5, 3), "squares"),
    "Conditional random field": lambda: Case(
        CRF(), (torch.randn(4, 5, 3), torch.randint(3, (4, 5))), torch.zeros(4), lambda z, y: -z
    ),
    "Boltzmann machine, one Gibbs step": code(RBM, lambda z, y: z),
    "CLIP": lambda: Case(Contrast(), (torch.randn(5, 3), torch.randn(5, 4)), torch.arange(5)),
}
