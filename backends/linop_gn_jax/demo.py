"""JAX's part of ``linop-gn demo``: a plain function of a tree, and SGD and Adam from Optax."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import linop_gn as lg
from linop_gn.app.demo.problem import Batch, Weights
from linop_gn.app.demo.runs import Plan, Run, orders, timed
from linop_gn.app.files import MissingDataError

from . import backend
from .compiled import compiled

__all__ = ["JaxParticipant", "participant"]


def network(params: Any, x: jax.Array) -> jax.Array:
    """The logits of a perceptron with tanh between its layers."""
    *hidden, last = params.values()
    for layer in hidden:
        x = jnp.tanh(x @ layer["weight"] + layer["bias"])
    return x @ last["weight"] + last["bias"]


def mean_loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean softmax cross-entropy."""
    return -jnp.take_along_axis(jax.nn.log_softmax(network(params, x)), y[:, None], axis=1).mean()


def optimizer(name: str, rate: Any) -> Any:
    """Optax's, at a learning rate that may be traced."""
    try:
        import optax
    except ImportError as error:
        raise MissingDataError(
            "the first-order methods for JAX are Optax's, which is not installed.\n"
            "Get it by:  pip install 'linop-gn[studies]'"
        ) from error
    return optax.sgd(rate, momentum=0.9) if name == "SGD" else optax.adam(rate)


def one_pass(name: str, rate: Any, carry: Any, x: jax.Array, y: jax.Array, chosen: jax.Array | None) -> Any:
    """One pass over the training set: a step for each mini-batch, compiled once for all learning rates."""
    method = optimizer(name, rate)

    def step(carry: Any, batch: Any) -> Any:
        params, state = carry
        inputs, targets = (x, y) if batch is None else (x[batch], y[batch])
        updates, state = method.update(jax.grad(mean_loss)(params, inputs, targets), state)
        return (jax.tree.map(jnp.add, params, updates), state), None

    if chosen is None:
        return step(carry, None)[0]
    return jax.lax.scan(step, carry, chosen)[0]


_pass = compiled(one_pass, static=(0,))
_loss = compiled(mean_loss)


class JaxParticipant:
    """See :class:`linop_gn.app.demo.participants.Participant`."""

    backend = backend
    optimizers = ("SGD", "Adam")
    packages = ("jax", "jaxlib", "optax")

    def params(self, start: Weights) -> Any:
        """The same tree, of JAX arrays."""
        return jax.tree.map(jnp.asarray, start)

    def weights(self, tree: Any) -> Weights:
        """The same tree, of NumPy arrays."""
        return jax.tree.map(np.asarray, tree)  # type: ignore[no-any-return]

    def objective(self, data: Batch, start: Weights) -> lg.Objective:
        x, y = map(jnp.asarray, data)
        return lg.Objective(network, lg.losses.CrossEntropy(), (x, y))

    def on_devices(self, count: int, data: Batch, start: Weights) -> dict[str, tuple[Any, lg.Objective]]:
        """The start and the objective on so many devices, by how they lie there; the CPU's are virtual.

        Raises
        ------
        LookupError
            Where there are fewer, and JAX has been used already.
        """
        with suppress(RuntimeError):  # which JAX raises once it has looked for its devices
            jax.config.update("jax_num_cpu_devices", count)
        devices = jax.devices()
        if len(devices) < count:
            raise LookupError(
                f"JAX has {len(devices)} devices here, fewer than {count}: give --devices {len(devices)}."
            )
        mesh = jax.make_mesh((count,), ("data",), (jax.sharding.AxisType.Auto,), devices=devices[:count])
        x, y = data
        missing = -len(y) % count  # rows of weight zero make the shares even
        padded = np.pad(x, ((0, missing), (0, 0))), np.pad(y, (0, missing)), np.pad(np.ones(len(y)), (0, missing))
        fit = lg.Objective(network, lg.losses.CrossEntropy(), jax.device_put(padded, NamedSharding(mesh, P("data"))))

        def cut(leaf: Any) -> NamedSharding:
            axis = next((i for i, size in enumerate(leaf.shape) if size % count == 0), None)
            return NamedSharding(mesh, P() if axis is None else P(*[None] * axis, "data"))

        copied = jax.device_put(start, NamedSharding(mesh, P()))
        spread = jax.device_put(start, jax.tree.map(cut, start))
        return {"examples spread out": (copied, fit), "parameters too": (spread, fit)}

    def train(self, plan: Plan, start: Weights, data: Batch) -> Run:
        x, y = map(jnp.asarray, data)
        params = self.params(start)
        carry = params, optimizer(plan.optimizer, plan.rate).init(params)
        drawn = jnp.asarray(orders(len(y), plan.batch, plan.passes)) if plan.batch else [None] * plan.passes
        run = partial(_pass, plan.optimizer, plan.rate)
        jax.block_until_ready(run(carry, x, y, drawn[0]))  # compiles; the result is dropped

        def go(i: int) -> None:
            nonlocal carry
            carry = jax.block_until_ready(run(carry, x, y, drawn[i]))

        return timed(plan, len(y), go, lambda: float(_loss(carry[0], x, y)), lambda: carry[0])


participant = JaxParticipant()
