"""Steps of conjugate gradients that are taken before a scalar is looked at, for devices where a look is dear.

On a GPU reading a number waits for all that was asked for before it. A run of so many steps needs none to go on: alpha
and beta may stay where the vectors are. So up to 32 steps are queued, their inner products are read together, and what
an ordinary tick would have judged is judged then. Where one of them was not ordinary, the vectors from before are
still there: the steps are lost, and :meth:`CG.step` takes them again one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..run.status import Code
from .problem import LinearProblem

__all__ = ["leap"]

MOST = 32
"""Steps between looks; so many are lost where one was not ordinary."""


def leap(solver: Any, ops: Any, problem: LinearProblem, s: Any) -> Iterator[Any]:
    """The next states of CG in a run of so many steps; its step takes the last one, and what is not ordinary.

    Of the states that come together only the last one's vectors are its own. ``ops.dot`` returns numbers that stay
    where vectors are.
    """
    limit, inner, lost = solver.limit(problem), problem.preconditioner, 0
    told_apart = solver.keep is not None or problem.x0 is not None or solver.reductions == 1
    if solver.steps is None or told_apart or type(s.norm) is not float:
        return
    while not lost and s.status == Code.RUNNING and s.steps + 1 < limit:
        x, r, p, rz, rp, told = ops.copy(s.x), ops.copy(s.r), ops.copy(s.p), s.rz, s.rp, []
        for _ in range(min(MOST, limit - 1 - s.steps)):
            product = problem.operator.apply(p)
            curvature = ops.dot(p, product)
            alpha = rp / curvature
            r = ops.axpy(-alpha, product, r)
            z = problem.precondition(r)
            rr = ops.dot(r, r)
            rp = rr if inner is None else ops.dot(r, z)
            x, p, rz = ops.axpy(alpha, p, x), ops.axpby(1.0, z, rp / rz, p), rp
            told.append((curvature, rr, rp))
        made = [s]
        for curvature, rr, rz in ops.read(told):
            after = solver.ordinary(made[-1], curvature, rr, rz, ops.eps(r), limit)
            if after is None:
                lost = len(told)
                break
            made.append(type(s)._make((x, r, p, *after, *s[3 + len(after) :])))
        else:
            yield from made[1:]
            s = made[-1]
    if lost:
        yield s._replace(products=s.products + lost)
