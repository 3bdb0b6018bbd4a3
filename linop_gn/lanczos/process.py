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
basis, with a zero in T, and finds eigenvectors that b is orthogonal to. b is
divided by a power of two, and so is A where its products are far from 1: no
inner product over- or underflows. If <q_0, A q_1> is far from beta_0, or inner
products of A q_j with q_0 .. q_(j-2) are far from 0, the operator is not
symmetric, and the status says so (``NOT_SYMMETRIC``).

``scipy.sparse.linalg.eigsh`` restarts such a process implicitly, for a few
eigenvalues; here it is kept for solving with.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

from ..arguments import whole
from ..draws import check_seed
from ..operators.base import LinearOperator
from ..protocols import Array, Backend, Scalar, Vector
from ..records import record, static
from ..run.status import Code, alike, verdict, where_new
from ..solvers.base import Cost, Solver, bytes_of, each
from ..solvers.options import scale_of, scaled_rhs
from ..solvers.problem import LinearProblem
from .orthogonal import LEVEL, fresh, levels, orthogonalise
from .state import LanczosState, conjugate, conjugate_gradient_iterate, in_basis, rounding, total
from .tridiagonal import Spectrum

__all__ = ["BasisProblem", "Lanczos", "LanczosRow", "not_definite"]


WAYS = ("none", "selective", "full")
CHANCE = 1e-6
"""The probability, at most, that a random unit vector's part in an eigenvector is below CHANCE / sqrt(n)."""


class LanczosRow(NamedTuple):
    """The newest entries of T; ||b - A x|| and 1/2 x.A x - b.x of the iterate of conjugate gradients."""

    residual: Scalar
    model: Scalar
    alpha: Scalar
    beta: Scalar


@record
class BasisProblem(LinearProblem):
    """A problem of which the basis is wanted, without a solution. The run continues the state ``begun``, if any."""

    begun: Any = None


