"""Minimise an objective: the outer methods on the one loop of :mod:`linop_gn.run.loop`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .arguments import require_instance, whole
from .curvature.objective import Objective
from .methods.base import Method, ServedMethod
from .methods.levenberg_marquardt import LevenbergMarquardt
from .methods.problem import MinimizeProblem
from .protocols import Carry, Tree
from .run.loop import Watcher, drive
from .run.solution import Result
from .solvers.base import Solver

__all__ = ["minimize"]


def minimize(
    objective: Objective,
    params: Tree,
    method: Any = None,
    *,
    max_steps: int = 100,
    watch: Sequence[Watcher] = (),
    every: int = 1,
) -> Result:
    """Minimise ``objective`` starting at ``params``, which are not changed.

    Parameters
    ----------
    objective
        An :class:`~linop_gn.Objective`.
    params
        Starting point, any tree of arrays.
    method
        An :class:`~linop_gn.Method`; ``LevenbergMarquardt()`` by default.
    max_steps
        Limit on steps, accepted or not. A size of the program, not data.
    watch
        Watchers, such as ``lg.ProgressBar()``, shown a look every ``every`` steps.

    Returns
    -------
    Result
        ``params`` in the format given, ``value``, ``status``, ``steps``, ``history``; ``gradient_norm``, ``damping``
        (to go on with) and ``products`` where the method has them.

    >>> import numpy as np, linop_gn as lg
    >>> t = np.array([0.0, 1.0, 2.0, 3.0])
    >>> y = 2.0 * np.exp(-0.5 * t)
    >>> decay = lg.Objective.from_residuals(
    ...     lambda p: p[0] * np.exp(p[1] * t) - y,
    ...     jacobian=lambda p: np.stack([np.exp(p[1] * t), p[0] * t * np.exp(p[1] * t)], axis=1))
    >>> fit = lg.minimize(decay, np.array([1.0, 0.0]), max_steps=50)
    >>> fit.status.name, fit.params.round(4)
    ('GRADIENT_SMALL', array([ 2. , -0.5]))
    """
    if not isinstance(objective, Objective):
        raise TypeError(f"minimize needs an lg.Objective, got {type(objective).__qualname__}.")
    max_steps = whole("minimize", "max_steps", max_steps)
    method = LevenbergMarquardt() if method is None else method
    wrap = f"It solves linear systems: write lg.LevenbergMarquardt(solver=lg.{type(method).__name__}(...))."
    advice = wrap if isinstance(method, Solver) else "A method of your own derives from lg.Method."
    require_instance("minimize", method, Method, "an lg.Method such as lg.LevenbergMarquardt()", advice)
    point = objective.at(params)
    point.check_data()
    problem = MinimizeProblem(point.objective, point.x, point.space, max_steps)
    method = ServedMethod(method)
    state, rows = drive(problem.backend, method, problem, max_steps, watch, every, method.title)
    row = method.observe(state)._asdict()
    return Result(
        code=state.status,
        steps=state.steps,
        products=row.get("products", 0),
        rows=rows if not isinstance(rows, list) else problem.backend.rows(Carry(state, rows), 0, len(rows)),
        names=tuple(row),
        method=method.title,
        params=point.space.unpack(method.answer(problem.backend, problem, state)),
        value=state.value,
        gradient_norm=row.get("gradient_norm"),
        damping=row.get("damping"),
    )
