"""Derivatives by another framework, for arrays whose own has none.

A model written in a framework that differentiates is linearised *there*, while
parameters, data, vectors and solver stay what they are. Vectors cross by DLPack:
a product lends one flat vector and brings one back, whatever happens between,
so that the whole of J^T H_L J v is one call over there.

Lent memory is read by whoever borrowed it, at a time of its own where work is
queued. Written to too early, it gave 10 wrong products in 20 when this was
measured with JAX. So nothing returns before the work that reads it is done;
parameters, which a linearisation may keep, are lent as copies; and what comes
from a framework whose arrays cannot be written to is copied, because solvers
write into products.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from ..protocols import Array, Backend, Tree, Vector
from ..records import record, replace, static
from ..spaces import Space
from .batches import Batch
from .checks import require_fitting
from .pieces import OfOneBatch
from .term import Term
from .unpacked import packed

__all__ = ["BridgedPiece", "BridgedTerm", "Crossing", "on_leaves"]


def on_leaves(model: Callable[..., Any], ops: Backend, structure: Hashable, leaves: list[Array], *inputs: Any) -> Any:
    """The model at the parameters' leaves in a list, put into the caller's own containers for it."""
    return model(ops.unflatten(structure, leaves), *inputs)


@dataclass(frozen=True)
class Crossing:
    """The way between two spaces of the same leaves, one in each framework.

    In ``precision()`` the other framework has the dtypes that cross: some have to be asked for float64.
    """

    home: Space
    away: Space
    precision: Callable[[], AbstractContextManager[Any]]

    @classmethod
    def of(cls, home: Space, guest: Backend, double: bool) -> Crossing:
        """From the space ``home`` to a list of the same leaves in the framework ``guest``."""
        calculus = guest.calculus
        assert calculus is not None
        precision = calculus.high_precision if double else nullcontext
        with precision():
            probe = guest.borrow(home.backend.lendable(home.backend.asarray(0.0, home.dtype, home.device)))
            device = guest.describe(probe)[2]
        structure = guest.flatten(list(range(len(home.names))))[2]
        return cls(home, Space(guest, structure, home.names, home.shapes, home.dtypes, home.dtype, device), precision)

    def lend(self, tree: Tree) -> Tree:
        """Arrays of ours in any containers as arrays over there."""
        ops, guest = self.home.backend, self.away.backend
        if tree is None:
            return None
        _, leaves, structure = ops.flatten(tree)
        with self.precision():
            lent = [guest.borrow(ops.lendable(leaf)) if ops.is_array(leaf) else leaf for leaf in leaves]
        return ops.unflatten(structure, lent)

    def bring(self, x: Array | None) -> Any:
        """An array from over there as one of ours, which may be written to."""
        if x is None:
            return None
        ops, guest = self.home.backend, self.away.backend
        borrowed = ops.borrow(guest.lendable(x))
        # NumPy's arrays of DLPack's older versions may only be read.
        writable = getattr(getattr(borrowed, "flags", None), "writeable", True)
        return borrowed if writable and "in_place" in guest.capabilities else ops.copy(borrowed)

    def run(self, function: Callable[..., Any], over_there: Any, *arguments: Any) -> Any:
        """``function(over_there, *arguments)`` in the other framework, finished; the result stays there.

        Vectors are lent; numbers, which may be arrays here, go as Python's.
        """
        ops, guest = self.home.backend, self.away.backend
        known = [x if isinstance(x, (int, float)) or x.shape else ops.to_numpy(x).item() for x in arguments]
        lent = [x if isinstance(x, (int, float)) else self.lend(x) for x in known]
        with self.precision():
            return guest.wait(guest.call(function, over_there, *lent))

    def parameters(self, x: Vector) -> Vector:
        """Parameters over there, in memory of their own; to be called in :attr:`precision`."""
        return self.away.backend.copy(self.lend(x))

    def batch(self, batch: Batch) -> Batch:
        """Data over there."""
        require_fitting(self.home, batch)
        inputs, targets, weights = map(self.lend, (batch.inputs, batch.targets, batch.weights))
        return Batch(inputs, targets, weights, batch.stacked, batch.place)


@record
class BridgedPiece(OfOneBatch):
    """What linearising over there left behind (a piece or a curve), for products with vectors of ours."""

    inner: Any
    loss: Any
    targets: Array | None
    weights: Array | None
    value: Array | None
    gradient: Vector | None
    weight: Array | None
    crossing: Crossing = static()
    stacked: bool = static(default=False)

    @property
    def space(self) -> Space:
        """The space of vectors of ours."""
        return self.crossing.home

    @property
    def outputs(self) -> Array:
        """The model's outputs."""
        return self.crossing.bring(self.inner.outputs)

    def rooted(self) -> BridgedPiece:
        """The piece with the root of H_L, over there."""
        return replace(self, inner=self.crossing.run(type(self.inner).rooted, self.inner))

    leafwise = False

    def apply(self, function: Callable[..., Vector], *arguments: Any) -> Vector:
        """``function(piece, *arguments)`` over there, brought home."""
        return self.crossing.bring(self.crossing.run(function, self.inner, *arguments))