@record
class Lanczos(Solver):
    """``steps`` steps of the Lanczos process; :func:`linop_gn.krylov` is how to use it.

    In :func:`linop_gn.solve` its answer is the iterate of conjugate gradients, without their loss of conjugacy; for
    an indefinite operator, the last iterate before a pivot that was not positive. It has no tolerance.

    Parameters
    ----------
    steps
        Limit on the vectors in the basis; with reorthogonalisation min(steps, n), without min(steps, max(10 n, 100)).
    reorthogonalise
        ``"selective"`` (default), ``"full"`` or ``"none"``.
    keep
        Whether the basis is kept. If not, two vectors are, and a second pass makes the others again; needs
        ``reorthogonalise="none"``.
    restart
        Whether to go on from a random vector where the space is invariant; that of a zero b is.
    seed
        Seed of that vector.

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

    symmetric: ClassVar[bool] = True
    supports: ClassVar[frozenset[str]] = frozenset({"report"})  # one basis for each right-hand side
    solves_system: ClassVar[bool] = False  # derivatives by one more solve need a converged answer

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", whole("Lanczos", "steps", self.steps, 1))
        check_seed("Lanczos", self.seed)
        if self.reorthogonalise not in WAYS:
            raise ValueError(f"Lanczos: reorthogonalise must be one of {WAYS}, got {self.reorthogonalise!r}.")
        if not self.keep and (self.reorthogonalise != "none" or self.restart):
            raise ValueError(
                "Lanczos: keep=False keeps no vectors to orthogonalise against; it needs reorthogonalise='none' and "
                "restart=False."
            )

    def cost(self, operator: LinearOperator, steps: int) -> Cost:
        n = operator.domain.size
        k = min(self.steps, n)
        if not self.keep:
            return Cost("krylov, basis anew", 2 * k - 1, bytes_of(operator, 9), 10.0 * n * k, "two passes")
        passes = {"none": 0, "selective": 1, "full": 2}[self.reorthogonalise]
        flops = 10.0 * n * k + 2.0 * passes * n * k * k + 4.0 * k**3
        memory = bytes_of(operator, k + each(operator, 3, 7))
        return Cost("krylov, basis kept", k, memory, flops, "every damping and radius")

    def limit(self, problem: LinearProblem) -> int:
        """The number of steps that a run may take."""
        n: int = problem.rhs.shape[0]
        return min(self.steps, max(10 * n, 100) if self.reorthogonalise == "none" else n)

    def init(self, ops: Backend, problem: LinearProblem) -> LanczosState:
        if isinstance(problem, BasisProblem) and problem.begun is not None:
            return resume(ops, problem, problem.begun, self)
        b = problem.rhs
        if len(b.shape) != 1 or problem.x0 is not None:
            raise ValueError(
                "a Krylov space belongs to one right-hand side and starts at zero: give b as a tree or flat (n,), one "
                "column at a time, and no x0 (solve for the correction with the right-hand side b - A x0 instead)."
            )
        capacity = self.limit(problem)
        r, scale, _, _, finite = scaled_rhs(ops, b)
        norm = ops.sqrt(ops.dot(r, r))
        status = verdict(
            ops,
            ops.scalar(Code.RUNNING, b),
            (ops.logical_not(finite), Code.NONFINITE_INPUT),
            (norm == 0, Code.CONVERGED),
        )
        basis, length, nothing = ops.basis(b, capacity + 1 if self.keep else 2), norm, False
        if self.restart:  # of a zero b, the first block is empty
            space, nothing = problem.operator.domain, finite & (norm == 0)
            r, length = ops.branch(
                nothing, lambda r, _: fresh(ops, basis, space, self.seed + 1, 0), lambda r, norm: (r, norm), r, norm
            )
            status = ops.where(nothing, Code.RUNNING, status)
        basis = ops.store(basis, 0, ops.divide(1.0, length), r)
        if not self.keep:
            basis = ops.store(basis, 1, 0.0, r)
        zero, none = ops.scalar(0.0, b), ops.scalar(0, b)
        watched = self.watched(capacity)
        return LanczosState(
            basis=basis,
            alphas=ops.table(capacity, zero),
            betas=ops.table(capacity, zero),
            omega=ops.write(ops.table(watched, zero), 0, 1.0),
            omega_before=ops.table(watched, zero),
            scale=scale,
            definite=ops.scalar(True, b),
            restarts=none + nothing,
            status=status,
            **alike("norm forward residual", norm),
            **alike("ascale pivot", zero + 1.0),
            **alike("size breadth ahead square model removed", zero),
            **alike("again positive first reorthogonalised claim steps products", none),
        )

    def watched(self, capacity: int) -> int:
        """The length of ``omega``."""
        return capacity + 1 if self.reorthogonalise == "selective" else 1

    def _at(self, index: Scalar) -> Scalar:
        return index if self.keep else index % 2

    def step(self, ops: Backend, problem: LinearProblem, s: LanczosState) -> LanczosState:
        if isinstance(problem, BasisProblem) or not self.keep:
            return self.follow(ops, problem, s, problem.operator.apply(self.latest(ops, problem, s)))
        running = s.status == Code.RUNNING
        checking = running & (s.claim != Code.RUNNING)
        product, true = self.multiplied(ops, problem, s, checking, lambda: in_basis(ops, problem, s), 0.0)
        before = s._replace(status=ops.where(checking, Code.COMPLETED, s.status))
        after = self.follow(ops, problem, before, product)
        code = ops.where(checking, s.claim, after.status)
        closed = running & (code == Code.INVARIANT)
        ended = closed | (running & (code == Code.COMPLETED))
        known = ops.isfinite(true)
        residual = ops.where(checking & known, true, after.residual)

        # Whether rounding may have taken the residual of T away from that of x.
        eps, length = ops.eps(problem.rhs), ops.sqrt(abs(after.square))
        unsure = ended & ops.logical_not(checking)
        residual = ops.where(unsure, total(after, residual, length), residual)
        unsure = unsure & (rounding(eps, after, 0.0, length) > eps**0.5 * ops.maximum(s.norm, residual))
        indefinite = not_definite(problem.operator)
        status = verdict(
            ops,
            code,
            (checking & ops.logical_not(known), Code.NONFINITE),
            (unsure, Code.RUNNING),
            (closed & ops.logical_not(after.definite) & (residual > eps**LEVEL * s.norm), indefinite),
            (closed & (residual > s.norm), Code.STAGNATED),
        )
        claim = ops.where(unsure, code, 0 * s.claim)
        return after._replace(status=status, claim=claim, residual=residual, products=s.products + running)

    def multiplied(
        self, ops: Backend, problem: LinearProblem, s: LanczosState, checking: Scalar, solution: Any, shift: Scalar
    ) -> tuple[Vector, Scalar]:
        """(A q_j, 0); where ``checking``, with x = solution(), (A x, ||b - (A + shift I) x||) in the state's units."""
        q = self.latest(ops, problem, s)
        (v,) = ops.branch(checking, lambda q: (solution(),), lambda q: (q,), q)
        product = problem.operator.apply(v)

        def look(product: Vector) -> tuple[Scalar]:
            r = ops.axpby(ops.divide(1.0, s.scale), problem.rhs, ops.divide(-1.0, s.ascale), product)
            r = ops.axpy(-shift, v, r)
            return (ops.sqrt(ops.dot(r, r)),)

        (true,) = ops.branch(checking, look, lambda product: (0.0 * s.norm,), product)
        return product, true

    def latest(self, ops: Backend, problem: LinearProblem, s: LanczosState) -> Vector:
        """q_j, the vector to multiply next; the last one after the end."""
        return ops.row(s.basis, self._at(ops.minimum(s.steps, self.limit(problem) - 1)))

    def follow(self, ops: Backend, problem: LinearProblem, s: LanczosState, w: Vector) -> LanczosState:
        """The state after a step with w = A q_j. Consumes w."""
        eps, n, limit = ops.eps(problem.rhs), problem.rhs.shape[0], self.limit(problem)
        running, basis, no = s.status == Code.RUNNING, s.basis, ops.logical_not
        j = ops.minimum(s.steps, limit - 1)
        before = ops.maximum(j - 1, 0)
        beta = ops.where(j > 0, ops.lookup(s.betas, before), 0.0)
        q, older = self.latest(ops, problem, s), ops.row(basis, self._at(j + 1 if not self.keep else before))
        (ascale,) = ops.branch(j == 0, lambda w: (scale_of(ops, w, times=n**0.5),), lambda w: (s.ascale,), w)
        (skewness,) = ops.branch(  # <q_0, A q_1> - beta_0
            j == 1, lambda q, w: (abs(ops.dot(q, w) / ascale - beta),), lambda q, w: (0.0 * beta,), older, w
        )
        w = ops.axpby(-beta, older, ops.divide(1.0, ascale), w)
        alpha = ops.dot(q, w)
        w = ops.axpy(-alpha, q, w)
        length = ops.sqrt(ops.dot(w, w))
        size = ops.maximum(s.size, ops.maximum(abs(alpha) + beta, beta + length))

        omega, against, again = s.omega, j + 1 if self.reorthogonalise == "full" else 0 * j, 0 * j
        if self.reorthogonalise == "selective":
            omega, against, again = levels(ops, s, j, alpha, (beta, length), eps * size)
        w, length, removed = orthogonalise(ops, basis, w, length, against > 0, against)
        skewness = ops.maximum(skewness, removed)

        sound = running & ops.isfinite(alpha + length)
        skew = sound & (skewness > eps ** (1 / 3) * size)
        counted = sound & no(skew)
        whole = (j + 1 >= n) & (self.reorthogonalise != "none")
        small = length <= 10.0 * eps * size
        closed = counted & (small | whole)
        anew = closed & no(whole) & (j + 1 < limit) & self.restart
        if self.restart:  # a random vector orthogonal to the basis in place of w
            space, seed = problem.operator.domain, self.seed + 1 + s.restarts
            w, length = ops.branch(
                anew, lambda w, _: fresh(ops, basis, space, seed, j + 1), lambda w, length: (w, length), w, length
            )

        index = self._at(j + 1)
        row = ops.select(no(counted), ops.row(basis, index), w)
        basis = ops.store(basis, index, ops.where(counted, ops.divide(1.0, length), 1.0), row)
        beta_next = ops.where(anew, 0.0, length)
        alphas = ops.write(s.alphas, j, ops.where(counted, alpha, ops.lookup(s.alphas, j)))
        betas = ops.write(s.betas, j, ops.where(counted, beta_next, ops.lookup(s.betas, j)))

        steps = s.steps + counted
        status = verdict(
            ops,
            s.status,
            (running & no(sound), Code.NONFINITE),
            (skew, Code.NOT_SYMMETRIC),
            (closed & no(anew), Code.INVARIANT),
            (running & (steps >= limit), Code.COMPLETED),
        )
        removed = ops.sqrt(s.removed * s.removed + removed * removed)
        return s._replace(
            **conjugate(ops, s, j, alpha, (beta, beta_next), counted, size),
            **where_new(ops, counted & (s.restarts == 0), s, first=steps),
            **where_new(ops, counted, s, ascale=ascale, size=size, removed=removed),
            **where_new(ops, running, s, omega=omega, omega_before=s.omega, again=again),
            basis=basis,
            alphas=alphas,
            betas=betas,
            status=status,
            steps=steps,
            restarts=s.restarts + anew,
            reorthogonalised=s.reorthogonalised + (running & (against > 0)),
            products=s.products + running,
        )

    def steps_ahead(self, problem: LinearProblem, s: LanczosState) -> int | None:
        if self.reorthogonalise == "selective":  # what the next step does is decided by the numbers of this one
            return None
        return self.limit(problem) - 1 - s.steps if s.steps > 1 and s.claim == Code.RUNNING else 0

    def ahead(self, ops: Any, problem: LinearProblem, s: LanczosState, steps: int) -> LanczosState:
        basis, beta = s.basis if self.keep else ops.copy(s.basis), float(s.betas[s.steps - 1])
        for j in range(s.steps, s.steps + steps):
            q, older = (ops.row(basis, self._at(i)) for i in (j, j - 1))
            w = ops.axpby(-beta, older, 1.0 / s.ascale, problem.operator.apply(q))
            w = ops.axpy(-ops.dot(q, w), q, w)
            beta = ops.sqrt(ops.dot(w, w))
            if self.reorthogonalise == "full":
                w = ops.deflate(basis, ops.project(basis, w, j + 1), w, j + 1)
                beta = ops.sqrt(ops.dot(w, w))
            basis = ops.store(basis, self._at(j + 1), 1.0 / beta, w)
        return s if self.keep else s._replace(basis=basis)

    def explored(self, ops: Backend, s: LanczosState, S: Spectrum, multiplier: Array, rtol: Scalar) -> Array:
        """Whether A has no eigenvalue below -(multiplier + rtol ||A||), for m multipliers, but for a chance of CHANCE.

        S is the spectrum of T, and T + multiplier I positive semi-definite. The second block begins with a random q,
        which has a part in every eigenvector that b's block leaves out: run to its end, it holds the lowest eigenvalue
        left. Before its end, its next vector is phi(A) q, of norm one, for a polynomial phi whose zeros are the block's
        Ritz values. Where q has a part c in an eigenvector of mu < low, below all zeros, |c phi(low)| <= |c phi(mu)|
        <= 1: so that mu is not there once |phi(low)| > 1 / |c|.
        """
        xp, n, eps = ops.small_namespace(), s.basis.shape[1], ops.eps(s.basis)
        low = -multiplier - ops.maximum(rtol, 4.0 * eps) * s.size
        row = xp.arange(S.values.shape[0])
        ours = (row >= s.first) & (row < s.steps)
        betas = xp.where(ours, ops.leading(s.betas, ops.maximum(s.steps, 1)), 1.0)
        least = xp.finfo(betas.dtype).tiny
        shares = xp.sum(xp.where(ours[:, None], S.vectors**2, 0.0), axis=0)
        gaps = xp.log(xp.maximum(S.values[:, None] - low, least))
        phi = shares @ gaps - xp.sum(xp.log(xp.maximum(betas, least)))
        second = (s.restarts == 1) & ((phi > math.log(n**0.5 / CHANCE)) | (s.status == Code.INVARIANT))
        return second | (s.restarts > 1) | ((s.steps >= n) & (self.reorthogonalise != "none"))

    def observe(self, state: LanczosState) -> LanczosRow:
        last = state.steps - 1
        return LanczosRow(
            state.residual * state.scale,
            state.model * state.scale * state.scale / state.ascale,
            state.alphas[last] * state.ascale,
            state.betas[last] * state.ascale,
        )

    def answer(self, ops: Backend, problem: LinearProblem, state: LanczosState) -> Vector:
        if not self.keep:
            raise ValueError("Lanczos with keep=False has no basis to make an answer of; use lg.krylov(keep=False).")
        if problem.host:
            return conjugate_gradient_iterate(problem, state)
        return ops.call(conjugate_gradient_iterate, problem, state)


