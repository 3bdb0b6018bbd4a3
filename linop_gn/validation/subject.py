"""The operator under validation, as a map between float64 NumPy vectors.

Products go the way that ``A @ v`` goes, compiled where the backend compiles;
everything that is concluded from them is computed in float64 on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np

from ..curvature.point import Point
from ..operators.base import LinearOperator, run
from ..protocols import Vector
from ..records import data_fields, fields, rebuild
from ..spaces import Space
from .data import digest, host, parts, place
from .measure import EPS, base_tolerance, largest, relative
from .oracle import Oracle

__all__ = ["Subject", "curvature_in", "point_of", "points_in", "rebuilt"]

NDArray = np.ndarray[Any, Any]

SMALL = 512
"""Up to this size an operator is written out as a matrix even for the algebraic checks."""


class Subject:
    """An operator, the vectors that it is probed with, and what was found so far."""

    def __init__(
        self,
        operator: LinearOperator,
        seed: int = 0,
        probes: int = 3,
        tolerance: float | None = None,
        dense_limit: int = 0,
        against: LinearOperator | None = None,
        oracle: Oracle | None = None,
    ) -> None:
        self.operator = operator
        self.seed = seed
        self.probes = probes
        self.dense_limit = dense_limit
        self.against = operator if against is None else against
        self.oracle = Oracle(dense_limit) if oracle is None else oracle
        self.points: list[Point] = points_in(operator)
        usual = base_tolerance(operator.domain, operator.codomain)
        self.tolerance = usual if tolerance is None else tolerance
        self.roomy = tolerance is None and usual > base_tolerance()

    def part(self, operator: LinearOperator) -> Subject:
        """A part of the operator, to be probed in the same way."""
        made = Subject(operator, self.seed, self.probes, self.tolerance, self.dense_limit, oracle=self.oracle)
        made.roomy = self.roomy
        return made

    @cached_property
    def data_before(self) -> list[list[str]]:
        """Fingerprints of the data when they were first asked for: before the first product."""
        return self.data_digests()

    def data_digests(self) -> list[list[str]]:
        """Fingerprints of the data in memory that the operator's objectives hold."""
        return [digest(p.space.backend, [p.x, *map(parts, p.objective.batches)]) for p in self.points]

    # vectors

    def rounded(self, space: Space, x: NDArray) -> NDArray:
        """``x`` as the operator will see it: rounded to its dtype."""
        return host(space, place(space, x))

    def draw(self, space: Space, stream: int) -> NDArray:
        """As many random vectors as there are probes; others for another number ``stream``."""
        rng = np.random.default_rng([self.seed, stream])
        return self.rounded(space, rng.standard_normal((space.size, self.probes)))

    @cached_property
    def V(self) -> NDArray:
        """Random vectors of the domain, side by side."""
        return self.draw(self.operator.domain, 0)

    @cached_property
    def U(self) -> NDArray:
        """Random vectors of the codomain, side by side."""
        return self.draw(self.operator.codomain, 1)

    # products

    def apply(self, v: Vector) -> Vector:
        """A v or A V for flat vectors or columns on the device."""
        return run(LinearOperator.apply, self.operator, v)

    def apply_transposed(self, u: Vector) -> Vector:
        """A^T u or A^T U for flat vectors or columns on the device."""
        return run(LinearOperator.rapply, self.operator, u)

    def product(self, v: NDArray) -> NDArray:
        """A v for host values (n,) that were rounded before."""
        return host(self.operator.codomain, self.apply(place(self.operator.domain, v)))

    def transposed(self, u: NDArray) -> NDArray:
        """A^T u for host values (m,) that were rounded before."""
        return host(self.operator.domain, self.apply_transposed(place(self.operator.codomain, u)))

    def products(self, V: NDArray) -> NDArray:
        """A V, a column at a time."""
        return np.stack([self.product(v) for v in V.T], axis=1)

    @cached_property
    def first(self) -> NDArray:
        """The very first product."""
        return self.product(self.V[:, 0])

    @cached_property
    def AV(self) -> NDArray:
        """Products with the random vectors, one at a time."""
        return np.stack([self.first, *(self.product(v) for v in self.V.T[1:])], axis=1)

    @cached_property
    def wobble(self) -> float:
        """How much products change, relatively, when the last bits of the parameters do: what rounding may cost here.

        Behind a layer norm of nearly equal entries, say, float32 loses digits that no tolerance for all
        operators could allow for.
        """
        if not self.points:
            return 0.0
        rng = np.random.default_rng([self.seed, 5])
        others = [Subject(rebuilt(self.operator, lambda point: _moved(point, rng))) for _ in range(2)]
        pairs = list(zip(self.V.T, self.AV.T, strict=True))
        change = largest([relative(other.product(v), Av) for other in others for v, Av in pairs])
        return change if np.isfinite(change) else 0.0

    @cached_property
    def ATU(self) -> NDArray:
        """Products of the adjoint with the random vectors, one at a time."""
        return np.stack([self.transposed(u) for u in self.U.T], axis=1)

    @cached_property
    def has_adjoint(self) -> bool:
        """Whether there are products with the adjoint."""
        try:
            return bool(self.ATU.size)
        except NotImplementedError:
            return False

    @cached_property
    def matrix(self) -> NDArray:
        """The whole matrix, from n products."""
        return host(self.operator.domain, self.operator.to_dense())

    @property
    def is_small(self) -> bool:
        """Whether the matrix is cheap enough for the algebraic checks."""
        return max(self.operator.shape) <= SMALL


