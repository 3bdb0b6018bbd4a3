"""Derivatives that the user supplies, for arrays whose framework has none.

NumPy and CuPy cannot differentiate. A model written for them comes with its own
products or its Jacobian::

    jvp(params, inputs, v)      -> J v, an array like the outputs
    vjp(params, inputs, u)      -> J^T u, a tree like the parameters
    jacobian(params, inputs)    -> array (*outputs.shape, n), or a tree of arrays (*outputs.shape, *leaf.shape),
                                   or anything of shape (outputs.size, n) with @ and .T (a scipy.sparse array)

and a scalar function with ``gradient(params)`` and ``hvp(params, v)``. With data
None, ``inputs`` is left out of all of them. They are used instead of the
framework's own derivatives wherever they are given. What they return is copied,
so that they may return a buffer of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..arguments import called, described
from ..dispatch import available
from ..protocols import Array
from ..records import record, replace, static
from ..spaces import REAL, Space

__all__ = ["MissingDerivativeError", "Supplied"]

_LIKE, _LIKE_V = "(params[, inputs]), like the model", "(params[, inputs], v)"


class MissingDerivativeError(TypeError):
    """A derivative was asked for where nothing can give it; the message lists the ways."""

    def __init__(self, what: str, backend: str, ways: str) -> None:
        super().__init__(
            f"{what} needs derivatives, and {backend} arrays have none of their own. {ways}. Or let a framework that "
            f"differentiates do it for these arrays, with a model written in that framework: derivatives=NAME "
            f"({_names()}; linop-gn doctor tells more); or pass that framework's arrays. Finite differences are only "
            "for checking: linop_gn.testing has them."
        )


def _names() -> str:
    """The backends that can differentiate, of those that are installed."""
    found = {name for name, b in available().items() if not isinstance(b, ImportError) and b.calculus is not None}
    return ", ".join(sorted(found)) or "none is installed"


@dataclass(frozen=True)
class Supplied:
    """The user's derivative functions: part of the program, like the model."""

    jvp: Callable[..., Any] | None = None
    vjp: Callable[..., Any] | None = None
    jacobian: Callable[..., Any] | None = None
    gradient: Callable[..., Any] | None = None
    hvp: Callable[..., Any] | None = None

    @classmethod
    def given(cls, **functions: Any) -> Supplied | None:
        """These functions; None where there are none."""
        return cls(**functions) if any(function is not None for function in functions.values()) else None

    def __post_init__(self) -> None:
        if (self.jvp is None) != (self.vjp is None):
            given, lacking = ("jvp", "vjp") if self.vjp is None else ("vjp", "jvp")
            raise ValueError(f"{given}= was given without {lacking}=: a Gauss-Newton product needs both.")
        if self.jvp is not None and self.jacobian is not None:
            raise ValueError("jvp= and vjp= were given beside jacobian=, and only one would be used: choose.")
        if self.hvp is not None and self.gradient is None:
            raise ValueError("hvp= was given without gradient=: a second derivative comes with the first.")
        for name, value in vars(self).items():
            if value is not None and not callable(value):
                raise TypeError(f"{name}= must be a function of the parameters, got {type(value).__qualname__}.")

    @property
    def first_order(self) -> bool:
        """Whether products with J and J^T are given."""
        return self.jvp is not None or self.jacobian is not None

    def linearize(
        self, space: Space, arguments: tuple[Any, ...], outputs: Array, cotangent: Callable[[Array], Array] | None
    ) -> SuppliedLinearization:
        """A linearisation at ``arguments`` = (params, [inputs]) whose model value is ``outputs``.

        Its gradient is J^T ``cotangent(outputs)``.
        """
        outputs, matrix = space.backend.copy(outputs), None
        if self.jacobian is not None:
            matrix, arguments = (
                _as_matrix(space, called("jacobian=", _LIKE, self.jacobian, *arguments), tuple(outputs.shape)),
                (),
            )
        made = SuppliedLinearization(self, space, arguments, outputs, matrix)
        return made if cotangent is None else replace(made, gradient=made.vjp(cotangent(outputs)))


