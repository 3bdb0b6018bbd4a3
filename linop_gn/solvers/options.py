"""What solvers share: checks of their options, scaling by powers of two, the first status."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from ..arguments import known, require_number, whole
from ..protocols import Backend, Scalar, Vector
from ..records import record, static
from ..run.status import Code, verdict
from .base import Solver, require_solver
from .problem import LinearProblem, Row, as_preconditioner

__all__ = [
    "LEAST",
    "ResidualSolver",
    "at_limit",
    "begun_status",
    "check_limits",
    "check_region",
    "check_tolerances",
    "made_from",
    "recomputed",
    "require_inner",
    "scale_of",
    "scaled_rhs",
    "scaled_start",
    "threshold_of",
    "unfit_status",
]


LEAST = 2.0**-30
"""Vectors of entries between this and its inverse need no scaling for their squares to be in range."""


@record
class ResidualSolver(Solver):
    """A solver that stops at ||b - A x||. Its state holds x, ``norm`` and ``model`` in units of ``scale``."""

    rtol: Scalar = 1e-5
    atol: Scalar = 0.0
    max_steps: int | None = static(default=None)
    steps: int | None = static(default=None)
    preconditioner: Any = None

    symmetric: ClassVar[bool] = True
    supports: ClassVar[frozenset[str]] = frozenset({"x0", "columns", "blocks", "report"})

    def __post_init__(self) -> None:
        check_tolerances(self, "rtol", "atol")
        check_limits(self)
        object.__setattr__(self, "preconditioner", made_from(self))

    def observe(self, state: Any) -> Row:
        scale = state.scale
        return tuple.__new__(Row, (state.norm * scale, state.model * scale * scale))  # in half the time of Row(...)

    def answer(self, ops: Backend, problem: LinearProblem, state: Any) -> Vector:
        return ops.scale(state.scale, state.x)

    def recomputed(self, ops: Any, problem: LinearProblem, x: Vector, row: Any) -> tuple[Any, int]:
        return recomputed(self, ops, problem, x, row)


def recomputed(solver: Solver, ops: Any, problem: LinearProblem, x: Vector, row: Any) -> tuple[Any, int]:
    """``row`` with the norm of the residual r of x, and the model -1/2 x.(b + r); and that this took one product."""
    b, scale, inverse, *_ = scaled_rhs(ops, problem.rhs)
    x = ops.scale(inverse, ops.copy(x))
    r = solver.defect(problem.operator, b, x)
    if len(x.shape) > len(b.shape):  # one b has many answers
        b = ops.namespace().reshape(b, (-1, 1)) + 0.0 * x
    norm, model = ops.sqrt(ops.dot(r, r)), -0.5 * (ops.dot(x, b) + ops.dot(x, r))
    return row._replace(residual=scale * norm, model=scale * scale * model), 1


def check_region(method: Any) -> None:
    """Raise unless radius > 0, tolerances and limits are valid. Traced values pass."""
    name = type(method).__name__
    if method.radius is None or np.ndim(method.radius) > 0:
        raise TypeError(f"{name}: radius must be one number, got {method.radius!r}.")
    require_number(name, "radius", method.radius, positive=True, infinite=True)
    check_tolerances(method, "rtol", "atol")
    check_limits(method)


def check_tolerances(method: Any, *names: str, optional: bool = False) -> None:
    """Raise unless 0 <= field < inf for each of ``names``, or None if ``optional``; arrays become plain numbers.

    Traced values pass.
    """
    for name in names:
        given = getattr(method, name)
        require_number(type(method).__name__, name, given, optional=optional)
        found = None if isinstance(given, (int, float)) else known(type(method).__name__, name, given)
        if found is not None:  # scalars are Python's on eager backends, NumPy's for columns
            object.__setattr__(method, name, found if found.ndim else found.item())


def check_limits(method: Any) -> None:
    """Raise unless one of ``max_steps`` and ``steps`` is None, and the other None or a whole number."""
    for name in ("max_steps", "steps"):
        value = getattr(method, name)
        if value is not None:
            object.__setattr__(method, name, whole(type(method).__name__, name, value))
    if method.steps is not None and method.max_steps is not None:
        raise ValueError(
            f"{type(method).__name__}: give either steps (run exactly so many) or max_steps (at most), not both."
        )


def require_inner(method: Any, solver: Any) -> None:
    """Raise unless ``solver`` is for square systems and minimises the quadratic model."""
    name = type(method).__name__
    if not isinstance(solver, Solver) or not (solver.square and solver.minimises_model):
        raise TypeError(
            f"{name}: solver must be one for square systems, such as lg.CG() or lg.MINRES(), got {solver!r}. One of "
            "your own derives from lg.Solver."
        )
    require_solver(name, solver)


def made_from(method: Any) -> Any:
    """The method's preconditioner as None, an operator or a recipe."""
    return as_preconditioner(method.preconditioner, type(method).__name__)


