"""jax.scipy, lineax and matfree: one ``jax.jit`` around each solve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .face import STOPS, Answer, Case, Run


def jax_run(solve: Callable[..., Any], read: Callable[[Any], Answer]) -> Callable[[Case], Run]:
    """One ``jax.jit`` around ``solve(case, b, x0, data)``; everything numeric is an argument."""

    def prepare(case: Case) -> Run:
        import jax
        import jax.numpy as jnp

        # float32 as most people run it: with x64 on, the least-squares solvers of lineax and matfree raise TypeError.
        jax.config.update("jax_enable_x64", case.dtype == "float64")
        arguments = (
            jnp.asarray(case.b),
            None if case.x0 is None else jnp.asarray(case.x0),
            tuple(jnp.asarray(entries) for entries in case.data),
        )
        program = jax.jit(lambda b, x0, data: solve(case, b, x0, data))
        return Run(lambda: jax.block_until_ready(program(*arguments)), read, program, arguments)

    return prepare


def jax_scipy(name: str) -> Callable[[Case], Run]:
    """Of jax.scipy.sparse.linalg; they have no flag."""

    def solve(case: Case, b: Any, x0: Any, data: Any) -> Any:
        import jax

        options: dict[str, Any] = {"tol": 0.0 if case.fixed else case.rtol, "maxiter": case.max_steps, "x0": x0}
        if case.preconditioner is not None:
            options["M"] = lambda v: case.preconditioner * v
        return getattr(jax.scipy.sparse.linalg, name)(lambda v: case.apply(v, *data), b, **options)[0]

    return jax_run(solve, lambda x: Answer(np.asarray(x, dtype=np.float64), None, "no flag (info is None)"))


def lineax(solver: str) -> Callable[[Case], Run]:
    """Of lineax, with ``throw=False``; by default it raises instead where the result is not ``successful``."""

    def solve(case: Case, b: Any, x0: Any, data: Any) -> Any:
        import jax
        import lineax as lx

        unknowns = jax.ShapeDtypeStruct((case.columns,), b.dtype)
        tags = lx.positive_semidefinite_tag if case.family == "definite" else ()
        A = lx.FunctionLinearOperator(lambda v: case.apply(v, *data), unknowns, tags)
        options = {} if x0 is None else {"y0": x0}
        if case.preconditioner is not None:
            options["preconditioner"] = lx.TaggedLinearOperator(
                lx.DiagonalLinearOperator(case.preconditioner), lx.positive_semidefinite_tag
            )
        size = float(np.nanmax(np.where(np.isfinite(case.b), np.abs(case.b), 0.0)))
        if solver == "LSMR":
            chosen = lx.LSMR(rtol=case.rtol, atol=0.0, max_steps=case.max_steps)
        elif case.fixed:
            chosen = getattr(lx, solver)(rtol=0.0, atol=1e-300, max_steps=case.max_steps)
        else:
            chosen = getattr(lx, solver)(rtol=case.rtol, atol=case.rtol * (size or 1.0), max_steps=case.max_steps)
        found = lx.linear_solve(A, b, chosen, options=options, throw=False)
        return found.value, found.result, found.stats["num_steps"]

    def taken(steps: int) -> int | None:
        if solver == "CG":  # the first residual, and one more at every tenth step
            return 1 + steps + steps // 10
        return 2 + 2 * steps if solver == "LSMR" else None

    def read(found: Any) -> Answer:
        import lineax as lx

        x, result, steps = found
        name = next(name for name in lx.RESULTS._name_to_item if bool(result == getattr(lx.RESULTS, name)))
        return Answer(
            np.asarray(x, dtype=np.float64), name == "successful", f"RESULTS.{name}", int(steps), taken(int(steps))
        )

    return jax_run(solve, read)


def matfree_lsmr() -> Callable[[Case], Run]:
    """matfree's LSMR, which takes the adjoint's product."""

    def solve(case: Case, b: Any, x0: Any, data: Any) -> Any:
        from matfree import lstsq

        tolerance = 0.0 if case.fixed else case.rtol
        solver = lstsq.lsmr(
            atol=tolerance, btol=tolerance, maxiter=case.max_steps, **({"ctol": 0.0} if case.fixed else {})
        )
        x, stats = solver(lambda u: case.apply_adjoint(u, *data), b, x0=x0)
        return x, stats["istop"], stats["success"], stats["iteration_count"]

    def read(found: Any) -> Answer:
        x, stop, success, steps = found
        says = f"success={bool(success)}, istop={int(stop)} ({STOPS[int(stop)] if stop >= 0 else 'no reason found'})"
        return Answer(np.asarray(x, dtype=np.float64), bool(success), says, int(steps), 2 + 2 * int(steps))

    return jax_run(solve, read)


def matfree_lanczos(reortho: str) -> Callable[[Case], Run]:
    """matfree's tridiagonalisation."""

    def solve(case: Case, b: Any, x0: Any, data: Any) -> Any:
        from matfree import decomp

        found = decomp.tridiag_sym(case.max_steps, reortho=reortho)(lambda v: case.apply(v, *data), b)
        return found.Q_tall, found.J_small

    def read(found: Any) -> Answer:
        T = np.asarray(found[1], dtype=np.float64)
        values = np.linalg.eigvalsh(T) if np.isfinite(T).all() else np.full(len(T), np.nan)
        return Answer(values, None, "no flag", len(T))

    return jax_run(solve, read)