@record
class SuppliedLinearization:
    """:class:`~linop_gn.protocols.Linearization` from the user's functions or Jacobian."""

    supplied: Supplied = static()
    space: Space = static()
    arguments: tuple[Any, ...]
    outputs: Array
    matrix: Any
    gradient: list[Array] | None = None

    fresh: ClassVar[bool] = False
    seed: ClassVar[None] = None

    def owns(self, leaves: Sequence[Array]) -> bool:
        return False

    def without_gradient(self) -> SuppliedLinearization:
        return replace(self, gradient=None)

    def jvp(self, tangents: Sequence[Array], only: tuple[int, ...] | None = None) -> Array:
        space, ops = self.space, self.space.backend
        leaves = list(tangents)
        if only is not None:
            leaves = space.split(space.zeros())
            for i, tangent in zip(only, tangents, strict=True):
                leaves[i] = tangent
        if self.matrix is not None:
            shape, dtype, _ = ops.describe(self.outputs)
            product = self._multiplied(self.matrix, space.join(leaves), math.prod(shape))
            return ops.cast(ops.namespace().reshape(product, shape), dtype)
        assert self.supplied.jvp is not None
        out = ops.detach(
            called("jvp=", _LIKE_V, self.supplied.jvp, *self.arguments, ops.unflatten(space.structure, leaves))
        )
        wanted = ops.describe(self.outputs)[:2]
        if not ops.is_array(out) or ops.describe(out)[:2] != wanted:
            got = "{1} of shape {0}".format(*ops.describe(out)) if ops.is_array(out) else f"a {type(out).__qualname__}"
            raise ValueError(
                f"the supplied jvp returned {got}; expected an array like the outputs, {wanted[1]} of shape "
                f"{wanted[0]}."
            )
        return out

    def vjp(self, cotangent: Array, only: tuple[int, ...] | None = None) -> list[Array]:
        space, ops = self.space, self.space.backend
        if self.matrix is not None:
            flat = ops.namespace().reshape(cotangent, (-1,))
            leaves = space.split(ops.cast(self._multiplied(self.matrix.T, flat, space.size), space.dtype))
        else:
            assert self.supplied.vjp is not None
            made = ops.detach(called("vjp=", _LIKE_V, self.supplied.vjp, *self.arguments, cotangent))
            leaves = space.leaves(made, "result of the supplied vjp")
        return leaves if only is None else [leaves[i] for i in only]

    def squares(self, weights: Array) -> Array | None:
        """sum_i w_i J_ij^2 for each j, where the Jacobian is an array or a sparse matrix; else None."""
        J, space = self.matrix, self.space
        if J is None or not (space.backend.is_array(J) or hasattr(J, "power")):
            return None
        squared = J * J if space.backend.is_array(J) else J.power(2)
        return space.backend.cast(self._multiplied(squared.T, weights, space.size), space.dtype)

    def _multiplied(self, matrix: Any, v: Array, rows: int) -> Array:
        product, ops = matrix @ v, self.space.backend
        shape = tuple(getattr(product, "shape", ()))
        if not ops.is_array(product) or shape != (rows,):
            kind = type(self.matrix)
            raise TypeError(
                f"the supplied jacobian, a {kind.__module__}.{kind.__qualname__}, gave a {type(product).__qualname__} "
                f"of shape {shape} for a {ops.name} vector; its products (@, and @ of .T) must be {ops.name} arrays of "
                f"shape ({rows},). Give a matrix or operator that takes {ops.name} vectors."
            )
        return product


def _as_matrix(space: Space, jacobian: Any, outputs: tuple[int, ...]) -> Any:
    """The Jacobian (outputs.size, n) from an array, a tree of arrays with the outputs' shape in front, or a matrix."""
    ops = space.backend
    xp, rows = ops.namespace(), math.prod(outputs)
    jacobian = ops.detach(jacobian)
    if ops.is_array(jacobian):
        accepted = [(*outputs, space.size), (rows, space.size)]
        accepted += [outputs + space.shapes[0]] if len(space.shapes) == 1 else []
        _require_jacobian(space, "the supplied jacobian", jacobian, accepted)
        return ops.copy(xp.reshape(jacobian, (rows, space.size)))
    if hasattr(jacobian, "to_sparse_coo"):
        jacobian = jacobian.to_sparse_coo()  # the one layout of torch's whose transpose has products
    if tuple(getattr(jacobian, "shape", ())) == (rows, space.size) and hasattr(jacobian, "T"):
        return jacobian
    names, leaves, _ = ops.flatten(jacobian)
    if set(names) != set(space.names) or hasattr(jacobian, "T"):
        got = f"leaves {names}" if names != [""] else f"a {type(jacobian).__qualname__}"
        got += f" of shape {tuple(jacobian.shape)}" if hasattr(jacobian, "shape") else ""
        raise ValueError(
            f"the supplied jacobian has {got}; expected an array of shape {(*outputs, space.size)}, or leaves "
            f"{list(space.names)}, each of shape (*outputs.shape, *leaf.shape)."
        )
    by_name, shapes = dict(zip(names, leaves, strict=True)), dict(zip(space.names, space.shapes, strict=True))
    for name, shape in shapes.items():
        _require_jacobian(space, f"leaf {name!r} of the supplied jacobian", by_name[name], [outputs + shape])
    return xp.concat([xp.reshape(by_name[name], (rows, math.prod(shape))) for name, shape in shapes.items()], axis=1)


def _require_jacobian(space: Space, where: str, part: Any, shapes: list[tuple[int, ...]]) -> None:
    ops = space.backend
    if not ops.is_array(part):
        raise TypeError(f"{where} is {described(part, ops.name)}.")
    shape, dtype, _ = ops.describe(part)
    if shape not in shapes:
        raise ValueError(f"{where} has shape {shape}; expected {shapes[0]}.")
    if dtype not in REAL:
        raise TypeError(f"{where} has dtype {dtype}; derivatives are real floating point: cast it.")
