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

import math
from typing import Any

from ..arguments import known
from ..protocols import Array, Backend, Scalar
from .tridiagonal import spectrum

__all__ = ["check_interval", "gauss_rule", "radau_rule"]

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


def check_interval(interval: Any, values: Any, eps: float) -> None:
    """Raise unless ``interval`` is (low, high) and holds these Ritz values, as far as its ends are known."""
    wrong = f"quadratic_form: the interval must be two finite numbers (low, high), got {interval!r}."
    if len(interval) != 2:
        raise ValueError(wrong)
    ends = [known("quadratic_form", "interval", end) for end in interval]
    if ends[0] is None or ends[1] is None:
        return
    low, high = float(ends[0]), float(ends[1])
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(wrong)
    slack = eps**0.5 * max(abs(low), abs(high))
    if values.min() < low - slack or values.max() > high + slack:
        raise ValueError(
            f"quadratic_form: the interval {interval!r} does not hold A's spectrum, whose Ritz values reach from "
            f"{values.min():.6g} to {values.max():.6g}: there are no bounds."
        )