def _moved(point: Point, rng: np.random.Generator) -> Point:
    """The point with every parameter changed by one unit of round-off, up or down."""
    space = point.space
    eps = max(EPS[dtype] for dtype in (space.dtype, *space.dtypes))
    signs = rng.choice([-1.0, 1.0], space.size)
    return point.anew(x=place(space, host(space, point.x) * (1.0 + eps * signs)))


# operators taken apart, and the same operator on other points


def _walk(value: Any) -> Iterator[Any]:
    """``value`` and the operators and points inside it."""
    if isinstance(value, tuple):
        for item in value:
            yield from _walk(item)
    elif isinstance(value, LinearOperator):
        yield value
        for item in vars(value).values():
            yield from _walk(item)
    elif isinstance(value, Point):
        yield value


def points_in(operator: LinearOperator) -> list[Point]:
    """The points that parts of ``operator`` were made at, each once."""
    return list({id(part): part for part in _walk(operator) if isinstance(part, Point)}.values())


def point_of(operator: LinearOperator) -> Point | None:
    """The point that the operator itself was made at: a Hessian's, a Gauss-Newton operator's, a Jacobian's."""
    return next((value for value in vars(operator).values() if isinstance(value, Point)), None)


def curvature_in(operator: LinearOperator) -> list[LinearOperator]:
    """The parts of ``operator`` that were made at a point, each once."""
    parts = {id(part): part for part in _walk(operator) if isinstance(part, LinearOperator)}
    return [part for part in parts.values() if point_of(part) is not None]


def rebuilt(operator: LinearOperator, change: Callable[[Point], Point]) -> LinearOperator:
    """The same operator on the points that ``change`` makes of its own, each once, with nothing prepared.

    Operators that are no records, whose parts cannot be told, are returned as they are.
    """
    points = {id(point): change(point) for point in points_in(operator)}

    def other(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(other, value))
        if isinstance(value, Point):
            return points[id(value)]
        if not isinstance(value, LinearOperator) or "__dataclass_fields__" not in type(value).__dict__:
            return value
        data = data_fields(value)
        return rebuild(type(value), {k: other(v) if k in data else v for k, v in fields(value).items()})

    made: LinearOperator = other(operator)
    return made
