"""An operator from a user's plain functions.

SciPy's ``LinearOperator`` closes over its numbers; here they go in ``args``,
which are data, so that a compiled program written for one matrix, batch or
parameter vector serves the next as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..protocols import Tree, Vector
from ..records import fill, record, static
from ..spaces import Space
from .base import LinearOperator

__all__ = ["FunctionOperator"]


@record
class FunctionOperator(LinearOperator):
    """v -> function(v, *args), linear in v.

    Parameters
    ----------
    function
        The product with a vector. Whatever it returns is copied (in NumPy only if
        somebody else may hold it), so it may return a buffer of its own or its
        input; it must not write to its input.
    domain, codomain
        The spaces; the codomain is the domain if left out.
    adjoint_function
        The product with the adjoint, where A is not symmetric and an adjoint is
        wanted.
    args
        Arrays, trees and numbers handed to both functions after the vector.
        Put there what changes from call to call, rather than closing over it. Solutions have derivatives in these,
        and none in what the functions close over.
    symmetric, psd
        What is known about A; :func:`linop_gn.validate` checks it.
    on
        ``"flat"`` if the functions take and give flat vectors (n,), ``"tree"``
        if trees like those of the spaces.

    Raises
    ------
    ValueError, TypeError
        At a product, if the function's result is not a vector of the codomain.

    Examples
    --------
    >>> import numpy as np, linop_gn as lg
    >>> def difference(v):
    ...     return v[1:] - v[:-1]
    >>> def adjoint(u):
    ...     return np.concatenate([[0.0], u]) - np.concatenate([u, [0.0]])
    >>> three, two = lg.Space.flat(3, np.zeros(3)), lg.Space.flat(2, np.zeros(2))
    >>> D = lg.FunctionOperator(difference, three, two, adjoint)
    >>> D @ np.array([1.0, 4.0, 9.0])
    array([3., 5.])
    >>> (D.T @ D).psd
    True

    Numbers that change are data:

    >>> shift = lg.FunctionOperator(lambda v, a, s: a @ v + s * v, three, args=(np.ones((3, 3)), 2.0), symmetric=True)
    >>> shift @ np.array([1.0, 0.0, 0.0])
    array([3., 1., 1.])
    """

    function: Callable[..., Any] = static()
    domain: Space = static(default=None)
    codomain: Space = static(default=None)
    adjoint_function: Callable[..., Any] | None = static(default=None)
    args: tuple[Any, ...] = ()
    symmetric: bool = static(default=False)
    psd: bool = static(default=False)
    on: str = static(default="flat")

    def __post_init__(self) -> None:
        for name, function in (("function", self.function), ("adjoint_function", self.adjoint_function)):
            if not callable(function) and not (function is None and name == "adjoint_function"):
                raise TypeError(f"{name} must be callable, got a {type(function).__qualname__}.")
        target: Any = self.codomain
        spaces: dict[str, Any] = {"domain": self.domain, "codomain": self.domain if target is None else target}
        for name, space in spaces.items():
            if not isinstance(space, Space):
                raise TypeError(
                    f"the {name} must be a Space, got {type(space).__qualname__}: use Space.of(tree like the vectors) "
                    "or Space.flat(size, like=array)."
                )
        if self.on not in ("flat", "tree"):
            raise ValueError(f'on is "flat" or "tree", got {self.on!r}.')
        if self.on == "flat" and any(space.layout is not None for space in spaces.values()):
            raise ValueError(
                "FunctionOperator: flat vectors of sharded parameters are in the order of the devices, of which a "
                'function cannot tell; give functions of trees, and on="tree".'
            )
        codomain: Space = spaces["codomain"]
        symmetric = bool(self.symmetric or self.psd)
        if symmetric and not self.domain.agrees(codomain):
            raise ValueError(f"an operator from {self.domain!r} to {codomain!r} cannot be symmetric.")
        fill(self, codomain=codomain, args=tuple(self.args), symmetric=symmetric)

    def matvec(self, v: Vector) -> Vector:
        return self._run(self.function, v, self.domain, self.codomain)

    def rmatvec(self, u: Vector) -> Vector:
        if self.adjoint_function is not None:
            return self._run(self.adjoint_function, u, self.codomain, self.domain)
        if self.symmetric:
            return self.matvec(u)
        raise NotImplementedError(
            f"{_name(self.function)} was given without its adjoint, so that the {type(self).__name__} has no adjoint "
            "product; pass adjoint_function= (adjoint= of lg.complex_operator), or symmetric=True (hermitian=True) if "
            "it is."
        )

    def _run(self, function: Callable[..., Any], v: Vector, source: Space, target: Space) -> Vector:
        ops = target.backend
        if self.on == "tree":
            result: Tree = ops.alone(lambda: function(source.unpack(v), *self.args))[0]
            return target.pack(result, _result_of(function))
        product, alone = ops.alone(lambda: function(v, *self.args))
        if target.holds(product):
            return product if alone else ops.copy(product)
        if getattr(product, "shape", None) is not None and len(product.shape) != 1:
            raise ValueError(
                f"the {_result_of(function)} has shape {tuple(product.shape)}; expected ({target.size},). Products are "
                'asked for one vector at a time; for functions on trees pass on="tree".'
            )
        return ops.copy(target.check(product, _result_of(function)))


def _result_of(function: Callable[..., Any]) -> str:
    return f"result of {_name(function)}"


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)
