"""log det A by stochastic Lanczos quadrature.

log det A = tr log A is the expectation of z.log(A) z over vectors z of random
signs, and each of these is a Gauss rule on the eigenvalues of the tridiagonal
matrix of k Lanczos steps from z (Bai, Fahey and Golub, 1996; Ubaru, Chen and
Saad, 2017). There are two errors: the scatter of the probes, and that of the
rules. Gauss rules are too large for the logarithm, whose even derivatives are
negative, and Gauss-Radau rules with a node below the spectrum are too small: where
such a number is known, as the damping is, the value is the middle of the two, and
half of what is between them counts in the standard error. Otherwise the node is put
where the smallest Ritz value's distance from an eigenvalue allows, theta - ||A y - theta y||,
or if nothing positive is left at the rounding of the largest; the value is Gauss's,
and all of what is between them counts. SciPy has nothing of the kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..arguments import known_float, require_number, whole
from ..distributed.watching import told_to_all
from ..draws import signs
from ..foreign import advised
from ..lanczos.process import BasisProblem, Lanczos
from ..lanczos.quadrature import gauss_rule, radau_rule
from ..lanczos.tridiagonal import spectrum
from ..operators.base import LinearOperator
from ..operators.damped import shifted
from ..protocols import Array, Backend, Scalar
from ..records import record, static
from ..run.loop import Watcher
from ..run.status import Code, verdict
from ..spaces import wide
from .estimate import (
    Estimate,
    Estimator,
    EstimatorState,
    Probed,
    check_numbers,
    check_operator,
    estimated,
    exactly,
    gathered,
    require_symmetric,
)

__all__ = ["logdet"]

ROUNDING = 8.0
"""Round-offs of the largest eigenvalue that one may be off by."""
_UNBOUNDED = (
    "Nothing bounds the determinant from below (lowest=, or damping, would): if the operator is singular the value "
    "means nothing."
)


class Quadratures(NamedTuple):
    """What a run of quadratures holds."""

    mean: Scalar
    squares: Scalar
    change: Scalar
    """The sum of how far the rules may be off."""
    lost: Scalar
    """The sum of how far rounding may have moved each."""
    products: Scalar


@record
class LogDeterminant(Estimator):
    """The mean of z.log(A) z over vectors z of random signs, each by k Lanczos steps."""

    samples: int = static()
    steps_each: int = static()
    bounded: bool = static()
    """Whether the problem's ``lowest`` is below all eigenvalues."""
    block: int = static(default=1)
    title: ClassVar[str] = "stochastic Lanczos quadrature"

    def start(self, ops: Backend, problem: Probed) -> tuple[Any, Scalar]:
        none = ops.scalar(0, problem.like)
        return Quadratures(0.0, 0.0, 0.0, 0.0, none), 1.0

    def spent(self, before: Any, held: Any) -> Scalar:
        return held.products - before.products

    def absorb(self, ops: Backend, problem: Probed, s: EstimatorState) -> Any:
        space, held = problem.operator.domain, s.held
        z = signs(space, problem.seed, s.samples)
        run = ops.iterate(Lanczos(self.steps_each), BasisProblem(problem.operator, z))
        k = ops.maximum(run.first, 1)
        value, rounding, code = self.quadrature(ops, problem, run, gauss_rule(ops, (run.alphas, run.betas), k))
        if self.bounded:
            end = (problem.lowest - problem.shift) / run.ascale
        else:
            end = seen_end(ops, run, k, problem.shift / run.ascale)
        other = self.quadrature(ops, problem, run, radau_rule(ops, (run.alphas, run.betas), k, end))[0]
        change = abs(value - other)
        if self.bounded:
            value, change = 0.5 * (value + other), 0.5 * change
        values = ops.small_namespace().stack([ops.small(value, z)])
        mean, squares, scatter = gathered(ops, s.samples, held.mean, held.squares, values)
        change, lost = held.change + change, held.lost + rounding
        bias, noise = change / (s.samples + 1.0), lost / (s.samples + 1.0)
        error = ops.sqrt(scatter * scatter + bias * bias + noise * noise)
        ended = (run.status != Code.COMPLETED) & (run.status != Code.INVARIANT)
        code = ops.where(ended, run.status, code)
        return mean, error, Quadratures(mean, squares, change, lost, held.products + run.products), s.scale, code

    def quadrature(self, ops: Backend, problem: Probed, run: Any, rule: Any) -> tuple[Scalar, Scalar, Scalar]:
        """z.log(A) z by a rule; how far rounding may move it; a code if A is not definite."""
        xp, (nodes, weights) = ops.small_namespace(), rule
        nodes, used = nodes * run.ascale, weights > 0
        total, lost, code = logarithms(ops, xp.where(used, nodes, 0.0), weights, problem, ops.eps(run.basis))
        size = run.norm * run.scale
        return total * size * size, lost * size * size, code


def seen_end(ops: Backend, run: Any, count: Scalar, shift: Scalar) -> Scalar:
    """Where the spectrum may begin by what a run has seen: below its smallest Ritz value, and above rounding."""
    S = spectrum(ops, (run.alphas, run.betas), count)
    least = ops.lookup(S.values, 0)
    apart = abs(ops.lookup(run.betas, count - 1) * ops.lookup(S.vectors[:, 0], count - 1))
    noise = ROUNDING * ops.eps(run.basis) * ops.item(S.size) - shift
    return ops.minimum(least, ops.maximum(least - apart, noise))


