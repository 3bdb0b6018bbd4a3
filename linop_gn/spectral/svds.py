"""A few singular triplets of an operator: :func:`svds`, by :func:`~linop_gn.eigsh` of A^T A or A A^T.

The smaller of the two squares is taken, so that the basis is of the shorter vectors, and here A stands for the operator
or its adjoint, whichever is not wide. A pair (theta, v) with r = ||A^T A v - theta v|| belongs to a singular value
within min(r / sqrt(theta), sqrt(r)) of sqrt(theta): the largest ones are found as well as by bidiagonalisation, and of
those below sqrt(eps) ||A|| rounding hides all digits, while their vectors are mixed with one another.

So what the search has found is verified without the square. Of the orthonormal vectors V that it ends with, A V is
taken once more, and its triplets::

    A V = Q R,  R = P S Z^T,  U <- Q P,  V <- V Z         a = ||A v - sigma u||,  s = ||A^T u - sigma v||

A + E with ||E|| <= sqrt(a^2 + s^2) has sigma for a singular value, so that A has one within that of it (Weyl). And by
Courant and Fischer the j-th smallest of A is at most the j-th smallest of A V, so that there is one within sigma of
sigma too. Where that is the smaller bound, sigma is an upper limit, and u, of which nothing is known, is returned as
zero. So both residuals are within the bound whichever it is. Rounding is added. Small values are as good as V spans the
space of all that are as small: to the last digit of ||A|| where all singular values are asked for, or all below a gap.

A search that met its tolerance t ||A||^2 promises s <= t ||A||^2 / sigma. Where the verified bound is far above that,
A^T is not the adjoint of A, or one of them is not linear: no success, whatever the search has said.

PRIMME (Wu, Romero and Stathopoulos, 2017) goes on from there inside of the spectrum of [0 A; A^T 0], which gives more
digits to who has a preconditioner. Lanczos has no access to the inside of a spectrum but by an inverse, and with one
``lg.svds(lg.inverse(A), k)`` has all digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..distributed.watching import told_to_all
from ..draws import check_seed
from ..foreign import advised
from ..operators.base import LinearOperator, require_operator
from ..protocols import Array, Scalar
from ..records import Partial, record, static
from ..run.loop import Watcher
from ..run.solution import Outcome
from ..run.status import Code, Status, is_one_of
from ..spaces import Space
from .eigsh import Eigenpairs, own, search, table, told
from .estimate import MISFITS, squared
from .on_host import on_host
from .thick_restart import ROUNDING

__all__ = ["SingularTriplets", "svds"]

ENDS = {"largest": "LA", "smallest": "SA"}
WHOLE = 128
"""Of so small a space all is taken for the smallest values, which come last: a search takes as many products."""
MISFIT = 10.0
"""Times what was promised of a bound, from which on A^T is no adjoint."""


@record
class SingularTriplets(Outcome):
    """Of :func:`svds`: k singular triplets, those that were asked for first.

    Attributes
    ----------
    values
        The singular values (k,), the largest or the smallest first; NaN for those that the run did not come to.
    left, right
        Columns (m, k) and (n, k) with A right = left * values; ``left_vector(i)`` and ``right_vector(i)`` have the
        formats of the operator's spaces. The column that belongs to a value of zero is zero where it is not unique.
    bounds
        A singular value of A lies no farther from each. Both ||A v - sigma u|| and ||A^T u - sigma v|| are within it
        too. Where it is no less than the value, that is an upper limit, and the vector on the longer side, of which
        nothing is known, zero.
    met
        Of the largest, whether the eigenpair of the square met rtol, and the bound is what that promises; of the
        smallest, whether the bound is at most rtol ||A||.
    products
        Each one with A and one with A^T, those of the verification included; one more of A told its scale.
    """

    values: Array = None
    left: Array = None
    right: Array = None
    bounds: Array = None
    met: Array = None
    block: int = static(default=1)
    spaces: tuple[Space, Space] = static(default=None)
    which: str = static(default="largest")

    def left_vector(self, i: int) -> Any:
        """Left singular vector i, in the format of what the operator returns."""
        return own(self.spaces[1], self.left[:, i])

    def right_vector(self, i: int) -> Any:
        """Right singular vector i, in the format of what the operator takes."""
        return own(self.spaces[0], self.right[:, i])

    @property
    def sentence(self) -> str:
        """What was looked for, what happened, and what to do about it."""
        if self.status is Status.NOT_SYMMETRIC:
            return f"{MISFITS} Don't rely on the triplets."
        said = told(self.status, self.met, self.block, "singular value")
        n = min(len(self.left), len(self.right))
        if self.status is Status.MAX_STEPS and int(self.products) > n + len(self.met):
            said = f"{said} The whole space, basis={n}, has all of them after {n} products."
        if self.which == "smallest" and self.status is Status.STAGNATED:
            met = int(np.sum(np.asarray(self.met)))
            said = f"{met} of {len(self.met)} met rtol; of the others the square of A has lost the digits. {_LOST}"
        hidden = int(np.sum(np.asarray(self.bounds) >= np.asarray(self.values)))
        limits = f"{said} {hidden} of {len(self.met)} are upper limits: a singular value lies between zero and each."
        return said if not hidden else limits if self.which == "largest" else f"{limits} {_MORE}"

    def _headline(self) -> str:
        return f"{self.which}: {self.status.name.lower()}; {self.method}, {int(self.products)} products"

    def _lines(self) -> list[str]:
        return [*table(self._headline(), "singular value", self.values, self.bounds, self.met), self.sentence]


_LOST = "Loosen rtol, use float64, or take the largest of an inverse: lg.svds(lg.inverse(A), k)."
_MORE = "There may be more of these than copies were looked for."


@told_to_all
@advised
def svds(
    A: LinearOperator,
    k: int | None = None,
    which: str = "largest",
    *,
    rtol: Scalar | None = None,
    block: int = 1,
    basis: int | None = None,
    basis_on: str = "device",
    max_products: int | None = None,
    seed: int = 0,
    watch: Sequence[Watcher] = (),
    every: int | None = None,
) -> SingularTriplets:
    """The k largest or smallest singular values of an operator, with their vectors and a bound for each.

    Parameters
    ----------
    A
        Any operator with an adjoint, such as ``lg.Jacobian(objective, params)``.
    k
        How many; 6 by default, or as many as there are.
    which
        ``"largest"``, or ``"smallest"`` of the min(m, n) that an m x n operator has. Small ones come late, after
        about as many products as the condition number, and those below the root of round-off times ||A|| as upper
        limits; where all min(m, n) are asked for as the largest, they have all digits of ||A||.
    rtol
        Of the largest, as of :func:`~linop_gn.eigsh` for the square, relative to ||A||^2. Of the smallest, relative to
        ||A||: a triplet is accepted where its bound is at most rtol ||A||; by default what the square has, the root of
        twice the rounding in its bounds (1e-7; in single precision 3e-3).
    block, basis, basis_on, max_products, seed, watch, every
        As of :func:`~linop_gn.eigsh`, for A^T A or A A^T; the basis for the smallest is by default the whole space
        where min(m, n) is at most 128.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Dense(np.diag([3.0, 2.0, 1.0])[:, :2])
    >>> top = lg.svds(A, k=1)
    >>> top.values.round(6), abs(top.left[:, 0]).round(6)
    (array([3.]), array([1., 0., 0.]))
    >>> lg.svds(A, k=1, which="smallest").values.round(6)
    array([2.])

    Raises
    ------
    TypeError, ValueError
        For an operator without an adjoint, or a k that the smaller space has not.
    """
    require_operator("svds", A)
    check_seed("svds", seed)
    if which not in tuple(ENDS):
        known = next((end for end in ENDS if which == {"largest": "LM", "smallest": "SM"}[end]), None)
        meant = "" if known is None else f" {which!r} is {known!r} here."
        raise ValueError(f"svds: which must be one of {tuple(ENDS)}, got {which!r}.{meant}")
    square, scale = squared(A, seed)
    if basis is None and which == "smallest" and square.domain.size <= WHOLE:
        basis = square.domain.size
    options: dict[str, Any] = {"rtol": rtol, "block": block, "basis": basis, "max_products": max_products, "seed": seed}
    options |= {"basis_on": basis_on, "watch": watch, "every": every}
    found, allowed = search("svds", square, k, ENDS[which], **options, squares=which == "smallest")
    if basis_on == "host":
        A, scale, spaces = on_host("svds", A), float(scale), (A.domain, A.codomain)
    else:
        spaces = A.domain, A.codomain
    inherited = {name: getattr(found, name) for name in ("steps", "rows", "names", "method", "block")}
    with np.errstate(all="ignore"):
        made = _triplets(A, found, scale, allowed, which == "largest")
    return SingularTriplets(**inherited, **made, spaces=spaces, which=which)


def _triplets(A: LinearOperator, found: Eigenpairs, scale: Scalar, allowed: Scalar, largest: bool) -> dict[str, Any]:
    """What is accepted: of the smallest what is within ``allowed``, of the largest what that promises of the square."""
    ops, tall = A.backend, A.domain.size <= A.codomain.size
    B = (A if tall else A.T) * ops.divide(1.0, scale)
    verify = Partial(_verified, largest=largest)
    given = B.prepare(), found.columns, found.values, found.size
    values, left, right, bounds = verify(*given) if B.host else ops.call(verify, *given)
    xp, code, k = ops.small_namespace(), found.code, found.columns.shape[1]
    allowed = xp.asarray(allowed)
    share = xp.maximum(values, xp.sqrt(allowed)) if largest else 1.0  # what is below that is an upper limit
    fits = bounds * share <= MISFIT * k**0.5 * allowed
    met = xp.asarray(found.met) & fits if largest else bounds <= allowed
    all_met, all_fit = ops.item(xp.all(met)), ops.item(xp.all(fits))
    if not largest:
        known = is_one_of(code, [Code.CONVERGED, Code.STAGNATED, Code.MAX_STEPS])
        otherwise = ops.where(code == Code.CONVERGED, ops.where(all_fit, Code.STAGNATED, Code.NOT_SYMMETRIC), code)
        code = ops.where(known, ops.where(all_met, Code.CONVERGED, otherwise), code)
    code = ops.where(code == Code.CONVERGED, ops.where(all_fit, code, Code.NOT_SYMMETRIC), code)
    return {
        "values": values * scale,
        "left": left if tall else right,
        "right": right if tall else left,
        "bounds": bounds * scale,
        "met": met,
        "code": code,
        "products": found.products + found.columns.shape[1],
    }


def _verified(
    B: LinearOperator, V: Array, theta: Array, size: Scalar, largest: bool = False
) -> tuple[Array, Array, Array, Array]:
    """Values, left and right vectors and bounds of an operator that is not wide, in the span of V.

    The smallest come first, or the largest. ``theta`` are NaN where V has no vector, ``size`` is about ||B||^2.
    """
    ops, xp, k = B.backend, B.backend.small_namespace(), V.shape[1]
    eps, norm = ops.eps(V), ops.sqrt(size)
    image = B.apply(V)
    index, there = xp.arange(k), xp.isfinite(xp.asarray(theta))
    Q, dtype = ops.basis(image[:, 0], k), ops.small([0.0], V[:, 0]).dtype

    def orthogonalise(i: Any, held: Any) -> Any:
        Q, R = held
        w = ops.copy(image[:, i])
        first = ops.project(Q, w, i)
        w = ops.deflate(Q, first, w, i)
        second = ops.project(Q, w, i)
        w = ops.deflate(Q, second, w, i)
        length = ops.sqrt(ops.dot(w, w))
        length = ops.where(length <= 10.0 * eps * norm, 0.0 * length, length)  # of what is left none is Q's
        column = first + second + xp.where(index == i, xp.asarray(length), 0.0)
        return ops.store(Q, i, ops.divide(1.0, length), w), xp.where(index[None, :] == i, column[:, None], R)

    Q, R = ops.repeat(k, orthogonalise, (Q, xp.zeros((k, k), dtype=dtype)))
    beyond = 8.0 * norm + 1.0
    R = xp.where(there[None, :] & there[:, None], R, xp.where(index[:, None] == index[None, :], beyond, 0.0))
    finite = xp.all(xp.isfinite(R))
    P, sigma, Z = xp.linalg.svd(xp.where(finite, R, xp.eye(k, dtype=dtype)))
    count = xp.sum(xp.where(there, 1, 0))  # the vectors that there are not come last
    order = xp.where(index < count, count - 1 - index, index) if largest else index
    P, sigma, Z = (xp.take(part, order, axis=-1) for part in (P[:, ::-1], sigma[::-1], Z[::-1].T))
    left, right = ops.combine(Q, P, k), _turned(V, Z, ops)
    a = _norms(ops.axpy(-sigma, left, _turned(image, Z, ops)), ops)
    s = _norms(ops.axpy(-sigma, right, B.rapply(left)), ops)
    apart = xp.sqrt(a * a + s * s)
    limit = ~(apart < sigma + a)
    left = ops.scale(xp.where(limit, 0.0, 1.0), left)
    bounds = xp.where(limit, sigma + a, apart) + ROUNDING * eps * norm * k**0.5
    good = finite & (index < count)
    return xp.where(good, sigma, xp.nan), left, right, xp.where(good & xp.isfinite(bounds), bounds, xp.inf)


def _turned(V: Array, Z: Array, ops: Any) -> Array:
    """V Z for columns V (n, k) and a small Z (k, k)."""
    k = V.shape[1]
    rows = ops.repeat(k, lambda i, rows: ops.store(rows, i, 1.0, V[:, i]), ops.basis(V[:, 0], k))
    return ops.combine(rows, Z, k)


def _norms(X: Array, ops: Any) -> Any:
    return ops.small_namespace().asarray(ops.sqrt(ops.dot(X, X)))
