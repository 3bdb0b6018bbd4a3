"""Gauss and Gauss-Radau rules for b.f(A) b, from the tridiagonal matrix of a Lanczos run.

b.f(A) b is the integral of f against a measure on A's spectrum. T's eigenvalues
and the squared first entries of its eigenvectors are the nodes and weights of
its k-point Gauss rule. With one more row whose last entry puts an eigenvalue at
an end of the interval that holds the spectrum, they are those of a Gauss-Radau
rule (Golub, 1973). Where the derivatives of f alternate in sign, as for 1/x,
log x, exp(-x) and x^(-p), the two have errors of opposite sign: Golub and
Meurant (2010), chapter 6.
"""

from __future__ import annotations

from typing import Any

from ..protocols import Array, Backend, Scalar
from .tridiagonal import spectrum

__all__ = ["gauss_rule", "radau_rule"]

Rule = tuple[Array, Array]


def gauss_rule(ops: Backend, T: tuple[Array, Array], count: Scalar) -> Rule:
    """Nodes and weights of the ``count``-point rule; weights of exactly 0 where a compiler keeps more."""
    S = spectrum(ops, T, count)
    return S.values, S.vectors[0, :] ** 2


def radau_rule(ops: Backend, T: tuple[Array, Array], count: Scalar, end: Scalar) -> Rule:
    """Nodes and weights of the ``count`` + 1 point rule with a node at ``end``, outside T's eigenvalues."""
    xp = ops.small_namespace()
    S = spectrum(ops, T, count)
    beta = ops.lookup(T[1], count - 1)
    k = S.values.shape[0]
    last = xp.sum(xp.where((xp.arange(k) == count - 1)[:, None], S.vectors, 0.0), axis=0)
    apart = S.values - end
    # Where a Ritz value has met the end of the interval, so has the node.
    inverse = xp.where(xp.abs(apart) > 0, 1.0 / xp.where(xp.abs(apart) > 0, apart, 1.0), 0.0)
    corner = end + beta * beta * xp.sum(last * last * inverse)
    alphas, betas = (xp.concat([part, xp.zeros(1, dtype=part.dtype)]) for part in T)
    alphas = xp.where(xp.arange(alphas.shape[0]) == count, corner, alphas)
    extended: Any = alphas, betas
    return gauss_rule(ops, extended, count + 1)
