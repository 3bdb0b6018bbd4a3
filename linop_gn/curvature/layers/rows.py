r"""The rows of the Jacobian by layers: products of what each layer is given, and of derivatives in what it makes.

A layer computes z_r = W a_r for the rows r = (n, t) of a batch: examples n, positions t. Where no example enters
another's outputs, the row of J for the number c of example n is, in this layer's weight,

    P_nc = sum_t g_ntc a_nt^T,        g_ntc the derivative of z_nc in the layer's result,

so that *one* pass backward gives a column c for all examples at once: as many passes as an example has numbers, not as
many as there are outputs, and none of them forms a gradient in a parameter. A bias is one more input, an embedding is
given a one among zeros, a scale or shift has sum_t g_ntc * x_nt. Of S^T J, with H_L = S S^T the loss's Hessian, z_nc is
the product of the outputs with column c of the root S.

That no example enters another's outputs is looked at, not believed, unless the framework tells it from the operations:
in one more pass each example counts another number of times, and its derivatives must be those of before times that
number. So a batch norm that is training is found out, whatever it is written with. Everybody who asks has another way
for such a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ...operators.places import Place
from ...protocols import Array, Vector
from ...records import Partial, record, replace, static
from ...spaces import wide
from ..losses.weighting import counter
from ..point import Point
from ..term import Term
from .batch import Batch, hessian_of, observed
from .layout import Plan, Settings

__all__ = ["Examples", "Layers", "Share", "examples", "has_layers", "layers", "layers_at", "told_at"]

_SETTINGS = Settings("expand", 1 << 62)  # no factor is a diagonal
_EXACT = ("float32", "float64")
_ENTRIES = 1 << 22
"""Numbers that factors may take in any case, and the inputs of an embedding as ones among zeros."""
_MULTIPLE = 16
"""Or so many times those of the parameters, and of what the layers are given and make."""
_TOGETHER = 64
"""Columns in one pass at most."""
_ROUNDING = 4e2
"""In round-offs of the largest: what may lie between derivatives that are taken together and one by one."""


class Share(NamedTuple):
    """A term of the rows P of a block."""

    block: int
    turned: bool
    """Whether the weight is used transposed there: what is pulled is then on the side of its inputs."""


class Examples(NamedTuple):
    """A batch evaluated, whose parameters enter layers, all but those of ``rest``."""

    batch: Batch
    plans: tuple[Plan, ...]
    rest: tuple[int, ...]
    """Leaves that enter anything else as well."""

    @property
    def columns(self) -> int:
        """How many numbers an example has."""
        return int(math.prod(self.batch.made.outputs.shape)) // self.batch.examples

    @property
    def apart(self) -> bool:
        """Whether it is known, and needs no looking at, that no example enters another's outputs."""
        batch, uses = self.batch, {i for block in self.plans for i in (*block.uses, *block.transposed)}
        whole = tuple(batch.made.outputs.shape[:1]) == (batch.examples,) and all(batch.axis(i) == 0 for i in uses)
        return batch.made.apart and whole

    @property
    def shares(self) -> tuple[Share, ...]:
        """The terms of all blocks."""
        made: list[Share] = []
        for k, block in enumerate(self.plans):
            made += [Share(k, False)] * (1 if block.kind == "elementwise" else len(block.uses))
            made += [Share(k, True)] * len(block.transposed)
        return tuple(made)

    def fixed(self) -> Iterator[Array]:
        """The sides (groups, examples, positions, size) of the terms that do not depend on a cotangent."""
        batch, xp = self.batch, self.batch.ops.namespace()
        for block in self.plans:
            if block.kind == "elementwise":
                one = xp.ones_like(xp.reshape(batch.made.outputs, (-1,))[: batch.examples])
                yield xp.broadcast_to(one[None, :, None, None], (block.place.sizes[0], batch.examples, 1, 1))
            else:
                yield from (self._given(i, block) for i in (*block.uses, *block.transposed))

    def _given(self, i: int, block: Plan) -> Array:
        batch, ops = self.batch, self.batch.ops
        if batch.made.uses[i].kind != "lookup":
            return batch.rows(i, batch.given(i), block)
        xp, index = ops.namespace(), batch.given(i)[..., None]
        hit = index == counter(xp, batch.made.uses[i].weight.shape[-1], index)
        return batch.rows(i, xp.astype(hit, batch.made.outputs.dtype)[None])

    def pull(self, u: Array) -> list[Array]:
        """The other sides (groups, examples, positions, size), for a cotangent u like the outputs."""
        batch, xp = self.batch, self.batch.ops.namespace()
        pulled, made = batch.made.pull(u)[0], []
        for block in self.plans:
            if block.kind != "elementwise":
                made += [batch.rows(i, pulled[i]) for i in (*block.uses, *block.transposed)]
                continue
            parts = []
            for i in block.uses:
                g = batch.rows(i, pulled[i])
                g = g * batch.rows(i, batch.given(i)) if batch.made.uses[i].kind == "scale" else g
                parts.append(xp.sum(g, axis=2, keepdims=True))
            made.append(sum(parts[1:], parts[0]))
        return made

    def like_outputs(self, given: Array) -> Array:
        """(examples, columns), or so many in a vector, like the outputs."""
        return self.batch.ops.namespace().reshape(given, tuple(self.batch.made.outputs.shape))

    def numbers(self) -> Array:
        """One in [1, e) for each example, (examples,): exp of the parts of multiples of the golden ratio below one.

        No two are equal, and no sum of them with whole coefficients is zero, where those of the multiples themselves
        are: in differences of neighbours.
        """
        xp, z = self.batch.ops.namespace(), self.batch.made.outputs
        multiples = 0.6180339887498949 * xp.astype(counter(xp, self.batch.examples, z), z.dtype)
        return xp.exp(multiples - xp.floor(multiples))

    def mixed(self) -> Array:
        """One in [1, e) for each column, (columns,): no sum of them with whole coefficients is zero either.

        What one column has of other examples is not hidden by another column.
        """
        xp, z = self.batch.ops.namespace(), self.batch.made.outputs
        return xp.exp(xp.astype(counter(xp, self.columns, z), z.dtype) / self.columns)

    def agree(self, found: list[Array], pulled: list[Array]) -> Array:
        """Whether what has been found with examples times their :meth:`numbers` is what was ``pulled`` times these."""
        xp, good = self.batch.ops.namespace(), []
        s = xp.reshape(self.numbers(), (1, -1, 1, 1))
        for a, b in zip(found, pulled, strict=True):
            gap, eps = abs(a - xp.astype(s, b.dtype, copy=False) * b), xp.finfo(b.dtype).eps
            own = xp.max(abs(b), axis=(0, 2, 3), keepdims=True)  # examples may count very differently
            room = eps * xp.maximum(_ROUNDING * own, xp.max(own))
            good.append(xp.all((gap <= room) | xp.isnan(gap)))
        return xp.all(xp.stack(good))


