"""Derivatives that the user supplies, for arrays whose framework has none.

NumPy and CuPy cannot differentiate. A model written for them comes with its own
products or its Jacobian::

    jvp(params, inputs, v)      -> J v, an array like the outputs
    vjp(params, inputs, u)      -> J^T u, a tree like the parameters
    jacobian(params, inputs)    -> array (*outputs.shape, n), or a tree of arrays (*outputs.shape, *leaf.shape)

and a scalar function with ``gradient(params)`` and ``hvp(params, v)``. With data
None, ``inputs`` is left out of all of them. They are used instead of the
framework's own derivatives wherever they are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..protocols import Array
from ..records import record, replace, static
from ..spaces import Space

__all__ = ["MissingDerivativeError", "Supplied"]


class MissingDerivativeError(TypeError):
    """A derivative was asked for where nothing can give it; the message lists the ways."""

    def __init__(self, what: str, backend: str) -> None:
        super().__init__(
            f"{what} needs derivatives, and {backend} arrays have none of their own. Either supply them with the "
            "objective (jvp= and vjp=, or jacobian=; for a plain scalar function gradient= and hvp=), or write the "
            "model in a framework that differentiates and pass its arrays (JAX, PyTorch: linop-gn doctor shows what is "
            "installed). Finite differences are only for checking: linop_gn.testing has them."
        )


@dataclass(frozen=True)
class Supplied:
    """The user's derivative functions: part of the program, like the model."""

    jvp: Callable[..., Any] | None = None
    vjp: Callable[..., Any] | None = None
    jacobian: Callable[..., Any] | None = None
    gradient: Callable[..., Any] | None = None
    hvp: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if (self.jvp is None) != (self.vjp is None):
            given, lacking = ("jvp", "vjp") if self.vjp is None else ("vjp", "jvp")
            raise ValueError(f"{given}= was given without {lacking}=: a Gauss-Newton product needs both.")
        if self.hvp is not None and self.gradient is None:
            raise ValueError("hvp= was given without gradient=: a second derivative comes with the first.")
        for name in ("jvp", "vjp", "jacobian", "gradient", "hvp"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"{name}= must be a function of the parameters, got {type(value).__qualname__}.")

    @property
    def first_order(self) -> bool:
        """Whether products with J and J^T are given."""
        return self.jvp is not None or self.jacobian is not None

    def linearize(
        self, space: Space, arguments: tuple[Any, ...], outputs: Array, cotangent: Callable[[Array], Array]
    ) -> SuppliedLinearization:
        """A linearisation at ``arguments`` = (params, [inputs]) whose model value is ``outputs``."""
        matrix = None
        if self.jvp is None:
            assert self.jacobian is not None
            matrix = _as_matrix(space, self.jacobian(*arguments), tuple(outputs.shape))
        made = SuppliedLinearization(self, space, arguments, outputs, matrix)
        return replace(made, gradient=made.vjp(cotangent(outputs)))


@record
class SuppliedLinearization:
    """:class:`~linop_gn.protocols.Linearization` from the user's functions or Jacobian."""

    supplied: Supplied = static()
    space: Space = static()
    arguments: tuple[Any, ...]
    outputs: Array
    matrix: Array | None
    gradient: list[Array] | None = None

    def without_gradient(self) -> SuppliedLinearization:
        return replace(self, gradient=None)

    def jvp(self, tangents: Sequence[Array], only: tuple[int, ...] | None = None) -> Array:
        space, ops = self.space, self.space.backend
        leaves = list(tangents) if only is None else self._padded(tangents, only)
        if self.matrix is not None:
            return ops.namespace().reshape(self.matrix @ space.join(leaves), self.outputs.shape)
        assert self.supplied.jvp is not None
        out = self.supplied.jvp(*self.arguments, ops.unflatten(space.structure, leaves))
        if not ops.is_array(out) or tuple(out.shape) != tuple(self.outputs.shape):
            got = tuple(out.shape) if ops.is_array(out) else type(out).__qualname__
            raise ValueError(f"the supplied jvp returned {got}; expected an array like the outputs, {tuple(self.outputs.shape)}.")
        return out

    def vjp(self, cotangent: Array, only: tuple[int, ...] | None = None) -> list[Array]:
        space, ops = self.space, self.space.backend
        if self.matrix is not None:
            flat = ops.namespace().reshape(cotangent, (-1,)) @ self.matrix
            leaves = space.split(ops.cast(flat, space.dtype))
        else:
            assert self.supplied.vjp is not None
            leaves = space.leaves(self.supplied.vjp(*self.arguments, cotangent), "result of the supplied vjp")
        return leaves if only is None else [leaves[i] for i in only]

    def _padded(self, tangents: Sequence[Array], only: tuple[int, ...]) -> list[Array]:
        leaves = self.space.split(self.space.zeros())
        for i, tangent in zip(only, tangents, strict=True):
            leaves[i] = tangent
        return leaves


def _as_matrix(space: Space, jacobian: Any, outputs: tuple[int, ...]) -> Array:
    """The Jacobian (outputs.size, n) from an array or a tree of arrays with the outputs' shape in front."""
    ops = space.backend
    xp, rows = ops.namespace(), math.prod(outputs)
    if ops.is_array(jacobian):
        shape = tuple(jacobian.shape)
        if shape not in ((*outputs, space.size), (rows, space.size), (*outputs, *space.shapes[0])):
            raise ValueError(f"the supplied jacobian has shape {shape}; expected {(*outputs, space.size)}.")
        return xp.reshape(jacobian, (rows, space.size))
    names, leaves, _ = ops.flatten(jacobian)
    by_name = dict(zip(names, leaves, strict=True))
    if set(names) != set(space.names):
        raise ValueError(
            f"the supplied jacobian has leaves {names}; expected {list(space.names)}, each of shape "
            "(*outputs.shape, *leaf.shape)."
        )
    parts = []
    for name, shape in zip(space.names, space.shapes, strict=True):
        if tuple(by_name[name].shape) != outputs + shape:
            raise ValueError(
                f"leaf {name!r} of the supplied jacobian has shape {tuple(by_name[name].shape)}; expected {outputs + shape}."
            )
        parts.append(xp.reshape(by_name[name], (rows, math.prod(shape))))
    return xp.concat(parts, axis=1)
