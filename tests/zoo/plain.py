"""The architectures by their own framework's plain first derivatives: what products are held against.

Nothing here uses the package. Outputs, gradient and the rows of J are forward and plain reverse mode; H_L is the
Hessian of the framework's own loss at the outputs. What second derivatives of the model are needed are differences
of gradients, which the caller takes.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from .cases import Case

Array = np.ndarray[Any, Any]


def picked(outputs: Any) -> Any:
    """The array among what a model returns."""
    if hasattr(outputs, "shape"):
        return outputs
    logits = getattr(outputs, "logits", None)
    return next(iter(outputs.values()) if hasattr(outputs, "values") else iter(outputs)) if logits is None else logits


class TorchPlain:
    """A module of torch, its parameters one flat vector in the order of ``named_parameters``."""

    def __init__(self, case: Case) -> None:
        import torch

        self.torch, self.case, self.module = torch, case, copy.deepcopy(case.model)
        self.named = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self.leaves = list(self.named.values())
        self.dtype = self.leaves[0].dtype
        self.buffers = [(b, b.clone()) for b in self.module.buffers()]
        self.start = self.flat(self.named)
        self.moves = self.flat(self._moves())

    def _moves(self) -> dict[str, Any]:
        """Ones, and zeros for the rows that torch holds still: those at ``padding_idx``."""
        made = {name: self.torch.ones(p.shape) for name, p in self.named.items()}
        for name, m in self.module.named_modules():
            if getattr(m, "padding_idx", None) is not None and f"{name}.weight" in made:
                made[f"{name}.weight"][m.padding_idx] = 0.0
        return made

    def flat(self, tree: Any) -> Array:
        """A tree of the package's, or of ours, as one vector."""
        return np.concatenate([tree[name].detach().double().numpy().reshape(-1) for name in self.named])

    def tree(self, x: Array) -> Any:
        """The tree of a flat vector."""
        parts = np.split(x, np.cumsum([p.numel() for p in self.leaves])[:-1])
        made = (self.torch.from_numpy(part.copy()).to(self.dtype) for part in parts)
        return {name: t.reshape(p.shape) for (name, p), t in zip(self.named.items(), made, strict=True)}

    @property
    def sizes(self) -> list[tuple[str, int]]:
        return [(name, p.numel()) for name, p in self.named.items()]

    def _run(self, x: Array) -> Any:
        tree = self.tree(x)
        with self.torch.no_grad():
            for name, p in self.named.items():
                p.copy_(tree[name])
            for b, old in self.buffers:
                b.copy_(old)
        self.torch.manual_seed(0)
        inputs = self.case.inputs
        if self.case.residuals is not None:
            return self.case.residuals(self.named)
        if isinstance(inputs, dict):
            return picked(self.module(**inputs))
        return picked(self.module(*inputs) if isinstance(inputs, tuple) else self.module(inputs))

    def loss(self, z: Any) -> Any:
        """The mean loss of outputs."""
        F, y, loss = self.torch.nn.functional, self.case.targets, self.case.loss
        if self.case.residuals is not None:
            return 0.5 * z.square().sum()
        if callable(loss):
            return loss(z, y).mean()
        if loss == "classes":
            return F.cross_entropy(z.reshape(-1, z.shape[-1]), y.reshape(-1))
        if loss == "squares":
            return 0.5 * (z - y).square().sum() / z.shape[0]
        if loss == "yes or no":
            return F.binary_cross_entropy_with_logits(z, y)
        return F.poisson_nll_loss(z, y)

    def outputs(self, x: Array) -> Array:
        with self.torch.enable_grad():  # a model may differentiate inside
            return self._run(x).detach().double().numpy()

    def value(self, x: Array) -> Array:
        return np.asarray(float(self.loss(self._run(x)).detach()))

    def gradient(self, x: Array) -> Array:
        return self._back([self.loss(self._run(x))], None)

    def jacobian(self, x: Array) -> Array:
        """(m, n), row by row."""
        z = self._run(x).reshape(-1)
        return np.stack([self._back([entry], True) for entry in z])

    def _back(self, outputs: Any, keep: bool | None) -> Array:
        made = self.torch.autograd.grad(outputs, self.leaves, retain_graph=keep, materialize_grads=True)
        return self.flat(dict(zip(self.named, made, strict=True)))

    def loss_hessian(self, x: Array) -> Array:
        """(m, m)."""
        z = self._run(x).detach().double()
        return self.torch.autograd.functional.hessian(self.loss, z).reshape(z.numel(), z.numel()).numpy()