def has_layers(point: Point, streamed: bool = False) -> bool:
    """Whether a model's layers can be asked for: it is differentiated here, by the framework; ``streamed`` data do."""
    terms, ops = point.objective, point.space.backend
    supplied = terms.supplied is not None and terms.supplied.first_order
    here = not ((terms.host and not streamed) or supplied or terms.loss is None or terms.is_bridged(point.space))
    return here and ops.calculus is not None and point.space.layout is None and point.space.dtype in _EXACT


def examples(term: Term, x: Vector) -> Examples | None:
    """The batch of a term at x; None where its rows cannot be had by layers."""
    try:
        batch = observed(_SETTINGS, term, x)
    except NotImplementedError:  # the framework cannot tell
        return None
    z = batch.made.outputs
    if not (batch.examples and math.prod(z.shape)) or batch.ops.describe(z)[1] not in _EXACT:
        return None
    unfit = {i for i in range(len(batch.made.uses)) if not batch.by_example((i,)) or _is_large(batch, i)}
    plans = [p for p in batch.plans if p.kind != "diagonal" and not unfit.intersection((*p.uses, *p.transposed))]
    left = {view.leaf for p in batch.plans if p not in plans for view in p.place.views}
    rest = tuple(sorted(leaf for leaf in left if math.prod(term.space.shapes[leaf])))
    kept = tuple(p for p in plans if not any(view.leaf in rest for view in p.place.views))
    lost = {view.leaf for p in plans if p not in kept for view in p.place.views}
    rest = tuple(sorted({*rest, *lost}))
    kept = tuple(p for p in kept if not any(view.leaf in rest for view in p.place.views))
    return Examples(batch, kept, rest) if kept else None


def _is_large(batch: Batch, i: int) -> bool:
    use = batch.made.uses[i]
    return use.kind == "lookup" and math.prod(use.rows) * use.weight.shape[-1] > _ENTRIES


