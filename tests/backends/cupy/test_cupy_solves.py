"""Solvers and methods on CuPy's arrays give what they give on NumPy's."""

import numpy as np
import pytest

import linop_gn as lg

RNG = np.random.default_rng(0)
ROOT = RNG.standard_normal((24, 24))
MATRIX = ROOT @ ROOT.T / 24 + np.eye(24)
RHS = RNG.standard_normal(24)
METHODS = {
    "CG": lambda: lg.CG(rtol=1e-10),
    "MINRES": lambda: lg.MINRES(rtol=1e-10),
    "LSMR": lambda: lg.LSMR(),
    "Cholesky": lambda: lg.Cholesky(),
    "LU": lambda: lg.LU(),
    "Eigh": lambda: lg.Eigh(),
}


def system(array):
    return lg.Dense(array(MATRIX), psd=True), array(RHS)


@pytest.mark.parametrize("name", METHODS)
def test_a_solver_gives_what_it_gives_on_numpy(ops, second, name):
    A, b = system(lambda x: ops.asarray(x, "float64", second))
    found, expected = lg.solve(A, b, METHODS[name]()), lg.solve(*system(np.asarray), METHODS[name]())
    assert found.succeeded, found
    assert found.status is expected.status
    assert ops.describe(found.x) == ((24,), "float64", second)
    np.testing.assert_allclose(ops.to_numpy(found.x), expected.x, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("status", ["NONFINITE", "NEGATIVE_CURVATURE"])
def test_a_status_survives(ops, status):
    matrix = np.diag([1.0, -1.0]) if status == "NEGATIVE_CURVATURE" else np.diag([1.0, np.inf])
    A = lg.FunctionOperator(lambda v: D @ v, lg.Space.flat(2, ops.asarray(np.ones(1), "float64")), symmetric=True)
    D = ops.asarray(matrix, "float64")
    assert lg.solve(A, ops.asarray(np.ones(2), "float64"), lg.CG()).status.name == status


def test_one_krylov_basis_serves_every_damping(ops, second):
    A, b = system(lambda x: ops.asarray(x, "float64", second))
    dampings = [1e-2, 1.0]
    solved = lg.krylov(A, b, k=24).solve(damping=dampings)
    for damping, x in zip(dampings, np.moveaxis(ops.to_numpy(solved.x), -1, 0), strict=True):
        np.testing.assert_allclose(x, np.linalg.solve(MATRIX + damping * np.eye(24), RHS), rtol=1e-8)
