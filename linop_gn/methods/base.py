"""What a minimisation method is: pure functions over a state, which hold no loop and know no framework.

The loop is :mod:`linop_gn.run.loop`'s, for methods and linear solvers alike. Nothing
is remembered outside the state: two runs with one method never meet, and a run that
goes on from a state is the run that was never interrupted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from ..protocols import Backend, Scalar, Vector
from ..records import record, replace
from ..run.returned import require_row, require_state, require_vector, row_type
from ..run.status import Code, verdict
from .problem import MinimizeProblem

__all__ = ["Method", "ServedMethod"]


@record
class Method(ABC):
    """Base of minimisation methods: a subclass is a record with ``init`` and ``step``; ``lg.minimize`` runs it.

    The state is a NamedTuple, a tree of arrays, with at least ``x`` (n,), ``value``, ``status`` and ``steps``. What a
    method needs in its next step is in there, a linearised operator (``curvature(problem.at(x)).prepare()``) included.

    * Vectors are touched through ``ops`` only, and ``axpy``, ``axpby``, ``scale`` and ``mask`` consume their last
      argument. No two leaves of an initial state share memory.
    * Scalars may be traced: ``ops.where``, ``&``, ``|``, ``ops.logical_not``, never ``if``, ``and``, ``not``.
    * A step is total: once the status is set, it changes nothing.
    * ``steps`` begins at 0. Done for it: a call of ``step`` counts one, and ``status`` becomes ``MAX_STEPS`` at
      ``max_steps``, ``NONFINITE`` where ``value`` is. ``lg.Status`` lists the other reasons to stop.

    >>> from typing import Any, NamedTuple
    >>> import numpy as np, linop_gn as lg
    >>> class State(NamedTuple):
    ...     x: Any
    ...     gradient: Any
    ...     value: Any
    ...     status: Any
    ...     steps: Any
    >>> @lg.record
    ... class Descent(lg.Method):
    ...     rate: float = 0.1
    ...
    ...     def init(self, ops, problem):
    ...         point = problem.at(problem.start)
    ...         return State(point.x, point.gradient, ops.item(point.value), lg.Status.RUNNING, 0)
    ...
    ...     def step(self, ops, problem, s):
    ...         rate = ops.where(s.status == lg.Status.RUNNING, self.rate, 0.0)
    ...         point = problem.at(ops.axpy(-rate, s.gradient, s.x))
    ...         return State(point.x, point.gradient, ops.item(point.value), s.status, s.steps)
    >>> line = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.eye(2))
    >>> lg.minimize(line, np.zeros(2), Descent(), max_steps=3).history["value"]
    array([9.      , 7.29    , 5.9049  , 4.782969])

    Raises
    ------
    TypeError
        When made, for a subclass without ``init`` or ``step``; in ``lg.minimize``, for what they return if it is not
        as above.
    """

    columns: ClassVar[tuple[str, ...]] = ("value",)
    """Scalars of the state that the history keeps. ``gradient_norm``, ``damping`` and ``products`` (0 where there are
    none) become fields of the result."""

    of_data: ClassVar[tuple[str, ...]] = ("value", "gradient", "gradient_norm", "operator", "prepared")
    """Fields of the state, where it has them, that say what the objective is at ``x``. They are made anew where a run
    goes on with other data, or comes back from a file that could not hold them."""

    kept_by: ClassVar[tuple[str, ...]] = ()
    """Fields that say what the state holds: a run goes on from no state of others, numbers apart. In a part: all of its
    fields, unless it has a ``kept_by`` too."""

    supports: ClassVar[frozenset[str]] = frozenset()
    """Which data of their own a step may have, ``"curvature"``, ``"acceptance"``: the method asks for the points
    ``problem.for_curvature(point)``, ``problem.for_acceptance(point)``. Others are refused."""

    told_before: ClassVar[bool] = False
    """Whether, on data for one step (``problem.once``), ``value`` is that before the step, which came with it."""

    for_scipy: ClassVar[Callable[[Any], Callable[..., Any]] | None] = None
    """How a method becomes one of SciPy's: what :func:`linop_gn.scipy_method` makes of it."""

    def __call__(self, fun: Callable[..., Any], x0: Any, **options: Any) -> Any:
        """As ``scipy.optimize.minimize(fun, x0, method=method)`` calls it: see :func:`linop_gn.scipy_method`."""
        assert Method.for_scipy is not None, "set by the adaptor, which linop_gn imports"
        return Method.for_scipy(self)(fun, x0, **options)

    @property
    def title(self) -> str:
        """How a result names the method."""
        return type(self).__name__

    @abstractmethod
    def init(self, ops: Backend, problem: MinimizeProblem) -> Any:
        """The state before the first step."""

    @abstractmethod
    def step(self, ops: Backend, problem: MinimizeProblem, state: Any) -> Any:
        """The next state; consumes the given one."""

    def renew(self, ops: Backend, problem: MinimizeProblem, state: Any) -> Any:
        """The state at the same ``x`` for the problem's data: its fields ``of_data`` are what ``init`` makes there.

        All else (damping, momentum, counts) is kept. A method whose ``init`` does more than that says how in its own.
        """
        made = self.init(ops, replace(problem, start=state.x))
        return state._replace(**{name: getattr(made, name) for name in self.of_data if name in made._fields})

    def observe(self, state: Any) -> NamedTuple:
        """The row of the history for this state, a NamedTuple of scalars: its ``columns``."""
        return row_type("Row", self.columns)(*(getattr(state, name) for name in self.columns))

    def answer(self, ops: Backend, problem: MinimizeProblem, state: Any) -> Vector:
        """The parameters (n,) that the state stands for: ``x``."""
        return state.x