@record
class Layers:
    """The rows of S^T J of a batch, each block's as sums over terms and positions of products of two sides.

    ``stacked`` ones hold several batches, with a leading axis over them on every array.
    """

    moving: tuple[Array, ...]
    """What was pulled, for each term (columns, groups, examples, positions, size)."""
    fixed: tuple[Array, ...]
    """The other sides (groups, examples, positions, size)."""
    rest: Array | None
    """The rows (examples x columns, n) of the leaves that enter no layer; None where there are none."""
    outputs: Array
    """(examples, columns)."""
    slope: Array | None
    """(examples, columns): q with S q = dL/dz; None where it was not asked for."""
    apart: Array
    """Whether no example enters another's outputs."""
    shares: tuple[Share, ...] = static()
    places: tuple[Place, ...] = static()
    left: tuple[int, ...] = static()
    """The leaves of ``rest``."""
    looked: bool = static(default=True)
    """Whether a pass was taken to find ``apart`` out."""
    stacked: bool = static(default=False)

    @property
    def passes(self) -> int:
        """Passes backward that it took."""
        many = 0 if self.rest is None else math.prod(self.outputs.shape)
        return int(self.outputs.shape[-1]) + self.looked + many

    def hold_for(self, pieces: tuple[Any, ...]) -> Array:
        """Whether they are those of linearised batches: no example enters another's outputs, and outputs are equal.

        A model may draw numbers at each call.
        """
        ops, again = pieces[0].space.backend, self.outputs
        xp, dtype = ops.namespace(), ops.describe(again)[1]
        z, again = ops.pack([piece.outputs for piece in pieces], dtype), ops.pack([again], dtype)
        return self.apart & xp.all(abs(z - again) <= 1e3 * ops.eps(z) * xp.max(abs(z)))


def layers(worth: Callable[[Examples], bool] | None, term: Term, x: Vector) -> tuple[Any, Layers | None]:
    """(None, None, the weight of a batch), and its rows by layers.

    None where they cannot be had, take much memory, or are not ``worth`` it.
    """
    made = examples(term, x)
    if made is None:
        return (None, None, term.weight(term.outputs_at(x))), None
    batch, ops = made.batch, made.batch.ops
    z, xp, (N, C) = batch.made.outputs, ops.namespace(), (batch.examples, made.columns)
    weight = term.weight(z)
    if batch.made.mixes or not (worth is None or worth(made)):
        return (None, None, weight), None
    fixed = tuple(made.fixed())
    shapes = tuple((f.shape[0], *_rows_of(made, share, f)) for share, f in zip(made.shares, fixed, strict=True))
    size = sum(map(math.prod, shapes))
    room = _MULTIPLE * (term.space.size + size + sum(math.prod(f.shape) for f in fixed) + N * C)
    of_rest = sum(math.prod(term.space.shapes[leaf]) for leaf in made.rest) if worth is None else 0
    if C * (size + N * of_rest) > max(_ENTRIES, room):
        return (None, None, weight), None
    bent, dtype = hessian_of(term, z) if batch.piece is None else batch.piece.hessian, wide(ops.describe(z)[1])
    root = bent.root(xp)

    def pull(e: Vector) -> list[Array]:
        return made.pull(root.product(xp, made.like_outputs(e)))

    like, looked = xp.reshape(z, (-1,)), not made.apart
    given = xp.reshape(xp.broadcast_to(ops.identity(C, like)[:, None, :], (C, N, C)), (C, N * C))
    if looked:
        given = xp.concat([given, xp.reshape(made.numbers()[:, None] * made.mixed()[None, :], (1, -1))])
    pulled = ops.over_rows(pull, given, min(_TOGETHER, given.shape[0]))
    moving = tuple(f[:C, ...] for f in pulled) if looked else tuple(pulled)
    rest = slope = None
    if worth is None:
        u = None if batch.piece is None else batch.piece.linearization.seed
        slope = xp.reshape(root.solve(xp, term.cotangent(z) if u is None else u), (N, C))
    if made.rest and worth is None:
        rows = ops.over_columns(
            lambda e: ops.pack(batch.made.pull(root.product(xp, made.like_outputs(e)), made.rest)[1], dtype),
            ops.identity(N * C, like),
            _TOGETHER,
        )
        rest = xp.permute_dims(rows, (1, 0))
    good = _agree(made, pulled) if looked else xp.all(like[:0] == 0)  # of nothing: true, where z is
    told = made.shares, tuple(block.place for block in made.plans), made.rest, looked
    return (None, None, weight), Layers(moving, fixed, rest, xp.reshape(z, (N, C)), slope, good, *told)


def _agree(made: Examples, pulled: list[Array]) -> Array:
    """Whether the last of the rows, the check, is what the others make of it."""
    ops, xp, C = made.batch.ops, made.batch.ops.namespace(), made.columns
    mixed = made.mixed()
    # A zero for the last row: to cut it off would be to copy the others.
    every = ops.cast(xp.concat([mixed, 0.0 * mixed[:1]])[None, :], ops.describe(pulled[0])[1])
    both = [xp.reshape(xp.matmul(every, xp.reshape(f, (C + 1, -1))), f.shape[1:]) for f in pulled]
    return made.agree([f[C, ...] for f in pulled], both)


