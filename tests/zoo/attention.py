"""Attention and its variants, mixers and memories, in torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .cases import Case

F = nn.functional


class Decoder(nn.Module):
    """nanoGPT's shape: learnt positions, pre-norm, fused attention, tied head; ``mix`` says how places meet."""

    def __init__(self, mix: Callable[[int], nn.Module], d: int = 8, tied: bool = True) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(9, d), nn.Parameter(0.1 * torch.randn(5, d))
        self.norms, self.mix = nn.ModuleList(nn.LayerNorm(d) for _ in range(2)), mix(d)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.head = nn.Linear(d, 9, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places[: tokens.shape[1]]
        x = x + self.mix(self.norms[0](x))
        return self.head(x + self.mlp(self.norms[1](x)))


class Heads(nn.Module):
    """q, k, v by heads; ``attend`` says what becomes of them."""

    def __init__(self, d: int, kv: int = 2) -> None:
        super().__init__()
        self.q, self.kv, self.o, self.size = nn.Linear(d, d), nn.Linear(d, d * kv), nn.Linear(d, d), d // 2

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (-1, self.size)).transpose(1, 2) for t in (self.q(x), *self.kv(x).chunk(2, -1)))
        return self.o(self.attend(q, k, v).transpose(1, 2).flatten(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Grouped(Heads):
    """One head of keys for two of queries, rotated."""

    def __init__(self, d: int) -> None:
        super().__init__(d, kv=1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = rotated(q), rotated(k)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def rotated(x: Tensor) -> Tensor:
    """Rotary positions, as complex numbers."""
    angles = torch.outer(torch.arange(x.shape[-2]), 0.1 ** torch.arange(x.shape[-1] // 2))
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2)


class ALiBi(Heads):
    """Biases that fall with distance (Press et al., 2022)."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        t = torch.arange(q.shape[-2])
        bias = -torch.tensor([0.5, 0.25])[:, None, None] * (t[:, None] - t)
        return F.scaled_dot_product_attention(q, k, v, bias.masked_fill(t > t[:, None], -math.inf))


class Linear(Heads):
    """Linear attention (Katharopoulos et al., 2020), causal by cumulated sums."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = F.elu(q) + 1, F.elu(k) + 1
        kv = torch.einsum("bhtd,bhte->bhtde", k, v).cumsum(2)
        return torch.einsum("bhtd,bhtde->bhte", q, kv) / (q * k.cumsum(2)).sum(-1, keepdim=True)


class Windowed(Heads):
    """A sliding window of three, by unfold."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (F.pad(t, (0, 0, 2, 0)).unfold(2, 3, 1) for t in (k, v))
        weights = torch.einsum("bhtd,bhtdw->bhtw", q, k) / self.size**0.5
        seen = torch.arange(q.shape[2])[:, None] + torch.arange(-2, 1) >= 0
        return torch.einsum("bhtw,bhtdw->bhtd", weights.masked_fill(~seen, -math.inf).softmax(-1), v)


class Retention(Heads):
    """Retention (Sun et al., 2023), with group norm."""

    def __init__(self, d: int) -> None:
        super().__init__(d)
        self.norm = nn.GroupNorm(2, d)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        t = torch.arange(q.shape[-2])
        decay = (1 - 2.0 ** -torch.tensor([2.0, 3.0]))[:, None, None] ** (t[:, None] - t).clamp(min=0)
        made = (q @ k.mT * decay.tril()) @ v
        normed = self.norm(made.permute(0, 2, 1, 3).flatten(2).flatten(0, 1))
        return normed.unflatten(0, (len(q), -1)).unflatten(-1, (2, -1)).permute(0, 2, 1, 3)


class Latent(nn.Module):
    """Multi-head latent attention (DeepSeek-V2): keys and values from a narrow code, RMS norm on it."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.down, self.norm, self.up = nn.Linear(d, 3, bias=False), nn.RMSNorm(3), nn.Linear(3, 2 * d, bias=False)
        self.q, self.o = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.up(self.norm(self.down(x))).unflatten(-1, (2, -1)).transpose(1, 2).chunk(2, -1)
        q = self.q(x).unflatten(-1, (2, -1)).transpose(1, 2)
        return self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Experts(nn.Module):
    """Two of four experts for each token, sparse: each runs on the rows that chose it; with a balancing share."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.router = nn.Linear(d, 4, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, d)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        weights, chosen = self.router(rows).softmax(-1).topk(2)
        weights, made = weights / weights.sum(-1, keepdim=True), torch.zeros_like(rows)
        for i, expert in enumerate(self.experts):
            at, place = torch.where(chosen == i)
            made.index_add_(0, at, weights[at, place, None] * expert(rows[at]))
        return made.view_as(x)


class SoftExperts(nn.Module):
    """Soft mixture of experts (Puigcerver et al., 2024)."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.randn(d, 4))
        self.weight = nn.Parameter(torch.randn(4, d, d) / d**0.5)

    def forward(self, x: Tensor) -> Tensor:
        logits = x @ self.slots
        made = torch.tanh(torch.einsum("bsd,sde->bse", logits.softmax(1).mT @ x, self.weight))
        return logits.softmax(-1) @ made


class Stock(nn.Module):
    """torch's own encoder, with padding, and its decoder with a causal mask."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.tokens = nn.Embedding(9, d, padding_idx=0)
        self.both = nn.Transformer(d, 2, 1, 1, 12, 0.1, batch_first=True, norm_first=True)
        self.head = nn.Linear(d, 9)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        options = {"tgt_mask": mask, "tgt_is_causal": True, "src_key_padding_mask": source == 0}
        return self.head(self.both(self.tokens(source), self.tokens(target), **options))


class Mixer(nn.Module):
    """MLP-Mixer: one map over the places, one over the channels."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.places = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.places(x.mT).mT


class Perceiver(nn.Module):
    """A few latent vectors that attend to what comes in, and to themselves."""

    def __init__(self, d: int = 6) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.randn(3, d))
        self.into, self.inner = (nn.MultiheadAttention(d, 2, batch_first=True) for _ in range(2))
        self.head = nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.latent.expand(len(x), -1, -1)
        z = z + self.into(z, x, x, need_weights=False)[0]
        return self.head((z + self.inner(z, z, z, need_weights=False)[0]).mean(1))


class Hopfield(nn.Module):
    """A modern Hopfield network: three updates of its state towards stored patterns."""

    def __init__(self) -> None:
        super().__init__()
        self.stored, self.beta = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.ones(()))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = (self.beta * x @ self.stored.T).softmax(-1) @ self.stored
        return self.head(x)


def flexible(d: int) -> nn.Module:
    from torch.nn.attention.flex_attention import flex_attention

    class Flexible(Heads):
        def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return flex_attention(q, k, v, lambda score, b, h, i, j: score - 0.1 * (i - j).abs())

    return Flexible(d)


def text(mix: Any, refused: str | None = None, **options: Any) -> Callable[[], Case]:
    def build() -> Case:
        tokens, targets = torch.randint(9, (2, 5)), torch.randint(9, (2, 5))
        return Case(Decoder(mix, **options), tokens, targets, refused=refused)

    return build


def stock() -> Case:
    source = torch.randint(1, 9, (2, 5))
    source[1, 3:] = 0
    return Case(Stock(), (source, torch.randint(1, 9, (2, 4))), torch.randint(9, (2, 4)))


CASES = {
    "nanoGPT": text(Heads),
    "Grouped queries, rotary": text(Grouped),
    "ALiBi": text(ALiBi),
    "Linear attention": text(Linear),
    "Sliding window": text(Windowed),
    "Retention": text(Retention),
    "Latent attention": text(Latent),
    "Mixture of experts, two of four": text(Experts),
    "Soft mixture of experts": text(SoftExperts),
    "MLP-Mixer": text(Mixer, tied=False),
    "nn.Transformer, padded, dropout": stock,
    "Flex attention": text(flexible, refused="calls flex_attention, which has no double backward"),
    "Perceiver": lambda: Case(Perceiver(), torch.randn(3, 7, 6), torch.randint(3, (3,))),
    "Modern Hopfield network": lambda: Case(Hopfield(), torch.randn(5, 4), torch.rand(5, 2), "yes or no"),
}
