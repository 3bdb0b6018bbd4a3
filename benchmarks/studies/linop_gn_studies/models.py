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

__all__ = ["mlp", "normal", "scaled_normal", "sparse"]

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