def at_limit(method: Any) -> Any:
    """The status at the limit on steps."""
    return Code.MAX_STEPS if method.steps is None else Code.COMPLETED


def scaled_rhs(ops: Backend, b: Vector, lent: bool = False) -> tuple[Vector, Scalar, Scalar, Scalar, Scalar]:
    """(b / scale, scale, 1 / scale, a norm of b, whether b is finite), with scale a power of two near b's entries.

    b / scale is a new vector whose squares are in range; zero where b is not finite. Where it is only ``lent``, not to
    be consumed, it may be b itself, with a scale of 1, and is not looked at where b is not finite.
    """
    one = ops.scalar(1.0, b)
    if type(one) is float and not lent and ops.eps(b) < 1e-6:  # eager: squares take half as long as a maximum
        square, size = ops.dot(b, b), b.shape[0]
        if type(square) is float and LEAST**2 * size < square < 1.0 / LEAST**2:
            scale = 1.0 if size < 256.0 * square < 65536.0 * size else ops.power_of_two(math.sqrt(square / size), b)
            return ops.scale(one / scale, ops.copy(b)), scale, one / scale, math.sqrt(square), True
    largest = ops.max_abs(b)
    finite, scale = ops.isfinite(largest), ops.power_of_two(largest, b)
    if lent and type(scale) is float and LEAST < scale < 1.0 / LEAST and "16" not in ops.describe(b)[1]:
        return b, 1.0, 1.0, largest, finite
    inverse = ops.divide(one, scale)
    r = ops.copy(b) if lent else ops.mask(finite, ops.copy(b))
    return ops.scale(inverse, r), scale, inverse, largest, finite


def scaled_start(ops: Backend, x0: Vector, inverse: Scalar, largest: Scalar, finite: Scalar) -> tuple[Vector, Scalar]:
    """(x0 / scale, whether b and x0 are finite) after :func:`scaled_rhs`; zero where b = 0 or one is not finite."""
    x = ops.scale(inverse, ops.copy(x0))
    finite = finite & ops.isfinite(ops.max_abs(x))
    return ops.mask(finite & (largest != 0), x), finite


def threshold_of(ops: Backend, method: Any, norm: Scalar, scale: Scalar, like: Vector) -> Scalar:
    """The residual norm to stop at: max(rtol norm, atol / scale); with fixed steps eps norm. norm = ||b|| / scale."""
    if method.steps is not None:
        return ops.eps(like) * norm
    return ops.maximum(method.rtol * norm, ops.divide(method.atol, scale))


def begun_status(ops: Backend, method: Any, r: Vector, z: Vector, rz: Scalar, code: Scalar, limit: int) -> Scalar:
    """The status before the first product, from z = M r, rz = r.z and the stopping rule's ``code``."""
    status = ops.scalar(Code.RUNNING if limit else at_limit(method), r)
    bad = () if z is r else (
        (ops.logical_not(ops.isfinite(rz)), Code.NONFINITE),
        (ops.logical_not(rz > 0), Code.INDEFINITE_PRECONDITIONER),
    )  # fmt: skip
    return verdict(ops, status, (code != Code.RUNNING, code), *bad)


def scale_of(ops: Backend, x: Vector, least: Scalar | None = None, times: float = 1.0) -> Scalar:
    """A power of two near ``times`` max |x|, or ``least`` if more; 1 if that lies between 2^-30 and 2^30."""
    more = 0.0 if least is None else least
    if type(more) is float and type(ops.scalar(1.0, x)) is float and ops.eps(x) < 1e-6:  # as in scaled_rhs
        square = times * times * ops.dot(x, x)
        if type(square) is float and 4.0 * LEAST**2 * x.shape[0] < square and square + more * more < 0.25 / LEAST**2:
            return 1.0
    largest = ops.max_abs(x) if times == 1.0 else times * ops.max_abs(x)
    power = ops.power_of_two(largest if least is None else ops.maximum(largest, least), x)
    return ops.where((power > LEAST) & (power < 1.0 / LEAST), 1.0, power)


def unfit_status(ops: Backend, largest: Scalar, scale: Scalar, like: Vector) -> tuple[Scalar, Scalar]:
    """(whether ``largest * scale`` is in range, the status of an answer where it is not)."""
    size = largest * scale
    power = ops.power_of_two(size, like)
    fits = (power <= size) & (size < 2.0 * power) | (largest == 0)
    return fits, ops.where(size > 1, Code.NONFINITE, Code.STAGNATED)
