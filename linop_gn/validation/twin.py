"""An objective at a point, anew and in float64: what oracles are assembled from.

Parameters, inputs, targets, weights and the loss's numbers are cast up exactly,
and so is a model that holds numbers of its own (``calculus.as_double``). From
the package's way to its products it takes the model, the loss's value and the
weights' sum, which define the function; and of derivatives only first-order
reverse mode. Batches are summed and normalised here.

Where float64 cannot be had (a function that closes over float32 arrays, one that
draws other random numbers in float64) the twin stays in the dtype it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from ..curvature.batches import Batch
from ..curvature.point import Point
from ..curvature.supplied import MissingDerivativeError
from ..curvature.term import Term, outputs_of
from ..protocols import Array, Backend, Tree, Vector
from ..records import map_arrays
from ..spaces import Space
from .data import cast_floats, entries, host, parts, place, unstacked
from .measure import BASE, EPS, relative

__all__ = ["Twin", "twin_of"]

NDArray = np.ndarray[Any, Any]

MOST_NUMBERS = 10_000_000
"""Streams of up to so many numbers are held rather than read again and again."""


class Twin:
    """The objective of ``point``, cast to float64 or as it is, as functions of flat float64 NumPy vectors."""

    def __init__(self, point: Point, double: bool = True) -> None:
        space, terms = point.space, point.objective
        self.ops: Backend = space.backend
        self.calculus = self.ops.calculus
        self.double = double
        self.given = point
        self.narrowest = "float64" if double else _narrowest(space)
        self.eps = EPS[self.narrowest]
        self.space = replace(space, dtypes=("float64",) * len(space.names), dtype="float64") if double else space
        self.x = host(space, point.x)
        l2 = terms.l2_in(space)
        self.l2: Any = 0.0 if l2 is None else float(l2) if isinstance(l2, (int, float)) else host(space, l2)
        self.model = terms.model
        if self.calculus is not None:
            self.model = self.calculus.adapt(self.calculus.as_double(terms.model) if self.wider else terms.model)
        with self.precision():
            self.loss = None if terms.loss is None else map_arrays(terms.loss, self.ops.is_array, self._cast)

    @property
    def wider(self) -> bool:
        """Whether anything but copies came of the cast."""
        return self.double and _narrowest(self.given.space) != "float64"

    def precision(self) -> Any:
        """Where float64 arrays can be made, if any are wanted."""
        return self.calculus.high_precision() if self.double and self.calculus is not None else nullcontext()

    def _cast(self, tree: Tree) -> Tree:
        return cast_floats(self.ops, tree, "float64") if self.double else tree

    # data

    @cached_property
    def batches(self) -> list[Batch] | None:
        """The data as they were given, batch by batch; None for a stream too long to hold."""
        terms, space = self.given.objective, self.given.space
        if not terms.host:
            return unstacked(terms, space)
        batches: list[Batch] = []
        for batch in terms.stream_batches(space):
            batches.append(batch)
            if entries(self.ops, batches) > MOST_NUMBERS:
                return None
        return batches

    @cached_property
    def _in_memory(self) -> list[Term] | None:
        return None if self.batches is None else [self._term(batch) for batch in self.batches]

    def _term(self, batch: Batch) -> Term:
        cast = replace(Batch(*self._cast(self.ops.detach(parts(batch)))), place=batch.place)
        alone = self.batches is not None and len(self.batches) == 1
        return Term(self.loss, cast, self.model, self.space, self.given.objective.supplied, alone)

    def terms(self) -> Iterator[Term]:
        """The terms, batch by batch."""
        with self.precision():
            terms = self._in_memory
        if terms is not None:
            yield from terms
            return
        for batch in self.given.objective.stream_batches(self.given.space):
            with self.precision():
                term = self._term(batch)
            yield term

    @cached_property
    def scale(self) -> float:
        """What sums over all batches are multiplied by."""
        if self.loss is None or self.loss.reduction == "sum":
            return 1.0
        weights = [self.weight(term) for term in self.terms()]
        return 1.0 / sum(weights)

    # functions: of the device's arrays through the backend, of host vectors to the outside

    def call(self, function: Any, term: Term, x: NDArray | None, *outputs: NDArray) -> NDArray:
        """``function(term, x, *outputs)`` on the device and back."""
        with self.precision():
            given = [] if x is None else [place(self.space, x)]
            given += [self.ops.asarray(z, self.outputs_dtype, self.space.device) for z in outputs]
            return host(self.space, self.ops.call(function, term, *given))

    @cached_property
    def outputs_dtype(self) -> str:
        """The dtype that the model computes in."""
        with self.precision():
            term = next(iter(self.terms()))
            return self.ops.describe(self.ops.call(outputs_of, term, place(self.space, self.x)))[1]

    def weight(self, term: Term) -> float:
        """What a batch adds to the normaliser."""
        return float(self.call(_weight, term, self.x))

    def outputs(self, term: Term, x: NDArray) -> NDArray:
        """The model's outputs on a batch, in their own shape."""
        return self.call(outputs_of, term, x)

    def all_outputs(self, x: NDArray) -> NDArray:
        """The outputs on all batches, flat, one after the other."""
        return np.concatenate([self.outputs(term, x).reshape(-1) for term in self.terms()])

    def value(self, x: NDArray) -> float:
        """The objective."""
        total = sum(float(self.call(_value, term, x)) for term in self.terms())
        return self.scale * total + 0.5 * float(np.sum(self.l2 * x * x))

    def gradient(self, x: NDArray) -> NDArray:
        """Its gradient: plain reverse mode, or the user's where there is none."""
        total = np.zeros(self.space.size)
        for term in self.terms():
            if self.calculus is None and term.supplied is not None and term.supplied.gradient is not None:
                tree = term.supplied.gradient(*term.arguments(self.space.split(place(self.space, x))))
                total += host(self.space, self.space.pack(tree, "result of the supplied gradient"))
            else:
                total += self.call(_gradient, term, x)
        slope: NDArray = self.scale * total + self.l2 * x
        return slope

    def pullback(self, term: Term, u: NDArray) -> NDArray:
        """J^T u for one batch, by plain reverse mode."""
        return self.call(_pullback, term, self.x, u)

    def loss_gradient(self, term: Term, z: NDArray) -> NDArray:
        """dL/dz for one batch, unnormalised: reverse mode on the loss's value, its closed form where there is none."""
        return self.call(_loss_gradient, term, None, z)

    def loss_curvature(self, term: Term, z: NDArray, v: NDArray) -> NDArray:
        """The product with what a loss has in place of its second derivative, by its own closed form, unnormalised."""
        return self.call(_loss_curvature, term, None, z, v.reshape(z.shape))

    def jacobian_rows(self, term: Term, rows: Sequence[int]) -> NDArray:
        """Rows of J for one batch, by plain reverse mode."""
        return self._rows("jacobian_rows", term, term.outputs, None, rows)

    def hessian_rows(self, term: Term, rows: Sequence[int]) -> NDArray:
        """Rows of the Hessian of one batch's loss, unnormalised, by reverse over reverse mode."""
        return self._rows("hessian_rows", term, term.value, None, rows)

    def loss_hessian_rows(self, term: Term, z: NDArray, rows: Sequence[int]) -> NDArray:
        """Rows of H_L for one batch, unnormalised, by reverse over reverse mode on the loss's value."""
        return self._rows("hessian_rows", term, lambda zs: term.total(zs[0]), z, rows)

    def _rows(
        self, kind: str, term: Term, function: Callable[[list[Array]], Array], z: NDArray | None, rows: Sequence[int]
    ) -> NDArray:
        """Rows of the derivative of ``function`` at the parameters, or at the outputs z."""
        with self.precision():
            if z is None:
                at = self.space.split(place(self.space, self.x))
            else:
                at = [self.ops.asarray(z, self.outputs_dtype, self.space.device)]
            made = getattr(_calculus(term), kind)(function, at, rows)
            return np.stack([np.concatenate([host(self.space, leaf).reshape(-1) for leaf in row]) for row in made])

    def directions(self, V: NDArray) -> NDArray:
        """``V`` with the entries of each leaf scaled by the size of that leaf's parameters, for steps that fit each."""
        whole = float(np.sqrt(np.mean(self.x**2))) or 1.0
        sized = V.copy()
        for part in self.space.slices.values():
            size = float(np.sqrt(np.mean(self.x[part] ** 2))) if self.x[part].size else 0.0
            sized[part] *= max(size, 0.1 * whole)
        return sized


