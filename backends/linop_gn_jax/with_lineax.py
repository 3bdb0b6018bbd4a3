"""lineax's operators as ours, and ours as lineax's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx

import linop_gn as lg
from linop_gn.backend import Array, Tree

__all__ = ["LinopOperator", "from_lineax", "to_lineax"]


@dataclass(frozen=True)
class _Product:
    """mv of the operator whose arrays come as data, or that of its transpose: hashable, a part of the program."""

    treedef: Any
    rest: tuple[Any, ...]
    transposed: bool

    def __call__(self, v: Tree, arrays: list[Array]) -> Tree:
        given = iter(arrays)
        leaves = [next(given) if leaf is ... else leaf for leaf in self.rest]
        operator = jax.tree_util.tree_unflatten(self.treedef, leaves)
        return (operator.transpose() if self.transposed else operator).mv(v)


def _space(structure: Any, what: str) -> lg.Space:
    for leaf in jax.tree_util.tree_leaves(structure):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(
                f"from_lineax: the operator's {what} is complex ({leaf.dtype}), and vectors here are real: make a real "
                "operator of pairs (re, im) of it by lg.as_real."
            )
    return lg.Space.of(jax.tree_util.tree_map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), structure), what)


def from_lineax(operator: Any) -> lg.LinearOperator:
    """See :func:`linop_gn.from_lineax`."""
    if not isinstance(operator, lx.AbstractLinearOperator):
        raise TypeError(
            f"from_lineax takes a lineax.AbstractLinearOperator, got {type(operator).__module__}."
            f"{type(operator).__qualname__}: a matrix is lg.Dense(x), a function lg.FunctionOperator."
        )
    domain, codomain = _space(operator.in_structure(), "input"), _space(operator.out_structure(), "output")
    symmetric, psd = bool(lx.is_symmetric(operator)), bool(lx.is_positive_semidefinite(operator))
    inner = operator.operator if isinstance(operator, lx.TaggedLinearOperator) else operator
    if isinstance(inner, lx.MatrixLinearOperator):
        return lg.Dense(inner.matrix, symmetric=symmetric or psd or None, psd=psd)
    if isinstance(inner, lx.DiagonalLinearOperator) and domain.is_flat:
        return lg.Diagonal(jax.tree_util.tree_leaves(inner.diagonal)[0], psd=psd or None)
    if isinstance(inner, lx.IdentityLinearOperator) and domain == codomain:
        return lg.Identity(domain)
    leaves, treedef = jax.tree_util.tree_flatten(operator)
    known = tuple(... if eqx.is_array(leaf) else leaf for leaf in leaves)
    forward, backward = _Product(treedef, known, False), _Product(treedef, known, True)
    arrays = [leaf for leaf in leaves if eqx.is_array(leaf)]
    alike = {"symmetric": symmetric or psd, "psd": psd, "on": "tree"}
    return lg.FunctionOperator(forward, domain, codomain, backward, args=(arrays,), **alike)


class LinopOperator(lx.AbstractLinearOperator):  # type: ignore[misc]
    """An operator of ours among lineax's."""

    operator: lg.LinearOperator

    def mv(self, vector: Tree) -> Tree:
        return self.operator @ vector

    def as_matrix(self) -> Array:
        return self.operator.to_dense()

    def transpose(self) -> LinopOperator:
        return LinopOperator(self.operator.T)

    def in_structure(self) -> Tree:
        return _structure(self.operator.domain)

    def out_structure(self) -> Tree:
        return _structure(self.operator.codomain)


def _structure(space: lg.Space) -> Tree:
    leaves = [jax.ShapeDtypeStruct(*leaf) for leaf in zip(space.shapes, space.dtypes, strict=True)]
    return space.backend.unflatten(space.structure, leaves)


def to_lineax(operator: lg.LinearOperator) -> LinopOperator:
    """See :func:`linop_gn.to_lineax`."""
    if operator.backend.name != "jax":
        raise TypeError(
            f"to_lineax: {operator!r} has vectors of {operator.backend.name}, and lineax those of JAX: make the "
            "operator of JAX arrays."
        )
    if operator.host:
        raise TypeError(
            f"to_lineax: products of {operator!r} are computed on the host, and lineax's solvers are compiled: bring "
            "the matrix over as an array (lg.Dense)."
        )
    return LinopOperator(operator.prepare())


def _is_diagonal(made: LinopOperator) -> bool:
    return isinstance(made.operator, lg.Diagonal | lg.Identity)


def _no(made: LinopOperator) -> bool:
    return False


def _itself(made: LinopOperator) -> LinopOperator:
    return made


@lx.materialise.register(LinopOperator)
def _(made: LinopOperator) -> Any:
    if not (made.operator.domain.is_flat and made.operator.codomain.is_flat):
        return made
    tags = {lx.positive_semidefinite_tag: made.operator.psd, lx.symmetric_tag: made.operator.symmetric}
    return lx.MatrixLinearOperator(made.as_matrix(), frozenset(tag for tag, so in tags.items() if so))


@lx.diagonal.register(LinopOperator)
def _(made: LinopOperator) -> Array:
    known = made.operator.known_diagonal()
    return jnp.diagonal(made.as_matrix()) if known is None else known


@lx.tridiagonal.register(LinopOperator)
def _(made: LinopOperator) -> tuple[Array, Array, Array]:
    M = made.as_matrix()
    return jnp.diagonal(M), jnp.diagonal(M, -1), jnp.diagonal(M, 1)


lx.is_symmetric.register(LinopOperator)(lambda made: made.operator.symmetric)
lx.is_positive_semidefinite.register(LinopOperator)(lambda made: made.operator.psd)
for _asked in (lx.is_diagonal, lx.is_tridiagonal, lx.is_lower_triangular, lx.is_upper_triangular):
    _asked.register(LinopOperator)(_is_diagonal)
for _asked in (lx.is_negative_semidefinite, lx.has_unit_diagonal):
    _asked.register(LinopOperator)(_no)
for _same in (lx.linearise, lx.conj):
    _same.register(LinopOperator)(_itself)
