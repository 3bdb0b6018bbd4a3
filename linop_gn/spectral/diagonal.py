"""The diagonal of an operator from products with random vectors.

With vectors z of random signs, diag A is the expectation of z * A z, entry by entry:

* Hutchinson's estimator (Bekas, Kokiopoulou and Saad, 2007): the mean over m
  vectors; entry i has the variance sum_(j != i) a_ij^2 / m.
* XDiag (Epperly, Tropp and Webber, 2024) and, for A >= 0, XNysDiag (Epperly,
  2025): the diagonal of a low-rank approximation from all probes but one, and
  Hutchinson's estimate of the rest with that one, averaged over which one it is.

With Y = A Omega = Q R and unit vectors s_i along the columns of R^-T, XDiag's
approximation without probe i is Q (I - s_i s_i^T) Q^T A; XNysDiag's is Y H^-1 Y^T
less u_i u_i^T. Either estimate is, with U = Q S, V = A^T Q S, rho_i = s_i.R e_i
(of XNysDiag U = V = Y H^-1 in columns over the roots of h_ii = (H^-1)_ii, and
rho_i = h_ii^(-1/2)),

    d_i = base - u_i * v_i + rho_i omega_i * u_i .

The errors are the jackknife's (see :mod:`linop_gn.spectral.leave_one_out`): the
estimates with two probes left out have the same form, and their means are matrix
products. SciPy has no such estimator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from ..arguments import whole
from ..curvature.at_point import GGN, BlockGGN
from ..curvature.squares import count_outputs, diagonal_by_layers, gauss_newton_diagonal
from ..distributed.watching import told_to_all
from ..draws import sign_columns, unit_columns
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
    is_looked_at,
    scaled,
)
from .leave_one_out import inverse_basis, nystrom_root

__all__ = ["diagonal"]


class Entries(Estimator):
    """An estimator of n numbers: looks and tolerances are about 2-norms."""

    samples: int
    block: int

    def unknown(self, ops: Backend, problem: Probed) -> Any:
        zeros = ops.cast(problem.operator.domain.zeros(), wide(problem.operator.domain.dtype))
        return zeros + float("nan")

    def size(self, ops: Backend, value: Any) -> Scalar:
        scale = ops.power_of_two(ops.max_abs(value), value)  # a large one's square overflows
        value = ops.scale(ops.divide(1.0, scale), ops.copy(value))
        return scale * ops.sqrt(ops.dot(value, value))

    def times(self, ops: Backend, scale: Scalar, value: Any) -> Any:
        return ops.scale(scale, ops.copy(value))

    def start(self, ops: Backend, problem: Probed) -> tuple[Any, Scalar]:
        return (), 0.0


@record
class UnitVectors(Entries):
    """The entries e_i.A e_i, one after the other."""

    samples: int = static()
    block: int = static()
    title: ClassVar[str] = "unit vectors"

    def start(self, ops: Backend, problem: Probed) -> tuple[Any, Scalar]:
        return ops.cast(problem.operator.domain.zeros(), wide(problem.operator.domain.dtype)), 1.0

    def absorb(self, ops: Backend, problem: Probed, s: EstimatorState) -> Any:
        space = problem.operator.domain
        E = unit_columns(space, s.samples, self.block)
        found = ops.namespace().sum(problem.multiply(E) * E, axis=1)
        total = s.held + ops.cast(found, wide(space.dtype))
        return total, ops.zeros_like(total), total, s.scale, Code.RUNNING


@record
class Hutchinson(Entries):
    """The mean of z * A z over vectors z of random signs."""

    samples: int = static()
    block: int = static()
    title: ClassVar[str] = "Hutchinson"

    def start(self, ops: Backend, problem: Probed) -> tuple[Any, Scalar]:
        zeros = ops.cast(problem.operator.domain.zeros(), wide(problem.operator.domain.dtype))
        return (zeros, ops.copy(zeros)), 0.0

    def absorb(self, ops: Backend, problem: Probed, s: EstimatorState) -> Any:
        xp, (mean, squares), b = ops.namespace(), s.held, self.block
        Z = sign_columns(problem.operator.domain, problem.seed, s.samples, b)
        Y, scale = scaled(ops, s.scale, problem.multiply(Z))
        Y = ops.cast(Z, wide(problem.operator.domain.dtype)) * Y
        here = xp.mean(Y, axis=1)
        apart, gap = Y - here[:, None], here - mean
        total = 1.0 * (s.samples + b)
        squares = squares + xp.sum(apart * apart, axis=1) + ops.scale(s.samples * b / total, gap * gap)
        mean = ops.axpy(b / total, gap, ops.copy(mean))
        error = xp.sqrt(ops.scale(ops.divide(1.0, total * (total - 1.0)), ops.copy(squares)))
        error = ops.select(total > 1, error, error + float("inf"))
        return mean, error, (mean, squares), scale, Code.RUNNING


class LeaveOneOut(Entries):
    """What XDiag and XNysDiag have in common: all products are taken in one step."""

    def averaged(
        self, ops: Backend, base: Array, parts: tuple[Array, Array, Array], angle: Array, rho: Array
    ) -> tuple[Array, Array]:
        """The mean of d_i over i, and its standard error, from U, V and Omega (n, k), s_i.s_j (k, k) and rho (k,)."""
        (U, V, Omega), xp, sm, k = parts, ops.namespace(), ops.small_namespace(), self.samples
        UV, drawn = U * V, ops.scale(rho, Omega * U)

        def spread(values: Array) -> tuple[Array, Array]:
            mean = xp.mean(values, axis=1)
            return mean, xp.sum((values - mean[:, None]) ** 2, axis=1)

        mean, scatter = spread(base[:, None] - UV + drawn)
        if k == 1:
            return mean, mean * 0.0 + float("inf")
        q = sm.where(sm.eye(k) > 0, 0.0, 1.0 / sm.maximum(1.0 - angle * angle, ops.eps(U)))
        cq = angle * q

        def times(columns: Array, coefficients: Array) -> Array:
            made: Array = ops.combine(columns.T, coefficients, k)
            return made

        moved = times(drawn - UV, q) - ops.scale(sm.sum(q, axis=0), ops.copy(UV))
        moved = moved + U * (times(V, cq) - times(Omega, rho[:, None] * cq)) + V * times(U, cq)
        _, moved = spread(moved * (1.0 / (k - 1.0)))
        scatter, moved = scatter * (1.0 / (k * (k - 1.0))), moved * ((k - 1.0) / k)
        return mean, xp.sqrt(xp.where(moved > scatter, moved, scatter))


@record
class XDiag(LeaveOneOut):
    """The exchangeable estimator for any square operator, from products with A and its adjoint."""

    samples: int = static()
    block: int = static()
    title: ClassVar[str] = "XDiag"
    each: ClassVar[int] = 2

    def absorb(self, ops: Backend, problem: Probed, s: EstimatorState) -> Any:
        xp, space, k = ops.namespace(), problem.operator.domain, self.samples
        Omega = sign_columns(space, problem.seed, 0, k)
        Y, scale = scaled(ops, s.scale, problem.multiply(Omega))
        Omega = ops.cast(Omega, wide(space.dtype))
        Q, R = ops.qr(Y)
        Z, _ = scaled(ops, scale, problem.operator.rmatmat(ops.cast(ops.copy(Q), space.dtype)))
        R = ops.small(R, Y)
        S = inverse_basis(ops, R, ops.eps(Y))
        U, V = ops.combine(Q.T, S, k), ops.combine(Z.T, S, k)
        rho = ops.small_namespace().sum(S * R, axis=0)
        base = xp.sum(Q * Z, axis=1)
        mean, error = self.averaged(ops, base, (U, V, Omega), S.T @ S, rho)
        return mean, error, (), scale, Code.RUNNING


@record
class XNysDiag(LeaveOneOut):
    """The exchangeable estimator for a positive semi-definite operator, from its Nystrom approximation."""

    samples: int = static()
    block: int = static()
    title: ClassVar[str] = "XNysDiag"

    def absorb(self, ops: Backend, problem: Probed, s: EstimatorState) -> Any:
        xp, sm, space, k = ops.namespace(), ops.small_namespace(), problem.operator.domain, self.samples
        Omega = sign_columns(space, problem.seed, 0, k)
        Y, scale = scaled(ops, s.scale, problem.multiply(Omega))
        Omega = ops.cast(Omega, wide(space.dtype))
        shift = ops.eps(problem.like) * ops.item(sm.sqrt(sm.sum(ops.dot(Y, Y)) / space.size))
        Y = ops.axpy(shift, Omega, Y)
        P, definite = nystrom_root(ops, ops.project(Omega.T, Y, k), sm.ones(k) > 0, ops.eps(problem.like))
        K = P @ P.T
        h = sm.diagonal(K)
        root = sm.where(h > 0, 1.0 / sm.sqrt(sm.where(h > 0, h, 1.0)), 0.0)
        F, U = ops.combine(Y.T, P, k), ops.scale(root, ops.combine(Y.T, K, k))
        base = xp.sum(F * F, axis=1) - shift
        angle = K * root[:, None] * root[None, :]
        mean, error = self.averaged(ops, base, (U, U, Omega), angle, root)
        fault = ops.where(ops.item(definite) != 0, Code.RUNNING, Code.NEGATIVE_CURVATURE)
        return mean, error, (), scale, fault


def _of_factors(A: LinearOperator, most: int | None = None) -> Estimate | None:
    """The diagonal of a Gauss-Newton operator from the root of the loss's Hessian; None where n products are fewer.

    With ``most``, of passes backward, from the model's layers or not at all.
    """
    if not isinstance(A, (GGN, BlockGGN)) or A.host or not A.psd:
        return None
    ops, rows, loss = A.backend, count_outputs(A.point), A.point.objective.loss
    if rows is None or loss is None or loss.autodiff:
        return None
    with ops.unguarded():
        try:
            pieces = A.point.linearized().pieces
            each = sum(math.prod(z.shape[p.stacked + 1 :]) for p in pieces if (z := p.outputs) is not None)
            found = None if most is not None and each + 2 * len(pieces) > most else diagonal_by_layers(A.point)
            if found is None and (most is not None or rows >= A.domain.size):
                return None
            value, rows = (gauss_newton_diagonal(A.point), rows) if found is None else found
        except NotImplementedError:  # this Hessian has no root
            return None
        l2 = A.point.objective.l2_in(A.domain)
        value = value if l2 is None else value + l2
        finite = ops.isfinite(ops.max_abs(value))
    code = ops.where(finite, Code.COMPLETED, Code.NONFINITE)
    way = "rows of the Jacobian" if found is None else "layers of the model"
    return exactly("diagonal", value, ops.zeros_like(value), rows, way, code)


METHODS = ("auto", "exact", "hutchinson", "xdiag", "xnysdiag")
FEW = 3
"""Probes that an exchangeable estimator takes at least, if the method is left open."""


@told_to_all
@advised
def diagonal(
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
    """The diagonal of a square operator, exact or with a standard error for each entry.

    Parameters
    ----------
    A
        Square operator; ``"xnysdiag"`` needs one that is known to be positive semi-definite, ``"xdiag"`` one with an
        adjoint.
    method
        ``"hutchinson"``, ``"xdiag"`` (two products a probe, one of them with the adjoint), ``"xnysdiag"`` (one),
        ``"exact"`` (n products; of ``lg.GGN`` and its kind a pass backward for each number that an example puts out,
        where the model has layers, or a product with J^T for each output, if these are fewer than n), or
        ``"auto"``: the diagonal itself if A knows it, or if layers give it within ``products`` passes; XNysDiag where
        A is known to be positive semi-definite, else XDiag; of very few products Hutchinson.
    products
        Products at most. Where they are n or more, n unit vectors give the exact diagonal.
    rtol, atol
        ``CONVERGED`` is said if the 2-norm of the standard errors is at most rtol times that of the value, or atol. A
        run of Hutchinson's ends then, after 10 probes at least; the others take all their products in one step.
    seed
        Of the probes: the same numbers on every framework.
    watch, every
        Watchers, shown a look every ``every`` steps.

    Returns
    -------
    Estimate
        ``value`` and ``standard_error`` (n,) in A's flat order, which is that of the devices where parameters are
        sharded: ``A.domain.unpack(found.value)`` is a tree. Memory: of
        Hutchinson a block of vectors, of XDiag about 4 m and of XNysDiag 6 m vectors for m products.

    >>> import numpy as np, linop_gn as lg
    >>> rng = np.random.default_rng(0)
    >>> J = rng.standard_normal((300, 300)) * 0.8 ** np.arange(300)
    >>> A = lg.FunctionOperator(lambda v: J @ (J.T @ v), lg.Space.flat(300, J), psd=True)
    >>> found = lg.diagonal(A, products=60)
    >>> exact = (J * J).sum(axis=1)
    >>> bool(np.linalg.norm(found.value - exact) < 1e-3 * np.linalg.norm(exact))
    True
    >>> lg.diagonal(A, "exact").products
    300

    Raises
    ------
    TypeError, ValueError
        For an operator that is not square, or not known to be what the method needs; too few products.
    """
    check_operator("diagonal", A)
    check_numbers("diagonal", rtol, atol, seed)
    if method not in METHODS:
        raise ValueError(f"diagonal: method must be one of {', '.join(map(repr, METHODS))}, got {method!r}.")
    products, n = whole("diagonal", "products", products, 1), A.domain.size
    if method == "auto":
        known = A.known_diagonal()
        if known is not None:
            ops = A.backend
            finite = ops.isfinite(ops.max_abs(known))
            code = ops.where(finite, Code.COMPLETED, Code.NONFINITE)
            return exactly("diagonal", known, ops.zeros_like(known), code=code)
        if (found := _of_factors(A, products)) is not None:
            return found
        probes = products if A.psd else products // 2
        method = "hutchinson" if probes < FEW else "xnysdiag" if A.psd else "xdiag"
    exact = method == "exact" or products >= n
    looked_at = is_looked_at(watch, rtol, atol)
    estimator: Any
    if exact and (found := _of_factors(A)) is not None:
        return found
    if exact:
        estimator = UnitVectors(n, block_of(n, looked_at))
    elif method == "hutchinson":
        estimator = Hutchinson(products, block_of(products, looked_at))
    elif method == "xdiag":
        if products < 2:
            raise ValueError(f"diagonal: 'xdiag' takes 2 products at least, got {products}.")
        estimator = XDiag(products // 2, products // 2)
    elif A.psd:
        estimator = XNysDiag(products, products)
    else:
        raise ValueError(
            f"diagonal: 'xnysdiag' needs a positive semi-definite operator, and {A!r} is not known to be. Declare it "
            "(psd=True) if it is, take the Gauss-Newton operator instead of the Hessian, or method='xdiag'."
        )
    rtol, atol = (0.0, 0.0) if exact else (rtol, atol)
    return estimated("diagonal", A, estimator, rtol, atol, seed, watch, every, exact)
