"""What every minimisation method promises, tried on small problems whose answers NumPy knows.

A bowl (least squares, mildly nonlinear) that any method goes down, and a wall beyond which the value, or
the gradient alone, is not a number. Nothing here knows how the method works.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ...curvature import Objective, losses
from ...dispatch import namespace, register
from ...methods import Method, MinimizeProblem
from ...methods.base import ServedMethod
from ...methods.checkpoint import save_state
from ...methods.state import State, is_at_rest
from ...minimize import advance, load_state, minimize
from ...minimize import start as begin
from ...protocols import Array, Backend, Carry, Vector
from ...records import data_fields, fields, rebuild, record, replace, static_fields
from ...run.status import Code, Status
from ..poison import poisoned
from .base import EPS, Kit, NDArray, agree, claim
from .kit import report_of
from .report import ConformanceReport

__all__ = ["MethodConformance", "check_method"]


class MethodConformance(Kit):
    """Every law that a method must keep.

    Subclass it in a module of tests::

        from linop_gn.testing import MethodConformance


        class TestMine(MethodConformance):
            backend = lg.load("numpy")
            method = MyMethod()

    Attributes
    ----------
    backend
        The framework to try it on.
    method
        The method. It should descend on least squares whose Jacobian has singular values from .7 to 1.3.
    derivatives
        As in :class:`BackendConformance`.
    """

    method: Any = None

    def setup_method(self, method: Any = None) -> None:
        super().setup_method(method)
        if not isinstance(self.method, Method):
            raise TypeError(f"{type(self).__qualname__} has no lg.Method: give its class body a line `method = ...`.")
        self.served = ServedMethod(self.method)

    # problems

    def bowl(self, seed: int = 0, dtype: str | None = None) -> tuple[Objective, Vector, NDArray, NDArray]:
        """q + sin(q) / 10 for q = M p - y: the objective, a start, M and y."""
        rng, dtype = np.random.default_rng(seed), dtype or self.wide
        U, _, V = np.linalg.svd(rng.standard_normal((5, 3)), full_matrices=False)
        M, y = (a.astype(dtype).astype(float) for a in ((U * [1.2, 1.0, 0.8]) @ V, 2 * rng.standard_normal(5)))
        objective = self._objective(_residuals, _jacobian, (self.array(M, dtype), self.array(y, dtype)))
        return objective, self.array(rng.standard_normal(3), dtype), M, y

    def _objective(self, residuals: Any, jacobian: Any, data: Any = None) -> Objective:
        supplied = jacobian if self.ops.calculus is None and self.derivatives is None else None
        return Objective.from_residuals(residuals, data, jacobian=supplied, derivatives=self.derivatives)

    def problem(self, max_steps: int = 8, seed: int = 0) -> MinimizeProblem:
        """The bowl as a method sees it, made anew."""
        objective, start, *_ = self.bowl(seed)
        point = objective.at(start)
        return MinimizeProblem(point.objective, point.x, point.space, max_steps)

    # runs

    def fit(self, objective: Objective, start: Vector, max_steps: int = 8, **options: Any) -> Any:
        """A run through ``lg.minimize``."""
        with np.errstate(all="ignore"):
            return minimize(objective, start, self.method, max_steps=max_steps, **options)

    def begin(self, problem: MinimizeProblem) -> Carry:
        """The first carry."""
        carry: Carry = self.ops.begin(self.served, problem, problem.max_steps)
        return carry

    def seen(self, state: Any, problem: MinimizeProblem) -> dict[str, NDArray]:
        """All that there is to see of a state."""
        row = self.served.observe(state)._asdict()
        x = self.host(self.served.answer(self.ops, problem, state))
        numbers = {"status": state.status, "steps": state.steps, **row}
        return {"x": x, **{name: self.number(value) for name, value in numbers.items()}}

    def same(self, one: dict[str, NDArray], two: dict[str, NDArray], what: str, tolerance: float = 0.0) -> None:
        """Fail unless two states look the same."""
        for name, value in one.items():
            agree(two[name], value, tolerance * (1 + abs(value)), f"{what}: {name}")

    def value_is_right(self, fit: Any, M: NDArray, y: NDArray, what: str, dtype: str | None = None) -> None:
        """Fail unless the value told is that of the parameters told."""
        value = _value(self.host(fit.params), M, y)
        agree(self.number(fit.value), value, 1e3 * EPS[dtype or self.wide] * (1 + value), f"{what}: the value")

    # laws

    def test_numbers_are_data(self) -> None:
        """No number of the method's that is not whole is a static field: another one is the same program."""
        for name in static_fields(self.method):
            value = getattr(self.method, name)
            number = isinstance(value, (float, np.ndarray)) or self.ops.is_array(value)
            claim(not number, f"{name} is declared static and holds {value!r}")

    def test_ends_at_the_limit(self) -> None:
        """A run of at most n steps ends after at most n calls of step, and keeps rows 0 .. steps of its history."""
        for limit in (0, 8) if self.compiled else (0, 1, 8):
            problem = self.problem(limit)
            state = self.ops.advance(self.served, problem, self.begin(problem), limit).state
            steps, status = int(self.number(state.steps)), int(self.number(state.status))
            claim(status != Code.RUNNING, f"max_steps={limit}: still running after {limit} calls of step")
            claim(steps <= limit, f"max_steps={limit}: {steps} steps")
            fit = self.fit(*self.bowl()[:2], max_steps=limit)
            rows, steps = len(fit.history["value"]), int(self.number(fit.steps))
            claim(rows == steps + 1, f"max_steps={limit}: {rows} rows of history for {steps} steps")

    def test_no_steps(self) -> None:
        """A run of no steps gives back the start and its value."""
        objective, start, M, y = self.bowl()
        fit = self.fit(objective, start, max_steps=0)
        agree(self.host(fit.params), self.host(start), 0.0, "params")
        self.value_is_right(fit, M, y, "after no steps")

    def test_the_value_is_that_of_the_parameters(self) -> None:
        """However many steps are taken, the value told is the objective's at the parameters that come back."""
        objective, start, M, y = self.bowl()
        for limit in (8,) if self.compiled else (1, 2, 3, 8):
            fit = self.fit(objective, start, limit)
            self.value_is_right(fit, M, y, f"max_steps={limit}")
            agree(fit.history["value"][-1], self.number(fit.value), 1e-6, f"max_steps={limit}: the last row")

    def test_goes_down(self) -> None:
        """On a bowl the value falls, and a success is one: the gradient there is a thousandth of the first."""
        objective, start, M, y = self.bowl()
        fit, first = self.fit(objective, start, 100), self.host(start)
        claim(_value(self.host(fit.params), M, y) < _value(first, M, y), "100 steps did not lower the value")
        if fit.succeeded:
            norms = [float(np.linalg.norm(_gradient(p, M, y))) for p in (first, self.host(fit.params))]
            claim(norms[1] <= 1e-3 * norms[0], f"{fit.status!r} at a gradient of {norms[1]:.1e}, first {norms[0]:.1e}")

    def test_the_start_is_not_written_to(self) -> None:
        """The parameters given stay as they are; those that come back are of the same kind and their own."""
        for dtype in self.dtypes:
            objective, start, M, y = self.bowl(dtype=dtype)
            with self.untouched("minimize", start):
                fit = self.fit(objective, start)
            self.same_kind(fit.params, start, "minimize")
            self.value_is_right(fit, M, y, f"in {dtype}", dtype)

    def test_the_state_is_a_tree_of_arrays(self) -> None:
        """The state is a NamedTuple of arrays, numbers, and records and containers of them: it can be saved."""
        problem = self.problem()
        carry = self.ops.advance(self.served, problem, self.begin(problem), 2)
        for state in (self.served.init(self.ops, problem), carry.state):
            claim(isinstance(state, tuple) and hasattr(state, "_fields"), f"the state is a {type(state).__qualname__}")
            for path, leaf in _leaves(state, "state"):
                known = leaf is None or isinstance(leaf, (bool, int, float, np.generic, np.ndarray))
                claim(known or self.ops.is_array(leaf) or _is_linear(leaf), f"{path} is a {type(leaf).__qualname__}")

    def test_the_first_state_shares_no_memory(self) -> None:
        """Each vector of the first state is its own: consumed, it changes no other, nor the problem's start."""
        self.require("in_place")
        problem = self.problem()
        state = self.served.init(self.ops, problem)
        arrays = {path: leaf for path, leaf in _leaves(state, "state") if self.ops.is_array(leaf)}
        arrays["problem.start"] = problem.start
        for name, vector in zip(state._fields, state, strict=True):
            if self.ops.is_array(vector) and len(vector.shape) == 1:
                others = {path: self.host(x) for path, x in arrays.items() if path != f"state.{name}"}
                self.ops.scale(0.0, self.ops.axpy(1.0, self.ops.copy(vector) + 1.0, vector))
                for path, before in others.items():
                    agree(self.host(arrays[path]), before, 0.0, f"consuming state.{name} changed {path}")

    def test_consumed_buffers(self) -> None:
        """Where consumed vectors are spoilt, and results are new arrays, the numbers are the same."""
        self.require("in_place")
        problem, twin = self.problem(), poisoned(self.ops)
        sound = self.ops.advance(self.served, problem, self.begin(problem), 8).state
        spoilt, kind = replace(problem, space=replace(problem.space, backend=twin)), type(problem.start)
        register(kind, twin)
        try:
            with np.errstate(all="ignore"):
                other = twin.advance(self.served, spoilt, twin.begin(self.served, spoilt, 8), 8).state
        finally:
            register(kind, self.ops)
        self.same(self.seen(sound, problem), self.seen(other, spoilt), "with consumed vectors spoilt", 1e-12)

    def test_steps_are_total(self) -> None:
        """A step that is taken after the status is set changes nothing, whoever set it."""
        problem = self.problem()
        ended = self.ops.advance(self.served, problem, self.begin(problem), 40).state
        early = self.ops.advance(self.served, problem, self.begin(problem), 1).state
        stopped = early._replace(status=self.ops.where(early.status == Code.RUNNING, Code.STOPPED, early.status))
        for state, what in ((ended, "after the end"), (stopped, "after a stop")):
            before = self.seen(state, problem)
            for _ in range(2):
                state = self.ops.call(_step, self.served, problem, state)
            self.same(before, self.seen(state, problem), f"two steps {what}")

    def test_resumes(self) -> None:
        """The state is all there is: a run that goes on from one, with all else made anew, was never interrupted."""
        problem = self.problem()
        whole = self.seen(self.ops.advance(self.served, problem, self.begin(problem), 6).state, problem)
        for stop in (1, 3, 5):
            carry = self.ops.advance(self.served, problem, self.begin(problem), stop)
            method, again = ServedMethod(copy.copy(self.method)), self.problem()
            state = self.ops.advance(method, again, carry, 6 - stop).state
            self.same(whole, self.seen(state, again), f"gone on after {stop} of 6 steps")

    def test_runs_do_not_meet(self) -> None:
        """Two runs with one method, a step at a time each, are what they are alone."""
        problems = [self.problem(), self.problem(seed=1)]
        alone = [self.seen(self.ops.advance(self.served, p, self.begin(p), 4).state, p) for p in problems]
        carries = [self.begin(p) for p in problems]
        for _ in range(4):
            carries = [self.ops.advance(self.served, p, c, 1) for p, c in zip(problems, carries, strict=True)]
        for p, carry, expected in zip(problems, carries, alone, strict=True):
            self.same(expected, self.seen(carry.state, p), "beside another run")

    def test_compiled_equals_eager(self) -> None:
        """The run as one program, if this framework makes one, ends where the steps do one by one."""
        problem = self.problem()
        state = self.served.init(self.ops, problem)
        with np.errstate(all="ignore"):
            for _ in range(8):
                state = self.served.step(self.ops, problem, state)
        run = self.ops.run(self.served, problem, 8).state
        self.same(self.seen(state, problem), self.seen(run, problem), "as one run", 1e5 * EPS[self.wide])

    def test_compiled_once(self) -> None:
        """All steps, other data, another start and an equal method run the program compiled for the first."""
        self.require("compiled")
        spy, calls = _spied(self.method)
        method = ServedMethod(spy)
        problem = self.problem()
        carry = self.ops.advance(method, problem, self.ops.begin(method, problem, 8), 1)
        once = len(calls)
        claim(once > 0, "step was not called")
        self.ops.advance(method, problem, carry, 5)
        there = self.problem(seed=1)
        other = replace(there, objective=replace(problem.objective, batches=there.objective.batches))
        equal = ServedMethod(replace(spy))
        self.ops.advance(equal, other, self.ops.begin(equal, other, 8), 3)
        claim(len(calls) == once, f"the first step was traced {once} times, the next ones {len(calls) - once} times")

    def test_inside_a_program(self) -> None:
        """Inside somebody's compiled function it is the same run."""
        self.require("compiled")
        objective, start, *_ = self.bowl()
        outside = self.fit(objective, start)
        inside = self.ops.call(lambda p: self.fit(objective, p), start)
        agree(self.host(inside.params), self.host(outside.params), 1e5 * EPS[self.wide], "params")
        agree(self.number(inside.value), self.number(outside.value), 1e5 * EPS[self.wide], "value")

    def test_watched(self) -> None:
        """Watchers see every step, change nothing, and stop the run when they say so."""
        objective, start, M, y = self.bowl()
        looks: list[Any] = []
        alone, watched = self.fit(objective, start), self.fit(objective, start, watch=[looks.append])
        agree(self.host(watched.params), self.host(alone.params), 1e5 * EPS[self.wide], "params of a watched run")
        claim(looks[-1].step == int(self.number(alone.steps)), f"the last look was at step {looks[-1].step}")
        stopped = self.fit(objective, start, watch=[lambda look: look.step >= 1])
        self.value_is_right(stopped, M, y, "stopped")
        right = stopped.status is Status.STOPPED or looks[-1].step <= 1
        claim(right, f"stopped at step 1 of {looks[-1].step}, it ended as {stopped.status!r}")

    def test_a_trial_without_a_value_is_refused(self) -> None:
        """Where the value is not a number no step ends: the parameters that come back have one, and it is told."""
        self._at_the_wall(self._objective(_no_value, _slope))

    def test_a_trial_without_a_gradient_is_refused(self) -> None:
        """Where the gradient is not a number no step ends, be the value as low as it may."""
        self._at_the_wall(self._objective(_no_gradient, _slope))

    def _at_the_wall(self, objective: Objective) -> None:
        fit = self.fit(objective, self.array([0.5, 0.8], self.wide))
        p = self.host(fit.params)
        claim(bool((p < 1).all()), f"{fit.status!r} at {p}, beyond 1, where there are no numbers")
        agree(self.number(fit.value), 0.5 * np.sum((p - 3) ** 2), 1e-4, "the value")
        claim(not fit.succeeded, f"{fit.status!r} at {p}, where the gradient is {p - 3}")

    def test_a_start_without_numbers(self) -> None:
        """A start where the value or the gradient is not a number comes back as it was, and as no success."""
        for residuals in (_no_value, _no_gradient):
            fit = self.fit(self._objective(residuals, _slope), self.array([0.5, 2.0], self.wide))
            claim(not fit.succeeded, f"ended as {fit.status!r}")
            agree(self.host(fit.params), [0.5, 2.0], 0.0, "params")

    def test_streamed_data(self) -> None:
        """Data that come in batches from the host give what the same data in memory do."""
        rng = np.random.default_rng(0)
        x, y, w = rng.standard_normal((6, 2)), rng.standard_normal((6, 1)), rng.standard_normal(2)
        batches = [(self.array(x[i : i + 3], self.wide), self.array(y[i : i + 3], self.wide)) for i in (0, 3)]
        options: dict[str, Any] = {"derivatives": self.derivatives}
        if self.ops.calculus is None and self.derivatives is None:
            options["jacobian"] = _line_jacobian
        held, streamed = (
            self.fit(Objective(_line, losses.SquaredError(), data, **options), self.array(w, self.wide))
            for data in (batches, _Again(batches))
        )
        agree(self.host(streamed.params), self.host(held.params), 1e6 * EPS[self.wide], "params")
        agree(self.number(streamed.value), self.number(held.value), 1e6 * EPS[self.wide], "value")

    def test_one_step_at_a_time(self) -> None:
        """Six steps in one call, one at a time, and in two calls are the same steps, bit for bit."""
        objective, start, *_ = self.bowl()
        whole = self.fit(objective, start, 6).state
        one = self.started(objective, start)
        for _ in range(6):
            one = self.stepped(objective, one)
        gone_on = self.fit(objective, None, 4, state=self.fit(objective, start, 2).state).state
        for state, what in ((one, "one at a time"), (gone_on, "as 2 and 4")):
            self.alike(whole, state, f"six steps {what}")

    def test_a_state_goes_on_twice(self) -> None:
        """Going on from a state leaves it as it is: what follows is the same the second time."""
        objective, start, *_ = self.bowl()
        state = self.fit(objective, start, 2).state
        first = self.fit(objective, None, 3, state=state).state
        self.alike(first, self.fit(objective, None, 3, state=state).state, "going on a second time")

    def test_other_data(self) -> None:
        """On other data a step is made of these: where all slopes are reversed, it goes the other way."""
        objective, start, M, y = self.bowl()
        p = self.host(start)
        there = 2 * (M @ p) - y
        other = objective.with_data((self.array(M, self.wide), self.array(there, self.wide)))
        fresh = self.stepped(other, self.started(other, start))
        state = self.stepped(other, self.started(objective, start))
        moved = [self.host(s.params) - p for s in (fresh, state)]
        slope = _gradient(p, M, there)
        claim(
            moved[1] @ slope < 0 or not moved[0].any(),
            f"from other data it moved by {moved[1]}, where the slope is {slope}",
        )
        value = _value(p if self.method.told_before else p + moved[1], M, there)
        agree(self.number(state.value), value, 1e3 * EPS[self.wide] * (1 + value), "the value on other data")

    def test_other_data_keep_the_rest(self) -> None:
        """Data that are the same, given anew, change nothing: damping, momentum and counts go on.

        Products may be more: curvature that is asked anew takes them again.
        """
        objective, start, M, y = self.bowl()
        again = objective.with_data((self.array(M, self.wide), self.array(y, self.wide)))
        state = self.fit(objective, start, 3).state
        kept = self.fit(objective, None, 3, state=state).state
        renewed = self.fit(again, None, 3, state=state).state
        tolerance = 1e5 * EPS[self.wide] if self.compiled else 0.0
        self.alike(kept, renewed, "with the same data given anew", tolerance, but="products")

    def test_comes_back_from_a_file(self) -> None:
        """A state that was written to a file and read again goes on bit for bit."""
        objective, start, *_ = self.bowl()
        state = self.fit(objective, start, 3).state
        with TemporaryDirectory() as folder:
            save_state(Path(folder) / "state", state)
            back = load_state(Path(folder) / "state", self.method, objective, start)
        self.alike(state, back, "from a file")
        on = [self.fit(objective, None, 3, state=s).state for s in (state, back)]
        self.alike(on[0], on[1], "gone on from a file")

    def started(self, objective: Objective, start: Vector) -> State:
        """The state of ``lg.start``."""
        with np.errstate(all="ignore"):
            return begin(self.method, objective, start)

    def stepped(self, objective: Objective, state: State) -> State:
        """The state of ``lg.advance``."""
        with np.errstate(all="ignore"):
            return advance(self.method, objective, state)

    def alike(self, one: State, two: State, what: str, tolerance: float = 0.0, but: str = "") -> None:
        """Fail unless two runs have come to the same, but for one number; one ended from outside is one that runs."""
        seen = [self.seen(s.own, MinimizeProblem(None, s.start, s.space)) for s in (one, two)]  # type: ignore[arg-type]
        for s in seen:
            s.pop(but, None)
            s["status"] = np.where(is_at_rest(s["status"]), Code.RUNNING, s["status"])
        self.same(seen[0], seen[1], what, tolerance)


