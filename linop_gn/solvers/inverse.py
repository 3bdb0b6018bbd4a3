"""The inverse of an operator as an operator, each product of which is a solve: :func:`inverse`.

What takes products takes it: ``lg.eigsh(lg.inverse(A), k)`` are the eigenvalues of A nearest to zero, ``lg.trace(...)``
the trace of A^-1, ``J @ lg.inverse(A) @ J.T`` a predictive covariance. A product is as accurate as the solver's
tolerance, and the operator as symmetric: give a tolerance well below what is asked of the outer one.
``scipy.sparse.linalg`` has the factorisation of a matrix, ``factorized``, and nothing for operators.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

from ..operators.base import LinearOperator, require_operator
from ..protocols import Vector
from ..records import record, replace
from ..run.status import Status, succeeded
from ..spaces import Space
from .base import Solver, require_solver
from .cg import CG
from .lsmr import LSMR
from .minres import MINRES
from .problem import LinearProblem, require_fit
from .served import inner_solve

__all__ = ["Inverse", "inverse"]


@record
class Inverse(LinearOperator):
    """A^-1, by a solve for each product; made by :func:`inverse`."""

    operator: LinearOperator
    solver: Solver
    preconditioner: LinearOperator | None = None

    @property
    def domain(self) -> Space:
        return self.operator.codomain

    @property
    def codomain(self) -> Space:
        return self.operator.domain

    @property
    def symmetric(self) -> bool:
        return self.operator.symmetric

    @property
    def psd(self) -> bool:
        return self.operator.psd

    def _prepare(self) -> LinearOperator:
        inner = None if self.preconditioner is None else self.preconditioner.prepare()
        return Inverse(self.solver.prepared(self.operator), self.solver, inner)

    def matvec(self, v: Vector) -> Vector:
        return self._solved(self.operator, v)

    def rmatvec(self, u: Vector) -> Vector:
        return self._solved(self.operator if self.symmetric else self.operator.T, u)

    def _solved(self, operator: LinearOperator, b: Vector) -> Vector:
        ops = self.backend
        found = inner_solve(ops, self.solver, LinearProblem(operator, b, None, self.preconditioner))
        good = succeeded(found.status)
        if ops.is_concrete(found.status) and not bool(good):
            status = Status(int(found.status))
            warnings.warn(
                f"lg.inverse: a product is NaN, because its solve by {self.solver.title} ended {status}: "
                f"{status.sentence}",
                RuntimeWarning,
                stacklevel=2,
            )
        return ops.scale(ops.where(good, 1.0, math.nan), found.x)


def inverse(A: LinearOperator, solver: Solver | None = None) -> Inverse:
    """A^-1 as an operator; its products are NaN where the solve was no success, with a warning except on JAX.

    Parameters
    ----------
    A
        Operator that the solver takes. A singular one has a product where the solver has an answer: ``lg.Eigh()``
        that of the pseudo-inverse.
    solver
        One that solves systems; by default, to a tolerance of 1e-8 or a hundred round-offs, ``lg.CG`` for a positive
        semi-definite operator, ``lg.MINRES`` for a symmetric one, else ``lg.LSMR``. Its preconditioner is made once.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Diagonal(np.array([1.0, 2.0, 4.0]))
    >>> (lg.inverse(A) @ np.ones(3)).round(6)
    array([1.  , 0.5 , 0.25])
    >>> lg.eigsh(lg.inverse(A), k=1).values.round(6) ** -1  # the smallest of A
    array([1.])

    Raises
    ------
    TypeError, ValueError
        For an operator that the solver does not take, or a solver that solves no systems.
    """
    require_operator("inverse", A)
    if not A.domain.agrees(A.codomain):
        raise ValueError(f"inverse needs a square operator, got {A!r}; take A.T @ A, damped where that is singular.")
    if solver is None:
        rtol = max(1e-8, 100.0 * A.backend.eps(A.domain.zeros()))
        solver = CG(rtol=rtol) if A.psd else MINRES(rtol=rtol) if A.symmetric else LSMR(atol=rtol, btol=rtol)
    require_solver("inverse", solver, "a solver such as lg.CG() as its second argument")
    if not solver.solves_system:
        raise TypeError(f"inverse needs a solver of systems, and {solver.title} minimises within a region or a budget.")
    solver.check(A)
    given: Any = solver.preconditioner
    if given is not None:
        given = given if isinstance(given, LinearOperator) else given(A)
        require_fit(given, A)
        solver = replace(solver, preconditioner=None)
    return Inverse(A, solver, given)