# what is asked of one batch, as functions that a backend can compile; derivatives are first-order reverse mode


def _value(term: Term, x: Vector) -> Array:
    return term.evaluate(x)[0]


def _weight(term: Term, x: Vector) -> Array | None:
    return term.evaluate(x)[1]


def _gradient(term: Term, x: Vector) -> Vector:
    return term.space.join(_calculus(term).jacobian_rows(term.value, term.space.split(x), [0])[0])


def _pullback(term: Term, x: Vector, u: Array) -> Vector:
    """J^T u, as the gradient of <u, outputs>."""
    xp = term.ops.namespace()

    def along(leaves: list[Array]) -> Array:
        return xp.sum(term.outputs(leaves) * u)

    return term.space.join(_calculus(term).jacobian_rows(along, term.space.split(x), [0])[0])


def _loss_gradient(term: Term, z: Array) -> Array:
    """dL/dz, unnormalised; its closed form where nothing differentiates."""
    if term.ops.calculus is not None:
        return term.ops.calculus.jacobian_rows(lambda zs: term.total(zs[0]), [z], [0])[0][0]
    assert term.loss is not None
    return term.loss.gradient(term.ops.namespace(), z, term.batch.targets, term.batch.weights)


def _loss_curvature(term: Term, z: Array, v: Array) -> Array:
    assert term.loss is not None
    xp, batch = term.ops.namespace(), term.batch
    return term.loss.of_batch(batch.place).hessian_product(xp, z, batch.targets, batch.weights, v)


def _calculus(term: Term) -> Any:
    if term.ops.calculus is None:
        raise MissingDerivativeError("this oracle", term.ops.name, "Supply them with the objective.")
    return term.ops.calculus


def _narrowest(space: Space) -> str:
    return max((space.dtype, *space.dtypes), key=BASE.__getitem__)


def twin_of(point: Point) -> tuple[Twin, str]:
    """The twin in float64, or as the point is, with a sentence that says why."""
    point = point.abroad()
    ops = point.space.backend
    try:
        if "float64" not in ops.capabilities:
            raise TypeError(f"{ops.name} has none")
        twin = Twin(point)
        if not twin.wider:
            return twin, ""
        plain, computed = Twin(point, double=False), twin.outputs_dtype
        if computed != "float64":
            said = f"the model computes in {computed} whatever it is given"
        elif relative(twin.all_outputs(twin.x), plain.all_outputs(twin.x)) <= 1e3 * BASE[plain.narrowest]:
            return twin, ""
        else:
            said = "the model computes another function in float64"
    except Exception as error:
        said = f"the model does not run in float64 ({type(error).__name__}: {str(error).splitlines()[0][:100]})"
    plain = Twin(point, double=False)
    return plain, f"oracle in {plain.narrowest}: {said}"
