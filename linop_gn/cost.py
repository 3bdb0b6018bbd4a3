"""What a solve will cost, before it is run: products, memory, and the arithmetic beside the products.

A product with the operator is one with J and one with J^T for Gauss-Newton
operators; where a route takes J^T alone, that counts as one as well, as it does
in ``Solution.products``. Memory is that of the vectors and matrices that the
route holds at its peak, the solution among them, beyond operator and right-hand
side: counted for each route where operations are done as they are asked for
(NumPy, torch, CuPy) and in JAX's programs, and within a fifth of what is measured
there. It is told without the operator's own (a linearisation keeps the model's
activations, unless the objective's ``memory="low"``) and without what the
framework allocates inside a product. Where vectors are divided among devices it
is that of each. JAX's programs for the CPU may hold more than their solver needs:
XLA begins operations before they are needed, to run some at once (with
``compiler_options={"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}``
in ``jax.jit`` it does not).
Flops are leading terms. A route with steps is told for ``steps`` of them, which
is what it may need and not what it will need.

Solvers and recipes say their cost themselves, yours as well: with a method
``cost(operator, steps)`` that returns a :class:`Cost`, and ``cost(operator)``
that returns products and numbers stored.
"""

from __future__ import annotations

from typing import Any

from .arguments import whole
from .foreign import advised
from .lanczos.gltr import GLTR
from .lanczos.process import Lanczos
from .operators.base import LinearOperator, require_operator
from .solvers.base import Cost, Solver, bytes_of, require_solver
from .solvers.blockwise import Blockwise
from .solvers.cg import CG
from .solvers.direct import LU, Cholesky, Eigh
from .solvers.gram import GramSolve
from .solvers.lsmr import LSMR
from .solvers.lsqr import LSQR
from .solvers.minres import MINRES
from .solvers.problem import Recipe
from .solvers.steihaug import Steihaug

__all__ = ["Cost", "Costs", "cost"]


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


@advised
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
    GramSolve, Cholesky         4  62.6 kiB       1.8e+04  3 outputs; J^T alone
    GLTR                       20   180 kiB         1e+06  20 steps; another radius is free
    krylov, basis kept         20   180 kiB         1e+06  every damping and radius
    CG                         21  39.1 kiB         2e+05  20 steps
    MINRES                     21  85.9 kiB       3.8e+05  20 steps
    Steihaug                   21  39.1 kiB       2.4e+05  20 steps
    GramSolve, CG              24  31.4 kiB         6e+02  20 steps with 3 outputs
    krylov, basis anew         39  70.3 kiB         2e+05  two passes
    Cholesky                 1000  38.1 MiB       3.3e+08
    LU                       1000  22.9 MiB       6.7e+08
    Eigh                     1000  45.8 MiB         9e+09
    >>> lg.cost(lg.Diagonal(np.ones(10)), lg.CG(steps=5, preconditioner=lg.preconditioners.Jacobi()))
    route        products  memory  flops beside
    CG + Jacobi         5   480 B         6e+02  5 steps

    Raises
    ------
    TypeError, ValueError
        For what is no operator, a method that does not take it, or one whose cost is not known.
    """
    require_operator("cost", A)
    steps = whole("cost", "steps", steps, 1)
    if method is not None:
        require_solver("cost", method, "a solver such as lg.CG() as its second argument")
        method.check(A)
        return Costs([_of(A, method, steps)])
    routes = [route for route in _routes(A, steps) if _takes(A, route)]
    return Costs(sorted((_of(A, route, steps) for route in routes), key=lambda c: c.products))


def _routes(A: LinearOperator, steps: int) -> list[Solver]:
    if not A.domain.agrees(A.codomain):
        return [LSMR(), LSQR()]
    routes: list[Solver] = [Cholesky(), LU(), Eigh()] if A.symmetric else [LU(), LSMR(), LSQR()]
    if A.symmetric:
        routes += [CG(), MINRES(), Steihaug(), GLTR(max_steps=steps)]
        routes += [Lanczos(steps), Lanczos(steps, "none", keep=False), Blockwise(CG())]
    return [*routes, GramSolve(), GramSolve(solver=CG())]


def _takes(A: LinearOperator, route: Solver) -> bool:
    if isinstance(route, (CG, Cholesky, Blockwise)) and not A.psd:
        return False  # it may be definite all the same, but that is not known
    try:
        route.check(A)
    except ValueError:
        return False
    return True


def _of(A: LinearOperator, method: Solver, steps: int) -> Cost:
    made = _preconditioned(A, method.preconditioner, method.cost(A, steps))
    if A.domain.layout is None:
        return made
    return made._replace(note=f"{made.note}; each of {A.domain.layout.devices} devices".lstrip("; "))


def _preconditioned(A: LinearOperator, given: Any, made: Cost) -> Cost:
    if given is None:
        return made
    products, numbers, name = 0, 0, type(given).__name__
    if isinstance(given, Recipe):
        (products, numbers), name = given.cost(A), given.title
    n = A.domain.size
    return made._replace(
        route=f"{made.route} + {name}",
        products=made.products + products,
        memory=made.memory + bytes_of(A, 1 + numbers / n),
        flops=made.flops + 2.0 * max(numbers, n) * made.products,
    )


def _bytes(number: float) -> str:
    for unit in ("B", "kiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.3g} TiB"
