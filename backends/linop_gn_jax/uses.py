"""Which operations the parameters of a function enter, found in its jaxpr.

Whatever a model is written with, it ends as a list of primitive operations. They
are interpreted here one by one, with a note of which arrays are *views* of a
parameter (transposed, reshaped, sliced, broadcast: :class:`~linop_gn.protocols.View`).
Where a view meets data in a product, a convolution, a table look-up or a sum,
that is a :class:`~linop_gn.protocols.Use`; where it enters anything else, its leaf is
told to have been used otherwise.

The cotangents at the results of the uses are derivatives in zeros that are added
to these results. One linearisation in the zeros and the parameters gives any of
them, by the transpose of the part that is asked for: without the gradients of
weights, unless these are.

Functions inside are entered only where a view is handed to them; all others are
bound as they are, with derivative rules of their own. A loop that parameters
enter is unrolled, so that each step is a use.
"""

from __future__ import annotations

import itertools
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

from .linear import without_dead_code

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
        views = [_view(i, 0, p.shape, _c_strides(p.shape)) for i, p in enumerate(leaves)]
        known = [_Known(p, view) for p, view in zip(leaves, views, strict=True)]
        (output,) = walk.run(closed, known)
        return walk.lose(output).value

    first = _Walk(None)
    jax.eval_shape(lambda p: run(first, p), list(leaves))
    n = len(first.uses)

    def at(arguments: list[Array]) -> tuple[Array, list[Array | None]]:
        walk = _Walk(arguments[:n])
        return run(walk, arguments[n:]), walk.inputs

    zeros = [jnp.zeros(shape, dtype) for shape, dtype in first.results]
    return Perturbed(at, zeros, tuple(first.uses), tuple(sorted(first.otherwise)))


def _c_strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _view(leaf: int, offset: int, shape: Sequence[int], strides: Sequence[int]) -> View:
    """An axis of length one has the stride 0: it is repeated once."""
    fixed = (0 if n == 1 else int(s) for n, s in zip(shape, strides, strict=True))
    return View(leaf, int(offset), tuple(map(int, shape)), tuple(fixed))


def _axes(view: View, axes: Sequence[int]) -> View:
    return _view(view.leaf, view.offset, [view.shape[a] for a in axes], [view.strides[a] for a in axes])


def _repeats(view: View, axes: Sequence[int]) -> bool:
    """Whether one of these axes holds the same entries again and again."""
    return any(view.shape[a] > 1 and view.strides[a] == 0 for a in axes)


def _reshaped(view: View, shape: Sequence[int]) -> View | None:
    """The same entries in the same order, where strides can tell; as NumPy reshapes without a copy."""
    if math.prod(shape) == 0:
        return None
    old = [(n, s) for n, s in zip(view.shape, view.strides, strict=True) if n > 1]
    strides: list[int] = []
    size = 1  # of the new axes that wait for the old ones which they are made of
    pending: list[int] = []
    for n in shape:
        pending.append(n)
        size *= n
        if size == 1:
            continue
        covered, taken = 1, 0
        while covered < size and taken < len(old):
            covered *= old[taken][0]
            taken += 1
        if covered != size:
            continue
        if any(s != m * t for (_, s), (m, t) in itertools.pairwise(old[:taken])):
            return None
        last = old[taken - 1][1]
        strides += [last * s for s in _c_strides(pending)]
        del old[:taken]
        pending, size = [], 1
    return _view(view.leaf, view.offset, shape, [*strides, *(0 for _ in pending)])


class _Known(NamedTuple):
    """An array, and what is known of it."""

    value: Any
    view: View | None = None
    """Of a leaf."""
    result: View | None = None
    """Of the result of a use, by its number, over (*rows, groups, *outputs), plus what doesn't depend on that."""
    fixed: bool = False
    """Whether its value is part of the program."""


_Rule: TypeAlias = "Callable[[_Walk, core.JaxprEqn, list[_Known]], list[_Known] | None]"


