"""Golub-Kahan bidiagonalisation of [A; sqrt(lambda) I], by which LSQR and LSMR never form A^T A.

Golub and Kahan (1965). From a residual, a vector with an upper part u in the
codomain and, with damping, a lower part t in the domain::

    beta_(k+1) (u, t)_(k+1) = (A v_k, sqrt(lambda) v_k) - alpha_k (u, t)_k
    alpha_(k+1) v_(k+1)     = A^T u_(k+1) + sqrt(lambda) t_(k+1) - beta_(k+1) v_k

Paige and Saunders leave t out and rotate the damping away, which is the same
thing for a run that starts at zero. With t it is right from every start: what is
damped is x, not its distance from where the run began (as in SciPy's).

A tick is one product with A and then one with A^T. It either extends the
bidiagonalisation, or recomputes the residual of x and starts anew from there:
then beta is its norm and alpha beta that of the normal equations' residual.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

from ..protocols import Backend, Scalar, Vector, unchanged
from .options import scale_of
from .problem import LinearProblem

__all__ = ["Basis", "tick"]


class Basis(NamedTuple):
    """The newest vectors of both sides."""

    u: Vector
    t: Vector | None
    """The lower part; None without damping."""
    v: Vector
    alpha: Scalar
    ascale: Scalar
    """A power of two near ||A||, 1 if that will do: alpha and beta are in units of it, 0 before there is one."""


def tick(
    ops: Backend, problem: LinearProblem, s: Any, sigma: Scalar, renew: Scalar, at_zero: Scalar
) -> tuple[Basis, Scalar, Scalar, Scalar]:
    """The basis extended, or where ``renew`` begun from the residual of x; beta; soundness; max |x| where ``renew``.

    ``s`` is the state of the run, whose basis' u and t are consumed: x is in units of ``scale`` over the basis' ascale
    (over 1 before there is one), the residual in units of ``scale``. ``sigma`` is sqrt(lambda). ``at_zero`` tells that
    all x are zero, for which no product is spent.
    """
    q, A = s.basis, problem.operator
    extending = renew is False  # nearly always, where work is eager

    inverse: Scalar = 1.0
    largest: Scalar = 0.0
    if at_zero is True:  # where work is eager: the residual stands there, as init has left it
        u, t = q.u, q.t
    elif extending:
        inverse = 1.0 / q.ascale if q.ascale > 0 else 1.0
        u = ops.axpby(-q.alpha, q.u, inverse, A.apply(q.v))
        t = None if q.t is None else ops.axpby(sigma * inverse, q.v, -q.alpha, q.t)
    else:
        inverse = ops.where(q.ascale > 0, ops.divide(1.0, q.ascale), 1.0)
        (image,) = ops.branch(
            at_zero, lambda: (ops.zeros_like(problem.rhs),), lambda: (A.apply(ops.select(renew, s.x, q.v)),)
        )
        lower, fade = () if q.t is None else (q.t,), ops.where(renew, 0.0, -q.alpha)
        u, *parts = ops.axpby(fade, q.u, inverse, image), *(ops.axpby(sigma * inverse, q.v, fade, t) for t in lower)
        (largest,) = ops.branch(renew, lambda: (ops.max_abs(s.x),), lambda: (0.0 * q.alpha,))
        u, *parts = ops.branch(renew, partial(_residual, ops, problem, s, sigma * inverse), unchanged, u, *parts)
        t = parts[0] if parts else None
    square = ops.dot(u, u) if t is None else ops.dot(u, u) + ops.dot(t, t)
    beta, sound, u, t = _unit(ops, square, u, t)

    v = A.rapply(u)
    ascale, scaled = q.ascale, q.ascale > 0
    if scaled is not True:
        (ascale,) = ops.branch(scaled, lambda v: (q.ascale,), lambda v: (scale_of(ops, v, sigma),), v)
    inverse = inverse if scaled is True else ops.divide(1.0, ascale)
    if renew is True:
        v = ops.scale(inverse, v)
    else:
        v = ops.axpby(-beta if extending else ops.where(renew, 0.0, -beta), q.v, inverse, v)
    if t is not None:
        v = ops.axpy(ops.divide(sigma, ascale), t, v)
    alpha, regular, v, _ = _unit(ops, ops.dot(v, v), v)
    return tuple.__new__(Basis, (u, t, v, alpha, ascale)), beta, sound & regular, largest


def _unit(ops: Backend, square: Scalar, x: Vector, t: Vector | None = None) -> tuple[Any, ...]:
    """The norm whose square is given, whether it is finite, and x and t over it; zero where it is not."""
    if type(square) is float and 0.0 < square < math.inf:
        norm, sound = math.sqrt(square), True
        turn = 1.0 / norm
    else:
        sound = ops.isfinite(square)
        norm = ops.sqrt(ops.where(sound, square, 0.0))
        turn, x = ops.divide(1.0, norm), ops.mask(sound, x)
        t = None if t is None else ops.mask(sound, t)
    return norm, sound, ops.scale(turn, x), None if t is None else ops.scale(turn, t)


def _residual(
    ops: Backend, problem: LinearProblem, s: Any, sigma: Scalar, u: Vector, *lower: Vector
) -> tuple[Any, ...]:
    """b - A x from u = A x, with the lower part -sigma x; consumes u and the lower part before."""
    above = ops.axpby(ops.divide(1.0, s.scale), problem.rhs, -1.0, u)
    return above, *(ops.axpby(-sigma, s.x, 0.0, t) for t in lower)
