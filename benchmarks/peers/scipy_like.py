"""SciPy's solvers, and CuPy's, which have the same names."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from .face import STOPS, Answer, Case, Run


def scipy_like(case: Case, arrays: Any, linalg: Any) -> tuple[Any, tuple[Any, ...], Any]:
    """(A as their linear operator, b, x0 or None) on arrays of ``arrays``."""
    data = tuple(arrays.asarray(entries) for entries in case.data)
    A = linalg.LinearOperator(
        (len(case.b), case.columns),
        matvec=lambda v: case.apply(v.ravel(), *data),
        rmatvec=lambda u: case.apply_adjoint(u.ravel(), *data),
        dtype=case.b.dtype,
    )
    return A, arrays.asarray(case.b), None if case.x0 is None else arrays.asarray(case.x0)


def diagonal_of(case: Case, arrays: Any, linalg: Any) -> Any:
    """The preconditioner as their linear operator."""
    if case.preconditioner is None:
        return None
    d = arrays.asarray(case.preconditioner)
    return linalg.LinearOperator((len(d), len(d)), matvec=lambda v: d * v.ravel(), dtype=d.dtype)


def scipy_symmetric(name: str, library: str = "scipy") -> Callable[[Case], Run]:
    """Conjugate gradients and minimal residuals."""

    def prepare(case: Case) -> Run:
        linalg, arrays = _modules(library)
        A, b, x0 = scipy_like(case, arrays, linalg)
        solver = getattr(linalg, name)
        options: dict[str, Any] = {"maxiter": case.max_steps, "M": diagonal_of(case, arrays, linalg), "x0": x0}
        options["tol" if library == "cupy" else "rtol"] = 0.0 if case.fixed else case.rtol

        def read(found: Any) -> Answer:
            x, info = found
            told = "converged" if info == 0 else "steps ran out" if info > 0 else "illegal input or breakdown"
            return Answer(_host(x), info == 0, f"info={int(info)} ({told})")

        return Run(lambda: _finished(solver(A, b, **options), library), read)

    return prepare


def scipy_least_squares(name: str, library: str = "scipy") -> Callable[[Case], Run]:
    """LSMR and LSQR."""

    def prepare(case: Case) -> Run:
        linalg, arrays = _modules(library)
        A, b, x0 = scipy_like(case, arrays, linalg)
        limit = "maxiter" if name == "lsmr" else "iter_lim"
        tolerance = 0.0 if case.fixed else case.rtol
        options = {"atol": tolerance, "btol": tolerance, limit: case.max_steps, "x0": x0}
        if case.fixed:
            options["conlim"] = 0.0
        solver = getattr(linalg, name)

        def read(found: Any) -> Answer:
            stop, steps = int(found[1]), int(found[2])
            return Answer(_host(found[0]), stop in (0, 1, 2, 4, 5), f"istop={stop} ({STOPS[stop]})", steps)

        return Run(lambda: _finished(solver(A, b, **options), library), read)

    return prepare


def scipy_eigsh(library: str = "scipy", wanted: int = 6) -> Callable[[Case], Run]:
    """A few of the largest eigenvalues, from the start vector of the case."""

    def prepare(case: Case) -> Run:
        linalg, arrays = _modules(library)
        A, b, _ = scipy_like(case, arrays, linalg)

        def call() -> Any:
            return linalg.eigsh(A, k=wanted, which="LA", v0=b, tol=case.rtol, return_eigenvectors=False)

        return Run(call, lambda values: Answer(_host(values), True, f"returned {wanted} values"))

    return prepare


def scipy_region(name: str) -> Callable[[Case], Run]:
    """The first step of ``scipy.optimize.minimize`` on the quadratic: the subproblem's solution, which has no flag."""

    def prepare(case: Case) -> Run:
        from scipy.optimize import minimize

        data, b = case.data, case.b
        radii = {"initial_trust_radius": case.radius, "max_trust_radius": 2 * case.radius}
        options = {**radii, "maxiter": 1, "gtol": 0.0}
        derivatives: dict[str, Any] = {"hess": lambda x: np.stack([case.apply(e, *data) for e in np.eye(len(b))])}
        if name == "trust-krylov":
            options["inexact"] = False
            derivatives = {"hessp": lambda x, v: case.apply(v, *data)}

        def call() -> Any:
            model = lambda x: 0.5 * x @ case.apply(x, *data) - b @ x  # noqa: E731
            slope = lambda x: case.apply(x, *data) - b  # noqa: E731
            return minimize(model, np.zeros(len(b)), jac=slope, method=name, options=options, **derivatives)

        return Run(call, lambda found: Answer(found.x, None, "no flag for the step"))

    return prepare


def _finished(found: Any, library: str) -> Any:
    """What was found, when the device has found it."""
    if library == "cupy":
        importlib.import_module("cupy").cuda.get_current_stream().synchronize()
    return found


def _modules(library: str) -> tuple[Any, Any]:
    if library == "scipy":
        return importlib.import_module("scipy.sparse.linalg"), np
    return importlib.import_module("cupyx.scipy.sparse.linalg"), importlib.import_module("cupy")


def _host(x: Any) -> np.ndarray:
    return np.asarray(x.get() if hasattr(x, "get") else x, dtype=np.float64)
