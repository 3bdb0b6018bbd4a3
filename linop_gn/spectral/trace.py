"""The trace of an operator from products with random vectors.

With probes z of identity covariance, tr A is the expectation of z.A z. Four
estimators, of m products:

* Hutchinson (1990): the mean over m vectors of random signs; its error falls as
  ||A||_F m^(-1/2) and does not care whether eigenvalues decay.
* Hutch++ (Meyer, Musco, Musco and Woodruff, 2021): the trace on the range of A S,
  for a third of the products exactly, and Hutchinson's estimate outside of it.
* XTrace and XNysTrace (Epperly, Tropp and Webber, 2024): every probe is used for
  the range and for the rest, by leaving out one at a time
  (:mod:`linop_gn.spectral.leave_one_out`).

Where eigenvalues decay the later ones are better by orders of magnitude, and all
are as good where they don't. SciPy has no estimator of traces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ..arguments import whole
from ..distributed.watching import told_to_all
from ..draws import sign_columns, sphere, unit_columns
from ..foreign import advised
from ..operators.base import LinearOperator
from ..protocols import Array, Backend, Scalar
from ..records import record, static
from ..run.loop import Watcher
from ..run.status import Code
from ..spaces import wide
from .estimate import (
    Estimate,
    Estimator,
    EstimatorState,
    Probed,
    block_of,
    check_numbers,
    check_operator,
    estimated,
    exactly,
    gathered,
    is_looked_at,
    scaled,
)
from .leave_one_out import (
    ROUNDING,
    Sketch,
    bordered,
    entering,
    extended,
    jackknife,
    left_out_basis,
    left_out_nystrom,
    orthogonal_block,
    placed,
)

__all__ = ["trace"]


@record
class UnitVectors(Estimator):
    """The sum of e_i.A e_i over all unit vectors."""

    samples: int = static()
    block: int = static()
    title: ClassVar[str] = "unit vectors"

    def start(self, ops: Backend, problem: Probed) -> tuple[Any, Scalar]:
        return 0.0, 1.0

    def absorb(self, ops: Backend, problem: Probed, s: EstimatorState) -> Any:
        E = unit_columns(problem.operator.domain, s.samples, self.block)
        total = s.held + ops.item(ops.small_namespace().sum(ops.dot(E, problem.multiply(E))))
        return total, 0.0, total, s.scale, Code.RUNNING


@record
class Hutchinson(Estimator):
    """The mean of z.A z over vectors z of random signs."""

    samples: int = static()
    block: int = static()
    title: ClassVar[str] = "Hutchinson"

    def start(self, ops: Backend, problem: Probed) -> tuple[Any, Scalar]:
        return (0.0, 0.0), 0.0

    def absorb(self, ops: Backend, problem: Probed, s: EstimatorState) -> Any:
        Z = sign_columns(problem.operator.domain, problem.seed, s.samples, self.block)
        Y, scale = scaled(ops, s.scale, problem.multiply(Z))
        values = ops.dot(ops.cast(Z, wide(problem.operator.domain.dtype)), Y)
        mean, squares = s.held
        mean, squares, error = gathered(ops, s.samples, mean, squares, values)
        return mean, error, (mean, squares), scale, Code.RUNNING


@record
class HutchPlusPlus(Estimator):
    """The trace on the range of A S, and Hutchinson's estimate outside of it.

    With E what is left outside, the variance of z.E z is at most 2 (||E||_F^2 - (tr E)^2 / n), and z.E z and ||E z||^2
    estimate that with far less scatter than a few values of z.E z have: the larger one of both errors is taken.
    """

    samples: int = static()
    block: int = static()
    rank: int = static()
    title: ClassVar[str] = "Hutch++"

    @property
    def before(self) -> int:  # type: ignore[override]
        return 2 * self.rank

    def start(self, ops: Backend, problem: Probed) -> tuple[Any, Scalar]:
        space = problem.operator.domain
        Y, scale = scaled(ops, 0.0, problem.multiply(sign_columns(space, problem.seed, 0, self.rank)))
        Q = ops.qr(Y)[0]
        Z, _ = scaled(ops, scale, problem.multiply(ops.copy(Q)))
        inner = ops.item(ops.small_namespace().sum(ops.dot(Q, Z)))
        return (ops.copy(Q.T), inner, 0.0, 0.0, 0.0), scale

    def absorb(self, ops: Backend, problem: Probed, s: EstimatorState) -> Any:
        basis, inner, mean, squares, sizes = s.held
        space = problem.operator.domain
        G = ops.cast(sign_columns(space, problem.seed, self.rank + s.samples, self.block), wide(space.dtype))
        G = ops.axpy(-1.0, ops.combine(basis, ops.project(basis, G, self.rank), self.rank), G)
        Y, _ = scaled(ops, s.scale, problem.multiply(G))
        mean, squares, error = gathered(ops, s.samples, mean, squares, ops.dot(G, Y))
        Y = ops.axpy(-1.0, ops.combine(basis, ops.project(basis, Y, self.rank), self.rank), Y)
        sizes = sizes + ops.item(ops.small_namespace().sum(ops.dot(Y, Y)))
        count = 1.0 * (s.samples + self.block)
        bound = ops.maximum(sizes / count - mean * mean / space.size, 0.0) * 2.0 / count
        error = ops.maximum(error, ops.sqrt(bound))
        return inner + mean, error, (basis, inner, mean, squares, sizes), s.scale, Code.RUNNING


@record
class LeaveOneOut(Estimator):
    """What XTrace and XNysTrace have in common."""

    samples: int = static()
    block: int = static()
    images: ClassVar[bool]

    def start(self, ops: Backend, problem: Probed) -> tuple[Any, Scalar]:
        space, k = problem.operator.domain, self.samples
        like = ops.cast(space.zeros(), wide(space.dtype))
        xp = ops.small_namespace()
        zero = ops.small([0.0], like)
        probes, basis = ops.basis(like, k), ops.basis(like, k)
        images = ops.basis(like, k) if self.images else None
        R, W, H, T = (xp.zeros((k, k), dtype=zero.dtype) for _ in range(4))
        lengths, kept = (xp.zeros(k, dtype=zero.dtype) for _ in range(2))
        return Sketch(probes, basis, images, R, W, H, T if self.images else None, lengths, kept, 0.0), 0.0

    def absorb(self, ops: Backend, problem: Probed, s: EstimatorState) -> Any:
        space, held, first, b = problem.operator.domain, s.held, s.samples, self.block
        xp = ops.small_namespace()
        E = entering(ops, self.samples, first, b, held.R)
        Omega = sphere(space, problem.seed, first, b)
        Y, scale = scaled(ops, s.scale, problem.multiply(Omega))
        Omega = ops.cast(Omega, wide(space.dtype))
        held = held._replace(
            probes=extended(ops, held.probes, Omega, first),
            lengths=held.lengths + E @ xp.asarray(ops.dot(Omega, Omega), dtype=E.dtype),
        )
        held, Y = self.seen(ops, problem, held, (E, Omega, Y, first))
        Q, C, R = orthogonal_block(ops, held.basis, Y, first)
        kept = self.keeps(ops, C, R, ops.eps(Q))
        Q = ops.mask(kept, Q)
        held = held._replace(
            basis=extended(ops, held.basis, Q, first),
            R=held.R + (C + E @ R) @ E.T,
            kept=held.kept + E @ xp.asarray(kept, dtype=E.dtype),
        )
        return self.estimate(ops, problem, held, scale, (E, Q, Omega, first))

    def seen(self, ops: Backend, problem: Probed, held: Sketch, new: Any) -> tuple[Sketch, Array]:
        """What is held, and the products, before these are made orthogonal."""
        Y: Array = new[2]
        return held, Y

    def keeps(self, ops: Backend, C: Array, R: Array, eps: float) -> Array:
        """Which columns of Q are directions of their own (b,)."""
        xp = ops.small_namespace()
        return xp.abs(xp.diagonal(R)) > ROUNDING * eps * xp.sqrt(xp.sum(C * C, axis=0) + xp.sum(R * R, axis=0))

    def estimate(self, ops: Backend, problem: Probed, held: Sketch, scale: Scalar, new: Any) -> Any:
        raise NotImplementedError


@record
class XTrace(LeaveOneOut):
    """The exchangeable estimator for any square operator."""

    title: ClassVar[str] = "XTrace"
    each: ClassVar[int] = 2
    images: ClassVar[bool] = True

    def estimate(self, ops: Backend, problem: Probed, held: Sketch, scale: Scalar, new: Any) -> Any:
        E, Q, Omega, first = new
        Z, _ = scaled(ops, scale, problem.multiply(ops.copy(Q)))
        held = held._replace(images=extended(ops, held.images, Z, first))
        basis, images, probes = (held.basis, Q), (held.images, Z), (held.probes, Omega)
        held = held._replace(
            W=placed(ops, held.W, E, basis, probes, first),
            H=placed(ops, held.H, E, basis, images, first),
            T=placed(ops, held.T, E, images, probes, first),
        )
        count = first + E.shape[1]
        one, two = left_out_basis(ops, held, problem.operator.domain.size, count, ops.eps(Q))
        mean, error = jackknife(ops, one, two, count, ops.eps(Q))
        return mean, error, held, scale, Code.RUNNING


@record
class XNysTrace(LeaveOneOut):
    """The exchangeable estimator for a positive semi-definite operator, from its Nystrom approximation."""

    title: ClassVar[str] = "XNysTrace"
    images: ClassVar[bool] = False

    def seen(self, ops: Backend, problem: Probed, held: Sketch, new: Any) -> tuple[Sketch, Array]:
        """A + nu I in place of A, nu = eps ||A Omega||_F / sqrt(n) as of all probes."""
        E, Omega, Y, first = new
        xp, count, more = ops.small_namespace(), first + E.shape[1], self.samples / self.block / Y.shape[0]
        size = ops.item(xp.sqrt(xp.sum(ops.dot(Y, Y)) * more))
        shift = ops.where(first == 0, ops.eps(problem.like) * size, held.shift)
        Y = ops.axpy(shift, Omega, Y)
        grams = (ops.project(held.probes, columns, count) for columns in (Omega, Y))
        M, H = (bordered(ops, G, E, new, first) for G, new in zip((held.W, held.H), grams, strict=True))
        return held._replace(W=M, H=H, shift=shift), Y

    def keeps(self, ops: Backend, C: Array, R: Array, eps: float) -> Array:
        xp = ops.small_namespace()
        return xp.abs(xp.diagonal(R)) > 0.0  # the shift has made all products independent, unless they are zero

    def estimate(self, ops: Backend, problem: Probed, held: Sketch, scale: Scalar, new: Any) -> Any:
        E, _, _, first = new
        count = first + E.shape[1]
        one, two, definite = left_out_nystrom(ops, held, problem.operator.domain.size, count, ops.eps(problem.like))
        mean, error = jackknife(ops, one, two, count, ops.eps(problem.like))
        fault = ops.where(ops.item(definite) != 0, Code.RUNNING, Code.NEGATIVE_CURVATURE)
        return mean, error, held, scale, fault


METHODS = ("auto", "exact", "hutchinson", "hutch++", "xtrace", "xnystrace")
TOGETHER = 32
"""Probes of a block, at most, of an exchangeable estimator: what they are made of stays in the processor's cache."""
FEW = 3
"""Probes that an exchangeable estimator takes at least, if the method is left open."""


