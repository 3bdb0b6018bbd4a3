"""Trees and vectors: flatten, pack, split and back, over drawn trees."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from ...spaces import Space
from ..strategies import Shape, layouts, tree
from .base import Draws, Kit, agree, claim, drawn

__all__ = ["Spaces"]

FEW_LAYOUTS = (
    Shape((3,)),
    {"weight": Shape((2, 3)), "bias": Shape(()), "head": [Shape((0,)), (Shape((1, 2)),)]},
    [{"a.b": Shape((2,)), "layer1": Shape((3, 1))}, Shape((4,))],
)
"""Where each shape is a compilation."""

SHAPES = [(2, 3), (), (4,), (0,), (1, 2, 1)]


class Pair(NamedTuple):
    """A named tuple, as trees have them."""

    first: Any
    second: Any


class Spaces(Kit):
    """The bijection between trees and flat vectors."""

    def _tree(self, data: Draws, dtype: str) -> Any:
        layout = data.draw(st.sampled_from(FEW_LAYOUTS) if self.compiled else layouts())
        return tree(self.ops, layout, data.draw(st.integers(0, 2**32 - 1)), dtype)

    @drawn(20)
    def test_pack_and_unpack(self, data: Draws) -> None:
        """unpack undoes pack over any tree, in structure, shapes, dtypes and every bit; blocks say what lies where."""
        self.require("trees")
        dtype = data.draw(st.sampled_from(self.dtypes))
        given = self._tree(data, dtype)
        space = Space.of(given)
        names, leaves, structure = self.ops.flatten(given)
        hosts = [self.host(leaf) for leaf in leaves]
        with self.untouched("packing", *leaves):
            flat = space.pack(given)
            got = self.ops.describe(flat)
            claim(got[:2] == ((space.size,), dtype), f"pack made a vector of {got}")
            claim(got[2] == self.ops.describe(self.array(0.0, dtype))[2], f"pack moved the vector to {got[2]}")
            agree(self.host(flat), np.concatenate([leaf.reshape(-1) for leaf in hosts]), 0.0, "pack")
            back = space.unpack(flat)
            again, parts, shape = self.ops.flatten(back)
            claim((again, shape) == (names, structure), f"unpack made a tree of {again}, expected {names}")
            for name, part, leaf, old in zip(names, parts, leaves, hosts, strict=True):
                self.same_kind(part, leaf, f"unpack of leaf {name!r}")
                agree(self.host(part), old, 0.0, f"leaf {name!r}, packed and unpacked,")
            whole = self.host(flat)
            for block, old in zip(space.slices.values(), hosts, strict=True):
                agree(whole[block], old.reshape(-1), 0.0, "a block of the vector")
            self.ops.scale(3.0, flat)

    @drawn(10)
    def test_split_of_columns(self, data: Draws) -> None:
        """Columns (n, k) are split into leaves (*shape, k), which are those of each column."""
        dtype = data.draw(st.sampled_from(self.dtypes))
        sizes = [math.prod(shape) for shape in SHAPES]
        ends = np.cumsum(sizes)
        v = self.normal(data, sum(sizes), 2, dtype=dtype)
        V = self.array(v, dtype)
        for columns, shape in ((V, (2,)), (V[:, 0], ())):
            host = self.host(columns)
            leaves = self.ops.split(columns, SHAPES, [dtype] * len(SHAPES))
            claim(len(leaves) == len(SHAPES), f"split made {len(leaves)} leaves of {len(SHAPES)}")
            for leaf, size, end, part in zip(leaves, sizes, ends, SHAPES, strict=True):
                expected = host[end - size : end].reshape(part + shape)
                claim(self.ops.describe(leaf)[:2] == (part + shape, dtype), f"a leaf {part} of {shape}: wrong kind")
                agree(self.host(leaf), expected, 0.0, f"leaf {part} of columns {shape}")

    def test_pack_of_mixed_precision(self) -> None:
        """A tree of two precisions is packed in the wider one, and each leaf comes back in its own."""
        self.require("float64")
        wide, narrow = np.full(2, 1 / 3), np.full(3, 1 / 3, "float32")
        mixed = [self.array(narrow, "float32"), self.array(wide, "float64")]
        flat = self.ops.pack(mixed, "float64")
        claim(self.ops.describe(flat)[1] == "float64", f"pack made {self.ops.describe(flat)[1]}")
        agree(self.host(flat), np.concatenate([narrow, wide]), 0.0, "pack")
        parts = self.ops.split(flat, [(3,), (2,)], ["float32", "float64"])
        for part, leaf in zip(parts, mixed, strict=True):
            self.same_kind(part, leaf, "split")
            agree(self.host(part), self.host(leaf), 0.0, "split")

    def test_pack_copies(self) -> None:
        """A packed vector is nobody else's memory, though it has a single leaf."""
        for size in (1, 7, 64, 1000, 100_000):
            leaf = self.array(np.ones(size), self.wide)
            self.ops.scale(3.0, self.ops.pack([leaf], self.wide))
            claim(bool(np.all(self.host(leaf) == 1.0)), f"pack of one leaf of {size} entries is that leaf")

    def test_names(self) -> None:
        """Leaf names join the parts of the path by dots, leaves come in that order, and a single array is nameless."""
        self.require("trees")
        x, y = self.array(np.zeros(1), self.wide), self.array(np.ones(2), self.wide)
        nested = {"head": (x,), "layers": [{"weight": y}, {"weight": x}], "pair": Pair(x, y)}
        names, leaves, structure = self.ops.flatten(nested)
        expected = ["head.0", "layers.0.weight", "layers.1.weight", "pair.first", "pair.second"]
        claim(names == expected, f"flatten named the leaves {names}, expected {expected}")
        claim(all(a is b for a, b in zip(leaves, [x, y, x, x, y], strict=True)), "flatten: the leaves are not in order")
        claim(self.ops.flatten(x)[0] == [""], "the name of a single array is ''")
        made = self.ops.unflatten(structure, [1, 2, 3, 4, 5])
        want = {"head": (1,), "layers": [{"weight": 2}, {"weight": 3}], "pair": Pair(4, 5)}
        claim(made == want and isinstance(made["pair"], Pair), f"unflatten made {made}, expected {want}")

    def test_structures_are_values(self) -> None:
        """Structures of like trees are equal and hash alike; those of other trees are not equal."""
        self.require("trees")
        x = self.array(np.zeros(1), self.wide)
        one, two, other = (self.ops.flatten(t)[2] for t in ({"a": x, "b": [x]}, {"a": x, "b": [x]}, {"a": x, "b": x}))
        claim(one == two and hash(one) == hash(two), "structures of two like trees differ")
        claim(one != other, "structures of different trees are equal")
        claim(Space.of({"a": x}) == Space.of({"a": x}), "spaces of two like trees differ")

    def test_normalize(self) -> None:
        """normalize returns trees as they are."""
        x = self.array(np.zeros(1), self.wide)
        for given in (x, [x], {"a": (x,)}):
            claim(self.ops.normalize(given) is given, f"normalize changed a {type(given).__qualname__}")

    def test_random_vectors(self) -> None:
        """Random vectors of a seed are the same numbers on every backend."""
        for dtype in self.dtypes:
            space = Space.flat(5, self.array(np.zeros(1), dtype))
            rng = np.random.default_rng(3)
            agree(self.host(space.random(3)), rng.standard_normal(5).astype(dtype), 0.0, "random(3)")
            agree(self.host(space.zeros(2)), np.zeros((5, 2)), 0.0, "zeros(2)")
