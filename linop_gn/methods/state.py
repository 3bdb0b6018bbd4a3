"""Where a run is: what a method keeps between two steps, and how a run goes on from there.

A run in one call, a step at a time, or from a file, is made of *stretches*: each begins
at a state that it leaves as it is, and takes some steps. All of them run the same
program, so that 17 steps are the same 17 steps however they are taken.
"""

from __future__ import annotations

from dataclasses import is_dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from ..dispatch import how_to_bring
from ..operators.base import LinearOperator
from ..protocols import Backend, Scalar, Tree, Vector
from ..records import data_fields, fields, rebuild, record, static, static_fields
from ..run.returned import row_type
from ..run.status import Code, status_of, verdict
from ..spaces import Space
from .base import Method, ServedMethod
from .problem import MinimizeProblem

__all__ = ["State", "Stretch", "StretchState", "is_at_rest", "is_written", "told", "unlike"]


@record
class State:
    """A run between two steps, as data: what ``lg.start`` and ``lg.advance`` return, and ``result.state``.

    Nothing that is done with a state changes it: a run may go on from it any number of times.

    >>> import numpy as np, linop_gn as lg
    >>> line = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.eye(2))
    >>> lg.start(lg.LevenbergMarquardt(), line, np.zeros(2))
    State of LevenbergMarquardt after 0 steps: running, value 9
    """

    own: Any
    """The method's own state, a NamedTuple: ``state.own.level``."""
    start: Vector
    """Where the run began, flat."""
    method: Method
    space: Space = static()

    @property
    def params(self) -> Tree:
        """The parameters, in the format that the run was started with, in memory of their own."""
        self.require_own_arrays("state.params")
        ops = self.space.backend
        problem = MinimizeProblem(None, self.start, self.space)  # type: ignore[arg-type]
        x = ServedMethod(self.method).answer(ops, problem, self.own)
        return self.space.unpack(ops.copy(x) if "in_place" in ops.capabilities else x)

    @property
    def value(self) -> Scalar:
        """The objective, on the data of the latest step."""
        return self.own.value

    @property
    def code(self) -> Scalar:
        """The code of :attr:`status`, which a compiled program can hold."""
        return self.own.status

    @property
    def status(self) -> Any:
        """Whether the run goes on, or why it ended: a :class:`~linop_gn.Status`, or a list of them of many runs."""
        return status_of(self.own.status)

    @property
    def steps(self) -> Scalar:
        """Steps taken since the start."""
        return self.own.steps

    def require_own_arrays(self, asked: str) -> None:
        """Raise where the arrays are NumPy's and the run's were not: ``jax.tree.map(np.asarray, state)``."""
        backend = self.space.backend
        if isinstance(self.start, np.ndarray) and not backend.is_array(self.start):
            raise TypeError(
                f"{asked}: the state holds arrays of numpy, the run's were {backend.name}'s. lg.save_state and "
                f"lg.load_state keep a run; where you mapped over the state, {how_to_bring(backend)} for every array "
                "in it."
            )

    def without_operators(self) -> State:
        """The same with None for operators, which are made again at x where the run goes on."""
        own, of_data = self.own, self.method.of_data
        made = {name: _without_operators(getattr(own, name)) for name in of_data if name in own._fields}
        return rebuild(type(self), fields(self) | {"own": own._replace(**made)})

    def __reduce__(self) -> Any:
        """Copies and pickles are without operators."""
        return rebuild, (type(self), fields(self.without_operators()))

    def __repr__(self) -> str:
        return told(self.space.backend, ServedMethod(self.method).title, self.own)


def told(ops: Backend, title: str, own: Any) -> str:
    """A method's own state in a line."""
    if not ops.is_concrete(own):
        return f"State of {title} in a program that is being traced"
    if np.ndim(own.status):
        return f"{len(own.status)} states of {title}"
    steps, value = int(np.asarray(own.steps)), float(np.asarray(ops.read(own.value)))
    return f"State of {title} after {steps} steps: {status_of(own.status).name.lower()}, value {value:.6g}"


class StretchState(NamedTuple):
    """A method's own state, and of this stretch its steps and whether it goes on."""

    own: Any
    status: Scalar
    steps: Scalar


