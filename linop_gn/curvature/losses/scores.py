"""The outer products of a loss's slopes in place of its Hessian: the middle of Fisher operators.

With s_i = dl/dz at the outputs of example i, the products s_i s_i^T stand where GGN has d^2l/dz^2, and

    J^T (sum_i w_i s_i s_i^T) J = sum_i w_i g_i g_i^T,    g_i = J_i^T s_i the gradient of example i.

Weights, masks, reductions and batches count as they do in the loss.
"""

from __future__ import annotations

import math
from typing import Any

from ... import draws
from ...protocols import Array, Backend, Scalar
from ...records import fields, fill, rebuild, record, static
from .base import Loss
from .hessians import MOST_COLUMNS, Columns, OutputHessian, OutputRoot, Weighted, divided, unit
from .weighting import counter, keep

__all__ = ["DrawnScores", "OuterProducts", "Scores", "masses_of", "slopes_of"]


@record
class OuterProducts(OutputHessian, OutputRoot):
    """s s^T for each example, for s like the outputs, of which an example has the axes from ``first`` on."""

    slopes: Array
    first: int = static()

    def _inner(self, xp: Any, v: Array) -> Array:
        axes = tuple(range(int(self.first), len(self.slopes.shape)))
        product = self.slopes * v
        return xp.sum(product, axis=axes, keepdims=True) if axes else product

    def product(self, xp: Any, v: Array) -> Array:
        return self.slopes * self._inner(xp, v)

    transposed = product

    def root(self, xp: Any) -> OuterProducts:
        """s s^T / |s|: symmetric, with the square s s^T."""
        length = self._inner(xp, self.slopes) ** 0.25
        return OuterProducts(divided(xp, self.slopes, length + xp.zeros_like(self.slopes)), self.first)

    def columns(self, xp: Any, outputs: Array) -> Columns:
        """s itself; of the examples along the axes after the first one apart where they are few."""
        shape, first = tuple(self.slopes.shape), int(self.first)
        apart = min(1, first) if math.prod(shape[1:first]) <= MOST_COLUMNS else first

        def column(index: Scalar) -> Array:
            here = unit(xp, self.slopes, shape[:first], apart, index)
            here = xp.reshape(here, tuple(here.shape) + (1,) * (len(shape) - first))
            return keep(xp, here, self.slopes)

        return Columns(math.prod(shape[apart:first]), apart, column)

    def solve(self, xp: Any, r: Array) -> Array:
        square = self._inner(xp, self.slopes)
        return divided(xp, self.product(xp, r), square * square + xp.zeros_like(r))