class JaxPlain:
    """A function of JAX; the floating-point arrays of its parameters are one flat vector."""

    def __init__(self, case: Case) -> None:
        import jax
        import jax.numpy as jnp

        self.jax, self.jnp, self.case = jax, jnp, case
        self.at, self.structure = jax.tree.flatten(case.params)
        self.varies = [isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in self.at]
        self.start = self.flat(case.params)
        self.moves = np.ones_like(self.start)
        self._outputs = jax.jit(lambda x: picked(self._run(x)))
        self._value = jax.jit(lambda x: self.loss(self._run(x)))
        self._gradient = jax.jit(jax.grad(lambda x: self.loss(self._run(x))))
        self._jacobian = jax.jit(jax.jacrev(lambda x: self._run(x).reshape(-1)))

    def flat(self, tree: Any) -> Array:
        leaves = self.jax.tree.leaves(tree)
        leaves = [leaf for leaf in leaves if isinstance(leaf, self.jax.Array) and leaf.dtype.kind == "f"]
        return np.concatenate([np.asarray(leaf, dtype=float).reshape(-1) for leaf in leaves])

    def tree(self, x: Any) -> Any:
        x, leaves, begin = self.jnp.asarray(x), [], 0
        for leaf, varies in zip(self.at, self.varies, strict=True):
            size = leaf.size if varies else 0
            leaves.append(self.jnp.reshape(x[begin : begin + size], leaf.shape) if varies else leaf)
            begin += size
        return self.structure.unflatten(leaves)

    @property
    def sizes(self) -> list[tuple[str, int]]:
        return [(str(i), leaf.size) for i, leaf in enumerate(self.at) if self.varies[i]]

    def _run(self, x: Any) -> Any:
        if self.case.residuals is not None:
            return self.case.residuals(self.tree(x))
        model, inputs = self.case.model, self.case.inputs
        if hasattr(model, "apply"):  # a module of flax linen
            return model.apply({"params": self.tree(x)}, *(inputs if isinstance(inputs, tuple) else (inputs,)))
        return model(self.tree(x), inputs)

    def loss(self, z: Any) -> Any:
        """The mean loss of outputs."""
        jax, jnp, y, loss = self.jax, self.jnp, self.case.targets, self.case.loss
        if self.case.residuals is not None:
            return 0.5 * (z**2).sum()
        if callable(loss):
            return loss(z, y).mean()
        if loss == "classes":
            return -jnp.take_along_axis(jax.nn.log_softmax(z), y[..., None], -1).mean()
        if loss == "squares":
            return 0.5 * ((z - y) ** 2).sum() / z.shape[0]
        if loss == "yes or no":
            return -(y * jax.nn.log_sigmoid(z) + (1 - y) * jax.nn.log_sigmoid(-z)).mean()
        return (jnp.exp(z) - y * z).mean()

    def outputs(self, x: Array) -> Array:
        return np.asarray(self._outputs(x), dtype=float)

    def value(self, x: Array) -> Array:
        return np.asarray(self._value(x), dtype=float)

    def gradient(self, x: Array) -> Array:
        return np.asarray(self._gradient(x), dtype=float)

    def jacobian(self, x: Array) -> Array:
        return np.asarray(self._jacobian(x), dtype=float)

    def loss_hessian(self, x: Array) -> Array:
        z = self._outputs(x)
        return np.asarray(self.jax.hessian(self.loss)(z)).reshape(z.size, z.size)
