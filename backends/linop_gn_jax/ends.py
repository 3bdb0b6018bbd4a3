"""What a model does after its last product, row by row: caps, temperatures, biases, masks, slices, casts of logits.

Such an end z = t(y, s), of rows y and of what all rows share, s (a temperature, a bias), may be done again for a few
rows at a time, from what it is made of. It is found from the last operation of the model's program backwards: through
what is done entry by entry, or along the axes of one example (sums, slices, log-softmax), and slices of the examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from linop_gn.backend import Array

from .linear import without_dead_code
from .rewritten import ALONG_AXES, ENTRYWISE, rewritten
from .sums import bound

__all__ = ["End", "end_of"]

_MORE = 1.5
"""So many times larger than the end is what it is made of, at most: of two large products it is their sum."""

Shape = tuple[int, ...]


class _Leaf(NamedTuple):
    """What the end is made of: rows of a variable, or of a slice of it; or all of it, for each row."""

    var: Any
    lead: Shape | None
    """The leading axes, which become one; None for what all rows share."""
    cut: tuple[Shape, Shape, Shape] | None = None
    """Start, limit and stride along these."""
    dot: core.JaxprEqn | None = None
    """The product that makes the variable, if the slice of it is that of its first factor."""

    @property
    def rest(self) -> Shape:
        return tuple(self.var.aval.shape[len(self.lead or ()) :])

    @property
    def size(self) -> int:
        return 0 if self.lead is None else math.prod((*self.lead, *self.rest)) * int(self.var.aval.dtype.itemsize)

    @property
    def inputs(self) -> tuple[Any, ...]:
        return (self.var,) if self.dot is None else tuple(self.dot.invars)

    def of(self, x: Array, *other: Array) -> Array:
        """The rows (n, ...), of the values of what it is made of."""
        if self.lead is None:
            return x
        if self.cut is not None:
            axes = _first_axes(self.dot, len(self.lead)) if self.dot else range(len(self.lead))
            for axis, start, limit, stride in zip(axes, *self.cut, strict=True):
                x = lax.slice_in_dim(x, start, limit, stride, axis)
        x = x if self.dot is None else bound(self.dot, (x, *other))[0]
        return jnp.broadcast_to(x, (*self.lead, *self.rest)).reshape(-1, *self.rest)


def _first_axes(dot: core.JaxprEqn, k: int) -> list[int]:
    """The axes of the first factor that are the ``k`` first of the product; [] if they are others."""
    (contracted, _), (batch, _) = dot.params["dimension_numbers"]
    axes = [a for a in range(dot.invars[0].aval.ndim) if a not in contracted]
    return [] if batch or len(axes) < k else axes[:k]


class _Node:
    """An operation of the end, which takes (m, 1, ..., 1, *rest) for (*lead, *rest); a leaf, or a number."""

    def __init__(self, apply: Callable[..., Any], given: Sequence[_Node] = (), leaf: _Leaf | None = None) -> None:
        self.apply, self.given = apply, given
        own = {} if leaf is None else {leaf: None}
        self.leaf = leaf
        self.entrywise = all(node.entrywise for node in given)
        self.leaves: dict[_Leaf, None] = own | {x: None for node in given for x in node.leaves}


class End:
    """The end of a program, and the program that makes what it is made of. Compared by identity.

    It is ``entrywise`` where nothing is summed along rows: to do that again for each product takes more memory.
    """

    def __init__(self, root: _Node, lead: int, closed: core.ClosedJaxpr) -> None:
        self._root, self._lead, moved = root, lead, set(closed.jaxpr.invars)
        self.entrywise = root.entrywise
        for eqn in closed.jaxpr.eqns:
            if any(v in moved for v in eqn.invars if not isinstance(v, core.Literal)):
                moved.update(eqn.outvars)

        def group(leaf: _Leaf) -> int:
            still = leaf.var not in moved or not jnp.issubdtype(leaf.var.aval.dtype, jnp.floating)
            return 2 * still + (leaf.lead is None)

        self._groups = [[leaf for leaf in root.leaves if group(leaf) == i] for i in range(4)]
        self._leaves = [leaf for group in self._groups for leaf in group]
        made, names = [v for leaf in self._leaves for v in leaf.inputs], closed.jaxpr.debug_info.with_unknown_names()
        head = closed.jaxpr.replace(outvars=made, debug_info=names)
        self._head = without_dead_code(core.ClosedJaxpr(head, closed.consts))

    def made_of(self, arguments: Sequence[Any]) -> tuple[tuple[list[Any], list[Any]], tuple[list[Any], list[Any]]]:
        """Rows (n, ...), and what they share; and those of either that no derivatives are taken in."""
        made = iter(core.jaxpr_as_fun(self._head)(*arguments))
        ys, shared, rows, fixed = (
            [leaf.of(*(next(made) for _ in leaf.inputs)) for leaf in group] for group in self._groups
        )
        return (ys, shared), (rows, fixed)

    def done_again(self, arguments: Sequence[Any]) -> Array:
        """All outputs, of which a linearisation holds what the end is made of: its slopes are worked out each time."""
        moving, still = self.made_of(arguments)
        return jax.checkpoint(lambda moving, still: self(*moving, *still))(moving, still)  # type: ignore[no-any-return]

    def __call__(self, *groups: Sequence[Any]) -> Array:
        """The outputs of some rows (m, ...)."""
        values = dict(zip(self._leaves, (x for group in groups for x in group), strict=True))
        m = next(len(x) for leaf, x in values.items() if leaf.lead is not None)
        done: dict[int, Any] = {}

        def value(node: _Node) -> Any:
            if id(node) not in done:
                if node.leaf is None:
                    done[id(node)] = node.apply(m, *map(value, node.given))
                else:
                    done[id(node)] = node.apply(m, values[node.leaf])
            return done[id(node)]

        z = value(self._root)
        return z.reshape(m, *z.shape[self._lead :])


def end_of(closed: core.ClosedJaxpr, lead: int) -> End | None:
    """The end of a program with one result, whose first ``lead`` axes count rows; None where there is none."""
    if closed.jaxpr.effects:
        return None
    (out,) = closed.out_avals
    closed = rewritten(closed, out.size)
    walk, (last,) = _Walk(closed.jaxpr), closed.jaxpr.outvars
    if isinstance(last, core.Literal):
        return None
    root = walk.node(last, tuple(out.shape[:lead]))
    trivial = root.leaf is not None and lead == 1  # with several, rows would be laid anew for the loss
    return None if trivial or not any(leaf.lead for leaf in root.leaves) else End(root, lead, closed)


class _Walk:
    """From a program's result backwards, as far as rows are apart."""

    def __init__(self, jaxpr: core.Jaxpr) -> None:
        self._makers = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
        self._nodes: dict[Any, _Node] = {}
        (out,) = (v.aval for v in jaxpr.outvars)
        self._most = _MORE * out.size * out.dtype.itemsize

    def node(self, atom: Any, lead: Shape, cut: Any = None) -> _Node:
        """What makes the rows of ``atom``, counted by the axes ``lead``: those of its slice where it is cut."""
        key = atom, lead, cut
        if key not in self._nodes:
            eqn = self._makers.get(atom)
            made = None if eqn is None or len(eqn.outvars) > 1 else self._operation(eqn, lead, cut)
            small = made and sum(x.size for x in made.leaves) <= self._most
            cuts = cut and eqn is not None and eqn.primitive.name == "dot_general" and _first_axes(eqn, len(lead))
            self._nodes[key] = made if made and small else _leaf(_Leaf(atom, lead, cut, eqn if cuts else None))
        return self._nodes[key]

    def _product(self, atom: Any) -> bool:
        """Whether it is a product of matrices, in other shapes or some of it."""
        eqn = self._makers.get(atom)
        while eqn is not None and eqn.primitive.name in ("reshape", "slice", "squeeze", "transpose"):
            eqn = self._makers.get(eqn.invars[0])
        return eqn is not None and eqn.primitive.name == "dot_general"

    def _operand(self, atom: Any, whole: Shape, lead: Shape, cut: Any) -> _Node:
        """An operand that is repeated along axes of length one; ``whole`` are the leading axes before they were cut."""
        shape = tuple(atom.aval.shape)
        if isinstance(atom, core.Literal):
            return _number(atom)
        if shape[: len(lead)] == whole:
            return self.node(atom, lead, cut)
        if all(n == 1 for n in shape[: len(lead)]):
            return _leaf(_Leaf(atom, None))
        return _leaf(_Leaf(atom, lead)) if cut is None else _NONE

    def _operation(self, eqn: core.JaxprEqn, lead: Shape, cut: Any) -> _Node | None:
        name, params, k = eqn.primitive.name, eqn.params, len(lead)
        shape = tuple(eqn.outvars[0].aval.shape)
        x: Any = next(iter(eqn.invars), None)
        whole, rest = shape[:k], shape[k:]

        def resized(**sizes: Any) -> Callable[..., Any]:
            def apply(m: int, *values: Any) -> Any:
                front = (m, *(1,) * (k - 1))
                changed = {key: (*front, *made) for key, made in sizes.items()}
                return bound(eqn.replace(params={**params, **changed}), values)[0]

            return apply

        def along(*axes: int) -> bool:
            return all(axis >= k for axis in axes)

        if name == "convert_element_type" and x.aval.dtype.itemsize < params["new_dtype"].itemsize and self._product(x):
            return None  # XLA multiplies narrow matrices faster if it sees that the product is made wider
        if name in ENTRYWISE:
            given = [self._operand(v, whole, lead, cut) for v in eqn.invars]
            return None if _NONE in given else _Node(resized(), given)
        if name in ALONG_AXES and along(*params["axes"]):
            made = _Node(resized(), [self.node(x, lead, cut)])
            made.entrywise = False
            return made
        if name == "concatenate" and along(params["dimension"]):
            return _Node(resized(), [self.node(v, lead, cut) for v in eqn.invars])
        if name == "iota" and along(params["dimension"]):
            return _Node(resized(shape=rest))
        if name == "slice":
            return self._slice(eqn, lead, cut, resized)
        if name == "broadcast_in_dim" and len(eqn.invars) == 1:
            axes = params["broadcast_dimensions"]
            if axes[:k] == tuple(range(k)):
                node = self._operand(x, whole, lead, cut)
            elif all(n == 1 for axis, n in zip(axes, x.aval.shape, strict=True) if axis < k):
                node = _number(x) if isinstance(x, core.Literal) else _leaf(_Leaf(x, None))
            else:
                return self._regrouped(x, lead, rest, cut)
            return None if node is _NONE else _Node(resized(shape=rest), [node])
        if name == "reshape" and params["dimensions"] is None and x.aval.shape[:k] == whole:
            return _Node(resized(new_sizes=rest), [self.node(x, lead, cut)])
        if name == "squeeze" and along(*params["dimensions"]):
            return _Node(resized(), [self.node(x, lead, cut)])
        return self._regrouped(x, lead, rest, cut) if name in ("reshape", "squeeze") else None

    def _slice(self, eqn: core.JaxprEqn, lead: Shape, cut: Any, resized: Any) -> _Node | None:
        params, (x,), k = eqn.params, eqn.invars, len(lead)
        start, limit = tuple(params["start_indices"]), tuple(params["limit_indices"])
        stride = tuple(params["strides"] or (1,) * len(start))
        own = start[:k], limit[:k], stride[:k]
        if own != ((0,) * k, tuple(x.aval.shape[:k]), (1,) * k):
            if cut is not None:
                return None
            cut = own
        return _Node(_sliced(start[k:], limit[k:], stride[k:]), [self.node(x, lead, cut)])

    def _regrouped(self, x: Any, lead: Shape, rest: Shape, cut: Any) -> _Node | None:
        """Other leading axes, in the same order."""
        k = x.aval.ndim - len(rest)
        before, after = tuple(x.aval.shape[:k]), len(lead)
        if cut is not None or k < 1 or tuple(x.aval.shape[k:]) != rest or math.prod(before) != math.prod(lead):
            return None
        return _Node(lambda m, x: x.reshape(m, *(1,) * (after - 1), *x.shape[k:]), [self.node(x, before)])


def _number(literal: core.Literal) -> _Node:
    return _Node(lambda m: literal.val)


def _leaf(leaf: _Leaf) -> _Node:
    if leaf.lead is None:
        return _Node(lambda m, x: x, leaf=leaf)
    ones = (1,) * (len(leaf.lead) - 1)
    return _Node(lambda m, x: x.reshape(m, *ones, *x.shape[1:]), leaf=leaf)


def _sliced(start: Shape, limit: Shape, stride: Shape) -> Callable[..., Any]:
    def apply(m: int, x: Any) -> Any:
        k = x.ndim - len(start)
        return lax.slice(x, (*(0,) * k, *start), (*x.shape[:k], *limit), (*(1,) * k, *stride))

    return apply


_NONE = _Node(lambda m: None)
