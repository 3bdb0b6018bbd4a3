"""Vector spaces: the bijection between a user's tree of arrays and a flat vector.

Solvers see flat arrays ``(n,)`` or columns ``(n, k)``; users see their own
containers. A :class:`Space` owns the way between them. It is pure description
(names, shapes, dtypes, structure), hashable and compared by value, so that it
is part of the program and never of the data.

Vector work leaf by leaf is 10 to 30 times slower than on one flat array for
models with many leaves; packing costs under 2 % of a curvature product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from .arguments import described
from .dispatch import backend_of, how_to_bring, owner_of
from .given import as_tree
from .protocols import Array, Backend, Tree, Vector

__all__ = ["REAL", "Space", "require_here", "wide"]

REAL = frozenset({"float16", "bfloat16", "float32", "float64"})
_WIDTH = {"float16": 1, "bfloat16": 1, "float32": 2, "float64": 3}


@dataclass(frozen=True)
class Space:
    """The vectors shaped like one tree of real arrays.

    Build it with :meth:`of` (from a tree) or :meth:`flat` (plain vectors).

    >>> import numpy as np
    >>> space = Space.of({"bias": np.zeros(2), "weight": np.ones((2, 3))})
    >>> space.size, space.slices
    (8, {'bias': slice(0, 2, None), 'weight': slice(2, 8, None)})
    >>> flat = space.pack({"bias": np.zeros(2), "weight": np.ones((2, 3))})
    >>> space.unpack(flat)["weight"].shape
    (2, 3)
    """

    backend: Backend
    structure: Hashable
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    dtype: str
    device: Hashable = None
    layout: Any = None
    """How the backend lays flat vectors out over devices, where the leaves are cut: None for one array of all leaves in
    order."""

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Worked out once: each program that takes a record of this space asks."""
        where = self.device, self.layout
        return hash((self.backend, self.structure, self.names, self.shapes, self.dtypes, self.dtype, where))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_hash"}  # strings' differ by process

    @classmethod
    def of(cls, tree: Tree, what: str = "parameters") -> Space:
        """The space that ``tree`` is a vector of; ``what`` names it in errors.

        Raises
        ------
        TypeError
            For a leaf that is not a real floating-point array of one framework.
        ValueError
            For a tree without any entries, or leaves on several devices.
        """
        return cls.entered(tree, what)[0]

    @classmethod
    def entered(cls, tree: Tree, what: str = "parameters") -> tuple[Space, list[Array]]:
        """:meth:`of` ``tree``, and its leaves in this space's order."""
        backend = backend_of(tree)
        names, leaves, structure = backend.flatten(_normal(backend, tree))
        for name, leaf in zip(names, leaves, strict=True):
            if not backend.is_array(leaf):
                raise TypeError(
                    f"{_leaf(name, what)} is {described(leaf, backend.name)}; convert it, or close over it "
                    "in the model if it is not a variable."
                )
        described_leaves, layout = tuple(map(backend.describe, leaves)), backend.layout(leaves, names)
        return _space(backend, structure, tuple(names), described_leaves, layout, what), leaves  # type: ignore[arg-type]

    def again(self, tree: Tree) -> list[Array] | None:
        """The leaves of ``tree`` where it is one of this space at first sight; a loop asks with such at every step."""
        ops = self.backend
        try:
            _, leaves, structure = ops.flatten(tree)
        except Exception:  # what is no tree for this framework may be one for another
            return None
        if structure != self.structure or not all(map(ops.is_array, leaves)) or owner_of(leaves[0]) is not ops:
            return None
        if [*map(ops.describe, leaves)] != self._described:  # with devices that may differ for all together
            return None
        return leaves if ops.layout(leaves, self.names) == self.layout else None

    @cached_property
    def _described(self) -> list[tuple[tuple[int, ...], str, Hashable]]:
        return [(shape, dtype, self.device) for shape, dtype in zip(self.shapes, self.dtypes, strict=True)]

    @classmethod
    def flat(cls, size: int, like: Array) -> Space:
        """Plain vectors ``(size,)`` of the framework, dtype and device of ``like``."""
        backend = backend_of(like)
        _, dtype, device = backend.describe(like)
        if dtype not in REAL:
            raise TypeError(f"vectors are real floating point, but the array has dtype {dtype}; convert it first.")
        require_here(backend, like, "what is flat")
        _, _, structure = backend.flatten(like)
        return cls(backend, structure, ("",), ((size,),), (dtype,), dtype, device)

    @cached_property
    def size(self) -> int:
        """Number of entries n."""
        return sum(map(math.prod, self.shapes))

    @cached_property
    def width(self) -> int:
        """Length of flat vectors: n, or more where a layout ends parts of them in zeros."""
        return self.size if self.layout is None else self.layout.size

    @property
    def is_flat(self) -> bool:
        """Whether the vectors are plain arrays (n,), without a tree."""
        return self.names == ("",) and len(self.shapes[0]) == 1

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each leaf lies in the flat vector, by name."""
        self.require_whole("a leaf's place in flat vectors")
        ends = np.cumsum([math.prod(shape) for shape in self.shapes]).tolist()
        starts = [0, *ends[:-1]]
        return {name: slice(i, j) for name, i, j in zip(self.names, starts, ends, strict=True)}

    def require_whole(self, what: str, lacks: str = "is not known") -> None:
        """Raise where flat vectors are cut over devices, in an order of their own."""
        if self.layout is not None:
            raise ValueError(
                f"{what} {lacks} where parameters are sharded ({self.layout}): flat vectors are in the order of "
                f"the devices then. Gather the parameters ({self.layout.gathering}), or take what needs products "
                "alone: CG, MINRES, LSMR, Lanczos, estimates."
            )

    @property
    def in_parts(self) -> bool:
        """Whether each process has a part of vectors, and what reads one is done by all of them."""
        return self.layout is not None and "compiled" not in self.backend.capabilities

    def require_together(self, what: str, spreads: bool = False) -> None:
        """Raise where each process has a part of vectors, or types say who has it, unless ``what`` spreads them out."""
        if self.in_parts or (self.layout is not None and self.layout.typed and not spreads):
            over = "several" if self.in_parts else "the devices of an explicit mesh"
            raise ValueError(
                f"{what} needs vectors in one process, and these parameters lie over {over} ({self.layout}). Gather "
                f"the parameters ({self.layout.gathering}), or take what needs products alone, such as lg.GGN with "
                "lg.CG."
            )

    def require_even(self, what: str, spreads: bool = False) -> None:
        """Raise where flat vectors have zeros that are no entry, of which a matrix would be singular."""
        self.require_together(what, spreads)
        if self.width != self.size:
            raise ValueError(
                f"{what} needs parameters that the {self.layout.devices} devices can share evenly: vectors of these "
                f"{self.size} entries have {self.width - self.size} zeros besides. Gather the parameters "
                f"({self.layout.gathering}), or take what needs products alone."
            )

    def from_whole(self, whole: Array) -> Array:
        """A vector or columns that are whole on each device, over the devices as vectors are, where types tell it."""
        return self.layout.from_whole(whole) if self.layout is not None and self.layout.typed else whole

    def laid_out(self, leaves: list[Array]) -> list[Array]:
        """The leaves over devices as the parameters are."""
        return leaves if self.layout is None else self.layout.constrained(leaves)

    def leaves(self, tree: Tree, what: str = "vector") -> list[Array]:
        """The leaves of ``tree`` in this space's order, checked."""
        names, leaves, structure = self.backend.flatten(_normal(self.backend, tree))
        if structure != self.structure:
            by_name: Mapping[str, Array] = dict(zip(names, leaves, strict=True))
            if len(names) != len(self.names) or set(names) != set(self.names):
                missing = sorted(set(self.names) - set(names))
                extra = sorted(set(names) - set(self.names))
                listed = type(tree) in (list, tuple) and tuple(x.shape for x in leaves) == self.shapes
                advice = " Of a list in this order make dict(zip(names, arrays))." if listed else ""
                raise ValueError(
                    f"the {what} is not a tree like this space's: missing {missing or 'nothing'}, "
                    f"unexpected {extra or 'nothing'}. Expected leaves {list(self.names)}.{advice}"
                )
            leaves = [by_name[name] for name in self.names]
        for name, shape, dtype, leaf in zip(self.names, self.shapes, self.dtypes, leaves, strict=True):
            self.require(_leaf(name, what), leaf, shape, dtype)
        return leaves

    def require(
        self, where: str, array: Any, shape: tuple[int, ...] | None = None, dtype: str | None = None
    ) -> tuple[int, ...]:
        """The shape of an array of this framework and device, of the dtype of vectors or the one named; or an error."""
        if not self.backend.is_array(array):
            raise TypeError(f"{where} is {described(array, self.backend.name)}.")
        got_shape, got_dtype, got_device = self.backend.describe(array)
        if self.layout is None:
            require_here(self.backend, array, where)
        if shape not in (None, got_shape):
            raise ValueError(f"{where} has shape {got_shape}, expected {shape}.")
        if got_dtype != (dtype or self.dtype):
            raise TypeError(f"{where} has dtype {got_dtype}, expected {dtype or self.dtype}; cast it first.")
        if None not in (got_device, self.device) and got_device != self.device:
            raise ValueError(f"{where} is on {got_device}, expected {self.device}; move it first.")
        return got_shape

    def pack(self, tree: Tree, what: str = "vector") -> Vector:
        """A new flat vector (n,) from a tree."""
        return self.join(self.leaves(tree, what))

    def split(self, vector: Vector | tuple[Array, ...]) -> list[Array]:
        """The leaves of a flat vector, as views where the framework has them; or of a tuple of them."""
        if isinstance(vector, tuple):
            return list(vector)
        if self.layout is not None:
            return self.layout.split(vector, self.dtypes)  # type: ignore[no-any-return]
        return self.backend.split(vector, self.shapes, self.dtypes)

    @cached_property
    def in_leaves(self) -> bool:
        """Whether programs had better be given vectors as tuples of leaves: two calls less, and compiled sooner.

        To cut a vector into 200 leaves takes XLA 1.1 s, and to put it together .25 s; all else of a product .4 s.
        """
        return "compiled" in self.backend.capabilities and {self.dtype} == {*self.dtypes}

    def like(self, vector: Any, leaves: list[Array]) -> Any:
        """The leaves in the form of ``vector``: a flat vector, or a tuple."""
        return tuple(self.laid_out(leaves)) if isinstance(vector, tuple) else self.join(leaves)

    def join(self, leaves: list[Array]) -> Vector:
        """A new flat vector from leaves in order; the inverse of :meth:`split`."""
        return self.backend.pack(leaves, self.dtype) if self.layout is None else self.layout.pack(leaves, self.dtype)

    def unpack(self, vector: Vector) -> Tree:
        """The tree of a flat vector; for columns (n, k) every leaf has a trailing axis of k."""
        leaves = self.split(vector)
        return self.backend.unflatten(self.structure, self._given(leaves))

    def _given(self, leaves: list[Array]) -> list[Array]:
        """Leaves of a vector as users have them: of a layout, what processes have copies of is in parts in vectors."""
        return self.layout.given(leaves) if self.in_parts else leaves

    def enter(self, v: Any, what: str = "vector", lent: bool = False) -> tuple[Vector, Callable[[Vector, Space], Any]]:
        """Flat form of ``v`` (tree, flat (n,) or columns (n, k)) and the way back.

        The second value maps a flat result in some space to the format that
        ``v`` had: a tree where a tree was given, flat where flat. What is ``lent`` is
        used until the call ends: then a tree whose leaves lie in a row is not copied.
        """
        if self.holds(v):  # what is asked for most has nothing more to be looked at
            return v, _as_flat if self.is_flat else _as_it_is
        if self.backend.is_array(v):
            shape, _, _ = self.backend.describe(v)
            alone = self.names == ("",)
            if shape == self.shapes[0] and alone:
                self.require(f"the {what}", v, dtype=self.dtypes[0])
                if self.is_flat:
                    return v, _as_flat
                return self.pack(v, what), lambda result, space: space.unpack(result)
            if shape[:1] == (self.width,) and len(shape) in (1, 2):
                self.require(f"the {what}", v)
                v = v if self.layout is None else self.layout.vector(v, f"the {what}")
                return v, _as_it_is
            wanted = self.shapes[0] if alone else f"a tree with leaves {list(self.names)}"
            raise ValueError(
                f"the {what} has shape {shape}; expected {wanted}, a flat array ({self.width},) or columns "
                f"({self.width}, k)."
            )
        self.require_own(v, what)
        leaves = self.leaves(v, what)
        flat = self.backend.lying(leaves, self.dtype) if lent and self.layout is None else None
        return self.join(leaves) if flat is None else flat, lambda result, space: space.unpack(result)

    def require_own(self, tree: Tree, what: str = "vector") -> None:
        """Raise for a tree whose arrays are of another framework."""
        owner = backend_of(tree)
        if owner is not self.backend:
            raise TypeError(
                f"the {what} belongs to {owner.name} but the operator to {self.backend.name}; "
                f"{how_to_bring(self.backend)}."
            )

    def check(self, vector: Vector, what: str = "vector") -> Vector:
        """``vector`` itself if it is flat (n,) or columns (n, k) of this space's dtype; a clear error otherwise."""
        shape = self.require(f"the {what}", vector)
        if shape[:1] != (self.width,) or len(shape) > 2:
            raise ValueError(f"the {what} has shape {shape}; expected ({self.width},) or ({self.width}, k).")
        return vector

    def holds(self, vector: Any) -> bool:
        """Whether ``vector`` is, at first sight, a flat one (n,) of this space; :meth:`check` says what else it is."""
        ops = self.backend
        if self.layout is not None or not ops.is_array(vector) or ops.describe(vector) != self._flat:
            return False
        return "compiled" in ops.capabilities or ops.layout((vector,)) is None

    @cached_property
    def _flat(self) -> tuple[tuple[int, ...], str, Hashable]:
        return (self.width,), self.dtype, self.device

    @property
    def one(self) -> Array:
        """The number 1, a 0-d array where vectors lie: of their dtype, in single precision at least."""
        return self.backend.asarray(np.ones(()), wide(self.dtype), self.device)

    def zeros(self, columns: int | None = None) -> Vector:
        """The zero vector (n,), or (n, columns)."""
        if self.layout is not None:
            return self.layout.zeros(self.dtype, columns)
        return self._filled(np.zeros, columns)

    def random(self, seed: int, columns: int | None = None) -> Vector:
        """Standard normal entries: the same numbers on every backend for the same seed."""
        return self._filled(np.random.default_rng(seed).standard_normal, columns)

    def _filled(self, make: Callable[..., Any], columns: int | None) -> Vector:
        shape = (self.size,) if columns is None else (self.size, columns)
        return self.from_order(make(shape), self.dtype)

    def in_order(self, vector: Vector) -> np.ndarray[Any, Any]:
        """A flat vector (n,), or columns, on the host in the order of the leaves, whatever the layout.

        Where each process has a part, all of them ask, and get the whole, a leaf at a time.
        """
        ops = self.backend
        if self.layout is None:
            return np.asarray(ops.to_numpy(vector))
        leaves = self.layout.split(vector, (ops.describe(vector)[1],) * len(self.shapes))
        whole = map(ops.gathered, self._given(leaves)) if self.in_parts else iter(leaves)
        return np.concatenate([np.reshape(ops.to_numpy(leaf), (-1, *vector.shape[1:])) for leaf in whole])

    def ordered(self, vector: Vector) -> Array:
        """A flat vector (n,), or columns, as one array in the order of the leaves, whatever the layout."""
        if self.layout is None:
            return vector
        ops, dtype = self.backend, self.backend.describe(vector)[1]
        leaves = self.layout.split(vector, (dtype,) * len(self.shapes))
        whole = ops.pack(list(map(ops.gathered, self._given(leaves))), dtype)
        return ops.namespace().reshape(whole, (self.size, *vector.shape[1:]))

    def tree_of(self, ordered: Array) -> Tree:
        """The tree of a vector (n,) in the order of the leaves."""
        leaves = self.backend.split(ordered, self.shapes, self.dtypes)
        return self.backend.unflatten(self.structure, self.laid_out(leaves))

    def from_order(self, host: np.ndarray[Any, Any], dtype: str) -> Vector:
        """The inverse of :meth:`in_order`."""
        if self.layout is None:
            return self.backend.asarray(host, dtype, self.device)
        ends = np.cumsum([math.prod(shape) for shape in self.shapes]).tolist()
        parts = zip(np.split(host, ends[:-1]), self.shapes, strict=True)
        leaves = [
            self.backend.asarray(part.reshape(shape + host.shape[1:]), dtype, self.device) for part, shape in parts
        ]
        return self.layout.pack(leaves, dtype)

    def part(self, leaves: tuple[int, ...]) -> Space:
        """The space of these leaves alone: a flat dict by name."""
        if self.names == ("",):
            return self
        ops, names = self.backend, tuple(self.names[i] for i in leaves)
        _, order, structure = ops.flatten(dict(zip(names, leaves, strict=True)))
        if tuple(order) != leaves:  # frameworks that sort keys would permute the leaves: use a list instead
            _, _, structure = ops.flatten(list(leaves))
        shapes, dtypes = tuple(self.shapes[i] for i in leaves), tuple(self.dtypes[i] for i in leaves)
        layout = None if self.layout is None else self.layout.part(leaves)
        return Space(ops, structure, names, shapes, dtypes, self.dtype, self.device, layout)

    def agrees(self, other: Space) -> bool:
        """Whether vectors of both are interchangeable as flat arrays."""
        if self is other:
            return True
        same = (self.backend, self.size, self.dtype, self.layout) == (
            other.backend,
            other.size,
            other.dtype,
            other.layout,
        )
        return same and (None in (self.device, other.device) or self.device == other.device)

    def __repr__(self) -> str:
        shape = f"{self.size}" if self.is_flat else f"{self.size} in {len(self.names)} leaves"
        where = f" on {self.device}" if self.device else "" if self.layout is None else f" in {self.layout}"
        return f"Space({shape}, {self.backend.name} {self.dtype}{where})"

    def told(self, most: int = 20) -> list[tuple[str, str]]:
        """Name and shape of each leaf, of at most so many; one line says how many there are more.

        >>> import numpy as np
        >>> Space.of({"b": np.ones(3), "w": np.ones((3, 4))}).told(1)
        [('b', '(3,)'), ('and', '1 more')]
        """
        lines = [(name, str(shape)) for name, shape in zip(self.names, self.shapes, strict=True)]
        return lines if len(lines) <= most else [*lines[:most], ("and", f"{len(lines) - most} more")]


