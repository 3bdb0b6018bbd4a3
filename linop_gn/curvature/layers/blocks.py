r"""Products with the diagonal blocks of the Gauss-Newton operator, from the rows of its root by layers.

With P_nc the rows of a block's weight V (:mod:`.rows`), the product is sum_nc P_nc <P_nc, V>, and

    <P_nc, V> = sum_t g_ntc . V a_nt,        sum_nc r_nc P_nc = sum_nt (sum_c r_nc g_ntc) a_nt^T:

four flops for each weight and row, however deep the model is, and nothing of its graph, where a pass up and down again
from each block costs the more the deeper the model. It takes a pass backward for each number that an example puts out
to get there. Where positions are many (convolutions) the rows are formed, and multiplied as a matrix.
"""

from __future__ import annotations

import math
from functools import reduce
from operator import add
from typing import Any

from ...operators.base import LinearOperator
from ...operators.partition import LeafBlock
from ...operators.places import Place, assembled, lies_as_product, lies_by_columns
from ...protocols import Array, Product, Scalar, Vector, View
from ...records import record, replace, static
from ...spaces import Space
from .rows import Examples, Layers, Share

__all__ = ["LayerBlocks", "block_factors", "covered", "cut", "inner", "outer", "pays"]

_ENTRIES = 1 << 22
"""Numbers in the rows of a weight up to which they are formed, or so many times those that they are made of."""
_MULTIPLE = 4
_PRODUCTS = 5
"""Products within which what they save must have paid for the factors."""


