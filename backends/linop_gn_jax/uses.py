"""Which operations the parameters of a function enter, found in its jaxpr.

Whatever a model is written with, it ends as a list of primitive operations. They
are interpreted here one by one, with a note of which arrays are *views* of a
parameter (transposed, reshaped, sliced, broadcast: :mod:`.views`). Where a view
meets data in a product, a convolution, a table look-up or a sum, that is a
:class:`~linop_gn.protocols.Use`; where it enters anything else, its leaf is told to
have been used otherwise.

The cotangents at the results of the uses are derivatives in zeros that are added
to these results. One linearisation in the zeros and the parameters gives any of
them, by the transpose of the part that is asked for: without the gradients of
weights, unless these are.

Functions inside are entered only where a view is handed to them; all others are
bound as they are, with derivative rules of their own. A loop that parameters
enter is unrolled, so that each step is a use.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from linop_gn.backend import Array, Linearization, Use, View

from .arrays import laid_out
from .linear import without_dead_code
from .mapped import varying
from .sums import bound
from .views import MOVES, c_strides, entry, moved, repeats, reshaped, stretched, taken, view_of

__all__ = ["JaxUses", "Perturbed", "perturbed"]

_LONGEST = 256
"""Loops of more steps are not unrolled."""


@dataclass(eq=False)
class JaxUses:
    """A function evaluated at one point; see :class:`linop_gn.protocols.Uses`."""

    outputs: Array
    uses: tuple[Use, ...]
    inputs: list[Array | None]
    otherwise: tuple[int, ...]
    linear: Linearization
    """In what is added to the result of each use, and in the parameters."""
    mixes: str = ""
    """A program is arithmetic: what a batch norm does is not known by its name."""
    apart: bool = False

    def pull(self, cotangent: Array, leaves: tuple[int, ...] = ()) -> tuple[list[Array], list[Array]]:
        n = len(self.uses)
        found = self.linear.vjp(cotangent, (*range(n), *(n + leaf for leaf in leaves)))
        return found[:n], found[n:]


class Perturbed(NamedTuple):
    """A function of what is added to the results of its uses, and of its parameters: ``(outputs, inputs)``."""

    function: Callable[[list[Array]], tuple[Array, list[Array | None]]]
    zeros: list[Array]
    uses: tuple[Use, ...]
    otherwise: tuple[int, ...]


def perturbed(function: Callable[[list[Array]], Array], leaves: Sequence[Array]) -> Perturbed:
    """The uses of ``leaves`` in ``function``, and the function with room at the result of each."""
    closed = without_dead_code(jax.make_jaxpr(lambda p: function(list(p)))(list(leaves)))

    def run(walk: _Walk, leaves: Sequence[Array]) -> Array:
        (output,) = walk.run(closed, [_Known(p, view_of(i, 0, p.shape)) for i, p in enumerate(leaves)])
        return walk.lose(output).value

    first = _Walk(None)
    jax.eval_shape(lambda p: run(first, p), list(leaves))
    n = len(first.uses)

    def at(arguments: list[Array]) -> tuple[Array, list[Array | None]]:
        walk = _Walk(arguments[:n])
        return run(walk, arguments[n:]), walk.inputs

    zeros = [laid_out(jnp.zeros(aval.shape, aval.dtype), aval) for aval in first.results]
    return Perturbed(at, zeros, tuple(first.uses), tuple(sorted(first.otherwise)))


class _Known(NamedTuple):
    """An array, and what is known of it."""

    value: Any
    view: View | None = None
    """Of a leaf: its derivative in that, but for the factor."""
    factor: Any = None
    """What the view has been multiplied with: a scalar, or an array of its shape."""
    result: View | None = None
    """Of the result of a use, by its number, over (*rows, groups, *outputs): its derivative in that."""
    fixed: bool = False
    """Whether its value is part of the program."""


class _Walk:
    """One evaluation of a jaxpr; without perturbations it only looks."""

    def __init__(self, perturbations: Sequence[Array] | None) -> None:
        self.perturbations = perturbations
        self.uses: list[Use] = []
        self.inputs: list[Array | None] = []
        self.results: list[Any] = []
        """Shape, dtype, and layout over devices, of what can be added to each: (groups, *rows, outputs)."""
        self.otherwise: set[int] = set()

    def run(self, closed: core.ClosedJaxpr, arguments: Sequence[_Known]) -> list[_Known]:
        jaxpr, known = closed.jaxpr, dict[Any, _Known]()
        readers = Counter(v for vs in (*(e.invars for e in jaxpr.eqns), jaxpr.outvars) for v in vs if _is_var(v))

        def read(atom: Any) -> _Known:
            if not _is_var(atom):
                return _Known(atom.val, fixed=True)
            # The cotangent of what several operations read is not that of what one of them makes of it.
            return known[atom] if readers[atom] == 1 else known[atom]._replace(result=None)

        known.update(zip(jaxpr.constvars, map(_Known, closed.consts), strict=True))
        known.update(zip(jaxpr.invars, arguments, strict=True))
        for eqn in jaxpr.eqns:
            known.update(zip(eqn.outvars, self.step(eqn, list(map(read, eqn.invars))), strict=True))
        return list(map(read, jaxpr.outvars))

    def step(self, eqn: core.JaxprEqn, given: list[_Known]) -> list[_Known]:
        name = eqn.primitive.name
        several = sum(k.view is not None for k in given) > 1
        given = [k if _has_room(name, k, several) else self.settle(k) for k in given]
        if name in MOVES and (given[0].view or given[0].result):
            first, others = given[0], [int(k.value) if k.fixed else None for k in given[1:]]
            views, results = (moved(eqn, view, others) for view in (first.view, first.result))
            if (first.view is None) == (views[0] is None):
                made, factors = _bind(eqn, given), [first.factor] * len(views)
                if _is_full(first):
                    factors = _bind(eqn, [first._replace(value=first.factor), *given[1:]])
                return [_Known(*known) for known in zip(made, views, factors, results, strict=True)]
        elif name in _RULES and any(k.view or (k.result and name in _SUMS) for k in given):
            found = _RULES[name](self, eqn, given)
            if found is not None:
                return found
        if name != "stop_gradient":
            given = [self.lose(k) for k in given]
        if all(k.fixed for k in given) and all(map(_is_known, eqn.outvars)) and not eqn.effects:
            with jax.ensure_compile_time_eval():
                return [_Known(value, fixed=True) for value in _bind(eqn, given)]
        return [_Known(value) for value in _bind(eqn, given)]

    def settle(self, known: _Known) -> _Known:
        """A view with a factor becomes the result of a use, where it enters what has no room for the factor."""
        if known.view is None or known.factor is None:
            return known
        return self.elementwise("scale", known.view, known.factor, known.value)

    def lose(self, known: _Known) -> _Known:
        """A view enters what is not a use."""
        known = self.settle(known)
        if known.view is not None:
            self.otherwise.add(known.view.leaf)
        return known._replace(view=None)

    def use(
        self,
        kind: str,
        weight: View,
        outputs: int,
        rows: Sequence[int],
        order: Sequence[int],
        inputs: Array | None,
        z: Array,
        where: Array | None = None,
    ) -> _Known:
        """Note a use, and perturb its result: the axes of ``z`` taken in this order are (*rows, groups, *outputs)."""
        index, lengths, rows = len(self.uses), [z.shape[a] for a in order], tuple(map(int, rows))
        shape = (weight.shape[0], *rows, math.prod(weight.shape[1 : 1 + outputs]))
        self.uses.append(Use(kind, weight, outputs, None, rows))
        self.inputs.append(inputs if inputs is None else lax.stop_gradient(inputs))
        if self.perturbations is None:
            laid = z.transpose(order).reshape(*rows, shape[0], shape[-1])
            self.results.append(jax.typeof(jnp.moveaxis(laid, -2, 0)))
        else:
            added = self.perturbations[index]
            if where is not None:
                added = jnp.where(where[None, ..., None], added, 0)
            z = z + jnp.moveaxis(added, 0, -2).reshape(lengths).transpose(tuple(map(int, np.argsort(order))))
        strides = dict(zip(order, c_strides(lengths), strict=True))
        return _Known(z, result=view_of(index, 0, z.shape, [strides[a] for a in range(z.ndim)]))

    def elementwise(self, kind: str, view: View, x: Any, z: Array) -> _Known:
        """A use with the result w x + ..., or b + ..., the view being repeated along the rows."""
        view = stretched(view, z.shape)
        row_axes = [a for a in range(z.ndim) if view.strides[a] == 0]
        order = row_axes + [a for a in range(z.ndim) if view.strides[a]]
        rows, weight = [z.shape[a] for a in row_axes], _one_group(taken(view, order[len(row_axes) :]))
        shape = (1, *rows, math.prod(weight.shape))
        inputs = None if x is None else jnp.broadcast_to(x, z.shape).transpose(order).reshape(shape)
        return self.use(kind, weight, len(weight.shape) - 1, rows, order, inputs, z)

    def take_bias(self, result: View, view: View) -> bool:
        """Whether what is added to a whole result is a bias; it is noted as that of the use."""
        use = self.uses[result.leaf]
        order = sorted((a for a, n in enumerate(result.shape) if n > 1), key=lambda a: -result.strides[a])
        laid, n = taken(result, order), len(use.rows)
        whole = (*use.rows, *use.weight.shape[: 1 + use.outputs])
        if use.kind != "linear" or use.bias is not None or result.offset or math.prod(laid.shape) != math.prod(whole):
            return False
        bias = reshaped(taken(view, order), whole) if laid.strides == c_strides(laid.shape) else None
        if bias is None or any(bias.strides[:n]) or repeats(bias, range(n, len(whole))):
            return False
        self.uses[result.leaf] = use._replace(bias=taken(bias, range(n, len(whole))))
        return True


def _is_var(atom: Any) -> bool:
    return not isinstance(atom, core.Literal)


def _is_full(known: _Known) -> bool:
    return known.factor is not None and jnp.ndim(known.factor) > 0


def _has_room(name: str, known: _Known, several: bool) -> bool:
    """Whether an operation takes a view with its factor; a product of several views is linear in the other at most."""
    if several and name in (*_PRODUCTS, *_LINEAR):
        return False
    return name in _SCALED or (name in _LINEAR and not _is_full(known))


def _one_group(view: View) -> View:
    return view._replace(shape=(1, *view.shape), strides=(0, *view.strides))


def _is_known(v: Any) -> bool:
    """Whether what is made of known numbers is known: the counter of a loop, say, and not the place of a device."""
    return v.aval.shape == () and not varying(v.aval)


def _bind(eqn: core.JaxprEqn, given: Sequence[_Known]) -> list[Any]:
    return bound(eqn, (k.value for k in given))


def _only_view(given: list[_Known]) -> tuple[int, View] | None:
    """Which of the operands is a view, if one alone is."""
    found = [(i, k.view) for i, k in enumerate(given) if k.view is not None]
    return found[0] if len(found) == 1 else None


# Each rule returns None where the operation is no use.


def _use_dot(walk: _Walk, eqn: core.JaxprEqn, given: list[_Known]) -> list[_Known] | None:
    if (found := _only_view(given)) is None:
        return None
    side, view = found
    other, x, factor = 1 - side, given[1 - side].value, given[side].factor
    contracting, batch = eqn.params["dimension_numbers"]
    bound = [{*c, *b} for c, b in zip(contracting, batch, strict=True)]
    free = [[a for a in range(jnp.ndim(k.value)) if a not in axes] for k, axes in zip(given, bound, strict=True)]
    grouped = [i for i, a in enumerate(batch[side]) if view.strides[a]]
    again = [a for a in free[side] if repeats(view, [a])]  # the same product: more rows
    outputs = [a for a in free[side] if a not in again]
    weight = taken(view, [*(batch[side][i] for i in grouped), *outputs, *contracting[side]])
    groups, kept = math.prod(weight.shape[: len(grouped)]), weight.shape[len(grouped) :]
    weight = reshaped(weight, (groups, *kept))
    if weight is None or repeats(view, contracting[side]):
        return None
    row_axes = sorted([a for i, a in enumerate(batch[other]) if i not in grouped] + free[other])
    lengths = [x.shape[a] for a in row_axes]
    rows, size = lengths + [view.shape[a] for a in again], math.prod(kept[len(outputs) :])
    a = x.transpose([*(batch[other][i] for i in grouped), *row_axes, *contracting[other]])
    a = a.reshape(groups, *lengths, *(1 for _ in again), size)
    a = jnp.broadcast_to(a if factor is None else a * factor, (groups, *rows, size))
    # The result has the batch axes, then those of the first operand, then those of the second.
    axes = [{a: i for i, a in enumerate(b)} for b in batch]
    for k, start in (0, len(batch[0])), (1, len(batch[0]) + len(free[0])):
        axes[k] |= {a: start + i for i, a in enumerate(free[k])}
    order = [*(axes[other][a] for a in row_axes), *(axes[side][a] for a in again), *grouped]
    order += [axes[side][a] for a in outputs]
    (z,) = _bind(eqn, given)
    return [walk.use("linear", weight, len(outputs), rows, order, a, z)]


def _use_convolution(walk: _Walk, eqn: core.JaxprEqn, given: list[_Known]) -> list[_Known] | None:
    p, (x, filters) = eqn.params, given
    if x.view is not None or filters.view is None or p["batch_group_count"] != 1:
        return None
    numbers, groups = p["dimension_numbers"], p["feature_group_count"]
    outputs, *channels_and_window = (filters.view.shape[a] for a in numbers.rhs_spec)
    weight = reshaped(taken(filters.view, numbers.rhs_spec), (groups, outputs // groups, *channels_and_window))
    if weight is None or repeats(weight):
        return None
    patches = lax.conv_general_dilated_patches(
        x.value.transpose(numbers.lhs_spec),
        channels_and_window[1:],
        p["window_strides"],
        p["padding"],
        p["lhs_dilation"],
        p["rhs_dilation"],
        precision=lax.Precision.HIGHEST,
    )
    rows, size = (patches.shape[0], *patches.shape[2:]), math.prod(channels_and_window)
    a = patches.reshape(rows[0], groups, size, *rows[1:])
    a = jnp.moveaxis(jnp.moveaxis(a, 2, -1), 1, 0)
    a = a if filters.factor is None else a * filters.factor
    batch, feature, *positions = numbers.out_spec
    (z,) = _bind(eqn, given)
    return [walk.use("linear", weight, 1, rows, [batch, *positions, feature], a, z)]


def _use_gather(walk: _Walk, eqn: core.JaxprEqn, given: list[_Known]) -> list[_Known] | None:
    p, view, indices = eqn.params, given[0].view, given[1].value
    numbers, sizes = p["dimension_numbers"], p["slice_sizes"]
    if view is None or numbers.operand_batching_dims or repeats(view):
        return None
    starts, fills = numbers.start_index_map, p["mode"] == lax.GatherScatterMode.FILL_OR_DROP
    # One axis is looked up, the others are taken whole; JAX may give their starts nevertheless.
    looked = [a for a, n in enumerate(sizes) if n != view.shape[a]] or list(starts)
    if len(looked) != 1 or looked[0] not in starts or sizes[looked[0]] != 1 or (fills and len(starts) != 1):
        return None
    if not {*numbers.collapsed_slice_dims} <= {*looked}:
        return None
    (axis,), kept, size = looked, [a for a in range(len(view.shape)) if a not in looked], view.shape[looked[0]]
    i, where = indices[..., starts.index(axis)], None
    if fills:
        where = (i >= 0) & (i < size)
        i = jnp.where(where, i, 0)
    i = jnp.clip(i, 0, size - 1).astype(jnp.int32)  # unsigned indices have no -1
    i = i if where is None else jnp.where(where, i, -1)
    (z,) = _bind(eqn, given)
    order = [a for a in range(z.ndim) if a not in numbers.offset_dims] + list(numbers.offset_dims)
    weight = _one_group(taken(view, [*kept, axis]))
    return [walk.use("lookup", weight, len(kept), i.shape, order, i, z, where)]


def _use_product(walk: _Walk, eqn: core.JaxprEqn, given: list[_Known]) -> list[_Known] | None:
    found, name = _only_view(given), eqn.primitive.name
    if found is None or (name == "div" and found[0] == 1):
        return None
    (side, view), (z,) = found, _bind(eqn, given)
    x = -1.0 if name == "neg" else given[1 - side].value
    x = 1 / x if name == "div" else x
    x = x if given[side].factor is None else x * given[side].factor
    view = stretched(view, z.shape)
    if jnp.ndim(x) and repeats(view):
        return [walk.elementwise("scale", view, x, z)]
    # Not yet the product with examples: batch normalisation scales the scale, for one.
    return [_Known(z, view, jnp.broadcast_to(x, z.shape) if jnp.ndim(x) else jnp.asarray(x, z.dtype))]


def _use_sum(walk: _Walk, eqn: core.JaxprEqn, given: list[_Known]) -> list[_Known] | None:
    (z,) = _bind(eqn, given)
    if eqn.primitive.name == "sub":
        less = -1.0 if given[1].factor is None else -given[1].factor
        given = [given[0], given[1]._replace(factor=less, result=None)]
    views = [k for k in given if k.view is not None]
    if len(views) == 1 and views[0].view.shape == z.shape and any(k.fixed and not jnp.ndim(k.value) for k in given):
        return [_Known(z, views[0].view, views[0].factor)]  # 1 + w, which changes as w does
    result = next((k.result for k in given if k.result and k.result.shape == z.shape), None)
    for k in views:
        if k.factor is not None or result is None or not walk.take_bias(result, stretched(k.view, z.shape)):
            z, result = walk.elementwise("shift" if k.factor is None else "scale", k.view, k.factor, z).value, None
    return [_Known(z, result=result)]


def _enter(walk: _Walk, eqn: core.JaxprEqn, given: list[_Known]) -> list[_Known] | None:
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return walk.run(inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ()), given)


def _unroll(walk: _Walk, eqn: core.JaxprEqn, given: list[_Known]) -> list[_Known] | None:
    p, length = eqn.params, eqn.params["length"]
    if not 0 < length <= _LONGEST:
        return None
    given = [k._replace(result=None) for k in given]  # each step reads it
    first, last = p["num_consts"], p["num_consts"] + p["num_carry"]
    constants, carry, stacked = given[:first], given[first:last], given[last:]
    entries = [jnp.unstack(k.value) for k in stacked]
    made: list[list[Any]] = []
    for i in reversed(range(length)) if p["reverse"] else range(length):
        at = [_Known(v[i], k.view and entry(k.view, 0, i)) for v, k in zip(entries, stacked, strict=True)]
        found = walk.run(p["jaxpr"], [*constants, *carry, *at])
        carry = found[: len(carry)]
        made.append([walk.lose(k).value for k in found[len(carry) :]])
    made = made[::-1] if p["reverse"] else made
    return carry + [_Known(jnp.stack(values)) for values in zip(*made, strict=True)]


_Rule: TypeAlias = Callable[[_Walk, core.JaxprEqn, list[_Known]], list[_Known] | None]

_SUMS = ("add", "add_any", "sub")
_PRODUCTS = ("div", "mul", "neg")
_INNER = ("call", "checkpoint", "closed_call", "core_call", "jit", "pjit", "remat", "remat2")
_LINEAR = ("conv_general_dilated", "dot_general")
_SCALED = {*MOVES, *_SUMS, *_PRODUCTS, *_INNER}
"""They take a view with any factor; the linear ones take a scalar with it."""
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_SUMS, _use_sum),
    **dict.fromkeys(_PRODUCTS, _use_product),
    **dict.fromkeys(_INNER, _enter),
    "conv_general_dilated": _use_convolution,
    "dot_general": _use_dot,
    "gather": _use_gather,
    "scan": _unroll,
}
