"""Methods as pure functions, and the loops that a backend runs them in."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from .types import Array, Vector

if TYPE_CHECKING:
    from .backend import Backend

__all__ = ["Carry", "Iteration", "Loops", "leave_with"]

R = TypeVar("R")
T = TypeVar("T")


class Iteration(Protocol):
    """What a loop runs, a linear solver or an ``lg.Method``: pure functions over a state, without a loop.

    The state is a NamedTuple with at least ``status`` and ``steps``. A step is
    *total*: taken after the status is set, it changes nothing. No two leaves of
    an initial state share a buffer.
    """

    def init(self, ops: Backend, problem: Any) -> Any:
        """The state before the first step."""

    def step(self, ops: Backend, problem: Any, state: Any) -> Any:
        """The next state; consumes the given one."""

    def observe(self, state: Any) -> NamedTuple:
        """The row of scalars to keep for this state: its field names are the history's columns."""

    def answer(self, ops: Backend, problem: Any, state: Any) -> Any:
        """What the caller gets from the final state."""


class Carry(NamedTuple):
    """What a loop carries: the method's state and the rows observed so far."""

    state: Any
    rows: Any


def leave_with(error: BaseException, carry: Carry) -> None:
    """What was raised leaves with how far its run had come; of one run, what was told first stays."""
    held = getattr(error, "carry", None)
    if held is None or held.rows is not carry.rows:
        with suppress(AttributeError):
            error.carry = carry  # type: ignore[attr-defined]


class Loops(Protocol):
    """Calling pure functions over records: directly, or compiled once for each structure of their data.

    A row of the history belongs to a *step*, ``max(state.steps)``. A method may take
    a tick that counts no step (to verify a residual, say): the row is then written
    over the one of the same step, so that there are always rows 0 .. steps.
    """

    def call(self, function: Callable[..., R], *records: Any) -> R:
        """``function(*records)``; compiled where the framework compiles, keyed by ``function``'s identity."""

    def begin(self, method: Iteration, problem: Any, capacity: int) -> Carry:
        """The initial carry, with its first row; room for ``capacity`` further rows."""

    def advance(self, method: Iteration, problem: Any, carry: Carry, steps: int) -> Carry:
        """At most ``steps`` further calls of ``method.step``, fewer if the method stops. Consumes the carry."""

    def run(self, method: Iteration, problem: Any, capacity: int) -> Carry:
        """Begin and advance until the method stops (however many ticks), unwatched, as one program where possible."""

    def iterate(self, method: Iteration, problem: Any) -> Any:
        """The final state of a sub-solver, run until it stops inside another method's step; it has no rows."""

    def implicit(
        self, run: Callable[[Any, Any], tuple[Vector, R]], method: Any, problem: Any, operator: Any
    ) -> tuple[Vector, R]:
        """``run(method, problem)``: the answer of a solve, and what there is to tell of it.

        Where the framework is recording derivatives, those of the answer follow from the system that it solves
        (:mod:`linop_gn.implicit`), not from the run; nothing else in the result has any. ``operator`` is the
        problem's as the user gave it, before its per-point work was done.
        """

    def constant(self, tree: T, advice: str) -> T:
        """The tree; a derivative that is taken through it raises NotImplementedError with the advice.

        Frameworks whose results carry no graph, or that record none, return it as it is.
        """

    def read(self, tree: Any) -> Any:
        """The tree with its arrays on the host as NumPy arrays or numbers, in one transfer."""

    def rows(self, carry: Carry, start: int, stop: int) -> Any:
        """Rows from ``start`` to ``stop``, without it, as a host array (rows, fields[, k])."""

    def sum_over(self, function: Callable[..., R], stacked: Any, *shared: Any) -> R:
        """The sum over leading index i of ``function(stacked[i], *shared)``, whose result is a tree of arrays.

        ``stacked`` is a tree of arrays (a record where records are trees to the framework), or ``range(count)``.
        """

    def over_columns(self, function: Callable[[Vector], Vector], columns: Vector, together: int = 1) -> Vector:
        """``function`` of each column (n,) of (n, k), results side by side (m, k); one copy of it in a trace.

        ``together``: as many columns may go through a function of the framework's products in one pass.
        """

    def over_rows(self, function: Callable[[Vector], list[Array]], rows: Array, together: int = 1) -> list[Array]:
        """``function`` of each row (n,) of (k, n), each array of its results stacked along a new leading axis (k, ...).

        ``together`` is that of :meth:`over_columns`.
        """
        ...

    def scan_over(self, function: Callable[..., tuple[Any, Any]], stacked: Any, *shared: Any) -> tuple[Any, Any]:
        """Run ``function(stacked[i], *shared) -> (part, piece)`` over the leading index i, as one loop in a program.

        Returns the sum of the parts (a tree of arrays) and the pieces, stacked along a new leading axis.
        """

    def by_parts(self, function: Callable[..., Array], size: int, x: Array, *data: Any) -> Array:
        """``function(rows of x, of data...)``, like these rows, of ``size`` rows of all at a time, put together.

        ``data`` are arrays with as many rows, trees of them, or None. It need not be cut where that would hold no less.
        """

    def afresh(self, x: T, arguments: R) -> tuple[T, R]:
        """Both as they are, where what is computed of ``x`` is to be computed again for each ``arguments``.

        A compiler would take what depends on ``x`` alone out of a loop, and keep what memory is too short for.
        """

    def describe_of(self, function: Callable[..., Array], *records: Any) -> tuple[tuple[int, ...], str, Hashable]:
        """What :meth:`Arrays.describe` says of ``function(*records)``; not computed where the framework can tell."""
