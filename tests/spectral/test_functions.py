"""Functions of an operator at a vector, between bounds or with a guess at their error; condition numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import gaussian, host, spare, with_spectrum

import linop_gn as lg
from linop_gn.testing.strategies import array

SIZE = 30
FUNCTIONS = {
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "inverse": lambda x: 1 / x,
    "inverse_root": lambda x: 1 / np.sqrt(x),
}


def applied(matrix, function, b):
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ (function(values) * (vectors.T @ b))


@settings(max_examples=8)
@given(seed=st.integers(0, 2**16), steps=st.sampled_from([4, 9]))
def test_the_inverse_form_lies_between_its_bounds(backend, seed, steps):
    spare(backend, steps == 9)
    matrix, b = with_spectrum(np.logspace(-3, 1, SIZE), seed), gaussian(seed, SIZE)
    dense = lg.Dense(array(backend, matrix), psd=True)
    found = lg.inverse_quadratic(lg.Damped(dense, 1e-2), array(backend, b), steps=steps)
    exact = b @ np.linalg.solve(matrix + 1e-2 * np.eye(SIZE), b)
    assert float(found.lower) <= exact <= float(found.upper)
    assert abs(float(found.value) - exact) <= float(found.standard_error)
    assert (int(found.products), found.status) == (steps, lg.Status.COMPLETED)


@settings(max_examples=6)
@given(large=st.floats(1e-3, 1.0), small=st.floats(1e-10, 1e-6))
def test_dampings_of_a_narrower_dtype_are_summed_as_products_sum_them(backend, large, small):
    spare(backend, True)
    one, other = (array(backend, value, "float32") for value in (large, small))
    values, b = np.linspace(0.0, 1.0, 6), gaussian(0, 6)
    A = lg.Diagonal(array(backend, values), psd=True)
    summed = values + float(np.float32(large)) + float(np.float32(small))
    for damped in (lg.Damped(lg.Damped(A, one), other), lg.Damped(A + lg.Identity(A.domain) * other, one)):
        found = lg.inverse_quadratic(damped, array(backend, b), rtol=1e-11)
        exact = np.sum(b**2 / summed)
        assert found.status.succeeded
        assert abs(float(found.value) - exact) <= float(found.standard_error) + 1e-14 * exact
        assert float(lg.logdet(damped).value) == pytest.approx(np.sum(np.log(summed)), rel=1e-12)
        ratio = lg.condition_number(damped, rtol=1e-8)
        assert float(ratio.value) == pytest.approx(summed[-1] / summed[0], rel=1e-12)


def test_a_lower_end_may_be_given_and_tells_the_same():
    matrix, b = with_spectrum(np.logspace(-3, 1, SIZE), 0), gaussian(0, SIZE)
    damped = lg.inverse_quadratic(lg.Damped(lg.Dense(matrix, psd=True), 1e-2), b, steps=6)
    plain = lg.Dense(matrix + 1e-2 * np.eye(SIZE), psd=True)
    given = lg.inverse_quadratic(plain, b, steps=6, lowest=1e-2)
    assert given.lower == pytest.approx(damped.lower, rel=1e-9)
    assert given.upper == pytest.approx(damped.upper, rel=1e-9)
    free = lg.inverse_quadratic(plain, b, steps=6)
    assert free.upper is None
    assert free.value <= b @ np.linalg.solve(plain.matrix, b)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_functions_of_an_operator(backend, name, damping):
    spare(backend, name == "log" and damping > 0)
    matrix, b = with_spectrum(np.linspace(0.5, 4, SIZE), 1), gaussian(1, SIZE)
    dense = lg.Dense(array(backend, matrix), psd=True)
    A = lg.Damped(dense, damping) if damping else dense
    found = lg.matrix_function(A, array(backend, b), name, steps=12)
    exact = applied(matrix + damping * np.eye(SIZE), FUNCTIONS[name], b)
    error = np.linalg.norm(host(backend, found.value) - exact)
    assert error <= float(found.standard_error) + 1e-12
    assert error <= 1e-3 * np.linalg.norm(exact)
    assert "matrix_function [" in repr(found)


def test_functions_of_one_s_own_and_trees():
    matrix, b = with_spectrum(np.linspace(-1, 1, 6), 1), {"u": np.ones((2, 2)), "v": np.ones(2)}
    A = lg.Dense(matrix, symmetric=True, domain=lg.Space.of(b))
    found = lg.matrix_function(A, b, np.tanh)
    assert found.status is lg.Status.INVARIANT
    np.testing.assert_allclose(A.domain.pack(found.value), applied(matrix, np.tanh, np.ones(6)), atol=1e-13)
    assert "a tree of 2 leaves" in repr(found)


def test_they_stop_where_it_is_good_enough():
    matrix, b = with_spectrum(np.linspace(0.5, 4, 200), 1), gaussian(1, 200)
    A = lg.Damped(lg.Dense(matrix, psd=True), 0.1)
    root = lg.matrix_function(A, b, "inverse_root", steps=80, rtol=1e-6)
    form = lg.inverse_quadratic(A, b, steps=80, rtol=1e-6)
    number = lg.condition_number(A, steps=160, rtol=1e-3)
    for found in (root, form, number):
        assert found.status is lg.Status.CONVERGED
        assert found.products < 160
    assert abs(form.value - b @ np.linalg.solve(matrix + 0.1 * np.eye(200), b)) <= 1e-6 * form.value
    for late in (lg.matrix_function(A, b, "log", steps=4, rtol=1e-9), lg.inverse_quadratic(A, b, steps=4, rtol=1e-9)):
        assert late.status is lg.Status.MAX_STEPS
        assert "steps=" in late.sentence


def test_no_number_for_what_has_none():
    b, line = gaussian(0, SIZE), np.linspace(-1, 1, SIZE)
    indefinite = lg.Dense(with_spectrum(line, 0), symmetric=True)
    singular = lg.Dense(with_spectrum(np.where(line < -0.9, 0.0, 1.0), 0), psd=True)
    broken = lg.FunctionOperator(lambda v: v * np.nan, lg.Space.flat(SIZE, b), psd=True)
    for A, status in ((indefinite, "NEGATIVE_CURVATURE"), (singular, "SINGULAR"), (broken, "NONFINITE")):
        found = lg.inverse_quadratic(A, b)
        assert (found.status.name, found.succeeded, bool(np.isnan(found.value))) == (status, False, True)
    for A in (indefinite, broken):
        found = lg.matrix_function(A, b, "log")
        assert found.status is lg.Status.NONFINITE
        assert np.isnan(found.value).all()
    assert lg.condition_number(broken).status is lg.Status.NONFINITE
    zero = lg.matrix_function(singular, 0.0 * b, "log")
    assert zero.succeeded
    assert not zero.value.any()
    for vector in (b * np.nan, b * np.inf):
        assert lg.inverse_quadratic(singular, vector).status is lg.Status.NONFINITE_INPUT
        assert lg.matrix_function(singular, vector, "exp").status is lg.Status.NONFINITE_INPUT


def test_arguments():
    b = np.ones(3)
    with pytest.raises(ValueError, match="inverse_quadratic needs a symmetric operator"):
        lg.inverse_quadratic(lg.Dense(np.triu(np.ones((3, 3)))), b)
    with pytest.raises(ValueError, match="function must be one of 'exp'"):
        lg.matrix_function(lg.Dense(np.eye(3)), b, "cosine")
    with pytest.raises(TypeError, match="a name or callable"):
        lg.matrix_function(lg.Dense(np.eye(3)), b, 3)
    with pytest.raises(ValueError, match=r"one\s+column"):
        lg.matrix_function(lg.Dense(np.eye(3)), np.ones((3, 2)), "exp")
    with pytest.raises(ValueError, match="lowest must be a finite number > 0"):
        lg.inverse_quadratic(lg.Dense(np.eye(3)), b, lowest=0.0)


@pytest.mark.parametrize("shape", [(40, 25), (25, 40)])
def test_the_condition_number_of_what_is_not_square(shape):
    matrix = np.random.default_rng(0).standard_normal(shape)
    found = lg.condition_number(lg.Dense(matrix))
    assert found.value == pytest.approx(np.linalg.cond(matrix), rel=1e-9)
    assert found.products == 51
    for scale in (1e-30, 1e30):  # of single precision, neither of which can be squared
        found = lg.condition_number(lg.Dense((scale * matrix).astype(np.float32)))
        assert found.value == pytest.approx(np.linalg.cond(matrix), rel=1e-3)


def test_the_condition_number_of_damped_and_singular_operators():
    values = np.logspace(-8, 1, 200)
    found = lg.condition_number(lg.Damped(lg.Diagonal(values), 1e-2))
    assert found.lower <= (values[-1] + 1e-2) / (values[0] + 1e-2) <= found.upper
    zero = lg.condition_number(lg.Dense(with_spectrum([0.0, 1.0, 2.0], 0), psd=True))
    assert (zero.status, zero.value) == (lg.Status.SINGULAR, np.inf)
    assert lg.condition_number(lg.Dense(np.array([[3.0]]))).value == 1.0
    assert lg.condition_number(lg.Dense(with_spectrum([-3.0, 2.0, 1.0], 0))).value == pytest.approx(3.0)


def test_a_function_of_an_operator_that_was_wrongly_declared_positive():
    A = lg.FunctionOperator(lambda v: np.float64([-0.001, 1.0, 2.0]) * v, lg.Space.flat(3, np.zeros(1)), psd=True)
    for name in ("sqrt", "exp"):
        found = lg.matrix_function(lg.Damped(A, 0.1), np.ones(3), name)
        assert found.status == lg.Status.NEGATIVE_CURVATURE
        assert np.isnan(found.value).all()


def test_the_error_of_a_function_counts_the_rounding_of_small_eigenvalues():
    d = np.logspace(-12, 0, 60)
    Q, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((60, 60)))
    M, b = Q * d @ Q.T, Q.sum(axis=1)
    found = lg.matrix_function(lg.Dense((M + M.T) / 2, psd=True), b, "inverse_root", steps=60)
    error = np.linalg.norm(found.value - Q @ d**-0.5)
    assert error <= 4 * found.standard_error < 0.1 * np.linalg.norm(d**-0.5)


def test_a_condition_number_that_nothing_bounds_is_printed_as_at_least():
    singular = lg.Dense(with_spectrum(np.r_[np.zeros(60), np.geomspace(1e-4, 1, 140)], 0), psd=True)
    found = lg.condition_number(singular, steps=25)
    assert found.succeeded
    assert found.value == found.lower
    assert found.standard_error > 0
    assert found.upper is None
    assert f"at least {found.value:.6g};" in repr(found)
    assert "nothing bounds it from above" in found.sentence
    bounded = lg.condition_number(lg.Damped(singular, 0.1), steps=25)
    assert "at least" not in repr(bounded)
    assert "between" in repr(bounded)
    exact = lg.condition_number(lg.Dense(with_spectrum(np.repeat([1.0, 5.0], 20), 0), psd=True))
    assert exact.status is lg.Status.INVARIANT
    assert "at least" not in repr(exact)


def test_a_condition_number_takes_no_adjoint_that_is_none():
    M = np.random.default_rng(0).standard_normal((30, 20))
    spaces = lg.Space.flat(20, M), lg.Space.flat(30, M)
    for wrong in (lambda u: -(M.T @ u), lambda u: M[::-1].T @ u):
        found = lg.condition_number(lg.FunctionOperator(lambda v: M @ v, *spaces, wrong))
        assert (found.status, bool(np.isnan(found.value))) == (lg.Status.NOT_SYMMETRIC, True)
        assert "don't fit each other" in found.sentence
    lied = lg.FunctionOperator(lambda v: v * np.linspace(-1, 2, 20), spaces[0], psd=True)
    assert lg.condition_number(lied).status is lg.Status.NEGATIVE_CURVATURE
