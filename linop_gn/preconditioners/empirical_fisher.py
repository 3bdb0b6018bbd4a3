"""Diagonals made of gradients, which cost no product with the operator.

Martens (2010) divides by (sum_i g_i^2 / N + damping)^(3/4), with g_i the gradient
of example i: the diagonal of the empirical Fisher matrix, and an exponent below
one because that is only roughly the operator's diagonal. SGN (arXiv 2006.02409)
squares the mean gradient m instead: (m^2 + damping)^a, which is free.
"""

from __future__ import annotations

import math
from typing import Any

from ..arguments import require_number, whole
from ..curvature.squares import squared_gradients
from ..draws import check_seed
from ..operators.base import LinearOperator
from ..protocols import Scalar
from ..records import record, static
from .base import in_units_of, point_of
from .diagonal import DiagonalRecipe

__all__ = ["EmpiricalFisher", "SquaredGradient"]


@record
class EmpiricalFisher(DiagonalRecipe):
    """1 / (sum_i w_i g_i^2 / W + damping)^exponent, with g_i the gradient of example i.

    For operators made from an objective: lg.GGN, lg.BlockGGN, lg.Hessian, and what is composed
    of them. Weights, masks and reductions count as they do in the curvature; an example is an
    entry of the first axis of the outputs.

    Parameters
    ----------
    exponent
        3/4 as in Martens (2010).
    probes
        Products with J^T that the squares are estimated with, each of all examples at once;
        None is exact, at one product for each example.
    seed
        Of the random signs.

    >>> import numpy as np, linop_gn as lg
    >>> x = np.array([[1.0, 100.0], [3.0, 400.0]])
    >>> line = lg.Objective.from_residuals(lambda w: x @ w - 1.0, jacobian=lambda w: x)
    >>> G = lg.Damped(lg.GGN(line, np.zeros(2)), 1.0)
    >>> lg.preconditioners.EmpiricalFisher(exponent=1.0, probes=None)(G).values ** -1
    array([1.10000e+01, 1.70001e+05])
    """

    exponent: Scalar = 0.75  # type: ignore[misc]
    probes: int | None = static(default=16)
    seed: Scalar = 0

    def __post_init__(self) -> None:
        require_number("EmpiricalFisher", "exponent", self.exponent, positive=True)
        if self.probes is not None:
            object.__setattr__(self, "probes", whole("EmpiricalFisher", "probes", self.probes, 1))
        check_seed("EmpiricalFisher", self.seed)

    def prepare(self, operator: LinearOperator) -> Any:
        point = point_of(operator, "EmpiricalFisher")
        if point.objective.loss is None:
            raise TypeError(
                "EmpiricalFisher needs the examples of a loss, and this objective is a plain scalar function. Make it "
                "with lg.Objective(model, loss, data), or use SquaredGradient or Jacobi."
            )
        return in_units_of(operator, squared_gradients(point, self.probes, self.seed))

    def cost(self, operator: LinearOperator) -> tuple[int, int]:
        """Products (with J^T alone), and numbers held at a time, that :meth:`prepare` takes."""
        products = self.probes
        if products is None:
            point = point_of(operator, "EmpiricalFisher")
            if point.host:
                raise ValueError(
                    "EmpiricalFisher with probes=None takes a product for each example, and how many there are in "
                    "streamed data is not known before they are read. Give probes=."
                )
            pieces = point.linearized().pieces
            products = sum(math.prod(piece.outputs.shape[: 2 if piece.stacked else 1]) for piece in pieces)
        return products, 2 * operator.domain.size


@record
class SquaredGradient(DiagonalRecipe):
    """1 / (m^2 + damping)^exponent, with m the gradient of the whole objective at the operator's point.

    >>> import numpy as np, linop_gn as lg
    >>> x = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> line = lg.Objective.from_residuals(lambda w: x @ w - 1.0, jacobian=lambda w: x)
    >>> G = lg.Damped(lg.GGN(line, np.zeros(2)), 9.0)
    >>> lg.preconditioners.SquaredGradient(exponent=1.0)(G).values ** -1
    array([25., 45.])
    """

    exponent: Scalar = 0.75  # type: ignore[misc]

    def __post_init__(self) -> None:
        require_number("SquaredGradient", "exponent", self.exponent, positive=True)

    def prepare(self, operator: LinearOperator) -> Any:
        gradient = point_of(operator, "SquaredGradient").gradient
        return in_units_of(operator, gradient * gradient)

    def cost(self, operator: LinearOperator) -> tuple[int, int]:
        """Products, and numbers held at a time, that :meth:`prepare` takes."""
        return 0, operator.domain.size