class _Walk:
    """One evaluation of a jaxpr; without perturbations it only looks."""

    def __init__(self, perturbations: Sequence[Array] | None) -> None:
        self.perturbations = perturbations
        self.uses: list[Use] = []
        self.inputs: list[Array | None] = []
        self.results: list[tuple[tuple[int, ...], Any]] = []
        self.otherwise: set[int] = set()

    def run(self, closed: core.ClosedJaxpr, arguments: Sequence[_Known]) -> list[_Known]:
        jaxpr, known = closed.jaxpr, dict[Any, _Known]()
        read_by = Counter(v for vs in (*(e.invars for e in jaxpr.eqns), jaxpr.outvars) for v in vs if _is_var(v))

        def read(atom: Any) -> _Known:
            if not _is_var(atom):
                return _Known(atom.val, fixed=True)
            # The cotangent of what several operations read is not that of what one of them makes of it.
            return known[atom] if read_by[atom] == 1 else known[atom]._replace(result=None)

        known.update(zip(jaxpr.constvars, map(_Known, closed.consts), strict=True))
        known.update(zip(jaxpr.invars, arguments, strict=True))
        for eqn in jaxpr.eqns:
            known.update(zip(eqn.outvars, self.step(eqn, list(map(read, eqn.invars))), strict=True))
        return list(map(read, jaxpr.outvars))

    def step(self, eqn: core.JaxprEqn, given: list[_Known]) -> list[_Known]:
        name = eqn.primitive.name
        if name in _MOVES and (given[0].view or given[0].result):
            views = _moved(eqn, given, given[0].view)
            results = _moved(eqn, given, given[0].result)
            if given[0].view is None or views[0] is not None:
                made = _bind(eqn, given)
                return [_Known(*parts) for parts in zip(made, views, results, strict=True)]
        elif name in _RULES and any(k.view or (k.result and name in _SUMS) for k in given):
            found = _RULES[name](self, eqn, given)
            if found is not None:
                return found
        if name != "stop_gradient":
            given = [self.lose(k) for k in given]
        fixed = all(k.fixed for k in given) and all(v.aval.shape == () for v in eqn.outvars)
        if fixed:  # the counter of a loop, say
            with jax.ensure_compile_time_eval():
                return [_Known(value, fixed=True) for value in _bind(eqn, given)]
        return [_Known(value) for value in _bind(eqn, given)]

    def lose(self, known: _Known) -> _Known:
        """A view enters what is not a use."""
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
        shape = (weight.shape[0], *rows, math.prod(z.shape) // weight.shape[0] // math.prod(rows))
        self.uses.append(Use(kind, weight, outputs, None, rows))
        self.inputs.append(inputs if inputs is None else lax.stop_gradient(inputs))
        self.results.append((shape, z.dtype))
        if self.perturbations is not None:
            added = self.perturbations[index]
            if where is not None:
                added = jnp.where(where[None, ..., None], added, 0)
            z = z + jnp.moveaxis(added, 0, -2).reshape(lengths).transpose(_inverse(order))
        strides = dict(zip(order, _c_strides(lengths), strict=True))
        return _Known(z, result=_view(index, 0, z.shape, [strides[a] for a in range(z.ndim)]))

    def take_bias(self, result: View, view: View) -> bool:
        """Whether what is added to a whole result is a bias; it is noted as that of the use."""
        use = self.uses[result.leaf]
        order = sorted((a for a, n in enumerate(result.shape) if n > 1), key=lambda a: -result.strides[a])
        laid = _axes(result, order)
        whole = (*use.rows, *use.weight.shape[: 1 + use.outputs])
        if use.kind != "linear" or use.bias is not None or result.offset or math.prod(laid.shape) != math.prod(whole):
            return False
        if laid.strides != _c_strides(laid.shape):
            return False
        bias, n = _reshaped(_axes(view, order), whole), len(use.rows)
        if bias is None or any(bias.strides[:n]) or _repeats(bias, range(n, len(whole))):
            return False
        self.uses[result.leaf] = use._replace(bias=_axes(bias, range(n, len(whole))))
        return True


def _is_var(atom: Any) -> bool:
    return not isinstance(atom, core.Literal)


def _inverse(order: Sequence[int]) -> tuple[int, ...]:
    return tuple(map(int, np.argsort(order)))


def _bind(eqn: core.JaxprEqn, given: Sequence[_Known]) -> list[Any]:
    with eqn.ctx.manager:
        made = eqn.primitive.bind(*(k.value for k in given), **eqn.primitive.get_bind_params(eqn.params))
    return list(made) if eqn.primitive.multiple_results else [made]


# Views of views: (view, the operation, what it is given) -> the views that it makes.


def _slice(view: View, starts: Sequence[int], limits: Sequence[int], steps: Sequence[int] | None) -> View:
    steps = [1] * len(starts) if steps is None else steps
    offset = view.offset + sum(int(a) * s for a, s in zip(starts, view.strides, strict=True))
    shape = [-(-(b - a) // n) for a, b, n in zip(starts, limits, steps, strict=True)]
    return _view(view.leaf, offset, shape, [s * n for s, n in zip(view.strides, steps, strict=True)])


def _move_slice(view: View, eqn: core.JaxprEqn, given: list[_Known]) -> list[View | None]:
    p = eqn.params
    return [_slice(view, p["start_indices"], p["limit_indices"], p["strides"])]


def _move_dynamic_slice(view: View, eqn: core.JaxprEqn, given: list[_Known]) -> list[View | None]:
    sizes = eqn.params["slice_sizes"]
    if not all(k.fixed for k in given[1:]):
        return [None]
    starts = [min(max(int(k.value), 0), n - m) for k, n, m in zip(given[1:], view.shape, sizes, strict=True)]
    return [_slice(view, starts, [a + m for a, m in zip(starts, sizes, strict=True)], None)]


def _move_split(view: View, eqn: core.JaxprEqn, given: list[_Known]) -> list[View | None]:
    axis, made, start = eqn.params["axis"], list[View | None](), 0
    for size in eqn.params["sizes"]:
        starts, limits = [0] * len(view.shape), list(view.shape)
        starts[axis], limits[axis] = start, start + size
        made.append(_slice(view, starts, limits, None))
        start += size
    return made


def _entry(view: View, axis: int, index: int) -> View:
    at = view._replace(offset=view.offset + index * view.strides[axis])
    return _axes(at, [a for a in range(len(view.shape)) if a != axis])


def _move_unstack(view: View, eqn: core.JaxprEqn, given: list[_Known]) -> list[View | None]:
    axis = eqn.params["axis"]
    return [_entry(view, axis, i) for i in range(view.shape[axis])]


def _move_rev(view: View, eqn: core.JaxprEqn, given: list[_Known]) -> list[View | None]:
    strides, offset = list(view.strides), view.offset
    for axis in eqn.params["dimensions"]:
        offset += (view.shape[axis] - 1) * strides[axis]
        strides[axis] = -strides[axis]
    return [_view(view.leaf, offset, view.shape, strides)]


def _move_convert(view: View, eqn: core.JaxprEqn, given: list[_Known]) -> list[View | None]:
    return [view if jnp.issubdtype(eqn.params["new_dtype"], jnp.floating) else None]


def _broadcast(view: View, shape: Sequence[int], dimensions: Sequence[int]) -> View:
    strides = [0] * len(shape)
    for axis, n, s in zip(dimensions, view.shape, view.strides, strict=True):
        strides[axis] = s if n == shape[axis] else 0
    return _view(view.leaf, view.offset, shape, strides)


def _stretched(view: View, shape: Sequence[int]) -> View:
    """An operand as elementwise operations take it: a scalar, or with axes of length one."""
    return _broadcast(view, shape, range(len(shape) - len(view.shape), len(shape)))


def _move_broadcast(view: View, eqn: core.JaxprEqn, given: list[_Known]) -> list[View | None]:
    return [_broadcast(view, eqn.outvars[0].aval.shape, eqn.params["broadcast_dimensions"])]


def _move_transpose(view: View, eqn: core.JaxprEqn, given: list[_Known]) -> list[View | None]:
    return [_axes(view, eqn.params["permutation"])]


def _move_reshape(view: View, eqn: core.JaxprEqn, given: list[_Known]) -> list[View | None]:
    return [_reshaped(view, eqn.outvars[0].aval.shape)]


def _move_nowhere(view: View, eqn: core.JaxprEqn, given: list[_Known]) -> list[View | None]:
    return [view]


_MOVES = {
    "broadcast_in_dim": _move_broadcast,
    "convert_element_type": _move_convert,
    "copy": _move_nowhere,
    "copy_p": _move_nowhere,
    "dynamic_slice": _move_dynamic_slice,
    "expand_dims": _move_reshape,
    "name": _move_nowhere,
    "reshape": _move_reshape,
    "reshard": _move_nowhere,
    "rev": _move_rev,
    "sharding_constraint": _move_nowhere,
    "slice": _move_slice,
    "split": _move_split,
    "squeeze": _move_reshape,
    "transpose": _move_transpose,
    "unstack": _move_unstack,
}


def _moved(eqn: core.JaxprEqn, given: list[_Known], view: View | None) -> list[View | None]:
    if view is None or math.prod(view.shape) == 0:
        return [None] * len(eqn.outvars)
    return _MOVES[eqn.primitive.name](view, eqn, given)


# Uses: each rule returns None where the operation is not one.


def _tracked(given: list[_Known]) -> tuple[int, View] | None:
    """Which of the operands is a view, if one alone is."""
    found = [(i, k.view) for i, k in enumerate(given) if k.view is not None]
    return found[0] if len(found) == 1 else None


def _use_dot(walk: _Walk, eqn: core.JaxprEqn, given: list[_Known]) -> list[_Known] | None:
    if (found := _tracked(given)) is None:
        return None
    side, view = found
    contracting, batch = eqn.params["dimension_numbers"]
    taken = [{*c, *b} for c, b in zip(contracting, batch, strict=True)]
    free = [[a for a in range(jnp.ndim(k.value)) if a not in used] for k, used in zip(given, taken, strict=True)]
    other, x = 1 - side, given[1 - side].value
    if _repeats(view, contracting[side]):
        return None
    # Of z: the batch axes, then those of the first operand, then those of the second.
    z_axes = [{a: i for i, a in enumerate(b)} for b in batch]
    for k in (0, 1):
        start = len(batch[0]) + (len(free[0]) if k else 0)
        z_axes[k] |= {a: start + i for i, a in enumerate(free[k])}
    grouped = [i for i, a in enumerate(batch[side]) if view.strides[a]]
    again = [a for a in free[side] if _repeats(view, [a])]  # the same product: more rows
    outputs = [a for a in free[side] if a not in again]
    row_axes = sorted([a for i, a in enumerate(batch[other]) if i not in grouped] + free[other])
    rows = [x.shape[a] for a in row_axes] + [view.shape[a] for a in again]
    groups = [batch[side][i] for i in grouped]
    weight = _axes(view, [*groups, *outputs, *contracting[side]])
    kept = weight.shape[len(groups) :]
    merged = _reshaped(weight, (math.prod(weight.shape[: len(groups)]), *kept))
    if merged is None:
        return None
    a = x.transpose([*(batch[other][i] for i in grouped), *row_axes, *contracting[other]])
    a = a.reshape(merged.shape[0], *(x.shape[r] for r in row_axes), *(1 for _ in again), -1)
    a = jnp.broadcast_to(a, (merged.shape[0], *rows, a.shape[-1]))
    order = [z_axes[other][r] for r in row_axes] + [z_axes[side][r] for r in again]
    order += [*grouped, *(z_axes[side][o] for o in outputs)]
    (z,) = _bind(eqn, given)
    return [walk.use("linear", merged, len(outputs), rows, order, a, z)]


def _use_convolution(walk: _Walk, eqn: core.JaxprEqn, given: list[_Known]) -> list[_Known] | None:
    p, view, x = eqn.params, given[1].view, given[0].value
    if given[0].view is not None or view is None or p["batch_group_count"] != 1:
        return None
    numbers, groups = p["dimension_numbers"], p["feature_group_count"]
    filters, channels, *window = (view.shape[a] for a in numbers.rhs_spec)
    weight = _axes(view, numbers.rhs_spec)
    weight = _reshaped(weight, (groups, filters // groups, channels, *window))
    if weight is None or _repeats(weight, range(len(weight.shape))):
        return None
    patches = lax.conv_general_dilated_patches(
        x.transpose(numbers.lhs_spec),
        window,
        p["window_strides"],
        p["padding"],
        p["lhs_dilation"],
        p["rhs_dilation"],
        precision=lax.Precision.HIGHEST,
    )
    rows = (patches.shape[0], *patches.shape[2:])
    a = patches.reshape(rows[0], groups, -1, *rows[1:])
    a = jnp.moveaxis(jnp.moveaxis(a, 2, -1), 1, 0)
    batch, feature, *positions = numbers.out_spec
    (z,) = _bind(eqn, given)
    return [walk.use("linear", weight, 1, rows, [batch, *positions, feature], a, z)]


def _use_gather(walk: _Walk, eqn: core.JaxprEqn, given: list[_Known]) -> list[_Known] | None:
    p, (table, indices) = eqn.params, given
    numbers, sizes, view = p["dimension_numbers"], p["slice_sizes"], table.view
    if view is None or numbers.operand_batching_dims or indices.view is not None:
        return None
    starts, fills = numbers.start_index_map, p["mode"] == lax.GatherScatterMode.FILL_OR_DROP
    partial = [a for a, n in enumerate(sizes) if n != view.shape[a]] or list(starts)
    if len(partial) != 1 or (fills and len(starts) != 1) or not {*numbers.collapsed_slice_dims} <= {*partial}:
        return None
    (axis,), kept = partial, [a for a in range(len(view.shape)) if a not in partial]
    if sizes[axis] != 1 or axis not in starts or _repeats(view, range(len(view.shape))):
        return None
    i, size = indices.value[..., starts.index(axis)], view.shape[axis]
    where = None
    if fills:
        where = (i >= 0) & (i < size)
        i = jnp.where(where, i, 0)
    elif p["mode"] == lax.GatherScatterMode.CLIP:
        i = jnp.clip(i, 0, size - 1)
    i = i.astype(jnp.int32)  # unsigned indices have no -1
    i = i if where is None else jnp.where(where, i, -1)
    (z,) = _bind(eqn, given)
    order = [a for a in range(z.ndim) if a not in numbers.offset_dims] + list(numbers.offset_dims)
    weight = _axes(view, [*kept, axis])
    weight = weight._replace(shape=(1, *weight.shape), strides=(0, *weight.strides))
    return [walk.use("lookup", weight, len(kept), i.shape, order, i, z, where)]


def _elementwise(walk: _Walk, kind: str, view: View, x: Any, z: Array) -> _Known:
    """z = w x or b + ..., with the view repeated along the rows."""
    view = _stretched(view, z.shape)
    row_axes = [a for a in range(z.ndim) if view.strides[a] == 0]
    order = row_axes + [a for a in range(z.ndim) if view.strides[a]]
    rows = [z.shape[a] for a in row_axes]
    inputs = None if x is None else jnp.broadcast_to(x, z.shape).transpose(order).reshape(1, *rows, -1)
    weight = _axes(view, order[len(rows) :])
    weight = weight._replace(shape=(1, *weight.shape), strides=(0, *weight.strides))
    return walk.use(kind, weight, len(weight.shape) - 1, rows, order, inputs, z)


def _use_product(walk: _Walk, eqn: core.JaxprEqn, given: list[_Known]) -> list[_Known] | None:
    if (found := _tracked(given)) is None:
        return None
    side, view = found
    (z,) = _bind(eqn, given)
    return [_elementwise(walk, "scale", view, given[1 - side].value, z)]


def _use_sum(walk: _Walk, eqn: core.JaxprEqn, given: list[_Known]) -> list[_Known] | None:
    less = eqn.primitive.name == "sub"
    if less and given[1].view is not None:
        return None
    (z,) = _bind(eqn, given)
    followed = given[:1] if less else given
    result = next((k.result for k in followed if k.result and k.result.shape == z.shape), None)
    views = [k.view for k in given if k.view is not None]
    if len(views) == 1 and views[0].shape == z.shape and any(k.fixed and not jnp.ndim(k.value) for k in given):
        return [_Known(z, views[0])]  # 1 + w, which changes as w does
    for view in views:
        if result is None or not walk.take_bias(result, _stretched(view, z.shape)):
            z, result = _elementwise(walk, "shift", view, None, z).value, None
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
        at = [_Known(v[i], k.view and _entry(k.view, 0, i)) for v, k in zip(entries, stacked, strict=True)]
        found = walk.run(p["jaxpr"], [*constants, *carry, *at])
        carry = found[: len(carry)]
        made.append([walk.lose(k).value for k in found[len(carry) :]])
    made = made[::-1] if p["reverse"] else made
    return carry + [_Known(jnp.stack(values)) for values in zip(*made, strict=True)]


_SUMS = ("add", "add_any", "sub")
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_SUMS, _use_sum),
    **dict.fromkeys(("call", "checkpoint", "closed_call", "core_call", "jit", "pjit", "remat", "remat2"), _enter),
    "conv_general_dilated": _use_convolution,
    "dot_general": _use_dot,
    "gather": _use_gather,
    "mul": _use_product,
    "scan": _unroll,
}