@record
class Pair:
    """The rows P of one term of a weight, and of its bias: what was pulled, and what it is multiplied with."""

    moving: Array
    """(examples, columns, groups x positions x size)."""
    fixed: Array
    """(groups, examples x positions, other size), without the one that stands for a bias."""
    turned: bool = static()

    def inner(self, xp: Any, given: list[Array]) -> Array:
        """<P_nc, V> (examples, columns) for V (groups, outputs, inputs), and a bias (groups, outputs, 1) after it."""
        made = xp.matmul(self.fixed, given[0] if self.turned else xp.matrix_transpose(given[0]))
        for bias in given[1:]:
            made = made + xp.matrix_transpose(bias)
        (N, _, K), groups = self.moving.shape, self.fixed.shape[0]
        made = xp.reshape(xp.permute_dims(xp.reshape(made, (groups, N, -1)), (1, 0, 2)), (N, 1, K))
        # as a row: on the CPU that takes half as long as a column
        return xp.matmul(made, xp.matrix_transpose(self.moving))[:, 0, :]

    def outer(self, xp: Any, r: Array, bias: bool, flipped: bool, later: bool) -> list[Array | Product]:
        """sum_nc r_nc P_nc (groups, outputs, inputs), and that of a bias; ``flipped``, by columns in memory.

        What is formed ``later`` is, of one group, the product of matrices that lies in memory.
        """
        (N, _, K), (groups, rows, _) = self.moving.shape, self.fixed.shape
        made = xp.matmul(xp.reshape(r, (N, 1, -1)), self.moving)
        if groups > 1:
            made = xp.permute_dims(xp.reshape(made, (N, groups, -1)), (1, 0, 2))
        made = xp.reshape(made, (groups, rows, K * N // (groups * rows)))
        left, right = (self.fixed, made) if self.turned else (made, self.fixed)
        left, right = (right, left) if flipped else (left, right)
        if later and groups == 1:
            weight: Array | Product = Product(left[0, ...].T, right[0, ...])
        else:
            weight = xp.matmul(xp.matrix_transpose(left), right)
            weight = xp.matrix_transpose(weight) if flipped else weight
        return [weight, xp.sum(made, axis=1)[..., None]] if bias else [weight]


@record
class Formed:
    """The rows P of one weight, and of its bias, formed."""

    rows: tuple[Array, ...]
    """(examples x columns, groups x outputs x inputs), and of a bias."""
    columns: int = static()

    def inner(self, xp: Any, given: list[Array]) -> Array:
        """<P_nc, V> (examples, columns) for V (groups, outputs, inputs), and a bias (groups, outputs, 1) after it."""
        made = sum(xp.matmul(P, xp.reshape(V, (-1,))) for P, V in zip(self.rows, given, strict=True))
        return xp.reshape(made, (-1, self.columns))

    def outer(self, xp: Any, r: Array, bias: bool, flipped: bool, later: bool) -> list[Array | Product]:
        """sum_nc r_nc P_nc, flat, and that of a bias."""
        return [xp.matmul(xp.reshape(r, (-1,)), P) for P in self.rows]


@record
class LayerBlocks(LinearOperator):
    """blockdiag(J_l^T H_L J_l) for the blocks l of a Gauss-Newton operator, from its rows by layers."""

    factors: tuple[tuple[tuple[Any, ...], ...], ...]
    """For each block and each place in it: what its rows are summed of."""
    scale: Scalar
    others: LinearOperator | None
    """The blocks that are in no layer, by products on the kept graph; None where there are none."""
    graph: LinearOperator | None
    """All blocks by such products, for where examples enter each other's outputs; None where it is known that not."""
    apart: Array | None
    """Whether they do not."""
    places: tuple[tuple[Place, ...], ...] = static()
    domain: Space = static(default=None)
    psd: bool = static(default=True)
    leaf_blocks: tuple[LeafBlock, ...] | None = static(default=None)

    def matvec(self, v: Vector) -> Vector:
        ops, graph = self.backend, self.graph
        if graph is None:
            return self._by_layers(v)
        made: Vector = ops.branch(
            ops.item(self.apart), lambda v: (self._by_layers(v),), lambda v: (graph.matvec(v),), v
        )[0]
        return made

    def _by_layers(self, v: Vector) -> Vector:
        space, parts = self.domain, []
        for places, factors in zip(self.places, self.factors, strict=True):
            r = self.scale * inner(space, places, factors, v)
            parts += outer(space, places, factors, r, space.backend.describe(v)[1])
        return assembled(space, parts, None if self.others is None else self.others.matvec(v))


def inner(space: Space, places: tuple[Place, ...], factors: tuple[tuple[Any, ...], ...], v: Vector) -> Array:
    """<P_nc, v> (examples, columns) of the rows P in these places."""
    xp, r = space.backend.namespace(), None
    for place, terms in zip(places, factors, strict=True):
        dtype = terms[0].moving.dtype if isinstance(terms[0], Pair) else terms[0].rows[0].dtype
        V = [xp.astype(part.read(space, v), dtype, copy=False) for part in _apart(place)]
        for term in terms:
            made = term.inner(xp, V)
            r = made if r is None else r + made
    return r


def outer(
    space: Space, places: tuple[Place, ...], factors: tuple[tuple[Any, ...], ...], r: Array, dtype: str
) -> list[tuple[View, Array | Product]]:
    """sum_nc r_nc P_nc in these places: what :func:`assembled` takes."""
    ops, parts = space.backend, list[tuple[View, Array | Product]]()
    xp = ops.namespace()

    def formed(one: Array | Product) -> Array:
        if not isinstance(one, Product):
            return one
        made = xp.matmul(*one)
        return made.T if flipped else made

    for place, terms in zip(places, factors, strict=True):
        home = _apart(place)
        flipped = lies_by_columns(home[0])
        asked = len(home) > 1, flipped, "in_place" in ops.capabilities  # a compiler places products as it sees fit
        each = zip(*(term.outer(xp, r, *asked) for term in terms), strict=True)
        for part, (first, *more) in zip(home, each, strict=True):
            alone = isinstance(first, Product) and not more and {ops.describe(x)[1] for x in first} == {dtype}
            if alone and lies_as_product(space, part, flipped):
                parts.append((part.weight, first))
                continue
            whole = reduce(add, map(formed, more), formed(first))  # where sum would begin with 0, a copy
            parts += part.written(space, ops.cast(xp.reshape(whole, part.sizes), dtype))
    return parts


def _apart(place: Place) -> list[Place]:
    """A weight, and its bias: to read and write these one by one takes no copy of the weight."""
    whole = [place._replace(bias=None)]
    return whole if place.bias is None else [*whole, Place(place.name, place.bias, len(place.bias.shape) - 1)]


def cut(blocks: tuple[tuple[int, ...], ...], layers: Layers) -> Layers:
    """The rows with each bias by itself whose weight is in another of the blocks of leaves."""
    of_leaf = {leaf: number for number, leaves in enumerate(blocks) for leaf in leaves}
    torn = [k for k, p in enumerate(layers.places) if len({of_leaf[view.leaf] for view in p.views}) > 1]
    places, made = list(layers.places), list(zip(layers.shares, layers.moving, layers.fixed, strict=True))
    for k in torn:
        mine = [(m, f) for share, m, f in made if share.block == k]
        made = [(share, m, f[..., :-1] if share.block == k else f) for share, m, f in made]
        places[k], bias = _apart(places[k])
        made += [(Share(len(places), False), m, f[..., -1:]) for m, f in mine]
        places.append(bias)
    shares, moving, fixed = zip(*made, strict=True)
    return replace(layers, shares=shares, moving=moving, fixed=fixed, places=tuple(places))


def covered(
    blocks: tuple[tuple[int, ...], ...], places: tuple[Place, ...], left: tuple[int, ...]
) -> dict[int, list[int]]:
    """The places in each of the blocks of leaves that lies in layers alone, by the number of the block."""
    of_leaf = {leaf: number for number, leaves in enumerate(blocks) for leaf in leaves}
    outside = {of_leaf[leaf] for leaf in left}
    found: dict[int, list[int]] = {}
    for index, place in enumerate(places):
        number = of_leaf[place.weight.leaf]
        if number not in outside:
            found.setdefault(number, []).append(index)
    return found


def block_factors(space: Space, blocks: tuple[tuple[int, ...], ...], layers: Layers) -> tuple[Any, ...]:
    """For each block of places, and each of these, what its rows are summed of."""
    xp = space.backend.namespace()
    return tuple(tuple(_factors_of(xp, layers, place) for place in own) for own in blocks)


def _factors_of(xp: Any, layers: Layers, place: int) -> tuple[Any, ...]:
    """What the rows of a place are summed of, in the form in which products take fewer flops."""
    terms = [
        (m, f, share.turned)
        for m, f, share in zip(layers.moving, layers.fixed, layers.shares, strict=True)
        if share.block == place
    ]
    (C, _, N), (groups, outputs, inputs) = terms[0][0].shape[:3], layers.places[place].sizes
    bias = layers.places[place].bias is not None
    size, m = groups * outputs * inputs, C * N
    by_pairs = sum(N * f.shape[2] * size + math.prod(t.shape) for t, f, _ in terms)
    held = sum(math.prod(t.shape) + math.prod(f.shape) for t, f, _ in terms)
    if m * size < by_pairs and m * size <= max(_ENTRIES, _MULTIPLE * held):
        P = sum(
            xp.matmul(xp.matrix_transpose(f[None] if turned else t), t if turned else f[None]) for t, f, turned in terms
        )
        P = xp.permute_dims(P, (2, 0, 1, 3, 4))
        parts = (P[..., :-1], P[..., -1]) if bias else (P,)
        return (Formed(tuple(xp.reshape(part, (m, -1)) for part in parts), C),)
    return tuple(
        Pair(
            xp.reshape(xp.permute_dims(t, (2, 0, 1, 3, 4)), (N, C, -1)),
            xp.reshape(f[..., : f.shape[-1] - bias], (groups, -1, f.shape[-1] - bias)),
            turned,
        )
        for t, f, turned in terms
    )


def pays(blocks: tuple[tuple[int, ...], ...], made: Examples) -> bool:
    """Whether products by layers take so much fewer flops than on the graph that a few of them pay for the factors.

    On the graph a block's product goes up and down through all uses from its first one on, two flops each for a weight
    and a row; by layers its own alone are counted, and what has been pulled.
    """
    uses = made.batch.made.uses
    flops = [math.prod(use.rows) * math.prod(use.weight.shape) if use.kind == "linear" else 0 for use in uses]
    C, graph, by_layers = made.columns, 0, 0
    for leaves in blocks:
        own = [i for i, use in enumerate(uses) if {v.leaf for v in (use.weight, use.bias) if v} & set(leaves)]
        if own:
            graph += 4 * sum(flops[min(own) :])
            by_layers += sum(4 * flops[i] + 4 * C * math.prod(uses[i].rows) * _width(uses[i]) for i in own)
    return 2 * (C + 1) * sum(flops) < _PRODUCTS * (graph - by_layers)


def _width(use: Any) -> int:
    return math.prod(use.weight.shape[: 1 + use.outputs])