@told_to_all
@advised
def trace(
    A: LinearOperator,
    method: str = "auto",
    *,
    products: int = 100,
    rtol: Scalar = 0.0,
    atol: Scalar = 0.0,
    seed: Scalar = 0,
    watch: Sequence[Watcher] = (),
    every: int = 1,
) -> Estimate:
    """tr A of a square operator, exact or with a standard error.

    Parameters
    ----------
    A
        Square operator; ``"xnystrace"`` needs one that is known to be positive semi-definite.
    method
        ``"hutchinson"``, ``"hutch++"`` (a third of the products each for a basis, its image and probes), ``"xtrace"``
        (two products a probe), ``"xnystrace"`` (one), ``"exact"`` (n products), or ``"auto"``: the diagonal if A knows
        it, XNysTrace where A is known to be positive semi-definite and not of half precision, else XTrace; of very few
        products Hutchinson.
    products
        Products with A at most. Where they are n or more, n unit vectors give the exact trace.
    rtol, atol
        If one is positive the run ends once the standard error is at most max(rtol |value|, atol), after 10 probes at
        least. A value near zero is never known to a few digits: give ``atol`` for it.
    seed
        Of the probes: the same numbers on every framework.
    watch, every
        Watchers, shown a look every ``every`` steps; a step is a block of up to 8 probes.

    Returns
    -------
    Estimate
        ``value``, ``standard_error``, ``products``, ``samples``, ``status``, ``history``. Memory: of Hutchinson a block
        of vectors, of Hutch++ m / 3, of XTrace 3 m / 2 and of XNysTrace 2 m vectors for m products.

    >>> import numpy as np, linop_gn as lg
    >>> rng = np.random.default_rng(0)
    >>> J = rng.standard_normal((300, 300)) * 0.8 ** np.arange(300)
    >>> A = lg.Dense(J.T @ J, psd=True)
    >>> found = lg.trace(A, "xnystrace", products=60)
    >>> bool(abs(found.value - np.trace(J.T @ J)) < 4 * found.standard_error)
    True
    >>> lg.trace(A, "exact").standard_error, lg.trace(A).products
    (0.0, 0)

    Raises
    ------
    TypeError, ValueError
        For an operator that is not square, or not known to be what the method needs; too few products.
    """
    check_operator("trace", A)
    check_numbers("trace", rtol, atol, seed)
    if method not in METHODS:
        raise ValueError(f"trace: method must be one of {', '.join(map(repr, METHODS))}, got {method!r}.")
    products, n = whole("trace", "products", products, 1), A.domain.size
    if method == "auto":
        known = A.known_diagonal()
        if known is not None:
            ops = A.backend
            ones = A.domain.backend.namespace().ones_like(known)
            value = ops.dot(known, ones)
            return exactly("trace", value, 0.0, code=ops.where(ops.isfinite(value), Code.COMPLETED, Code.NONFINITE))
        definite = A.psd and A.dtype == wide(A.domain.dtype)  # rounding of half precision is not definite
        probes = products if definite else products // 2
        method = "hutchinson" if probes < FEW else "xnystrace" if definite else "xtrace"
    exact = method == "exact" or products >= n
    looked_at = is_looked_at(watch, rtol, atol)
    estimator: Any = estimator_for(A, "exact" if exact else method, products, looked_at)
    rtol, atol = (0.0, 0.0) if exact else (rtol, atol)
    return estimated("trace", A, estimator, rtol, atol, seed, watch, every, exact)


def estimator_for(A: LinearOperator, method: str, products: int, looked_at: bool) -> Any:
    """The estimator of this name for so many products."""
    least = {"xtrace": 2, "hutch++": 3}.get(method, 1)
    if products < least:
        raise ValueError(f"trace: {method!r} takes {least} products at least, got {products}.")
    if method == "exact":
        return UnitVectors(A.domain.size, block_of(A.domain.size, looked_at))
    if method == "hutchinson":
        return Hutchinson(products, block_of(products, looked_at))
    if method == "hutch++":
        rank, probes = products // 3, products - 2 * (products // 3)
        return HutchPlusPlus(probes, block_of(probes, looked_at), rank)
    if method == "xtrace":
        return XTrace(products // 2, block_of(products // 2, looked_at, TOGETHER))
    if not A.psd:
        raise ValueError(
            f"trace: 'xnystrace' needs a positive semi-definite operator, and {A!r} is not known to be. Declare it "
            "(psd=True) if it is, take the Gauss-Newton operator instead of the Hessian, or method='xtrace'."
        )
    return XNysTrace(products, block_of(products, looked_at, TOGETHER))
