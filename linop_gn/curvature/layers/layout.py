"""Which block stands for which parameters: from the operations that they enter to the factors that are summed.

===============  ======================================================  ==================================
block            of                                                      factors
===============  ======================================================  ==================================
``kronecker``    a weight, with its bias where both enter one operation  L (x) R, in the outputs and inputs
``elementwise``  scale, shift, a bias by itself                          L alone
``diagonal``     a leaf that enters anything else as well                the diagonal of L
===============  ======================================================  ==================================

Uses of one weight are one block: a tied embedding, a cell that is called at each step. Where a weight is used
``transposed`` as well, outputs are inputs there.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from ...operators.places import Place, disjoint
from ...protocols import Use, View
from ...records import record, static
from ...spaces import Space

__all__ = ["Layout", "Plan", "Settings", "plan"]


class Settings(NamedTuple):
    """How factors are made."""

    sharing: str
    """``expand`` or ``reduce``."""
    dense: int
    """The largest side of a factor that is held as a matrix."""
    fisher: str = "type-2"
    """What the factors of the outputs are made of."""


class Plan(NamedTuple):
    """One block."""

    kind: str
    place: Place
    uses: tuple[int, ...]
    """Their numbers."""
    transposed: tuple[int, ...] = ()
    left: bool = True
    """Whether the factor of the outputs is a matrix."""
    right: bool = True
    linear: bool = False
    """Whether all of its uses multiply a matrix with a vector: none looks up a row."""
    why: str = ""
    """What there is to say of it."""


@record
class Layout:
    """The blocks of a model, as what a batch leaves behind beside its sums; no arrays.

    They have no numbers of uses, which may differ from batch to batch, as sequences of other lengths do.
    """

    plans: tuple[Plan, ...] = static()
    mixes: str = static(default="")
    """By what examples depend on each other, where that is known."""
    stacked: bool = static(default=False)

    @classmethod
    def of(cls, plans: tuple[Plan, ...], mixes: str) -> Layout:
        """That of a batch."""
        return cls(tuple(block._replace(uses=(), transposed=(0,) * bool(block.transposed)) for block in plans), mixes)


@lru_cache(maxsize=64)  # a loop asks at each step
def plan(uses: tuple[Use, ...], otherwise: tuple[int, ...], space: Space, settings: Settings) -> tuple[Plan, ...]:
    """The blocks of a model whose parameters enter these uses."""
    uses = tuple(_alone(use) for use in uses)
    empty = [leaf for leaf, shape in enumerate(space.shapes) if not math.prod(shape)]
    others = dict.fromkeys((*otherwise, *empty), "it enters operations that are not known to be linear in it")
    while True:  # at most once for each leaf
        made = _merged(_blocks(uses, others, settings))
        views: dict[int, list[View]] = {}
        for block in made:
            for view in block.place.views:
                views.setdefault(view.leaf, []).append(view)
        clashing = [leaf for leaf, of_leaf in views.items() if not disjoint(space, of_leaf)]
        if not clashing:
            break
        others |= dict.fromkeys(clashing, "its parts overlap, or are used in several ways")
    for leaf, why in sorted((leaf, why) for leaf, why in others.items() if leaf not in empty):
        made.append(Plan("diagonal", _whole(space, leaf), (), left=False, right=False, why=why))
    return _named(made, space)


def _blocks(uses: tuple[Use, ...], others: dict[int, str], settings: Settings) -> list[Plan]:
    """A block for each weight that is not among ``others``, and for each bias that has none to share."""
    blocks: dict[tuple[View, bool], list[int]] = {}  # by weight, and whether that is a matrix there
    transposed: dict[View, list[int]] = {}
    weights: dict[View | None, set[View]] = {}  # that each bias goes with
    for i, use in enumerate(uses):
        if use.weight.leaf in others:
            continue
        matrix, other = use.kind in ("linear", "lookup"), _transposed(use)
        if matrix and (use.weight, True) not in blocks and (other, True) in blocks:
            transposed.setdefault(other, []).append(i)
        else:
            blocks.setdefault((use.weight, matrix), []).append(i)
        weights.setdefault(use.bias, set()).add(use.weight)
    made, biases = [], dict[View, list[int]]()
    for i, use in enumerate(uses):
        if use.weight.leaf in others and use.bias is not None and use.bias.leaf not in others:
            biases.setdefault(use.bias, []).append(i)
    for (view, matrix), members in blocks.items():
        turned = tuple(transposed.get(view, ())) if matrix else ()
        every = (*members, *turned)
        shared = {uses[i].bias for i in every}
        joint = shared.pop() if len(shared) == 1 and not turned else None
        if joint is not None and (joint.leaf in others or len(weights[joint]) > 1 or (joint, False) in blocks):
            joint = None  # it has a block of its own
        for i in every:
            bias = uses[i].bias
            if joint is None and bias is not None and bias.leaf not in others:
                biases.setdefault(bias, []).append(i)
        made.append(_block(view, uses, tuple(members), turned, joint, settings))
    return made + [_elementwise(bias, tuple(members), settings) for bias, members in biases.items()]


def _alone(use: Use) -> Use:
    """The use with the strides of axes of length one as zero, so that equal views are equal."""
    return use._replace(weight=_plain(use.weight), bias=None if use.bias is None else _plain(use.bias))


def _plain(view: View) -> View:
    return view._replace(strides=tuple(s if n > 1 else 0 for n, s in zip(view.shape, view.strides, strict=True)))


def _transposed(use: Use) -> View:
    last, view = 1 + use.outputs, use.weight

    def turn(axes: tuple[int, ...]) -> tuple[int, ...]:
        return (axes[0], *axes[last:], *axes[1:last])

    return view._replace(shape=turn(view.shape), strides=turn(view.strides))


def _block(
    view: View,
    uses: tuple[Use, ...],
    members: tuple[int, ...],
    turned: tuple[int, ...],
    bias: View | None,
    settings: Settings,
) -> Plan:
    first = uses[members[0]]
    if first.kind in ("scale", "shift"):
        return _elementwise(view, members, settings)
    place, linear = Place("", view, first.outputs, bias), all(uses[i].kind == "linear" for i in (*members, *turned))
    _, outputs, inputs = place.sizes
    left, right = outputs <= settings.dense, inputs <= settings.dense
    if first.kind == "lookup":
        right = right and bool(turned)
    sides = [
        f"{size} {what}" for size, what, kept in ((outputs, "outputs", left), (inputs, "inputs", right)) if not kept
    ]
    why = "" if not sides or first.kind == "lookup" else f"a diagonal for its {' and '.join(sides)}"
    return Plan("kronecker", place, members, turned, left, right, linear, why)


def _elementwise(view: View, members: tuple[int, ...], settings: Settings) -> Plan:
    place = Place("", view, len(view.shape) - 1)
    matrix = place.sizes[1] <= settings.dense
    why = "" if matrix else "its diagonal: it is large"
    return Plan("elementwise", place, members, left=matrix, right=False, why=why)


def _merged(made: list[Plan]) -> list[Plan]:
    """Blocks of one place as one: a bias that is shared by layers with weights of their own, or added by itself too."""
    found: dict[Place, Plan] = {}
    for block in made:
        before = found.get(block.place)
        found[block.place] = block if before is None else before._replace(uses=before.uses + block.uses)
    return list(found.values())


def _whole(space: Space, leaf: int) -> Place:
    size = math.prod(space.shapes[leaf])
    return Place("", View(leaf, 0, (1, size), (0, 1)), 1)


def _named(plans: list[Plan], space: Space) -> tuple[Plan, ...]:
    """In the order of their first entries, with the names of their leaves, numbered where a leaf has several."""
    starts = [part.start for part in space.slices.values()]
    plans = sorted(plans, key=lambda p: starts[p.place.weight.leaf] + p.place.weight.offset)
    named, seen = [], dict[str, int]()
    for block in plans:
        leaves = [space.names[view.leaf] or "parameters" for view in block.place.views]
        name = _common(leaves)
        seen[name] = seen.get(name, 0) + 1
        name = name if seen[name] == 1 else f"{name}#{seen[name]}"
        named.append(block._replace(place=block.place._replace(name=name)))
    return tuple(named)


def _common(names: list[str]) -> str:
    """The path that two leaves share, or both names."""
    prefixes = {name.rpartition(".")[0] for name in names}
    if len(names) == 2 and len(prefixes) == 1 and "" not in prefixes:
        return prefixes.pop()
    return " + ".join(names)
