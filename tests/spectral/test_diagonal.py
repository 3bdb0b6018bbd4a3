"""Diagonals against the published formulas on the same probes, entry by entry, errors included."""

import estimators as published
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import host, spare, with_spectrum

import linop_gn as lg
from linop_gn.draws import sign_columns
from linop_gn.testing.strategies import array

SIZE, PRODUCTS = 24, 10
METHODS = ["hutchinson", "xdiag", "xnysdiag"]


def expected(matrix, method, seed, products):
    """(values, standard errors) by the published formulas, on the probes of this seed."""
    Omega = sign_columns(lg.Space.flat(len(matrix), np.zeros(1)), seed, 0, products // (1 + (method == "xdiag")))
    if method == "hutchinson":
        values = Omega * (matrix @ Omega)
        return values.mean(axis=1), published.scatter(values)
    fixed = (published.shift(matrix, Omega),) if method == "xnysdiag" else ()
    estimator = getattr(published, method)
    return estimator(matrix, Omega, *fixed).mean(axis=1), published.jackknife(estimator, matrix, Omega, *fixed)


def unknown_diagonal(matrix, psd=True):
    """An operator that knows its products only."""
    return lg.FunctionOperator(
        lambda v: matrix @ v, lg.Space.flat(len(matrix), matrix), None, lambda u: matrix.T @ u, psd=psd
    )


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=6)
@given(seed=st.integers(0, 2**20), scale=st.sampled_from([1e-9, 1.0, 1e9]))
def test_it_is_the_published_formula(backend, method, seed, scale):
    spare(backend, method == "xnysdiag")
    matrix = scale * with_spectrum(np.arange(1.0, SIZE + 1) ** -1, seed)
    found = lg.diagonal(lg.Dense(array(backend, matrix), psd=True), method, products=PRODUCTS, seed=seed)
    value, error = expected(matrix, method, seed, PRODUCTS)
    np.testing.assert_allclose(host(backend, found.value), value, rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(host(backend, found.standard_error), error, rtol=0, atol=1e-7 * scale)
    assert found.succeeded


def test_an_operator_that_is_not_symmetric():
    matrix = np.random.default_rng(0).standard_normal((SIZE, SIZE)) + 5 * np.eye(SIZE)
    found = lg.diagonal(lg.Dense(matrix), "xdiag", products=PRODUCTS, seed=2)
    np.testing.assert_allclose(found.value, expected(matrix, "xdiag", 2, PRODUCTS)[0], atol=1e-12)
    assert lg.diagonal(unknown_diagonal(matrix, psd=False), products=PRODUCTS).method == "XDiag"


@pytest.mark.parametrize("method", ["auto", "exact", *METHODS])
def test_it_is_exact_where_the_products_cover_the_space(method):
    matrix = with_spectrum(np.arange(1.0, SIZE + 1) ** -2, 1)
    found = lg.diagonal(unknown_diagonal(matrix), method, products=SIZE)
    np.testing.assert_array_equal(found.value, np.diag(matrix))
    assert not found.standard_error.any()
    assert (int(found.products), found.exact) == (SIZE, True)
    known = lg.diagonal(lg.Dense(matrix, psd=True))
    np.testing.assert_array_equal(known.value, np.diag(matrix))
    assert known.products == 0


def test_bars_hold_the_entries():
    for spectrum in (0.7 ** np.arange(100), np.linspace(3, 1, 100)):
        matrix = with_spectrum(spectrum, 0)
        for method in METHODS:
            found = [lg.diagonal(lg.Dense(matrix, psd=True), method, products=30, seed=seed) for seed in range(20)]
            inside = [abs(one.value - np.diag(matrix)) <= 1.96 * one.standard_error for one in found]
            assert np.mean(inside) >= 0.9, method


def test_errors_and_statuses():
    matrix = with_spectrum(np.linspace(-1, 2, SIZE), 0)
    false = lg.diagonal(unknown_diagonal(matrix), "xnysdiag", products=12)
    assert false.status is lg.Status.NEGATIVE_CURVATURE
    general = lg.Dense(matrix)
    with pytest.raises(ValueError, match=r"'xnysdiag' needs a positive semi-definite.*method='xdiag'"):
        lg.diagonal(general, "xnysdiag", products=12)
    with pytest.raises(ValueError, match="'xdiag' takes 2 products"):
        lg.diagonal(general, "xdiag", products=1)
    with pytest.raises(ValueError, match="method must be one of"):
        lg.diagonal(general, "xtrace")
    with pytest.raises(ValueError, match="square operator"):
        lg.diagonal(lg.Dense(np.ones((2, 3))))
    for method in ("exact", *METHODS):
        broken = lg.FunctionOperator(lambda v: v * np.nan, lg.Space.flat(60, np.zeros(1)), psd=True)
        assert lg.diagonal(broken, method, products=12).status is lg.Status.NONFINITE
    for products in (1, 2, 3):
        found = lg.diagonal(unknown_diagonal(matrix, False), products=products)
        assert np.isfinite(found.value).all()
        assert (found.standard_error > 0).all()
    zero = lg.diagonal(unknown_diagonal(np.zeros((SIZE, SIZE))), "xnysdiag", products=12)
    assert not zero.value.any()
    assert not zero.standard_error.any()


def test_it_stops_at_the_error_asked_for():
    A = lg.Dense(with_spectrum(np.linspace(3, 1, 120), 0), psd=True)
    early = lg.diagonal(A, "hutchinson", products=96, rtol=0.1)
    assert early.status is lg.Status.CONVERGED
    assert 10 <= early.samples < 96
    assert lg.diagonal(A, "xdiag", products=96, rtol=0.5).status is lg.Status.CONVERGED
    size = np.linalg.norm(early.standard_error)
    same = lg.diagonal(A, "hutchinson", products=96, atol=1.001 * size)
    assert (same.status, same.products) == (lg.Status.CONVERGED, early.products)
    assert lg.diagonal(A, "xdiag", products=96, rtol=1e-6).status is lg.Status.MAX_STEPS


@pytest.mark.parametrize("make", [lg.GGN, lg.BlockGGN, lg.EmpiricalFisher, lg.Fisher])
def test_of_a_gauss_newton_operator_its_layers_or_a_row_for_each_output(backend, make):
    if backend.calculus is None or ("compiled" in backend.capabilities and make is not lg.GGN):
        pytest.skip("it has no derivatives, or compiles for one of these")
    rng, xp = np.random.default_rng(0), backend.namespace()
    put = lambda a: backend.asarray(a, "float64")  # noqa: E731
    x, y = put(rng.standard_normal((4, 3))), backend.asarray(np.array([0, 1, 1, 0]), "int64")
    model = lambda p, x: xp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731
    p = {"a": put(rng.standard_normal((3, 5))), "b": put(rng.standard_normal((5, 2)))}
    G = make(lg.Objective(model, lg.losses.CrossEntropy(), (x, y, put(np.array([1.0, 0.0, 2.0, 1.0]))), l2=0.5), p)
    found = lg.diagonal(G, "exact")
    looks = 2 * (backend.name != "torch")  # whose graph tells that examples are apart
    ways = {(2 + looks, "layers of the model"), (8, "rows of the Jacobian")}  # autograd cannot tell layers
    assert (int(found.products), found.method) in ways
    assert (found.method in found.sentence, found.products == 8) == (True, backend.name == "numpy")
    np.testing.assert_allclose(
        backend.to_numpy(found.value), np.diag(backend.to_numpy(G.to_dense())), rtol=1e-9, atol=1e-12
    )


def test_entries_whose_squares_overflow():
    d = np.float32([1e30, 1e20, 3e37])
    A = lg.FunctionOperator(lambda v: d * v, lg.Space.flat(3, d))
    found = lg.diagonal(A, "exact")
    assert found.succeeded
    np.testing.assert_array_equal(found.value, d)


def test_a_hessian_of_the_loss_without_a_root_takes_unit_vectors():
    x = np.random.default_rng(0).standard_normal((3, 5))
    fit = lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), (x, np.zeros(3)), jacobian=lambda w, x: x)
    F = lg.Fisher(fit, np.ones(5), samples=3)
    np.testing.assert_allclose(lg.diagonal(F).value, np.diag(F.to_dense()))