def _lacks(value: Any) -> bool:
    """Whether a copy or a pickle has left something out here."""
    return value is None or (hasattr(value, "_fields") and any(part is None for part in value))


@record
class ServedMethod(Method):
    """``method`` with its steps counted and limited, and all that it returns looked at: what ``lg.minimize`` runs."""

    method: Method

    @property
    def title(self) -> str:
        return self.method.title

    def init(self, ops: Backend, problem: MinimizeProblem) -> Any:
        observed = self.method.columns if type(self.method).observe is Method.observe else ()
        needed = dict.fromkeys(("x", "value", "status", "steps", *observed))
        made = require_state(self.title, self.method.init(ops, problem), needed)
        return self._looked(ops, problem, made, made.steps, True, Code.NONFINITE_INPUT)

    def step(self, ops: Backend, problem: MinimizeProblem, state: Any) -> Any:
        running = state.status == Code.RUNNING
        steps = state.steps + ops.where(running, 1, 0)
        made = require_state(self.title, self.method.step(ops, problem, state), before=state)
        return self._looked(ops, problem, made, steps, running, Code.NONFINITE)

    def renew(self, ops: Backend, problem: MinimizeProblem, state: Any) -> Any:
        """The state for the problem's data, running: that a test was met on other data says nothing of these."""
        made = self.method.renew(ops, problem, state)
        gone = [name for name in self.method.of_data if name in state._fields and _lacks(getattr(state, name))]
        made = require_state(self.title, made, before=state._replace(**{name: getattr(made, name) for name in gone}))
        lost = ops.logical_not(ops.isfinite(made.value))
        return made._replace(status=verdict(ops, 0 * state.status + Code.RUNNING, (lost, Code.NONFINITE)))

    def _looked(self, ops: Backend, problem: Any, made: Any, steps: Scalar, running: Scalar, lost: Scalar) -> Any:
        require_row(self.title, self.method.observe(made))
        late = (made.status == Code.RUNNING) & (steps >= problem.max_steps)
        claims = (running & ops.logical_not(ops.isfinite(made.value)), lost), (late, Code.MAX_STEPS)
        return made._replace(status=verdict(ops, made.status, *claims), steps=steps)

    def observe(self, state: Any) -> NamedTuple:
        return self.method.observe(state)

    def answer(self, ops: Backend, problem: MinimizeProblem, state: Any) -> Vector:
        x, start = self.method.answer(ops, problem, state), problem.start
        return require_vector(f"{self.title}.answer must return", ops, x, tuple(start.shape), start)
