"""Trust regions: the model's minimum, or a step that makes it small, over ||d|| <= radius.

================== ============================================== ============================================
:class:`TrustRegion`  the minimum, by GLTR: a Lanczos basis grows     another radius goes on with the same basis
:class:`Krylov`       the minimum in a basis of k vectors             another radius or damping takes no product
:class:`Dogleg`       along the Cauchy point to the Newton step       another radius takes no product
:class:`Steihaug`     conjugate gradients up to the boundary          another radius begins anew
================== ============================================== ============================================
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from ...arguments import require_instance, whole
from ...lanczos.answers import minimise, solve_shifted
from ...lanczos.gltr import GLTR, GLTRState
from ...lanczos.process import BasisProblem, Lanczos
from ...lanczos.state import LanczosState
from ...operators.base import LinearOperator
from ...protocols import Backend, Scalar, Vector
from ...records import record, replace, static
from ...run.status import Code, is_one_of, verdict
from ...solvers import steihaug
from ...solvers.base import Solver
from ...solvers.direct import Cholesky
from ...solvers.options import require_inner
from ...solvers.problem import LinearProblem
from ...solvers.served import inner_solve
from .base import Descent, Model, Noise, Trial, idle, solved_as
from .solve import Forced, forced, require_forcing

__all__ = ["Dogleg", "Krylov", "Steihaug", "TrustRegion"]

_INSIDE = [Code.CONVERGED, Code.INVARIANT, Code.UNEXPLORED, Code.STAGNATED]


def _system(ops: Backend, model: Model) -> LinearProblem:
    return LinearProblem(model.operator, ops.scale(-1.0, ops.copy(model.gradient)), None, None)


@record
class _Begun(LinearProblem):
    """A problem of which a run is on its way."""

    begun: Any = None


@record
class _Again(GLTR):
    """GLTR that goes on from the run of another radius, and further where rounding may hide what is promised.

    A step along the stiff directions alone may meet the tolerance, and promise so little that nobody can tell whether
    it is kept: all that the others promise would be lost with it. Where nothing is promised, the curvature is explored.
    """

    little: Scalar = 0.0
    """A decrease that rounding may hide."""
    nothing: Scalar = 0.0
    """A decrease that it does hide."""

    def init(self, ops: Backend, problem: LinearProblem) -> GLTRState:
        state: GLTRState | None = problem.begun  # type: ignore[attr-defined]
        return super().init(ops, problem) if state is None else self.again(ops, problem, state)

    def _threshold(self, ops: Backend, inner: LanczosState, length: Scalar, promised: Scalar) -> Scalar:
        threshold = super()._threshold(ops, inner, length, promised)
        return ops.where(promised > self.little, 1.0, ops.eps(inner.basis) ** 0.5) * threshold

    def _unasked(self, process: Lanczos, promised: Scalar) -> Any:
        return not process.restart or super()._unasked(process, promised) & (promised > self.nothing)


class Explored(NamedTuple):
    """GLTR's run so far."""

    run: GLTRState
    forced: Forced | None


