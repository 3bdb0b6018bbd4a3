"""One independent solve for each block of a block operator, all run together.

Layerwise Gauss-Newton solves B s = -g with B = blockdiag(B_1, ..., B_L). One
run of CG on B takes as many steps as the union of all spectra asks for, with
one step length for all layers; L runs take what each block needs, but one after
the other. Here the L runs go side by side: one product with B serves them all,
each has its own step lengths, its own status and its own end, and what has
ended stands still. The method's source is run unchanged, with a scalar for each
block (:mod:`linop_gn.solvers.block_arithmetic`).
"""

from __future__ import annotations

from typing import Any

from ..operators.base import LinearOperator
from ..operators.damped import Identity, leaf_blocks_of, partition_of, undamped
from ..operators.diagonal import Diagonal
from ..operators.partition import LeafBlock, Partition
from ..protocols import Backend, Vector
from ..records import record, replace
from .base import Cost, Solver, bytes_of, require_solver
from .cg import CG
from .direct import Direct
from .problem import LinearProblem

__all__ = ["Blockwise"]


@record
class Blockwise(Solver):
    """``method`` on each block of the operator, side by side.

    Parameters
    ----------
    method
        A solver for square systems; its tolerances, limits and rules hold for each block by itself.
        Where it has no limit on steps of its own, the limit is that for all unknowns together.
    preconditioner
        That of ``method`` if left out. It must not mix blocks: a ``Diagonal``, or an operator with blocks
        of its own inside these.

    The operator is a ``BlockGGN``, a ``BlockDiagonal``, or one of them damped; where parameters are sharded, blocks are
    of whole leaves. ``solution.status``,
    ``steps``, ``products`` and ``residual`` have an entry for each block, in the order of
    ``solution.blocks``, their names; the products with the whole operator are the most that a block took.

    >>> import numpy as np, linop_gn as lg
    >>> blocks = (lg.Diagonal(np.array([1.0, 1.0]), psd=True), lg.Diagonal(np.array([1.0, 2.0, 3.0]), psd=True))
    >>> lg.solve(lg.BlockDiagonal(blocks), np.ones(5), lg.Blockwise(lg.CG(rtol=1e-8)))
    Blockwise CG, 2 blocks: 2 converged; at most 3 steps, 4 products
      0  converged after 1 steps; residual 0
      1  converged after 3 steps; residual ...
    The tolerance was met.
    """

    method: Solver = CG()
    preconditioner: Any = None

    def __post_init__(self) -> None:
        require_solver("Blockwise", self.method)
        inner = self.method.preconditioner
        if inner is not None:
            if self.preconditioner is not None:
                raise ValueError("Blockwise: give the preconditioner once, here or to the method.")
            object.__setattr__(self, "preconditioner", inner)
            object.__setattr__(self, "method", replace(self.method, preconditioner=None))

    @property
    def supports(self) -> frozenset[str]:  # type: ignore[override]
        """What the method does; columns are refused."""
        return (self.method.supports | {"columns"}) - {"blocks"}

    @property
    def title(self) -> str:
        """How a solution names the method."""
        return f"Blockwise {self.method.title}"

    def check(self, operator: LinearOperator) -> None:
        """Raise unless the operator knows its blocks, and the method takes it."""
        if "blocks" not in self.method.supports:
            advice = " (Direct solvers factor a block operator block by block by themselves.)"
            raise TypeError(
                f"Blockwise cannot run {type(self.method).__name__} side by side: use CG or MINRES."
                + (advice if isinstance(self.method, Direct) else "")
            )
        self.method.check(operator)
        _blocks_of(operator)

    def limit(self, problem: LinearProblem) -> int:
        """The number of steps that a block's run may take."""
        return self.method.limit(problem)

    def cost(self, operator: LinearOperator, steps: int) -> Cost:
        made = self.method.cost(operator, steps)
        return made._replace(route=f"Blockwise {made.route}", memory=made.memory + bytes_of(operator, 1))

    def partition(self, problem: LinearProblem) -> Partition | tuple[LeafBlock, ...]:
        """The blocks, in the order in which results are given."""
        return _blocks_of(problem.operator)

    def init(self, ops: Backend, problem: LinearProblem) -> Any:
        partition = self.partition(problem)
        if len(problem.rhs.shape) != 1:
            raise ValueError(
                f"Blockwise takes one right-hand side at a time, got {problem.rhs.shape[1]} columns; solve for each, "
                f"or for all of them with {type(self.method).__name__} itself."
            )
        inner = problem.preconditioner
        if inner is not None and not _keeps_apart(inner, partition):
            raise ValueError(
                f"the preconditioner {inner!r} is not known to keep the blocks "
                f"{[block.name for block in partition]} apart. Use a Diagonal, or a BlockDiagonal with these blocks."
            )
        return self.method.init(self.arithmetic(ops, problem), problem)

    def step(self, ops: Backend, problem: LinearProblem, state: Any) -> Any:
        return self.method.step(self.arithmetic(ops, problem), problem, state)

    def observe(self, state: Any) -> Any:
        return self.method.observe(state)

    def answer(self, ops: Backend, problem: LinearProblem, state: Any) -> Vector:
        return self.method.answer(self.arithmetic(ops, problem), problem, state)

    def iterates(self, ops: Backend, problem: LinearProblem, state: Any, x: Vector) -> Any:
        return self.method.iterates(self.arithmetic(ops, problem), problem, state, x)

    def recomputed(self, ops: Any, problem: LinearProblem, x: Vector, row: Any) -> tuple[Any, int]:
        return self.method.recomputed(ops, problem, x, row)


def _blocks_of(operator: LinearOperator) -> Partition | tuple[LeafBlock, ...]:
    """Ranges of entries; where vectors lie over several devices, leaves."""
    found = partition_of(operator) if operator.domain.layout is None else leaf_blocks_of(operator)
    if found is None:
        raise ValueError(
            f"Blockwise needs an operator with blocks, and {operator!r} knows of none. Use lg.BlockGGN, "
            "lg.BlockDiagonal, or one of them damped; for other operators there is the method itself."
        )
    return found


def _keeps_apart(operator: LinearOperator, blocks: Partition | tuple[LeafBlock, ...]) -> bool:
    """Whether the operator's own blocks lie inside these."""
    operator = undamped(operator)[0]
    if isinstance(operator, (Diagonal, Identity)):
        return True
    own = operator.partition if operator.domain.layout is None else operator.leaf_blocks
    return own is not None and all(any(_within(part, block) for block in blocks) for part in own)


def _within(part: Any, whole: Any) -> bool:
    if isinstance(part, LeafBlock):
        return set(part.leaves) <= set(whole.leaves)
    return all(any(a <= start and stop <= b for a, b in whole.ranges) for start, stop in part.ranges)
