"""flax nnx, split as its guides split it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from .cases import Case
from .linen_nets import numbers


class MLP(nnx.Module):
    """The first example: linear, batch norm, dropout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.norm = nnx.Linear(3, 6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)
        self.drop, self.last = nnx.Dropout(0.2, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.drop(self.norm(self.first(x)))))


class CNN(nnx.Module):
    """The MNIST tutorial."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1, self.conv2 = nnx.Conv(1, 4, (3, 3), rngs=rngs), nnx.Conv(4, 6, (3, 3), rngs=rngs)
        self.linear1, self.linear2 = nnx.Linear(24, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.avg_pool(nnx.relu(self.conv1(x)), (2, 2), (2, 2))
        x = nnx.avg_pool(nnx.relu(self.conv2(x)), (2, 2), (2, 2))
        return self.linear2(nnx.relu(self.linear1(x.reshape(len(x), -1))))


class Block(nnx.Module):
    """A decoder's block."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.one, self.two = nnx.LayerNorm(4, rngs=rngs), nnx.RMSNorm(4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.one(x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.down(nnx.silu(self.up(self.two(x))))


class GPT(nnx.Module):
    """The miniGPT tutorial, with a head that is tied."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.tokens, self.places = nnx.Embed(7, 4, rngs=rngs), nnx.Embed(4, 4, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])

    def __call__(self, tokens):
        x = self.tokens(tokens) + self.places(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.tokens.attend(x)


class Tuned(nnx.Module):
    """LoRA on a frozen layer."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.base = nnx.LoRALinear(3, 5, lora_rank=2, rngs=rngs)
        self.head = nnx.LoRALinear(5, 3, lora_rank=1, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.base(x)))


class Recurrent(nnx.Module):
    """An LSTM over time."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.rnn, self.head = (
            nnx.RNN(nnx.OptimizedLSTMCell(2, 4, param_dtype=float, rngs=rngs)),
            nnx.Linear(4, 2, rngs=rngs),
        )

    def __call__(self, x):
        return self.head(self.rnn(x))


class Stacked(nnx.Module):
    """Layers made by nnx.vmap and run by nnx.scan."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def layers(rngs):
            return nnx.Linear(4, 4, rngs=rngs)

        self.layers = layers(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, layer):
            return x + jnp.tanh(layer(x))

        return run(x, self.layers)


def made(kind: Any, x: Any, y: Any, trained: Any = nnx.Param, loss: Any = "classes", eps: float = 2.0**-52) -> Case:
    graph, params, rest = nnx.split(kind(nnx.Rngs(0)), trained, ...)
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(3), a.shape), params)
    return Case(lambda p, x: nnx.merge(graph, p, rest, copy=True)(x), x, y, loss, params, eps)


def unsplit() -> Case:
    module = MLP(nnx.Rngs(0))
    return Case(module, numbers(5, 3), jnp.arange(5) % 3, "classes", nnx.state(module, nnx.Param), refused="Split it")


CASES = {
    "MLP, not split": unsplit,
    "MLP, batch norm and dropout in training": lambda: made(MLP, numbers(5, 3), jnp.arange(5) % 3),
    "MNIST's CNN": lambda: made(CNN, numbers(3, 8, 8, 1), jnp.arange(3)),
    "miniGPT": lambda: made(GPT, jnp.arange(8).reshape(2, 4) % 7, jnp.arange(8).reshape(2, 4) % 5, eps=2.0**-23),
    "LoRA": lambda: made(Tuned, numbers(5, 3), jnp.arange(5) % 3, nnx.LoRAParam),
    "LSTM": lambda: made(Recurrent, numbers(3, 5, 2), numbers(3, 5, 2, seed=2), loss="squares"),
    "Stack in a scan": lambda: made(Stacked, numbers(3, 4), numbers(3, 4, seed=2), loss="squares"),
}