@record
class TrustRegion(Descent):
    """The minimum of the model over ||d|| <= radius, for curvature of any sign, by :class:`~linop_gn.GLTR`.

    The basis of the point is kept: another radius is asked of it first, and more products are taken only where it does
    not hold the answer to the tolerance. Where less is promised than sqrt(eps) |f|, which rounding may hide, the
    tolerance is sqrt(eps) times as large. Where nothing is, to 4 round-offs, the curvature is explored, unless the
    solver has ``explore=False``: a saddle is left, and a success is a minimum as far as the solver's steps reach.

    Parameters
    ----------
    solver
        ``lg.GLTR(...)`` with its tolerance and limits; its radius is not used. ``explore=True`` explores at each point.
    forcing
        ``lg.EisenstatWalker()`` to choose ``rtol`` at each point; None keeps it.
    """

    solver: Any = GLTR(rtol=1e-2)
    forcing: Any = None

    level: ClassVar[str] = "radius"

    def __post_init__(self) -> None:
        require_instance("TrustRegion", self.solver, GLTR, "a solver lg.GLTR()", "For lg.Steihaug there is Steihaug().")
        require_forcing("TrustRegion", self.forcing)

    def check(self, operator: LinearOperator, level: Scalar) -> None:
        """Raise unless the curvature is symmetric, and the radius positive."""
        replace(self.solver, radius=level).check(operator)

    def _served(self, ops: Backend, model: Model, level: Scalar, run: Any, eta: Forced | None) -> tuple[_Again, _Begun]:
        eps, size, system = ops.eps(model.x), ops.maximum(model.value, -model.value), _system(ops, model)
        little = eps**0.5 * size
        options = {name: getattr(self.solver, name) for name in _OPTIONS}
        rtol = self.solver.rtol if eta is None else eta.eta
        solver = _Again(radius=level, rtol=rtol, little=little, nothing=Noise.of(ops, model).value, **options)
        return solver, _Begun(system.operator, system.rhs, None, None, begun=run)

    def query(self, ops: Backend, model: Model, before: Explored | None) -> tuple[Explored, Scalar]:
        """A run without a product."""
        eta = forced(ops, self.forcing, model, None if before is None else before.forced)
        solver, problem = self._served(ops, model, 1.0, None, None)
        return Explored(solver.init(ops, problem), eta), 0

    def step(self, ops: Backend, model: Model, kept: Explored, level: Scalar) -> Trial:
        """The minimum within this radius."""
        solver, problem = self._served(ops, model, level, kept.run, kept.forced)
        before = kept.run.products
        state = ops.iterate(solver, problem)
        row = solver.observe(state)
        d = solver.answer(ops, problem, state)
        # At its limit it may have met the tolerance, and not have explored all.
        met = (state.status == Code.MAX_STEPS) & (row.residual <= solver.rtol * model.gradient_norm)
        free = (met | is_one_of(state.status, _INSIDE)) & (row.norm < level)
        status = ops.where(free & (met | (state.status == Code.STAGNATED)), state.good, state.status)
        if solver.steps is None and (model.operator.psd or solver.explore is not False):  # explored, up to the boundary
            none = (status == Code.BOUNDARY) & (-row.model <= solver.nothing)
            status = ops.where(none, Code.INVARIANT, status)
        kept, spent = kept._replace(run=state), state.products - before
        return Trial(d, -row.model, status, kept, spent, free=free, left=row.residual, steps=state.steps)


_OPTIONS = ("atol", "max_steps", "steps", "explore", "reorthogonalise", "seed")


@record
class Steihaug(Descent):
    """Conjugate gradients that end at the boundary (:class:`~linop_gn.Steihaug`); ``solver``'s radius is not used."""

    solver: Any = steihaug.Steihaug(rtol=1e-2)

    level: ClassVar[str] = "radius"

    def __post_init__(self) -> None:
        require_instance("Steihaug", self.solver, steihaug.Steihaug, "a solver lg.Steihaug()", "See lg.descents.")

    def check(self, operator: LinearOperator, level: Scalar) -> None:
        """Raise unless the curvature is symmetric, and the radius positive."""
        replace(self.solver, radius=level).check(operator)

    def step(self, ops: Backend, model: Model, kept: Any, level: Scalar) -> Trial:
        """The end of the path within this radius."""
        found = inner_solve(ops, replace(self.solver, radius=level), _system(ops, model))
        free = found.status == Code.CONVERGED
        claims = (free & idle(model, found), Code.INNER_TOLERANCE), (free, solved_as(model))
        status = verdict(ops, found.status, *claims)
        spent = {"left": found.residual, "steps": found.steps}
        return Trial(found.x, -found.model, status, kept, found.products, free=free, **spent)


class _Space(NamedTuple):
    """A basis as :mod:`linop_gn.lanczos.answers` takes it."""

    operator: LinearOperator
    state: LanczosState
    start: Vector | None
    method: Lanczos


@record
class Krylov(Descent):
    """The model's minimum in the Krylov space of k vectors, within a radius or at a damping: k products for a point.

    Parameters
    ----------
    k
        Vectors in the basis; fewer where the space is invariant earlier.
    of
        ``"radius"`` or ``"damping"``: what the level is.
    reorthogonalise
        As in :class:`~linop_gn.Lanczos`.
    """

    k: int = static(default=20)
    of: str = static(default="radius")
    reorthogonalise: str = static(default="selective")

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", whole("Krylov", "k", self.k, 1))
        if self.of not in ("radius", "damping"):
            raise ValueError(f"Krylov: of must be 'radius' or 'damping', got {self.of!r}.")
        self._process()

    @property
    def level(self) -> str:  # type: ignore[override]
        """``of``."""
        return self.of

    def _process(self) -> Lanczos:
        return Lanczos(self.k, self.reorthogonalise)

    def check(self, operator: LinearOperator, level: Scalar) -> None:
        """Raise unless the curvature is symmetric."""
        self._process().check(operator)

    def query(self, ops: Backend, model: Model, before: Any) -> tuple[LanczosState, Scalar]:
        """The basis."""
        state = ops.iterate(self._process(), _basis(ops, model))
        return state, state.products

    def step(self, ops: Backend, model: Model, kept: LanczosState, level: Scalar) -> Trial:
        """The minimum in the space."""
        space = _Space(model.operator, kept, None, self._process())
        small, rtol = ops.small([1.0], model.x) * level, ops.eps(model.x) ** 0.5
        found = (minimise if self.of == "radius" else solve_shifted)(space, small, rtol, 0.0)
        d, code = ops.copy(found.x[:, 0]), ops.item(found.code[0])
        if self.of == "damping":  # solved in the space, that is
            code = ops.where(code == Code.CONVERGED, solved_as(model), code)
        damping_term = 0.0 if self.of == "radius" else 0.5 * level * ops.dot(d, d)
        predicted = damping_term - ops.item(found.model[0])
        bent = -2.0 * (predicted + ops.dot(model.gradient, d))
        free = is_one_of(code, _INSIDE) & (2.0 * damping_term <= bent)
        left = ops.item(found.residual[0])
        return Trial(d, predicted, code, kept, 0, damping_term, free, left)


