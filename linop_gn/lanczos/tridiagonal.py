"""Small problems with the tridiagonal matrix T of a Lanczos run, of any damping and any radius.

T has diagonal ``alphas`` and off-diagonal ``betas``; ``betas[k - 1]`` couples
the k-th vector to the next one, which is not in the space. The right-hand side
is ``norm`` e_1. Everything here is a pure function on small arrays (see
:mod:`linop_gn.protocols.bases`) that takes no product, so that an outer method
solves again at another damping or radius for nothing.

* :func:`shifted`: (T + sigma I) h = norm e_1 for many sigma at once, by L D L^T,
  which is stable where T + sigma I is positive definite. A pivot that is not
  positive says that it is not: pivots are the curvatures p.A p of CG.
* :func:`trust_region`: min 1/2 h.T h - norm h_1 over ||h|| <= radius, after Moré
  and Sorensen (1983), in the eigenvectors of T. The unknown of the secular
  equation is the distance of the multiplier from its pole -theta_1, not the
  multiplier itself (Gu and Eisenstat, 1994, do so for eigenvalues): near the
  hard case all digits of the step depend on that distance, and lambda + theta_1
  would have lost them to cancellation.

Gould, Lucidi, Roberts and Toint, *Solving the trust-region subproblem using the
Lanczos method* (1999). SciPy's ``trust-krylov`` (Lenders, Kirches and Potschka)
iterates with factorisations of T in place of its eigenvectors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..protocols import Array, Backend, Scalar

__all__ = ["NOISE", "Boundary", "Shifted", "Spectrum", "filled", "lengths", "shifted", "spectrum", "trust_region"]

NEWTON = 20
"""Newton steps for the secular equation; from below they rise to the root, mostly in under ten."""


class Shifted(NamedTuple):
    """Solutions of (T + sigma I) h = norm e_1 for m shifts."""

    h: Array
    """(k, m): h of the largest positive definite leading section of T + sigma I; zeros below."""
    used: Array
    """(m,): the size of that section."""
    negative: Array
    """(m,): whether there is a negative pivot."""
    noisy: Array
    """(m,): whether there is a pivot that is zero to working precision."""
    residual: Array
    """(m,): ||b - (A + sigma I) Q h||."""
    model: Array
    """(m,): 1/2 h.(T + sigma I) h - norm h_1."""


NOISE = 4.0
"""A pivot p.(T + sigma I) p is noise below NOISE eps ||A|| ||p||^2, since T holds to eps ||A||. If T + sigma I is
positive definite, pivots are above that, unless its condition number is near 1 / eps."""


def shifted(ops: Backend, T: tuple[Array, Array], count: Scalar, norm: Scalar, shifts: Array, eps: float) -> Shifted:
    """Solve (T + sigma I) h = norm e_1 for T's leading ``count`` rows and each shift (m,); T holds to ``eps``."""
    xp = ops.small_namespace()
    alphas, betas = (ops.leading(part, count) for part in T)
    k = alphas.shape[0]
    one, none = xp.ones_like(shifts), xp.zeros_like(shifts)
    where = xp.where
    size = xp.max(xp.abs(alphas)) if k else 0.0  # the entries of T are that of A to eps ||A||, no better

    def eliminate(i: Any, carry: Any) -> Any:
        before, breadth, z, going, negative, noisy, used, residual, model, D, Z = carry
        coupling = where(i == 0, 0.0, betas[i - 1]) * one
        ratio = coupling / before
        diagonal = alphas[i] + shifts
        pivot = diagonal - ratio * coupling
        z = where(i == 0, norm, -ratio * z)
        breadth = 1.0 + ratio * ratio * breadth
        noise = NOISE * eps * xp.maximum(size, xp.abs(diagonal) + ratio * coupling) * breadth
        inside = going & (i < count)
        lower = model - 0.5 * z * (z / where(pivot > noise, pivot, one))
        sized = 8.0 * eps * size * xp.abs(lower) <= norm * norm  # else the rounding of x's product exceeds b
        good = inside & (pivot > noise) & sized
        negative = negative | (inside & (pivot < -noise))
        noisy = noisy | (inside & ((xp.abs(pivot) <= noise) | ((pivot > noise) & ~sized)))
        pivot, z = where(good, pivot, one), where(good, z, none)
        last = z / pivot
        residual = where(good, xp.abs(betas[i] * last), residual)
        D, Z = ops.write(D, i, pivot), ops.write(Z, i, z)
        model = where(good, lower, model)
        return pivot, breadth, z, good, negative, noisy, used + good, residual, model, D, Z

    false = shifts != shifts
    start = one, none, none, ~false, false, false, 0 * false, norm * one, none, ops.table(k, none), ops.table(k, none)
    *_, negative, noisy, used, residual, model, D, Z = ops.repeat(k, eliminate, start)

    def substitute(i: Any, carry: Any) -> Any:
        below, h = carry
        row = k - 1 - i
        here = (ops.lookup(Z, row) - betas[row] * below) / ops.lookup(D, row)
        here = where(row < used, here, none)
        return here, ops.write(h, row, here)

    _, h = ops.repeat(k, substitute, (none, ops.table(k, none)))
    return Shifted(h, used, negative, noisy, residual, model)


class Spectrum(NamedTuple):
    """Eigenvalues of T, ascending; its eigenvectors as columns; a bound on ||T||."""

    values: Array
    vectors: Array
    size: Scalar