@record
class Stretch:
    """The iteration of ``most`` steps on from ``own``, a state of the method; from its first one where that is None.

    Its history begins anew, so that the program knows nothing of how long the whole run is.
    """

    served: ServedMethod
    own: Any = None
    most: Scalar = 0
    renew: bool = static(default=False)
    """Whether the problem's data are other ones than the state's."""

    @property
    def title(self) -> str:
        """The method's name."""
        return self.served.title

    def init(self, ops: Backend, problem: MinimizeProblem) -> StretchState:
        """The state to go on from, in memory of its own."""
        if self.own is None:
            own = self.served.init(ops, problem)
        else:
            own = _copied(ops, self.own)
            if self.renew:
                own = self.served.renew(ops, problem, own)
            status = ops.where(is_at_rest(own.status), Code.RUNNING, own.status)
            late = (status == Code.RUNNING) & (own.steps >= problem.max_steps)
            own = own._replace(status=verdict(ops, status, (late, Code.MAX_STEPS)))
        return self._told(ops, own, 0 * own.steps)

    def step(self, ops: Backend, problem: MinimizeProblem, state: StretchState) -> StretchState:
        """A step of the method."""
        running = state.own.status == Code.RUNNING
        own = self.served.step(ops, problem, state.own)
        return self._told(ops, own, state.steps + ops.where(running, 1, 0))

    def _told(self, ops: Backend, own: Any, steps: Scalar) -> StretchState:
        done = (own.status == Code.RUNNING) & (steps >= self.most)
        return StretchState(own, verdict(ops, own.status, (done, Code.COMPLETED)), steps)

    def observe(self, state: StretchState) -> NamedTuple:
        """The method's row, and behind it its status and the steps of this stretch: a look reads one array."""
        row = self.served.observe(state.own)
        names = (*row._fields, "status_of_method", "steps_of_stretch")
        return row_type("StretchRow", names)(*row, state.own.status, state.steps)

    def answer(self, ops: Backend, problem: MinimizeProblem, state: StretchState) -> Vector:
        """The method's answer."""
        return self.served.answer(ops, problem, state.own)


def unlike(had: Method, has: Method) -> list[str]:
    """What the one's state holds and the other's does not, in words: the parts named in ``kept_by``, numbers apart."""
    if had is has:
        return []
    was, now = ({k: v for f in m.kept_by for k, v in _kinds(f, attrgetter(f)(m)).items()} for m in (had, has))
    found: list[str] = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    # Not what is in a part that is another.
    whole = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    return [f"{name} was {was.get(name)}, is {now.get(name)}" for name in whole]


def _kinds(name: str, value: Any, fixed: bool = False) -> dict[str, str]:
    """Of a tree of records the types, what is static (``fixed``), and what is None."""
    if isinstance(value, dict):
        return {k: v for key, child in value.items() for k, v in _kinds(f"{name}.{key}", child).items()}
    if is_dataclass(value) and not isinstance(value, type):
        found, statics = {name: type(value).__qualname__}, static_fields(value)
        for f in getattr(value, "kept_by", (*statics, *data_fields(value))):
            found |= _kinds(f"{name}.{f}", attrgetter(f)(value), f in statics)
        return found
    if callable(value):
        return {name: getattr(value, "__qualname__", type(value).__qualname__)}
    plain = value is None or (fixed and isinstance(value, (bool, int, str, tuple)))
    return {name: repr(value) if plain else "given"}


def is_at_rest(status: Scalar) -> Scalar:
    """Whether a run with this status was ended from outside, and may go on."""
    return (status == Code.MAX_STEPS) | (status == Code.STOPPED) | (status == Code.COMPLETED)


def _without_operators(tree: Any) -> Any:
    """The tree with None for operators, and for records that hold one."""
    if isinstance(tree, (tuple, list)):
        made = [_without_operators(child) for child in tree]
        return type(tree)(*made) if hasattr(tree, "_fields") else type(tree)(made)
    return None if _holds_operator(tree) else tree


def _holds_operator(tree: Any) -> bool:
    if isinstance(tree, LinearOperator):
        return True
    children = fields(tree).values() if is_dataclass(tree) and not isinstance(tree, type) else ()
    return any(map(_holds_operator, children))


def _copied(ops: Backend, tree: Any) -> Any:
    """The tree with its arrays copied, since a step consumes them. What is in records is only read."""
    if isinstance(tree, (tuple, list)):
        made = [_copied(ops, child) for child in tree]
        return type(tree)(*made) if hasattr(tree, "_fields") else type(tree)(made)
    if isinstance(tree, dict):
        return {name: _copied(ops, child) for name, child in tree.items()}
    return ops.copy(tree) if ops.is_array(tree) else tree


def is_written(ops: Backend, leaf: Any) -> bool:
    """Whether a file can hold it."""
    if ops.is_array(leaf):
        return not ops.describe(leaf)[1].startswith("key")  # JAX's keys are opaque
    return leaf is None or isinstance(leaf, (bool, int, float, np.generic, np.ndarray))
