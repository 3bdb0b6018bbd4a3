"""What a fit knows between two steps: of the accepted point, and of the run."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..protocols import Backend, Scalar, Vector

__all__ = ["Here", "LeastSquaresState"]


class Here(NamedTuple):
    """What is known of the accepted point."""

    x: Vector
    gradient: Vector
    linear: Any
    """W D^-1 and -q: a ``Triangle`` or ``MatrixFree``."""
    squares: Vector
    """The squared norms of the columns of W D^-1."""
    D: Vector
    sizes: Vector
    """Of the parameters: 1 / D of the first run, but where that is scaled by column norms."""
    q: Any
    outputs: Any
    weight: Any
    """The factor of S, that of the objective's normaliser, for the acceleration."""
    value: Scalar
    gradient_norm: Scalar
    """Largest entry of the gradient, of parameters that are not held at a bound."""
    cosine: Scalar
    """Largest cosine between q and a column of W."""
    promise: Scalar
    """m, the decrease that the undamped step promises."""
    reach: Scalar
    """Largest entry of the undamped step, relative to that of x."""
    rounding: Scalar
    """What rounding x changes in the value."""
    exact: Scalar
    """Whether q itself is no more than what rounding x changes in it."""
    known: Scalar
    """Whether rounding x leaves the fourth digit of the value alone, or q is exact."""
    effect: Scalar
    """The least that a parameter changes in q, relative to it, of those that had an effect at the start."""
    idle: Vector
    """1 for parameters that had none."""

    def shown(self, ops: Backend) -> dict[str, Any]:
        """The fields of a state that are those of the point."""
        told = {"value": self.value, "gradient_norm": self.gradient_norm, "optimality": self.cosine}
        return {"here": self, "x": ops.copy(self.x), "D": ops.copy(self.D), **told}


class LeastSquaresState(NamedTuple):
    """The accepted point, and the damping for the next trial."""

    here: Here
    x: Vector
    value: Scalar
    D: Vector
    """That of ``here``."""
    unit: Scalar
    """The damping is in multiples of it."""
    damping: Scalar
    growth: Scalar
    ratio: Scalar
    newton: Scalar
    """What all of the second derivative promises along the first step, no longer than x, that was refused since one was
    taken; -1 where there was none."""
    first: Here
    """The end of the first run, while the second one goes on."""
    going: Scalar
    """Whether the next step goes back to the start."""
    run: Scalar
    """0; 1 with D = I; 2 once that is done."""
    verdict: Scalar
    """The first run's status, while the second one goes on."""
    status: Scalar
    steps: Scalar
    evaluations: Scalar
    linearisations: Scalar
    products: Scalar
    """With W and W^T, a pair counting as one in CG."""
    refused: Scalar
    gradient_norm: Scalar
    optimality: Scalar