def not_definite(operator: LinearOperator) -> int:
    """The status for a pivot that is not positive: of a semi-definite operator it is rounding."""
    code: int = Code.STAGNATED if operator.psd else Code.NEGATIVE_CURVATURE
    return code


def resume(ops: Backend, problem: LinearProblem, s: LanczosState, method: Lanczos) -> LanczosState:
    """``s`` with room for ``method``'s steps, restarted if the space was invariant."""
    n, capacity, xp = problem.rhs.shape[0], method.limit(problem), ops.small_namespace()

    def sized(table: Array, size: int) -> Array:
        return xp.concat([table[:size], xp.zeros(max(0, size - table.shape[0]), dtype=table.dtype)])

    def renew(row: Vector) -> tuple[Vector, Scalar]:
        return fresh(ops, basis, problem.operator.domain, method.seed + 1 + s.restarts, s.steps)

    basis = ops.grow(s.basis, *((capacity + 1, s.steps + 1) if method.keep else (2, 2)))
    ended = (s.status == Code.INVARIANT) | (s.status == Code.CONVERGED)  # or b is zero
    anew = ended & (s.steps < n) & method.keep
    if method.keep:
        row, length = ops.branch(anew, renew, lambda row: (row, 1.0 + 0.0 * s.norm), ops.row(basis, s.steps))
        basis = ops.store(basis, s.steps, ops.divide(1.0, length), row)
    betas, last = sized(s.betas, capacity), ops.maximum(s.steps - 1, 0)
    betas = ops.write(betas, last, ops.where(anew, 0.0, ops.lookup(betas, last)))
    more = (s.steps < capacity) & ((s.status == Code.COMPLETED) | anew)
    omega, omega_before = (sized(part, method.watched(capacity)) for part in (s.omega, s.omega_before))
    return s._replace(
        basis=basis,
        alphas=sized(s.alphas, capacity),
        betas=betas,
        omega=omega,
        omega_before=omega_before,
        again=ops.maximum(s.again, ops.where(anew, s.steps, 0)),
        restarts=s.restarts + anew,
        status=ops.where(more, Code.RUNNING, s.status),
    )