def spectrum(ops: Backend, T: tuple[Array, Array], count: Scalar) -> Spectrum:
    """The spectrum of T's leading ``count`` rows. In a compiled program the entries of further rows come last."""
    xp = ops.small_namespace()
    alphas, betas = (ops.leading(part, count) for part in T)
    index = xp.arange(alphas.shape[0])
    inside, coupled = index < count, index < count - 1
    off = xp.where(coupled, betas, 0.0)
    size = xp.max(xp.where(inside, xp.abs(alphas), 0.0)) + 2.0 * xp.max(xp.abs(off))
    beyond = xp.where(size > 0, 4.0 * size, 1.0)
    values, vectors = ops.eigh_tridiagonal(xp.where(inside, alphas, beyond), off)
    return Spectrum(values, vectors, size)


class Boundary(NamedTuple):
    """Minimisers over m balls."""

    h: Array
    """(k, m)."""
    multiplier: Array
    """(m,): lambda >= 0 with (T + lambda I) h = norm e_1 and T + lambda I positive semi-definite."""
    rate: Array
    """(m,): (1/2 h.T h - norm h_1) / ||h||, in range where the model is not; 0 for h = 0."""
    length: Array
    """(m,): ||h||."""
    active: Array
    """(m,): whether ||h|| = radius."""
    hard: Array
    """(m,): whether an eigenvector of the lowest eigenvalue was added to reach the boundary."""
    unbounded: Array
    """(m,): whether the radius is infinite and the model has no minimum; h is then finite but no answer."""

    @property
    def model(self) -> Array:
        """(m,): 1/2 h.T h - norm h_1."""
        return self.rate * self.length


def filled(xp: Any, h: Array, k: int) -> Array:
    """h with zeros appended up to k rows."""
    if h.shape[0] >= k:
        return h
    return xp.concat([h, xp.zeros((k - h.shape[0], h.shape[1]), dtype=h.dtype)])


def lengths(ops: Backend, h: Array) -> Array:
    """2-norms (m,) of the columns of h, computed without overflow."""
    xp = ops.small_namespace()
    largest = xp.max(xp.abs(h), axis=0, initial=0.0)
    unit = xp.where((largest > 0) & xp.isfinite(largest), largest, 1.0)
    return unit * xp.sqrt(xp.sum((h / unit) ** 2, axis=0))


def trust_region(ops: Backend, S: Spectrum, norm: Scalar, radius: Array, eps: float) -> Boundary:
    """Minimise 1/2 h.T h - norm h_1 over ||h|| <= radius for each radius (m,); T holds to ``eps``.

    Eigenvalues above -4 k eps ||T|| count as nonnegative. Components of the right-hand side below k eps norm count as
    zero where the eigenvalue is below 4 k eps ||T||: they would send h to the boundary for no decrease.
    """
    xp = ops.small_namespace()
    where = xp.where
    values, k = S.values, S.values.shape[0]
    lowest, noise = values[0], 4.0 * k * eps * S.size
    given = norm * S.vectors[0, :]
    c = where((values <= noise) & (xp.abs(given) <= k * eps * norm), 0.0, given)
    gaps = (values - lowest)[:, None]
    relative = where((c == 0)[:, None], 0.0, xp.abs(c)[:, None] / radius)
    floor = where(lowest > 0, lowest, 0.0)  # the distance from the pole that belongs to lambda = 0, or the pole
    low = xp.maximum(floor, xp.max(relative - gaps, axis=0))

    def inverted(distance: Array) -> Array:
        apart = gaps + distance
        return where(apart > 0, 1.0 / where(apart > 0, apart, 1.0), 0.0)

    def length_of(inverse: Array) -> Array:
        """||h|| / radius."""
        return xp.sqrt(xp.sum((relative * inverse) ** 2, axis=0))

    outside = length_of(inverted(low)) > 1.0

    def newton(i: Any, distance: Array) -> Array:
        inverse = inverted(distance)
        squares = (relative * inverse) ** 2
        length, slope = xp.sqrt(xp.sum(squares, axis=0)), xp.sum(squares * inverse, axis=0)
        step = (length - 1.0) * length * length / where(slope > 0, slope, 1.0)
        return where(outside & xp.isfinite(step), xp.maximum(distance + step, low), distance)

    distance = ops.repeat(NEWTON, newton, low)
    inverse = inverted(distance)
    length = length_of(inverse)
    indefinite, endless = lowest < -noise, ~xp.isfinite(radius)
    at_pole = (low <= floor) & ~outside
    hard, free = at_pole & indefinite, at_pole & ~indefinite
    missing = xp.sqrt(xp.maximum((1.0 - length) * (1.0 + length), 0.0)) * where(endless, 0.0, radius)
    extra = where(hard, where(given[0] < 0, -missing, missing), 0.0)
    y = c[:, None] * inverse + where((xp.arange(k) == 0)[:, None], extra, 0.0)
    multiplier = where(free, 0.0, distance - lowest)
    size = lengths(ops, y)
    # Newton's method comes from outside, slowly where a small part of the right-hand side lies at the pole.
    within = where((size > radius) & ~endless, radius / where(size > 0, size, 1.0), 1.0)
    y, size = y * within, size * within
    rate = -0.5 * xp.sum((c[:, None] + multiplier * y) * (y / where(size > 0, size, 1.0)), axis=0)
    flat = xp.any((c != 0)[:, None] & (gaps + distance <= 0), axis=0)
    flat = flat | (4.0 * eps * S.size * size > norm)  # whether there is a minimum, rounding hides
    return Boundary(S.vectors @ y, multiplier, rate, size, ~free, hard, endless & (indefinite | flat))
