"""What users write, for the type checkers: `nox -s types` reads it with mypy, `nox -s pyright` with basedpyright.

Each name has the type that it says, so that an editor completes the fields of results.
"""

from __future__ import annotations

from typing import Any, assert_type

import numpy as np

import linop_gn as lg


def systems() -> None:
    A = lg.Damped(lg.Dense(np.eye(3), psd=True), 0.1)
    found = lg.solve(A, np.ones(3), lg.CG(rtol=1e-8, preconditioner=lg.preconditioners.Jacobi()))
    assert_type(found, lg.Solution)
    B = 2.0 * A + lg.Identity(A.domain)
    pairs = lg.eigsh(B, k=1)
    assert_type(pairs, lg.Eigenpairs)
    K = lg.krylov(B, np.ones(3), k=3)
    assert_type(K, lg.Krylov)
    assert_type(lg.trace(B), lg.Estimate)
    assert_type(lg.spectral_density(B, probes=2, steps=3), lg.Density)
    assert_type(lg.cost(B), lg.Costs)
    assert_type(lg.validate(B), lg.Report)
    assert_type(lg.inverse(B, lg.MINRES()).shape, tuple[int, int])


def fits() -> None:
    fit = lg.least_squares(lambda p: p - np.ones(3), np.zeros(3), bounds=(0.0, 2.0))
    assert_type(fit, lg.LeastSquaresResult)
    assert_type(fit.summary(), str)


def residuals(p: Any) -> Any:
    return p - 1.0


def runs() -> None:
    objective = lg.Objective.from_residuals(residuals, jacobian=lambda p: np.eye(3))
    assert_type(objective, lg.Objective)
    method = lg.SecondOrder(
        curvature=lg.GGN,
        descent=lg.descents.Solve(lg.CG(max_steps=10)),
        control=lg.Nielsen(),
        search=lg.searches.Armijo(),
        level=1e-2,
    )
    result = lg.minimize(objective, np.zeros(3), method, max_steps=3, watch=[lg.ProgressBar(), lg.Budget(seconds=60)])
    assert_type(result, lg.Result)
    state = lg.advance(method, objective, lg.start(method, objective, np.zeros(3)))
    assert_type(state, lg.State)


class Halved(lg.SecondOrder):
    """A method of a user's own."""


def own_parts() -> lg.Method:
    return Halved(curvature=lg.Hessian, level=1.0)
