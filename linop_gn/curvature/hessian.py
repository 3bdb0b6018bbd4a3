"""The Hessian of an objective, by products.

    H v = d/dt grad L(p + t v) at t = 0

The gradient is linearised once: forward over reverse in JAX (Pearlmutter,
1994), backward over the kept gradient graph in PyTorch, where forward over
reverse is silently wrong on normalisation layers.
"""

from __future__ import annotations

from typing import Any

from ..operators.base import LinearOperator
from ..protocols import Scalar, Tree, Vector
from ..records import record, static
from ..spaces import Space
from .objective import Objective
from .pieces import Curve, hessian, sum_products
from .point import Point, Sums
from .term import Term

__all__ = ["Hessian", "as_point"]


@record
class Hessian(LinearOperator):
    """The Hessian of ``objective`` at ``params``, which are copied.

    Shape (n, n) for n parameters; symmetric, in general indefinite. Products cost about two gradients.

    >>> import numpy as np, linop_gn as lg
    >>> f = lg.Objective.from_function(lambda p: p @ p * (p @ p) / 4,
    ...     gradient=lambda p: (p @ p) * p, hvp=lambda p, v: (p @ p) * v + 2 * (p @ v) * p)
    >>> lg.Hessian(f, np.array([1.0, 2.0])) @ np.array([1.0, 0.0])
    array([7., 4.])

    Raises
    ------
    MissingDerivativeError
        At the first product, for arrays whose framework has no derivatives.
    """

    point: Point

    def __init__(self, objective: Objective | Point, params: Tree = None) -> None:
        self.__dict__["point"] = as_point(objective, params, "Hessian").expect_hessian()

    @property
    def domain(self) -> Space:
        return self.point.space

    @property
    def symmetric(self) -> bool:
        return True

    @property
    def host(self) -> bool:
        return self.point.host

    def _prepare(self) -> LinearOperator:
        if self.host:
            return self
        curved = self.point.curved()
        return HessianProducts(curved.curves, curved.scale, self.point.space)

    def matvec(self, v: Vector) -> Vector:
        if not self.host:
            return self.prepare().matvec(v)
        return self.point.stream(_hessian_sums, v).gradient


@record
class HessianProducts(LinearOperator):
    """A Hessian whose linearisations are data."""

    curves: tuple[Curve, ...]
    factor: Scalar
    space: Space = static()

    @property
    def domain(self) -> Space:
        return self.space

    @property
    def symmetric(self) -> bool:
        return True

    def matvec(self, v: Vector) -> Vector:
        return sum_products(self.backend, self.curves, hessian, v, self.factor)


def _hessian_sums(term: Term, x: Vector, v: Vector) -> Sums:
    curve = term.linearize_gradient(x)
    return None, curve.apply(hessian, v), curve.weight


def as_point(objective: Any, params: Tree, name: str) -> Point:
    """The point that an operator is made at."""
    if isinstance(objective, Point):
        if params is not None:
            raise TypeError(f"lg.{name} was given a point, which has its parameters already, and parameters beside it.")
        return objective
    if not isinstance(objective, Objective):
        raise TypeError(
            f"lg.{name} needs an lg.Objective, got {type(objective).__qualname__}; make one with "
            "lg.Objective(model, loss, data), .from_residuals(...) or .from_function(...)."
        )
    if params is None:
        raise TypeError(f"lg.{name} needs the parameters to be taken at: lg.{name}(objective, params).")
    return objective.at(params)