def _rows_of(made: Examples, share: Share, fixed: Array) -> tuple[int, int, int]:
    """Examples, positions, and the size of what is pulled."""
    _, outputs, inputs = made.plans[share.block].place.sizes
    return fixed.shape[1], fixed.shape[2], inputs if share.turned else outputs


def layers_at(point: Point, worth: Callable[[Examples], bool] | None = None) -> Layers | None:
    """The rows of all batches at a point, one batch after the other; None where they cannot be had by layers.

    With ``worth``, which says whether a batch's are worth their cost, those of the leaves that enter no layer are left
    out, and so is the slope.
    """
    if not has_layers(point):
        return None
    return joined(point.space.backend.namespace(), point.gathered(Partial(layers, worth)).pieces)


@record
class Told:
    """What rows by layers take; no arrays."""

    passes: int = static()
    """Backward."""
    width: int = static()
    """Of all layers together: outputs of those with one position, numbers in the weights of the others."""
    numbers: int = static()
    """In the factors."""
    stacked: bool = static(default=False)


def told_at(point: Point) -> Told | None:
    """What :func:`layers_at` would take, from a pass forward alone; None where there are no layers."""
    if not has_layers(point):
        return None
    pieces = point.gathered(_told).pieces
    if not pieces or any(piece is None for piece in pieces):
        return None
    return Told(pieces[0].passes, pieces[0].width, sum(piece.numbers for piece in pieces))


def _told(term: Term, x: Vector) -> tuple[Any, Told | None]:
    made = examples(term, x)
    if made is None:
        return (None, None, term.weight(term.outputs_at(x))), None
    weight, C = term.weight(made.batch.made.outputs), made.columns
    if made.batch.made.mixes:
        return (None, None, weight), None
    width = numbers = 0
    for share, fixed in zip(made.shares, made.fixed(), strict=True):
        size = fixed.shape[0] * math.prod(_rows_of(made, share, fixed))
        width += math.prod(made.plans[share.block].place.sizes) if fixed.shape[2] > 1 else size // fixed.shape[1]
        numbers += C * size + math.prod(fixed.shape)
    rest = made.batch.examples * C if made.rest else 0
    return (None, None, weight), Told(C + (not made.apart) + rest, width, numbers)


def joined(xp: Any, pieces: tuple[Layers | None, ...]) -> Layers | None:
    """The rows of several batches as those of one."""
    given = [_flattened(xp, piece) for piece in pieces if piece is not None]
    if len(given) < len(pieces) or len({_kind(piece) for piece in given}) > 1:
        return None
    if len(given) == 1:
        return given[0]
    first = given[0]

    def along(name: str) -> Array | None:
        parts = [getattr(piece, name) for piece in given]
        return None if parts[0] is None else xp.concat(parts, axis=0)

    return replace(
        first,
        moving=tuple(xp.concat(parts, axis=2) for parts in zip(*(p.moving for p in given), strict=True)),
        fixed=tuple(xp.concat(parts, axis=1) for parts in zip(*(p.fixed for p in given), strict=True)),
        apart=xp.all(xp.stack([p.apart for p in given])),
        **{name: along(name) for name in ("rest", "outputs", "slope")},
    )


def _kind(piece: Layers) -> Any:
    """What batches must have in common: all but the number of examples."""
    sides = [
        (m.shape[0], m.shape[1], *m.shape[3:], *f.shape[2:]) for m, f in zip(piece.moving, piece.fixed, strict=True)
    ]
    return piece.shares, piece.places, piece.left, tuple(sides), piece.outputs.shape[1:]


def _flattened(xp: Any, piece: Layers) -> Layers:
    if not piece.stacked:
        return piece

    def along(x: Array, axis: int) -> Array:
        """With the axis of the batches before that of the examples, and the two as one."""
        order = list(range(1, x.ndim))
        order.insert(axis, 0)
        x = xp.permute_dims(x, tuple(order))
        return xp.reshape(x, (*x.shape[:axis], -1, *x.shape[axis + 2 :]))

    rows = {name: x for name in ("rest", "outputs", "slope") if (x := getattr(piece, name)) is not None}
    return replace(
        piece,
        moving=tuple(along(m, 2) for m in piece.moving),
        fixed=tuple(along(f, 1) for f in piece.fixed),
        apart=xp.all(piece.apart),
        stacked=False,
        **{name: along(x, 0) for name, x in rows.items()},
    )
