"""Networks written once, for the arrays of any framework, and starts that are drawn once, on the host.

Parameters are dicts of layers; every network is a function ``(params, x) -> outputs`` of arrays that lead to their
namespace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

import linop_gn as lg

__all__ = ["mlp", "normal", "scaled_normal"]

NDArray = np.ndarray[Any, Any]
Start = dict[str, dict[str, NDArray]]


def mlp(activation: str) -> Callable[[Any, Any], Any]:
    """A perceptron with ``activation`` (``"relu"``, ``"tanh"``, ``"sigmoid"``) between its layers."""
    function = _ACTIVATIONS[activation]

    def network(params: Any, x: Any) -> Any:
        xp, (*hidden, last) = lg.namespace(x), params.values()
        for layer in hidden:
            x = function(xp, x @ layer["weight"] + layer["bias"])
        return x @ last["weight"] + last["bias"]

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


def _layers(widths: Sequence[int], weight: Callable[[tuple[int, int]], NDArray]) -> Start:
    return {f"layer{i}": {"bias": np.zeros(pair[1]), "weight": weight(pair)} for i, pair in enumerate(pairwise(widths))}


def _sigmoid(xp: Any, x: Any) -> Any:
    return 0.5 * (1.0 + xp.tanh(0.5 * x))  # overflows nowhere


_ACTIVATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "relu": lambda xp, x: xp.where(x > 0, x, 0.0 * x),
    "tanh": lambda xp, x: xp.tanh(x),
    "sigmoid": _sigmoid,
}