def logarithms(
    ops: Backend, values: Array, weights: Array, problem: Probed, eps: float
) -> tuple[Scalar, Scalar, Scalar]:
    """The sum of weights times log(values + shift); a bound on its rounding; a code if one of these is not positive."""
    xp, used = ops.small_namespace(), weights > 0
    highest = xp.max(xp.where(used, abs(values), 0.0))
    noise = ROUNDING * eps * highest
    lowest = xp.min(xp.where(used, values, xp.inf))
    if problem.operator.psd:
        negative = lowest < -100.0 * noise
        values = xp.maximum(values, 0.0)
        singular = xp.asarray(lowest + problem.shift <= noise) & xp.asarray(problem.shift == 0)
    else:
        negative, singular = lowest + problem.shift < -noise, lowest + problem.shift <= noise
    values = xp.where(used & (values + problem.shift > 0), values + problem.shift, 1.0)
    total, lost = xp.sum(weights * xp.log(values)), xp.sum(xp.where(used, weights / values, 0.0)) * eps * highest
    bad, worse = ops.item(xp.where(singular, 1.0, 0.0)), ops.item(xp.where(negative, 1.0, 0.0))
    code = verdict(ops, Code.RUNNING, (worse > 0, Code.NEGATIVE_CURVATURE), (bad > 0, Code.SINGULAR))
    return ops.item(total), ops.item(lost), code


@told_to_all
@advised
def logdet(
    A: LinearOperator,
    *,
    products: int = 600,
    steps: int = 30,
    lowest: Scalar | None = None,
    rtol: Scalar = 0.0,
    atol: Scalar = 0.0,
    seed: Scalar = 0,
    watch: Sequence[Watcher] = (),
    every: int = 1,
) -> Estimate:
    """log det A of a positive definite operator, exact or with a standard error.

    Parameters
    ----------
    A
        Symmetric operator; of a damped one, the undamped is multiplied by and the damping added to eigenvalues, which
        loses no digits.
    products
        Products at most: those of products // steps probes. Where they are n or more the matrix is made, and its
        eigenvalues are found. An operator of Kronecker factors knows its own, and takes none.
    steps
        Lanczos steps of a probe. Memory: that many vectors.
    lowest
        A positive number that is not above any eigenvalue of A, for a bound on the error of the quadrature; by default
        the damping, where the undamped operator is known to be positive semi-definite. Without it the smallest
        eigenvalue is what the steps have seen of it, down to rounding: the standard error is large where they have not
        come to it, and of a singular operator the value means nothing.
    rtol, atol, seed, watch, every
        As of :func:`linop_gn.trace`; a step is a probe.

    >>> import numpy as np, linop_gn as lg
    >>> G = lg.Diagonal(np.linspace(0.0, 9.0, 900))
    >>> found = lg.logdet(lg.Damped(G, 0.1))
    >>> bool(abs(found.value - np.log(G.values + 0.1).sum()) < 4 * found.standard_error < 4.0)
    True

    Raises
    ------
    TypeError, ValueError
        For an operator that is not known to be symmetric, or fewer products than steps.
    """
    check_operator("logdet", A)
    check_numbers("logdet", rtol, atol, seed)
    require_number("logdet", "lowest", lowest, positive=True, optional=True)
    steps, products = whole("logdet", "steps", steps, 1), whole("logdet", "products", products, 1)
    require_symmetric(
        "logdet", A, "log |det A| of another one is half the logdet of A.T @ A, its singular values lg.svds(A)"
    )
    inner, shift = shifted(A)
    n, ops, known = A.domain.size, A.backend, inner.known_logdet(shift)
    if known is not None:
        code = ops.where(
            known == -math.inf, Code.SINGULAR, ops.where(ops.isfinite(known), Code.COMPLETED, Code.NONFINITE)
        )
        return exactly("logdet", known, 0.0, method="known factors", code=code)
    if products >= n:
        return _from_eigenvalues(inner, shift)
    if products < steps:
        raise ValueError(f"logdet: {products} products are less than the {steps} steps of one probe; lower steps=.")
    damped = inner.psd and not (A.backend.is_concrete(shift) and known_float(shift) == 0)
    estimator = LogDeterminant(products // steps, steps, damped or lowest is not None)
    lowest, more = shift if lowest is None else lowest, "" if estimator.bounded else _UNBOUNDED
    return estimated("logdet", inner, estimator, rtol, atol, seed, watch, every, False, shift, lowest, more)


def _from_eigenvalues(A: LinearOperator, shift: Scalar) -> Estimate:
    """The sum of the logarithms of all eigenvalues."""
    ops, space = A.backend, A.domain
    matrix = ops.cast(A.to_dense(), wide(space.dtype))
    ok = ops.namespace().all(ops.namespace().isfinite(matrix))
    finite = ops.item(ops.namespace().where(ok, ops.namespace().ones_like(matrix[0, 0]), matrix[0, 0] * 0.0))
    skewness = ops.max_abs(ops.namespace().reshape(matrix - matrix.T, (-1,)))
    skew = skewness > ops.eps(A.domain.zeros()) ** (1 / 3) * ops.max_abs(ops.namespace().reshape(matrix, (-1,)))
    values, _, found = ops.eigh((matrix + matrix.T) / 2)
    problem = Probed(A, 0, 0.0, matrix, shift)
    small = ops.small(values, matrix)
    with np.errstate(all="ignore"):
        total, _, code = logarithms(ops, small, 0.0 * small + 1.0, problem, ops.eps(matrix))
    code = ops.where(code == Code.RUNNING, Code.COMPLETED, code)
    bad = ops.logical_not(found) | ops.logical_not(ops.isfinite(total)) | (finite != 1.0)
    code = verdict(ops, code, (bad, Code.NONFINITE), (skew, Code.NOT_SYMMETRIC))
    value = ops.where(code == Code.COMPLETED, total, math.nan)
    return exactly("logdet", value, 0.0, space.size, "eigenvalues", code, A.psd)
