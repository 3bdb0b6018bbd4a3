"""What is asked of one batch of a twin, as pure functions that a backend can compile.

Derivatives are first-order reverse mode and nothing else.
"""

from __future__ import annotations

from typing import Any

from ..curvature.supplied import MissingDerivativeError
from ..curvature.term import Term
from ..protocols import Array, Vector

__all__ = ["calculus_of", "gradient_of", "loss_gradient_of", "pullback_of", "value_of", "weight_of"]


def value_of(term: Term, x: Vector) -> Array:
    """The unnormalised loss, without derivatives."""
    return term.evaluate(x)[0]


def weight_of(term: Term, x: Vector) -> Array | None:
    """What the batch adds to the normaliser."""
    return term.evaluate(x)[1]


def gradient_of(term: Term, x: Vector) -> Vector:
    """The gradient of the unnormalised loss."""
    return term.space.join(calculus_of(term).jacobian_rows(term.value, term.space.split(x), [0])[0])


def pullback_of(term: Term, x: Vector, u: Array) -> Vector:
    """J^T u, as the gradient of <u, outputs>."""
    xp = term.ops.namespace()

    def along(leaves: list[Array]) -> Array:
        return xp.sum(term.outputs(leaves) * u)

    return term.space.join(calculus_of(term).jacobian_rows(along, term.space.split(x), [0])[0])


def loss_gradient_of(term: Term, z: Array) -> Array:
    """The derivative of the unnormalised loss in the outputs; its closed form where nothing differentiates."""
    if term.ops.calculus is not None:
        return term.ops.calculus.jacobian_rows(lambda zs: term.total(zs[0]), [z], [0])[0][0]
    assert term.loss is not None
    return term.loss.gradient(term.ops.namespace(), z, term.batch.targets, term.batch.weights)


def calculus_of(term: Term) -> Any:
    """The framework's derivatives."""
    if term.ops.calculus is None:
        raise MissingDerivativeError("this oracle", term.ops.name, "Supply them with the objective.")
    return term.ops.calculus
