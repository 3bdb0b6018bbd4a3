"""The demo's network with its derivatives written by hand, for arrays whose framework has none.

The Jacobian's two products come with the model. For layers
z_i = a_(i-1) W_i + b_i and a_i = tanh(z_i), each after a forward pass::

    J v:    z'_i = a'_(i-1) W_i + a_(i-1) V_i + c_i         a'_i = (1 - a_i^2) z'_i
    J^T u:  W_i: a_(i-1)^T u_i     b_i: sum u_i     u_(i-1) = (u_i W_i^T) (1 - a_(i-1)^2)

Written once against the array-API namespace: NumPy's and CuPy's participants differ in their arrays alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optree

from ...curvature.losses import CrossEntropy
from ...curvature.objective import Objective
from ...protocols import Array, Backend, Tree
from .problem import Batch, Weights
from .runs import Plan, Run

__all__ = ["ByHand", "Perceptron"]

Layers = dict[str, dict[str, Array]]


class Perceptron:
    """The network and its products."""

    def __init__(self, xp: Any) -> None:
        self.xp = xp

    def __call__(self, params: Layers, x: Array) -> Array:
        """The logits (examples, classes)."""
        inputs = self._forward(params, x)
        last = list(params.values())[-1]
        return inputs[-1] @ last["weight"] + last["bias"]

    def _forward(self, params: Layers, x: Array) -> list[Array]:
        """What goes into each layer."""
        inputs = [x]
        for layer in list(params.values())[:-1]:
            inputs.append(self.xp.tanh(inputs[-1] @ layer["weight"] + layer["bias"]))
        return inputs

    def jvp(self, params: Layers, x: Array, v: Layers) -> Array:
        """J v, an array like the logits."""
        tangent: Array | None = None
        result: Array = None
        for a, layer, step in zip(self._forward(params, x), params.values(), v.values(), strict=True):
            result = a @ step["weight"] + step["bias"]
            if tangent is not None:
                result += ((1.0 - a * a) * tangent) @ layer["weight"]
            tangent = result
        return result

    def vjp(self, params: Layers, x: Array, u: Array) -> Layers:
        """J^T u, a tree like the parameters."""
        products: Layers = {}
        inputs = self._forward(params, x)
        for a, (name, layer) in zip(reversed(inputs), reversed(params.items()), strict=True):
            products[name] = {"weight": a.T @ u, "bias": self.xp.sum(u, axis=0)}
            if a is not x:
                u = (u @ layer["weight"].T) * (1.0 - a * a)
        return {name: products[name] for name in params}


class ByHand:
    """A :class:`~linop_gn.app.demo.participants.Participant` for a backend without derivatives."""

    optimizers: Sequence[str] = ()

    def __init__(self, backend: Backend, packages: Sequence[str]) -> None:
        self.backend, self.packages = backend, packages

    def params(self, start: Weights) -> Tree:
        """The same tree, of the backend's arrays."""
        return self._arrays(start)

    def weights(self, tree: Tree) -> Weights:
        """The same tree, of NumPy arrays."""
        read: Weights = self.backend.read(tree)
        return read

    def objective(self, data: Batch, start: Weights) -> Objective:
        network = Perceptron(self.backend.namespace())
        return Objective(network, CrossEntropy(), self._arrays(data), jvp=network.jvp, vjp=network.vjp)

    def train(self, plan: Plan, start: Weights, data: Batch) -> Run:
        """Never asked for, as there are no optimizers."""
        raise NotImplementedError("a participant without first-order methods trains by Levenberg-Marquardt alone")

    def _arrays(self, tree: Any) -> Any:
        return optree.tree_map(lambda x: self.backend.asarray(x, str(x.dtype)), tree)
