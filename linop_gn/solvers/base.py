"""What a solver is: four pure functions over a state, and what else it declares.

A solver derives from :class:`Solver`, is a record, and defines ``init``, ``step``,
``observe`` and ``answer`` over a NamedTuple with ``status`` and ``steps``. All else
has a default, and what a solver does not do by itself is done for it
(:mod:`linop_gn.solvers.served`). ``docs/writing_a_solver.md`` has an example.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

from ..arguments import require_instance
from ..operators.base import LinearOperator
from ..operators.partition import LeafBlock, Partition
from ..protocols import Backend, Vector
from ..records import record
from ..spaces import Space
from .block_arithmetic import block_arithmetic
from .problem import LinearProblem

__all__ = ["Cost", "Solver", "bytes_each", "bytes_of", "each", "require_solver", "short_recurrence"]

SUPPORTED = frozenset({"x0", "columns", "blocks", "report"})
_WIDTH = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


class Cost(NamedTuple):
    """One route: what it is called, and what it takes."""

    route: str
    products: int
    memory: int
    """Bytes; of each device, where vectors are divided among several."""
    flops: float
    """Beside the products."""
    note: str = ""


def bytes_each(A: LinearOperator) -> int:
    """Bytes of a number."""
    return _WIDTH[A.dtype]


def each(A: LinearOperator, eager: float, compiled: float) -> float:
    """What is held where each operation is done as it is asked for, or in a compiled program: measured on the CPU.

    A compiler does not always write over what is no longer needed, and runs operations early where it may.
    """
    return compiled if "compiled" in A.backend.capabilities else eager


def bytes_of(A: LinearOperator, vectors: float, space: Space | None = None) -> int:
    """Bytes that so many vectors of the domain (or of ``space``) take on each device."""
    space = A.domain if space is None else space
    parts = 1 if space.layout is None else space.layout.devices
    return int(vectors * -(-space.width // parts) * bytes_each(A))


@record
class Solver(ABC):
    """The base of all solvers, ours and yours.

    Required are ``init``, ``step``, ``observe`` and ``answer``: without them none can be made. The rest has the
    defaults that stand here.

    Attributes
    ----------
    square, symmetric
        The operators that it takes, for :meth:`check`: square ones (True), symmetric ones (False).
    supports
        What it does by itself: ``"x0"`` (a start), ``"columns"`` (scalars (k,) for b of (n, k)), ``"blocks"`` (runs in
        ``Blockwise``), ``"report"`` (of this package's solvers: they count, verify and end their runs
        themselves, so that nothing is looked at).
    solves_system
        Whether x is the solution of A x = b (of the least-squares problem, if not ``square``), up to a tolerance.
        Only then can it be differentiated, and a start be taken off the right-hand side.
    minimises_model
        Whether the answer is one vector that makes 1/2 x.A x - b.x small, which methods can step along.
    ends_soon
        Whether a run seldom takes more than one step: compiled, the first then stands before the loop, and twice.
    steps, max_steps, preconditioner
        Options that have a meaning to others: a solver that has them makes fields of them.
    """

    square: ClassVar[bool] = True
    symmetric: ClassVar[bool] = False
    supports: ClassVar[frozenset[str]] = frozenset()
    solves_system: ClassVar[bool] = True
    minimises_model: ClassVar[bool] = True
    ends_soon: ClassVar[bool] = False

    # No fields, but attributes that a subclass may make fields of.
    steps = None  # type: Any
    max_steps = None  # type: Any
    preconditioner = None  # type: Any

    def __init_subclass__(cls) -> None:
        given = cls.__dict__.get("supports", frozenset())
        if not isinstance(given, property) and not (isinstance(given, (frozenset, set)) and given <= SUPPORTED):
            raise TypeError(f"{cls.__name__}: supports must be a frozenset of {sorted(SUPPORTED)}, got {given!r}.")

    # required

    @abstractmethod
    def init(self, ops: Backend, problem: LinearProblem) -> Any:
        """The state before the first step: a NamedTuple with ``status`` and ``steps``."""

    @abstractmethod
    def step(self, ops: Backend, problem: LinearProblem, state: Any) -> Any:
        """The next state; consumes the given one, and leaves what has ended as it is."""

    @abstractmethod
    def observe(self, state: Any) -> Any:
        """A NamedTuple of scalars: the row of the history for this state."""

    @abstractmethod
    def answer(self, ops: Backend, problem: LinearProblem, state: Any) -> Vector:
        """The solution x; consumes the state."""

    def stride(self, ops: Backend, problem: LinearProblem, state: Any, rows: list[Any] | None) -> Any:
        """``step``, or several where nobody looks between: rows of the states on the way, but the last, are appended.

        Asked by loops in Python, where to make a state takes as long as some operations, of a class that defines it
        with ``step``. What is raised on the way is to :func:`linop_gn.protocols.leave_with` the state that was reached.
        Without ``rows`` none are wanted.
        """
        return self.step(ops, problem, state)

    def steps_ahead(self, problem: LinearProblem, state: Any) -> int | None:
        """How many steps may be taken from here before a scalar is looked at; None where none ever may.

        Asked where reading a scalar takes longer than arithmetic with it. After 0 the next step is taken as ever.
        """
        return None

    def ahead(self, ops: Any, problem: LinearProblem, state: Any, steps: int) -> Any:
        """The state with the vectors of so many ordinary steps on, and its scalars as they are: ``step`` finds them.

        The numbers of ``ops`` stay where vectors are. It has ``dot``, ``sqrt``, ``axpy``, ``axpby``, ``scale``,
        ``copy``, and ``project``, ``deflate``, ``row``, ``store`` of bases; ``dot`` and ``project`` are to be asked in
        the order in which ``step`` asks them. The given state's vectors are left as they are; it is returned itself
        where it holds those of each state between.
        """
        raise NotImplementedError(f"{self.title} tells steps_ahead, and has no method ahead.")

    # declared

    @property
    def title(self) -> str:
        """How a solution names the solver."""
        return type(self).__name__

    def check(self, operator: LinearOperator) -> None:
        """Raise unless the operator is of the kind that the solver takes."""
        if (self.square or self.symmetric) and not operator.domain.agrees(operator.codomain):
            raise ValueError(
                f"{self.title} needs a square operator, got {operator!r}; "
                "for least-squares problems there are LSMR and LSQR."
            )
        if self.symmetric and not operator.symmetric:
            raise ValueError(
                f"{self.title} needs a symmetric operator, and {operator!r} is not known to be. Declare it "
                "(symmetric=True; of lg.complex_operator hermitian=True) if it is; otherwise use LSMR or LSQR, which "
                "need products with A and its adjoint, or solve the normal equations with A.T @ A, whose symmetry is "
                "known."
            )

    def prepared(self, operator: LinearOperator) -> LinearOperator:
        """The operator with the work done that this solver's products share: what it is then called with."""
        return operator.prepare()

    def limit(self, problem: LinearProblem) -> int:
        """The steps that a run may take: ``steps``, ``max_steps``, or min(10 n, 10000). A size of the program."""
        fixed = self.max_steps if self.steps is None else self.steps
        if type(fixed) is int and fixed < 2**31:
            return fixed
        return min(10 * min(problem.operator.shape), 10_000) if fixed is None else min(int(fixed), 2**31 - 1)

    def cost(self, operator: LinearOperator, steps: int) -> Cost:
        """What a solve takes, for so many steps unless the solver fixes them; its preconditioner apart."""
        raise TypeError(
            f"the cost of {self.title} is not known: give it a method cost(operator, steps) that returns an lg.Cost."
        )

    def planned(self, steps: int) -> int:
        """``steps`` or ``max_steps`` of the solver; if it has neither, those given."""
        fixed = self.max_steps if self.steps is None else self.steps
        return steps if fixed is None else int(fixed)

    def defect(self, operator: LinearOperator, rhs: Vector, x: Vector) -> Vector:
        """What x makes small, for all values of the data: b - A x."""
        made: Vector = operator.backend.subtract(rhs, operator.apply(x))
        return made

    def tangent(self, operator: LinearOperator) -> tuple[LinearOperator, Solver | None]:
        """Minus the derivative of the defect in x, and a solver for it; None for CG."""
        return operator, self

    def recomputed(self, ops: Any, problem: LinearProblem, x: Vector, row: Any) -> tuple[Any, int]:
        """The row for the answer x as it is, and the products it took; ``row``, the latest, if steps leave x whole.

        Asked where a run is broken off: steps that write over x may have done so before their state was there.
        """
        return row, 0

    def iterates(self, ops: Backend, problem: LinearProblem, state: Any, x: Vector) -> Any:
        """The iterates that were kept, the last of them x; None for none."""
        return None

    # of solvers that run side by side on blocks

    def partition(self, problem: LinearProblem) -> Partition | tuple[LeafBlock, ...] | None:
        """Blocks that have a status each, of leaves where vectors have a layout; None for columns, or one number."""
        return None

    def arithmetic(self, ops: Any, problem: LinearProblem) -> Any:
        """The arithmetic of the state's scalars: that of the backend, or with one for each block."""
        partition = self.partition(problem)
        return ops if partition is None else block_arithmetic(ops, partition, problem.operator.domain.layout)


def short_recurrence(solver: Solver, A: LinearOperator, k: int, sure: bool, vectors: float, flops: float) -> Cost:
    """The cost of k steps with so many vectors, and flops an unknown and step; unless ``sure``, x is verified."""
    return Cost(solver.title, k if sure else k + 1, bytes_of(A, vectors), flops * A.domain.size * k, f"{k} steps")


def require_solver(owner: str, solver: Any, wanted: str = "a solver such as lg.CG()") -> None:
    """Raise unless ``solver`` is a solver, and a record; ``wanted`` says what would be one."""
    require_instance(owner, solver, Solver, wanted, "A solver of your own derives from lg.Solver.")