@lru_cache(maxsize=64)
def _space(
    backend: Backend,
    structure: Hashable,
    names: tuple[str, ...],
    leaves: tuple[tuple[tuple[int, ...], str, Hashable], ...],
    layout: Any,
    what: str,
) -> Space:
    """The space of such leaves: the same object each time, because a loop asks at every step."""
    devices: dict[Hashable, str] = {}
    for name, (_, dtype, device) in zip(names, leaves, strict=True):
        if dtype not in REAL:
            raise TypeError(
                f"{_leaf(name, what)} has dtype {dtype}; vectors are real floating point, of float64 at most. Cast it, "
                "or keep integers and booleans out of the tree (close over them in the model); complex numbers become "
                "pairs of real ones by lg.as_real."
            )
        devices.setdefault(device, name)
    devices.pop(None, None)
    if len(devices) > 1:
        places = ", ".join(f"{name!r} on {device}" for device, name in devices.items())
        raise ValueError(f"the {what} lie on several devices ({places}); move them to one.")
    shapes, dtypes = tuple(shape for shape, _, _ in leaves), tuple(dtype for _, dtype, _ in leaves)
    if sum(map(math.prod, shapes)) == 0:
        raise ValueError(f"the {what} hold no entries: there is nothing to differentiate or solve for.")
    dtype = max(dtypes, key=_WIDTH.__getitem__)
    if {"float16", "bfloat16"} <= set(dtypes) and _WIDTH[dtype] == 1:
        dtype = "float32"  # neither of the two holds the other's numbers
    return Space(backend, structure, _distinct(names), shapes, dtypes, dtype, next(iter(devices), None), layout)


