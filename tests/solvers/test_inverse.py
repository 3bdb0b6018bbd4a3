"""Inverses as operators, against dense ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.testing.strategies import array, seeds


def matrix(kind, n, seed):
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    d = rng.uniform(1, 3, n)
    if kind == "definite":
        return (Q * d) @ Q.T, {"psd": True}
    if kind == "indefinite":
        M = (Q * d * rng.choice([-1, 1], n)) @ Q.T
        return (M + M.T) / 2, {"symmetric": True}
    return (Q * d) @ np.linalg.qr(rng.standard_normal((n, n)))[0], {}


@given(kind=st.sampled_from(["definite", "indefinite", "general"]), n=st.integers(2, 12), seed=seeds())
def test_products_are_those_of_the_dense_inverse(numpy_backend, kind, n, seed):
    M, known = matrix(kind, n, seed)
    A, exact = lg.inverse(lg.Dense((M + M.T) / 2 if known else M, **known)), np.linalg.inv(M)
    assert (A.symmetric, A.psd) == (kind != "general", kind == "definite")
    V = np.random.default_rng(0).standard_normal((n, 2))
    np.testing.assert_allclose(A @ V, exact @ V, atol=1e-6)
    np.testing.assert_allclose(A.T @ V[:, 0], exact.T @ V[:, 0], atol=1e-6)


def test_on_every_framework(backend):
    M, known = matrix("definite", 8, 0)
    A = lg.inverse(lg.Dense(array(backend, M, "float64"), **known))
    v = np.arange(8.0)
    np.testing.assert_allclose(backend.to_numpy(A @ array(backend, v, "float64")), np.linalg.solve(M, v), atol=1e-6)


def test_it_is_an_operator_as_any_other():
    d = np.linspace(1.0, 50.0, 40)
    A, exact = lg.inverse(lg.Diagonal(d), lg.CG(rtol=1e-12)), 1 / d
    np.testing.assert_allclose(lg.eigsh(A, 2, rtol=1e-6).values, [1.0, exact[1]], rtol=1e-6)
    np.testing.assert_allclose(lg.trace(A, products=40).value, exact.sum(), rtol=1e-8)
    J = lg.Dense(np.eye(40)[:3])
    np.testing.assert_allclose((J @ A @ J.T).to_dense(), np.diag(exact[:3]), atol=1e-9)
    x = lg.solve(A + lg.Identity(A.domain), np.ones(40), lg.CG(rtol=1e-9)).x
    np.testing.assert_allclose(x, 1 / (1 + exact), rtol=1e-6)


def test_a_preconditioner_is_made_once():
    made, jacobi = [], lg.preconditioners.Jacobi()

    def recipe(A):
        made.append(A)
        return jacobi(A)

    d = np.logspace(0, 6, 30)
    A = lg.inverse(lg.Diagonal(d), lg.CG(rtol=1e-10, preconditioner=recipe))
    np.testing.assert_allclose(A @ np.eye(30), np.diag(1 / d), rtol=1e-8)
    assert len(made) == 1


def test_a_solve_that_failed_is_no_product():
    d = np.logspace(0, 9, 60)
    with pytest.warns(RuntimeWarning, match="ended MAX_STEPS"):
        assert np.isnan(lg.inverse(lg.Diagonal(d), lg.CG(max_steps=2)) @ np.ones(60)).all()
    with pytest.warns(RuntimeWarning, match="ended"):
        found = lg.solve(lg.inverse(lg.Diagonal(d), lg.CG(max_steps=2)), np.ones(60))
    assert found.status is lg.Status.NONFINITE


def test_of_a_singular_operator_eigh_gives_the_pseudo_inverse():
    A = lg.inverse(lg.Diagonal(np.array([0.0, 2.0])), lg.Eigh())
    np.testing.assert_allclose(A @ np.array([0.0, 1.0]), [0.0, 0.5])


def test_refusals_say_what_to_do():
    A = lg.Dense(np.triu(np.ones((3, 3))))
    with pytest.raises(TypeError, match=r"lg\.Dense"):
        lg.inverse(np.eye(2))
    with pytest.raises(ValueError, match="not known to be"):
        lg.inverse(A, lg.CG())
    with pytest.raises(ValueError, match=r"A\.T @ A"):
        lg.inverse(lg.Dense(np.ones((3, 2))))
    with pytest.raises(TypeError, match="GLTR"):
        lg.inverse(lg.Diagonal(np.ones(2)), lg.GLTR())
    with pytest.raises(TypeError, match=r"lg\.CG\(\)"):
        lg.inverse(A, "cg")
