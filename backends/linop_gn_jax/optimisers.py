"""Optimisers of optax, as optimisers of linop_gn.

>>> import jax.numpy as jnp, optax, linop_gn as lg
>>> from linop_gn_jax.optimisers import Optax
>>> bowl = lg.Objective.from_residuals(lambda p: p - 3.0)
>>> lg.minimize(bowl, jnp.zeros(2), lg.FirstOrder(Optax(optax.sgd(1.0)), rate=0.5), max_steps=2).params.tolist()
[2.25, 2.25]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from linop_gn.backend import Backend, Scalar, Vector
from linop_gn.methods.optimisers import Optimiser
from linop_gn.records import fill, record, static
from linop_gn.spaces import Space

__all__ = ["Optax"]


@record
class Optax(Optimiser):
    """An ``optax.GradientTransformation`` as it is: its updates, times the rate, are the step.

    Make it with a learning rate of 1 (``optax.adamw(1.0)``, any ``optax.chain``) and give the rate to the method; or
    with a rate or schedule of its own, and the method rate 1. Make it once: another object, though equal, is another
    compiled program.
    """

    begin: Callable[..., Any] = static()
    transform: Callable[..., Any] = static()

    def __init__(self, transformation: Any) -> None:
        for name in ("init", "update"):
            if not callable(getattr(transformation, name, None)):
                raise TypeError(f"Optax needs a transformation such as optax.adamw(1.0), got {transformation!r:.100}.")
        fill(self, begin=transformation.init, transform=transformation.update)

    def init(self, ops: Backend, space: Space, x: Vector) -> Any:
        if ops.name != "jax":
            raise TypeError(f"Optax moves JAX's arrays, and these parameters are {ops.name}'s.")
        return self.begin(space.unpack(x))

    def update(
        self, ops: Backend, space: Space, gradient: Vector, kept: Any, x: Vector, rate: Scalar
    ) -> tuple[Vector, Any]:
        updates, kept = self.transform(space.unpack(gradient), kept, space.unpack(x))
        return ops.scale(rate, space.join(ops.flatten(updates)[1])), kept
