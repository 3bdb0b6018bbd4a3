"""The abstract linear operator: a matrix that is reached only through products.

An operator A maps its ``domain`` to its ``codomain``. ``A @ v`` takes a tree, a
flat array (n,) or columns (n, k) and answers in the same format. What is known
about A travels with it as two flags: ``symmetric`` (A = A^T) and ``psd``
(symmetric and v^T A v >= 0 for all v).

SciPy's ``LinearOperator`` is a closure over functions on NumPy arrays; this one
is a record of data, so that a compiled program can take it as an argument, and
it belongs to whichever framework its arrays belong to.

A subclass gives ``domain``, ``codomain``, ``matvec`` and, unless it is
symmetric, ``rmatvec``, all on flat vectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from .. import html
from ..distributed.reduction import Reduction
from ..protocols import Array, Backend, Scalar, Vector
from ..records import data_fields, memo, record
from ..spaces import Space
from .partition import LeafBlock, Partition, of_leaves

__all__ = ["LinearOperator", "require_operator", "run"]


def run(product: Callable[[LinearOperator, Vector], Vector], operator: LinearOperator, v: Vector) -> Vector:
    """``product(operator, v)`` with the operator prepared: compiled where its backend compiles and can trace it."""
    ready = operator.prepare()
    return product(ready, v) if ready.host else ready.backend.call(product, ready, v)


def _of_leaves(operator: LinearOperator, v: tuple[Array, ...]) -> list[Array]:
    """A v for the leaves of v, as leaves."""
    if operator.leafwise:
        made = operator.matvec(v)
        return operator.codomain.laid_out(list(made)) if isinstance(made, tuple) else operator.codomain.split(made)
    return operator.codomain.split(operator.apply(operator.domain.join(list(v))))


def _operators_in(value: Any) -> Iterator[LinearOperator]:
    """The operators that a field holds: itself, or those in tuples, lists and dicts."""
    if isinstance(value, LinearOperator):
        yield value
    elif type(value) in (tuple, list, dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _operators_in(part)


def _ready(value: Any) -> Any:
    """A field with the operators that it holds prepared."""
    if isinstance(value, LinearOperator):
        return value.prepare()
    if type(value) is dict:
        return {key: _ready(part) for key, part in value.items()}
    return type(value)(map(_ready, value)) if type(value) in (tuple, list) else value


@record
class LinearOperator:
    """A linear map known by its products with vectors.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Dense(np.array([[2.0, 1.0], [1.0, 3.0]]), symmetric=True)
    >>> (A + 0.5 * lg.Identity(A.domain)) @ np.array([1.0, 0.0])
    array([2.5, 1. ])
    """

    __array_ufunc__ = None  # lets ``numpy_scalar * A`` reach __rmul__
    __array_priority__ = 1000

    # what subclasses say

    @property
    def domain(self) -> Space:
        """Where the vectors that the operator is applied to live."""
        raise NotImplementedError(f"{type(self).__name__} does not define its domain")

    @property
    def codomain(self) -> Space:
        """Where the products live; the domain unless a subclass says otherwise."""
        return self.domain

    @property
    def symmetric(self) -> bool:
        """Whether A = A^T is known."""
        return self.psd

    @property
    def psd(self) -> bool:
        """Whether A is known to be symmetric positive semi-definite."""
        return False

    @property
    def host(self) -> bool:
        """Whether products draw data from the host, so that no compiler can trace them."""
        for child in self._children():  # noqa: SIM110  (each solve asks, and a generator takes as long again)
            if child.host:
                return True
        return False

    @property
    def reduction(self) -> Reduction | None:
        """What sums its products over processes, where there are several; a run with it ends on all of them at once."""
        for child in self._children():
            found = child.reduction
            if found is not None:
                return found
        return None

    @property
    def leafwise(self) -> bool:
        """Whether :meth:`matvec` takes a tuple of leaves as well, and returns one where it returns a vector like v."""
        return False

    @property
    def together(self) -> int:
        """How many columns may be multiplied in one pass of the framework's own batching; 1: each for itself."""
        return 1

    def matvec(self, v: Vector) -> Vector:
        """A v for flat v (n,): a new array, which the caller may overwrite."""
        raise NotImplementedError(f"{type(self).__name__} does not define matvec")

    def rmatvec(self, u: Vector) -> Vector:
        """A^T u for flat u (m,): a new array, which the caller may overwrite."""
        if self.symmetric:
            return self.matvec(u)
        raise NotImplementedError(
            f"{type(self).__name__} has no adjoint product; give it rmatvec, or declare it symmetric if it is."
        )

    def matmat(self, v: Vector) -> Vector:
        """A V for columns V (n, k): one product for each unless a subclass knows better."""
        return self.backend.over_columns(self.matvec, v, self.together)

    def rmatmat(self, u: Vector) -> Vector:
        """A^T U for columns U (m, k)."""
        if self.symmetric:
            return self.matmat(u)
        return self.backend.over_columns(self.rmatvec, u, self.together)

    @property
    def leaf_blocks(self) -> tuple[LeafBlock, ...] | None:
        """Blocks of whole leaves that the operator never mixes, each leaf in one of them; None: none known."""
        return None

    @property
    def partition(self) -> Partition | None:
        """Blocks of entries that the operator never mixes, in the order of their first entries; None: none known.

        Where vectors lie over several devices, entries have no place, and :attr:`leaf_blocks` is what may be known.
        """
        known = self.leaf_blocks
        return None if known is None or self.domain.layout is not None else of_leaves(self.domain, known)

    def known_diagonal(self) -> Vector | None:
        """The diagonal (n,) of a square operator, a new array, where it costs no product; None where it would."""
        return None

    def known_logdet(self, damping: Scalar) -> Scalar | None:
        """log det (A + damping I) of a symmetric operator, where it costs no product; None where it would."""
        return None

    def known_frobenius_norm(self) -> Scalar | None:
        """The Frobenius norm, where it costs no product; None where it would."""
        return None

    def known_matrix(self) -> Array | None:
        """The matrix (m, n), where the operator has a shorter way to it than products; None where it has none."""
        return None

    # what everybody gets

    def diagonal(self) -> Vector:
        """The diagonal (n,) of a square operator, a new array, if it is known without a product.

        Raises
        ------
        ValueError
            If it is not: with the ways to get it by products.
        """
        known = self.known_diagonal()
        if known is None:
            n = self.domain.size
            raise ValueError(
                f"the diagonal of {self!r} is not known without products. lg.diagonal(A) estimates it by 100 of them, "
                f"with an error for each entry; lg.diagonal(A, 'exact') takes {n}."
            )
        return known

    @property
    def backend(self) -> Backend:
        """The framework that the operator's arrays belong to."""
        return self.domain.backend

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n): entries of a product, entries of a vector."""
        return self.codomain.size, self.domain.size

    @property
    def dtype(self) -> str:
        """Name of the floating dtype of vectors and products."""
        return self.domain.dtype

    def _children(self) -> list[LinearOperator]:
        """The operators among the fields; a solve asks for them several times."""
        known: list[LinearOperator] | None = memo(self).children
        if known is None:
            held = [getattr(self, name, None) for name in data_fields(self)]
            known = memo(self).children = [child for value in held for child in _operators_in(value)]
        return known

    def prepare(self) -> LinearOperator:
        """The operator with its per-point work done: linearised, factored, whatever products share.

        Solvers call it once; ``@`` calls it at the first product and keeps the
        result. Subclasses with work to do override :meth:`_prepare`.
        """
        prepared: LinearOperator | None = memo(self).prepared
        if prepared is None:
            prepared = self._prepare()
            if prepared is not self and self.backend.is_concrete(prepared):  # no cycle: arrays go with their last use
                memo(self).prepared = prepared
        return prepared

    def _prepare(self) -> LinearOperator:
        if not self._children():
            return self
        fields = {name: _ready(getattr(self, name)) for name in data_fields(self)}
        made: LinearOperator = dataclasses.replace(self, **fields)
        return made

    def apply(self, v: Vector) -> Vector:
        """A v or A V for flat vectors or columns, unchecked: what solvers call."""
        return self.matvec(v) if v.ndim == 1 else self.matmat(v)

    def rapply(self, u: Vector) -> Vector:
        """A^T u or A^T U for flat vectors or columns, unchecked."""
        return self.rmatvec(u) if u.ndim == 1 else self.rmatmat(u)

    # the algebra: what +, @, * and .T make of operators is said, and put here, by algebra.py

    _sum: ClassVar[Callable[[LinearOperator, LinearOperator], LinearOperator]]
    _product: ClassVar[Callable[[LinearOperator, LinearOperator], LinearOperator]]
    _multiple: ClassVar[Callable[[LinearOperator, Scalar], Any]]
    _adjoint: ClassVar[Callable[[LinearOperator], LinearOperator]]

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, LinearOperator):
            return self._product(other)
        if self.domain.in_leaves and not self.backend.is_array(other) and not self.host:
            self.domain.require_own(other)
            made = run(_of_leaves, self, tuple(self.domain.laid_out(self.domain.leaves(other))))
            return self.backend.unflatten(self.codomain.structure, made)
        flat, leave = self.domain.enter(other, lent=True)
        return leave(run(LinearOperator.apply, self, flat), self.codomain)

    def __call__(self, v: Any) -> Any:
        return self @ v

    @property
    def T(self) -> LinearOperator:
        """The adjoint A^T: A itself where it is symmetric."""
        return self._adjoint()

    def __add__(self, other: Any) -> Any:
        if isinstance(other, LinearOperator):
            return self._sum(other)
        if isinstance(other, (int, float)) and other != 0:
            raise TypeError(
                f"{type(self).__name__} + {other!r}: write lg.Damped(A, {other!r}), or A + c * lg.Identity(A.domain)."
            )
        return self if isinstance(other, (int, float)) else NotImplemented

    __radd__ = __add__

    def __neg__(self) -> LinearOperator:
        negative: LinearOperator = self * -1.0
        return negative

    def __sub__(self, other: Any) -> Any:
        return self + (-other) if isinstance(other, LinearOperator) else NotImplemented

    def __mul__(self, scalar: Scalar) -> Any:
        return self._multiple(scalar)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Scalar) -> Any:
        return self * (1.0 / divisor)

    def to_dense(self) -> Array:
        """The matrix (m, n) as an array of the backend: n products, unless it has a shorter way."""
        known = self.known_matrix()
        if known is not None:
            return self.backend.copy(known)
        unit = self.domain.from_order(np.eye(self.domain.size), self.domain.dtype)
        made = self.codomain.ordered(run(LinearOperator.apply, self, unit))
        return made if self.domain.layout is None else self.backend.gathered(made)

    def __repr__(self) -> str:
        known = "psd" if self.psd else "symmetric" if self.symmetric else "general"
        m, n = self.shape
        return f"{type(self).__name__}({m} x {n}, {known}, {self.backend.name} {self.dtype})"

    def _repr_html_(self) -> str:
        spaces = {"vectors": self.domain} | ({} if self.domain.agrees(self.codomain) else {"products": self.codomain})
        rows = [(what, f"{name} {shape}") for what, space in spaces.items() for name, shape in space.told()]
        parts = [(name, getattr(self, name)) for name in data_fields(self)]
        rows += [(name, repr(part)) for name, part in parts if isinstance(part, LinearOperator)]
        return html.page(repr(self), html.table(rows))


def require_operator(door: str, A: Any) -> None:
    """Raise unless A is a linear operator, and say how what was given becomes one."""
    if isinstance(A, LinearOperator):
        return
    advice = (
        "an objective has one at parameters: lg.GGN(objective, params), lg.Hessian(objective, params)."
        if hasattr(A, "with_data") or hasattr(A, "gradient_tree")
        else "wrap a matrix in lg.Dense, a SciPy operator in lg.from_scipy, a function in lg.FunctionOperator."
    )
    raise TypeError(f"{door} needs a linear operator, got {type(A).__qualname__}; {advice}")
