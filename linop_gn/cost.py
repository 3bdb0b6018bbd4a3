"""What a solve will cost, before it is run: products, memory, and the arithmetic beside the products.

A product with the operator is one with J and one with J^T for Gauss-Newton
operators; where a route takes J^T alone, that counts as one as well, as it does
in ``Solution.products``. Memory is that of the vectors and matrices that the
route holds at its peak, without the operator's own (a linearisation keeps the
model's activations) and without what the framework allocates for a product.
Flops are leading terms. A route with steps is told for ``steps`` of them, which
is what it may need and not what it will need.

Methods and recipes of your own say their cost with a method ``cost(operator,
steps)`` that returns a :class:`Cost`, and ``cost(operator)`` that returns
products and numbers kept.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .arguments import require_parts, whole
from .lanczos.gltr import GLTR
from .lanczos.process import Lanczos
from .operators.base import LinearOperator
from .operators.damped import undamped
from .solvers.blockwise import Blockwise
from .solvers.cg import CG
from .solvers.dense import largest_block
from .solvers.direct import LU, Cholesky, Direct, Eigh
from .solvers.gram import GramSolve
from .solvers.gram_space import keeps_rows
from .solvers.lsmr import LSMR
from .solvers.lsqr import LSQR
from .solvers.minres import MINRES
from .solvers.multishift import MultiShiftCG
from .solvers.problem import Recipe
from .solvers.steihaug import Steihaug

__all__ = ["RULES", "Cost", "Costs", "bytes_each", "cost"]


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
    m, n, width = sum(math.prod(piece.outputs.shape) for piece in ready.pieces), A.domain.size, bytes_each(A)
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


class Costs(tuple[Cost, ...]):
    """Routes, cheapest in products first; prints as a table."""

    def __repr__(self) -> str:
        head = ("route", "products", "memory", "flops beside", "")
        rows = [(c.route, str(c.products), _bytes(c.memory), f"{c.flops:.2g}", c.note) for c in self]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(4)]
        lines = []
        for row in [head, *rows]:
            cells = [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, 4)), row[4]]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)


def cost(A: LinearOperator, method: Any = None, *, steps: int = 50) -> Costs:
    """What solving with ``A`` takes by ``method``, or by every route that there is for it.

    Parameters
    ----------
    A
        The operator, damped as it will be. A curvature operator is linearised, which the solve would do anyway.
    method
        A solver, with its preconditioner if it has one; None for all routes.
    steps
        For methods whose number of steps is not fixed by themselves.

    >>> import numpy as np, linop_gn as lg
    >>> x = np.ones((3, 1000))
    >>> line = lg.Objective.from_residuals(lambda w: x @ w - 1.0, jacobian=lambda w: x)
    >>> lg.cost(lg.Damped(lg.GGN(line, np.zeros(1000)), 0.1), steps=20)
    route                products    memory  flops beside
    GramSolve, Cholesky         4  78.3 kiB       1.8e+04  3 outputs; J^T alone
    GLTR                       20   188 kiB         1e+06  20 steps; another radius is free
    krylov, basis kept         20   188 kiB         1e+06  every damping and radius
    CG                         21  39.1 kiB         2e+05  20 steps
    MINRES                     21  85.9 kiB       3.8e+05  20 steps
    Steihaug                   21  39.1 kiB       2.4e+05  20 steps
    GramSolve, CG              24    47 kiB         6e+02  20 steps with 3 outputs
    krylov, basis anew         39  70.3 kiB         2e+05  two passes
    Cholesky                 1000  38.1 MiB       3.3e+08
    LU                       1000  22.9 MiB       6.7e+08
    Eigh                     1000  30.5 MiB         9e+09
    >>> lg.cost(lg.Diagonal(np.ones(10)), lg.CG(steps=5, preconditioner=lg.preconditioners.Jacobi()))
    route        products  memory  flops beside
    CG + Jacobi         5   560 B         6e+02  5 steps

    Raises
    ------
    TypeError, ValueError
        For what is no operator, a method that does not take it, or one whose cost is not known.
    """
    if not isinstance(A, LinearOperator):
        raise TypeError(f"cost needs a linear operator, got {type(A).__qualname__}; wrap a matrix in lg.Dense.")
    steps = whole("cost", "steps", steps, 1)
    if method is not None:
        require_parts("cost", method, "a solver such as lg.CG() as its second argument", "check")
        method.check(A)
        return Costs([_of(A, method, steps)])
    routes = [route for route in _routes(A, steps) if _takes(A, route)]
    return Costs(sorted((_of(A, route, steps) for route in routes), key=lambda c: c.products))


def _routes(A: LinearOperator, steps: int) -> list[Any]:
    if not A.domain.agrees(A.codomain):
        return [LSMR(), LSQR()]
    routes: list[Any] = [Cholesky(), LU(), Eigh()] if A.symmetric else [LU(), LSMR(), LSQR()]
    if A.symmetric:
        routes += [CG(), MINRES(), Steihaug(), GLTR(), Lanczos(steps), Lanczos(steps, "none", keep=False)]
        routes.append(Blockwise(CG()))
    return [*routes, GramSolve(), GramSolve(solver=CG())]


def _takes(A: LinearOperator, route: Any) -> bool:
    if isinstance(route, (CG, Cholesky, Blockwise)) and not A.psd:
        return False  # it may be definite all the same, but that is not known
    try:
        route.check(A)
    except ValueError:
        return False
    return True


def _of(A: LinearOperator, method: Any, steps: int) -> Cost:
    if isinstance(method, Blockwise):
        return _blockwise(A, method, steps)
    own = getattr(method, "cost", None)
    made: Cost
    if own is not None:
        made = own(A, steps)
    else:
        known = next((rule for kind, rule in RULES.items() if isinstance(method, kind)), None)
        if known is None:
            raise TypeError(
                f"the cost of {type(method).__name__} is not known: give it a method cost(operator, steps) that "
                "returns an lg.Cost."
            )
        made = known(A, method, steps)
    return _preconditioned(A, getattr(method, "preconditioner", None), made)


def _preconditioned(A: LinearOperator, given: Any, made: Cost) -> Cost:
    if given is None:
        return made
    products, numbers, name = 0, 0, type(given).__name__
    if isinstance(given, Recipe):
        tell = getattr(given, "cost", None)
        name = getattr(getattr(given, "make", None), "__name__", name)
        products, numbers = tell(A) if tell is not None else (0, 0)
    n = A.domain.size
    return made._replace(
        route=f"{made.route} + {name}",
        products=made.products + products,
        memory=made.memory + (numbers + n) * bytes_each(A),
        flops=made.flops + 2.0 * max(numbers, n) * made.products,
    )


def _blockwise(A: LinearOperator, method: Blockwise, steps: int) -> Cost:
    made = _of(A, method.method, steps)
    made = made._replace(route=f"Blockwise {made.route}")
    return _preconditioned(A, method.preconditioner, made)


def _bytes(number: float) -> str:
    for unit in ("B", "kiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.3g} TiB"
