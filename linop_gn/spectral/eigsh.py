"""A few eigenpairs of a symmetric operator, each with a bound: :func:`eigsh`.

The method is :mod:`~linop_gn.spectral.thick_restart`'s. What SciPy's ``eigsh`` has and this does not: eigenvalues
inside of the spectrum (``sigma``), for which a solver of (A - sigma I) x = b must be at hand, and generalised problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arguments import require_number, whole
from ..distributed.agreed import require_alike
from ..distributed.watching import together, told_to_all
from ..draws import check_seed
from ..foreign import advised
from ..operators.base import LinearOperator
from ..protocols import Array, Carry, Scalar
from ..records import record, static
from ..run.loop import Reached, Watcher, drive, watchers_of
from ..run.solution import Outcome
from ..run.status import Status
from ..solvers.problem import LinearProblem
from ..spaces import Space
from .estimate import check_operator, require_symmetric
from .on_host import on_host
from .thick_restart import ENDS, ThickRestart, ThickRow, best

__all__ = ["Eigenpairs", "eigsh"]

WORDS = {"LA": "largest", "SA": "smallest", "BE": "both ends", "LM": "largest magnitude"}
FEW, SMALLEST_BASIS = 6, 20
"""Pairs, and vectors in a basis, if neither is said."""
RTOL, ROUNDINGS = 1e-8, 2.0
"""The tolerance if none is given: at least so many times the rounding in the bounds."""


@record
class Eigenpairs(Outcome):
    """Of :func:`eigsh`: k eigenpairs, those that were asked for first.

    Attributes
    ----------
    values
        The eigenvalues (k,); NaN for those that the run did not come to.
    columns
        Their eigenvectors, orthonormal columns (n, k), of NumPy if the basis was kept on the host; :meth:`vector` and
        :attr:`vectors` have the parameters' format, on their device.
    bounds
        Of each pair, ||A y - theta y||, rounding included: an eigenvalue of A lies no farther from theta.
    met
        Of each pair, whether its bound is at most rtol ||A||.
    size
        ||A||, as it shows in the products.
    restarts
        How often the basis was begun anew.
    """

    values: Array = None
    columns: Array = None
    bounds: Array = None
    met: Array = None
    size: Scalar = None
    restarts: Scalar = None
    space: Space = static(default=None)
    which: str = static(default="LA")
    block: int = static(default=1)

    def vector(self, i: int) -> Any:
        """Eigenvector i, a tree like the parameters."""
        return own(self.space, self.columns[:, i])

    @property
    def vectors(self) -> Any:
        """All eigenvectors: a tree whose leaves have a trailing axis of k."""
        ops = self.space.backend
        return self.space.unpack(self.columns) if ops.is_array(self.columns) else own(self.space, self.columns)

    @property
    def sentence(self) -> str:
        """What was looked for, what happened, and what to do about it."""
        return told(self.status, self.met, self.block, "eigenvalue")

    def _headline(self) -> str:
        restarts = int(self.restarts)
        counts = f"{int(self.products)} products, {restarts} restart{'s' * (restarts != 1)}"
        return f"{WORDS[self.which]}: {self.status.name.lower()}; {self.method}, {counts}"

    def _lines(self) -> list[str]:
        return [*table(self._headline(), "eigenvalue", self.values, self.bounds, self.met), self.sentence]


def own(space: Space, x: Any) -> Any:
    """A vector, or columns, of the framework or of NumPy, as a tree of the space in memory of its own."""
    ops = space.backend
    return space.unpack(ops.copy(x) if ops.is_array(x) else space.from_order(x, space.dtype))


def told(status: Status, met: Any, block: int, kind: str) -> str:
    """What was looked for, what happened, and what to do about it."""
    found, k = int(np.sum(np.asarray(met))), len(met)
    rest = f"{found} of {k} met rtol"
    sentences = {
        Status.CONVERGED: "All bounds are as rtol asks.",
        Status.MAX_STEPS: f"{rest} before the products were used up: give more of them (max_products=), a larger basis "
        "(basis=), which takes fewer, or a larger rtol.",
        Status.STAGNATED: f"{rest}; the bounds of the others are rounding: loosen rtol, or use float64.",
    }
    times = "one copy was" if block == 1 else f"up to {block} copies were"
    where = f"If {'an' if kind[0] == 'e' else 'a'} {kind} occurs several times, {times} looked for (block=)."
    return f"{sentences.get(status, status.sentence)} {where}"


def table(headline: str, kind: str, values: Any, bounds: Any, met: Any) -> list[str]:
    """The lines that show them, twenty at most."""
    rows = zip(*(np.asarray(part) for part in (values, bounds, met)), strict=True)
    lines = [f"{value:>16.9g} {bound:>11.3g}  {'yes' if fits else 'no'}" for value, bound, fits in rows]
    shown = lines if len(lines) <= _SHOWN else [*lines[:_SHOWN], f"{'...':>16}"]
    return [headline, f"{kind:>16} {'bound':>11}  met", *shown]


_SHOWN = 20


@told_to_all
@advised
def eigsh(
    A: LinearOperator,
    k: int | None = None,
    which: str = "LA",
    *,
    rtol: Scalar | None = None,
    block: int = 1,
    basis: int | None = None,
    basis_on: str = "device",
    max_products: int | None = None,
    start: Any = None,
    seed: int = 0,
    watch: Sequence[Watcher] = (),
    every: int | None = None,
) -> Eigenpairs:
    """k eigenpairs of a symmetric operator at an end of its spectrum, with a bound for each.

    Parameters
    ----------
    A
        Symmetric operator, definite or not, on any backend.
    k
        How many; 6 by default, or as many as there are.
    which
        ``"LA"``, the largest; ``"SA"``, the smallest (of an indefinite operator the most negative: a saddle's way
        down); ``"BE"``, from both ends in turn; ``"LM"``, the largest in magnitude.
    rtol
        A pair is accepted where ||A y - theta y|| <= rtol ||A||; the eigenvalue is then often right to rtol^2. By
        default 1e-8, or twice what rounding adds to a bound where that is more: about 1e-5 in single precision.
    block
        How often an eigenvalue is looked for that may occur several times.
    basis
        Vectors in the basis, max(2 k + 1, 20) + block - 1 by default, n at most: this many and ``block`` more are
        kept in memory. More take fewer products.
    basis_on
        Where they are kept: on the operator's ``"device"``, or on the ``"host"``, as NumPy arrays. Then the device has
        what a product needs and no more, vectors cross over for each product, and the loop is Python's; ``columns``
        and the numbers of the result are NumPy's.
    max_products
        Limit on products, max(10 n, 1000) by default.
    start
        A tree or flat vector (n,) to begin with; random if it is not given.
    seed
        Of the random vectors.
    watch, every
        Watchers, such as ``lg.ProgressBar()``, shown a look every so many products.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Diagonal(np.arange(1.0, 501.0))
    >>> top = lg.eigsh(A, k=2)
    >>> top.values.round(6), bool(top.succeeded)
    (array([500., 499.]), True)
    >>> lg.eigsh(A, k=2, which="SA").values.round(6)
    array([1., 2.])
    >>> lg.eigsh(A, k=2, basis_on="host").values.round(6)  # of arrays on a device: the basis in the host's memory
    array([500., 499.])

    Raises
    ------
    TypeError, ValueError
        For an operator that is not known to be symmetric, a k that the space has not, a basis that is too small.
    """
    check_operator("eigsh", A)
    require_symmetric("eigsh", A, "its singular values are found by lg.svds(A)")
    if which not in ENDS:
        raise ValueError(
            f"eigsh: which must be one of {ENDS}, got {which!r}. Eigenvalues near a number sigma inside of the "
            "spectrum are the largest in magnitude of the inverse of A - sigma I."
        )
    options: dict[str, Any] = {"rtol": rtol, "block": block, "basis": basis, "basis_on": basis_on}
    options |= {"max_products": max_products, "start": start, "seed": seed, "watch": watch, "every": every}
    return search("eigsh", A, k, which, **options)[0]


def search(
    door: str,
    A: LinearOperator,
    k: int | None,
    which: str,
    *,
    rtol: Scalar | None,
    block: int,
    basis: int | None,
    basis_on: str,
    max_products: int | None,
    seed: int,
    start: Any = None,
    watch: Sequence[Watcher] = (),
    every: int | None = None,
    squares: bool = False,
) -> tuple[Eigenpairs, Scalar]:
    """The pairs, and the tolerance that they were held to; with ``squares`` that is one on the eigenvalues' roots."""
    n, space = A.domain.size, A.domain
    k, block = min(FEW, n) if k is None else whole(door, "k", k, 1), whole(door, "block", block, 1)
    check_seed(door, seed)
    if k > n:
        raise ValueError(f"{door}: k = {k} were asked for, and the space has {n}.")
    if basis_on not in ("device", "host"):
        raise ValueError(f'{door}: basis_on is "device" or "host", got {basis_on!r}.')
    block = min(block, n)
    basis = max(2 * k + 1, SMALLEST_BASIS) + block - 1 if basis is None else whole(door, "basis", basis, 1)
    if basis + block > n:
        basis = n
    if basis < min(n, k + block + 1):
        raise ValueError(f"{door}: a basis for k={k} with block={block} has at least {k + block + 1} vectors.")
    limit = max(10 * n, 1000) if max_products is None else whole(door, "max_products", max_products, 1)
    kept = max(1, basis - block - 1)
    rtol, roundings = (RTOL, ROUNDINGS) if rtol is None else (rtol, 0.0)
    require_number(door, "rtol", rtol, positive=True)
    given = None if start is None else space.enter(start, "start")[0]
    asked = A, k, which, rtol, block, basis, basis_on, limit, seed, squares
    require_alike(A.reduction, door, space, asked, start=given)
    if basis_on == "host":
        given = given if given is None else np.array(space.in_order(given))
        A = on_host(door, A)
    ops, rhs = A.backend, A.domain.zeros() if given is None else given
    method = ThickRestart(rtol, limit, seed, k, which, basis, block, kept, roundings, squares)
    problem = LinearProblem(A.prepare(), rhs)

    def made(carry: Carry) -> tuple[Eigenpairs, Scalar]:
        s = carry.state
        *pick, allowed = ops.call(_picked, problem, method, s)
        pairs = Eigenpairs(
            code=s.status,
            steps=s.steps,
            products=s.products,
            rows=carry.rows if not isinstance(carry.rows, list) else ops.rows(carry, 0, len(carry.rows)),
            names=ThickRow._fields,
            method=method.title,
            values=pick[0],
            bounds=pick[1],
            met=pick[2],
            columns=pick[3],
            size=s.size * s.scale,
            restarts=s.restarts,
            space=space,
            which=which,
            block=block,
        )
        return pairs, allowed

    def told_so_far(carry: Carry) -> Eigenpairs:
        return made(carry)[0]

    with np.errstate(all="ignore"), Reached(told_so_far, "error.result has the pairs so far."):  # the status tells
        shown = together(problem.operator.reduction, ops, problem.like, watchers_of(watch))
        carry = drive(ops, method, problem, limit, shown, every, method.title)
    with np.errstate(all="ignore"):
        return made(carry)


def _picked(problem: LinearProblem, method: ThickRestart, s: Any) -> tuple[Array, Array, Array, Array, Scalar]:
    """Values, bounds, which of them met the tolerance, vectors, and the tolerance."""
    ops = problem.operator.backend
    pick = best(ops, problem, method, s)
    return (
        pick.values * s.scale,
        (pick.bounds + pick.floor) * s.scale,
        pick.met,
        ops.combine(s.basis, pick.vectors, s.filled),
        pick.allowed * (ops.sqrt(s.scale) if method.squares else s.scale),
    )
