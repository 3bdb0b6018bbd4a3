"""Small networks for every framework from one parameter set, and their dense Jacobians in float64 NumPy.

Nothing here uses the package's derivatives. Networks are written once on the array-API namespace of their inputs
and are analytic, so that the complex step gives Jacobians to rounding, in plain NumPy, a column at a time.

Keys of parameter dicts are in alphabetical order: frameworks that sort them then have the same flat vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import linop_gn as lg


class Network(NamedTuple):
    """A model, the shapes of its parameters (a tree of them), its inputs for a batch, and the shape of one output."""

    model: Callable[[Any, Any], Any]
    shapes: Any
    inputs: Callable[[np.random.Generator, int], Any]
    outputs: tuple[int, ...]

    def params(self, seed: int) -> Any:
        rng = np.random.default_rng(seed)
        return fill(self.shapes, lambda shape: np.array(rng.standard_normal(shape) / math.sqrt([1, *shape][-1])))


def fill(shapes: Any, make: Callable[[tuple[int, ...]], Any]) -> Any:
    if isinstance(shapes, dict):
        return {key: fill(value, make) for key, value in shapes.items()}
    if isinstance(shapes, list):
        return [fill(value, make) for value in shapes]
    return make(shapes)


def leaves(tree: Any) -> list[Any]:
    """Leaves in the order that all frameworks agree on."""
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in leaves(tree[key])]
    if isinstance(tree, list):
        return [leaf for item in tree for leaf in leaves(item)]
    return [tree]


def like(tree: Any, flat: np.ndarray[Any, Any]) -> Any:
    """The tree whose leaves, in order, are cut from a flat vector."""
    parts = iter(np.split(flat, np.cumsum([np.size(leaf) for leaf in leaves(tree)])[:-1]))
    return _like(tree, parts)


def _like(tree: Any, parts: Any) -> Any:
    if isinstance(tree, dict):
        made = {key: _like(tree[key], parts) for key in sorted(tree)}
        return {key: made[key] for key in tree}
    if isinstance(tree, list):
        return [_like(item, parts) for item in tree]
    return next(parts).reshape(np.shape(tree))


def flat(tree: Any) -> np.ndarray[Any, Any]:
    return np.concatenate([np.reshape(leaf, -1) for leaf in leaves(tree)])


# the networks


def mlp(p: Any, x: Any) -> Any:
    xp = lg.namespace(x)
    return xp.tanh(x @ p["fc1"]["weight"] + p["fc1"]["bias"]) @ p["fc2"]["weight"] + p["fc2"]["bias"]


def convolutional(p: Any, x: Any) -> Any:
    """Two 1-d convolutions of width 3 over (B, T, channels), pooled."""
    xp = lg.namespace(x)
    for name in ("conv1", "conv2"):
        kernel, length = p[name]["kernel"], x.shape[1] - 2
        x = xp.tanh(sum(x[:, k : k + length, :] @ kernel[k, :, :] for k in range(3)) + p[name]["bias"])
    return xp.mean(x, axis=1) @ p["head"]


def _normalised(xp: Any, x: Any) -> Any:
    centred = x - xp.mean(x, axis=-1, keepdims=True)
    return centred / xp.sqrt(xp.mean(centred * centred, axis=-1, keepdims=True) + 1e-3)


def transformer(p: Any, tokens: Any) -> Any:
    """Tokens (B, T) to logits (B, T, V): attention and MLP blocks on a residual stream, embedding and head tied."""
    xp = lg.namespace(tokens)
    B, T = tokens.shape
    x = xp.reshape(xp.take(p["embedding"], xp.reshape(tokens, (-1,)), axis=0), (B, T, -1))
    for block in p["h"]:
        z = _normalised(xp, x)
        q, k, v = (z @ block["attn"][name] for name in ("q", "k", "v"))
        scores = xp.exp(q @ xp.permute_dims(k, (0, 2, 1)) / 2.0)
        x = x + (scores / xp.sum(scores, axis=-1, keepdims=True)) @ v
        x = x + xp.tanh(_normalised(xp, x) @ block["mlp"])
    return _normalised(xp, x) @ xp.permute_dims(p["embedding"], (1, 0))


def residual(p: Any, x: Any) -> Any:
    """Parameters in a list, the first of them a number; x + a sin(x W)."""
    xp = lg.namespace(x)
    for weight in p[1:]:
        x = x + p[0] * xp.sin(x @ weight)
    return x


def single(w: Any, x: Any) -> Any:
    """One array is all the parameters."""
    xp = lg.namespace(x)
    return xp.tanh(x @ w)


def decay(rate: Any, x: Any) -> Any:
    """One 0-d array is all the parameters."""
    xp = lg.namespace(x)
    return xp.exp(rate * x)


def _floats(*shape: int) -> Callable[[np.random.Generator, int], Any]:
    return lambda rng, batch: rng.standard_normal((batch, *shape))


def _tokens(rng: np.random.Generator, batch: int) -> Any:
    return rng.integers(0, 5, (batch, 3))


_BLOCK = {"attn": {"k": (3, 3), "q": (3, 3), "v": (3, 3)}, "mlp": (3, 3)}

# Compiling two blocks takes as long as all the others: what compiles tests one.
NETWORKS: dict[str, Network] = {
    "mlp": Network(
        mlp,
        {"fc1": {"bias": (4,), "weight": (3, 4)}, "fc2": {"bias": (3,), "weight": (4, 3)}},
        _floats(3),
        (3,),
    ),
    "convolutional": Network(
        convolutional,
        {
            "conv1": {"bias": (3,), "kernel": (3, 2, 3)},
            "conv2": {"bias": (2,), "kernel": (3, 3, 2)},
            "head": (2, 3),
        },
        _floats(7, 2),
        (3,),
    ),
    "attention": Network(transformer, {"embedding": (5, 3), "h": [_BLOCK]}, _tokens, (3, 5)),
    "transformer": Network(transformer, {"embedding": (5, 3), "h": [_BLOCK, _BLOCK]}, _tokens, (3, 5)),
    "residual": Network(residual, [(), (3, 3), (3, 3)], _floats(3), (3,)),
    "single": Network(single, (3, 2), _floats(3), (2,)),
    "decay": Network(decay, (), _floats(2), (2,)),
}


def jacobian(model: Callable[[Any, Any], Any], params: Any, x: Any) -> np.ndarray[Any, Any]:
    """Dense (outputs.size, n) by the complex step: a column for each parameter."""
    at = flat(params).astype(np.complex128)
    columns = []
    for j in range(at.size):
        z = at.copy()
        z[j] += 1e-100j
        columns.append(np.asarray(model(like(params, z), x)).reshape(-1).imag / 1e-100)
    return np.stack(columns, axis=1)


def close(got: Any, want: Any, tolerance: float, size: float | None = None) -> None:
    """Assert that arrays agree to ``tolerance`` of the largest entry, or of ``size``."""
    got, want = np.asarray(got, dtype=float), np.asarray(want, dtype=float)
    assert got.shape == want.shape, (got.shape, want.shape)
    scale = max(float(abs(want).max()) if size is None else size, 1e-300)
    assert np.isfinite(got).all()
    assert float(abs(got - want).max()) <= tolerance * scale, float(abs(got - want).max()) / scale
