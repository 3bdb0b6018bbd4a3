"""Trust-region steps from a Lanczos process: min 1/2 x.A x - b.x over ||x||_2 <= radius, A symmetric of any sign.

Gould, Lucidi, Roberts and Toint, *Solving the trust-region subproblem using the
Lanczos method* (1999). Every step adds a vector to the basis Q and solves the
same problem for the tridiagonal T = Q^T A Q, hard case included
(:func:`~linop_gn.lanczos.tridiagonal.trust_region`). The residual of
(A + lambda I) x = b is the last beta times the last entry of T's solution.

What differs from the paper, and from SciPy's ``trust-krylov``:

* The paper begins with conjugate gradients and turns to the Lanczos process when
  they break down or leave the region. Here it is the Lanczos process from the
  start: inside the region the two give the same iterates for the same products,
  and there is no breakdown to turn at, where digits would be lost.
* The basis is kept and orthogonal, and x one combination of it: there is no
  second pass, and another radius takes no product (:meth:`GLTR.again`).
* b may have no part in eigenvectors of negative curvature. Where b's Krylov space
  is invariant and A is not known to be positive semi-definite, the process goes on
  from a random vector orthogonal to it (``explore``), as the paper suggests. With
  probability one that vector has a part in every eigenvector left, so that its
  block, run until it is invariant too, holds the lowest eigenvalue of all that b
  leaves out. Then exploring is over; earlier, where a bound tells that nothing lies
  below -lambda (:meth:`~linop_gn.lanczos.process.Lanczos.explored`).
* ``CONVERGED`` is a fact: where rounding, up to a few eps ||A|| ||x||, may have
  taken the residual of T beyond the tolerance, one product recomputes it from x.
* No preconditioner: it would change the norm of the region and every inner
  product of the process. :class:`~linop_gn.Steihaug` takes one.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from ..operators.base import LinearOperator
from ..protocols import Array, Backend, Scalar, Vector
from ..records import record, static
from ..run.status import Code, alike, verdict, where_new
from ..solvers.base import Cost, Solver, bytes_each
from ..solvers.options import at_limit, check_region, unfit_status
from ..solvers.problem import LinearProblem
from .process import Lanczos, not_definite
from .state import LanczosState, rounding, total
from .tridiagonal import filled, spectrum, trust_region

__all__ = ["GLTR", "GLTRRow", "GLTRState"]


class GLTRState(NamedTuple):
    """h, multiplier, residual and rate are in the units of the Lanczos process."""

    lanczos: LanczosState
    h: Array
    multiplier: Scalar
    residual: Scalar
    rate: Scalar
    """The model over ||h||."""
    length: Scalar
    """||h||."""
    active: Scalar
    """Whether the step is on the boundary."""
    checking: Scalar
    """Whether the next product is spent on x, to recompute the residual."""
    goal: Scalar
    """What the recomputed residual is held to."""
    good: Scalar
    """The status of an answer inside that is found to hold."""
    status: Scalar
    steps: Scalar
    products: Scalar


class GLTRRow(NamedTuple):
    """||b - (A + multiplier I) x||, 1/2 x.A x - b.x, the multiplier, and ||x||, at each step."""

    residual: Scalar
    model: Scalar
    multiplier: Scalar
    norm: Scalar


@record
class GLTR(Solver):
    """The generalised Lanczos trust-region method.

    Parameters
    ----------
    radius
        Of the region ||x||_2 <= radius; infinity is none, for operators that are positive definite.
    rtol, atol
        Converged when ||b - (A + lambda I) x|| <= max(rtol ||b||, atol), with the multiplier lambda >= 0 of x.
        For b = 0, when exploring, ||A|| ||x|| stands for ||b||. The status is then ``BOUNDARY`` on the boundary of
        the region; inside ``CONVERGED`` where A is known to have no negative curvature (it is positive semi-definite,
        or was explored), else ``UNEXPLORED``. Inside, where rounding may have hidden that the tolerance is not met,
        one more product finds out: ``STAGNATED`` if it is not. With ``rtol=0`` and ``atol=0`` the run ends where the
        Krylov space does, inside the region with the status ``INVARIANT``, or ``UNEXPLORED``.
    max_steps
        Limit on steps, and on the vectors kept: memory for max_steps + 1. None means min(n, 100).
    steps
        Run exactly so many steps; stops earlier only where the space is invariant.
    explore
        Whether to look for negative curvature that b has no part in, where the operator is not known to be positive
        semi-definite. False: never; a success says nothing of what lies outside of b's Krylov space. True: whatever
        the tolerance, the run goes on to the end of that space (if b is zero, there is none), and then from a random
        vector orthogonal to it. With probability one, a random vector has a part in every eigenvector left, so that
        its block holds the lowest eigenvalue left: one vector decides, however often that eigenvalue occurs. The run
        ends with that block, or where no eigenvalue lies below -(lambda + rtol ||A||) with a probability of 1 - 1e-6.
        A success is then the minimiser over the whole ball, to the tolerance. It takes a product for each dimension of
        b's Krylov space, and one more for each distinct eigenvalue left, at most; at ``max_steps`` the status is
        ``MAX_STEPS``. None, the default: as True where no tolerance is given (``rtol=0`` and ``atol=0``, or
        ``steps``), else as False.
    reorthogonalise
        ``"selective"``, ``"full"`` or ``"none"``, as in :class:`~linop_gn.Lanczos`; ``"none"`` explores nothing.
    seed
        Of the random vector for ``explore``.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Diagonal(np.array([-2.0, 1.0, 3.0]), psd=False)
    >>> lg.solve(A, np.array([0.0, 1.0, 1.0]), lg.GLTR(radius=1.0, rtol=1e-10, explore=True))
    GLTR: boundary after 3 steps, 3 products; residual ...
    The step reached the trust-region boundary.
    """

    radius: Scalar = 1.0
    rtol: Scalar = 1e-5
    atol: Scalar = 0.0
    max_steps: int | None = static(default=None)
    steps: int | None = static(default=None)
    explore: bool | None = static(default=None)
    reorthogonalise: str = static(default="selective")
    seed: int = static(default=0)

    symmetric: ClassVar[bool] = True
    supports: ClassVar[frozenset[str]] = frozenset({"report"})
    solves_system: ClassVar[bool] = False  # on the boundary

    def __post_init__(self) -> None:
        check_region(self)
        Lanczos(1, self.reorthogonalise, True, False, self.seed)  # looks at them
        if self.explore and self.reorthogonalise == "none":
            raise ValueError("GLTR: explore=True needs an orthogonal basis: reorthogonalise='selective' or 'full'.")

    def cost(self, operator: LinearOperator, steps: int) -> Cost:
        n = operator.domain.size
        k = max(1, min(self.planned(steps), n))
        made = Lanczos(k, self.reorthogonalise).cost(operator, steps)
        room = Lanczos(self._room(n), self.reorthogonalise).cost(operator, steps).memory  # taken at the start
        checked = self.steps is None and bytes_each(operator) < 8  # rounding may hide whether it has converged
        note = f"{k} steps; another radius is free"
        return made._replace(route=self.title, products=made.products + checked, memory=room, note=note)

    def limit(self, problem: LinearProblem) -> int:
        """The number of steps that a run may take."""
        return self._process(problem).limit(problem)

    def _process(self, problem: LinearProblem) -> Lanczos:
        explore = self.explore is not False and not problem.operator.psd and self.reorthogonalise != "none"
        return Lanczos(self._room(problem.rhs.shape[0]), self.reorthogonalise, True, explore, self.seed)

    def _room(self, n: int) -> int:
        return max(1, self.planned(min(n, 100)))

    def init(self, ops: Backend, problem: LinearProblem) -> GLTRState:
        process = self._process(problem)
        inner = process.init(ops, problem)
        zero = ops.scalar(0.0, problem.rhs)
        running, nothing = inner.status == Code.RUNNING, inner.status == Code.CONVERGED
        small = running & (inner.norm <= self._threshold(ops, inner, 0.0, 0.0)) & self._unasked(process, 0.0)
        status = verdict(
            ops,
            inner.status,
            (ops.logical_not(self.radius > zero), Code.NONFINITE_INPUT),
            (small | nothing, Code.CONVERGED if problem.operator.psd else Code.UNEXPLORED),
            (running & (self.max_steps == 0 or self.steps == 0), at_limit(self)),
        )
        return GLTRState(
            lanczos=inner,
            h=ops.table(process.limit(problem), zero),
            residual=inner.norm + 0.0,
            **alike("multiplier rate length goal", zero),
            **alike("active checking", ops.scalar(False, problem.rhs)),
            good=ops.scalar(Code.CONVERGED, problem.rhs),
            status=status,
            steps=inner.steps,
            products=inner.products,
        )

    def _threshold(self, ops: Backend, inner: LanczosState, length: Scalar, promised: Scalar) -> Scalar:
        if self.steps is not None:
            return -1.0 + 0.0 * inner.norm
        size = ops.where(inner.norm > 0, inner.norm, inner.size * length)
        return ops.maximum(self.rtol * size, ops.divide(self.atol, inner.scale))

    def _tolerant(self) -> Any:
        """Whether there is a tolerance."""
        return self.steps is None and (self.rtol > 0) | (self.atol > 0)

    def _unasked(self, process: Lanczos, promised: Scalar) -> Any:
        """Whether a run may end before it has explored."""
        return not process.restart or (self.explore is None and self._tolerant())

    def step(self, ops: Backend, problem: LinearProblem, s: GLTRState) -> GLTRState:
        process, before = self._process(problem), s.lanczos
        running = s.status == Code.RUNNING
        checking = running & s.checking
        going = running & ops.logical_not(checking)

        def solution() -> Vector:
            return ops.combine(before.basis, s.h, before.steps)

        product, true = process.multiplied(ops, problem, before, checking, solution, s.multiplier)
        inner = before._replace(status=ops.where(going, before.status, Code.COMPLETED))
        inner = process.follow(ops, problem, inner, product)
        products, status = before.products + running, ops.where(going, inner.status, before.status)
        inner = inner._replace(products=products, status=status)
        fresh = going & (inner.steps > before.steps)
        s = self._judge(ops, problem, s._replace(lanczos=inner, checking=checking), (fresh, going), True)
        known = checking & ops.isfinite(true)
        return s._replace(
            residual=ops.where(known, true, s.residual),
            checking=s.checking & ops.logical_not(checking),
            status=verdict(
                ops,
                s.status,
                (checking & ops.logical_not(known), Code.NONFINITE),
                (checking & (true <= s.goal), s.good),
                (checking, Code.STAGNATED),
            ),
        )

    def again(self, ops: Backend, problem: LinearProblem, state: GLTRState) -> GLTRState:
        """The state of a run with this method's radius, from that of a run with another one: no product is taken.

        Its status is ``RUNNING`` where the basis does not hold the answer to the tolerance and has room for more, and
        ``COMPLETED`` where the tolerance seems to be met and a product would be needed to know.
        """
        known = state.lanczos.steps > 0
        return self._judge(ops, problem, state, (known, known), False)

    def _judge(
        self, ops: Backend, problem: LinearProblem, s: GLTRState, new: tuple[Scalar, Scalar], verify: bool
    ) -> GLTRState:
        """Solve for T, and say what that means for the run; ``new``: whether T is, and whether the status may be."""
        inner, (fresh, running) = s.lanczos, new
        xp, eps = ops.small_namespace(), ops.eps(problem.rhs)
        T, count = (inner.alphas, inner.betas), ops.maximum(inner.steps, 1)
        radius = ops.small(self.radius, problem.rhs) * (inner.ascale / inner.scale)
        S = spectrum(ops, T, count)
        found = trust_region(ops, S, inner.norm, xp.asarray(radius)[None], eps)
        h, unbounded = found.h[:, 0], ops.item(found.unbounded[0]) > 0
        length, rate, multiplier = (ops.item(part[0]) for part in (found.length, found.rate, found.multiplier))
        taken = fresh & ops.logical_not(unbounded)
        at_end = xp.arange(h.shape[0]) == count - 1
        beta = ops.lookup(inner.betas, count - 1)
        last = ops.item(xp.sum(xp.where(at_end, h, 0.0)))
        residual = abs(beta * last)
        active = ops.item(found.active[0]) > 0

        process, closed = self._process(problem), inner.status == Code.INVARIANT
        known = process.explored(ops, inner, S, found.multiplier, self.rtol)
        explored = problem.operator.psd | (ops.item(known[0]) > 0)
        promised = -(rate * inner.scale) * (length * ops.divide(inner.scale, inner.ascale))
        threshold = self._threshold(ops, inner, length, promised)
        going = (inner.status == Code.RUNNING) | (inner.status == Code.COMPLETED)
        ended = (closed | ((residual <= threshold) & going)) & (explored | self._unasked(process, promised))
        # Rounding comes on top of the residual: of a singular system it may be all there is. Without a tolerance the
        # space has to be exhausted, and rounding to be no large part of b.
        goal = ops.where(threshold > 0, threshold, eps**0.5 * inner.norm)
        good = ops.where(self._tolerant(), Code.CONVERGED, Code.INVARIANT)
        good = ops.where(explored, good, Code.UNEXPLORED)
        unsure = residual + rounding(eps, inner, 0.0, length) > goal
        checking = running & ended & unsure & ops.logical_not(active) & (self.steps is None)
        fits, unfit = unfit_status(ops, length, inner.scale / inner.ascale, problem.rhs)
        out = closed | (inner.status == Code.COMPLETED)
        status = verdict(
            ops,
            inner.status,
            (fresh & unbounded, not_definite(problem.operator)),
            (active & (ended | (out & (self.steps is not None))), Code.BOUNDARY),
            (ended & unsure, Code.RUNNING if verify and self.steps is None else Code.COMPLETED),
            (ended & fits, good),
            (ended, unfit),
            (out, at_limit(self)),
        )
        checking = checking & (status == Code.RUNNING)
        good = ops.where(fits, good, unfit)
        h = xp.where(xp.asarray(taken), filled(xp, h[:, None], s.h.shape[0])[:, 0], s.h)
        residual = total(inner, residual, length)
        return s._replace(
            **where_new(ops, taken, s, multiplier=multiplier, residual=residual, rate=rate, length=length),
            **where_new(ops, taken, s, active=active, goal=goal, good=good),
            **where_new(ops, running, s, status=status),
            h=h,
            checking=checking | s.checking,
            steps=inner.steps,
            products=inner.products,
        )

    def observe(self, state: GLTRState) -> GLTRRow:
        inner = state.lanczos
        unit = inner.scale / inner.ascale
        return GLTRRow(
            state.residual * inner.scale,
            (state.rate * inner.scale) * (state.length * unit),
            state.multiplier * inner.ascale,
            state.length * unit,
        )

    def answer(self, ops: Backend, problem: LinearProblem, state: GLTRState) -> Vector:
        inner, unit = state.lanczos, state.lanczos.scale / state.lanczos.ascale
        x = ops.combine(inner.basis, ops.leading(state.h, inner.steps), inner.steps)
        # ||x|| is ||h|| as far as the basis is orthonormal: without reorthogonalisation, not at all.
        square = ops.dot(x, x)
        share = ops.divide(ops.sqrt(square), state.length)
        beyond = state.active & (share > 1.0) & ops.isfinite(share) & (square > ops.eps(x) ** 4)  # no square is lost
        return ops.scale(unit * ops.where(beyond, ops.divide(1.0, share), 1.0), x)
