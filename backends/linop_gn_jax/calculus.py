"""Derivatives by JAX: linearise once, then products without a forward pass.

``jax.linearize`` and the transpose of what it returns share one forward pass
and one set of residuals (``linearize`` beside ``vjp`` would keep them twice);
the gradient comes from the same transpose. A Hessian product is the linear
part of the gradient, taken forward over reverse.

A linearisation is a pytree of arrays (see :mod:`linop_gn_jax.linear`): return
it from one compiled function, hand it to another, stack it over batches, carry
it in a loop. Called eagerly, its products are compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, tree_util
from jax.extend import core

from linop_gn.backend import Array, CalculusDefaults, Composed, LinearizationDefaults

from .arrays import laid_out
from .compiled import compiled, tracing
from .ends import end_of
from .linear import LinearProgram
from .mapped import apart, cast
from .models import adapt, explained
from .slopes import slope, slope_through
from .sums import LARGE
from .uses import JaxUses, perturbed

__all__ = ["JaxCalculus", "JaxGradientLinearization", "JaxLinearization"]

Only = tuple[int, ...] | None

_STATIC = {"static": True}


_product = compiled(lambda arguments, program: program(*arguments), static=(1,), label=lambda *_: "product")


def _matching(what: str, given: Sequence[Any], expected: Sequence[Any]) -> list[Any]:
    """``given`` in the expected dtypes and layouts, its shapes checked."""
    got = [tuple(np.shape(x)) for x in given]
    want = [a.shape for a in expected]
    if got != want:
        raise ValueError(f"{what} have shapes {got}; expected {want}, one for each leaf asked for.")
    return [laid_out(jnp.asarray(x, a.dtype), a) for x, a in zip(given, expected, strict=True)]


@tree_util.register_dataclass
@dataclass(eq=False)
class JaxLinearization(LinearizationDefaults):
    """A function linearised at one point; see :class:`linop_gn.protocols.Linearization`."""

    outputs: Array
    gradient: list[Array] | None
    residuals: list[Array]
    program: LinearProgram = field(metadata=_STATIC)
    backward: bool = field(metadata=_STATIC)
    """Whether the program is that of J^T, because J has none of its own."""

    def _forward_program(self, only: Only) -> LinearProgram:
        if self.backward:
            with _rules_followed():
                return self._backward_program(only).transpose()
        return self.program if only is None else self.program.at_inputs(only)

    def _backward_program(self, only: Only) -> LinearProgram:
        if self.backward:
            return self.program if only is None else self.program.at_outputs(only)
        return self._forward_program(only).transpose()

    def jvp(self, tangents: Sequence[Array], only: Only = None) -> Array:
        program = self._forward_program(only).in_blocks()
        return _product((self.residuals, _matching("the tangents", tangents, program.inputs)), program)[0]

    def vjp(self, cotangent: Array, only: Only = None) -> list[Array]:
        program = self._backward_program(only).in_blocks()
        return _product((self.residuals, _matching("the cotangents", [cotangent], program.inputs)), program)


@tree_util.register_dataclass
@dataclass(eq=False)
class JaxGradientLinearization(LinearizationDefaults):
    """A gradient linearised at one point; see :class:`linop_gn.protocols.GradientLinearization`."""

    value: Array
    gradient: list[Array]
    residuals: list[Array]
    program: LinearProgram = field(metadata=_STATIC)

    def hvp(self, tangents: Sequence[Array]) -> list[Array]:
        program = self.program.in_blocks()
        return _product((self.residuals, _matching("the tangents", tangents, program.inputs)), program)


def _row(pullback: Any, outputs: Array, row: Any) -> list[Array]:
    (leaves,) = pullback(jnp.zeros_like(outputs).at[row].set(1))
    return leaves  # type: ignore[no-any-return]


_all_rows = compiled(
    lambda pullback, outputs, rows: lax.map(lambda row: _row(pullback, outputs, row), rows),
    label=lambda *_: "rows",
    loops=True,
)


def _rows(flat: Callable[[list[Array]], Array], params: Sequence[Any], rows: Sequence[int]) -> list[list[Array]]:
    """Rows of the Jacobian of a function with a flat value, by reverse mode; many of them in one loop, on the host."""
    leaves, _ = apart(_differentiable(params), flat)
    if len(rows) <= 4 or tracing():
        outputs, pullback = jax.vjp(flat, leaves)
        return [_row(pullback, outputs, row) for row in rows]
    outputs, pullback = compiled(lambda p: jax.vjp(flat, p), label=lambda _: "rows")(leaves)
    stacked = jax.device_get(_all_rows(pullback, outputs, jnp.asarray(rows)))
    return [[leaf[i] for leaf in stacked] for i in range(len(rows))]


def _differentiable(params: Sequence[Any]) -> list[Array]:
    for index, leaf in enumerate(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"parameter leaf {index} has dtype {jnp.result_type(leaf)}, which has no derivative here. Keep "
                "integers, booleans and complex numbers out of the parameters: close over them in the model."
            )
    return [jnp.asarray(leaf) for leaf in params]


def _outputs(function: Callable[[list[Array]], Array], p: list[Array]) -> Array:
    with explained():
        return _one_real_array(function(p), "the model")


def _with_cotangent(
    function: Callable[[list[Array]], Array], cotangent: Callable[[Array], Array], p: list[Array]
) -> tuple[Array, Array]:
    outputs = _outputs(function, p)
    return outputs, cotangent(outputs)


def _one_real_array(outputs: Any, what: str) -> Array:
    if isinstance(outputs, (np.ndarray, np.generic, float)):  # the parameters don't matter to it
        outputs = jnp.asarray(outputs)
    if not isinstance(outputs, jax.Array):
        raise TypeError(
            f"{what} returned a {type(outputs).__qualname__}; it must return one array. Return the logits or residuals "
            "alone (concatenate them if there are several; leave auxiliary values out)."
        )
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise TypeError(f"{what} returned an array of dtype {outputs.dtype}; derivatives need real floating point.")
    return outputs


def _scalar_valued(function: Callable[[list[Array]], Array]) -> Callable[[list[Array]], Array]:
    def checked(params: list[Array]) -> Array:
        with explained():
            value = _one_real_array(function(params), "the objective")
        if value.shape:
            raise TypeError(
                f"the objective returned an array of shape {value.shape}; it must return a scalar: its mean or sum."
            )
        return value

    return checked


@contextmanager
def _rules_followed() -> Iterator[None]:
    """Advice where the backward rule of a custom vjp cannot be transposed, as J v and H v need."""
    try:
        yield
    except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise NotImplementedError(
            "the model goes through a jax.custom_vjp, which has no forward derivative, and whose backward rule JAX "
            f"cannot transpose, so that there are no products J v or H v: {error} Write the loops of that rule as "
            "lax.scan, give the function a jax.custom_jvp in place of its custom_vjp, or hand over J v and J^T u "
            "yourself: lg.Objective(..., jvp=, vjp=)."
        ) from error


def _linear_part(pushforward: Callable[..., Any], params: list[Array]) -> tuple[LinearProgram, list[Array]]:
    """The program of what ``jax.linearize`` returned, and its residuals."""
    residuals, structure = tree_util.tree_flatten(pushforward)

    def push(residuals: list[Any], tangents: list[Any]) -> Sequence[Any]:
        return tree_util.tree_leaves(tree_util.tree_unflatten(structure, residuals)(tangents))

    return LinearProgram.trace(push, residuals, params), residuals


def _traced(function: Callable[[list[Array]], Array], p: list[Array]) -> core.ClosedJaxpr:
    return jax.make_jaxpr(lambda *p: _outputs(function, list(p)))(*p)  # type: ignore[no-any-return]


def _composed(function: Composed, p: list[Array]) -> tuple[list[Array], Array]:
    """The gradient of a scalar function of a model's outputs, and its value."""
    z, pullback = jax.vjp(lambda p: _outputs(function.inner, p), p)
    if not function.outer.known(z):
        value, u = jax.value_and_grad(_scalar_valued(lambda z: function.outer.total(z[0])))([z])
        return pullback(u[0])[0], value
    outer, end = function.outer, None
    if jax.device_count() == 1:  # several may share the rows
        end = end_of(_traced(function.inner, p), outer.leading(z))
    if end is None:
        return pullback(slope(outer, z))[0], outer.value(lax.stop_gradient(z))
    moving, pullback, still = jax.vjp(end.made_of, p, has_aux=True)
    value = outer.value(lax.stop_gradient(end(*moving, *still).reshape(z.shape)))
    return pullback(slope_through(end, outer, z, moving, still))[0], value