def check_method(
    method: Method,
    backend: Backend,
    *,
    kit: type[MethodConformance] = MethodConformance,
    only: Iterable[str] | None = None,
    stop: bool = False,
) -> ConformanceReport:
    """Hold ``method`` to every law on ``backend`` and say how it fared, without a test runner.

    ``kit`` is a subclass with laws or problems of its own; ``only`` names laws, to run no others; with ``stop`` the
    first law that fails is the last one run.

    >>> import linop_gn as lg
    >>> check_method(lg.LevenbergMarquardt(), lg.load("numpy")).headline()
    'LevenbergMarquardt on numpy: 23 laws passed, 2 skipped'
    """
    bound = type(kit.__name__, (kit,), {"backend": backend, "method": method})
    return report_of(f"{method.title} on {backend.name}", bound, only=only, stop=stop)


class _Again:
    """Batches from the host, one pass after the other."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def _step(method: Method, problem: MinimizeProblem, state: Any) -> Any:
    return method.step(problem.backend, problem, state)


def _spied(method: Method) -> tuple[Any, list[str]]:
    """The method under a class that notes each call of ``step``, and the notes."""
    kind, calls = type(method), []

    def step(self: Any, ops: Backend, problem: MinimizeProblem, state: Any) -> Any:
        calls.append("step")
        return kind.step(self, ops, problem, state)

    return rebuild(record(type(kind.__name__, (kind,), {"step": step})), fields(method)), calls


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The leaves of containers and of records' data, with where they are."""
    if isinstance(tree, (tuple, list)):
        children = dict(zip(getattr(tree, "_fields", range(len(tree))), tree, strict=True))
    elif isinstance(tree, dict):
        children = tree
    elif hasattr(type(tree), "__dataclass_fields__"):
        children = {name: getattr(tree, name) for name in data_fields(tree)}
    else:
        yield path, tree
        return
    for name, child in children.items():
        yield from _leaves(child, f"{path}.{name}")


