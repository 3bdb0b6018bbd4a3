"""A decoder of characters, written once for the arrays of any framework.

    x = embedding[tokens],    x <- x + attention(norm(x)),    x <- x + mlp(norm(x)),    logits = norm(x) head

RMSNorm (eps 1e-6), rotary positions, queries and keys normalised over all of d before they are cut into heads
(LayerNorm with a bias), a GELU perceptron without a gate, a head that is not tied to the embedding, no biases.
Matrices are (inputs, outputs), drawn from N(0, 1 / inputs); the embedding is drawn from N(0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

import linop_gn as lg

__all__ = ["Size", "blocks", "decoder", "drawn"]

NDArray = np.ndarray[Any, Any]

EPS = 1e-6
MASKED = -1e30
"""The score of a position that is yet to come."""


@dataclass(frozen=True)
class Size:
    """How large a decoder is."""

    layers: int
    width: int
    heads: int
    symbols: int = 128

    @property
    def hidden(self) -> int:
        """The width inside of the perceptrons."""
        return 4 * self.width

    @property
    def parameters(self) -> int:
        """How many there are.

        >>> Size(2, 64, 4).parameters
        115520
        """
        d = self.width
        return self.layers * (4 * d * d + 2 * d * self.hidden + 6 * d) + 2 * d * self.symbols + d


def drawn(size: Size, seed: int) -> dict[str, Any]:
    """Parameters to start from, NumPy arrays: a dict of blocks."""
    rng, d = np.random.default_rng([seed, 1]), size.width

    def matrix(inputs: int, outputs: int) -> NDArray:
        return rng.standard_normal((inputs, outputs)) / math.sqrt(inputs)

    def normed() -> dict[str, NDArray]:
        return {"bias": np.zeros(d), "scale": np.ones(d)}

    def block() -> dict[str, Any]:
        return {
            "attention": {name: matrix(d, d) for name in ("keys", "out", "queries", "values")},
            "attention_norm": np.ones(d),
            "key_norm": normed(),
            "mlp": {"down": matrix(size.hidden, d), "up": matrix(d, size.hidden)},
            "mlp_norm": np.ones(d),
            "query_norm": normed(),
        }

    return {
        **{f"block{i}": block() for i in range(size.layers)},
        "embedding": rng.standard_normal((size.symbols, d)),
        "final_norm": np.ones(d),
        "head": matrix(d, size.symbols),
    }


def blocks(size: Size) -> dict[str, list[str]]:
    """The leaves of each block: embedding, each layer (the final norm with the last), head."""
    layers = {f"block{i}": [f"block{i}.*"] for i in range(size.layers)}
    layers[f"block{size.layers - 1}"].append("final_norm")
    return {"embedding": ["embedding"], **layers, "head": ["head"]}


@lru_cache(maxsize=8)
def decoder(size: Size) -> Callable[[Any, Any], Any]:
    """``logits(params, tokens)``: (B, T) characters to (B, T, symbols); one function for a size, and one program."""

    def logits(params: Any, tokens: Any) -> Any:
        xp = lg.namespace(tokens)
        flat = xp.reshape(tokens, (-1,))
        x = xp.reshape(xp.take(params["embedding"], flat, axis=0), (*tokens.shape, size.width))
        positions = _positions(xp, x, size.width // size.heads)
        for i in range(size.layers):
            p = params[f"block{i}"]
            x = x + _attention(xp, p, _rms(xp, x, p["attention_norm"]), size.heads, positions)
            x = x + _gelu(xp, _rms(xp, x, p["mlp_norm"]) @ p["mlp"]["up"]) @ p["mlp"]["down"]
        return _rms(xp, x, params["final_norm"]) @ params["head"]

    return logits


def _attention(xp: Any, p: Any, x: Any, heads: int, positions: tuple[Any, Any, Any]) -> Any:
    count, length, width = x.shape
    cosines, sines, mask = positions

    def cut(y: Any) -> Any:
        return xp.permute_dims(xp.reshape(y, (count, length, heads, width // heads)), (0, 2, 1, 3))

    def turned(y: Any) -> Any:
        half = y.shape[-1] // 2
        a, b = y[..., :half], y[..., half:]
        return xp.concat([a * cosines - b * sines, a * sines + b * cosines], axis=-1)

    matrices = p["attention"]
    q = turned(cut(_layer_norm(xp, x @ matrices["queries"], p["query_norm"])))
    k = turned(cut(_layer_norm(xp, x @ matrices["keys"], p["key_norm"])))
    v = cut(x @ matrices["values"])
    scores = q @ xp.permute_dims(k, (0, 1, 3, 2)) / math.sqrt(width // heads) + mask
    weights = xp.exp(scores)  # that q and k are normalised keeps them small: nothing is taken off
    mixed = (weights / xp.sum(weights, axis=-1, keepdims=True)) @ v
    return xp.reshape(xp.permute_dims(mixed, (0, 2, 1, 3)), (count, length, width)) @ matrices["out"]


def _positions(xp: Any, like: Any, size: int) -> tuple[Any, Any, Any]:
    """Cosines and sines (T, size / 2) of rotary positions, and what is added to scores (T, T)."""
    places = xp.cumulative_sum(xp.ones_like(like[0, :, 0]), axis=0) - 1.0  # 0, 1, ... where the arrays are
    half = xp.cumulative_sum(xp.ones_like(like[0, 0, : size // 2]), axis=0) - 1.0
    angles = places[:, None] * xp.exp(-math.log(10000.0) * half / (size // 2))[None, :]
    later = places[None, :] > places[:, None]
    return xp.cos(angles), xp.sin(angles), MASKED * xp.astype(later, like.dtype)


def _rms(xp: Any, x: Any, scale: Any) -> Any:
    return x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + EPS) * scale


def _layer_norm(xp: Any, x: Any, p: Any) -> Any:
    x = x - xp.mean(x, axis=-1, keepdims=True)
    return _rms(xp, x, p["scale"]) + p["bias"]


def _gelu(xp: Any, x: Any) -> Any:
    """GELU by its tanh formula."""
    return 0.5 * x * (1.0 + xp.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))
