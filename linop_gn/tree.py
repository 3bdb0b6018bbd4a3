"""Arithmetic on trees of arrays, for loops of one's own: the same four functions for every framework.

>>> import numpy as np, linop_gn as lg
>>> x = {"w": np.ones((2, 2)), "b": np.zeros(2)}
>>> lg.tree.add(x, lg.tree.scale(0.5, x))["w"]
array([[1.5, 1.5],
       [1.5, 1.5]])
>>> lg.tree.dot(x, x), lg.tree.norm(x)
(4.0, 2.0)

Whoever steps often is better off with flat vectors: ``lg.Space.of(x).pack(x)``.
"""

from __future__ import annotations

from .protocols import Scalar, Tree
from .spaces import Space

__all__ = ["add", "dot", "norm", "scale"]


def add(x: Tree, y: Tree) -> Tree:
    """x + y, a new tree like ``x``."""
    space = Space.of(x)
    leaves = zip(space.leaves(x), space.leaves(y), strict=True)
    return space.backend.unflatten(space.structure, [a + b for a, b in leaves])


def scale(a: Scalar, x: Tree) -> Tree:
    """a x, a new tree whose leaves keep their dtypes."""
    space = Space.of(x)
    ops = space.backend
    return ops.unflatten(space.structure, [ops.scale(a, ops.copy(leaf)) for leaf in space.leaves(x)])


def dot(x: Tree, y: Tree) -> Scalar:
    """x . y, a scalar of the backend: a Python float on eager ones."""
    space = Space.of(x)
    return space.backend.dot(space.pack(x), space.pack(y))


def norm(x: Tree) -> Scalar:
    """The 2-norm of all entries."""
    ops = Space.of(x).backend
    return ops.sqrt(dot(x, x))
