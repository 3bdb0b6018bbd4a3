"""Recognising, flattening, packing and converting arrays and trees of arrays."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeVar

from .types import Array, Tree, Vector

__all__ = ["Arrays", "Product"]

R = TypeVar("R")


class Product(NamedTuple):
    """A product of two matrices that is not formed yet: whoever lays it among others can write it where it belongs."""

    left: Array
    right: Array

    @property
    def size(self) -> int:
        """How many entries it has."""
        return int(self.left.shape[0] * self.right.shape[1])


class Arrays(Protocol):
    """Recognising, flattening and converting arrays and trees of arrays."""

    name: str

    def namespace(self) -> Any:
        """The array-API namespace (``numpy``, ``jax.numpy``, a compat module for torch)."""

    def is_array(self, x: Any) -> bool:
        """Whether ``x`` is an array of this framework."""

    def is_concrete(self, tree: Any) -> bool:
        """False while a compiler is tracing, when values cannot be read."""

    def lives_with(self, tree: Any, x: Array) -> bool:
        """Whether ``tree``, computed from ``x`` just now, may be used wherever x may: False in an inner trace."""
        ...

    def normalize(self, tree: Any) -> Tree:
        """Turn a container that the tree functions don't know into one they do.

        An ``nn.Module`` becomes the dict of its trainable parameters; most
        things are returned as they are.
        """

    def flatten(self, tree: Tree) -> tuple[list[str], list[Array], Hashable]:
        """Leaf names (path parts joined by dots), leaves, and the tree's structure."""

    def unflatten(self, structure: Hashable, leaves: Sequence[Any]) -> Tree:
        """The inverse of :meth:`flatten`; the leaves may be anything."""

    def describe(self, x: Array) -> tuple[tuple[int, ...], str, Hashable]:
        """Shape, dtype name (``"float32"``) and device (None where it is not fixed, as in a trace)."""

    def layout(self, leaves: Sequence[Any], names: Sequence[str] = ()) -> Any:
        """How flat vectors of these leaves lie over several devices; None where they are one array of all in order.

        ``names`` are for errors.

        A hashable with ``gathering`` (what users write to gather parameters), ``size`` (length of vectors),
        ``pack(leaves, dtype)``, ``split(vector, dtypes)``, ``constrained(leaves)``, ``vector(v, what)``,
        ``zeros(dtype, columns)``, ``numbers()``, ``axis_of(x)`` (along which axis ``x`` is such vectors, or None),
        ``part(leaves)``, ``first`` (where each process has a part of vectors:
        whether this one writes files); and for blocks of leaves, of indices
        ``((0, 2), (1,))``, ``by_block("dot", blocks, x, y)`` and ``by_block("max_abs", blocks, x)``, the k scalars of
        :class:`Arithmetic`, and ``of_blocks(numbers, blocks, like)``, the vector of the number of each entry's block.
        """

    def spread(self, layout: Any, part: Array) -> Vector:
        """What was computed from ``layout.numbers()``, which may be those of one process, as the vector that it is."""

    def agreed(self, layout: Any, number: Array) -> Array:
        """A number that each process of a layout computed for itself, as one of them has it: rounding may differ."""

    def pack(self, leaves: Sequence[Array], dtype: str) -> Vector:
        """A *new* flat array (n,) of all leaves in order (never an alias of a single leaf).

        Differentiable where the framework has derivatives.
        """

    def lying(self, leaves: Sequence[Array], dtype: str) -> Vector | None:
        """The flat array (n,) of which these leaves are views, one after the other, or None; no copy."""
        ...

    def laid(self, pieces: Sequence[Array | Product]) -> Vector:
        """A new flat array of these, one after the other: flat arrays, and products of matrices row by row."""

    def split(self, vector: Vector, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str]) -> list[Array]:
        """Cut (n,) into leaves (views where the framework has them); (n, k) into leaves of shape ``(*shape, k)``."""

    def asarray(self, host: Any, dtype: str, device: Hashable = None) -> Array:
        """A new array of this framework from NumPy data or a Python number: never an alias of the memory given."""

    def lendable(self, x: Array) -> Array:
        """``x`` if others can take its memory as it is (writable, rows without gaps), else a copy that they can."""

    def borrow(self, x: Any) -> Array:
        """An array of this framework over the memory of ``x``, a lendable array of another one (DLPack).

        Shape, dtype and device are those of ``x``. Whether the two share memory is the frameworks' business: nobody
        may write to either while both are in use.
        """

    def wait(self, tree: Tree) -> Tree:
        """The tree, once all work that makes it is done, so that the memory it was made from may be written to."""

    def unguarded(self) -> AbstractContextManager[None]:
        """A context without the framework's checks that users switch on for what they write themselves."""

    def alone(self, make: Callable[[], R]) -> tuple[R, bool]:
        """What ``make()`` returns, and whether it is an array whose memory nobody else can know of: False if in doubt.

        Results of users' functions that are alone need no copy before they are written to.
        """

    def cast(self, x: Array, dtype: str) -> Array:
        """``x`` in another floating dtype."""

    def all_finite(self, x: Array | tuple[Array, ...]) -> bool:
        """Whether no entry of a floating array, or a tuple of them, whose values are known, is NaN or infinite."""
        ...

    def same(self, x: Array, y: Array) -> bool:
        """Whether arrays of one shape, whose values are known, are equal entry by entry, and hold no NaN."""
        ...

    def to_numpy(self, x: Array) -> Any:
        """A NumPy array (detached, on the host)."""

    def generators(self) -> Sequence[Any]:
        """The random generators of the process, with ``get_state`` and ``set_state``, if there are any."""

    def operator_of(self, obj: Any, like: Array | None, symmetric: bool | None, psd: bool) -> Any:
        """An operator from a sparse matrix or an operator of the framework's own library; None for anything else.

        The arguments are those of :func:`linop_gn.from_scipy`; ``like`` is an array of this framework.
        """

    def loss_of(self, obj: Any) -> Any:
        """The loss of :mod:`linop_gn.losses` that a loss of the framework's own is; None for anything else."""

    def load_into(self, holder: Any, params: Tree) -> Any:
        """Write ``params`` over those that an object of the framework's own holds, and return the object."""

    def largest(self, x: Array) -> Array:
        """The largest entry along the last axis, which stays with length one; its derivative is that of one such entry.

        Or zero: what is made of it must be the same if another number is taken for it, as in e^(x - k) / sum e^(x - k).
        A compiler may compute x twice, with other roundings: an entry that equals the largest need not be found.
        """

    def detach(self, tree: Tree) -> Tree:
        """The same values, cut from any graph that the user is recording."""
