"""Minimise an objective: in one call, a step at a time, or going on from a state or a file."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .arguments import require_instance, whole
from .curvature.objective import Objective
from .curvature.point import Point
from .distributed.agreed import Agreed, require_alike
from .distributed.watching import telling
from .foreign import advised
from .given import as_start
from .methods.base import Method, ServedMethod
from .methods.checkpoint import Checkpoint, restored
from .methods.cursor import Cursor
from .methods.generators import Generators
from .methods.named import LevenbergMarquardt
from .methods.problem import MinimizeProblem, StepData
from .methods.running import NO_LIMIT, Run, began, in_a_program, stretched
from .methods.state import State, unlike
from .protocols import Scalar, Tree, Vector
from .records import memo, replace
from .run.loop import Watcher, watchers_of
from .run.solution import Result
from .solvers.base import Solver
from .spaces import Space

__all__ = ["advance", "load_state", "minimize", "result", "start"]


@advised
def minimize(
    objective: Objective,
    params: Tree,
    method: Any = None,
    *,
    max_steps: int | None = None,
    watch: Sequence[Watcher] = (),
    every: int | None = None,
    state: State | None = None,
    batches: Iterable[Any] | None = None,
    passes: int | None = None,
    checkpoint: Any = None,
    generators: Iterable[Any] = (),
    curvature: Objective | None = None,
    acceptance: Objective | None = None,
) -> Result:
    """Minimise ``objective`` starting at ``params``, which are not changed.

    ``params`` may be a module: ``result.load_into(module)`` then writes the parameters that were found into it.

    Parameters
    ----------
    objective
        An :class:`~linop_gn.Objective`.
    params
        Starting point, any tree of arrays; not looked at where ``state`` is given.
    method
        An :class:`~linop_gn.Method`; ``LevenbergMarquardt()`` by default.
    max_steps
        Limit on the steps of this call, accepted or not; 100 by default, none by default where ``batches`` are given.
    watch
        Watchers, such as ``lg.ProgressBar()``, shown a look every ``every`` steps.
    every
        Steps between two looks (1 by default), and between two checkpoints (by default so many that writing them takes
        at most 5 % of the time).
    state
        ``result.state``, or what ``lg.start``, ``lg.advance`` or ``lg.load_state`` returned: where to go on from.
    batches
        Any iterable of batches, each what ``objective.with_data`` takes, or an ``lg.StepData``: a step for each, in
        their order.
    passes
        How often to go through ``batches``: once by default, or as often as ``max_steps`` asks.
    checkpoint
        A path. The state is written there on the way; where there is one already, the run goes on from it, and
        ``max_steps`` and ``passes`` count from the start of the whole run. Of several processes the first one writes,
        where all of them can read.
    generators
        Random generators that the model or the loader draws from: their states go into the checkpoint, as do those of
        the process's (Python's, NumPy's and torch's).
    curvature, acceptance
        Objectives that the method takes the curvature, and the values of trials, of: other data, another loss.
        ``objective`` by default.

    Returns
    -------
    Result
        ``params`` in the format given, ``value``, ``status``, ``steps``, ``history``, ``state``; ``gradient_norm``,
        ``damping`` and ``products`` where the method has them.

    Raises
    ------
    Exception
        Whatever the model, a watcher or a Ctrl-C raises on the way leaves with the last state as its attribute
        ``state``, and the result so far as ``result``.

    >>> import numpy as np, linop_gn as lg
    >>> t = np.array([0.0, 1.0, 2.0, 3.0])
    >>> y = 2.0 * np.exp(-0.5 * t)
    >>> decay = lg.Objective.from_residuals(
    ...     lambda p: p[0] * np.exp(p[1] * t) - y,
    ...     jacobian=lambda p: np.stack([np.exp(p[1] * t), p[0] * t * np.exp(p[1] * t)], axis=1))
    >>> fit = lg.minimize(decay, np.array([1.0, 0.0]), max_steps=50)
    >>> fit.succeeded, fit.params.round(4)
    (True, array([ 2. , -0.5]))
    """
    with telling(_reduction_of(objective)):
        served, asked = _served("minimize", objective, method, curvature, acceptance)
        return _minimized(
            served, asked, params, max_steps, watch, every, state, batches, passes, checkpoint, Generators(generators)
        )


def _minimized(
    served: ServedMethod,
    asked: _Asked,
    params: Tree,
    max_steps: int | None,
    watch: Sequence[Watcher],
    every: int | None,
    state: State | None,
    batches: Iterable[Any] | None,
    passes: int | None,
    checkpoint: Any,
    drawn: Generators,
) -> Result:
    """The run of :func:`minimize`, with the method and what it asks looked at."""
    steps = NO_LIMIT if batches is not None else 100
    steps = steps if max_steps is None else min(NO_LIMIT, whole("minimize", "max_steps", max_steps))
    every = every if every is None else whole("minimize", "every", every, 1)
    watch = watchers_of(watch)
    if batches is None and passes is not None:
        raise ValueError("minimize: passes= says how often to go through batches=, and there are none.")
    agreed, reduction = None, asked.objective.reduce
    if reduction is not None or checkpoint is not None:
        space = Space.entered(as_start(params))[0] if state is None else state.space
    if reduction is not None:
        options = steps, passes, batches is None, checkpoint is None, state is None
        agreed = Agreed(reduction, space.one)
        require_alike(reduction, "minimize", space, (served.method, *options))
    kept = None if checkpoint is None else Checkpoint(checkpoint, every, drawn, agreed, space)
    resumed = kept is not None and kept.exists()
    if resumed and state is not None:
        raise ValueError(f"minimize: {checkpoint} holds a state to go on from, and state= gives another: choose one.")
    cursor = None
    if batches is not None:
        endless = passes is None and max_steps is not None and not isinstance(batches, Iterator)
        passes = None if endless else whole("minimize", "passes", 1 if passes is None else passes)
        cursor = Cursor(batches, passes, None if kept is None else drawn, agreed)
    if kept is not None and resumed:
        place, states = kept.place()
        if (place is None) != (cursor is None):
            was, now = ("had no batches=", "has some") if place is None else ("had batches=", "has none")
            raise ValueError(
                f"minimize: the run in {checkpoint} {was}, and this one {now}: give the same, or another path."
            )
        if cursor is not None:
            cursor.go_to(place)
        drawn.put_back(states)
    if cursor is not None:
        asked = asked.on(served, cursor.peek())
    if state is None:
        problem = replace(_begun(asked, params), max_steps=steps)
        if not problem.backend.is_concrete((problem.start, problem.objective)):
            if cursor is not None or kept is not None:
                raise TypeError(
                    "minimize: inside a compiled program there is no batches= and no checkpoint=; scan lg.advance."
                )
            return _in_a_program(served, problem, steps, watch, every)
    else:
        problem = _gone_on("minimize", served, asked, state)
        if not problem.backend.is_concrete((state.own, problem.objective)):
            raise TypeError("minimize: inside a compiled program a run goes on by lg.advance, which may be scanned.")
        problem = replace(problem, max_steps=min(NO_LIMIT, int(state.steps) + steps))
    renew = state is not None and _is_other(problem, state)
    if resumed:
        states = drawn.states()
        own = began(served, problem).state.own
        state = restored(checkpoint, served, problem, own, same_data=cursor is None)
        drawn.put_back(states)
        problem = replace(problem, start=state.start)
        # A run that is over keeps the value that it came to: there is no other batch to tell of.
        renew = cursor is not None and cursor.is_left() and int(state.steps) < int(problem.max_steps)
    plan = itertools.repeat((problem, False)) if cursor is None else _each(cursor, served, asked, problem)
    begin = partial(began, served, problem)
    if state is not None:
        begin = partial(stretched, served, problem, state.own, renew, 0)
    left = NO_LIMIT if cursor is None else cursor.left(NO_LIMIT)
    run = Run(
        served,
        problem,
        begin,
        plan,
        cursor is not None,
        lambda run: None if kept is None else kept.keep(run, cursor),
        left,
    )
    del begin, state  # what the first state holds goes with its successor
    try:
        returned = run.watched(watch, every or (1 if watch else None), _result_of, "minimize")
    except BaseException as error:
        if cursor is not None:
            error.add_note(f"The latest batch was number {cursor.taken} of pass {cursor.past + 1}.")
        if kept is not None:
            with suppress(OSError):  # what broke the run off is what is told
                kept.rescue(run)
        raise
    if kept is not None:
        kept.save(run)
        kept.wait()
    return returned


@advised
def start(
    method: Method,
    objective: Objective,
    params: Tree,
    *,
    curvature: Objective | None = None,
    acceptance: Objective | None = None,
) -> State:
    """The state of a run of ``method`` before its first step, for a loop of your own.

    >>> import numpy as np, linop_gn as lg
    >>> line = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.eye(2))
    >>> method = lg.LevenbergMarquardt(damping=1.0)
    >>> state = lg.start(method, line, np.zeros(2))
    >>> for _ in range(3):
    ...     state = lg.advance(method, line, state)
    >>> lg.result(state).steps, state.params.round(3)
    (3, array([2.962, 2.962]))
    """
    with telling(_reduction_of(objective)):
        served, asked = _served("start", objective, method, curvature, acceptance)
        problem = _begun(asked, params)
        require_alike(objective.reduce, "start", problem.space, served.method)
        made = State(began(served, problem).state.own, problem.start, served.method, problem.space)
    memo(made).terms, memo(made).reduction = problem.terms, objective.reduce
    return made


@advised
def advance(
    method: Method,
    objective: Objective,
    state: State,
    *,
    fresh: bool | None = None,
    curvature: Objective | None = None,
    acceptance: Objective | None = None,
) -> State:
    """One step of ``method`` on from ``state``, which stays as it is.

    The step belongs to the data of ``objective``. Where these are not the state's, what the state knows of the
    objective at its parameters (value, gradient, operator) is made anew first; damping, momentum and counts go on.

    Parameters
    ----------
    fresh
        Whether the data are other ones than those of the state's latest step. None: unless ``objective`` is the very
        one of that step. Inside a compiled program nobody can tell, and they are taken for fresh: say False there when
        all steps are on the same data.
    curvature, acceptance
        As of :func:`minimize`.

    Raises
    ------
    TypeError, ValueError
        For a state of another method or of arrays of another framework.
    """
    with telling(_reduction_of(objective)):
        served, asked = _served("advance", objective, method, curvature, acceptance)
        problem = _gone_on("advance", served, asked, state)
        fresh = _is_other(problem, state) if fresh is None else fresh
        problem = replace(problem, once=fresh)
        own = stretched(served, problem, state.own, fresh, 1).state.own
    made = State(own, state.start, served.method, state.space)
    memo(made).terms, memo(made).reduction = None if fresh else problem.terms, objective.reduce
    return made


def result(state: State) -> Result:
    """What ``lg.minimize`` would return for a run that has come to ``state``; its history is the latest row."""
    _require_state("result", state)
    row = tuple(map(state.space.backend.read, ServedMethod(state.method).observe(state.own)))
    return _result(state, state.code, [row], state.steps)


def load_state(
    path: Any,
    method: Method,
    objective: Objective,
    params: Tree,
    *,
    generators: Iterable[Any] | None = (),
    curvature: Objective | None = None,
    acceptance: Objective | None = None,
) -> State:
    """The state that ``lg.save_state`` wrote to ``path``, or to a file that is open now, of a run of ``method``.

    ``params`` gives the format, and may hold any numbers. The process's random generators, and those given, are put
    back to where they were; None of them where ``generators`` is None.

    Raises
    ------
    ValueError
        For a state of other settings, parameters or arrays; the message names what differs.
    """
    with telling(_reduction_of(objective)):
        served, asked = _served("load_state", objective, method, curvature, acceptance)
        problem = _begun(asked, params)
        drawn = None if generators is None else Generators(generators)
        found = restored(path, served, problem, began(served, problem).state.own, drawn)
    memo(found).terms, memo(found).reduction = problem.terms, objective.reduce
    return found


class _Asked(NamedTuple):
    """What a run asks: objectives of gradient, curvature, acceptance; None for those without data of their own."""

    objective: Objective
    curvature: Objective | None
    acceptance: Objective | None

    def on(self, served: ServedMethod, batch: Any) -> _Asked:
        """The same on a batch, an item of ``batches=``."""
        data = batch if isinstance(batch, StepData) else StepData(batch)
        parts = {"curvature": data.curvature, "acceptance": data.acceptance}
        parts = {name: part for name, part in parts.items() if part is not None}
        for name in parts:
            _require_support("minimize", served, name, "lg.StepData")
        new = {name: (getattr(self, name) or self.objective).with_data(part) for name, part in parts.items()}
        return self._replace(objective=self.objective.with_data(data.gradient), **new)

    def now(self, space: Space, x: Vector) -> dict[str, Any]:
        """Their terms, fields of the problem; where data are known, they are looked at."""
        found = {name: part.now(space, x) for name, part in self._asdict().items() if part is not None}
        if space.backend.is_concrete((found, x)):
            for terms in found.values():
                Point(terms, x, space).check_data()
        return found


def _reduction_of(objective: Any) -> Any:
    return getattr(objective, "reduce", None)


def _served(
    door: str, objective: Any, method: Any, curvature: Any = None, acceptance: Any = None
) -> tuple[ServedMethod, _Asked]:
    """The method as it is run, and what it asks; all are looked at."""
    for given in (objective, curvature, acceptance):
        if not isinstance(given, Objective) and (given is not None or given is objective):
            raise TypeError(
                f"{door} needs an lg.Objective, got {type(given).__qualname__}. Of a function of the parameters "
                "lg.Objective.from_function(function) is one; another batch of an objective is "
                "objective.with_data(batch)."
            )
        if given is not None and (given.reduce is None) != (objective.reduce is None):
            raise ValueError(
                f"{door}: one of objective, curvature= and acceptance= is summed over processes and another is not, so "
                "that the processes would decide differently: give all of them a reduce=, or DataParallel."
            )
    method = LevenbergMarquardt() if method is None else method
    wrap = f"It solves linear systems: write lg.LevenbergMarquardt(solver=lg.{type(method).__name__}(...))."
    advice = wrap if isinstance(method, Solver) else "A method of your own derives from lg.Method."
    require_instance(door, method, Method, "an lg.Method such as lg.LevenbergMarquardt()", advice)
    served, asked = ServedMethod(method), _Asked(objective, curvature, acceptance)
    for name in ("curvature", "acceptance"):
        if getattr(asked, name) is not None:
            _require_support(door, served, name, f"{name}=")
    return served, asked


def _require_support(door: str, served: ServedMethod, what: str, given: str) -> None:
    """Raise unless the method asks for data of its own for ``what``."""
    if what not in served.method.supports:
        raise TypeError(
            f"{door}: {served.title} takes no data of its own for the {what}: leave {given} out, or take a method that "
            "does, such as lg.SecondOrder(...) or another composition of it."
        )


def _begun(asked: _Asked, params: Tree) -> MinimizeProblem:
    """The problem of a run from ``params``."""
    point = asked.objective.at(params)
    return MinimizeProblem(start=point.x, space=point.space, max_steps=NO_LIMIT, **asked.now(point.space, point.x))


def _is_other(problem: MinimizeProblem, state: State) -> bool:
    """Whether the problem's data are others than those of the state's latest step, for all that is known."""
    latest = memo(state).terms
    return latest is None or any(a is not b for a, b in zip(problem.terms, latest, strict=True))


def _require_state(door: str, state: Any) -> None:
    if not isinstance(state, State):
        raise TypeError(
            f"{door}: a state is what lg.start, lg.advance, result.state or a watcher's look.whole gave, got "
            f"{type(state).__qualname__}."
        )
    state.require_own_arrays(door)


def _gone_on(door: str, served: ServedMethod, asked: _Asked, state: Any) -> MinimizeProblem:
    """The problem of a run that goes on from ``state``."""
    _require_state(door, state)
    if type(state.method) is not type(served.method):
        had, title = ServedMethod(state.method).title, served.title
        raise TypeError(f"{door}: a state of {had} was given to {title}, which has another: begin at state.params.")
    if differ := unlike(state.method, served.method):
        raise ValueError(
            f"{door}: the state is of other parts: {'; '.join(differ[:3])}. Numbers may differ, these may not: give "
            "the parts that the run began with, or begin at state.params."
        )
    now = asked.now(state.space, state.own.x)
    return MinimizeProblem(start=state.start, space=state.space, max_steps=NO_LIMIT, **now)


def _each(
    cursor: Cursor, served: ServedMethod, asked: _Asked, problem: MinimizeProblem
) -> Iterator[tuple[MinimizeProblem, bool]]:
    """The problem of each batch, and whether the state is to be renewed for it.

    It is at the first batch already; a compiled program is the same for all of them all the same.
    """
    compiled = "compiled" in problem.backend.capabilities
    for i, batch in enumerate(cursor):
        now = asked.on(served, batch).now(problem.space, problem.start)
        yield replace(problem, once=True, **now), compiled or i > 0


def _in_a_program(served: ServedMethod, problem: MinimizeProblem, steps: int, watch: Any, every: int | None) -> Result:
    """The run as a part of a program that somebody else compiles."""
    own, rows = in_a_program("minimize", served, problem, steps, watch, every)
    made = _result(State(own, problem.start, served.method, problem.space), own.status, rows, 0)
    return replace(made, state=None)


def _result_of(run: Run) -> Result:
    return _result(run.state, run.code, run.rows, run.first)


def _result(state: State, code: Scalar, rows: Any, first: Scalar) -> Result:
    observed = ServedMethod(state.method).observe(state.own)._asdict()
    return Result(
        code=code,
        steps=state.own.steps,
        products=observed.get("products", 0),
        rows=np.asarray(rows) if isinstance(rows, list) else rows,
        names=tuple(observed),
        method=ServedMethod(state.method).title,
        params=state.params,
        value=state.own.value,
        gradient_norm=observed.get("gradient_norm"),
        damping=observed.get("damping"),
        state=state,
        first=first,
    )