@record
class BridgedTerm:
    """One batch's part of an objective, worked out over there by ``inner``; see :class:`~.term.Term`."""

    inner: Term
    batch: Batch
    loss: Any
    crossing: Crossing = static()

    leafwise: ClassVar[bool] = False

    @property
    def space(self) -> Space:
        """The space of the caller's parameters."""
        return self.crossing.home

    def _run(self, function: Callable[..., Any], x: Vector, *shared: Any, check: bool = True) -> Any:
        with self.crossing.precision():
            there = self.crossing.parameters(x)
            if check:
                self.inner.check_ahead(there)
            return self.crossing.away.backend.wait(
                self.crossing.away.backend.call(function, self.inner, there, *shared)
            )

    def check_ahead(self, x: Vector) -> None:
        """Nothing: everything here that needs the data checked sees to it with the parameters that it lends."""

    def _piece(self, function: Callable[..., Any], x: Vector) -> BridgedPiece:
        """The piece or curve made over there, with what is summed over batches brought home."""
        sums, inner = self._run(function, x).parted()
        value, gradient, weight = (self.crossing.bring(packed(x)) for x in sums)
        data = self.batch.targets, self.batch.weights
        return BridgedPiece(inner, self.loss, *data, value, gradient, weight, self.crossing)

    def linearize(self, x: Vector) -> BridgedPiece:
        """The model linearised at x, with value and gradient from the same pass."""
        return self._piece(Term.linearize, x)

    def once(self, x: Vector) -> BridgedPiece:
        """The model linearised at x for one product."""
        return self._piece(Term.once, x)

    def linearize_gradient(self, x: Vector) -> BridgedPiece:
        """The gradient of the loss linearised at x."""
        return self._piece(Term.linearize_gradient, x)

    def gathered(self, function: Callable[..., tuple[Any, Any]], x: Vector, *shared: Array) -> tuple[Any, Any]:
        """``function(term, x, *shared) -> (sums, piece)`` of the term over there, the sums brought home."""
        (value, arrays, weight), piece = self._run(function, x, *map(self.crossing.lend, shared))
        bring = self.crossing.bring
        return (bring(value), tuple(map(bring, arrays)), bring(weight)), piece

    def evaluate(self, x: Vector) -> tuple[Any, ...]:
        """Unnormalised value and normaliser at x, without derivatives."""
        return tuple(map(self.crossing.bring, self._run(Term.evaluate, x)))

    def value_and_gradient(self, x: Vector) -> tuple[Any, ...]:
        """Value and gradient of a plain scalar function at x; nothing is linearised."""
        return tuple(map(self.crossing.bring, self._run(Term.value_and_gradient, x, check=False)))

    def outputs_at(self, x: Vector) -> Array:
        """The model's outputs at x, without derivatives."""
        return self.crossing.bring(self._run(Term.outputs_at, x, check=False))
