"""What a minimisation method is: pure functions over a state, which hold no loop and know no framework.

The loop is :mod:`linop_gn.run.loop`'s, for methods and linear solvers alike. Nothing
is remembered outside the state: two runs with one method never meet, and a run that
goes on from a state is the run that was never interrupted.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections import namedtuple
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from ..protocols import Backend, Vector
from ..records import record
from .problem import MinimizeProblem

__all__ = ["Method"]


@record
class Method(ABC):
    """Base of minimisation methods: a subclass is a record with ``init`` and ``step``; ``lg.minimize`` runs it.

    The state is a NamedTuple, a tree of arrays, with at least ``x`` (n,), ``value``, ``status`` and ``steps``. What a
    method needs in its next step is in there, a linearised operator (``curvature(problem.at(x)).prepare()``) included.

    * Vectors are touched through ``ops`` only, and ``axpy``, ``axpby``, ``scale`` and ``mask`` consume their last
      argument. No two leaves of an initial state share memory.
    * Scalars may be traced: ``ops.where``, ``&``, ``|``, ``ops.logical_not``, never ``if``, ``and``, ``not``.
    * A step is total: once the status is set, it changes nothing.
    * ``status`` becomes ``MAX_STEPS`` at ``problem.max_steps``; ``lg.Status`` lists the other reasons to stop.

    >>> from typing import Any, NamedTuple
    >>> import numpy as np, linop_gn as lg
    >>> from linop_gn.run.status import Code, verdict
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
    ...         status = Code.MAX_STEPS if problem.max_steps == 0 else Code.RUNNING
    ...         return State(point.x, point.gradient, ops.item(point.value), status, 0)
    ...
    ...     def step(self, ops, problem, s):
    ...         running = s.status == Code.RUNNING
    ...         x = ops.axpy(ops.where(running, -self.rate, 0.0), s.gradient, s.x)
    ...         point, steps = problem.at(x), s.steps + ops.where(running, 1, 0)
    ...         status = verdict(ops, s.status, (running & (steps >= problem.max_steps), Code.MAX_STEPS))
    ...         return State(x, point.gradient, ops.item(point.value), status, steps)
    >>> line = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.eye(2))
    >>> lg.minimize(line, np.zeros(2), Descent(), max_steps=3).history["value"]
    array([9.      , 7.29    , 5.9049  , 4.782969])

    Raises
    ------
    TypeError
        When made, for a subclass without ``init`` or ``step``; at step 0, for a state without what is named above.
    """

    columns: ClassVar[tuple[str, ...]] = ("value",)
    """Scalars of the state that the history keeps. ``gradient_norm``, ``damping`` and ``products`` (0 where there are
    none) become fields of the result."""

    @abstractmethod
    def init(self, ops: Backend, problem: MinimizeProblem) -> Any:
        """The state before the first step."""

    @abstractmethod
    def step(self, ops: Backend, problem: MinimizeProblem, state: Any) -> Any:
        """The next state; consumes the given one."""

    def observe(self, state: Any) -> NamedTuple:
        """The row of the history for this state: its ``columns``, unless a subclass computes others."""
        missing = {"x", "value", "status", "steps", *self.columns} - set(getattr(state, "_fields", ()))
        if missing:
            name = type(self).__name__
            raise TypeError(
                f"{name}.init returned a {type(state).__name__} without {', '.join(sorted(missing))}: the state of "
                f"a method is a NamedTuple with x, value, status, steps and all of {name}.columns."
            )
        return _row("Row", self.columns)(*(getattr(state, name) for name in self.columns))

    def answer(self, ops: Backend, problem: MinimizeProblem, state: Any) -> Vector:
        """The parameters (n,) that the state stands for: ``x``."""
        return state.x


_row: Callable[..., Callable[..., NamedTuple]] = functools.cache(namedtuple)  # type: ignore[assignment]
