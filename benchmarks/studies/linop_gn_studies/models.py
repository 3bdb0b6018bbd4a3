"""Networks written once, for the arrays of any framework, and starts that are drawn once, on the host.

Parameters are dicts of layers; every network is a function ``(params, x) -> outputs`` of arrays that lead to their
namespace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

import linop_gn as lg

__all__ = ["convolutional", "mlp", "normal", "scaled_normal", "sparse", "uniform"]

NDArray = np.ndarray[Any, Any]
Start = dict[str, dict[str, NDArray]]


@cache
def mlp(activation: str, linear: tuple[int, ...] = ()) -> Callable[[Any, Any], Any]:
    """A perceptron with ``activation`` (``"relu"``, ``"tanh"``, ``"sigmoid"``) after all layers but the last one.

    ``linear``: the numbers of other layers that have none, such as an autoencoder's code. The same function each time:
    a program that was compiled for it serves other seeds and learning rates too.
    """
    function = _ACTIVATIONS[activation]

    def network(params: Any, x: Any) -> Any:
        xp, last = lg.namespace(x), len(params) - 1
        for i in range(last + 1):
            x = x @ params[f"layer{i}"]["weight"] + params[f"layer{i}"]["bias"]
            x = x if i == last or i in linear else function(xp, x)
        return x

    return network


@cache
def convolutional(side: int, channels: int = 1) -> Callable[[Any, Any], Any]:
    """Convolutions without padding, each with ReLU and maxima over 2 x 2, then a ReLU perceptron.

    A convolution is a product with the patches of the image, which are taken out of it by their indices.
    """
    function, dense = _ACTIVATIONS["relu"], mlp("relu")

    def network(params: Any, x: Any) -> Any:
        xp, size = lg.namespace(x), side
        layers = dict(params)
        for name in [name for name in layers if name.startswith("conv")]:
            layer = layers.pop(name)
            k, _, old, new = layer["weight"].shape
            places, left = _patches(size, k), size - k + 1
            x = xp.reshape(x, (-1, size * size, old))
            x = xp.take(x, xp.asarray(places, device=getattr(x, "device", None)), axis=1)  # tracers have none
            x = xp.reshape(x, (-1, left * left, k * k * old)) @ xp.reshape(layer["weight"], (-1, new))
            size = left // 2
            x = xp.reshape(function(xp, x + layer["bias"]), (-1, size, 2, size, 2, new))
            x = xp.max(xp.max(x, axis=4), axis=2)
        return dense(layers, xp.reshape(x, (x.shape[0], -1)))

    return network


@cache
def _patches(side: int, k: int) -> NDArray:
    """Where the pixels of all k x k patches are, patch after patch.

    >>> _patches(3, 2).reshape(4, 4).tolist()
    [[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]
    """
    corner, pixel = ((np.arange(n)[:, None] * side + np.arange(n)).reshape(-1) for n in (side - k + 1, k))
    return (corner[:, None] + pixel).reshape(-1)


def uniform(
    side: int, filters: Sequence[tuple[int, int]], widths: Sequence[int], seed: int, channels: int = 1
) -> Start:
    """A start of ``convolutional``: filters (size, count), then dense layers of these widths; biases zero.

    Uniform in +-sqrt(6 / b), b all entries of a convolution's weight; of a dense layer its inputs and the classes.
    """
    rng, made, channels = np.random.default_rng([seed, 1]), {}, 1
    for i, (k, new) in enumerate(filters):
        shape = (k, k, channels, new)
        bound = (6.0 / np.prod(shape)) ** 0.5
        made[f"conv{i}"] = {"bias": np.zeros(new), "weight": rng.uniform(-bound, bound, shape)}
        side, channels = (side - k + 1) // 2, new

    def weight(shape: tuple[int, int]) -> NDArray:
        bound = (6.0 / (shape[0] + widths[-1])) ** 0.5
        return rng.uniform(-bound, bound, shape)

    return made | _layers([side * side * channels, *widths], weight)


def scaled_normal(widths: Sequence[int], seed: int) -> Start:
    """Weights of deviation 1 / sqrt(inputs), cut off at twice that (flax's ``lecun_normal``), biases zero."""
    rng = np.random.default_rng([seed, 1])

    def weight(shape: tuple[int, int]) -> NDArray:
        drawn: NDArray = rng.standard_normal(shape)
        while (far := abs(drawn) > 2).any():
            drawn[far] = rng.standard_normal(int(far.sum()))
        cut = 0.8796256610342398  # the deviation of what is cut off there
        drawn /= cut * shape[0] ** 0.5
        return drawn

    return _layers(widths, weight)


def normal(widths: Sequence[int], seed: int) -> Start:
    """Weights N(0, 1), biases zero."""
    return _layers(widths, np.random.default_rng([seed, 1]).standard_normal)


def sparse(widths: Sequence[int], seed: int, incoming: int = 15) -> Start:
    """So many incoming weights N(0, 1) of each unit, drawn with repetition, the others and all biases zero."""
    rng = np.random.default_rng([seed, 1])

    def weight(shape: tuple[int, int]) -> NDArray:
        made, units = np.zeros(shape), np.arange(shape[1])
        made[rng.integers(shape[0], size=(incoming, shape[1])), units] = rng.standard_normal((incoming, shape[1]))
        return made

    return _layers(widths, weight)


def _layers(widths: Sequence[int], weight: Callable[[tuple[int, int]], NDArray]) -> Start:
    return {f"layer{i}": {"bias": np.zeros(pair[1]), "weight": weight(pair)} for i, pair in enumerate(pairwise(widths))}


def _sigmoid(xp: Any, x: Any) -> Any:
    return 0.5 * (1.0 + xp.tanh(0.5 * x))  # overflows nowhere


_ACTIVATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "relu": lambda xp, x: xp.where(x > 0, x, 0.0 * x),
    "tanh": lambda xp, x: xp.tanh(x),
    "sigmoid": _sigmoid,
}
