"""The Lanczos process: an orthonormal basis of the Krylov space, and the tridiagonal T = Q^T A Q.

Lanczos (1950), in the order of operations that Paige (1972) found most
accurate, with q_0 = b / ||b||::

    w = A q_j - beta_(j-1) q_(j-1)      alpha_j = q_j.w      w <- w - alpha_j q_j
    beta_j = ||w||                      q_(j+1) = w / beta_j

Rounding makes the vectors lose their orthogonality as soon as a Ritz value has
converged. Three answers to that:

``"none"``
    Nothing is done: copies of converged Ritz values appear, solutions converge
    later, as in conjugate gradients. The basis need not be kept.
``"full"``
    Each w is orthogonalised against all vectors before it by classical
    Gram-Schmidt, as two matrix products, and once more where that has removed
    much ("twice is enough", Daniel, Gragg, Kaufman and Stewart, 1976).
``"selective"``
    The same, but only at the steps that need it: Simon's recurrence (*The
    Lanczos algorithm with partial reorthogonalization*, 1984) follows the level
    of orthogonality on scalars alone. Where it passes eps^(3/4), that step's and
    the next step's w are orthogonalised against the vectors concerned.

beta_j = 0 to rounding means that the space is invariant under A: T's
eigenvalues are eigenvalues of A, and solutions are exact (``INVARIANT``). With
``restart=True`` the process then goes on from a random vector orthogonal to the
basis, with a zero in T: so it finds parts of the spectrum that b knows nothing
of. A is divided by a power of two where its products are far from 1, as b is,
so that no inner product over- or underflows. <q_0, A q_1> must be beta_0, and
inner products with older vectors must vanish; where they miss that by far, the
operator is not symmetric, and the run says so.

``scipy.sparse.linalg.eigsh`` restarts such a process implicitly, for a few
eigenvalues; here it is kept for solving with.
"""

from __future__ import annotations

from ..arguments import whole
from ..operators.base import LinearOperator
from ..protocols import Array, Backend, Scalar, Vector
from ..records import record, static
from ..run.status import COMPLETED, CONVERGED, INVARIANT, NONFINITE, NONFINITE_INPUT, NOT_SYMMETRIC, RUNNING
from ..solvers.options import require_symmetric, scaled_rhs
from ..solvers.problem import LinearProblem
from .orthogonal import fresh, levels, orthogonalise
from .parts import conjugate, conjugate_gradient_iterate, crossed, unit_of
from .state import LanczosRow, LanczosState, resume

__all__ = ["Lanczos", "LanczosState"]


LEVEL, ENOUGH = 0.75, 0.8
"""Orthogonality worse than eps to the first power is restored, with respect to all vectors up to the last for which it
is worse than eps to the second. Semi-orthogonality (1/2) would keep T accurate, but solutions only to sqrt(eps)."""

WAYS = ("none", "selective", "full")


