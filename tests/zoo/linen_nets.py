"""flax linen, as its guides write it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from .cases import Case

KEY = jax.random.key(0)


class CNN(nn.Module):
    """The MNIST example."""

    @nn.compact
    def __call__(self, x):
        x = nn.avg_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.avg_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(3)(nn.relu(nn.Dense(8)(x.reshape(len(x), -1))))


class ResNetBlock(nn.Module):
    """The ImageNet example's block, with statistics that train."""

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Conv(4, (3, 3), use_bias=False)(x)))
        y = nn.BatchNorm(use_running_average=False, scale_init=nn.initializers.ones)(nn.Conv(4, (3, 3))(y))
        return nn.Dense(3)(nn.relu(nn.Conv(4, (1, 1))(x) + y).mean((1, 2)))


class Encoder(nn.Module):
    """Pre-norm attention blocks, dropout, tied embedding."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(7, 4)
        x = embed(tokens)
        for _ in range(2):
            attend = nn.MultiHeadDotProductAttention(2, dropout_rate=0.1, deterministic=False)
            x = x + attend(nn.LayerNorm()(x), mask=nn.make_causal_mask(tokens))
            x = x + nn.Dropout(0.1, deterministic=False)(nn.Dense(4)(nn.gelu(nn.Dense(8)(nn.LayerNorm()(x)))))
        return embed.attend(x)


class Recurrent(nn.Module):
    """The sequence example: a bidirectional scan of cells over sequences of several lengths."""

    cell: Any

    @nn.compact
    def __call__(self, x, lengths):
        both = nn.Bidirectional(*(nn.RNN(self.cell(4, param_dtype=float)) for _ in range(2)))
        return nn.Dense(2)(both(x, seq_lengths=lengths))


class VAE(nn.Module):
    """The VAE example, its draw from a key of its own; outputs are logits, mean and log-variance."""

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(6)(x))
        mean, logvar = nn.Dense(2)(h), nn.Dense(2)(h)
        z = mean + jnp.exp(logvar / 2) * jax.random.normal(self.make_rng("dropout"), mean.shape)
        return jnp.concatenate([nn.Dense(5)(nn.relu(nn.Dense(6)(z))), mean, logvar], -1)


class Lifted(nn.Module):
    """Layers in nn.scan, rematerialised by nn.remat, with weight and spectral norm around dense ones."""

    @nn.compact
    def __call__(self, x):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return x + jnp.tanh(nn.WeightNorm(nn.Dense(4))(x)), None

        stack = nn.scan(nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return nn.Dense(3)(nn.GroupNorm(2)(stack()(x, None)[0]))


def negative_elbo(z: Any, x: Any) -> Any:
    logits, mean, logvar = z[..., :5], z[..., 5:7], z[..., 7:]
    fit = (jnp.logaddexp(logits, 0.0) - x * logits).sum(-1)
    return fit + 0.5 * (mean**2 + jnp.exp(logvar) - logvar - 1).sum(-1)


def numbers(*shape: int, seed: int = 1) -> Any:
    return jax.random.normal(jax.random.key(seed), shape)


def made(module: Any, x: Any, y: Any, loss: Any = "classes", trains: bool = False) -> Case:
    """A module as it is, or, where it writes statistics or draws, as its own guide calls it."""
    inputs = x if isinstance(x, tuple) else (x,)
    variables = dict(module.init({"params": KEY, "dropout": KEY}, *inputs))
    params = jax.tree.map(lambda a: jnp.asarray(a, float), variables.pop("params"))
    if not trains:
        return Case(module, x, y, loss, params)

    def model(params, x):
        return module.apply({"params": params, **variables}, x, mutable=list(variables), rngs={"dropout": KEY})[0]

    return Case(model, x, y, loss, params)


CASES = {
    "MNIST's CNN": lambda: made(CNN(), numbers(3, 8, 8, 1), jnp.arange(3)),
    "Residual block, statistics of the batch": lambda: made(
        ResNetBlock(), numbers(3, 5, 5, 2), jnp.arange(3), trains=True
    ),
    "Transformer encoder, dropout": lambda: made(
        Encoder(), jnp.arange(8).reshape(2, 4) % 7, jnp.arange(8).reshape(2, 4) % 5, trains=True
    ),
    "LSTM, both ways, several lengths": lambda: made(
        Recurrent(nn.OptimizedLSTMCell), (numbers(3, 5, 2), jnp.array([5, 2, 3])), jnp.zeros((3, 5), int)
    ),
    "GRU, both ways, several lengths": lambda: made(
        Recurrent(nn.GRUCell), (numbers(3, 5, 2), jnp.array([5, 2, 3])), jnp.ones((3, 5), int)
    ),
    "VAE": lambda: made(VAE(), numbers(4, 5) > 0, numbers(4, 5) > 0, negative_elbo, trains=True),
    "Scan of rematerialised layers, weight norm": lambda: made(Lifted(), numbers(4, 4), jnp.arange(4) % 3),
}
