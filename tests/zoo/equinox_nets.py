"""equinox, whose modules are the parameters."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from .cases import Case
from .linen_nets import numbers

K = jax.random.split(jax.random.key(0), 8)


class RNN(eqx.Module):
    """The recurrent example: a scan of cells."""

    cell: eqx.nn.GRUCell
    linear: eqx.nn.Linear

    def __call__(self, xs):
        state, _ = lax.scan(lambda h, x: (self.cell(x, h), None), jnp.zeros(self.cell.hidden_size), xs)
        return self.linear(state)


class ViTBlock(eqx.Module):
    """The vision transformer example's block, with its own positions."""

    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    rope: eqx.nn.RotaryPositionalEmbedding
    mlp: eqx.nn.MLP
    head: eqx.nn.Linear

    def __call__(self, x):
        z = jax.vmap(self.norm)(x)
        x = x + self.attention(z, z, z, process_heads=self.turned)
        return self.head((x + jax.vmap(self.mlp)(x)).mean(0))

    def turned(self, q, k, v):
        turn = jax.vmap(self.rope, in_axes=1, out_axes=1)
        return turn(q), turn(k), v


class UNet(eqx.Module):
    """One level down and up again, transposed convolution, a skip."""

    down: eqx.nn.Conv2d
    inner: eqx.nn.Conv2d
    up: eqx.nn.ConvTranspose2d
    last: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm

    def __call__(self, x):
        a = jax.nn.silu(self.norm(self.down(x)))
        b = jax.nn.silu(self.inner(eqx.nn.AvgPool2d(2, 2)(a)))
        return self.last(jnp.concatenate([a, self.up(b)]))


class DeepONet(eqx.Module):
    """Branch and trunk (Lu et al., 2021), with a bias."""

    branch: eqx.nn.MLP
    trunk: eqx.nn.MLP
    bias: jax.Array

    def __call__(self, u):
        return jax.vmap(self.trunk)(jnp.linspace(0.0, 1.0, 4)[:, None]) @ self.branch(u) + self.bias


class Tied(eqx.Module):
    """A language model whose head is its embedding, by eqx.nn.Shared, as its documentation has it."""

    shared: eqx.nn.Shared

    def __init__(self, key: Any) -> None:
        pair = eqx.nn.Embedding(7, 4, key=key), eqx.nn.Linear(4, 7, key=key)
        self.shared = eqx.nn.Shared(pair, lambda p: p[1].weight, lambda p: p[0].weight)

    def __call__(self, tokens):
        embed, head = self.shared()
        return jax.vmap(head)(jnp.tanh(jax.vmap(embed)(tokens)))


def made(module: Any, x: Any, y: Any, loss: Any = "classes") -> Case:
    module = jax.tree.map(lambda a: jnp.asarray(a, float) if eqx.is_inexact_array(a) else a, module)
    return Case(lambda m, x: jax.vmap(m)(x), x, y, loss, module)


def vit() -> Any:
    attention = eqx.nn.MultiheadAttention(2, 8, key=K[0])
    mlp, head = eqx.nn.MLP(8, 8, 12, 1, jax.nn.gelu, key=K[1]), eqx.nn.Linear(8, 3, key=K[2])
    return ViTBlock(attention, eqx.nn.LayerNorm(8), eqx.nn.RotaryPositionalEmbedding(4), mlp, head)


def unet() -> Any:
    conv = eqx.nn.Conv2d
    down, inner = conv(1, 4, 3, padding=1, key=K[0]), conv(4, 4, 3, padding=1, key=K[1])
    up, last = eqx.nn.ConvTranspose2d(4, 4, 2, 2, key=K[2]), conv(8, 1, 1, key=K[3])
    return UNet(down, inner, up, last, eqx.nn.GroupNorm(2, 4))


def prelu() -> Any:
    layers = [
        eqx.nn.Linear(3, 5, key=K[0]),
        eqx.nn.Lambda(eqx.nn.PReLU()),
        eqx.nn.WeightNorm(eqx.nn.Linear(5, 3, key=K[1])),
    ]
    return eqx.nn.Sequential(layers)


def as_the_model() -> Case:
    module = eqx.nn.MLP(3, 3, 6, 2, key=K[0])
    return Case(module, numbers(5, 3), jnp.arange(5) % 3, "classes", module, refused="Give it as the parameters")


CASES = {
    "MLP, as the model": as_the_model,
    "MLP": lambda: made(eqx.nn.MLP(3, 3, 6, 2, key=K[0]), numbers(5, 3), jnp.arange(5) % 3),
    "CNN": lambda: made(
        eqx.nn.Sequential(
            [
                eqx.nn.Conv2d(1, 3, 3, key=K[0]),
                eqx.nn.MaxPool2d(2, 2),
                eqx.nn.Lambda(jax.nn.relu),
                eqx.nn.Lambda(jnp.ravel),
                eqx.nn.Linear(27, 3, key=K[1]),
            ]
        ),
        numbers(3, 1, 8, 8),
        jnp.arange(3),
    ),
    "GRU in a scan": lambda: made(
        RNN(eqx.nn.GRUCell(2, 4, key=K[0]), eqx.nn.Linear(4, 1, key=K[1])),
        numbers(4, 5, 2),
        (numbers(4, 1) > 0) * 1.0,
        "yes or no",
    ),
    "Vision transformer, rotary": lambda: made(vit(), numbers(3, 4, 8), jnp.arange(3)),
    "U-Net": lambda: made(unet(), numbers(2, 1, 6, 6), numbers(2, 1, 6, 6, seed=2), "squares"),
    "DeepONet": lambda: made(
        DeepONet(eqx.nn.MLP(3, 4, 6, 1, key=K[0]), eqx.nn.MLP(1, 4, 6, 1, jnp.tanh, key=K[1]), jnp.zeros(())),
        numbers(5, 3),
        numbers(5, 4, seed=2),
        "squares",
    ),
    "Tied language model": lambda: made(Tied(K[0]), jnp.arange(8).reshape(2, 4) % 7, jnp.arange(8).reshape(2, 4) % 5),
    "PReLU and weight norm": lambda: made(prelu(), numbers(5, 3), jnp.abs(numbers(5, 3, seed=2)), "counts"),
}