class JaxCalculus(CalculusDefaults):
    """First and second derivatives of functions of a list of leaves.

    What a model closes over is promoted to the dtype of what it is given.
    """

    adapt = staticmethod(adapt)

    def compiled(self) -> JaxCalculus:
        return self

    def evaluate(self, function: Callable[[list[Array]], Any], params: Sequence[Array]) -> Any:
        with explained():
            return function(list(params))

    def linearize(
        self, function: Callable[[list[Array]], Array], params: Sequence[Array], cotangent: Callable[[Array], Array]
    ) -> JaxLinearization:
        leaves, axes = apart(_differentiable(params), lambda p: _with_cotangent(function, cotangent, p))
        outputs, pushforward = jax.linearize(lambda p: cast(_outputs(function, p), axes), leaves)
        if outputs.size >= LARGE and jax.device_count() == 1 and outputs.ndim:
            end = end_of(_traced(function, leaves), 1)
            if end is not None and end.entrywise:
                outputs, pushforward = jax.linearize(lambda p: end.done_again(p).reshape(outputs.shape), leaves)
        program, residuals = _linear_part(pushforward, leaves)
        backward = program.only_transposes
        with _rules_followed() if backward else nullcontext():
            transpose = program.transpose()
        (u,) = _matching("the cotangent", [cotangent(outputs)], program.outputs)
        gradient = transpose(residuals, [u])
        return JaxLinearization(outputs, gradient, residuals, transpose if backward else program, backward)

    def linearize_gradient(
        self, function: Callable[[list[Array]], Array], params: Sequence[Array]
    ) -> JaxGradientLinearization:
        leaves, _ = apart(_differentiable(params), _scalar_valued(function))

        def gradient_and_value(p: list[Array]) -> tuple[list[Array], Array]:
            if isinstance(function, Composed):
                return _composed(function, p)
            value, gradient = jax.value_and_grad(_scalar_valued(function))(p)
            return gradient, value

        gradient, pushforward, value = jax.linearize(gradient_and_value, leaves, has_aux=True)
        program, residuals = _linear_part(pushforward, leaves)
        if program.only_transposes:  # which is the same: H is symmetric
            with _rules_followed():
                program = program.transpose()
        return JaxGradientLinearization(value, gradient, residuals, program)

    def gradient(
        self,
        function: Callable[[list[Array]], Array],
        params: Sequence[Array],
        cotangent: Callable[[Array], Array] | None = None,
    ) -> tuple[Array, list[Array]]:
        if cotangent is None:
            value = _scalar_valued(function)
            return jax.value_and_grad(value)(apart(_differentiable(params), value)[0])
        leaves, axes = apart(_differentiable(params), lambda p: _with_cotangent(function, cotangent, p))
        outputs, pullback = jax.vjp(lambda p: cast(_outputs(function, p), axes), leaves)
        return outputs, pullback(cotangent(outputs))[0]

    def jacobian_rows(
        self, function: Callable[[list[Array]], Array], params: Sequence[Array], rows: Sequence[int]
    ) -> list[list[Array]]:
        return _rows(lambda p: jnp.ravel(_outputs(function, p)), params, rows)

    def hessian_rows(
        self, function: Callable[[list[Array]], Array], params: Sequence[Array], rows: Sequence[int]
    ) -> list[list[Array]]:
        def gradient(p: list[Array]) -> Array:
            return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.grad(_scalar_valued(function))(p)])

        return _rows(gradient, params, rows)

    def uses(self, function: Callable[[list[Array]], Array], params: Sequence[Array]) -> JaxUses:
        leaves, _ = apart(_differentiable(params), lambda p: _outputs(function, p))
        found = perturbed(lambda p: _outputs(function, p), leaves)
        arguments = [*found.zeros, *leaves]
        outputs, pushforward, inputs = jax.linearize(found.function, arguments, has_aux=True)
        program, residuals = _linear_part(pushforward, arguments)
        with _rules_followed() if program.only_transposes else nullcontext():
            transpose = program.transpose()
        linear = JaxLinearization(outputs, None, residuals, transpose, backward=True)
        return JaxUses(outputs, found.uses, inputs, found.otherwise, linear)

    def high_precision(self) -> Any:
        return jax.enable_x64(True)