def _as_flat(result: Vector, space: Space) -> Any:
    """The way back for what came in as all of its space: a flat result, or its tree where there is one."""
    return result if len(space.shapes) == 1 else space.unpack(result)


def _as_it_is(result: Vector, space: Space) -> Any:
    return result


def require_here(backend: Backend, array: Array, where: str) -> None:
    """Raise for an array that lies over several processes, among what does not."""
    if "compiled" not in backend.capabilities and backend.layout([array]) is not None:
        raise TypeError(
            f"{where} is a {type(array).__qualname__}, of which each process has a part, among arrays that each has "
            "all of: gather it, on all of them, x.full_tensor()."
        )


def _leaf(name: str, what: str) -> str:
    return f"leaf {name!r} of the {what}" if name else f"the {what}"


def _normal(backend: Backend, tree: Tree) -> Tree:
    odd = isinstance(tree, Mapping) and not isinstance(tree, dict)
    return backend.normalize(as_tree(tree) if odd else tree)


def wide(dtype: str) -> str:
    """The dtype in which numbers of this one are added up and factored: single precision at least.

    >>> wide("bfloat16"), wide("float64")
    ('float32', 'float64')
    """
    return dtype if dtype == "float64" else "float32"


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """Leaf names, with a number after those that another path already reads like ("a.b" as a key, b in a)."""
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        distinct.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(distinct)