@record
class Scores(Loss):
    """``inner`` with the outer products of its slopes as its curvature; value and gradient are its own."""

    inner: Loss

    convex = True
    second_derivative = False
    of_known = True

    def __init__(self, inner: Loss) -> None:
        fill(self, inner=inner, reduction=inner.reduction)

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.inner.name}, outer products of slopes"

    @property
    def example_axes(self) -> int | None:  # type: ignore[override]
        return self.inner.example_axes

    @property
    def by_rows(self) -> bool:  # type: ignore[override]
        return self.inner.by_rows

    @property
    def targets_optional(self) -> bool:  # type: ignore[override]
        return self.inner.targets_optional

    def value(self, xp: Any, z: Array, y: Array) -> Array:
        return self.inner.value(xp, z, y)

    def slope(self, xp: Any, z: Array, y: Array) -> Array:
        return self.inner.slope(xp, z, y)

    def known(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> tuple[Array, ...]:
        """The slopes, and the weights that the loss itself gives examples, if any."""
        z, y, _ = self._read(xp, outputs, targets, weights)
        return self._slopes(xp, z, y)

    def curvature(self, xp: Any, z: Array, y: Array, known: tuple[Array, ...] = ()) -> OutputHessian:
        slopes, *mass = known or self._slopes(xp, z, y)
        made = OuterProducts(xp.astype(slopes, z.dtype, copy=False), len(self._examples(tuple(z.shape), None)))
        return Weighted(made, *mass) if mass else made

    def _slopes(self, xp: Any, z: Array, y: Array) -> tuple[Array, ...]:
        slopes, mass = self.inner.score(xp, z, y)
        return (slopes,) if mass is None else (slopes, mass)

    def weight_sum(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> Array:
        return self.inner.weight_sum(xp, outputs, targets, weights)

    def check(
        self,
        backend: Backend,
        outputs_shape: tuple[int, ...],
        targets: Array | None,
        weights: Array | None,
        *,
        empty_ok: bool = False,
    ) -> None:
        self.inner.check(backend, outputs_shape, targets, weights, empty_ok=empty_ok)

    def _examples(self, shape: tuple[int, ...], weights: Array | None) -> tuple[int, ...]:
        return self.inner._examples(shape, weights)

    def _read(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> tuple[Array, Any, Any]:
        return self.inner._read(xp, outputs, targets, weights)


@record
class MeanOuterProducts(OutputHessian):
    """The mean of several: as many outer products for each example."""

    parts: tuple[OuterProducts, ...]

    def product(self, xp: Any, v: Array) -> Array:
        products = [part.product(xp, v) for part in self.parts]
        return sum(products[1:], products[0]) / len(products)

    def columns(self, xp: Any, outputs: Array) -> Columns:
        """Those of each part, over the root of their number."""
        if len(self.parts) == 1:
            return self.parts[0].columns(xp, outputs)
        slopes, size = xp.stack([part.slopes for part in self.parts]), len(self.parts) ** -0.5
        first = self.parts[0].columns(xp, outputs)

        def column(index: Scalar) -> Array:
            part = OuterProducts(slopes[index // first.number, ...], self.parts[0].first)
            return size * part.columns(xp, outputs).column(index % first.number)

        return first._replace(number=first.number * len(self.parts), column=column)

    def root(self, xp: Any) -> OutputRoot:
        if len(self.parts) > 1:
            raise NotImplementedError(
                "the mean of several outer products has no root like the outputs: take samples=1."
            )
        return self.parts[0].root(xp)


@record
class DrawnScores(Scores):
    """:class:`Scores` at targets drawn from the loss's own distribution, ``samples`` for each example."""

    seed: Scalar
    samples: int = static()
    place: Any = (0, 0)
    """That of the batch, and of its first example in a batch of which it may be a part."""
    start: Any = None
    """The number of the first entry of the outputs, where these are some of the batch's."""

    def __init__(self, inner: Loss, seed: Scalar, samples: int) -> None:
        Scores.__init__(self, inner)
        fill(self, seed=seed, samples=samples, place=(0, 0), start=None)

    def of_batch(self, place: Any) -> Loss:
        return self if place is None else rebuild(DrawnScores, fields(self) | {"place": place})

    def of_part(self, shape: tuple[int, ...], first: int) -> Loss:
        return rebuild(DrawnScores, fields(self) | {"start": self._start(shape) + first})

    def curvature(self, xp: Any, z: Array, y: Array, known: tuple[Array, ...] = ()) -> OutputHessian:
        first, known = len(self._examples(tuple(z.shape), None)), known or self._slopes(xp, z, y)
        slopes, mass = known[: self.samples], known[self.samples :]
        made = MeanOuterProducts(tuple(OuterProducts(xp.astype(s, z.dtype, copy=False), first) for s in slopes))
        return Weighted(made, *mass) if mass else made

    def _slopes(self, xp: Any, z: Array, y: Array) -> tuple[Array, ...]:
        shape, wide = tuple(z.shape), xp.float64 if z.dtype == xp.float64 else xp.float32
        rows = xp.reshape(counter(xp, math.prod(shape), z) + _wrapped(self._start(shape)), shape)

        def drawn(r: int) -> Array:
            def uniform(k: int) -> Array:
                return draws.uniform(xp, rows, self.seed, (self.place[0] * self.samples + r) * 2 + k, wide)

            return self.inner.drawn_slope(xp, z, uniform)

        slopes, own = tuple(map(drawn, range(self.samples))), self.inner.curvature(xp, z, y)
        return (*slopes, own.weights) if isinstance(own, Weighted) else slopes

    def _start(self, shape: tuple[int, ...]) -> Any:
        return self.place[1] * math.prod(shape[1:]) if self.start is None else self.start


def _wrapped(number: Any) -> Any:
    """A number as 32 bits have it."""
    return (number + 2**31) % 2**32 - 2**31 if isinstance(number, int) else number


def slopes_of(xp: Any, middle: OutputHessian) -> list[Array]:
    """The slopes of which ``middle`` is made, (m, c) for m examples of c outputs, once for each sample.

    Zero where an example has no weight.
    """
    middle = middle.whole(xp)
    inner, counted = (middle.inner, middle.counted) if isinstance(middle, Weighted) else (middle, None)
    m = math.prod(_examples_in(inner))
    return [xp.reshape(keep(xp, counted, part.slopes), (m, -1)) for part in _parts(inner)]


def masses_of(xp: Any, middle: OutputHessian) -> Array:
    """What each of these outer products counts, in that order: the example's weight, over the number of samples."""
    middle = middle.whole(xp)
    inner, weights = (middle.inner, middle.weights) if isinstance(middle, Weighted) else (middle, None)
    examples, parts = _examples_in(inner), _parts(inner)
    if weights is None:
        masses = xp.ones_like(xp.reshape(parts[0].slopes, (math.prod(examples), -1))[:, 0])
    else:
        masses = xp.broadcast_to(xp.reshape(weights, weights.shape[: len(examples)]), examples)
    return xp.concat([xp.reshape(masses, (-1,)) / len(parts)] * len(parts))


def _parts(inner: Any) -> tuple[OuterProducts, ...]:
    return inner.parts if isinstance(inner, MeanOuterProducts) else (inner,)


def _examples_in(inner: Any) -> tuple[int, ...]:
    part = _parts(inner)[0]
    return tuple(part.slopes.shape[: int(part.first)])