@record
class Lanczos:
    """``steps`` steps of the Lanczos process; :func:`linop_gn.krylov` is how to use it.

    Handed to :func:`linop_gn.solve` it answers with the solution of A x = b in the Krylov space: the iterate of
    conjugate gradients, free of their loss of conjugacy, or the last one before the operator showed itself to be
    indefinite. It has no tolerance.

    Parameters
    ----------
    steps
        Vectors in the basis, at most. With reorthogonalisation no more than n are made.
    reorthogonalise
        ``"selective"`` (default), ``"full"`` or ``"none"``.
    keep
        False keeps two vectors only (``reorthogonalise="none"``): a second pass makes the others again.
    restart
        Whether to go on from a random vector where the space is invariant.
    seed
        Of that vector.

    >>> import numpy as np, linop_gn as lg
    >>> lg.solve(lg.Diagonal(np.array([1.0, 2.0, 4.0])), np.ones(3), lg.Lanczos(steps=3))
    Lanczos: invariant after 3 steps, 3 products; residual ...
    The Krylov space has become invariant under the operator: more steps would add nothing to it.
    """

    steps: int = static()
    reorthogonalise: str = static(default="selective")
    keep: bool = static(default=True)
    restart: bool = static(default=False)
    seed: int = static(default=0)

    defect = None  # what is not converged has no derivative by one more solve
    side_by_side = False  # one basis for all blocks

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", whole("Lanczos", "steps", self.steps, 1))
        if self.reorthogonalise not in WAYS:
            raise ValueError(f"Lanczos: reorthogonalise must be one of {WAYS}, got {self.reorthogonalise!r}.")
        if not self.keep and (self.reorthogonalise != "none" or self.restart):
            raise ValueError(
                "Lanczos: keep=False keeps no vectors to orthogonalise against; it needs reorthogonalise='none' and "
                "restart=False."
            )

    def check(self, operator: LinearOperator) -> None:
        """Raise unless the operator is square and known to be symmetric."""
        require_symmetric(self, operator)

    def limit(self, problem: LinearProblem) -> int:
        """The number of steps that a run may take."""
        n: int = problem.rhs.shape[0]
        return self.steps if self.reorthogonalise == "none" else min(self.steps, n)

    def init(self, ops: Backend, problem: LinearProblem) -> LanczosState:
        begun = getattr(problem, "begun", None)
        if begun is not None:
            return resume(ops, problem, begun, self)
        b = problem.rhs
        if len(b.shape) != 1 or problem.x0 is not None:
            raise ValueError(
                "a Krylov space belongs to one right-hand side and starts at zero: give b as a tree or flat (n,), one "
                "column at a time, and no x0 (solve for the correction with the right-hand side b - A x0 instead)."
            )
        capacity = self.limit(problem)
        r, scale, _, _, finite = scaled_rhs(ops, b)
        norm = ops.sqrt(ops.dot(r, r))
        status = ops.where(norm > 0, ops.scalar(RUNNING, b), CONVERGED)
        status = ops.where(finite, status, NONFINITE_INPUT)
        basis = ops.store(ops.basis(b, capacity + 1 if self.keep else 2), 0, ops.divide(1.0, norm), r)
        if not self.keep:
            basis = ops.store(basis, 1, 0.0, r)
        zero, none = ops.scalar(0.0, b), ops.scalar(0, b)
        watched = capacity + 1 if self.reorthogonalise == "selective" else 1
        return LanczosState(
            basis=basis,
            alphas=ops.table(capacity, zero),
            betas=ops.table(capacity, zero),
            norm=norm,
            scale=scale,
            unit=zero + 1.0,
            size=zero,
            omega=ops.write(ops.table(watched, zero), 0, 1.0),
            omega_before=ops.table(watched, zero),
            again=none,
            pivot=zero + 1.0,
            forward=norm,
            definite=ops.scalar(True, b),
            residual=norm,
            model=zero,
            positive=none,
            first=none,
            blocks=none + 1,
            reorthogonalised=none,
            removed=zero,
            status=status,
            steps=none,
            products=none,
        )

    def _at(self, index: Scalar) -> Scalar:
        return index if self.keep else index % 2

    def step(self, ops: Backend, problem: LinearProblem, s: LanczosState) -> LanczosState:
        return self.follow(ops, problem, s, problem.operator.apply(self.latest(ops, problem, s)))

    def latest(self, ops: Backend, problem: LinearProblem, s: LanczosState) -> Vector:
        """q_j, the vector whose product is wanted; a finished run's last one, so that every index stays inside."""
        return ops.row(s.basis, self._at(ops.minimum(s.steps, self.limit(problem) - 1)))

    def follow(self, ops: Backend, problem: LinearProblem, s: LanczosState, w: Vector) -> LanczosState:
        """The state after a step whose product A q_j is w. Consumes w."""
        eps, n, limit = ops.eps(problem.rhs), problem.rhs.shape[0], self.limit(problem)
        running, basis = s.status == RUNNING, s.basis
        j = ops.minimum(s.steps, limit - 1)
        before = ops.maximum(j - 1, 0)
        beta = ops.where(j > 0, ops.lookup(s.betas, before), 0.0)
        q, older = self.latest(ops, problem, s), ops.row(basis, self._at(j + 1 if not self.keep else before))
        unit = unit_of(ops, j, w, s.unit)
        skewness = crossed(ops, j, older, w, beta * unit) / unit
        w = ops.axpby(-beta, older, ops.divide(1.0, unit), w)
        alpha = ops.dot(q, w)
        w = ops.axpy(-alpha, q, w)
        length = ops.sqrt(ops.dot(w, w))
        size = ops.maximum(s.size, ops.maximum(abs(alpha) + beta, beta + length))

        omega, against, again = self._levels(ops, s, j, alpha, (beta, length), eps * size)
        w, length, removed = orthogonalise(ops, basis, w, length, against > 0, against)
        skewness = ops.maximum(skewness, removed)

        sound = running & ops.isfinite(alpha) & ops.isfinite(length)
        skew = sound & (skewness > eps ** (1 / 3) * size)
        counted = sound & ops.logical_not(skew)
        whole = (j + 1 >= n) & (self.reorthogonalise != "none")
        small = length <= 10.0 * eps * size
        closed = counted & (small | whole)
        anew = closed & ops.logical_not(whole) & (j + 1 < limit) & self.restart
        w, length = self._renew(ops, problem, basis, w, length, anew, j, s.blocks)

        index = self._at(j + 1)
        keep_row = ops.logical_not(counted)
        row = ops.select(keep_row, ops.row(basis, index), w)
        basis = ops.store(basis, index, ops.where(keep_row, 1.0, ops.divide(1.0, length)), row)
        beta_next = ops.where(anew, 0.0, length)
        alphas = ops.write(s.alphas, j, ops.where(counted, alpha, ops.lookup(s.alphas, j)))
        betas = ops.write(s.betas, j, ops.where(counted, beta_next, ops.lookup(s.betas, j)))

        side = conjugate(ops, s, j, alpha, (beta, beta_next), counted, size, eps)
        pivot, forward, definite, residual, model, positive = side
        steps = s.steps + ops.where(counted, 1, 0)
        status = s.status  # later lines overrule earlier ones
        status = ops.where(running & (steps >= limit), COMPLETED, status)
        status = ops.where(closed & ops.logical_not(anew), INVARIANT, status)
        status = ops.where(skew, NOT_SYMMETRIC, status)
        status = ops.where(running & ops.logical_not(sound), NONFINITE, status)
        return s._replace(
            basis=basis,
            alphas=alphas,
            betas=betas,
            unit=ops.where(counted, unit, s.unit),
            size=ops.where(counted, size, s.size),
            omega=ops.where(running, omega, s.omega),
            omega_before=ops.where(running, s.omega, s.omega_before),
            again=ops.where(running, again, s.again),
            pivot=pivot,
            forward=forward,
            definite=definite,
            residual=residual,
            model=model,
            positive=positive,
            first=ops.where(counted & (s.blocks == 1), steps, s.first),
            blocks=s.blocks + ops.where(anew, 1, 0),
            reorthogonalised=s.reorthogonalised + ops.where(running & (against > 0), 1, 0),
            removed=ops.where(counted, ops.sqrt(s.removed * s.removed + removed * removed), s.removed),
            status=status,
            steps=steps,
            products=s.products + ops.where(running, 1, 0),
        )

    def _levels(
        self, ops: Backend, s: LanczosState, j: Scalar, alpha: Scalar, betas: tuple[Scalar, Scalar], rounding: Scalar
    ) -> tuple[Array, Scalar, Scalar]:
        """The estimates for q_(j+1), and how many vectors w, and the next one, are to be orthogonalised against."""
        if self.reorthogonalise != "selective":
            count = ops.where(self.reorthogonalise == "full", j + 1, 0 * j)
            return s.omega, count, 0 * j
        xp, eps = ops.small_namespace(), ops.eps(s.basis)
        omega = levels(ops, (s.omega, s.omega_before), (s.alphas, s.betas), j, alpha, betas, rounding)
        index = xp.arange(omega.shape[0])
        size = xp.abs(omega)
        lost = ~(xp.max(xp.where(index <= j, size, 0.0)) <= eps**LEVEL)
        reach = xp.max(xp.where((index <= j) & ~(size <= eps**ENOUGH), index + 1, 0))
        first = ops.where(lost, ops.maximum(reach, 1), 0 * j)
        count = ops.maximum(first, s.again)
        return xp.where(index < count, 2.0 * eps, omega), count, ops.where(s.again > 0, 0 * j, first)

    def _renew(
        self,
        ops: Backend,
        problem: LinearProblem,
        basis: Array,
        w: Vector,
        length: Scalar,
        anew: Scalar,
        j: Scalar,
        block: Scalar,
    ) -> tuple[Vector, Scalar]:
        """Where a new block begins, a random vector orthogonal to the basis in place of w, and its norm."""
        if not self.restart:
            return w, length

        def draw(w: Vector, length: Scalar) -> tuple[Vector, Scalar]:
            return fresh(ops, basis, problem.operator.domain, self.seed + block, j + 1)

        return ops.branch(anew, draw, lambda w, length: (w, length), w, length)

    def observe(self, state: LanczosState) -> LanczosRow:
        last = state.steps - 1
        return LanczosRow(
            state.residual * state.scale,
            state.model * state.scale * state.scale / state.unit,
            state.alphas[last] * state.unit,
            state.betas[last] * state.unit,
        )

    def answer(self, ops: Backend, problem: LinearProblem, state: LanczosState) -> Vector:
        if not self.keep:
            raise ValueError("Lanczos with keep=False has no basis to make an answer of; use lg.krylov(keep=False).")
        if problem.host:
            return conjugate_gradient_iterate(problem, state)
        return ops.call(conjugate_gradient_iterate, problem, state)