def _is_linear(leaf: Any) -> bool:
    """Whether it is a framework's own linearisation."""
    return hasattr(leaf, "jvp") or hasattr(leaf, "hvp")


def _residuals(p: Vector, data: Any) -> Array:
    M, y = data
    q = M @ p - y
    return q + 0.1 * namespace(p).sin(q)


def _jacobian(p: Vector, data: Any) -> Array:
    M, y = data
    return (1.0 + 0.1 * namespace(p).cos(M @ p - y))[:, None] * M


def _value(p: NDArray, M: NDArray, y: NDArray) -> float:
    q = M @ p - y
    return float(0.5 * np.sum((q + 0.1 * np.sin(q)) ** 2))


def _gradient(p: NDArray, M: NDArray, y: NDArray) -> NDArray:
    q = M @ p - y
    found: NDArray = M.T @ ((1.0 + 0.1 * np.cos(q)) * (q + 0.1 * np.sin(q)))
    return found


def _no_value(p: Vector) -> Array:
    return namespace(p).where(p < 1.0, p - 3.0, p * float("nan"))


def _no_gradient(p: Vector) -> Array:
    xp = namespace(p)
    return p - 3.0 + 1e-30 * xp.sqrt(xp.where(p < 1.0, 1.0 - p, 0.0 * p))  # inf * 0 beyond 1


def _slope(p: Vector) -> Array:
    xp = namespace(p)
    one = xp.where(p < 1.0, 0.0 * p + 1.0, p * float("nan"))
    return xp.stack([xp.stack([one[0], 0.0 * p[0]]), xp.stack([0.0 * p[1], one[1]])])


def _line(p: Vector, x: Array) -> Array:
    return (x @ p)[:, None]


def _line_jacobian(p: Vector, x: Array) -> Array:
    return x[:, None, :]
