"""What each solver takes for a given operator: the rules behind :func:`linop_gn.cost`.

Vectors are counted as they are held at the peak of a solve with NumPy (tests
trace it); another framework may hold one or two more or fewer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..curvature.gram import root_of
from ..operators.base import LinearOperator
from ..operators.damped import undamped
from .cg import CG
from .dense import largest_block
from .direct import LU, Cholesky, Direct, Eigh
from .gltr import GLTR
from .gram import GramSolve
from .gram_space import keeps_rows
from .lanczos import Lanczos
from .lsmr import LSMR
from .lsqr import LSQR
from .minres import MINRES
from .multishift import MultiShiftCG
from .steihaug import Steihaug

__all__ = ["RULES", "Cost", "bytes_each"]

_WIDTH = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


class Cost(NamedTuple):
    """One route: what it is called, and what it takes."""

    route: str
    products: int
    memory: int
    """Bytes."""
    flops: float
    """Beside the products."""
    note: str = ""


def bytes_each(A: LinearOperator) -> int:
    """Bytes of a number."""
    return _WIDTH[A.dtype]


def _count(method: Any, steps: int) -> int:
    """The steps of a method that fixes them, or as many as are asked about."""
    given = (getattr(method, name, None) for name in ("steps", "max_steps"))
    return next((int(fixed) for fixed in given if fixed is not None), steps)


def _short_recurrence(name: str, vectors: int, flops: float) -> Any:
    """A square system: so many vectors, and so many flops an unknown and step."""

    def rule(A: LinearOperator, method: Any, steps: int) -> Cost:
        k, n = _count(method, steps), A.domain.size
        # One verifies that it has converged, or, with a norm of its own, that rounding has not spoiled x.
        sure = method.steps is not None and (name != "MINRES" or method.preconditioner is None)
        products = k if sure else k + 1
        return Cost(name, products, vectors * n * bytes_each(A), flops * n * k, f"{k} steps")

    return rule


def _bidiagonal(name: str, vectors: int) -> Any:
    """A least-squares problem: so many vectors of unknowns, three of residuals."""

    def rule(A: LinearOperator, method: Any, steps: int) -> Cost:
        k, (m, n) = _count(method, steps), A.shape
        memory = (vectors * n + 3 * m) * bytes_each(A)
        return Cost(name, 2 * k + 1, memory, (4.0 * m + 8.0 * n) * k, f"{k} steps; J and J^T apart")

    return rule


def _krylov(A: LinearOperator, method: Any, steps: int) -> Cost:
    n = A.domain.size
    k = min(int(method.steps), n)
    if not method.keep:
        return Cost("krylov, basis anew", 2 * k - 1, 9 * n * bytes_each(A), 10.0 * n * k, "two passes")
    passes = {"none": 0, "selective": 1, "full": 2}[method.reorthogonalise]
    flops = 10.0 * n * k + 2.0 * passes * n * k * k + 4.0 * k**3
    return Cost("krylov, basis kept", k, (k + 4) * n * bytes_each(A), flops, "every damping and radius")


def _gltr(A: LinearOperator, method: Any, steps: int) -> Cost:
    k = max(1, min(_count(method, steps), A.domain.size))
    made = _krylov(A, Lanczos(k, method.reorthogonalise), steps)
    checked = method.steps is None and bytes_each(A) < 8  # rounding may hide whether it has converged
    return made._replace(route="GLTR", products=made.products + checked, note=f"{k} steps; another radius is free")


def _multishift(A: LinearOperator, method: Any, steps: int) -> Cost:
    k, n, m = _count(method, steps), A.domain.size, len(method.dampings)
    products = k if method.steps is not None else k + m
    memory, flops = (3 * m + 5) * n * bytes_each(A), (10.0 + 6.0 * m) * n * k
    return Cost("MultiShiftCG", products, memory, flops, f"{k} steps for {m} dampings")


def _direct(name: str, copies: int, cubes: float) -> Any:
    """A dense matrix for each block: so many copies of it at a time, unit vectors and products among them."""

    def rule(A: LinearOperator, method: Direct, steps: int) -> Cost:
        known = A.sections or undamped(A)[0].sections
        sizes = [A.domain.size] if known is None else [section.size for section in known]
        n, width = max(sizes), 8 if method.double else max(4, bytes_each(A))
        blocks = f"{len(sizes)} blocks of up to {n}" if len(sizes) > 1 else ""
        memory = (2 * n * A.domain.size + (copies - 2) * sum(size * size for size in sizes)) * width
        return Cost(name, largest_block(A), memory, cubes * sum(size**3 for size in sizes), blocks)

    return rule


def _gram(A: LinearOperator, method: GramSolve, steps: int) -> Cost:
    ready: Any = undamped(A)[0].prepare()
    (m, n), width = root_of(ready.pieces, ready.factor, ready.space).shape, bytes_each(A)
    if method.solver is not None:
        k = _count(method.solver, steps)
        return Cost("GramSolve, CG", k + 4, (7 * m + 6 * n) * width, 10.0 * m * k, f"{k} steps with {m} outputs")
    factor = m**3 / 3.0
    if keeps_rows(method.rows, m, n):
        memory, flops = (2 * m * n + 3 * m * m + 4 * n) * width, 2.0 * m * m * n + factor
        return Cost("GramSolve, Cholesky", m + 1, memory, flops, f"{m} outputs; J^T alone")
    return Cost("GramSolve, Cholesky", m + 2, (5 * m * m + 6 * n) * width, factor, f"{m} outputs; J and J^T")


RULES: dict[type, Any] = {
    CG: _short_recurrence("CG", 5, 10.0),
    MINRES: _short_recurrence("MINRES", 11, 19.0),
    LSMR: _bidiagonal("LSMR", 6),
    LSQR: _bidiagonal("LSQR", 5),
    Lanczos: _krylov,
    GLTR: _gltr,
    Steihaug: _short_recurrence("Steihaug", 5, 12.0),
    MultiShiftCG: _multishift,
    Cholesky: _direct("Cholesky", 5, 1 / 3),
    LU: _direct("LU", 3, 2 / 3),
    Eigh: _direct("Eigh", 4, 9.0),
    GramSolve: _gram,
}
