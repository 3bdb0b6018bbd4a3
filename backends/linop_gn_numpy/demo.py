"""NumPy's part of ``linop-gn demo``: a network with its derivatives written by hand.

NumPy has no derivatives, so the Jacobian's two products come with the model. For
layers z_i = a_(i-1) W_i + b_i and a_i = tanh(z_i), with the forward pass kept::

    J v:    z'_i = a'_(i-1) W_i + a_(i-1) V_i + c_i         a'_i = (1 - a_i^2) z'_i
    J^T u:  W_i: a_(i-1)^T u_i     b_i: sum u_i     u_(i-1) = (u_i W_i^T) (1 - a_(i-1)^2)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import linop_gn as lg
from linop_gn.demo.problem import Batch, Weights

from . import backend

__all__ = ["NumpyParticipant", "participant"]

Array = np.ndarray[Any, Any]


class Perceptron:
    """The network and its products; the newest forward pass is kept, as all products at a point share it."""

    def __init__(self) -> None:
        self._at: tuple[Any, Any] = (None, None)
        self._inputs: list[Array] = []

    def __call__(self, params: Weights, x: Array) -> Array:
        """The logits (examples, classes)."""
        inputs = self._forward(params, x)
        last = list(params.values())[-1]
        return inputs[-1] @ last["weight"] + last["bias"]

    def _forward(self, params: Weights, x: Array) -> list[Array]:
        """What goes into each layer."""
        if self._at[0] is not params or self._at[1] is not x:
            inputs = [x]
            for layer in list(params.values())[:-1]:
                inputs.append(np.tanh(inputs[-1] @ layer["weight"] + layer["bias"]))
            self._at, self._inputs = (params, x), inputs
        return self._inputs

    def jvp(self, params: Weights, x: Array, v: Weights) -> Array:
        """J v, an array like the logits."""
        tangent: Array | None = None
        result = np.zeros(())
        for a, layer, step in zip(self._forward(params, x), params.values(), v.values(), strict=True):
            result = a @ step["weight"] + step["bias"]
            if tangent is not None:
                result += ((1.0 - a * a) * tangent) @ layer["weight"]
            tangent = result
        return result

    def vjp(self, params: Weights, x: Array, u: Array) -> Weights:
        """J^T u, a tree like the parameters."""
        products: Weights = {}
        inputs = self._forward(params, x)
        for a, (name, layer) in zip(reversed(inputs), reversed(params.items()), strict=True):
            products[name] = {"weight": a.T @ u, "bias": u.sum(axis=0)}
            if a is not x:
                u = (u @ layer["weight"].T) * (1.0 - a * a)
        return {name: products[name] for name in params}


class NumpyParticipant:
    """See :class:`linop_gn.demo.participants.Participant`."""

    backend = backend
    optimizers: Sequence[str] = ()
    packages = ("numpy",)

    def params(self, start: Weights) -> Weights:
        """The weights as they are."""
        return start

    def weights(self, tree: Weights) -> Weights:
        """The tree as it is."""
        return tree

    def objective(self, data: Batch, start: Weights) -> lg.Objective:
        network = Perceptron()
        return lg.Objective(network, lg.losses.CrossEntropy(), data, jvp=network.jvp, vjp=network.vjp)


participant = NumpyParticipant()