def _basis(ops: Backend, model: Model) -> BasisProblem:
    return BasisProblem(model.operator, ops.scale(-1.0, ops.copy(model.gradient)))


class Bent(NamedTuple):
    """The two ends of the dogleg, and what the model says of them."""

    newton: Vector
    reach: Scalar
    """||newton||."""
    promise: Scalar
    """m(newton); 0 if it is of no use."""
    along: Scalar
    """g.newton."""
    curve: Scalar
    """g.G g."""
    across: Scalar
    """g.G newton."""


@record
class Dogleg(Descent):
    """From zero to the minimum along the gradient, from there to the Newton step (Powell, 1970).

    Where the curvature along the gradient is not positive, or the Newton step does not lower the model, the step is
    along the gradient.

    Parameters
    ----------
    solver
        Of G d = -g, once for each point.
    """

    solver: Solver = Cholesky()

    level: ClassVar[str] = "radius"

    def __post_init__(self) -> None:
        require_inner(self, self.solver)

    def check(self, operator: LinearOperator, level: Scalar) -> None:
        """Raise unless the solver takes the curvature."""
        self.solver.check(operator)

    def query(self, ops: Backend, model: Model, before: Any) -> tuple[Bent, Scalar]:
        """The Newton step, and the products of g with G."""
        g, found = model.gradient, inner_solve(ops, self.solver, _system(ops, model))
        Gg = model.operator.apply(g)
        reach = ops.sqrt(ops.dot(found.x, found.x))
        promise = ops.where(ops.isfinite(reach) & (found.model < 0), -found.model, 0.0)
        numbers = ops.dot(g, found.x), ops.dot(g, Gg), ops.dot(Gg, found.x)
        return Bent(found.x, reach, promise, *numbers), found.products + 1

    def step(self, ops: Backend, model: Model, kept: Bent, level: Scalar) -> Trial:
        """a g + b newton."""
        norm, square = model.gradient_norm, model.gradient_norm * model.gradient_norm
        bowl, useful = kept.curve > 0, kept.promise > 0
        cauchy = ops.where(bowl, ops.divide(square, kept.curve), 0.0)  # -cauchy g is the minimum along the gradient
        edge = ops.divide(level, norm)
        inside, beyond = (
            (useful | (norm == 0)) & (kept.reach <= level),
            ops.logical_not(bowl) | (cauchy * norm >= level),
        )
        # ||-c g + t (newton + c g)|| = level
        c = cauchy
        width = kept.reach * kept.reach + 2.0 * c * kept.along + c * c * square
        half, rest = -c * kept.along - c * c * square, ops.maximum(level * level - c * c * square, 0.0)
        root = ops.sqrt(ops.maximum(half * half + width * rest, 0.0))
        t = ops.where(half > 0, ops.divide(rest, half + root), ops.divide(root - half, width))
        t = ops.where(useful, ops.minimum(t, 1.0), 0.0)
        a = ops.where(inside, 0.0, ops.where(beyond, -ops.minimum(edge, ops.where(bowl, c, edge)), -(1.0 - t) * c))
        b = ops.where(inside, 1.0, ops.where(beyond, 0.0, t))
        newton = ops.mask(useful, kept.newton)
        d = ops.axpby(a, model.gradient, b, ops.copy(newton))
        energy = -2.0 * (kept.promise + kept.along)  # newton.G newton
        along, across = ops.where(useful, kept.along, 0.0), ops.where(useful, kept.across, 0.0)
        bend = a * a * kept.curve + 2.0 * a * b * across + b * b * ops.where(useful, energy, 0.0)
        predicted = -(a * square + b * along + 0.5 * bend)
        lost = ops.logical_not(ops.isfinite(kept.curve))
        status = verdict(ops, ops.scalar(Code.BOUNDARY, model.x), (lost, Code.NONFINITE), (inside, solved_as(model)))
        return Trial(d, predicted, status, kept, free=inside)
